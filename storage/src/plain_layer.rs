//! The answer to `read(plain range)` of one layer.
//!
//! A read first takes what this host has: the cache on disk, then the chunks that were fetched lately. The rest is fetched
//! through [`crate::fetch`], once per chunk however many readers wait, and every byte that is returned was verified
//! against the chunk's digest. What readers do also tells what they will want next, and that is fetched in lesser lanes.
//!
//! A reader that goes away does not stop a fetch; a fetch that fails is not remembered. What the source calls temporary has been
//! retried there; how long a reader waits beyond that is the layer's [`ReadPolicy`]. Dropping the layer gives up what was queued for it.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sluice_format::DiffId;
use tokio::time::Instant;

use crate::fetch::readahead::{Bounds, Tracks};
use crate::fetch::{Claim, Lane, Source};
use crate::read_policy::{Patience, ReadPolicy};
use crate::{CachedLayer, Error, ErrorKind, Fetcher, LazyLayer, Stats, blocking};

/// Looks at the cache and the board before a read gives up: a chunk can be evicted between its arrival and its being read.
const ROUNDS: usize = 3;

/// Who wants to know what readers touch.
pub trait ReadObserver: std::fmt::Debug + Send + Sync {
    /// A reader touched a chunk of a layer: `layer` as it was given to [`PlainLayerOptions`], `chunk` a position in its chunk table. Called
    /// on the way of every read, so it must be quick.
    fn touched(&self, layer: usize, chunk: usize);
}

/// How one layer is read.
#[derive(Clone, Debug, Default)]
pub struct PlainLayerOptions {
    /// How long readers wait when the source fails.
    pub policy: ReadPolicy,
    /// Told what readers touch, with this number for the layer.
    pub observer: Option<(usize, Arc<dyn ReadObserver>)>,
}

/// The plain bytes of one layer, wherever they are.
#[derive(Debug)]
pub struct PlainLayer {
    source: Arc<Source>,
    tracks: Tracks,
    options: PlainLayerOptions,
}

impl PlainLayer {
    /// A layer that reads its blob through `fetcher` and keeps what it fetched in `cache`, which must be that of the same
    /// layer index.
    pub fn new(layer: &LazyLayer, cache: Option<CachedLayer>, fetcher: &Arc<Fetcher>) -> Arc<Self> {
        Self::with_options(layer, cache, fetcher, PlainLayerOptions::default())
    }

