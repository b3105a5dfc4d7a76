//! A stream under faults: all of the layer or nothing of it; and what has come is not asked for again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;

/// Counts what was asked of the source since `before` requests.
fn asked(blob: &FaultyBlob, before: usize) -> u64 {
    let requests = blob.requests();
    requests[before..]
        .iter()
        .map(|range| range.end - range.start)
        .sum()
}

/// The layer in every form, of which some can be decoded from the middle and some cannot.
fn forms(plain: &[u8]) -> [(&'static str, Vec<u8>); 4] {
    [
        ("gzip", gzip(plain, plain.len())),
        ("zstd", zstd(plain, plain.len())),
        ("zstd frames", zstd(plain, 300_000)),
        ("plain", plain.to_vec()),
    ]
}

impl Fixture {
    /// Checks that the layer is there, whole and right.
    fn assert_whole(&self, layer: &LazyLayer, what: &str) {
        let cached = self.cache.layer(&layer.index);
        assert!(cached.is_whole(), "{what}");
        let file = cached.complete_file().unwrap();
        assert!(std::fs::read(file.path()).unwrap() == self.plain, "{what}");
        assert_eq!(self.files("partial"), 0, "{what}: nothing is left of the blob");
        assert_eq!(self.files("streams"), 0, "{what}");
    }

    /// The same directory, as the next process finds it.
    fn restart(self) -> Self {
        let Self { dir, cache, plain } = self;
        drop(cache);
        let options = CacheOptions {
            upkeep: false,
            ..CacheOptions::default()
        };
        let cache = Cache::open_with(dir.path(), options).unwrap();
        Self { dir, cache, plain }
    }
}

#[tokio::test]
async fn what_came_before_a_cut_is_not_asked_for_again_whatever_the_compression() {
    for (name, stored) in forms(&tar()) {
        let fixture = Fixture::new();
        let (blob, layer) = fixture.layer(stored);
        let len = blob.stored_len();
        // Of the ranges under way at once each brings some.
        blob.inject(Fault::Cut { after: 1_500_000 }, Times::Always);
        let error = fixture.stream(&layer).await.unwrap_err();
        assert!(error.is_temporary(), "{name}: {error:?}");
        assert_eq!(fixture.files("partial"), 1, "{name}");
        assert_eq!(fixture.files("layers/sha256"), 0, "{name}: nothing is shown");
        blob.heal();

        let fixture = fixture.restart();
        let before = blob.requests().len();
        let streamed = fixture.stream(&layer).await.unwrap();
        fixture.assert_whole(&streamed, name);
        let again = asked(&blob, before);
        assert!(again <= len - 1_250_000, "{name}: {again} of {len}");
    }
}

#[tokio::test]
async fn attempts_that_are_cut_anywhere_lose_a_block_each_at_most() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    let mut attempts = 0;
    let streamed = loop {
        attempts += 1;
        assert!(attempts < 100, "attempts do not bring it nearer");
        blob.heal();
        // From less than a block to several of them.
        let after = attempts * 97_003 % 900_000;
        blob.inject(Fault::Cut { after }, Times::Always);
        match fixture.stream(&layer).await {
            Ok(streamed) => break streamed,
            Err(error) => assert!(error.is_temporary(), "{error:?}"),
        }
        assert_eq!(
            fixture.files("streams"),
            0,
            "nothing is left of attempt {attempts}"
        );
    };
    fixture.assert_whole(&streamed, "cut");
    assert!(attempts > 3, "{attempts}");
}

#[derive(Debug, Default)]
struct Sums {
    advanced: AtomicU64,
    resumed: AtomicU64,
}

impl StreamProgress for Sums {
    fn advanced(&self, _: BlobDigest, bytes: u64) {
        self.advanced.fetch_add(bytes, Ordering::Relaxed);
    }

    fn resumed(&self, _: BlobDigest, bytes: u64) {
        self.resumed.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn progress_tells_what_was_here_already() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    blob.inject(Fault::Cut { after: 1_000_000 }, Times::Always);
    fixture.stream(&layer).await.unwrap_err();
    blob.heal();
    let (sums, counters) = (Arc::new(Sums::default()), Arc::new(Counters::default()));
    let (progress, before) = (
        CountedProgress::new(sums.clone(), counters.clone()),
        blob.requests().len(),
    );
    let layers = [layer];
    stream_layers(&layers, &fixture.cache, &Limits::default(), &progress)
        .await
        .unwrap();
    let sum = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
    let (advanced, resumed) = (sum(&sums.advanced), sum(&sums.resumed));
    assert_eq!(advanced, blob.stored_len());
    assert!(resumed > 700_000, "{resumed}");
    assert_eq!(asked(&blob, before), advanced - resumed);
    let stats = counters.stats();
    assert_eq!(stats.streamed_bytes, advanced - resumed);
    assert_eq!(stats.resumed_bytes, resumed);
    assert_eq!(stats.streamed_layers, 1);
}

#[tokio::test]
async fn kept_bytes_that_were_spoilt_come_again_and_kept_files_that_are_odd_are_not_used() {
    type Spoil = fn(&mut Vec<u8>);
    let spoil: [(&str, Spoil); 6] = [
        ("a byte", |bytes| bytes[300_000] ^= 1),
        ("a head", |bytes| bytes[64] ^= 1),
        ("a header", |bytes| bytes[30] ^= 1),
        ("its end", |bytes| bytes.truncate(400_000)),
        ("all", |bytes| bytes.fill(0)),
        ("nothing left", Vec::clear),
    ];
    for (what, spoil) in spoil {
        let fixture = Fixture::new();
        let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
        blob.inject(Fault::Cut { after: 1_000_000 }, Times::Always);
        fixture.stream(&layer).await.unwrap_err();
        blob.heal();
        let hex = layer.descriptor.digest.0.to_hex();
        let path = fixture.dir.path().join("partial").join(hex);
        let mut bytes = std::fs::read(&path).unwrap();
        spoil(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let streamed = fixture.restart();
        let layer = streamed.stream(&layer).await.unwrap();
        streamed.assert_whole(&layer, what);
    }
}

#[tokio::test]
async fn kept_bytes_that_are_another_blobs_are_found_out_by_the_blob_digest() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    blob.inject(Fault::FlippedByte { stored_off: 70_000 }, Times::First(1));
    blob.inject(Fault::Cut { after: 1_000_000 }, Times::Always);
    fixture.stream(&layer).await.unwrap_err();
    blob.heal();
    let fixture = fixture.restart();
    let streamed = fixture.stream(&layer).await.unwrap();
    fixture.assert_whole(&streamed, "spoilt on its way, then kept");
}

#[tokio::test]
async fn two_processes_never_write_what_is_kept_of_one_blob() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    let other = Cache::open_with(
        fixture.dir.path(),
        CacheOptions {
            upkeep: false,
            ..CacheOptions::default()
        },
    )
    .unwrap();
    let digest = layer.descriptor.digest;
    let held = other.partial_blob(digest, blob.stored_len()).unwrap();
    assert!(fixture.cache.partial_blob(digest, blob.stored_len()).is_none());
    let streamed = fixture.stream(&layer).await.unwrap();
    assert!(fixture.cache.layer(&streamed.index).is_whole());
    drop(held);
    assert_eq!(fixture.files("partial"), 0);
}

