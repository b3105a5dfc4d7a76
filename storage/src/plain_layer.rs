//! The answer to `read(plain range)` of one layer.
//!
//! A read first takes what this host has: the cache on disk, then the chunks that were fetched lately. The rest is fetched
//! through [`crate::fetch`], once per chunk however many readers wait, and every byte that is returned was verified
//! against the chunk's digest. What readers do also tells what they will want next, and that is fetched in lesser lanes.
//!
//! A reader that goes away does not stop a fetch; a fetch that fails is not remembered. What the source calls temporary has been
//! retried there; how long a reader waits beyond that is the layer's [`ReadPolicy`]. Dropping the layer gives up what was queued for it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sluice_format::DiffId;
use sluice_format::startup::ImageFiles;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::fetch::files::{FileLayer, Files, InImage};
use crate::fetch::loader::{Code, Meeting, Opened};
use crate::fetch::readahead::Reading;
use crate::fetch::{Claim, Lane, Source, WholeWhen, imports, loader};
use crate::read_policy::{Patience, ReadPolicy};
use crate::sync::lock;
use crate::{CachedLayer, CompleteFile, Error, ErrorKind, Fetcher, LazyLayer, Stats, blocking};

/// Plain bytes that a start has read into the page cache at most.
const READ_AHEAD_MAX: u64 = 512 << 20;

/// Looks at the cache and the board before a read gives up: a chunk can be evicted between its arrival and its being read.
const ROUNDS: usize = 3;

/// Who wants to know what readers touch.
pub trait ReadObserver: std::fmt::Debug + Send + Sync {
    /// A reader touched a range of a layer: `layer` as it was given to [`PlainLayerOptions`], `chunks` the positions in its chunk table
    /// that have the plain bytes. Called on the way of every read, so it must be quick.
    fn touched(&self, layer: usize, plain: &Range<u64>, chunks: Range<usize>);

    /// A reader begins to wait for chunks that it touched. It waits until the value is dropped.
    fn begin_wait(self: Arc<Self>) -> Option<Box<dyn Send + Sync>> {
        None
    }

    /// A reader waited for some of these chunks, which it touched before.
    fn waited(&self, _layer: usize, _chunks: Range<usize>, _wait: Duration) {}
}

/// Chunks to fetch together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MissingChunks {
    pub(crate) chunks: Vec<usize>,
    pub(crate) stored_len: u64,
}

/// How one layer is read.
#[derive(Clone, Debug, Default)]
pub struct PlainLayerOptions {
    /// How long readers wait when the source fails.
    pub policy: ReadPolicy,
    /// Number of the layer for the observers.
    pub position: usize,
    /// Told what readers do.
    pub observers: Vec<Arc<dyn ReadObserver>>,
    /// A profile tells what a start will read, so that files need not be looked into, nor what lies between its chunks be fetched.
    pub has_profile: bool,
}

/// The plain bytes of one layer, wherever they are.
#[derive(Debug)]
pub struct PlainLayer {
    source: Arc<Source>,
    met: Arc<loader::Met>,
    in_image: Mutex<Option<InImage>>,
    runtime: Handle,
    /// The file that the kernel was given, which is kept for it as long as this layer lives.
    complete: OnceLock<CompleteFile>,
    options: PlainLayerOptions,
}

impl PlainLayer {
    /// A layer that reads its blob through `fetcher` and keeps what it fetched in `cache`, which must be that of the same
    /// layer index.
    pub fn new(layer: &LazyLayer, cache: Option<CachedLayer>, fetcher: &Arc<Fetcher>) -> Arc<Self> {
        Self::with_options(layer, cache, fetcher, PlainLayerOptions::default())
    }

