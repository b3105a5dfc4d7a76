//! Test images, written as OCI layouts in pure Rust.
//!
//! [`Entry`] is one tar entry, [`Layer`] a tar with its compression, [`ImageBuilder`] an image; [`LayoutWriter`] puts
//! images into a layout directory. The same input gives the same bytes. [`edge`], [`apart`] and [`large`] are the
//! images that hold every case the promises are about.

pub mod apart;
pub mod edge;
pub mod entry;
pub mod header;
pub mod large;
mod layer;
mod layout;
mod shell;
mod sparse;
mod upper;

pub use entry::{Content, Dialect, Entry, Pattern};
pub use layer::{Compression, Layer, Piece, write_compressed};
pub use layout::{Image, ImageBuilder, LayerRecord, LayoutWriter};
pub use shell::{program, shell};
pub use sparse::{Sparse, SparseEncoding};
pub use upper::write_upper;
