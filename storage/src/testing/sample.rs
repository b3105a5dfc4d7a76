//! Layers with real indexes and made-up bytes.

use std::sync::Arc;

use bytes::Bytes;
use sluice_format::artifact::OCI_LAYER_ZSTD;
use sluice_format::compression::{ChunkEncoder, Codec};
use sluice_format::{ChunkDigest, ChunkRef, ChunkTable, DiffId, Digest, LayerIndex, LayerTree, Limits};

use super::MemoryBlob;
use crate::{Blob, Descriptor, LazyLayer};

/// What lies between two stored chunks.
const GAP_BYTE: u8 = 0xee;

/// A layer, its plain bytes, and its stored bytes.
#[derive(Clone, Debug)]
pub struct SampleLayer {
    /// The plain bytes.
    pub plain: Bytes,
    /// The stored bytes of all chunks.
    pub stored: Bytes,
    /// The layer as [`crate::load_lazy_image`] would give it, reading from memory.
    pub layer: LazyLayer,
}

impl SampleLayer {
    /// A layer of `chunks` chunks of `chunk_len` plain bytes each, every second one zstd, with `gap` stored bytes between
    /// them. The same numbers give the same layer.
    ///
    /// # Panics
    /// When the numbers pass a limit of the format.
    pub fn new(chunks: usize, chunk_len: usize, gap: usize) -> Self {
        Self::of_plain(pseudo_random(chunks * chunk_len), chunk_len, gap)
    }

    /// A layer of these plain bytes, cut every `chunk_len` bytes.
    ///
    /// # Panics
    /// When the numbers pass a limit of the format.
    pub fn of_plain(plain: impl Into<Bytes>, chunk_len: usize, gap: usize) -> Self {
        let plain = plain.into();
        let mut encoder = ChunkEncoder::new(1).expect("level 1 is a level");
        let mut stored = Vec::new();
        let mut table = Vec::new();
        for (at, piece) in plain.chunks(chunk_len).enumerate() {
            let (codec, bytes) = match at % 2 {
                0 => (Codec::Zstd, encoder.encode(piece).expect("zstd has memory")),
                _ => (Codec::Stored, piece.to_vec()),
            };
            table.push(ChunkRef {
                plain_off: (at * chunk_len) as u64,
                plain_len: piece.len() as u32,
                stored_off: stored.len() as u64,
                stored_len: bytes.len() as u32,
                codec,
                digest: ChunkDigest(Digest::of(piece)),
            });
            stored.extend_from_slice(&bytes);
            stored.resize(stored.len() + gap, GAP_BYTE);
        }
        let table =
            ChunkTable::new(table, plain.len() as u64, &Limits::default()).expect("within the limits");
        Self::assemble(DiffId(Digest::of(&plain)), plain, stored.into(), table)
    }

    /// The same chunks under a DiffID that is not theirs, as a wrong index would have them.
    #[must_use]
    pub fn with_diff_id(&self, diff_id: DiffId) -> Self {
        let table = self.layer.index.chunks.clone();
        Self::assemble(diff_id, self.plain.clone(), self.stored.clone(), table)
    }

    fn assemble(diff_id: DiffId, plain: Bytes, stored: Bytes, table: impl Into<Arc<ChunkTable>>) -> Self {
        let index = LayerIndex::new(diff_id, table, &LayerTree::default()).expect("an empty tree is a tree");
        let blob = MemoryBlob::new(stored.clone());
        let layer = LazyLayer {
            descriptor: Descriptor {
                media_type: OCI_LAYER_ZSTD.to_owned(),
                digest: blob.digest(),
                size: blob.stored_len(),
                annotations: Default::default(),
            },
            diff_id,
            listed: diff_id,
            plain_len: plain.len() as u64,
            index_digest: Digest::of(&index.encode().expect("an index")),
            index: Arc::new(index),
            blob: Arc::new(blob),
        };
        Self { plain, stored, layer }
    }

    /// The layer reading from another blob.
    pub fn reading(&self, blob: Arc<dyn Blob>) -> LazyLayer {
        LazyLayer {
            blob,
            ..self.layer.clone()
        }
    }
}

/// Bytes without pattern, the same ones every time (xorshift64).
pub fn pseudo_random(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(len);
    bytes
}
