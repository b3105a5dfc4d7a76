//! Where a layer is cut: what the cache needs of a chunk table, and the file `cuts` that keeps it.
//!
//! All numbers little-endian. The file is a run of records of 36 bytes, one per chunk in plain order:
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 4 | plain length of the chunk, not 0 |
//! | 4 | 32 | digest of its plain bytes |
//!
//! SHA-256 over the file is the *digest of the cuts*, which the file `present` names: bits mean something only together
//! with the cuts. With this file a layer can be evicted from, verified and copied from without its layer index.

use std::ops::Range;
use std::sync::Arc;

use sluice_format::{ChunkDigest, ChunkTable, Digest, Limits};

/// Length of a record.
const RECORD_LEN: usize = 4 + Digest::LEN;

/// One chunk of a plain layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) plain_off: u64,
    pub(super) plain_len: u32,
    pub(super) digest: ChunkDigest,
}

impl Cut {
    pub(super) fn plain_range(&self) -> Range<u64> {
        self.plain_off..self.plain_off + u64::from(self.plain_len)
    }

    /// Whether these are the bytes of the chunk.
    pub(super) fn matches(&self, plain: &[u8]) -> bool {
        plain.len() as u64 == u64::from(self.plain_len) && Digest::of(plain) == self.digest.0
    }
}

/// The chunks of a layer in plain order, without gap.
#[derive(Clone, Debug)]
pub(super) struct Cuts {
    chunks: Arc<[Cut]>,
    digest: Digest,
}

impl Cuts {
    /// The cuts of a chunk table.
    pub(super) fn of_table(table: &ChunkTable) -> Self {
        let cut = |chunk: &sluice_format::ChunkRef| Cut {
            plain_off: chunk.plain_off,
            plain_len: chunk.plain_len,
            digest: chunk.digest,
        };
        let chunks: Arc<[Cut]> = table.chunks().iter().map(cut).collect();
        let digest = Digest::of(&encode(&chunks));
        Self { chunks, digest }
    }

    /// Reads the file, which must have the digest `expected`. `None` for any other bytes, or when they pass a limit.
    pub(super) fn parse(bytes: &[u8], expected: &Digest, limits: &Limits) -> Option<Self> {
        let (records, rest) = bytes.as_chunks::<RECORD_LEN>();
        if !rest.is_empty() || records.len() > limits.chunks || Digest::of(bytes) != *expected {
            return None;
        }
        let mut plain_off = 0u64;
        let mut chunks = Vec::with_capacity(records.len());
        for record in records {
            let (len, digest) = record.split_first_chunk::<4>()?;
            let plain_len = u32::from_le_bytes(*len);
            if plain_len == 0 || plain_len > limits.chunk_plain_len {
                return None;
            }
            let digest = ChunkDigest(Digest::from_bytes(digest.try_into().ok()?));
            chunks.push(Cut {
                plain_off,
                plain_len,
                digest,
            });
            plain_off += u64::from(plain_len);
        }
        (plain_off <= limits.layer_plain_len).then(|| Self {
            chunks: chunks.into(),
            digest: *expected,
        })
    }

    /// The bytes of the file.
    pub(super) fn encode(&self) -> Vec<u8> {
        encode(&self.chunks)
    }

    /// Digest over the file.
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    pub(super) fn get(&self, chunk: usize) -> Option<&Cut> {
        self.chunks.get(chunk)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Cut> + ExactSizeIterator {
        self.chunks.iter()
    }

    /// Length of the plain layer.
    pub(super) fn plain_len(&self) -> u64 {
        self.chunks.last().map_or(0, |last| last.plain_range().end)
    }

    /// Positions of the chunks that hold `plain`; empty for an empty range.
    pub(super) fn covering(&self, plain: Range<u64>) -> Range<usize> {
        if plain.is_empty() {
            return 0..0;
        }
        let first = self
            .chunks
            .partition_point(|cut| cut.plain_range().end <= plain.start);
        let end = self.chunks.partition_point(|cut| cut.plain_off < plain.end);
        first..end.max(first)
    }
}

fn encode(chunks: &[Cut]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunks.len() * RECORD_LEN);
    for cut in chunks {
        bytes.extend_from_slice(&cut.plain_len.to_le_bytes());
        bytes.extend_from_slice(cut.digest.0.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SampleLayer;

    #[test]
    fn the_file_gives_back_the_cuts() {
        let sample = SampleLayer::new(9, 1000, 3);
        let cuts = Cuts::of_table(&sample.layer.index.chunks);
        let parsed = Cuts::parse(&cuts.encode(), &cuts.digest(), &Limits::default()).unwrap();
        assert!(parsed.iter().eq(cuts.iter()));
        assert_eq!(parsed.covering(999..1001), 0..2);
        assert_eq!(parsed.plain_len(), 9000);
    }

    #[test]
    fn other_bytes_are_no_cuts() {
        let sample = SampleLayer::new(3, 1000, 0);
        let cuts = Cuts::of_table(&sample.layer.index.chunks);
        let bytes = cuts.encode();
        let limits = Limits::default();
        assert!(Cuts::parse(&bytes[1..], &cuts.digest(), &limits).is_none());
        let mut zero = bytes.clone();
        zero[..4].fill(0);
        assert!(
            Cuts::parse(&zero, &cuts.digest(), &limits).is_none(),
            "another digest"
        );
        assert!(
            Cuts::parse(&zero, &Digest::of(&zero), &limits).is_none(),
            "an empty chunk"
        );
        let few = Limits { chunks: 2, ..limits };
        assert!(Cuts::parse(&bytes, &cuts.digest(), &few).is_none(), "too many");
    }
}
