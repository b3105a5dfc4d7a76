//! Image in, image out.
//!
//! [`convert()`] recompresses an image into chunks with layer indexes, [`pack()`] makes an image of a directory, [`check()`] proves
//! that an image is what it says (and what another image says), [`index()`] makes an image lazy without rewriting it, [`export()`]
//! gives an image back as it is, and [`look`] browses an image without mounting it. Images come from a [`Source`] and go to a
//! [`Target`]; the stages in between (`recompress`) are synchronous, bounded in memory, and know no repository. Long work reports to a
//! [`Progress`] and ends in a [`report`].

mod check;
mod convert;
mod error;
mod export;
mod index;
pub mod inspect;
pub mod look;
mod pack;
pub mod progress;
mod recompress;
pub mod report;
mod source;
mod tar_writer;
mod target;
mod transfer;

pub use check::{CheckOptions, check};
pub use convert::{ConvertOptions, DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, convert};
pub use error::Error;
pub use export::{ExportOptions, LayerForm, export};
pub use index::index;
pub use inspect::inspect;
pub use look::ImageBrowser;
pub use pack::{PackFormat, PackOptions, pack};
pub use progress::{Progress, Silent};
pub use report::{CheckReport, ConvertReport, ExportReport, IndexReport, PackReport};
pub use source::Source;
pub use target::Target;
