//! Starts of containers: what they will read is fetched ahead, what they read is recorded, and each leaves one line in the log.
//!
//! The layers of an image may serve other images at the same time, so whoever records attaches to them for the time of the
//! start ([`LayerWatch`]). One start per image is recorded at a time. Nothing is learnt, and nothing replayed, of an image
//! one of whose layers is served as another image has cut it: chunk numbers would mean something else.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sluice_format::{DiffId, Digest, Profile, Tree};
use sluice_snapshotter::images::RemoteLayer;
use sluice_storage::{Cache, Fetcher, PlainLayer, ProfileStore, ReadObserver, Recorder};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::EngineOptions;
use super::images::{ImageKey, Loaded, LoadedImages};
use super::layers::{LayerLease, ServedLayer, ServedLayers};
use crate::foresight::foresee;
use crate::open_image::{chunk_tables, keep, merged_tree, recorder, replay};
use crate::page_plan::PagePlan;

/// A start that has not got quiet by then is not one: nobody reads, or nobody stops reading.
const LONGEST: Duration = Duration::from_secs(180);

/// How long after a pull its container is expected.
const EXPECTED_WITHIN: Duration = Duration::from_secs(30);

/// A start that is recorded.
#[derive(Debug)]
struct Start {
    began: Instant,
    first_read: OnceLock<Duration>,
    recorder: Arc<Recorder>,
}

/// Tells the starts on a layer what is read of it.
#[derive(Debug, Default)]
pub(super) struct LayerWatch {
    /// Each with the layer's position in its image.
    starts: RwLock<Vec<(Arc<Start>, usize)>>,
}

impl LayerWatch {
    fn each(&self, mut tell: impl FnMut(&Arc<Start>, usize)) {
        let starts = self.starts.read().unwrap_or_else(PoisonError::into_inner);
        starts.iter().for_each(|(start, position)| tell(start, *position));
    }

    fn attach(&self, start: &Arc<Start>, position: usize) {
        let mut starts = self.starts.write().unwrap_or_else(PoisonError::into_inner);
        starts.push((start.clone(), position));
    }

    fn detach(&self, start: &Arc<Start>) {
        let mut starts = self.starts.write().unwrap_or_else(PoisonError::into_inner);
        starts.retain(|(other, _)| !Arc::ptr_eq(other, start));
    }
}

impl ReadObserver for LayerWatch {
    fn touched(&self, _: usize, plain: &Range<u64>, chunks: Range<usize>) {
        self.each(|start, position| {
            start.first_read.get_or_init(|| start.began.elapsed());
            start.recorder.touched(position, plain, chunks.clone());
        });
    }

    fn begin_wait(self: Arc<Self>) -> Option<Box<dyn Send + Sync>> {
        let mut waits = Vec::new();
        self.each(|start, _| waits.extend(start.recorder.clone().begin_wait()));
        (!waits.is_empty()).then(|| Box::new(waits) as _)
    }

    fn waited(&self, _: usize, chunks: Range<usize>, wait: Duration) {
        self.each(|start, position| start.recorder.waited(position, chunks.clone(), wait));
    }
}

/// All starts of this process.
#[derive(Debug)]
pub(super) struct Starts {
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    images: Arc<LoadedImages>,
    layers: Arc<ServedLayers>,
    /// Image IDs of the starts that are recorded.
    recorded: Mutex<HashSet<Digest>>,
    /// Layers of images of which a container is expected. What is queued for a layer is given up with its last lease.
    expected: Mutex<HashMap<Digest, Vec<LayerLease>>>,
    /// How long the last mount took of the tree that ends with a layer.
    mounts: Mutex<HashMap<DiffId, Duration>>,
}

impl Starts {
    pub(super) fn new(
        options: &EngineOptions,
        images: &Arc<LoadedImages>,
        layers: &Arc<ServedLayers>,
    ) -> Self {
        Self {
            cache: options.cache.clone(),
            fetcher: options.fetcher.clone(),
            images: images.clone(),
            layers: layers.clone(),
            recorded: Mutex::default(),
            expected: Mutex::default(),
            mounts: Mutex::default(),
        }
    }

