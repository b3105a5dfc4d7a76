//! What readers of a plain layer rely on: right bytes or an error, one fetch per chunk, a cache that heals itself.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use sluice_storage::testing::{Fault, FaultyBlob, SampleLayer, Times};
use sluice_storage::{Cache, Counters, ErrorKind, Fetcher, PlainLayer, Stats};
use tempfile::TempDir;

const CHUNKS: usize = 20;
const CHUNK_LEN: usize = 10_000;

/// A layer behind a blob that can misbehave, with a cache or without.
struct Bench {
    sample: SampleLayer,
    blob: Arc<FaultyBlob>,
    dir: TempDir,
    caches: Mutex<Vec<Arc<Cache>>>,
}

impl Bench {
    fn new() -> Self {
        Self::with_gap(0)
    }

    fn with_gap(gap: usize) -> Self {
        let sample = SampleLayer::new(CHUNKS, CHUNK_LEN, gap);
        let blob = FaultyBlob::new(sample.layer.blob.clone());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let caches = Mutex::default();
        Self {
            sample,
            blob,
            dir,
            caches,
        }
    }

    /// As a process that starts now would see it, the others having noted what they stored.
    fn cached(&self) -> Arc<PlainLayer> {
        self.flush();
        let cache = Cache::open(self.dir.path()).expect("a cache opens");
        self.caches.lock().expect("not poisoned").push(cache.clone());
        let cached = cache.layer(&self.sample.layer.index);
        PlainLayer::new(
            &self.layer(),
            Some(cached),
            &Fetcher::new(Arc::new(Counters::default())),
        )
    }

    fn flush(&self) {
        let caches = self.caches.lock().expect("not poisoned");
        for cache in caches.iter() {
            cache.flush();
        }
    }

    fn uncached(&self) -> Arc<PlainLayer> {
        PlainLayer::new(&self.layer(), None, &Fetcher::new(Arc::new(Counters::default())))
    }

    fn layer(&self) -> sluice_storage::LazyLayer {
        self.sample.reading(self.blob.clone())
    }

    fn file(&self, name: &str) -> PathBuf {
        let hex = self.sample.layer.diff_id.0.to_hex();
        self.dir.path().join("layers/sha256").join(hex).join(name)
    }

    async fn check_all(&self, layer: &Arc<PlainLayer>) {
        let all = layer.read(0..layer.plain_len()).await.expect("the layer is read");
        assert_eq!(all, self.sample.plain);
    }
}

#[tokio::test]
async fn every_range_gives_its_bytes_and_nothing_outside_is_read() {
    let bench = Bench::new();
    let len = bench.sample.plain.len() as u64;
    let edge = CHUNK_LEN as u64;
    for layer in [bench.cached(), bench.uncached()] {
        for plain in [
            0..1,
            0..0,
            edge - 1..edge + 1,
            edge..2 * edge,
            3 * edge + 5..7 * edge + 9,
            len - 1..len,
            len..len,
            0..len,
        ] {
            let bytes = layer
                .read(plain.clone())
                .await
                .expect("a range within the layer is read");
            assert_eq!(
                bytes,
                bench.sample.plain[plain.start as usize..plain.end as usize],
                "{plain:?}"
            );
        }
        let error = layer.read(len - 1..len + 1).await.expect_err("outside");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn what_was_read_is_not_fetched_again_by_the_next_process() {
    let bench = Bench::new();
    let layer = bench.cached();
    assert_eq!((layer.missing_chunks(), layer.is_complete()), (CHUNKS, false));
    bench.check_all(&layer).await;
    assert!(layer.is_complete());
    drop(layer);
    let asked = bench.blob.requests().len();
    let next = bench.cached();
    assert_eq!(next.missing_chunks(), 0);
    bench.check_all(&next).await;
    assert_eq!(bench.blob.requests().len(), asked);
    assert_eq!(
        next.stats(),
        Stats {
            hits: CHUNKS as u64,
            ..Stats::default()
        }
    );
    assert_eq!(
        next.read_cached(5..15).expect("cached"),
        bench.sample.plain[5..15]
    );
}

#[tokio::test]
async fn many_readers_of_a_chunk_make_one_request() {
    for bench in [Bench::new(), Bench::new()] {
        bench
            .blob
            .inject(Fault::Latency(Duration::from_millis(100)), Times::Always);
        for layer in [bench.cached(), bench.uncached()] {
            let before = bench.blob.requests().len();
            let reads = (0..50u64).map(|at| layer.read(at * 10..at * 10 + 10));
            for (at, bytes) in join_all(reads).await.into_iter().enumerate() {
                assert_eq!(bytes.expect("a read"), bench.sample.plain[at * 10..at * 10 + 10]);
            }
            // A neighbour may travel by itself, but the chunk that all wait for is asked for once.
            let requests = &bench.blob.requests()[before..];
            let first = requests.iter().filter(|stored| stored.contains(&0));
            assert_eq!(first.count(), 1, "{requests:?}");
        }
    }
}

#[tokio::test]
async fn a_page_after_the_other_without_a_cache_fetches_a_chunk_once() {
    let bench = Bench::new();
    let layer = bench.uncached();
    for page in 0..10 {
        layer.read(page * 1000..page * 1000 + 1000).await.expect("a page");
    }
    assert_eq!(bench.blob.requests().len(), 1);
}

#[tokio::test]
async fn neighbours_travel_together_and_far_chunks_apart() {
    let bench = Bench::new();
    let layer = bench.cached();
    bench.check_all(&layer).await;
    let requests = bench.blob.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0], 0..bench.sample.stored.len() as u64);
    let far = Bench::with_gap(200_000);
    far.check_all(&far.uncached()).await;
    assert_eq!(far.blob.requests().len(), CHUNKS);
}

