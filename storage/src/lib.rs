//! Where bytes live and move: registries, image layouts, fetching of chunks, and the plain-layer cache.
//!
//! [`repository`] and [`blob`] are the contracts: a repository names manifests and blobs, a blob is read by ranges.
//! [`registry`] and [`layout`] implement them; [`transport`] parses the names under which users know them.
//! [`image`] resolves a name and a [`platform`] to layers with their indexes, reading manifests through [`documents`].
//! [`plain_layer`] answers `read(plain range)` with verified bytes, through [`fetch`] and [`cache`], and counts what
//! that took in [`counters`].

#![deny(missing_docs)]

pub mod blob;
mod blocking;
pub mod cache;
pub mod counters;
pub mod documents;
pub mod error;
pub mod fetch;
pub mod image;
pub mod layout;
pub mod plain_layer;
pub mod platform;
pub mod registry;
pub mod repository;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;

pub use blob::{Blob, ByteStream, stream_whole};
pub use cache::{Cache, CachedLayer};
pub use counters::{Counters, Stats};
pub use error::{Error, ErrorKind};
pub use fetch::Fetcher;
pub use image::{LazyImage, LazyLayer, load_lazy_image};
pub use layout::{Layout, RemoteLayout, RemotePlace};
pub use plain_layer::PlainLayer;
pub use platform::Platform;
pub use registry::{Reference, RegistryClient, RegistryOptions, RegistryRepository};
pub use repository::{BlobWriter, Descriptor, Manifest, ManifestName, Repository, WritableRepository};
pub use transport::ImageName;