    /// The same, read as `options` say.
    pub fn with_options(
        layer: &LazyLayer,
        cache: Option<CachedLayer>,
        fetcher: &Arc<Fetcher>,
        options: PlainLayerOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            source: fetcher.source(layer, cache),
            tracks: Tracks::default(),
            options,
        })
    }

    /// Digest of the plain layer.
    pub fn diff_id(&self) -> DiffId {
        self.source.index.diff_id
    }

    /// Length of the plain layer in bytes.
    pub fn plain_len(&self) -> u64 {
        self.source.index.chunks.plain_len()
    }

    /// Chunks that are not in the cache; all of them without a cache.
    pub fn missing_chunks(&self) -> usize {
        match &self.source.cache {
            Some(cache) => cache.missing_chunks(),
            None => self.source.index.chunks.chunks().len(),
        }
    }

    /// Whether the cache has every chunk, as far as the disk knows.
    pub fn is_complete(&self) -> bool {
        self.missing_chunks() == 0
    }

    /// What all layers of this layer's fetcher have cost so far.
    pub fn stats(&self) -> Stats {
        self.source.fetcher.counters().stats()
    }

    /// The verified bytes of `plain`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a range outside the layer; [`ErrorKind::Corrupt`] for a chunk that does not match its
    /// digest twice in a row; what the source reports, when the layer's policy says so.
    pub async fn read(&self, plain: Range<u64>) -> Result<Bytes, Error> {
        self.check(&plain)?;
        let wanted = self.source.index.chunks.covering(plain.clone());
        self.touched(wanted.clone());
        let mut patience = Patience::new(&self.options.policy);
        loop {
            match patience.bound(self.collect(wanted.clone())).await {
                Ok(chunks) => return Ok(self.cut(wanted, chunks, &plain)),
                Err(error) => patience.after(error, self.diff_id()).await.inspect_err(|_| {
                    self.source.fetcher.counters().read_failed();
                })?,
            }
        }
    }

    /// The verified bytes of `plain` when the cache on disk has all of them. Blocks on the disk; for threads outside the
    /// runtime, which spares them the way through it.
    pub fn read_cached(&self, plain: Range<u64>) -> Option<Bytes> {
        let bytes = self.source.cache.as_ref()?.read_range(plain.clone())?;
        let wanted = self.source.index.chunks.covering(plain);
        self.source.fetcher.counters().add_hits(wanted.len());
        self.touched(wanted);
        Some(bytes)
    }

    /// Has chunks fetched that nobody waits for, in this order, unless this host has them. Must be called within a tokio runtime.
    pub fn prefetch(&self, chunks: impl IntoIterator<Item = usize>, lane: Lane) {
        let count = self.source.index.chunks.chunks().len();
        let wanted = chunks.into_iter().filter(|chunk| *chunk < count);
        let wanted: Vec<_> = wanted.map(|chunk| (chunk, lane)).collect();
        self.source.upstream.request(&self.source, &[], &wanted);
    }

    /// Chunks of any layer of the same upstream that wait in a lane.
    pub fn waiting(&self, lane: Lane) -> usize {
        self.source.upstream.waiting(lane)
    }

    fn check(&self, plain: &Range<u64>) -> Result<(), Error> {
        if plain.start <= plain.end && plain.end <= self.plain_len() {
            return Ok(());
        }
        let message = format!(
            "plain range {}-{} is outside layer {}, which has {} bytes",
            plain.start,
            plain.end,
            self.diff_id(),
            self.plain_len()
        );
        Err(Error::new(ErrorKind::InvalidInput, message))
    }

    fn touched(&self, chunks: Range<usize>) {
        if let Some((layer, observer)) = &self.options.observer {
            chunks.for_each(|chunk| observer.touched(*layer, chunk));
        }
    }

    /// What a reader of `wanted` will want next.
    fn ahead(&self, wanted: Range<usize>) -> Vec<(usize, Lane)> {
        let chunks = self.source.index.chunks.chunks();
        let mean_len = self.plain_len() / (chunks.len() as u64).max(1);
        let ahead = self
            .tracks
            .touch(wanted, chunks.len(), mean_len, Bounds::default());
        let Some(ahead) = ahead else {
            return Vec::new();
        };
        ahead.chunks.map(|chunk| (chunk, ahead.lane)).collect()
    }

    /// The plain bytes of each wanted chunk.
    async fn collect(&self, wanted: Range<usize>) -> Result<Vec<Bytes>, Error> {
        let began = Instant::now();
        let mut kept = self.kept_chunks(wanted.clone(), vec![None; wanted.len()]).await?;
        let missing = kept.iter().filter(|chunk| chunk.is_none()).count();
        let counters = self.source.fetcher.counters();
        counters.add_hits(wanted.len() - missing);
        counters.add_misses(missing);
        let mut ahead = self.ahead(wanted.clone());
        for _ in 0..ROUNDS {
            let at: Vec<usize> = (0..kept.len()).filter(|at| kept[*at].is_none()).collect();
            let chunks: Vec<usize> = at.iter().map(|at| wanted.start + at).collect();
            let claims = self.source.upstream.request(&self.source, &chunks, &ahead);
            ahead.clear();
            for (at, claim) in at.into_iter().zip(claims) {
                if let Claim::Fetched(ticket) = claim {
                    kept[at] = Some(ticket.outcome().await?);
                }
            }
            kept = self.kept_chunks(wanted.clone(), kept).await?;
            if kept.iter().all(Option::is_some) {
                if missing > 0 {
                    counters.read_waited(began.elapsed());
                }
                return Ok(kept.into_iter().flatten().collect());
            }
        }
        let message = format!(
            "chunks of layer {} are evicted before they are read",
            self.diff_id()
        );
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Fills in what this host has of the wanted chunks.
    async fn kept_chunks(
        &self,
        wanted: Range<usize>,
        mut known: Vec<Option<Bytes>>,
    ) -> Result<Vec<Option<Bytes>>, Error> {
        if known.iter().all(Option::is_some) {
            return Ok(known);
        }
        let source = self.source.clone();
        blocking::run("read the cache", move || {
            for (chunk, known) in wanted.zip(&mut known) {
                if known.is_none() {
                    *known = source.kept(chunk);
                }
            }
            Ok(known)
        })
        .await
    }

    /// Cuts `plain` out of the chunks that cover it; one chunk is not copied.
    fn cut(&self, wanted: Range<usize>, chunks: Vec<Bytes>, plain: &Range<u64>) -> Bytes {
        let table = &self.source.index.chunks.chunks()[wanted];
        let mut parts = table.iter().zip(chunks).map(|(chunk, bytes)| {
            let start = plain.start.saturating_sub(chunk.plain_off) as usize;
            let end = (plain.end.min(chunk.plain_range().end) - chunk.plain_off) as usize;
            bytes.slice(start..end)
        });
        if table.len() == 1 {
            return parts.next().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity((plain.end - plain.start) as usize);
        parts.for_each(|part| whole.extend_from_slice(&part));
        whole.freeze()
    }
}

impl Drop for PlainLayer {
    fn drop(&mut self) {
        self.source.upstream.forget(self.source.layer, Lane::Readahead);
    }
}