#[tokio::test]
async fn a_reader_that_goes_away_does_not_stop_the_fetch() {
    let bench = Bench::new();
    bench
        .blob
        .inject(Fault::Latency(Duration::from_millis(200)), Times::Always);
    let layer = bench.cached();
    let given_up = tokio::time::timeout(Duration::from_millis(50), layer.read(0..10)).await;
    assert!(given_up.is_err());
    let other = layer.read(10..20).await.expect("the other reader is served");
    assert_eq!(other, bench.sample.plain[10..20]);
    assert_eq!(bench.blob.requests().len(), 1);
}

// Time passes only when nothing else can: all readers wait for the one fetch by then, however busy the machine is.
#[tokio::test(start_paused = true)]
async fn a_failed_fetch_fails_its_waiters_and_is_not_remembered() {
    let bench = Bench::new();
    // Sooner than an answer is ever late: a second request would serve them.
    bench
        .blob
        .inject(Fault::Latency(Duration::from_millis(50)), Times::First(1));
    bench.blob.inject(Fault::Cut { after: 0 }, Times::First(1));
    let layer = bench.cached();
    for result in join_all((0..5).map(|_| layer.read(0..10))).await {
        assert_eq!(
            result.expect_err("the fetch failed").kind(),
            ErrorKind::Unavailable
        );
    }
    assert_eq!(
        layer.read(0..10).await.expect("the next is a new one"),
        bench.sample.plain[..10]
    );
}

