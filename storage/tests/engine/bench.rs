//! A layer behind a blob that can misbehave, with a cache of its own.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sluice_storage::testing::{FaultyBlob, SampleLayer};
use sluice_storage::{
    Cache, CacheOptions, CachedLayer, Counters, Fetcher, Lane, PlainLayer, PlainLayerOptions,
};
use tempfile::TempDir;
use tokio::time::sleep;

pub(crate) struct Bench {
    pub(crate) sample: SampleLayer,
    pub(crate) blob: Arc<FaultyBlob>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) fetcher: Arc<Fetcher>,
    _dir: TempDir,
}

impl Bench {
    /// `chunks` incompressible chunks of `chunk_len` bytes with `gap` stored bytes between them.
    pub(crate) fn new(chunks: usize, chunk_len: usize, gap: usize) -> Self {
        Self::of(SampleLayer::new(chunks, chunk_len, gap))
    }

    pub(crate) fn of(sample: SampleLayer) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = CacheOptions {
            upkeep: false,
            ..CacheOptions::default()
        };
        Self {
            blob: FaultyBlob::new(sample.layer.blob.clone()),
            sample,
            cache: Cache::open_with(dir.path(), options).expect("a cache opens"),
            fetcher: Fetcher::new(Arc::new(Counters::default())),
            _dir: dir,
        }
    }

    pub(crate) fn layer(&self) -> Arc<PlainLayer> {
        self.layer_with(PlainLayerOptions::default())
    }

    pub(crate) fn layer_with(&self, options: PlainLayerOptions) -> Arc<PlainLayer> {
        let layer = self.sample.reading(self.blob.clone());
        PlainLayer::with_options(&layer, Some(self.cached()), &self.fetcher, options)
    }

    /// A layer of which no touch makes the engine guess what comes next.
    pub(crate) fn layer_without_guesses(&self) -> Arc<PlainLayer> {
        let layer = self.layer();
        layer.expect(0..self.chunks());
        layer
    }

    pub(crate) fn cached(&self) -> CachedLayer {
        self.cache.layer(&self.sample.layer.index)
    }

    pub(crate) fn chunks(&self) -> usize {
        self.sample.layer.index.chunks.chunks().len()
    }

    pub(crate) fn plain(&self, chunk: usize) -> Range<u64> {
        self.sample.layer.index.chunks.chunks()[chunk].plain_range()
    }

    pub(crate) fn stored(&self, chunk: usize) -> Range<u64> {
        self.sample.layer.index.chunks.chunks()[chunk].stored_range()
    }

    /// Reads a chunk and compares it.
    pub(crate) async fn read(&self, layer: &PlainLayer, chunk: usize) {
        let plain = self.plain(chunk);
        let bytes = layer.read(plain.clone()).await.expect("a chunk is read");
        assert_eq!(
            bytes,
            self.sample.plain[plain.start as usize..plain.end as usize],
            "chunk {chunk}"
        );
    }

    /// The chunk with which each request begins, in order.
    pub(crate) fn asked(&self) -> Vec<usize> {
        let chunk = |stored: &Range<u64>| {
            let found = (0..self.chunks()).find(|at| self.stored(*at).start == stored.start);
            found.expect("a request begins with a chunk")
        };
        self.blob.requests().iter().map(chunk).collect()
    }

    /// Stored bytes asked for.
    pub(crate) fn asked_len(&self) -> u64 {
        self.blob
            .requests()
            .iter()
            .map(|stored| stored.end - stored.start)
            .sum()
    }

    /// No stored byte was asked for twice.
    pub(crate) fn assert_asked_once(&self) {
        let mut requests = self.blob.requests();
        requests.sort_by_key(|stored| stored.start);
        for pair in requests.windows(2) {
            assert!(pair[0].end <= pair[1].start, "asked for twice: {pair:?}");
        }
    }
}

/// Has chunks of one layer fetched in a lane.
pub(crate) fn prefetch(layer: &Arc<PlainLayer>, chunks: impl IntoIterator<Item = usize>, lane: Lane) {
    let chunks = chunks.into_iter().map(|chunk| (0, chunk));
    PlainLayer::prefetch(std::slice::from_ref(layer), chunks, lane);
}

/// Waits until nothing is asked for any more: an hour in which only the machinery itself moves.
pub(crate) async fn settle() {
    sleep(Duration::from_secs(3600)).await;
}

/// Waits until all that a thread has spawned had its turn, and what it waits for on the pool is done.
pub(crate) async fn a_moment() {
    sleep(Duration::from_millis(1)).await;
}
