//! A layer as its readers see it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::Cache;
use super::layer::{DATA_FILE, LayerFiles};

/// The cached bytes of one layer under one chunk table. All calls block on the disk unless they say otherwise: they belong on
/// a blocking thread.
#[derive(Clone, Debug)]
pub struct CachedLayer {
    pub(super) files: Arc<LayerFiles>,
    pub(super) cache: Arc<Cache>,
    /// The layer has no digest of its own.
    pub(super) is_synthetic: bool,
}

impl CachedLayer {
    /// The file with the plain bytes. It has holes where chunks are missing, and another file takes its name when the layer
    /// is cached anew under other cuts; see [`CachedLayer::complete_file`] for one that stays.
    pub fn data_path(&self) -> PathBuf {
        self.files.dir().join(DATA_FILE)
    }

    /// The bytes of chunk `chunk`, verified, or `None` when they must be fetched.
    pub fn read_chunk(&self, chunk: usize) -> Option<Bytes> {
        self.read_range(self.files.cuts().get(chunk)?.plain_range())
    }

    /// The plain bytes of `plain`, verified, or `None` when any of them must be fetched. `None` also for a range that does not
    /// lie within the layer.
    pub fn read_range(&self, plain: Range<u64>) -> Option<Bytes> {
        self.files.read_range(plain)
    }

    /// Whether the chunk was verified in this process. Does not block.
    pub fn is_trusted(&self, chunk: usize) -> bool {
        self.files.states().is_trusted(chunk)
    }

    /// Whether the cache has the chunk, as far as this process knows. Does not block.
    pub fn has_chunk(&self, chunk: usize) -> bool {
        self.files.states().is_present(chunk)
    }

    /// Has the kernel read a chunk into its page cache, if it is here.
    pub fn read_ahead(&self, chunk: usize) {
        self.files.read_ahead(chunk);
    }

    /// Keeps the bytes of a chunk, which the caller has verified. Whether they were kept: a disk that cannot, or a quota
    /// that is reached, is no error.
    pub fn store_chunk(&self, chunk: usize, plain: &[u8]) -> bool {
        self.files.store(chunk, plain)
    }

    /// Number of chunks that the cache does not have. Does not block.
    pub fn missing_chunks(&self) -> usize {
        self.missing().count()
    }

    /// The chunks that the cache does not have, ascending. Does not block; what is stored meanwhile may still be among them.
    pub fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        self.files.states().chunks(false)
    }
}
