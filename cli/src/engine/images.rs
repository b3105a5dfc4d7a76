//! The images used last, with the indexes of their layers.
//!
//! A pull asks for every layer of an image within moments, and its container is mounted right after. So an image is loaded
//! once, however many ask at the same time, and kept until enough others were used or nobody has asked for a while. Loading takes documents from the cache
//! where it has them: after a restart, or without the registry, an image is loaded from the disk. Layers without an index are streamed
//! as part of loading, all at once, so the first request of a pull waits until the image is complete.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lru::LruCache;
use sluice_format::{ChainId, Digest, Limits, Profile, Tree};
use sluice_snapshotter::images::RemoteLayer;
use sluice_storage::registry::RegistryClient;
use sluice_storage::{
    Cache, CountedProgress, ErrorKind, LazyImage, LazyLayer, ManifestName, NoProgress, Platform,
    ProfileStore, Reference, Repository, load_resolved_image_streaming, profile, resolve_image_cached,
};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::spawn_blocking;

use super::{EngineOptions, chain_ids};
use crate::open_image::{merged_tree, write_tree};
use crate::page_plan;

/// Images kept. An index has about a hundred bytes per file and per chunk, so a large image has some megabytes.
const KEPT: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");

/// How long an image is kept that nobody asks for. Whoever comes later finds its documents in the cache.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Which image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ImageKey {
    pub(super) reference: String,
    /// Its manifest; `None` for whatever the reference means.
    pub(super) manifest: Option<Digest>,
}

impl ImageKey {
    pub(super) fn new(reference: &str, manifest: Option<Digest>) -> Self {
        Self {
            reference: reference.to_owned(),
            manifest,
        }
    }
}

/// An image in memory.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) image: LazyImage,
    /// How long it took to find the manifest.
    pub(super) resolve_time: Duration,
    /// How long it took to load the indexes.
    pub(super) index_time: Duration,
    attached: Arc<Attached>,
    is_announced: AtomicBool,
    is_foreseen: AtomicBool,
    /// Its starts are not read ahead of.
    pub(super) learns: bool,
    /// Its tree, written while it was pulled and not mounted yet.
    written_tree: Mutex<Option<WrittenTree>>,
}

/// The tree of an image, merged and written.
#[derive(Debug)]
pub(super) struct WrittenTree {
    pub(super) file: PathBuf,
    pub(super) tree: Arc<Tree>,
}

impl Loaded {
    /// Merges the tree of the image, gives it, and goes on to write it for the first mount, which waits for that.
    pub(super) fn write_tree_ahead(self: Arc<Self>, cache: Arc<Cache>) -> oneshot::Receiver<Arc<Tree>> {
        let (merged, tree) = oneshot::channel();
        let write = move || {
            let mut written = self.written_tree();
            let tree = Arc::new(merged_tree(&self.image.layers)?);
            drop(merged.send(tree.clone()));
            let file = write_tree(&tree, &self.image.layers, &cache)?;
            *written = Some(WrittenTree { file, tree });
            anyhow::Ok(())
        };
        drop(spawn_blocking(move || {
            // The mount meets the same error, and tells it.
            write().unwrap_or_else(|error| tracing::debug!(%error, "a tree was not written ahead"));
        }));
        tree
    }

    /// The tree of these layers that was written ahead, if nothing has mounted it yet. Blocks while it is written.
    pub(super) fn take_tree(&self, layers: &[LazyLayer]) -> Option<WrittenTree> {
        let own = self.image.layers.iter().map(|layer| layer.index_digest);
        let is_own = own.eq(layers.iter().map(|layer| layer.index_digest));
        let written = is_own.then(|| self.written_tree().take()).flatten();
        written.filter(|written| written.file.is_file())
    }

    fn written_tree(&self) -> MutexGuard<'_, Option<WrittenTree>> {
        self.written_tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the first time that its container is expected.
    pub(super) fn announce(&self) -> bool {
        !self.is_announced.swap(true, Ordering::Relaxed)
    }

