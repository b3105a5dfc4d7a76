//! What streaming promises: every compression gives the same layer; what is wrong leaves nothing; what is lost comes again, once.

mod faults;
mod no_place;

use std::io::Write as _;
use std::sync::Mutex;

use futures_util::future::join_all;
use sluice_format::compression::Codec;

use super::*;
use crate::cache::{CacheOptions, Goal};
use crate::sync::lock;
use crate::testing::{Fault, FaultyBlob, MemoryBlob, Times, sample::pseudo_random};
use crate::{Counters, Fetcher, PlainLayer};

/// A file in a tar: a ustar header, the bytes, padding.
fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = header.to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn tar() -> Vec<u8> {
    let mut tar = entry("large", &pseudo_random(3 << 20));
    (0..40).for_each(|at| tar.extend(entry(&format!("small-{at}"), &pseudo_random(1000 + at))));
    tar.extend(entry("larger", &pseudo_random(6 << 20)));
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn gzip(plain: &[u8], member_len: usize) -> Vec<u8> {
    let member = |part: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    };
    plain.chunks(member_len).flat_map(member).collect()
}

fn zstd(plain: &[u8], frame_len: usize) -> Vec<u8> {
    let frames = plain.chunks(frame_len);
    frames
        .flat_map(|part| zstd::encode_all(part, 1).unwrap())
        .collect()
}

/// A zstd skippable frame before, between and behind two frames.
fn zstd_with_skippable_frames(plain: &[u8]) -> Vec<u8> {
    let skippable = [&0x184d_2a53_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"noise"].concat();
    let (first, second) = plain.split_at(plain.len() / 3);
    let parts = [first, second].map(|part| [&skippable[..], &zstd(part, part.len())].concat());
    [parts.concat(), skippable].concat()
}

struct Fixture {
    dir: tempfile::TempDir,
    cache: Arc<Cache>,
    plain: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        Self::with_quota(None)
    }

    fn with_quota(quota: Option<u64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = CacheOptions {
            quota,
            upkeep: false,
            observer: None,
        };
        let cache = Cache::open_with(dir.path(), options).unwrap();
        Self {
            dir,
            cache,
            plain: tar(),
        }
    }

    async fn stream(&self, layer: &Unindexed) -> Result<LazyLayer, Error> {
        let layers = std::slice::from_ref(layer);
        let streamed = stream_layers(layers, &self.cache, &Limits::default(), &NoProgress).await;
        streamed.map(|(mut layers, _)| layers.remove(0))
    }

    fn layer(&self, stored: Vec<u8>) -> (Arc<FaultyBlob>, Unindexed) {
        let inner = MemoryBlob::new(stored);
        let blob = FaultyBlob::new(Arc::new(inner));
        let layer = Unindexed {
            descriptor: Descriptor {
                media_type: String::new(),
                digest: blob.digest(),
                size: blob.stored_len(),
                annotations: Default::default(),
            },
            blob: blob.clone(),
            diff_id: DiffId(Digest::of(&self.plain)),
        };
        (blob, layer)
    }

    fn files(&self, below: &str) -> usize {
        let entries = std::fs::read_dir(self.dir.path().join(below));
        entries.map_or(0, Iterator::count)
    }

    fn assert_nothing_kept(&self) {
        for below in [
            "layers/sha256",
            "documents/sha256",
            "streamed",
            "streams",
            "partial",
        ] {
            assert_eq!(self.files(below), 0, "{below}");
        }
        let counted = self.cache.used_bytes();
        assert!(counted < 1 << 20, "{counted} bytes are still accounted for");
    }

    async fn refused(&self, layer: &Unindexed, kind: ErrorKind) -> String {
        let error = self.stream(layer).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        self.assert_nothing_kept();
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    }
}