#[tokio::test]
async fn a_short_answer_is_an_error_not_a_short_read() {
    let bench = Bench::new();
    bench.blob.inject(Fault::Short { by: 1 }, Times::Always);
    let layer = bench.uncached();
    let error = layer.read(0..layer.plain_len()).await.expect_err("short");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn a_byte_spoilt_on_the_way_is_fetched_again() {
    let bench = Bench::new();
    bench
        .blob
        .inject(Fault::FlippedByte { stored_off: 100 }, Times::First(1));
    let layer = bench.cached();
    bench.check_all(&layer).await;
    assert_eq!(bench.blob.requests().len(), 2);
    assert_eq!(layer.stats().corrupt, 1);
}

#[tokio::test]
async fn every_byte_spoilt_for_good_is_an_error_and_is_never_kept() {
    let sample = SampleLayer::new(2, 300, 0);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let chunks = sample.layer.index.chunks.chunks();
    for stored_off in 0..sample.stored.len() as u64 {
        let blob = FaultyBlob::new(sample.layer.blob.clone());
        blob.inject(Fault::FlippedByte { stored_off }, Times::Always);
        let cache = Cache::open(dir.path().join(stored_off.to_string())).expect("a cache opens");
        let cached = cache.layer(&sample.layer.index);
        let fetcher = Fetcher::new(Arc::new(Counters::default()));
        let layer = PlainLayer::new(&sample.reading(blob.clone()), Some(cached.clone()), &fetcher);
        let spoilt = chunks
            .iter()
            .position(|chunk| chunk.stored_range().contains(&stored_off))
            .expect("a chunk");
        match layer.read(chunks[spoilt].plain_range()).await {
            // A bit that zstd does not use may be turned without changing what comes out.
            Ok(bytes) => assert_eq!(bytes, sample.plain[spoilt * 300..spoilt * 300 + 300]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                assert!(
                    error.to_string().contains(&sample.layer.diff_id.to_string()),
                    "{error}"
                );
                assert!(!cached.has_chunk(spoilt), "byte {stored_off} was kept");
                blob.heal();
                let bytes = layer.read(0..600).await.expect("the source is well again");
                assert_eq!(bytes, sample.plain);
            }
        }
    }
}

#[tokio::test]
async fn a_flipped_byte_in_the_cache_heals() {
    let bench = Bench::new();
    bench.check_all(&bench.cached()).await;
    let data = std::fs::File::options()
        .read(true)
        .write(true)
        .open(bench.file("data"))
        .expect("the data file");
    for plain_off in [0, 4_321, 55_555, 199_999] {
        let asked = bench.blob.requests().len();
        let mut byte = [0];
        data.read_exact_at(&mut byte, plain_off).expect("a byte");
        data.write_all_at(&[byte[0] ^ 0x10], plain_off).expect("a byte");
        let layer = bench.cached();
        bench.check_all(&layer).await;
        assert_eq!(bench.blob.requests().len(), asked + 1, "byte {plain_off}");
        assert_eq!(layer.stats().requests, 1);
        bench.check_all(&bench.cached()).await;
        assert_eq!(bench.blob.requests().len(), asked + 1, "healed for good");
    }
}

#[tokio::test]
async fn bits_without_their_bytes_show_no_zeros() {
    let bench = Bench::new();
    bench.check_all(&bench.cached()).await;
    // What a power cut leaves when the bits reached the disk and the data did not.
    std::fs::File::options()
        .write(true)
        .open(bench.file("data"))
        .expect("the data file")
        .set_len(0)
        .expect("cut");
    bench.check_all(&bench.cached()).await;
    std::fs::remove_file(bench.file("data")).expect("removed");
    bench.check_all(&bench.cached()).await;
    std::fs::write(bench.file("present"), b"junk").expect("written");
    let layer = bench.cached();
    assert_eq!(layer.missing_chunks(), CHUNKS);
    bench.check_all(&layer).await;
}

#[tokio::test]
async fn other_cuts_of_the_same_layer_start_anew_and_do_not_disturb_open_ones() {
    let bench = Bench::new();
    let first = bench.cached();
    bench.check_all(&first).await;
    let other = SampleLayer::new(CHUNKS / 2, CHUNK_LEN * 2, 0);
    assert_eq!(
        other.layer.diff_id, bench.sample.layer.diff_id,
        "the same plain bytes"
    );
    let cache = Cache::open(bench.dir.path()).expect("a cache opens");
    let cached = cache.layer(&other.layer.index);
    assert_eq!(cached.missing_chunks(), CHUNKS / 2);
    assert!(cached.store_chunk(0, &other.plain[..2 * CHUNK_LEN]));
    assert_eq!(
        cached.read_chunk(0).expect("stored"),
        other.plain[..2 * CHUNK_LEN]
    );
    let asked = bench.blob.requests().len();
    bench.check_all(&first).await;
    assert_eq!(
        bench.blob.requests().len(),
        asked,
        "the open layer keeps its files"
    );
}

#[tokio::test]
async fn two_processes_share_what_either_fetched() {
    let bench = Bench::new();
    let (one, two) = (bench.cached(), bench.cached());
    let half = (CHUNK_LEN * CHUNKS / 2) as u64;
    one.read(0..half).await.expect("the first half");
    bench.flush();
    let asked = bench.blob.requests().len();
    two.read(0..half).await.expect("the first half");
    let first_half = bench.sample.layer.index.chunks.chunks()[CHUNKS / 2].stored_off;
    let again = |stored: &std::ops::Range<u64>| stored.start < first_half;
    let requests = &bench.blob.requests()[asked..];
    assert!(
        !requests.iter().any(again),
        "the other process has it: {requests:?}"
    );
    two.read(half..2 * half).await.expect("the second half");
    bench.flush();
    let asked = bench.blob.requests().len();
    bench.check_all(&bench.cached()).await;
    assert_eq!(
        bench.blob.requests().len(),
        asked,
        "neither lost the other's bits"
    );
}

#[tokio::test]
async fn a_cache_that_cannot_keep_anything_does_not_hinder_reading() {
    let bench = Bench::new();
    // Root may write anywhere, so the place of the layer's directory is taken by a file.
    let place = bench.file("");
    std::fs::create_dir_all(place.parent().expect("a parent")).expect("made");
    std::fs::write(
        bench
            .dir
            .path()
            .join("layers/sha256")
            .join(bench.sample.layer.diff_id.0.to_hex()),
        b"",
    )
    .expect("written");
    let layer = bench.cached();
    bench.check_all(&layer).await;
    assert_eq!(layer.missing_chunks(), CHUNKS);
    layer.read(0..10).await.expect("read again");
}

#[test]
fn image_trees_are_put_whole_and_found_by_chain_id() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache = Cache::open(dir.path()).expect("a cache opens");
    let chain_id = sluice_format::ChainId(sluice_format::Digest::of(b"chain"));
    assert!(!cache.tree_path(&chain_id).exists());
    for bytes in [&b"tree"[..], b"tree again"] {
        let path = cache.put_tree(&chain_id, bytes).expect("put");
        assert_eq!(path, cache.tree_path(&chain_id));
        assert_eq!(std::fs::read(path).expect("there"), bytes);
    }
    let beside = std::fs::read_dir(dir.path().join("image-trees/sha256"))
        .expect("listed")
        .count();
    assert_eq!(beside, 1, "no temporary file stays");
}
