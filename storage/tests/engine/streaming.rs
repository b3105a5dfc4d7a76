//! A chunk is there as soon as its own bytes are, and one late answer holds nobody up.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sluice_storage::testing::{Fault, Times};
use sluice_storage::{Lane, PlainLayer};
use tokio::time::{Instant, timeout};

use crate::bench::{Bench, a_moment, prefetch, settle};

const LEN: usize = 40_000;
const FAR: usize = 70_000;
/// A chunk takes four pieces, and so 400 ms.
const TRICKLE: Fault = Fault::Throttled {
    piece_len: LEN / 4,
    pause: Duration::from_millis(100),
};
/// Later than anybody waits.
const LATE: Fault = Fault::Latency(Duration::from_secs(600));

#[tokio::test(start_paused = true)]
async fn a_chunk_is_released_before_its_range_ends() {
    let bench = Bench::new(24, LEN, 0);
    bench.blob.inject(TRICKLE, Times::Always);
    let layer = bench.layer_without_guesses();
    let began = Instant::now();
    prefetch(&layer, 0..24, Lane::Readahead);
    a_moment().await;
    let arrivals = join_all((0..4).map(|chunk| {
        let (bench, layer) = (&bench, &layer);
        async move {
            bench.read(layer, chunk).await;
            began.elapsed()
        }
    }));
    for (at, arrival) in (1u32..).zip(arrivals.await) {
        let due = Duration::from_millis(400) * at;
        assert!(
            arrival <= due + Duration::from_millis(250),
            "chunk {at} after {arrival:?}"
        );
    }
    assert_eq!(bench.asked(), [0]);
    assert!(layer.missing_chunks() > 15, "the range goes on");
    settle().await;
    assert!(layer.is_complete());
}

#[tokio::test(start_paused = true)]
async fn what_arrived_before_a_stream_fell_silent_is_readable() {
    let bench = Bench::new(24, LEN, 0);
    let after = bench.stored(10).start + 5;
    bench.blob.inject(Fault::Stalled { after }, Times::First(1));
    let layer = bench.layer_without_guesses();
    prefetch(&layer, 0..24, Lane::Profile);
    for chunk in 0..10 {
        bench.read(&layer, chunk).await;
    }
    assert_eq!(bench.asked(), [0]);
    // Far from where the silent stream stands: a request of its own.
    bench.read(&layer, 22).await;
}

/// A layer of an upstream that answers after 10 ms, which is known after so many answers.
async fn with_known_latency(bench: &Bench, answers: usize) -> Arc<PlainLayer> {
    bench
        .blob
        .inject(Fault::Latency(Duration::from_millis(10)), Times::Always);
    let layer = bench.layer_without_guesses();
    warm_up(bench, &layer, answers).await;
    layer
}

