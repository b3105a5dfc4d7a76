//! An image made ready to be mounted: its tree on disk, its plain layers, and what is known and learnt of its start.
//!
//! The manifest is resolved first; then indexes and the start-up profile (this host's, else one attached to the image) are loaded side by side.
//! With a profile its chunks are wanted before the mount is even there. Every start is recorded until it is quiet, and makes the profile
//! better for the next one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use sluice_format::erofs::{DeviceSlot, write_image};
use sluice_format::merge::merge;
use sluice_format::{ChainId, ChunkTable, DiffId, Limits, Profile, Tree};
use sluice_storage::image::choice;
use sluice_storage::profile::{self, ProfileStore, RecordedLayer, Recording, RecordingOptions};
use sluice_storage::{
    Cache, FAULT_WINDOW, Fetcher, Lane, LayerMode, LazyImage, LazyLayer, ManifestName, PlainLayer,
    PlainLayerOptions, Platform, ReadObserver, ReadPolicy, Recorder, Repository, ResolvedImage,
    StreamProgress, Timeline, load_resolved_image_streaming, resolve_image_cached,
};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::foresight::foresee;
use crate::page_plan::{self, PagePlan};

/// Readahead window of a mount that is not complete.
pub(crate) const READ_AHEAD_KIB: u32 = (FAULT_WINDOW >> 10) as u32;

/// Readahead window when nearly every chunk is on this host: little is fetched in vain, wide requests cost least, and the
/// page cache gets large folios (random 4 KiB reads then run at the speed of ext4, at 0.95 of it with the small window).
const READ_AHEAD_COMPLETE_KIB: u32 = 1024;

/// One missing chunk in this many counts as complete: chunks of tar headers and padding only are never read.
const COMPLETE_SHARE: usize = 50;

/// What is done about the starts of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Starts {
    /// Nothing.
    Ignored,
    /// The profile of earlier ones is replayed, and what a start teaches is kept by itself.
    Learnt,
    /// The profile of earlier ones is replayed. Reads of all layers come by, and whoever opened the image keeps what is recorded.
    Watched,
}

/// What an image is opened with.
#[derive(Clone, Debug)]
pub(crate) struct Opener {
    pub(crate) cache: Arc<Cache>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) policy: ReadPolicy,
    pub(crate) timeline: Option<Arc<Timeline>>,
    /// What is done about starts.
    pub(crate) starts: Starts,
    /// Which layers come whole.
    pub(crate) layers: LayerMode,
    /// Told of layers that have no index and are streamed.
    pub(crate) progress: Arc<dyn StreamProgress>,
}

/// An image that can be mounted.
#[derive(Debug)]
pub(crate) struct OpenImage {
    pub(crate) image: Arc<LazyImage>,
    pub(crate) tree_file: PathBuf,
    pub(crate) layers: Vec<Arc<PlainLayer>>,
    /// Chunks that the profile asked for.
    pub(crate) planned_chunks: usize,
    /// Layers to be brought whole at once.
    pub(crate) whole: Vec<Arc<PlainLayer>>,
    /// The profile of earlier starts.
    pub(crate) known: Option<Profile>,
    recording: Option<JoinHandle<()>>,
    recorder: Option<Arc<Recorder>>,
    /// What to read ahead of this start.
    pages: Option<JoinHandle<PagePlan>>,
}

impl Opener {
    /// Resolves and loads an image, and begins to fetch what its profile tells.
    pub(crate) async fn open(
        &self,
        repository: &Arc<dyn Repository>,
        name: &ManifestName,
        platform: &Platform,
    ) -> anyhow::Result<OpenImage> {
        let limits = Limits::default();
        let resolved = resolve_image_cached(repository, name, platform, &limits, &self.cache).await?;
        self.done("manifest resolved");
        let store = ProfileStore::new(self.cache.path());
        let image = load_resolved_image_streaming(
            repository,
            name,
            platform,
            &resolved,
            &limits,
            &self.cache,
            self.progress.as_ref(),
        );
        let (image, known) = tokio::join!(image, self.find_profile(repository, &resolved, store.clone()));
        let image = image?;
        self.done("indexes loaded");
        let recorder = self
            .uses_profiles()
            .then(|| recorder(&image, self.observed(&image)));
        let layers = self.plain_layers(&image, recorder.as_ref(), known.is_some());
        let planned_chunks = known.as_ref().map_or(0, |known| replay(known, &image, &layers));
        let shown = format!("{} ({name})", repository.location());
        let whole = choose_layers(
            self.layers,
            (&image, &shown),
            &layers,
            known.as_ref(),
            &self.fetcher,
        );
        let image = Arc::new(image);
        let tree = Arc::new(merged_tree(&image.layers)?);
        if known.is_none() {
            let (image, layers, tree) = (image.clone(), layers.clone(), tree.clone());
            drop(spawn_blocking(move || foresee(&image, &layers, || Ok(tree))));
        }
        let tree_file = write_tree(&tree, &image.layers, &self.cache)?;
        self.done("tree written");
        let is_read_ahead = self.starts == Starts::Learnt && !page_plan::learns();
        let pages = known.clone().filter(|_| is_read_ahead).map(|known| {
            let image = image.clone();
            spawn_blocking(move || PagePlan::new(&known, &chunk_tables(&image), &tree))
        });
        let recording = recorder
            .clone()
            .filter(|_| self.starts == Starts::Learnt)
            .map(|recorder| tokio::spawn(keep(recorder, known.clone(), store)));
        Ok(OpenImage {
            image,
            tree_file,
            layers,
            planned_chunks,
            whole,
            known,
            recording,
            recorder,
            pages,
        })
    }

