//! Which bytes of a data file belong to chunks.
//!
//! Chunks share blocks with their neighbours. The kernel frees the blocks that lie wholly in a hole and zeroes the rest of it, so a hole
//! may begin and end anywhere; it is widened over absent neighbours so that no block is left to two absent chunks.

use std::ops::Range;

use super::cuts::{Cut, Cuts};

/// Largest block of a file system that is worth thinking of: a hole is widened over absent neighbours to such a border, so that no
/// block is kept by two absent chunks.
const BLOCK_MAX: u64 = 64 << 10;

/// The ranges of ascending chunks, neighbours joined.
pub(super) fn runs(cuts: &Cuts, chunks: &[usize]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for cut in chunks.iter().filter_map(|chunk| cuts.get(*chunk)) {
        match runs.last_mut() {
            Some(last) if last.end == cut.plain_off => last.end = cut.plain_range().end,
            _ => runs.push(cut.plain_range()),
        }
    }
    runs
}

/// What to punch out when `chunks` are gone: their ranges, widened over absent neighbours to the borders of blocks. The last
/// block of a layer goes beyond its end.
pub(super) fn holes(cuts: &Cuts, chunks: &[usize], present: &dyn Fn(usize) -> bool) -> Vec<Range<u64>> {
    let mut holes: Vec<Range<u64>> = Vec::new();
    for chunk in chunks {
        let Some(cut) = cuts.get(*chunk).filter(|_| !present(*chunk)) else {
            continue;
        };
        let hole = widened(cuts, *chunk, cut, present);
        match holes.last_mut() {
            Some(last) if last.start <= hole.start && hole.start <= last.end => {
                last.end = last.end.max(hole.end);
            }
            _ => holes.push(hole),
        }
    }
    holes
}

fn widened(cuts: &Cuts, chunk: usize, cut: &Cut, present: &dyn Fn(usize) -> bool) -> Range<u64> {
    let plain = cut.plain_range();
    let floor = plain.start / BLOCK_MAX * BLOCK_MAX;
    let ceiling = plain.end.div_ceil(BLOCK_MAX) * BLOCK_MAX;
    let before = (0..chunk)
        .rev()
        .map_while(|at| cuts.get(at).filter(|_| !present(at)));
    let start = before
        .take_while(|cut| cut.plain_range().end > floor)
        .last()
        .map_or(plain.start, |cut| cut.plain_off.max(floor));
    let mut end = plain.end;
    let after = (chunk + 1..cuts.len()).map_while(|at| cuts.get(at).filter(|_| !present(at)));
    for cut in after.take_while(|cut| cut.plain_off < ceiling) {
        end = cut.plain_range().end.min(ceiling);
    }
    if end == cuts.plain_len() {
        end = ceiling.max(end);
    }
    start..end
}