/// Answers that make the upstream's latency known, and may earn a second request beside the one that is free.
async fn warm_up(bench: &Bench, layer: &PlainLayer, answers: usize) {
    for chunk in 0..answers {
        bench.read(layer, chunk).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_first_byte_is_asked_for_again() {
    let bench = Bench::new(60, 1000, FAR);
    let layer = with_known_latency(&bench, 30).await;
    bench.blob.inject(LATE, Times::First(1));
    let began = Instant::now();
    bench.read(&layer, 40).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(bench.asked()[30..], [40, 40]);
    assert_eq!(layer.stats().hedged, 1);
}

#[tokio::test(start_paused = true)]
async fn the_very_first_answer_is_late_after_a_second() {
    let bench = Bench::new(60, 1000, FAR);
    let layer = bench.layer_without_guesses();
    bench.blob.inject(LATE, Times::First(1));
    let began = Instant::now();
    bench.read(&layer, 40).await;
    assert!(
        began.elapsed() < Duration::from_millis(1100),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(bench.asked(), [40, 40]);
    // The next one has to be earned.
    bench
        .blob
        .inject(Fault::Latency(Duration::from_secs(5)), Times::First(1));
    bench.read(&layer, 50).await;
    assert_eq!(bench.asked()[2..], [50]);
    assert_eq!(layer.stats().hedged, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_late_of_the_first_ranges_is_told_by_the_others() {
    for lane in [Lane::Profile, Lane::Demand] {
        let bench = Bench::new(60, 1000, FAR);
        let layer = bench.layer_without_guesses();
        bench
            .blob
            .inject(Fault::Latency(Duration::from_millis(10)), Times::Always);
        bench.blob.inject(LATE, Times::First(1));
        let began = Instant::now();
        prefetch(&layer, [40, 45, 50], lane);
        a_moment().await;
        bench.read(&layer, 40).await;
        let took = began.elapsed();
        assert!(took < Duration::from_millis(300), "{lane:?}: {took:?}");
        assert_eq!(bench.asked(), [40, 45, 50, 40], "{lane:?}");
    }
}

/// A layer whose first answers are known, and a range from chunk 40 on that falls silent in chunk 43.
async fn with_a_silent_range(bench: &Bench) -> Arc<PlainLayer> {
    let layer = with_known_latency(bench, 40).await;
    let after = bench.stored(43).start + 5 - bench.stored(40).start;
    bench.blob.inject(Fault::Stalled { after }, Times::First(1));
    prefetch(&layer, 40..60, Lane::Readahead);
    a_moment().await;
    layer
}

#[tokio::test(start_paused = true)]
async fn a_silent_body_is_given_up_when_a_reader_waits_for_it() {
    let bench = Bench::new(60, LEN, 0);
    let layer = with_a_silent_range(&bench).await;
    let began = Instant::now();
    for chunk in 40..60 {
        bench.read(&layer, chunk).await;
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(bench.asked()[40..], [40, 43], "the rest travels together");
    assert_eq!(layer.stats().hedged, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_comes_after_the_silence_is_served_at_once() {
    let bench = Bench::new(60, LEN, 0);
    let layer = with_a_silent_range(&bench).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    bench.read(&layer, 44).await;
    assert!(
        began.elapsed() < Duration::from_millis(40),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(bench.asked()[40..], [40, 44]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_body_keeps_nothing_else_from_the_link() {
    // Six ranges of 1 MiB are as much as may be under way in the beginning.
    let bench = Bench::new(60, 1 << 20, FAR);
    let layer = with_known_latency(&bench, 10).await;
    bench.blob.inject(Fault::Stalled { after: 1000 }, Times::First(6));
    prefetch(&layer, 20..60, Lane::Fill);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(
        layer.missing_chunks() < 30,
        "{} are missing",
        layer.missing_chunks()
    );
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_slow_as_a_whole_is_not_asked_twice_for_everything() {
    let bench = Bench::new(100, 1000, FAR);
    let layer = bench.layer_without_guesses();
    warm_up(&bench, &layer, 45).await;
    bench
        .blob
        .inject(Fault::Latency(Duration::from_secs(20)), Times::Always);
    join_all((50..90).map(|chunk| bench.read(&layer, chunk))).await;
    let hedged = layer.stats().hedged;
    // One is free, 45 answers earned two, and the 40 slow ones two more.
    assert!((1..=5).contains(&hedged), "{hedged} second requests");
}

#[tokio::test(start_paused = true)]
async fn a_range_without_a_first_byte_is_given_up_when_a_reader_waits_for_it() {
    let bench = Bench::new(60, 1000, FAR);
    let layer = with_known_latency(&bench, 30).await;
    bench.blob.inject(LATE, Times::First(2));
    prefetch(&layer, [40, 45], Lane::Profile);
    a_moment().await;
    let began = Instant::now();
    bench.read(&layer, 40).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // The other one is late by now, and whoever wants it asks by himself.
    let began = Instant::now();
    bench.read(&layer, 45).await;
    assert!(
        began.elapsed() < Duration::from_millis(40),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(bench.asked()[30..], [40, 45, 40, 45]);
    assert_eq!(layer.stats().hedged, 1);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_is_not_asked_twice() {
    let bench = Bench::new(60, 1000, FAR);
    let layer = bench.layer_without_guesses();
    warm_up(&bench, &layer, 30).await;
    bench.blob.inject(LATE, Times::First(1));
    prefetch(&layer, [40], Lane::Profile);
    settle().await;
    assert_eq!(bench.asked()[30..], [40]);
    assert_eq!((layer.missing_chunks(), layer.stats().hedged), (29, 0));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_gives_up_leaves_the_chunk_to_the_next() {
    let bench = Bench::new(4, LEN, 0);
    bench.blob.inject(TRICKLE, Times::Always);
    let layer = bench.layer_without_guesses();
    let patience = Duration::from_millis(150);
    let given_up = timeout(patience, layer.read(bench.plain(0))).await;
    assert!(given_up.is_err());
    bench.read(&layer, 0).await;
    assert_eq!(bench.asked(), [0]);
}
