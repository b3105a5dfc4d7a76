use std::collections::HashSet;

use proptest::prelude::*;
use sluice_format::compression::Codec;
use sluice_format::profile::ProfileLayer;
use sluice_format::{ChunkDigest, ChunkRef, Digest, Limits};

use super::*;

const CHUNK: u64 = 256 << 10;

fn diff_id(name: &str) -> DiffId {
    DiffId(Digest::of(name.as_bytes()))
}

/// A table of chunks of `len` plain bytes, each stored as it is.
fn table(chunks: u64, len: u64) -> ChunkTable {
    let chunk = |at: u64| ChunkRef {
        plain_off: at * len,
        plain_len: len as u32,
        stored_off: at * len,
        stored_len: len as u32,
        codec: Codec::Stored,
        digest: ChunkDigest(Digest::of(b"")),
    };
    ChunkTable::new((0..chunks).map(chunk).collect(), chunks * len, &Limits::default()).unwrap()
}

/// A profile that demands chunks of the usual length at these times.
fn profile(layers: &[(&str, &[(u64, u32)])]) -> Profile {
    let layers = layers.iter().map(|(name, demands)| ProfileLayer {
        diff_id: diff_id(name),
        demands: demands
            .iter()
            .map(|(chunk, first_ms)| demand(chunk * CHUNK, *first_ms))
            .collect(),
    });
    Profile::new(Digest::of(b"image"), 1, layers.collect(), &Limits::default()).unwrap()
}

fn demand(plain_off: u64, first_ms: u32) -> Demand {
    Demand {
        plain_off,
        plain_len: CHUNK,
        first_ms,
        seen: 1,
        missed: 0,
    }
}

fn pairs(plan: &[PlannedChunk]) -> Vec<(usize, usize)> {
    plan.iter().map(|chunk| (chunk.layer, chunk.chunk)).collect()
}

#[test]
fn chunks_of_a_window_are_sorted_as_stored_and_windows_by_time() {
    let (lower, upper) = (table(100, CHUNK), table(100, CHUNK));
    let layers = [(diff_id("lower"), &lower), (diff_id("upper"), &upper)];
    let profile = profile(&[
        ("upper", &[(2, 0), (3, 10), (4, 700), (9, 20)]),
        ("lower", &[(1, 640), (7, 30), (50, 650)]),
    ]);
    let expected = [(0, 7), (1, 2), (1, 3), (1, 9), (0, 1), (0, 50), (1, 4)];
    assert_eq!(pairs(&plan(&profile, &layers)), expected);
}

#[test]
fn little_windows_go_on_and_large_ones_end() {
    let layer = table(1000, CHUNK);
    let layers = [(diff_id("a"), &layer)];
    // Three chunks are under a megabyte: the next one belongs to their window however late it was.
    let slow = profile(&[("a", &[(1, 9000), (2, 0), (3, 2000), (4, 4000), (5, 10_000)])]);
    assert_eq!(
        pairs(&plan(&slow, &layers)),
        [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]
    );
    // Everything at once: the earlier eight megabytes come first all the same.
    let demands: Vec<(u64, u32)> = (0..64).map(|chunk| (chunk, u32::from(chunk < 32))).collect();
    let fast = plan(&profile(&[("a", &demands)]), &layers);
    let (first, second): (Vec<_>, Vec<_>) = (0..64usize).partition(|chunk| *chunk >= 32);
    let order: Vec<usize> = fast.iter().map(|planned| planned.chunk).collect();
    assert_eq!(order, [first, second].concat());
}

#[test]
fn ranges_find_the_chunks_of_any_cut() {
    let fine = table(100, CHUNK / 4);
    let coarse = table(100, CHUNK * 4);
    let profile = profile(&[("a", &[(1, 0), (2, 5)])]);
    let planned = plan(&profile, &[(diff_id("a"), &fine)]);
    assert_eq!(
        pairs(&planned),
        (4..12).map(|chunk| (0, chunk)).collect::<Vec<_>>()
    );
    assert_eq!(pairs(&plan(&profile, &[(diff_id("a"), &coarse)])), [(0, 0)]);
}

#[test]
fn what_the_image_does_not_have_is_skipped() {
    let layer = table(3, CHUNK);
    let wanted = profile(&[("gone", &[(0, 0)]), ("a", &[(2, 0), (3, 0), (1000, 0)])]);
    // The second of two equal layers is the same bytes.
    let layers = [(diff_id("a"), &layer), (diff_id("a"), &layer)];
    assert_eq!(pairs(&plan(&wanted, &layers)), [(0, 2)]);
    assert_eq!(plan(&wanted, &[]), []);
}

#[test]
fn doubtful_demands_come_last() {
    let layer = table(100, CHUNK);
    let demands: Vec<Demand> = (0..20)
        .map(|chunk| Demand {
            seen: 1,
            missed: if chunk < 4 { 2 } else { 1 },
            ..demand(chunk * CHUNK, 100 * (20 - chunk as u32))
        })
        .collect();
    let layers = vec![ProfileLayer {
        diff_id: diff_id("a"),
        demands,
    }];
    let profile = Profile::new(Digest::of(b"image"), 1, layers, &Limits::default()).unwrap();
    let planned = plan(&profile, &[(diff_id("a"), &layer)]);
    let last: HashSet<usize> = planned[16..].iter().map(|planned| planned.chunk).collect();
    assert_eq!(last, HashSet::from([0, 1, 2, 3]));
}

proptest! {
    /// Each demanded chunk is planned once, nothing else is, and what is far earlier and a window apart comes earlier.
    #[test]
    fn plans_are_whole_and_ordered(times in prop::collection::btree_map(0..400u64, 0..20_000u32, 0..300)) {
        let layer = table(400, CHUNK);
        let demands: Vec<(u64, u32)> = times.iter().map(|(chunk, ms)| (*chunk, *ms)).collect();
        prop_assume!(!demands.is_empty());
        let profile = profile(&[("a", &demands)]);
        let layers = [(diff_id("a"), &layer)];
        let planned = plan(&profile, &layers);
        prop_assert_eq!(&planned, &plan(&profile, &layers));
        let unique: HashSet<u64> = planned.iter().map(|planned| planned.chunk as u64).collect();
        prop_assert_eq!(unique.len(), planned.len());
        prop_assert_eq!(unique, times.keys().copied().collect::<HashSet<_>>());
        // A window holds at most its cap and one chunk: so nothing comes earlier than 33 places before its turn by time.
        let mut by_time: Vec<u32> = times.values().copied().collect();
        by_time.sort_unstable();
        for (at, chunk) in planned.iter().enumerate() {
            let ms = times[&(chunk.chunk as u64)];
            let turn = by_time.partition_point(|other| *other < ms);
            let last_turn = by_time.partition_point(|other| *other <= ms);
            prop_assert!(at + 33 >= turn && at <= last_turn + 33, "chunk {} at {at}, turn {turn}", chunk.chunk);
        }
    }
}
