//! What the bytes of Sluice mean, with no I/O.
//!
//! An OCI layer is a tar stream. Its uncompressed bytes, the *plain layer*, are never changed; everything here describes
//! them. [`scan`] reads a tar and yields its [`tree`] and the chunk cuts; [`chunk`] says where the stored bytes of each
//! chunk lie; [`layer_index`] packs both into the bytes that travel with a layer; [`erofs`] writes and reads trees as
//! EROFS metadata that the kernel can mount; [`merge`] stacks the trees of several layers into one image tree; [`profile`] says what a start read,
//! and [`startup`] what it is going to.
//!
//! Every byte parsed here may come from an attacker: parsers are bounded by [`Limits`], errors name the
//! value and the bound, and nothing panics on any input.

#![deny(missing_docs)]

pub mod artifact;
pub mod chunk;
pub mod compression;
pub mod cut;
pub mod date;
pub mod digest;
pub mod erofs;
mod error;
pub mod gzip;
pub mod inode;
pub mod layer_index;
pub mod limits;
pub mod merge;
pub mod name;
pub mod profile;
pub mod program;
pub mod scan;
pub mod startup;
pub mod stored;
pub mod toc;
pub mod tree;

pub use chunk::{ChunkRef, ChunkTable};
pub use digest::{BlobDigest, ChainId, ChunkDigest, DiffId, Digest, Hasher};
pub use error::FormatError;
pub use layer_index::{IndexLocation, LayerIndex};
pub use limits::Limits;
pub use name::EntryName;
pub use profile::Profile;
pub use tree::{LayerTree, Node, NodeId, NodeKind, Tree};