    /// Whether this is the first time that its files are looked into for what a start will read.
    pub(super) fn foresee(&self) -> bool {
        !self.is_foreseen.swap(true, Ordering::Relaxed)
    }

    /// Which layer has this ChainID.
    pub(super) fn position_of(&self, target: &ChainId) -> Option<usize> {
        chain_ids(&self.image.layers).position(|chain| chain == *target)
    }

    /// What a start will demand: as learnt on this host, else as told by a profile attached to the image.
    pub(super) async fn profile(&self, store: ProfileStore) -> Option<Profile> {
        self.attached.known(store).await
    }
}

/// The profile that may be attached to an image, asked for once.
#[derive(Debug)]
struct Attached {
    repository: Arc<dyn Repository>,
    manifest: Digest,
    image_id: Digest,
    found: OnceCell<Option<Profile>>,
}

impl Attached {
    /// The profile of this host, or else the attached one.
    async fn known(&self, store: ProfileStore) -> Option<Profile> {
        let image_id = self.image_id;
        let local = spawn_blocking(move || store.load(&image_id)).await.ok().flatten();
        if local.is_some() {
            return local;
        }
        let limits = Limits::default();
        let find =
            || profile::find_profile(self.repository.as_ref(), &self.manifest, &self.image_id, &limits);
        self.found.get_or_init(find).await.clone()
    }
}

/// Whether the client may do what cannot be done here: it has a disk of its own for unpacked layers, and may know more kinds of them.
fn leaves_it_to_the_client(error: &sluice_storage::Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NoSpace)
}

/// What an image turned out to be.
#[derive(Clone, Debug)]
enum Found {
    Lazy(Arc<Loaded>),
    /// Some layer is of a kind that is not served, or the cache has no place for it.
    Ordinary,
}

type Cell = Arc<OnceCell<Found>>;

/// An image in memory, or on its way there.
#[derive(Debug)]
struct Kept {
    cell: Cell,
    /// When it was asked for last.
    used: Instant,
}

impl Kept {
    fn new() -> Self {
        Self {
            cell: Cell::default(),
            used: Instant::now(),
        }
    }

    /// How much longer it is kept; `None` when it is no longer.
    fn remaining(&self) -> Option<Duration> {
        // One that somebody waits for, or streams, is used.
        match Arc::strong_count(&self.cell) {
            1 => KEPT_FOR
                .checked_sub(self.used.elapsed())
                .filter(|rest| !rest.is_zero()),
            _ => Some(KEPT_FOR),
        }
    }
}

type Images = Arc<Mutex<LruCache<ImageKey, Kept>>>;

fn lock(images: &Images) -> MutexGuard<'_, LruCache<ImageKey, Kept>> {
    images.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops an image when nobody has asked for it for a while.
async fn drop_when_idle(images: Images, key: ImageKey) {
    loop {
        let remaining = match lock(&images).peek(&key) {
            None => return,
            Some(kept) => kept.remaining(),
        };
        match remaining {
            Some(remaining) => tokio::time::sleep(remaining).await,
            None => {
                lock(&images).pop(&key);
                return;
            }
        }
    }
}

/// The images used last.
#[derive(Debug)]
pub(super) struct LoadedImages {
    cache: Arc<Cache>,
    registries: Arc<RegistryClient>,
    uses_profiles: bool,
    /// Counts what is streamed.
    progress: CountedProgress,
    kept: Images,
}

impl LoadedImages {
    pub(super) fn new(options: &EngineOptions) -> Self {
        Self {
            cache: options.cache.clone(),
            registries: options.registries.clone(),
            uses_profiles: options.uses_profiles,
            progress: CountedProgress::new(Arc::new(NoProgress), options.fetcher.counters().clone()),
            kept: Arc::new(Mutex::new(LruCache::new(KEPT))),
        }
    }

