//! Chunks that were fetched lately and that no disk keeps.
//!
//! A reader takes a chunk of 128 KiB in pages. Without a cache on disk every page would fetch its chunk again; the last few
//! chunks in memory make it one fetch. Chunks that the disk keeps never come here.

use std::sync::Mutex;

use bytes::Bytes;
use lru::LruCache;
use sluice_format::ChunkDigest;

use crate::sync::lock;

/// Plain bytes kept: several readers' current chunks, and little beside the process itself.
const CAPACITY: usize = 16 << 20;

/// The chunks, by digest of their plain bytes.
#[derive(Debug)]
pub(super) struct Recent {
    chunks: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    by_digest: LruCache<ChunkDigest, Bytes>,
    bytes: usize,
}

impl Recent {
    pub(super) fn new() -> Self {
        let kept = Kept {
            by_digest: LruCache::unbounded(),
            bytes: 0,
        };
        Self {
            chunks: Mutex::new(kept),
        }
    }

    pub(super) fn get(&self, digest: &ChunkDigest) -> Option<Bytes> {
        lock(&self.chunks).by_digest.get(digest).cloned()
    }

    pub(super) fn contains(&self, digest: &ChunkDigest) -> bool {
        lock(&self.chunks).by_digest.contains(digest)
    }

    pub(super) fn put(&self, digest: ChunkDigest, plain: Bytes) {
        let mut kept = lock(&self.chunks);
        kept.bytes += plain.len();
        if let Some(replaced) = kept.by_digest.put(digest, plain) {
            kept.bytes -= replaced.len();
        }
        while kept.bytes > CAPACITY {
            let Some((_, oldest)) = kept.by_digest.pop_lru() else {
                return;
            };
            kept.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_format::Digest;

    use super::*;

    #[test]
    fn the_oldest_leave_when_the_bytes_are_too_many() {
        let recent = Recent::new();
        let name = |at: usize| ChunkDigest(Digest::of(&at.to_le_bytes()));
        let half = Bytes::from(vec![0; CAPACITY / 2]);
        for at in [0, 1, 0, 2] {
            recent.put(name(at), half.clone());
        }
        assert!(recent.get(&name(1)).is_none());
        assert!(recent.get(&name(0)).is_some() && recent.get(&name(2)).is_some());
    }
}
