//! The answer to `read(plain range)` of one layer.
//!
//! A read first takes what this host has: the cache on disk, then the chunks that were fetched lately. The rest is fetched
//! through [`crate::fetch`], once per chunk however many readers wait, and every byte that is returned was verified
//! against the chunk's digest. A reader that goes away does not stop a fetch; a fetch that fails is not remembered. What
//! the source calls temporary has been retried there. This module does not read ahead.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use sluice_format::DiffId;

use crate::fetch::{Flights, Source, fetch_missing};
use crate::{CachedLayer, Error, ErrorKind, Fetcher, LazyLayer, Stats, blocking};

/// The plain bytes of one layer, wherever they are.
#[derive(Debug)]
pub struct PlainLayer {
    source: Source,
    flights: Arc<Flights>,
}

impl PlainLayer {
    /// A layer that reads its blob through `fetcher` and keeps what it fetched in `cache`, which must be that of the same
    /// layer index.
    pub fn new(layer: &LazyLayer, cache: Option<CachedLayer>, fetcher: &Arc<Fetcher>) -> Arc<Self> {
        let source = Source {
            index: layer.index.clone(),
            blob: layer.blob.clone(),
            cache,
            fetcher: fetcher.clone(),
        };
        Arc::new(Self {
            source,
            flights: Arc::default(),
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
    /// digest twice in a row; what the source reports.
    pub async fn read(&self, plain: Range<u64>) -> Result<Bytes, Error> {
        self.check(&plain)?;
        let wanted = self.source.index.chunks.covering(plain.clone());
        if let Some(bytes) = self.read_kept(plain.clone()).await? {
            self.source.fetcher.counters().add_hits(wanted.len());
            return Ok(bytes);
        }
        let chunks = self.collect(wanted.clone()).await?;
        Ok(self.cut(wanted, chunks, &plain))
    }

    /// The verified bytes of `plain` when the cache on disk has all of them. Blocks on the disk; for threads outside the
    /// runtime, which spares them the way through it.
    pub fn read_cached(&self, plain: Range<u64>) -> Option<Bytes> {
        let wanted = self.source.index.chunks.covering(plain.clone()).len();
        let bytes = self.source.cache.as_ref()?.read_range(plain)?;
        self.source.fetcher.counters().add_hits(wanted);
        Some(bytes)
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

    async fn read_kept(&self, plain: Range<u64>) -> Result<Option<Bytes>, Error> {
        let Some(cache) = self.source.cache.clone() else {
            return Ok(None);
        };
        blocking::run("read the cache", move || Ok(cache.read_range(plain))).await
    }

    /// The plain bytes of each wanted chunk.
    async fn collect(&self, wanted: Range<usize>) -> Result<Vec<Bytes>, Error> {
        let mut kept = self.kept_chunks(wanted.clone()).await?;
        let missing: Vec<usize> = wanted
            .clone()
            .zip(&kept)
            .filter_map(|(chunk, kept)| kept.is_none().then_some(chunk))
            .collect();
        let counters = self.source.fetcher.counters();
        counters.add_hits(wanted.len() - missing.len());
        counters.add_misses(missing.len());
        let tickets = fetch_missing(&self.source, &self.flights, &missing);
        let fetched = try_join_all(tickets.into_iter().map(|ticket| ticket.outcome())).await?;
        for (chunk, plain) in missing.into_iter().zip(fetched) {
            kept[chunk - wanted.start] = Some(plain);
        }
        Ok(kept.into_iter().flatten().collect())
    }

    /// What this host has of the wanted chunks.
    async fn kept_chunks(&self, wanted: Range<usize>) -> Result<Vec<Option<Bytes>>, Error> {
        let source = self.source.clone();
        blocking::run("read the cache", move || {
            Ok(wanted.map(|chunk| source.kept(chunk)).collect())
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
