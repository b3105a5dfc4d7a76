//! From a profile to the chunks that the next start should fetch, in order.
//!
//! A strict order by time would fetch one small range after the other; order on disk alone would bring what is needed first at
//! last. So demands are taken in windows: chunks of one window are sorted by where they are stored, to be joined into large
//! ranges, and windows stay in order of time. Ranges that were last missed more often than they were seen come after all
//! others.

use std::collections::BTreeMap;

use sluice_format::profile::Demand;
use sluice_format::{ChunkTable, DiffId, Profile};

/// Chunks demanded within so many milliseconds of each other may be fetched in any order.
const WINDOW_MS: u32 = 100;
/// A window goes on until it has so many stored bytes: what takes no longer than a few round trips gains nothing from an order.
const WINDOW_MIN_LEN: u64 = 1 << 20;
/// A window ends with so many stored bytes, however short its time: a recording that hit the cache has all its demands at once,
/// and their order still tells something.
const WINDOW_MAX_LEN: u64 = 8 << 20;

/// A chunk to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlannedChunk {
    /// Position of the layer, 0 for the lowest.
    pub layer: usize,
    /// Position of the chunk in the layer's chunk table.
    pub chunk: usize,
}

/// When a chunk should come, earliest first: certain before doubtful, then by time, then as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    doubtful: bool,
    ms: u32,
}

/// The chunks of `profile` in the order in which to fetch them, each once. `layers` are those of the image, lowest first;
/// demands of other layers and outside of a layer are skipped. The same input gives the same plan.
pub fn plan(profile: &Profile, layers: &[(DiffId, &ChunkTable)]) -> Vec<PlannedChunk> {
    let mut ordered: Vec<(Turn, PlannedChunk)> = turns(profile, layers)
        .into_iter()
        .map(|(chunk, turn)| (turn, chunk))
        .collect();
    ordered.sort_unstable();
    let mut planned = Vec::with_capacity(ordered.len());
    let mut rest = &ordered[..];
    while !rest.is_empty() {
        let (window, later) = rest.split_at(window_len(rest, layers));
        let begin = planned.len();
        planned.extend(window.iter().map(|(_, chunk)| *chunk));
        planned[begin..].sort_unstable_by_key(|at: &PlannedChunk| {
            let chunk = &layers[at.layer].1.chunks()[at.chunk];
            (at.layer, chunk.stored_off, at.chunk)
        });
        rest = later;
    }
    planned
}

/// The best turn of every chunk that a demand touches.
fn turns(profile: &Profile, layers: &[(DiffId, &ChunkTable)]) -> BTreeMap<PlannedChunk, Turn> {
    let mut turns = BTreeMap::new();
    for wanted in profile.layers() {
        let same = |(diff_id, _): &(DiffId, &ChunkTable)| *diff_id == wanted.diff_id;
        let Some(layer) = layers.iter().position(same) else {
            continue;
        };
        for demand in &wanted.demands {
            let turn = turn(demand);
            for chunk in layers[layer].1.covering(demand.plain_range()) {
                let best = turns.entry(PlannedChunk { layer, chunk }).or_insert(turn);
                *best = turn.min(*best);
            }
        }
    }
    turns
}

fn turn(demand: &Demand) -> Turn {
    Turn {
        doubtful: demand.missed > demand.seen,
        ms: demand.first_ms,
    }
}

/// How many of the first chunks make one window; at least one.
fn window_len(rest: &[(Turn, PlannedChunk)], layers: &[(DiffId, &ChunkTable)]) -> usize {
    let begin = rest[0].0;
    let mut stored_len = 0u64;
    for (at, (turn, chunk)) in rest.iter().enumerate() {
        let late = turn.doubtful != begin.doubtful || turn.ms - begin.ms > WINDOW_MS;
        let full = stored_len >= WINDOW_MAX_LEN;
        if at > 0 && (full || (late && stored_len >= WINDOW_MIN_LEN)) {
            return at;
        }
        stored_len += u64::from(layers[chunk.layer].1.chunks()[chunk.chunk].stored_len);
    }
    rest.len()
}

#[cfg(test)]
mod tests;