#[tokio::test]
async fn every_compression_gives_the_same_layer_whole_and_verified() {
    let plain = tar();
    let all = [
        ("gzip", gzip(&plain, plain.len())),
        ("gzip members", gzip(&plain, 100_000)),
        ("zstd", zstd(&plain, plain.len())),
        ("zstd frames", zstd(&plain, 300_000)),
        ("skippable", zstd_with_skippable_frames(&plain)),
        ("plain", plain.clone()),
    ];
    let mut digests = Vec::new();
    for (name, stored) in all {
        let fixture = Fixture::new();
        let (blob, layer) = fixture.layer(stored);
        let streamed = fixture.stream(&layer).await.unwrap();
        digests.push(streamed.index_digest);
        let cached = fixture.cache.layer(&streamed.index);
        assert!(cached.is_complete() && cached.is_whole(), "{name}");
        let file = cached.complete_file().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), plain, "{name}");
        assert_eq!(
            cached.read_range(5..1_000_000).unwrap(),
            plain[5..1_000_000],
            "{name}"
        );
        let asked = blob
            .requests()
            .iter()
            .map(|range| range.end - range.start)
            .sum::<u64>();
        assert_eq!(asked, blob.stored_len(), "{name}: every byte once");

        fixture.stream(&layer).await.unwrap();
        let again = blob
            .requests()
            .iter()
            .map(|range| range.end - range.start)
            .sum::<u64>();
        assert_eq!(again, asked, "{name}: the second time needs no byte");
        assert_eq!(fixture.files("streams"), 0, "{name}");
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "one index whatever the compression");
}

#[tokio::test]
async fn a_layer_is_known_after_a_restart_and_without_its_bits_on_the_disk() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, 1 << 20));
    let streamed = fixture.stream(&layer).await.unwrap();
    let asked = blob.requests().len();
    // What a process leaves that is killed before the first flush.
    let hex = streamed.diff_id.0.to_hex();
    let kept = fixture.dir.path().join("layers/sha256").join(hex).join("present");
    let killed = std::fs::read(&kept).unwrap();
    let Fixture { dir, cache, plain } = fixture;
    drop(cache);
    std::fs::write(&kept, killed).unwrap();
    let options = CacheOptions {
        upkeep: false,
        ..CacheOptions::default()
    };
    let cache = Cache::open_with(dir.path(), options).unwrap();
    let fixture = Fixture { dir, cache, plain };
    let again = fixture.stream(&layer).await.unwrap();
    assert_eq!(blob.requests().len(), asked);
    let cached = fixture.cache.layer(&again.index);
    assert!(cached.is_whole());
    assert_eq!(cached.read_range(0..9000).unwrap(), fixture.plain[..9000]);
}

#[tokio::test]
async fn tiny_and_empty_layers_are_layers() {
    for plain in [vec![], vec![0; 1024], entry("f", b"content")] {
        for stored in [
            plain.clone(),
            gzip(&[&plain[..], &[]].concat(), usize::MAX),
            zstd::encode_all(&plain[..], 1).unwrap(),
        ] {
            let fixture = Fixture {
                plain: plain.clone(),
                ..Fixture::new()
            };
            if stored.is_empty() && !plain.is_empty() {
                continue;
            }
            let (_, layer) = fixture.layer(stored);
            let streamed = fixture.stream(&layer).await.unwrap();
            assert_eq!(streamed.plain_len, plain.len() as u64);
            assert!(fixture.cache.layer(&streamed.index).is_whole());
        }
    }
}

#[tokio::test]
async fn the_chunks_of_a_plain_blob_can_be_fetched_by_themselves() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(fixture.plain.clone());
    let streamed = fixture.stream(&layer).await.unwrap();
    let chunks = streamed.index.chunks.chunks();
    assert!(chunks.iter().all(|chunk| chunk.codec == Codec::Stored));
    let before = blob.requests().len();
    let reader = PlainLayer::new(&streamed, None, &Fetcher::new(Arc::new(Counters::default())));
    assert_eq!(reader.read(10..20).await.unwrap(), fixture.plain[10..20]);
    let asked = blob.requests()[before..]
        .iter()
        .map(|range| range.end - range.start)
        .sum::<u64>();
    assert!(asked < fixture.plain.len() as u64 / 2, "{asked}");
}