    fn kept(&self) -> MutexGuard<'_, LruCache<ImageKey, Kept>> {
        lock(&self.kept)
    }

    /// The place of an image, which may be new.
    fn cell(&self, key: &ImageKey) -> Cell {
        let mut kept = self.kept();
        if let Some(found) = kept.get_mut(key) {
            found.used = Instant::now();
            return found.cell.clone();
        }
        let new = Kept::new();
        let cell = new.cell.clone();
        kept.put(key.clone(), new);
        tokio::spawn(drop_when_idle(self.kept.clone(), key.clone()));
        cell
    }

    /// An image, loaded if need be; `None` when it is left to the client.
    ///
    /// # Errors
    /// What hinders loading it. Not remembered: the next call tries again.
    pub(super) async fn get(&self, key: &ImageKey) -> anyhow::Result<Option<Arc<Loaded>>> {
        let cell = self.cell(key);
        match cell.get_or_try_init(|| self.load(key)).await? {
            Found::Lazy(image) => Ok(Some(image.clone())),
            Found::Ordinary => Ok(None),
        }
    }

    /// The image that the layer of a record is looked for in; `None` when it is left to the client.
    ///
    /// # Errors
    /// As [`LoadedImages::get`].
    pub(super) async fn of_layer(&self, layer: &RemoteLayer) -> anyhow::Result<Option<Arc<Loaded>>> {
        let key = ImageKey::new(&layer.reference, Some(layer.manifest_digest));
        self.get(&key).await
    }

    /// The layer of a record.
    ///
    /// # Errors
    /// As [`LoadedImages::get`]; or the image has no such layer.
    pub(super) async fn layer(&self, layer: &RemoteLayer) -> anyhow::Result<LazyLayer> {
        let image = self.of_layer(layer).await?;
        let is_it = |found: &&LazyLayer| {
            found.listed == layer.plain_layer && found.descriptor.digest == layer.layer_digest
        };
        let found = image.and_then(|image| image.image.layers.iter().find(is_it).cloned());
        found.with_context(|| {
            format!(
                "manifest {} of {} does not have layer {}",
                layer.manifest_digest, layer.reference, layer.layer_digest
            )
        })
    }

    /// Drops an image from memory, unless somebody uses it.
    pub(super) fn forget(&self, key: &ImageKey) {
        self.kept().pop(key);
    }

    async fn load(&self, key: &ImageKey) -> anyhow::Result<Found> {
        let reference: Reference = key.reference.parse()?;
        let name = key
            .manifest
            .map_or_else(|| reference.manifest_name(), ManifestName::Digest);
        let repository: Arc<dyn Repository> = self.registries.repository(&reference)?;
        let (limits, platform) = (Limits::default(), Platform::host());
        let began = Instant::now();
        let resolved = resolve_image_cached(&repository, &name, &platform, &limits, &self.cache).await?;
        let resolved = resolved.named(&reference.manifest_name());
        let resolve_time = began.elapsed();
        let attached = Arc::new(Attached {
            repository: repository.clone(),
            manifest: resolved.manifest.digest,
            image_id: resolved.image_id(),
            found: OnceCell::new(),
        });
        if self.uses_profiles {
            // Asked beside the indexes, so that no start waits for the answer.
            let (attached, store) = (attached.clone(), ProfileStore::new(self.cache.path()));
            tokio::spawn(async move { attached.known(store).await });
        }
        let loaded = load_resolved_image_streaming(
            &repository,
            &name,
            &platform,
            &resolved,
            &limits,
            &self.cache,
            &self.progress,
        );
        let image = match loaded.await {
            Ok(image) => image,
            Err(error) if leaves_it_to_the_client(&error) => {
                let reason = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(image = key.reference, reason, "the image is left to the client");
                return Ok(Found::Ordinary);
            }
            Err(error) => return Err(error.into()),
        };
        let loaded = Arc::new(Loaded {
            image,
            resolve_time,
            index_time: began.elapsed() - resolve_time,
            attached,
            is_announced: AtomicBool::new(false),
            is_foreseen: AtomicBool::new(false),
            learns: page_plan::learns(),
            written_tree: Mutex::default(),
        });
        Ok(Found::Lazy(loaded))
    }
}
