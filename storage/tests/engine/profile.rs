//! What one start demanded comes before the next one asks for it, and nothing else does.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluice_format::Digest;
use sluice_storage::profile::{RecordedLayer, Recorder, RecordingOptions, merge, plan};
use sluice_storage::{Lane, PlainLayerOptions};

use crate::bench::{Bench, prefetch, settle};

const CHUNKS: usize = 400;
const LEN: usize = 100_000;

fn bench() -> Bench {
    Bench::new(CHUNKS, LEN, 0)
}

/// What a start reads: three clusters and some single chunks, in no order.
fn start() -> Vec<usize> {
    let clusters = (20..60).chain(300..330).chain(150..160);
    let mut chunks: Vec<usize> = clusters.chain([0, 99, 222, 399]).collect();
    chunks.sort_by_key(|chunk| chunk * 7919 % 1009);
    chunks
}

#[tokio::test(start_paused = true)]
async fn a_recorded_start_is_replayed_exactly_and_in_few_requests() {
    let first = bench();
    let recorded = RecordedLayer {
        index: first.sample.layer.index.clone(),
        observed: true,
    };
    let image_id = Digest::of(b"image");
    let recorder = Recorder::new(image_id, vec![recorded], RecordingOptions::default());
    let layer = first.layer_with(PlainLayerOptions {
        observers: vec![recorder.clone()],
        ..PlainLayerOptions::default()
    });
    for chunk in start() {
        first.read(&layer, chunk).await;
    }
    let profile = merge(None, &recorder.finish())
        .expect("a profile")
        .expect("something was learnt");

    let next = bench();
    let index = &next.sample.layer.index;
    let planned = plan(&profile, &[(index.diff_id, &index.chunks)]);
    let chunks: Vec<usize> = planned.iter().map(|planned| planned.chunk).collect();
    assert_eq!(BTreeSet::from_iter(chunks.clone()), BTreeSet::from_iter(start()));
    let layer = next.layer_with(PlainLayerOptions {
        has_profile: true,
        ..PlainLayerOptions::default()
    });
    layer.expect(chunks.iter().copied());
    prefetch(&layer, chunks, Lane::Profile);
    settle().await;
    let cached = Arc::new(next.cached());
    let came: BTreeSet<usize> = (0..CHUNKS).filter(|chunk| cached.has_chunk(*chunk)).collect();
    assert_eq!(came, BTreeSet::from_iter(start()), "exactly what was demanded");
    next.assert_asked_once();
    let requests = next.asked().len();
    assert!(
        requests <= 20,
        "{requests} requests for 84 chunks in seven places"
    );
    for chunk in start() {
        next.read(&layer, chunk).await;
    }
    settle().await;
    assert_eq!(next.asked().len(), requests, "the start found all it needs");
    assert_eq!(layer.stats().misses, 0);
}