#[tokio::test]
async fn wrong_bytes_are_refused_by_name_and_nothing_is_kept() {
    let fixture = Fixture::new();
    let stored = gzip(&fixture.plain, usize::MAX);
    let (_, wrong) = fixture.layer(stored.clone());
    let wrong = Unindexed {
        diff_id: DiffId(Digest::of(b"another layer")),
        ..wrong
    };
    let text = fixture.refused(&wrong, ErrorKind::Corrupt).await;
    assert!(text.contains("the plain layer is corrupt"), "{text}");

    let (_, cut) = fixture.layer(stored[..stored.len() - 9].to_vec());
    let text = fixture.refused(&cut, ErrorKind::Corrupt).await;
    assert!(text.contains("gzip stream cannot be decoded"), "{text}");

    let (_, no_tar) = fixture.layer(gzip(&pseudo_random(5 << 20), usize::MAX));
    let text = fixture.refused(&no_tar, ErrorKind::Corrupt).await;
    assert!(text.contains("tar at "), "{text}");

    let (_, bzip2) = fixture.layer(b"BZh91AY&SY".to_vec());
    let text = fixture.refused(&bzip2, ErrorKind::Unsupported).await;
    assert!(text.contains("bzip2"), "{text}");
}

#[tokio::test]
async fn a_spoilt_transfer_is_made_once_more_and_a_spoilt_blob_is_refused() {
    let fixture = Fixture::new();
    for stored_off in [3, 70_000, 9_000_000] {
        let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
        blob.inject(Fault::FlippedByte { stored_off }, Times::Always);
        let text = fixture.refused(&layer, ErrorKind::Corrupt).await;
        assert!(text.contains("another digest"), "{stored_off}: {text}");
    }
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    blob.inject(
        Fault::FlippedByte {
            stored_off: 5_000_000,
        },
        Times::First(1),
    );
    let streamed = fixture.stream(&layer).await.unwrap();
    assert!(fixture.cache.layer(&streamed.index).is_whole());
}

#[tokio::test]
async fn a_source_that_fails_for_now_is_an_error_that_says_so() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    blob.inject(Fault::Cut { after: 0 }, Times::First(1));
    let error = fixture.stream(&layer).await.unwrap_err();
    assert!(error.is_temporary(), "{error:?}");
    fixture.stream(&layer).await.unwrap();
}

#[tokio::test]
async fn equal_layers_that_are_wanted_at_once_are_read_once() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    let layers = [layer.clone(), layer.clone()];
    let limits = Limits::default();
    let streams = (0..3).map(|_| stream_layers(&layers, &fixture.cache, &limits, &NoProgress));
    for streamed in join_all(streams).await {
        assert_eq!(streamed.unwrap().0.len(), 2);
    }
    let asked = blob
        .requests()
        .iter()
        .map(|range| range.end - range.start)
        .sum::<u64>();
    assert_eq!(asked, blob.stored_len());
}

/// Evicts everything of a layer that nobody has open; its index was used later.
fn evict_all(fixture: &Fixture) {
    fixture.cache.tend();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(100);
    for below in ["documents/sha256", "streamed"] {
        for entry in std::fs::read_dir(fixture.dir.path().join(below)).unwrap() {
            let file = std::fs::File::options().append(true).open(entry.unwrap().path());
            file.unwrap().set_modified(later).unwrap();
        }
    }
    let keep_documents = Goal {
        keep: 2 << 20,
        used_before: None,
    };
    fixture.cache.evict(keep_documents).unwrap();
}