    fn recorded(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<Digest, Vec<LayerLease>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mounts(&self) -> MutexGuard<'_, HashMap<DiffId, Duration>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how long the tree took whose topmost layer is `top`.
    pub(super) fn mounted(&self, top: &RemoteLayer, time: Duration) {
        self.mounts().insert(top.plain_layer, time);
    }

    /// An image is pulled, and a container of it is likely to follow at once: what that will read is fetched as soon as it is known.
    pub(super) async fn expect(self: Arc<Self>, image: Arc<Loaded>) {
        let tree = image.clone().write_tree_ahead(self.cache.clone());
        let known = image.profile(ProfileStore::new(self.cache.path())).await;
        let (layers, image_id) = (self.layers.clone(), image.image.image_id);
        let fetching = spawn_blocking(move || {
            let stack = &image.image.layers;
            let leases: Vec<LayerLease> = stack.iter().map(|layer| layers.lease(layer)).collect();
            if let Some(served) = layers.find(stack) {
                fetch_ahead(known.as_ref(), &image, Some(tree), &plain(&served));
            }
            leases
        });
        if let Ok(leases) = fetching.await {
            self.expected().insert(image_id, leases);
            tokio::time::sleep(EXPECTED_WITHIN).await;
            self.expected().remove(&image_id);
        }
    }

    /// Has in the page cache what earlier starts read of an image, whose tree is mounted on `target`, before the next one asks for it. `merged` is that tree,
    /// if somebody has it.
    pub(super) async fn read_pages_ahead(
        self: Arc<Self>,
        image: Arc<Loaded>,
        merged: Option<Arc<Tree>>,
        target: PathBuf,
    ) {
        if image.learns {
            return;
        }
        let known = image.profile(ProfileStore::new(self.cache.path())).await;
        let (Some(known), Some(served)) = (known, self.layers.find(&image.image.layers)) else {
            return;
        };
        let plan = move || {
            let merge = || merged_tree(&image.image.layers).map(Arc::new);
            let tree = merged.map_or_else(merge, Ok)?;
            anyhow::Ok(PagePlan::new(&known, &chunk_tables(&image.image), &tree))
        };
        if let Ok(Ok(plan)) = spawn_blocking(plan).await {
            // Whoever unmounts the tree drops this.
            plan.follow(plain(&served), &target, std::future::pending()).await;
        }
    }

    /// Expects no container any more.
    pub(super) fn expect_none(&self) {
        self.expected().clear();
    }

    /// A container of these layers is about to start.
    pub(super) async fn begin(self: Arc<Self>, layers: Vec<RemoteLayer>) {
        let Some(top) = layers.last() else { return };
        let key = ImageKey::new(&top.reference, Some(top.manifest_digest));
        let image = match self.images.get(&key).await {
            Ok(Some(image)) if image.image.layers.len() == layers.len() => image,
            Ok(_) => return,
            Err(error) => return tracing::debug!(image = top.reference, %error, "a start is not recorded"),
        };
        let Some(served) = self.layers.find(&image.image.layers) else {
            return;
        };
        if !self.recorded().insert(image.image.image_id) {
            return;
        }
        self.follow(&top.reference, &image, &served).await;
        self.recorded().remove(&image.image.image_id);
    }

    /// Follows a start until it is quiet.
    async fn follow(&self, reference: &str, image: &Arc<Loaded>, served: &[Arc<ServedLayer>]) {
        let observed = served.iter().map(|layer| layer.plain.complete_file().is_none());
        let start = Arc::new(Start {
            began: Instant::now(),
            first_read: OnceLock::new(),
            recorder: recorder(&image.image, observed),
        });
        for (position, layer) in served.iter().enumerate() {
            layer.watch.attach(&start, position);
        }
        let before = self.fetcher.counters().stats().stored_bytes;
        let store = ProfileStore::new(self.cache.path());
        let known = image.profile(store.clone()).await;
        if known.is_some() && !image.learns {
            start.recorder.tell_read_ahead();
            start.recorder.begin();
        }
        let fetching = {
            let (known, image, layers) = (known.clone(), image.clone(), plain(served));
            spawn_blocking(move || fetch_ahead(known.as_ref(), &image, None, &layers))
        };
        let planned = fetching.await.unwrap_or_default();
        // A start that takes too long is recorded as far as it came.
        let _ = tokio::time::timeout(LONGEST, start.recorder.ended()).await;
        for layer in served {
            layer.watch.detach(&start);
            layer.plain.foresee_no_more();
            layer.plain.follow_profile(false);
        }
        let recording = start.recorder.finish();
        let top = image.image.layers.last().map(|layer| layer.listed);
        tracing::info!(
            image = reference,
            resolve_ms = image.resolve_time.as_millis(),
            index_ms = image.index_time.as_millis(),
            mount_ms = top.and_then(|top| Some(self.mounts().get(&top)?.as_millis())),
            first_read_ms = start.first_read.get().map(Duration::as_millis),
            planned_chunks = planned,
            read_bytes = recording.plain_len(),
            process_fetched_bytes = self.fetcher.counters().stats().stored_bytes - before,
            "a container started"
        );
        if !recording.is_empty() {
            keep(start.recorder.clone(), known, store).await;
        }
    }
}

/// Has fetched what a start is going to read: what earlier ones read, or else what the files of the image tell, once. Gives how many chunks a profile asks
/// for. Blocks. `tree` is that of the image, if somebody merges it already.
fn fetch_ahead(
    known: Option<&Profile>,
    image: &Loaded,
    tree: Option<oneshot::Receiver<Arc<Tree>>>,
    layers: &[Arc<PlainLayer>],
) -> usize {
    layers
        .iter()
        .for_each(|layer| layer.follow_profile(known.is_some()));
    if let Some(known) = known {
        return replay(known, &image.image, layers);
    }
    if image.foresee() {
        let merge = || merged_tree(&image.image.layers).map(Arc::new);
        let merged = || tree.and_then(|tree| tree.blocking_recv().ok());
        foresee(&image.image, layers, || merged().map_or_else(merge, Ok));
    }
    0
}

fn plain(served: &[Arc<ServedLayer>]) -> Vec<Arc<PlainLayer>> {
    served.iter().map(|layer| layer.plain.clone()).collect()
}