    fn done(&self, phase: &'static str) {
        if let Some(timeline) = &self.timeline {
            timeline.phase(phase);
        }
    }

    async fn find_profile(
        &self,
        repository: &Arc<dyn Repository>,
        resolved: &ResolvedImage,
        store: ProfileStore,
    ) -> Option<Profile> {
        if !self.uses_profiles() {
            return None;
        }
        let image_id = resolved.image_id();
        let local = spawn_blocking(move || store.load(&image_id)).await.ok().flatten();
        if local.is_some() {
            return local;
        }
        profile::find_profile(
            repository.as_ref(),
            &resolved.manifest.digest,
            &image_id,
            &Limits::default(),
        )
        .await
    }

    fn uses_profiles(&self) -> bool {
        self.starts != Starts::Ignored
    }

    /// Of each layer, whether its reads come by: the kernel usually reads the file of a whole layer by itself.
    fn observed<'a>(&'a self, image: &'a LazyImage) -> impl Iterator<Item = bool> + 'a {
        let layers = image.layers.iter();
        layers.map(|layer| self.starts == Starts::Watched || !self.cache.layer(&layer.index).is_whole())
    }

    fn plain_layers(
        &self,
        image: &LazyImage,
        recorder: Option<&Arc<Recorder>>,
        has_profile: bool,
    ) -> Vec<Arc<PlainLayer>> {
        let mut observers: Vec<Arc<dyn ReadObserver>> = Vec::new();
        observers.extend(recorder.map(|recorder| recorder.clone() as _));
        observers.extend(self.timeline.iter().map(|timeline| timeline.clone() as _));
        let plain = |(position, layer)| {
            let options = PlainLayerOptions {
                policy: self.policy,
                position,
                observers: observers.clone(),
                has_profile,
            };
            let layer: &LazyLayer = layer;
            PlainLayer::with_options(
                layer,
                Some(self.cache.layer(&layer.index)),
                &self.fetcher,
                options,
            )
        };
        image.layers.iter().enumerate().map(plain).collect()
    }
}

impl OpenImage {
    /// Chunks that are not on this host, and all chunks.
    pub(crate) fn missing_chunks(&self) -> (usize, usize) {
        let missing = self.layers.iter().map(|layer| layer.missing_chunks()).sum();
        let chunks = |layer: &LazyLayer| layer.index.chunks.chunks().len();
        (missing, self.image.layers.iter().map(chunks).sum())
    }

    /// What records this start.
    pub(crate) fn recorder(&self) -> Option<Arc<Recorder>> {
        self.recorder.clone()
    }

    /// Has in the page cache what earlier starts read of the image, which is mounted on `target`, before this one asks for it. No longer than
    /// `until`.
    pub(crate) fn read_pages_ahead(
        &mut self,
        target: &Path,
        until: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (pages, recorder) = (self.pages.take(), self.recorder.clone());
        let (layers, target) = (self.layers.clone(), target.to_owned());
        async move {
            let Some(pages) = pages else { return };
            if let Some(recorder) = recorder {
                recorder.tell_read_ahead();
            }
            if let Ok(plan) = pages.await {
                plan.follow(layers, &target, until).await;
            }
        }
    }

    /// Ends the recording, if it has not ended by itself, and waits until it is kept.
    pub(crate) async fn finish_recording(&mut self) {
        if let Some(recorder) = &self.recorder {
            recorder.finish();
        }
        if let Some(recording) = self.recording.take() {
            // A panic in it was reported; there is nothing left to keep.
            let _ = recording.await;
        }
    }
}

