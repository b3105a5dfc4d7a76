//! Readers never wait behind work that nobody waits for, and that work costs few requests.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use sluice_storage::Lane;
use sluice_storage::testing::{Fault, Times};
use tokio::time::Instant;

use crate::bench::{Bench, a_moment, prefetch, settle};

const LATENCY: Duration = Duration::from_millis(100);
/// Short ranges that run side by side to begin with, and such that are as long as they get then.
const SIDE_BY_SIDE: usize = 6;
const LONG_SIDE_BY_SIDE: usize = 4;
/// Stored bytes between chunks that keep them from being joined.
const FAR: usize = 200_000;

#[tokio::test(start_paused = true)]
async fn a_demand_read_overtakes_a_queued_profile() {
    let bench = Bench::new(512, 64 << 10, 0);
    bench.blob.inject(Fault::Latency(LATENCY), Times::Always);
    let layer = bench.layer_without_guesses();
    prefetch(&layer, 0..512, Lane::Profile);
    a_moment().await;
    assert_eq!(bench.asked().len(), LONG_SIDE_BY_SIDE);
    let began = Instant::now();
    bench.read(&layer, 500).await;
    assert!(began.elapsed() < LATENCY * 2, "{:?}", began.elapsed());
    assert_eq!(
        bench.asked()[LONG_SIDE_BY_SIDE],
        500,
        "asked for before the rest of the profile"
    );
    settle().await;
    assert!(layer.is_complete());
    bench.assert_asked_once();
}

#[tokio::test(start_paused = true)]
async fn lanes_are_strict_among_what_waits() {
    let bench = Bench::new(80, 1000, FAR);
    bench.blob.inject(Fault::Latency(LATENCY), Times::Always);
    let layer = bench.layer_without_guesses();
    prefetch(&layer, 0..SIDE_BY_SIDE, Lane::Fill);
    a_moment().await;
    let queued = [
        (Lane::Fill, 20..30),
        (Lane::Neighbour, 30..40),
        (Lane::Profile, 40..50),
        (Lane::Readahead, 50..60),
    ];
    for (lane, chunks) in queued.clone() {
        prefetch(&layer, chunks.clone(), lane);
        assert_eq!(layer.waiting(lane), chunks.len());
    }
    join_all((60..64).map(|chunk| bench.read(&layer, chunk))).await;
    settle().await;
    let asked = bench.asked();
    let (demanded, rest) = asked[SIDE_BY_SIDE..].split_at(4);
    assert_eq!(BTreeSet::from_iter(demanded.to_vec()), (60..64).collect());
    let expected: Vec<usize> = queued.into_iter().rev().flat_map(|(_, chunks)| chunks).collect();
    assert_eq!(rest, expected);
}

#[tokio::test(start_paused = true)]
async fn a_queued_chunk_that_a_reader_comes_to_is_hurried() {
    let bench = Bench::new(80, 1000, FAR);
    bench.blob.inject(Fault::Latency(LATENCY), Times::Always);
    let layer = bench.layer_without_guesses();
    prefetch(&layer, 0..80, Lane::Fill);
    a_moment().await;
    bench.read(&layer, 70).await;
    assert_eq!(bench.asked()[SIDE_BY_SIDE], 70);
    settle().await;
    bench.assert_asked_once();
}

#[tokio::test(start_paused = true)]
async fn a_chunk_far_inside_a_running_range_gets_a_request_of_its_own() {
    const LEN: usize = 40_000;
    let pause = Duration::from_millis(100);
    let bench = Bench::new(24, LEN, 0);
    let piece_len = LEN / 4;
    bench
        .blob
        .inject(Fault::Throttled { piece_len, pause }, Times::Always);
    let layer = bench.layer_without_guesses();
    prefetch(&layer, 0..24, Lane::Profile);
    tokio::time::sleep(pause * 5).await;
    let began = Instant::now();
    bench.read(&layer, 2).await;
    assert_eq!(bench.asked(), [0], "near enough to wait for");
    bench.read(&layer, 23).await;
    assert!(began.elapsed() < pause * 20, "{:?}", began.elapsed());
    let requests = bench.blob.requests();
    assert_eq!(requests[1..], [bench.stored(23)]);
    settle().await;
    assert!(layer.is_complete());
    assert_eq!(bench.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn prefetched_neighbours_travel_in_large_ranges_and_once() {
    let bench = Bench::new(512, 64 << 10, 0);
    let layer = bench.layer();
    // In an order in which no two neighbours follow each other.
    let shuffled: Vec<usize> = (0..512).map(|at| at * 197 % 512).collect();
    prefetch(&layer, shuffled.clone(), Lane::Profile);
    prefetch(&layer, shuffled.clone(), Lane::Fill);
    settle().await;
    assert!(layer.is_complete());
    bench.assert_asked_once();
    assert_eq!(bench.asked_len(), bench.sample.stored.len() as u64);
    // 32 MiB in ranges of a mebibyte; what is left between two ranges makes a shorter one.
    let requests = bench.asked().len();
    assert!(requests <= 2 * 33, "{requests} requests");
    prefetch(&layer, shuffled, Lane::Profile);
    settle().await;
    assert_eq!(bench.asked().len(), requests, "all of it is here");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_layer_gives_up_what_was_queued_for_it_alone() {
    let bench = Bench::new(200, 1000, FAR);
    bench.blob.inject(Fault::Latency(LATENCY), Times::Always);
    let (dropped, stays) = (bench.layer(), bench.layer());
    prefetch(&dropped, 0..100, Lane::Profile);
    prefetch(&stays, 100..110, Lane::Fill);
    a_moment().await;
    drop(dropped);
    settle().await;
    let expected: Vec<usize> = (0..SIDE_BY_SIDE).chain(100..110).collect();
    assert_eq!(bench.asked(), expected);
    assert_eq!(Lane::ALL.map(|lane| stays.waiting(lane)), [0; Lane::COUNT]);
}
