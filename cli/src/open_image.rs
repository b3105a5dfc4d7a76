//! An image made ready to be mounted: its tree on disk, its plain layers, and what is known and learnt of its start.
//!
//! The manifest is resolved first; then indexes and the start-up profile (this host's, else one attached to the image) are loaded side by side.
//! With a profile its chunks are wanted before the mount is even there. Every start is recorded until it is quiet, and makes the profile
//! better for the next one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use sluice_format::erofs::{DeviceSlot, write_image};
use sluice_format::{Limits, Profile};
use sluice_storage::profile::{self, ProfileStore, RecordedLayer, RecordingOptions};
use sluice_storage::{
    Cache, Fetcher, Lane, LazyImage, ManifestName, PlainLayer, PlainLayerOptions, Platform, ReadObserver,
    ReadPolicy, Recorder, Repository, ResolvedImage, Timeline, load_resolved_image_cached,
    resolve_image_cached,
};
use tokio::task::{JoinHandle, spawn_blocking};

/// What an image is opened with.
#[derive(Clone, Debug)]
pub(crate) struct Opener {
    pub(crate) cache: Arc<Cache>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) policy: ReadPolicy,
    pub(crate) timeline: Option<Arc<Timeline>>,
    /// Whether starts are recorded and replayed.
    pub(crate) uses_profiles: bool,
}

/// An image that can be mounted.
#[derive(Debug)]
pub(crate) struct OpenImage {
    pub(crate) image: LazyImage,
    pub(crate) tree_file: PathBuf,
    pub(crate) layers: Vec<Arc<PlainLayer>>,
    /// Chunks that the profile asked for.
    pub(crate) planned_chunks: usize,
    recording: Option<JoinHandle<()>>,
    recorder: Option<Arc<Recorder>>,
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
        let image = load_resolved_image_cached(repository, name, platform, &resolved, &limits, &self.cache);
        let (image, known) = tokio::join!(image, self.find_profile(repository, &resolved, store.clone()));
        let image = image?;
        self.done("indexes loaded");
        let recorder = self.uses_profiles.then(|| recorder(&image));
        let layers = self.plain_layers(&image, recorder.as_ref(), known.is_some());
        let planned_chunks = known.as_ref().map_or(0, |known| replay(known, &image, &layers));
        let tree_file = write_tree(&image, &self.cache)?;
        self.done("tree written");
        let recording = recorder
            .clone()
            .map(|recorder| tokio::spawn(keep(recorder, known, store)));
        Ok(OpenImage {
            image,
            tree_file,
            layers,
            planned_chunks,
            recording,
            recorder,
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
        if !self.uses_profiles {
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
            let layer: &sluice_storage::LazyLayer = layer;
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
        let chunks = |layer: &sluice_storage::LazyLayer| layer.index.chunks.chunks().len();
        (missing, self.image.layers.iter().map(chunks).sum())
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

fn recorder(image: &LazyImage) -> Arc<Recorder> {
    let layers = image.layers.iter().map(|layer| RecordedLayer {
        index: layer.index.clone(),
        observed: true,
    });
    Recorder::new(image.image_id, layers.collect(), RecordingOptions::default())
}

/// Has fetched what the last starts demanded; gives how many chunks that are.
fn replay(known: &Profile, image: &LazyImage, layers: &[Arc<PlainLayer>]) -> usize {
    let tables: Vec<_> = image
        .layers
        .iter()
        .map(|layer| (layer.diff_id, &layer.index.chunks))
        .collect();
    let plan = profile::plan(known, &tables);
    for planned in &plan {
        layers[planned.layer].expect([planned.chunk]);
    }
    let chunks = plan.iter().map(|planned| (planned.layer, planned.chunk));
    PlainLayer::prefetch(layers, chunks, Lane::Profile);
    plan.len()
}

/// Waits for the end of a start and keeps what was learnt of it. Failing to is no error of the mount.
async fn keep(recorder: Arc<Recorder>, known: Option<Profile>, store: ProfileStore) {
    let reason = recorder.ended().await;
    let recording = recorder.finish();
    tracing::info!(
        image = %recording.image_id(),
        reason = ?reason,
        plain_len = recording.plain_len(),
        "a start was recorded"
    );
    let kept = spawn_blocking(move || match profile::merge(known.as_ref(), &recording)? {
        Some(better) => store.save(&better),
        None => Ok(()),
    });
    match kept.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the profile of a start was not kept"),
        Err(error) => tracing::warn!(%error, "the profile of a start was not kept"),
    }
}

/// The image tree is written anew at every mount: merging takes milliseconds, and a tree file that was damaged on disk is
/// never mounted.
fn write_tree(image: &LazyImage, cache: &Cache) -> anyhow::Result<PathBuf> {
    let chain_id = image
        .chain_id()
        .context("the image has no layers, so there is nothing to mount")?;
    let tree = image.merged_tree(&Limits::default())?;
    let slot = |diff_id, plain_len| DeviceSlot { diff_id, plain_len };
    let devices: Vec<_> = image
        .layers
        .iter()
        .map(|layer| slot(layer.diff_id, layer.plain_len))
        .collect();
    let written = write_image(&tree, &devices)?;
    Ok(cache.put_tree(&chain_id, &written.bytes)?)
}
