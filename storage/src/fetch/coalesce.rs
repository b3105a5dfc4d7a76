//! Which chunks travel in one range.
//!
//! Two chunks share a request when the bytes between them cost less than a request would. A range is bounded, so that its
//! first chunk does not wait for a transfer of many megabytes and several ranges run side by side.

use std::ops::Range;

use sluice_format::ChunkRef;

/// Stored bytes between two chunks that are cheaper to transfer than to ask around: at 10 MB/s, about a round trip of 6 ms.
const GAP: u64 = 64 << 10;
/// Stored length at which a range is not made longer: enough to fill a link at registry latencies, since several run at once.
const RANGE_LEN: u64 = 1 << 20;

/// A range of stored bytes and the chunks to cut out of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) stored: Range<u64>,
    /// Positions in the chunk table, by stored offset.
    pub(super) chunks: Vec<usize>,
}

/// Distributes `wanted`, positions in `table`, over ranges.
pub(super) fn join(table: &[ChunkRef], mut wanted: Vec<usize>) -> Vec<Joined> {
    wanted.sort_by_key(|at| table[*at].stored_off);
    let mut ranges: Vec<Joined> = Vec::new();
    for at in wanted {
        let stored = table[at].stored_range();
        match ranges.last_mut() {
            Some(last) if fits(&last.stored, &stored) => {
                last.stored.end = last.stored.end.max(stored.end);
                last.chunks.push(at);
            }
            _ => ranges.push(Joined {
                stored,
                chunks: vec![at],
            }),
        }
    }
    ranges
}

fn fits(range: &Range<u64>, next: &Range<u64>) -> bool {
    next.start.saturating_sub(range.end) <= GAP && next.end.max(range.end) - range.start <= RANGE_LEN
}

#[cfg(test)]
mod tests {
    use sluice_format::compression::Codec;
    use sluice_format::{ChunkDigest, Digest};

    use super::*;

    fn table(stored: &[(u64, u64)]) -> Vec<ChunkRef> {
        stored
            .iter()
            .map(|(off, len)| ChunkRef {
                plain_off: 0,
                plain_len: 1,
                stored_off: *off,
                stored_len: *len as u32,
                codec: Codec::Zstd,
                digest: ChunkDigest(Digest::of(b"")),
            })
            .collect()
    }

    #[test]
    fn neighbours_and_small_gaps_share_a_range() {
        let table = table(&[(0, 10), (10, 10), (20 + GAP, 5), (26 + 2 * GAP, 5)]);
        let ranges = join(&table, vec![3, 0, 2, 1]);
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[0].stored, 0..25 + GAP);
        assert_eq!(ranges[0].chunks, [0, 1, 2]);
        assert_eq!(ranges[1].chunks, [3]);
    }

    #[test]
    fn ranges_are_bounded_and_one_large_chunk_is_one_range() {
        let big = table(&[(0, RANGE_LEN), (RANGE_LEN, 1), (RANGE_LEN + 1, 2 * RANGE_LEN)]);
        let ranges = join(&big, vec![0, 1, 2]);
        let chunks: Vec<_> = ranges.iter().map(|range| range.chunks.clone()).collect();
        assert_eq!(chunks, [[0], [1], [2]]);
    }

    #[test]
    fn chunks_that_share_stored_bytes_are_fetched_once() {
        let shared = table(&[(100, 50), (100, 50), (120, 10)]);
        let ranges = join(&shared, vec![0, 1, 2]);
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0].stored, 100..150);
    }
}