#[tokio::test]
async fn what_nobody_takes_up_for_a_day_is_removed_and_counts_until_then() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    blob.inject(Fault::Cut { after: 1_000_000 }, Times::Always);
    fixture.stream(&layer).await.unwrap_err();
    let inventory = fixture.cache.inventory();
    let [kept] = &inventory.partial[..] else {
        panic!("{inventory:?}")
    };
    assert_eq!(kept.blob, layer.descriptor.digest.to_string());
    assert_eq!(kept.stored_len, blob.stored_len());
    assert!(kept.disk_bytes > 700_000 && inventory.disk_bytes > kept.disk_bytes);
    fixture.cache.advance_clock(23 * 60 * 60);
    fixture.cache.tend();
    assert_eq!(fixture.files("partial"), 1);
    fixture.cache.advance_clock(2 * 60 * 60);
    fixture.cache.tend();
    assert_eq!(fixture.files("partial"), 0);
}

#[tokio::test]
async fn what_is_kept_of_a_blob_is_evicted_like_everything_else_and_goes_before_a_layer_fails() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    blob.inject(Fault::Cut { after: 1_000_000 }, Times::Always);
    fixture.stream(&layer).await.unwrap_err();
    let goal = Goal {
        keep: 0,
        used_before: None,
    };
    fixture.cache.evict(goal).unwrap();
    assert_eq!(fixture.files("partial"), 0);

    // Place for the plain layer and a little of the blob.
    let fixture = Fixture::with_quota(Some(fixture.plain.len() as u64 + (1 << 20)));
    blob.heal();
    let streamed = fixture.stream(&layer).await.unwrap();
    fixture.assert_whole(&streamed, "a small cache");
}

#[tokio::test]
async fn every_fault_ends_in_the_whole_layer_or_in_nothing_of_it() {
    let faults = [
        Fault::Latency(Duration::from_millis(5)),
        Fault::Cut { after: 0 },
        Fault::Cut { after: 300_000 },
        Fault::FlippedByte { stored_off: 5 },
        Fault::FlippedByte {
            stored_off: 5_000_000,
        },
        Fault::Short { by: 1 },
        Fault::Throttled {
            piece_len: 100_000,
            pause: Duration::from_millis(1),
        },
    ];
    let [gzip, zstd, ..] = forms(&tar());
    for (name, stored) in [gzip, zstd] {
        for (at, one) in faults.into_iter().enumerate() {
            for other in faults.into_iter().skip(at) {
                let what = format!("{name} under {one:?} and {other:?}");
                let fixture = Fixture::new();
                let (blob, layer) = fixture.layer(stored.clone());
                blob.inject(one, Times::First(2));
                blob.inject(other, Times::First(1));
                match fixture.stream(&layer).await {
                    Ok(streamed) => fixture.assert_whole(&streamed, &what),
                    Err(error) => {
                        assert!(
                            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Corrupt),
                            "{what}: {error:?}"
                        );
                        assert_eq!(fixture.files("layers/sha256"), 0, "{what}");
                        assert_eq!(fixture.files("streamed"), 0, "{what}");
                    }
                }
                blob.heal();
                let fixture = fixture.restart();
                let streamed = fixture.stream(&layer).await;
                fixture.assert_whole(
                    &streamed.unwrap_or_else(|error| panic!("{what}: {error:?}")),
                    &what,
                );
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_in_a_stall_is_taken_up_where_it_was() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(zstd(&fixture.plain, usize::MAX));
    blob.inject(Fault::Stalled { after: 2_000_000 }, Times::Always);
    let kept = |fixture: &Fixture| {
        let partial = fixture.cache.inventory().partial;
        partial.first().map_or(0, |partial| partial.disk_bytes)
    };
    tokio::select! {
        ended = fixture.stream(&layer) => panic!("{ended:?}"),
        () = async {
            while kept(&fixture) < 2_500_000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        } => {}
    }
    blob.heal();
    let before = blob.requests().len();
    let streamed = fixture.stream(&layer).await.unwrap();
    let again = asked(&blob, before);
    assert!(again < blob.stored_len() - 2_300_000, "{again}");
    fixture.assert_whole(&streamed, "stalled");
}
