use sluice_format::Digest;

use super::*;
use crate::testing::SampleLayer;

const CHUNK: usize = 4096;

fn image_id() -> Digest {
    Digest::of(b"image")
}

fn layer(chunks: usize) -> RecordedLayer {
    RecordedLayer {
        index: SampleLayer::new(chunks, CHUNK, 0).layer.index,
        observed: true,
    }
}

fn plain_of(chunk: usize) -> Range<u64> {
    let start = (chunk as u64).saturating_mul(CHUNK as u64);
    start..start.saturating_add(CHUNK as u64)
}

fn options() -> RecordingOptions {
    RecordingOptions {
        quiet: Duration::from_secs(3),
        longest: Duration::from_secs(60),
        plain_cap: None,
    }
}

/// Chunk and time of everything recorded of the lowest layer.
fn recorded(recorder: &Recorder) -> Vec<(u64, u32)> {
    let recording = recorder.finish();
    let touches = recording.layers[0].touches.iter();
    touches
        .map(|touch| (touch.plain.start / CHUNK as u64, touch.ms))
        .collect()
}

async fn pass(ms: u64) {
    tokio::time::advance(Duration::from_millis(ms)).await;
}

#[tokio::test(start_paused = true)]
async fn first_demands_count_with_their_time_after_the_first() {
    let recorder = Recorder::new(image_id(), vec![layer(10), layer(3)], options());
    pass(600_000).await;
    recorder.record(0, plain_of(7));
    pass(40).await;
    recorder.record(0, plain_of(2));
    recorder.record(1, plain_of(1));
    pass(40).await;
    recorder.record(0, plain_of(7));
    recorder.record(0, plain_of(9));
    for (layer, chunk) in [(0, 10), (1, 3), (2, 0), (usize::MAX, usize::MAX)] {
        recorder.record(layer, plain_of(chunk));
    }
    assert_eq!(recorded(&recorder), [(2, 40), (7, 0), (9, 80)]);
    let recording = recorder.finish();
    assert_eq!(recording.end_reason(), EndReason::Finished);
    assert_eq!(recording.layers[1].touches.len(), 1);
    assert_eq!(recording.plain_len(), 4 * CHUNK as u64);
}

#[tokio::test(start_paused = true)]
async fn it_ends_at_the_first_quiet_point_and_stays_ended() {
    let recorder = Recorder::new(image_id(), vec![layer(10)], options());
    let watcher = recorder.clone();
    let ended = tokio::spawn(async move { (watcher.ended().await, Instant::now()) });
    pass(100_000).await;
    assert!(!recorder.is_ended(), "idle for however long");
    let began = Instant::now();
    for chunk in 0..4 {
        recorder.record(0, plain_of(chunk));
        tokio::time::sleep(Duration::from_millis(2900)).await;
    }
    let (reason, at) = ended.await.unwrap();
    assert_eq!(reason, EndReason::Quiet);
    assert_eq!(at - began, Duration::from_millis(3 * 2900 + 3000));
    recorder.record(0, plain_of(9));
    assert_eq!(recorded(&recorder).len(), 4);
    assert_eq!(recorder.ended().await, EndReason::Quiet);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_point_that_nobody_watched_for_is_found_by_the_next_demand() {
    let recorder = Recorder::new(image_id(), vec![layer(10)], options());
    recorder.record(0, plain_of(1));
    pass(3000).await;
    recorder.record(0, plain_of(2));
    assert!(recorder.is_ended());
    assert_eq!(recorded(&recorder), [(1, 0)]);
    assert_eq!(recorder.finish().end_reason(), EndReason::Quiet);
}

#[tokio::test(start_paused = true)]
async fn no_point_is_quiet_while_a_reader_waits() {
    let recorder = Recorder::new(image_id(), vec![layer(10)], options());
    let watcher = recorder.clone();
    let ended = tokio::spawn(async move { (watcher.ended().await, Instant::now()) });
    recorder.record(0, plain_of(1));
    let waiting = recorder.waiting();
    tokio::time::sleep(Duration::from_secs(20)).await;
    drop(waiting);
    let arrived = Instant::now();
    tokio::time::sleep(Duration::from_millis(2999)).await;
    recorder.record(0, plain_of(2));
    let (reason, at) = ended.await.unwrap();
    assert_eq!(reason, EndReason::Quiet);
    assert_eq!(at - arrived, Duration::from_millis(5999));
    assert_eq!(recorded(&recorder), [(1, 0), (2, 22_999)]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_never_gets_quiet_ends_at_the_cap_even_while_a_reader_waits() {
    let recorder = Recorder::new(image_id(), vec![layer(100)], options());
    let _waiting = recorder.waiting();
    let began = Instant::now();
    let watcher = recorder.clone();
    let ended = tokio::spawn(async move { watcher.ended().await });
    for chunk in 0..100 {
        recorder.record(0, plain_of(chunk));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(ended.await.unwrap(), EndReason::TooLong);
    assert!(Instant::now() - began >= Duration::from_secs(60));
    assert_eq!(recorded(&recorder).len(), 60);
}

#[tokio::test(start_paused = true)]
async fn reading_more_than_a_start_does_ends_it() {
    let options = RecordingOptions {
        plain_cap: Some(5 * CHUNK as u64),
        ..options()
    };
    let recorder = Recorder::new(image_id(), vec![layer(100)], options);
    (0..100).for_each(|chunk| recorder.record(0, plain_of(chunk)));
    assert_eq!(recorder.ended().await, EndReason::TooMuch);
    assert_eq!(recorded(&recorder).len(), 6);
}

#[tokio::test(start_paused = true)]
async fn two_positions_of_one_layer_are_recorded_as_one() {
    let twice = layer(10);
    let recorder = Recorder::new(image_id(), vec![twice.clone(), layer(3), twice], options());
    recorder.record(2, plain_of(5));
    pass(10).await;
    recorder.record(0, plain_of(5));
    recorder.record(0, plain_of(6));
    let recording = recorder.finish();
    assert_eq!(recording.layers.len(), 2);
    assert_eq!(recorded(&recorder), [(5, 0), (6, 10)]);
}

#[test]
fn many_threads_record_every_chunk_once() {
    let recorder = Recorder::new(image_id(), vec![layer(1000)], options());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let recorder = &recorder;
            scope.spawn(move || {
                (0..1000).for_each(|at| recorder.record(0, plain_of((at * 7 + thread * 125) % 1000)))
            });
        }
    });
    let chunks: Vec<u64> = recorded(&recorder).iter().map(|(chunk, _)| *chunk).collect();
    assert_eq!(chunks, (0..1000).collect::<Vec<u64>>());
}

#[test]
fn parts_of_chunks_are_recorded_as_they_were_demanded() {
    let recorder = Recorder::new(image_id(), vec![layer(100)], options());
    for plain in [0..70_000, 512..1024, 69_632..90_000, 300_000..300_100] {
        recorder.record(0, plain);
    }
    let recording = recorder.finish();
    let ranges: Vec<_> = recording.layers[0]
        .touches
        .iter()
        .map(|touch| touch.plain.clone())
        .collect();
    assert_eq!(ranges, [0..70_000, 70_000..90_000, 300_000..300_100]);
    assert_eq!(recording.plain_len(), 90_100);
}
