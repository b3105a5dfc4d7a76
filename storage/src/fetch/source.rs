//! Where the chunks of one layer come from and where they go.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use sluice_format::compression::{ChunkDecoder, Codec};
use sluice_format::{ChunkRef, ChunkTable, DiffId, FormatError, LayerIndex};

use super::readahead::Foresight;
use super::{Fetcher, Upstream};
use crate::{Blob, CachedLayer};

/// What of a layer index is needed to read its layer. The tree, which is much larger, is not: a layer is kept as long as it is
/// mounted.
#[derive(Clone, Debug)]
pub(crate) struct LayerChunks {
    pub(crate) diff_id: DiffId,
    pub(crate) chunks: Arc<ChunkTable>,
}

impl From<&LayerIndex> for LayerChunks {
    fn from(index: &LayerIndex) -> Self {
        Self {
            diff_id: index.diff_id,
            chunks: index.chunks.clone(),
        }
    }
}

/// One layer as the fetcher sees it.
#[derive(Debug)]
pub(crate) struct Source {
    /// Number that tells layers of one fetcher apart.
    pub(crate) layer: u64,
    pub(crate) index: LayerChunks,
    pub(crate) blob: Arc<dyn Blob>,
    pub(crate) cache: Option<CachedLayer>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) foresight: Foresight,
    /// Chunks cannot be fetched one by one; see [`crate::stream`].
    pub(crate) is_streamed: bool,
    /// A profile tells which chunks a start reads. Others are not worth guesses.
    pub(crate) follows_profile: AtomicBool,
}

impl Source {
    pub(crate) fn follows_profile(&self) -> bool {
        self.follows_profile.load(Ordering::Relaxed)
    }

    /// The chunk at a position of the chunk table.
    pub(crate) fn chunk(&self, at: usize) -> &ChunkRef {
        &self.index.chunks.chunks()[at]
    }

    /// The bytes of a chunk that this host has, in this layer or another. Blocks on the disk.
    pub(crate) fn kept(&self, at: usize) -> Option<Bytes> {
        let cache = self.cache.as_ref();
        if self.is_zeros(at) {
            return Some(self.zeros(at));
        }
        cache
            .and_then(|cache| cache.read_chunk(at))
            .or_else(|| self.fetcher.recent.get(&self.chunk(at).digest))
            .or_else(|| cache.and_then(|cache| cache.copy_chunk(at)))
    }

    /// The bytes of a part of a chunk, where in the layer it says, that this host has. Blocks on the disk.
    pub(crate) fn kept_part(&self, at: usize, plain: Range<u64>) -> Option<Bytes> {
        let part = self
            .cache
            .as_ref()
            .and_then(|cache| cache.read_range(plain.clone()));
        part.or_else(|| {
            let start = self.chunk(at).plain_off;
            let within = plain.start - start..plain.end - start;
            Some(self.kept(at)?.slice(within.start as usize..within.end as usize))
        })
    }

    /// Whether [`Self::kept`] will most likely give bytes. Does not block.
    pub(crate) fn keeps(&self, at: usize) -> bool {
        self.is_zeros(at)
            || self.cache.as_ref().is_some_and(|cache| cache.is_trusted(at))
            || self.fetcher.recent.contains(&self.chunk(at).digest)
    }

    /// Whether the chunk is nothing that anybody stores.
    pub(crate) fn is_zeros(&self, at: usize) -> bool {
        self.chunk(at).codec == Codec::Zeros
    }

    /// The bytes of a chunk of zeros. They go to the cache as well, so that a range that holds them is read from there. Blocks on the disk.
    fn zeros(&self, at: usize) -> Bytes {
        let zeros = Bytes::from(vec![0; self.chunk(at).plain_len as usize]);
        if let Some(cache) = self.cache.as_ref().filter(|cache| !cache.is_trusted(at)) {
            cache.store_chunk(at, &zeros);
        }
        zeros
    }

    /// Whether this host may have the chunk, even if nobody has verified it yet. Does not block.
    pub(crate) fn may_keep(&self, at: usize) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.has_chunk(at)) || self.keeps(at)
    }

    /// Decodes and verifies a chunk and keeps it. Blocks on the disk.
    pub(crate) fn decode(
        &self,
        decoder: &mut ChunkDecoder,
        at: usize,
        stored: &[u8],
    ) -> Result<Bytes, FormatError> {
        let plain = match decoder.decode(&self.index.chunks, at, stored) {
            Ok(plain) => Bytes::from(plain),
            Err(error) => {
                self.fetcher.counters.add_corrupt();
                return Err(error);
            }
        };
        self.keep(at, &plain);
        Ok(plain)
    }

    /// Keeps the verified bytes of a chunk. Blocks on the disk.
    pub(crate) fn keep(&self, at: usize, plain: &Bytes) {
        let kept = self
            .cache
            .as_ref()
            .is_some_and(|cache| cache.store_chunk(at, plain));
        if !kept {
            self.fetcher.recent.put(self.chunk(at).digest, plain.clone());
        }
    }
}
