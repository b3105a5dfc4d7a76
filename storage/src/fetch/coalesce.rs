//! Which chunks travel in one range.
//!
//! Two chunks share a request when the bytes between them cost less than a request would. Chunks that lie whole between two wanted ones
//! are kept too, as their bytes arrive anyway. A range is bounded, so that several run side by side and a link is shared fairly; within a
//! range every chunk is released as soon as its own bytes are there, so a longer range makes nobody wait.

use std::ops::Range;
use std::sync::Arc;

use super::board::Board;
use super::{Lane, Source};

/// Stored bytes between two chunks that a reader waits for and that are cheaper to transfer than to ask around: at 10 MB/s, about a round trip of 6 ms.
pub(super) const GAP: u64 = 64 << 10;
/// The same for work that nobody waits for, unless a profile tells better: as much as one chunk has as a rule, or two. A start of PyTorch needs 380 requests in place of 530 so, for 4 % more bytes,
/// and takes a tenth less time.
pub(super) const LONG_GAP: u64 = 192 << 10;
/// Stored bytes that two neighbours may share.
pub(super) const SHARED: u64 = 1;
/// Stored length at which a range for a waiting reader is not made longer.
pub(super) const RANGE_LEN: u64 = 1 << 20;

/// A range of stored bytes and the chunks to cut out of it.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) source: Arc<Source>,
    pub(super) stored: Range<u64>,
    /// Positions in the chunk table, by stored offset, without overlap but for a byte that neighbours share.
    pub(super) chunks: Vec<usize>,
}

/// How far a range goes, in stored bytes.
#[derive(Clone, Copy, Debug)]
struct Most {
    gap: u64,
    len: u64,
}

/// The range around `first`, which is queued in `lane`, with all queued chunks that travel well with it. Unless a reader waits, it is not made longer
/// than `long` stored bytes.
pub(super) fn join(board: &Board, source: &Arc<Source>, first: usize, lane: Lane, long: u64) -> Batch {
    if source.is_streamed {
        return Batch::whole(board, source);
    }
    let most = match lane {
        Lane::Demand => Most {
            gap: GAP,
            len: RANGE_LEN,
        },
        _ if source.follows_profile() => Most { gap: GAP, len: long },
        _ => Most {
            gap: LONG_GAP,
            len: long,
        },
    };
    let mut batch = Batch {
        source: source.clone(),
        stored: source.chunk(first).stored_range(),
        chunks: vec![first],
    };
    batch.add_companions(board);
    batch.extend_forward(board, most);
    // What lies before a chunk that a reader waits for would only make the reader wait.
    if lane != Lane::Demand {
        batch.extend_backward(board, most);
    }
    batch
}

/// Stored bytes between the end of a chunk and the start of the next one. Chunks of a gzip stream may share the byte in which one ends and the
/// other begins.
fn gap(end: u64, start: u64) -> Option<u64> {
    (start + SHARED)
        .checked_sub(end)
        .map(|gap| gap.saturating_sub(SHARED))
}

impl Batch {
    /// The whole blob, for all chunks that are queued or not here: they come anyway, and nobody has to ask for the blob once more.
    fn whole(board: &Board, source: &Arc<Source>) -> Self {
        let mut batch = Self {
            source: source.clone(),
            stored: 0..source.blob.stored_len(),
            chunks: Vec::new(),
        };
        let all = 0..source.index.chunks.chunks().len();
        batch.chunks = all
            .filter(|at| board.is_queued(source.layer, *at) || batch.is_useful(board, *at))
            .collect();
        batch
    }

    /// Adds the chunks before the first one that are decoded from the same stored bytes.
    fn add_companions(&mut self, board: &Board) {
        let first = self.chunks[0];
        let is_companion = |at: &usize| self.source.chunk(*at).stored_range() == self.stored;
        let before = (0..first).rev().filter(|at| !self.source.is_zeros(*at));
        let mut companions: Vec<usize> = before
            .take_while(is_companion)
            .filter(|at| board.is_queued(self.source.layer, *at) || self.is_useful(board, *at))
            .collect();
        companions.reverse();
        self.chunks.splice(0..0, companions);
    }

    fn extend_forward(&mut self, board: &Board, most: Most) {
        let table = self.source.index.chunks.chunks();
        let mut between = Vec::new();
        let mut at = self.chunks[self.chunks.len() - 1] + 1;
        let mut before = self.source.chunk(at - 1).stored_range();
        while let Some(chunk) = table.get(at) {
            if self.source.is_zeros(at) {
                at += 1;
                continue;
            }
            let stored = chunk.stored_range();
            // A foreign table may order stored bytes in any way; only what follows, or is decoded from the same bytes, is joined.
            let gap = match stored == before {
                true if stored.end == self.stored.end => Some(0),
                _ => gap(self.stored.end, stored.start),
            };
            if gap.is_none_or(|gap| gap > most.gap) || stored.end - self.stored.start > most.len {
                return;
            }
            before = stored.clone();
            if board.is_queued(self.source.layer, at) {
                self.chunks.append(&mut between);
                self.chunks.push(at);
                self.stored.end = stored.end;
            } else if self.is_useful(board, at) {
                between.push(at);
            }
            at += 1;
        }
    }

    fn extend_backward(&mut self, board: &Board, most: Most) {
        let table = self.source.index.chunks.chunks();
        let mut between = Vec::new();
        let mut before = Vec::new();
        for at in (0..self.chunks[0]).rev().filter(|at| !self.source.is_zeros(*at)) {
            let stored = table[at].stored_range();
            let gap = gap(stored.end, self.stored.start);
            if gap.is_none_or(|gap| gap > most.gap) || self.stored.end - stored.start > most.len {
                break;
            }
            if board.is_queued(self.source.layer, at) {
                before.append(&mut between);
                before.push(at);
                self.stored.start = stored.start;
            } else if self.is_useful(board, at) {
                between.push(at);
            }
        }
        before.reverse();
        self.chunks.splice(0..0, before);
    }

    /// Whether a chunk that nobody has asked for is worth keeping when its bytes arrive.
    fn is_useful(&self, board: &Board, at: usize) -> bool {
        !board.has(self.source.layer, at) && !self.source.may_keep(at)
    }
}