    /// The same, read as `options` say.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn with_options(
        layer: &LazyLayer,
        cache: Option<CachedLayer>,
        fetcher: &Arc<Fetcher>,
        options: PlainLayerOptions,
    ) -> Arc<Self> {
        let source = fetcher.source(layer, cache);
        source
            .follows_profile
            .store(options.has_profile, Ordering::Relaxed);
        Arc::new(Self {
            source,
            met: Arc::default(),
            in_image: Mutex::default(),
            runtime: Handle::current(),
            complete: OnceLock::new(),
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

    /// Chunks that it consists of.
    pub(crate) fn chunks(&self) -> usize {
        self.source.index.chunks.chunks().len()
    }

    /// Chunks that are not in the cache; all of them without a cache.
    pub fn missing_chunks(&self) -> usize {
        match &self.source.cache {
            Some(cache) => cache.missing_chunks(),
            None => self.chunks(),
        }
    }

    /// Whether the cache has every chunk, as far as the disk knows.
    pub fn is_complete(&self) -> bool {
        let cache = self.source.cache.as_ref();
        self.chunks() == 0 || cache.is_some_and(CachedLayer::is_complete)
    }

    /// Whether [`Self::complete_file`] would find one. Blocks on the disk.
    pub fn is_whole(&self) -> bool {
        self.source.cache.as_ref().is_some_and(CachedLayer::is_whole)
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
        if let Some(refusal) = self.source.cache.as_ref().and_then(CachedLayer::refusal) {
            return Err(refusal);
        }
        let wanted = self.source.index.chunks.covering(plain.clone());
        let ahead = self.touched(&plain, wanted.clone());
        let bytes = self.read_patiently(&plain, wanted, ahead).await?;
        self.foresee_file(plain.start, &bytes);
        Ok(bytes)
    }

    async fn read_patiently(
        &self,
        plain: &Range<u64>,
        wanted: Range<usize>,
        mut ahead: Vec<(usize, Lane)>,
    ) -> Result<Bytes, Error> {
        let mut patience = Patience::new(&self.options.policy);
        loop {
            let round = self.collect(wanted.clone(), std::mem::take(&mut ahead));
            match patience.bound(round).await {
                Ok(chunks) => return Ok(self.cut(wanted, chunks, plain)),
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
        let wanted = self.source.index.chunks.covering(plain.clone());
        self.source.fetcher.counters().add_hits(wanted.len());
        let ahead = self.touched(&plain, wanted);
        self.want_ahead(ahead);
        self.foresee_file(plain.start, &bytes);
        Some(bytes)
    }

    /// The same for somebody who reads ahead of programs: no track of theirs, no demand of a start, and not counted.
    pub fn read_unnoticed(&self, plain: Range<u64>) -> Option<Bytes> {
        self.source.cache.as_ref()?.read_range(plain)
    }

    /// Waits until this host has a chunk, fetching it if nobody else does.
    ///
    /// # Errors
    /// As [`Self::read`], whatever the layer's policy.
    pub async fn arrival(&self, chunk: usize) -> Result<(), Error> {
        match &self.source.cache {
            Some(cache) if cache.has_chunk(chunk) => Ok(()),
            _ => self.fetch(&[chunk], Lane::Profile).await,
        }
    }

    /// Has fetched what a start of an image is going to read that consists of these layers, lowest first, as far as its files tell: at once what they tell by
    /// now, the rest as they are read.
    pub fn foresee(layers: &[Arc<Self>], files: ImageFiles) {
        let Some(runtime) = layers.first().map(|layer| &layer.runtime) else {
            return;
        };
        let layer = |layer: &Arc<Self>| FileLayer {
            source: Arc::downgrade(&layer.source),
            met: layer.met.clone(),
        };
        let files = Arc::new(Files::new(files, layers.iter().map(layer).collect()));
        for (layer, device) in layers.iter().zip(1..) {
            let files = files.clone();
            *lock(&layer.in_image) = Some(InImage { files, device });
        }
        imports::begin(&files, runtime);
    }

    /// Says that the start has ended for which files were looked into, and from now on those that are read are not.
    pub fn foresee_no_more(&self) {
        *lock(&self.in_image) = None;
    }

    /// Says whether a profile tells what a start will read, so that files need not be looked into, nor what lies between its chunks be fetched.
    pub fn follow_profile(&self, follows: bool) {
        self.source.follows_profile.store(follows, Ordering::Relaxed);
    }

    /// Says that chunks will be fetched for another reason, such as a profile: that a reader touches them tells nothing new.
    pub fn expect(&self, chunks: impl IntoIterator<Item = usize>) {
        chunks
            .into_iter()
            .for_each(|chunk| self.source.foresight.expect(chunk));
    }

    /// Has chunks of several layers fetched that nobody waits for, in this order, unless this host has them. Each is a position in `layers` and
    /// one in the chunk table of that layer; those that do not exist are skipped.
    pub fn prefetch(layers: &[Arc<Self>], chunks: impl IntoIterator<Item = (usize, usize)>, lane: Lane) {
        for (layer, chunk) in chunks {
            let Some(Self { source, .. }) = layers.get(layer).map(Arc::as_ref) else {
                continue;
            };
            if chunk < source.index.chunks.chunks().len() {
                source.upstream.queue(source, chunk, lane);
            }
        }
        layers.iter().for_each(|layer| layer.source.upstream.start());
    }

    /// Has the kernel read chunks of several layers into its page cache, in this order, as far as this host has them. Blocks on the disk.
    pub fn read_ahead(layers: &[Arc<Self>], chunks: impl IntoIterator<Item = (usize, usize)>) {
        let mut left = READ_AHEAD_MAX;
        for (layer, chunk) in chunks {
            let Some(Self { source, .. }) = layers.get(layer).map(Arc::as_ref) else {
                continue;
            };
            let (Some(cache), Some(cut)) = (&source.cache, source.index.chunks.chunks().get(chunk)) else {
                continue;
            };
            cache.read_ahead(chunk);
            left = left.saturating_sub(u64::from(cut.plain_len));
            if left == 0 {
                return;
            }
        }
    }

    fn want_ahead(&self, ahead: Vec<(usize, Lane)>) {
        if !ahead.is_empty() {
            self.source.upstream.want(&self.source, &ahead);
        }
    }

    /// Says when all of the layer is wanted, and what it is part of.
    pub(crate) fn come_whole(&self, when: WholeWhen, image: Arc<Reading>) {
        self.source.foresight.come_whole(when, image);
    }

    /// Who carries the load of reading it.
    pub fn upstream(&self) -> &str {
        self.source.upstream.name()
    }

    /// The next missing chunks, up to `most_len` stored bytes but at least one.
    pub(crate) fn next_missing(&self, most_len: u64) -> MissingChunks {
        let mut batch = MissingChunks::default();
        let Some(cache) = &self.source.cache else {
            return batch;
        };
        for chunk in cache.missing() {
            if batch.stored_len >= most_len {
                break;
            }
            batch.stored_len += u64::from(self.source.chunk(chunk).stored_len);
            batch.chunks.push(chunk);
        }
        batch
    }

    /// Fetches chunks in a lane and waits for them; those that another layer on this host has are copied.
    ///
    /// # Errors
    /// As [`Self::read`], whatever the layer's policy.
    pub(crate) async fn fetch(&self, chunks: &[usize], lane: Lane) -> Result<(), Error> {
        let missing = self.copy_kept(chunks).await?;
        for claim in self.source.upstream.claim(&self.source, &missing, lane) {
            if let Claim::Fetched(ticket) = claim {
                ticket.outcome().await?;
            }
        }
        Ok(())
    }

    /// Has chunks fetched in a lane without waiting for them; those that another layer on this host has are copied.
    ///
    /// # Errors
    /// When the work on the disk ended early.
    pub(crate) async fn want(&self, chunks: &[usize], lane: Lane) -> Result<(), Error> {
        let missing = self.copy_kept(chunks).await?;
        self.want_ahead(missing.into_iter().map(|chunk| (chunk, lane)).collect());
        Ok(())
    }

    /// Those of `chunks` that no layer on this host has; the others are copied.
    async fn copy_kept(&self, chunks: &[usize]) -> Result<Vec<usize>, Error> {
        let (source, wanted) = (self.source.clone(), chunks.to_vec());
        blocking::run("copy chunks of other layers", move || {
            let missing = wanted.into_iter().filter(|chunk| source.kept(*chunk).is_none());
            Ok(missing.collect())
        })
        .await
    }

    /// Verifies a complete layer against its DiffID. A layer that is not complete is left as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the bytes are not those of the DiffID: the layer is out of service then.
    pub async fn verify_whole(&self) -> Result<(), Error> {
        match self.source.cache.clone() {
            Some(cache) => blocking::run("verify a layer", move || cache.verify_whole().map(|_| ())).await,
            None => Ok(()),
        }
    }

    /// The local file with all plain bytes, when the cache has every chunk and has verified them against the DiffID. It stays as it
    /// is as long as this layer lives. Blocks on the disk.
    pub fn complete_file(&self) -> Option<PathBuf> {
        if let Some(file) = self.complete.get() {
            return Some(file.path().to_owned());
        }
        let file = self.source.cache.as_ref()?.complete_file()?;
        Some(self.complete.get_or_init(|| file).path().to_owned())
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

    /// Notes what a reader touched, and tells what it will want next.
    fn touched(&self, plain: &Range<u64>, chunks: Range<usize>) -> Vec<(usize, Lane)> {
        for observer in &self.options.observers {
            observer.touched(self.options.position, plain, chunks.clone());
        }
        self.source.foresight.touch(chunks)
    }

    /// When a reader has just read the beginning of a program or module, has fetched what that leads to.
    fn foresee_file(&self, plain_off: u64, head: &[u8]) {
        if self.source.follows_profile() {
            return;
        }
        if self.source.foresight.is_swept() {
            if let Some(image) = lock(&self.in_image).take() {
                image.files.close();
            }
            return;
        }
        let image = lock(&self.in_image).clone();
        if let Some(meeting) = self.met.meet_program(plain_off, head, Code::Touched) {
            self.foresee_program(meeting, plain_off, image);
        } else if let Some(image) = image
            && let Some(module) = image.module_at(plain_off)
            && !self.is_complete()
        {
            self.runtime.spawn(imports::follow(image.files, module));
        }
    }

    fn foresee_program(&self, meeting: Meeting, plain_off: u64, image: Option<InImage>) {
        if self.is_complete() {
            return;
        }
        let opened = Opened {
            source: self.source.clone(),
            plain_off,
            lane: Lane::Readahead,
        };
        let files = image.map(|image| image.files);
        self.runtime.spawn(loader::fetch_ahead(opened, files, meeting));
    }

    fn waited(&self, chunks: Range<usize>, wait: Duration) {
        self.source.fetcher.counters().read_waited(wait);
        for observer in &self.options.observers {
            observer.waited(self.options.position, chunks.clone(), wait);
        }
    }

    /// The plain bytes of each wanted chunk.
    async fn collect(
        &self,
        wanted: Range<usize>,
        mut ahead: Vec<(usize, Lane)>,
    ) -> Result<Vec<Bytes>, Error> {
        let began = Instant::now();
        let mut kept = self.kept_chunks(wanted.clone(), vec![None; wanted.len()]).await?;
        let missing = kept.iter().filter(|chunk| chunk.is_none()).count();
        let counters = self.source.fetcher.counters();
        counters.add_hits(wanted.len() - missing);
        counters.add_misses(missing);
        let observers = self.options.observers.iter().filter(|_| missing > 0);
        let _waiting: Vec<_> = observers.map(|observer| observer.clone().begin_wait()).collect();
        for _ in 0..ROUNDS {
            let at: Vec<usize> = (0..kept.len()).filter(|at| kept[*at].is_none()).collect();
            let chunks: Vec<usize> = at.iter().map(|at| wanted.start + at).collect();
            let claims = self.source.upstream.demand(&self.source, &chunks, &ahead);
            ahead.clear();
            for (at, claim) in at.into_iter().zip(claims) {
                if let Claim::Fetched(ticket) = claim {
                    kept[at] = Some(ticket.outcome().await?);
                }
            }
            kept = self.kept_chunks(wanted.clone(), kept).await?;
            if kept.iter().all(Option::is_some) {
                if missing > 0 {
                    self.waited(wanted, began.elapsed());
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
