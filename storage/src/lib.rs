//! Where bytes live and move: registries, image layouts, fetching of chunks, and the plain-layer cache.
//!
//! [`repository`] and [`blob`] are the contracts: a repository names manifests and blobs, a blob is read by ranges.
//! [`registry`] and [`layout`] implement them. [`image`] resolves a reference to layers with their indexes;
//! [`plain_layer`] answers `read(plain offset, length)` with verified bytes, through [`fetch`] and [`cache`].

pub mod blob;
pub mod error;
pub mod repository;

pub use blob::{Blob, ByteStream};
pub use error::{Error, ErrorKind};
pub use repository::{BlobWriter, Descriptor, Manifest, ManifestName, Repository, WritableRepository};
