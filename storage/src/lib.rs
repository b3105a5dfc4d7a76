//! Where bytes live and move: registries, image layouts, fetching of chunks, and the plain-layer cache.
//!
//! [`repository`] and [`blob`] are the contracts: a repository names manifests and blobs, a blob is read by ranges.
//! [`registry`] and [`layout`] implement them; [`transport`] parses the names under which users know them.
//! [`image`] resolves a name and a [`platform`] to layers with their indexes, reading manifests through [`documents`]
//! and remembering them in the cache. A layer that has no index is streamed into the cache once ([`stream`], [`decompress`]).
//! [`plain_layer`] answers `read(plain range)` with verified bytes, through [`fetch`] and [`cache`], and counts what
//! that took in [`counters`] and, for one start, in a [`timeline`]. [`profile`] records what a start reads and says what the next one should fetch;
//! it travels as an artifact attached to the image, which [`referrers`] stores and finds.

#![deny(missing_docs)]

pub mod attached;
pub mod blob;
mod blocking;
pub mod cache;
pub mod counters;
pub mod decompress;
pub mod documents;
pub mod error;
pub mod fetch;
mod fill;
mod foreign;
pub mod image;
pub mod layout;
mod offline;
pub mod plain_layer;
pub mod platform;
pub mod profile;
pub mod read_policy;
pub mod referrers;
pub mod registry;
pub mod repository;
pub mod stream;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod timeline;
pub mod transport;

pub use blob::{Blob, ByteStream, stream_in_ranges, stream_whole};
pub use cache::{Cache, CacheOptions, CachedLayer, CompleteFile};
pub use counters::{Counters, Stats};
pub use error::{Error, ErrorKind};
pub use fetch::{FAULT_WINDOW, Fetcher, Lane};
pub use fill::fill;
pub use image::choice::{LayerMode, Link};
pub use image::{
    LazyImage, LazyLayer, ResolvedImage, load_lazy_image, load_lazy_image_cached, load_resolved_image,
    load_resolved_image_cached, load_resolved_image_streaming, resolve_image, resolve_image_cached,
};
pub use layout::{Layout, RemoteLayout, RemotePlace};
pub use offline::remembering;
pub use plain_layer::{PlainLayer, PlainLayerOptions, ReadObserver};
pub use platform::Platform;
pub use profile::{ProfileStore, Recorder};
pub use read_policy::{OnFailure, ReadPolicy};
pub use referrers::Referrer;
pub use registry::{Reference, RegistryClient, RegistryOptions, RegistryRepository};
pub use repository::{BlobWriter, Descriptor, Manifest, ManifestName, Repository, WritableRepository};
pub use stream::{CountedProgress, NoProgress, StreamProgress};
pub use timeline::Timeline;
pub use transport::ImageName;