/// Decides how the layers of an image come, says so in the log, and gives those that are to be brought at once.
pub(crate) fn choose_layers(
    mode: LayerMode,
    (image, shown): (&LazyImage, &str),
    layers: &[Arc<PlainLayer>],
    known: Option<&Profile>,
    fetcher: &Fetcher,
) -> Vec<Arc<PlainLayer>> {
    let link = layers.first().map(|layer| fetcher.link(layer.upstream()));
    let facts = choice::facts(&image.layers, layers, known);
    let choice = choice::choose(mode, &facts, link.unwrap_or_default());
    choice.explain(shown);
    choice.apply(layers)
}

/// A recorder for a start of `image`. `observed` tells of each layer whether its reads come by.
pub(crate) fn recorder(image: &LazyImage, observed: impl Iterator<Item = bool>) -> Arc<Recorder> {
    let layer = |(layer, observed): (&LazyLayer, bool)| RecordedLayer {
        index: layer.index.clone(),
        observed,
    };
    let layers = image.layers.iter().zip(observed).map(layer);
    Recorder::new(image.image_id, layers.collect(), RecordingOptions::default())
}

/// How the layers of an image are cut, lowest first.
pub(crate) fn chunk_tables(image: &LazyImage) -> Vec<(DiffId, &ChunkTable)> {
    let layers = image.layers.iter();
    layers
        .map(|layer| (layer.diff_id, layer.index.chunks.as_ref()))
        .collect()
}

/// Has fetched what the last starts demanded, and read from the disk what of it is here; gives how many chunks that are. Each program
/// of a start waits for the disk page by page, while this asks for all of it at once.
pub(crate) fn replay(known: &Profile, image: &LazyImage, layers: &[Arc<PlainLayer>]) -> usize {
    let plan = profile::plan(known, &chunk_tables(image));
    for planned in &plan {
        layers[planned.layer].expect([planned.chunk]);
    }
    let chunks: Vec<_> = plan
        .iter()
        .map(|planned| (planned.layer, planned.chunk))
        .collect();
    PlainLayer::prefetch(layers, chunks.iter().copied(), Lane::Profile);
    let layers = layers.to_vec();
    drop(spawn_blocking(move || PlainLayer::read_ahead(&layers, chunks)));
    plan.len()
}

/// Waits for the end of a start and keeps what was learnt of it. Failing to is no error of the mount.
pub(crate) async fn keep(recorder: Arc<Recorder>, known: Option<Profile>, store: ProfileStore) {
    let reason = recorder.ended().await;
    let recording = recorder.finish();
    tracing::info!(
        image = %recording.image_id(),
        reason = ?reason,
        plain_len = recording.plain_len(),
        "a start was recorded"
    );
    if let Err(error) = learn(recording, known, store).await {
        tracing::warn!(%error, "the profile of a start was not kept");
    }
}

/// Keeps what a start has taught beside what is known.
///
/// # Errors
/// When the profile cannot be written.
pub(crate) async fn learn(
    recording: Recording,
    known: Option<Profile>,
    store: ProfileStore,
) -> anyhow::Result<()> {
    let kept = spawn_blocking(move || match profile::merge(known.as_ref(), &recording)? {
        Some(better) => store.save(&better),
        None => Ok(()),
    });
    Ok(kept.await??)
}

/// The tree of the image that consists of these layers.
///
/// # Errors
/// When the layers cannot be stacked.
pub(crate) fn merged_tree(layers: &[LazyLayer]) -> anyhow::Result<Tree> {
    let limits = Limits::default();
    let trees = layers.iter().map(|layer| layer.index.layer_tree(&limits));
    Ok(merge(trees.collect::<Result<_, _>>()?, &limits)?)
}

/// The image tree is written anew at every mount: merging takes milliseconds, and a tree file that was damaged on disk is
/// never mounted.
pub(crate) fn write_tree(tree: &Tree, layers: &[LazyLayer], cache: &Cache) -> anyhow::Result<PathBuf> {
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
    let chain_id =
        ChainId::of_stack(&diff_ids).context("the image has no layers, so there is nothing to mount")?;
    let slot = |layer: &LazyLayer| DeviceSlot {
        diff_id: layer.diff_id,
        plain_len: layer.plain_len,
    };
    let devices: Vec<_> = layers.iter().map(slot).collect();
    let written = write_image(tree, &devices)?;
    Ok(cache.put_tree(&chain_id, &written.bytes)?)
}

/// The readahead window of a mount, in KiB, when `missing` of `chunks` are not on this host.
pub(crate) fn read_ahead_kib(missing: usize, chunks: usize) -> u32 {
    if missing * COMPLETE_SHARE <= chunks {
        READ_AHEAD_COMPLETE_KIB
    } else {
        READ_AHEAD_KIB
    }
}
