//! When the source fails, a reader waits or gets an error as its mount says; wrong bytes are an error under either.

use std::sync::Arc;
use std::time::Duration;

use sluice_format::{DiffId, Digest};
use sluice_storage::testing::{Fault, SampleLayer, Times};
use sluice_storage::{ErrorKind, OnFailure, PlainLayer, PlainLayerOptions, ReadPolicy};
use tokio::time::{Instant, sleep};

use crate::bench::Bench;

const DEADLINE: Duration = Duration::from_secs(10);

fn layer(bench: &Bench, on_failure: OnFailure) -> Arc<PlainLayer> {
    bench.layer_with(PlainLayerOptions {
        policy: ReadPolicy {
            on_failure,
            deadline: Some(DEADLINE),
        },
        ..PlainLayerOptions::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_gets_its_bytes_when_the_source_is_back() {
    let bench = Bench::new(20, 10_000, 0);
    bench.blob.inject(Fault::Cut { after: 5_000 }, Times::Always);
    let layer = layer(&bench, OnFailure::Stall);
    let reader = tokio::spawn({
        let layer = layer.clone();
        async move { layer.read(30_000..60_000).await }
    });
    sleep(DEADLINE * 60).await;
    assert!(!reader.is_finished(), "ten minutes without an answer");
    bench.blob.heal();
    let healed = Instant::now();
    let bytes = reader.await.expect("no panic").expect("the source is back");
    assert_eq!(bytes, bench.sample.plain[30_000..60_000]);
    assert!(
        healed.elapsed() < Duration::from_secs(30),
        "{:?}",
        healed.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_comes_within_the_deadline_whether_the_source_refuses_or_is_silent() {
    for fault in [
        Fault::Cut { after: 0 },
        Fault::Stalled { after: 0 },
        Fault::Latency(Duration::from_secs(3600)),
    ] {
        let bench = Bench::new(20, 10_000, 0);
        bench.blob.inject(fault, Times::Always);
        let layer = layer(&bench, OnFailure::Error);
        let began = Instant::now();
        let error = layer.read(0..10).await.expect_err("no bytes");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{fault:?}: {error}");
        let took = began.elapsed();
        assert!(
            took <= DEADLINE + Duration::from_millis(50),
            "{fault:?}: {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_within_the_deadline_is_not_seen() {
    let bench = Bench::new(20, 10_000, 0);
    bench.blob.inject(Fault::Cut { after: 0 }, Times::Always);
    let layer = layer(&bench, OnFailure::Error);
    let read = layer.read(0..10);
    let heal = async {
        sleep(DEADLINE / 2).await;
        bench.blob.heal();
    };
    let (bytes, ()) = tokio::join!(read, heal);
    assert_eq!(
        bytes.expect("the source was back in time"),
        bench.sample.plain[..10]
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_byte_is_an_error_under_either_policy() {
    for on_failure in [OnFailure::Stall, OnFailure::Error] {
        let bench = Bench::new(20, 10_000, 0);
        let stored_off = bench.stored(3).start + 100;
        bench
            .blob
            .inject(Fault::FlippedByte { stored_off }, Times::Always);
        let layer = layer(&bench, on_failure);
        let began = Instant::now();
        let error = layer.read(bench.plain(3)).await.expect_err("wrong");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{on_failure}: {error}");
        assert!(began.elapsed() < DEADLINE, "{on_failure}: at once");
        bench.read(&layer, 4).await;
        bench.blob.heal();
        bench.read(&layer, 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_is_not_what_its_diff_id_names_answers_errors() {
    let sample = SampleLayer::new(20, 10_000, 0);
    let bench = Bench::of(sample.with_diff_id(DiffId(Digest::of(b"another layer"))));
    let layer = layer(&bench, OnFailure::Stall);
    layer
        .read(0..layer.plain_len())
        .await
        .expect("every chunk matches the index");
    let error = layer.verify_whole().await.expect_err("the whole does not match");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = layer.read(0..10).await.expect_err("out of service");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(layer.read_cached(0..10), None);
    assert_eq!(layer.complete_file(), None);
}
