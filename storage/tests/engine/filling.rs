//! A fill brings whole layers, no faster than it may, and hands out only what was verified.

use std::sync::Arc;
use std::time::Duration;

use sluice_format::{DiffId, Digest};
use sluice_storage::testing::{Fault, FaultyBlob, SampleLayer, Times};
use sluice_storage::{Lane, PlainLayer, fill};
use tokio::time::{Instant, sleep, timeout};

use crate::bench::Bench;

const CHUNK_LEN: usize = 64 << 10;

#[tokio::test(start_paused = true)]
async fn a_fill_brings_every_chunk_once_and_verifies_the_whole() {
    let bench = Bench::new(200, CHUNK_LEN, 0);
    let layer = bench.layer();
    assert_eq!(layer.complete_file(), None);
    fill(std::slice::from_ref(&layer), None).await;
    assert!(layer.is_complete());
    bench.assert_asked_once();
    let file = layer
        .complete_file()
        .expect("a verified layer is given as a file");
    assert_eq!(std::fs::read(file).expect("the file"), bench.sample.plain);
    let stats = layer.stats();
    assert_eq!(stats.lane_requests[Lane::Fill.at()], stats.requests);
}

#[tokio::test(start_paused = true)]
async fn a_fill_keeps_its_rate() {
    const RATE: u64 = 4 << 20;
    let bench = Bench::new(320, CHUNK_LEN, 0);
    let layer = bench.layer();
    let began = Instant::now();
    fill(std::slice::from_ref(&layer), Some(RATE)).await;
    assert!(layer.is_complete());
    let due = Duration::from_secs_f64(bench.sample.stored.len() as f64 / RATE as f64);
    let took = began.elapsed();
    assert!(
        took > due.mul_f64(0.9) && took < due.mul_f64(1.2),
        "{took:?} for {due:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_fill_survives_an_outage() {
    let bench = Bench::new(40, CHUNK_LEN, 0);
    bench.blob.inject(Fault::Cut { after: 1_000 }, Times::Always);
    let layer = bench.layer();
    let filling = tokio::spawn({
        let layers = [layer.clone()];
        async move { fill(&layers, None).await }
    });
    sleep(Duration::from_secs(1800)).await;
    assert!(!filling.is_finished());
    let tries = bench.asked().len();
    assert!(tries < 200, "{tries} requests in half an hour of outage");
    bench.blob.heal();
    let patience = Duration::from_secs(120);
    timeout(patience, filling)
        .await
        .expect("within two waits")
        .expect("no panic");
    assert!(layer.complete_file().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_fill_gives_a_layer_up_that_cannot_be_right_and_goes_on_with_the_next() {
    let wrong = SampleLayer::new(20, CHUNK_LEN, 0).with_diff_id(DiffId(Digest::of(b"another layer")));
    let bench = Bench::of(wrong);
    let other = SampleLayer::new(10, 5000, 0);
    let next = PlainLayer::new(
        &other.layer,
        Some(bench.cache.layer(&other.layer.index)),
        &bench.fetcher,
    );
    let layer = bench.layer();
    fill(&[layer.clone(), next.clone()], None).await;
    assert_eq!(layer.complete_file(), None);
    assert!(next.complete_file().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_fill_copies_what_another_layer_has() {
    let bench = Bench::new(40, CHUNK_LEN, 0);
    fill(&[bench.layer()], None).await;
    bench.cache.flush();
    // The same chunks and ten of its own.
    let mut plain = bench.sample.plain.to_vec();
    plain.extend((0..10 * CHUNK_LEN).map(|at| (at / 7 * at) as u8));
    let upper = SampleLayer::of_plain(plain, CHUNK_LEN, 0);
    let blob = FaultyBlob::new(upper.layer.blob.clone());
    let cached = bench.cache.layer(&upper.layer.index);
    let layer: Arc<PlainLayer> = PlainLayer::new(&upper.reading(blob.clone()), Some(cached), &bench.fetcher);
    fill(std::slice::from_ref(&layer), None).await;
    assert!(layer.complete_file().is_some());
    let own = upper.layer.index.chunks.chunks()[40].stored_off;
    let requests = blob.requests();
    assert!(
        requests.iter().all(|stored| stored.start >= own),
        "fetched what another layer has: {requests:?}"
    );
}