#[tokio::test]
async fn an_evicted_layer_goes_as_a_whole_and_comes_again_once_for_all_readers() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, 1 << 20));
    let streamed = fixture.stream(&layer).await.unwrap();
    evict_all(&fixture);
    assert_eq!(fixture.files("layers/sha256"), 0, "it went as a whole");
    let before = blob.requests().len();
    let fetcher = Fetcher::new(Arc::new(Counters::default()));
    let reader = PlainLayer::new(&streamed, Some(fixture.cache.layer(&streamed.index)), &fetcher);
    let len = fixture.plain.len() as u64;
    let ranges = (0..8).map(|at| at * (len / 8)..(at + 1) * (len / 8));
    let reads = ranges.clone().map(|range| reader.read(range));
    for (range, read) in ranges.clone().zip(join_all(reads).await) {
        assert_eq!(
            read.unwrap(),
            fixture.plain[range.start as usize..range.end as usize]
        );
    }
    let asked = blob.requests()[before..]
        .iter()
        .map(|range| range.end - range.start)
        .sum::<u64>();
    assert!(asked <= blob.stored_len(), "{asked}: the blob came once");
    assert!(
        fixture.cache.layer(&streamed.index).missing_chunks() <= 1,
        "all holes are filled"
    );
}

#[tokio::test]
async fn a_repeated_stream_never_shows_a_wrong_byte() {
    for (times, is_read) in [(Times::First(1), true), (Times::Always, false)] {
        // One each: the stream goes on behind a read, and has the layer open.
        let fixture = Fixture::new();
        let (blob, layer) = fixture.layer(gzip(&fixture.plain, 1 << 20));
        let streamed = fixture.stream(&layer).await.unwrap();
        evict_all(&fixture);
        blob.inject(Fault::FlippedByte { stored_off: 20_000 }, times);
        let fetcher = Fetcher::new(Arc::new(Counters::default()));
        let reader = PlainLayer::new(&streamed, Some(fixture.cache.layer(&streamed.index)), &fetcher);
        match reader.read(0..2_000_000).await {
            Ok(bytes) => assert!(is_read && bytes == fixture.plain[..2_000_000]),
            Err(error) => assert!(!is_read && error.kind() == ErrorKind::Corrupt, "{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_lost_layer_is_streamed_again_before_it_is_served_unless_nobody_can_be_asked() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, 1 << 20));
    fixture.stream(&layer).await.unwrap();
    evict_all(&fixture);
    blob.inject(Fault::Cut { after: 0 }, Times::First(4));
    let offline = fixture.stream(&layer).await.unwrap();
    assert!(!fixture.cache.layer(&offline.index).is_complete());
    blob.heal();
    let streamed = fixture.stream(&layer).await.unwrap();
    assert!(fixture.cache.layer(&streamed.index).is_complete());
}

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<String>>);

impl StreamProgress for Heard {
    fn planned(&self, layers: usize, stored_len: u64) {
        lock(&self.0).push(format!("planned {layers} {stored_len}"));
    }

    fn advanced(&self, _: BlobDigest, bytes: u64) {
        lock(&self.0).push(format!("advanced {bytes}"));
    }

    fn finished(&self, _: BlobDigest) {
        lock(&self.0).push("finished".to_owned());
    }
}

#[tokio::test]
async fn progress_is_told_in_stored_bytes() {
    let fixture = Fixture::new();
    let (blob, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    let heard = Heard::default();
    stream_layers(&[layer], &fixture.cache, &Limits::default(), &heard)
        .await
        .unwrap();
    let heard = lock(&heard.0).clone();
    assert_eq!(heard[0], format!("planned 1 {}", blob.stored_len()));
    assert_eq!(heard.last().unwrap(), "finished");
    let advanced = heard
        .iter()
        .filter_map(|line| line.strip_prefix("advanced ")?.parse::<u64>().ok());
    assert_eq!(advanced.sum::<u64>(), blob.stored_len());
}

#[tokio::test]
async fn what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not() {
    let fixture = Fixture::new();
    let diff_id = DiffId(Digest::of(b"x"));
    let writing = fixture.cache.begin_streamed(diff_id).unwrap();
    std::fs::write(fixture.dir.path().join("streams/left-behind"), b"bytes").unwrap();
    let options = CacheOptions {
        upkeep: false,
        ..CacheOptions::default()
    };
    let other = Cache::open_with(fixture.dir.path(), options).unwrap();
    assert_eq!(fixture.files("streams"), 1);
    drop((writing, other));
    assert_eq!(fixture.files("streams"), 0);
}
