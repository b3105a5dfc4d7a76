//! The engine behind the snapshotter: images from registries, shown as mounted trees.
//!
//! One process has one cache, one fetcher, one client for all registries and, where the kernel can mount image trees with
//! EROFS, one FUSE session: it serves the flat files of all plain layers that are not complete, and every tree is an EROFS
//! mount over them ([`layers`], [`trees`]). Elsewhere each tree has a FUSE session of its own. [`images`] keeps the indexes
//! of the images used last; [`starts`] fetches ahead what earlier starts of a container's image demanded, and learns; [`wholes`] brings layers that come whole.
//!
//! A layer is served when the whole image has layer indexes, or was streamed to get them, and everything below it is served too; an image tree over
//! unpacked layers would need whiteouts, which the trees here do not keep.
//!
//! With EROFS and a service manager that keeps descriptors, mounts outlive the process and its successor goes on with them
//! ([`records`], [`takeover`]). Otherwise a tree is mounted anew on the same directory. Containers that hold the old mount go
//! on with it, and can read what the kernel reads without a process: complete layers.

mod images;
mod layers;
mod lingering;
mod records;
mod starts;
mod takeover;
mod trees;
mod wholes;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use sluice_format::ChainId;
use sluice_fuse::{DescriptorStore, Front, MountHelper, probe};
use sluice_snapshotter::images::{
    ContainerStart, EngineError, IdleTree, LayerRequest, ParentLayer, RemoteLayer, TreeRequest,
};
use sluice_snapshotter::{Images, Usage};
use sluice_storage::registry::RegistryClient;
use sluice_storage::{Cache, Fetcher, LayerMode, LazyLayer, ReadPolicy};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use self::images::{ImageKey, LoadedImages};
use self::layers::ServedLayers;
use self::lingering::Lingering;
use self::records::Records;
use self::starts::Starts;
use self::trees::{MountedTree, TreeMount};
use self::wholes::Wholes;

/// What the engine works with.
#[derive(Clone, Debug)]
pub(crate) struct EngineOptions {
    pub(crate) cache: Arc<Cache>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) registries: Arc<RegistryClient>,
    pub(crate) policy: ReadPolicy,
    /// How trees are shown.
    pub(crate) front: Front,
    /// Whether starts are recorded and replayed.
    pub(crate) uses_profiles: bool,
    /// Whether whole images are fetched while they are mounted.
    pub(crate) fill: Option<Fill>,
    /// Which layers come whole.
    pub(crate) layer_mode: LayerMode,
    /// Directory of the service, in which it records what is mounted.
    pub(crate) root: PathBuf,
    /// Waits for the session of this process while the kernel mounts.
    pub(crate) mount_helper: Arc<MountHelper>,
}

/// How images are fetched as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    /// Stored bytes per second that an image may take.
    pub(crate) rate: Option<u64>,
}

/// Serves images of registries. Dropping it unmounts every tree, unless a successor was left them with [`Engine::leave`];
/// containers keep what they hold.
#[derive(Debug)]
pub(crate) struct Engine {
    cache: Arc<Cache>,
    images: Arc<LoadedImages>,
    // Dropped before the session of the layers.
    trees: Mutex<takeover::Trees>,
    lingering: Arc<Lingering>,
    starts: Option<Arc<Starts>>,
    fill: Option<Fill>,
    wholes: Arc<Wholes>,
    layers: Arc<ServedLayers>,
    runtime: Handle,
}

impl Engine {
    /// Finds out what the kernel can do, and opens the session or takes that of an earlier process over from `store`.
    ///
    /// # Errors
    /// When the host cannot do what the front end needs, or another process serves the same directory.
    pub(crate) async fn open(
        options: EngineOptions,
        mut store: DescriptorStore,
    ) -> anyhow::Result<Arc<Self>> {
        let front = choose(options.front, options.cache.path());
        tracing::info!(?front, "image trees are shown");
        let layers = ServedLayers::new(&options, front);
        let images = Arc::new(LoadedImages::new(&options));
        let lingering = Lingering::new();
        let trees = if front == Front::Fuse {
            store.remove_unclaimed()?;
            takeover::Trees::new()
        } else {
            let records = store.is_present().then(|| Records::open(&options.root));
            takeover::open_session(&layers, &images, &lingering, store, records.transpose()?).await?
        };
        let starts = options
            .uses_profiles
            .then(|| Arc::new(Starts::new(&options, &images, &layers)));
        if let Some(fill) = options.fill {
            trees
                .values()
                .for_each(|tree| tree.fill(fill, &Handle::current()));
        }
        let wholes = Arc::new(Wholes::new(&options, &images, &layers));
        Ok(Arc::new(Self {
            cache: options.cache,
            images,
            trees: Mutex::new(trees),
            lingering,
            starts,
            fill: options.fill,
            wholes,
            layers,
            runtime: Handle::current(),
        }))
    }

    fn trees(&self) -> MutexGuard<'_, takeover::Trees> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves what is mounted to the next process of the service, and tells whether it did: there has to be somebody who
    /// keeps the session meanwhile. To be followed by the end of this process.
    pub(crate) async fn leave(&self) -> bool {
        self.lingering.finish().await;
        if let Some(starts) = &self.starts {
            starts.expect_none();
        }
        let left = self.layers.leave();
        if left {
            // Dropping them would unmount them.
            std::mem::forget(std::mem::take(&mut *self.trees()));
        }
        left
    }

    async fn find_layer(&self, request: &LayerRequest) -> anyhow::Result<Option<RemoteLayer>> {
        if request.parents.contains(&ParentLayer::Ordinary) {
            return Ok(None);
        }
        let key = ImageKey::new(&request.reference, request.manifest_digest);
        let mut found = self.images.get(&key).await?;
        let position = |image: &images::Loaded| image.position_of(&request.target);
        if key.manifest.is_none() && found.as_deref().and_then(position).is_none() {
            // A tag may have moved since.
            self.images.forget(&key);
            found = self.images.get(&key).await?;
        }
        let Some(image) = found else { return Ok(None) };
        let at = position(&image)
            .with_context(|| format!("{} has no layer {}", request.reference, request.target))?;
        let layer = &image.image.layers[at];
        if request
            .layer_digest
            .is_some_and(|digest| digest != layer.descriptor.digest)
        {
            return Ok(None);
        }
        if let Some(starts) = self.starts.as_ref().filter(|_| image.announce()) {
            self.runtime.spawn(starts.clone().expect(image.clone()));
        }
        Ok(Some(RemoteLayer {
            reference: request.reference.clone(),
            manifest_digest: image.image.manifest_digest,
            layer_digest: layer.descriptor.digest,
            plain_layer: layer.listed,
        }))
    }

    async fn show(&self, tree: &TreeRequest, target: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(
            !tree.keeps_whiteouts,
            "an image tree over unpacked layers cannot be shown"
        );
        if self.check(target).await.is_ok() {
            return Ok(());
        }
        self.hide(target).await?;
        let mut stack: Vec<LazyLayer> = Vec::with_capacity(tree.layers.len());
        for layer in &tree.layers {
            stack.push(self.images.layer(layer).await?);
        }
        let image = match tree.layers.last() {
            Some(top) => self.images.of_layer(top).await?,
            None => None,
        };
        let shown = image.clone();
        let (cache, layers) = (self.cache.clone(), self.layers.clone());
        let (runtime, tree_request, place) = (self.runtime.clone(), tree.clone(), target.to_owned());
        let mounted = spawn_blocking(move || {
            let written = image.and_then(|image| image.take_tree(&stack));
            let (tree_file, merged) = written.map(|written| (written.file, written.tree)).unzip();
            let request = TreeMount {
                tree: &tree_request,
                stack: &stack,
                tree_file,
                target: &place,
            };
            let mounted = MountedTree::mount(request, &cache, &layers, &runtime)?;
            anyhow::Ok((mounted, merged))
        });
        let (mounted, merged) = mounted.await??;
        tracing::info!(
            tree = tree.name(),
            layers = tree.layers.len(),
            milliseconds = mounted.mount_time.as_millis(),
            "mounted an image tree"
        );
        if let (Some(starts), Some(top)) = (&self.starts, tree.layers.last()) {
            starts.mounted(top, mounted.mount_time);
        }
        if let (Some(starts), Some(image)) = (&self.starts, shown.filter(|_| mounted.is_by_kernel())) {
            let pages = starts.clone().read_pages_ahead(image, merged, target.to_owned());
            mounted.accompany(pages, &self.runtime);
        }
        if let Some(fill) = self.fill {
            mounted.fill(fill, &self.runtime);
        }
        self.trees().insert(target.to_owned(), Arc::new(mounted));
        Ok(())
    }

    async fn check(&self, target: &Path) -> anyhow::Result<()> {
        let tree = self.trees().get(target).cloned();
        let tree = tree.context("it is not mounted by this process")?;
        let target = target.to_owned();
        spawn_blocking(move || tree.check(&target)).await?
    }

    async fn hide(&self, target: &Path) -> anyhow::Result<()> {
        let tree = self.trees().remove(target);
        let (target, lingering) = (target.to_owned(), self.lingering.clone());
        let unmounted = spawn_blocking(move || {
            if let Some(tree) = tree.and_then(Arc::into_inner) {
                tree.unmount(&lingering)?;
            }
            trees::clear(&target)
        });
        unmounted.await?
    }
}

/// The front end that this host can have.
fn choose(front: Front, cache: &Path) -> Front {
    if front != Front::Auto {
        return front;
    }
    let support = probe(cache);
    if support.file_backed {
        return Front::Erofs;
    }
    tracing::warn!(
        reason = support.reason,
        "this host cannot mount image trees with EROFS; using FUSE"
    );
    Front::Fuse
}

impl Images for Engine {
    fn resolve<'a>(
        &'a self,
        request: &'a LayerRequest,
    ) -> BoxFuture<'a, Result<Option<RemoteLayer>, EngineError>> {
        Box::pin(async move { self.find_layer(request).await.map_err(EngineError::from) })
    }

    fn mount_tree<'a>(
        &'a self,
        tree: &'a TreeRequest,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(async move { self.show(tree, target).await.map_err(EngineError::from) })
    }

    fn check_tree<'a>(
        &'a self,
        _: &'a TreeRequest,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(async move { self.check(target).await.map_err(EngineError::from) })
    }

    fn unmount_tree<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(async move { self.hide(target).await.map_err(EngineError::from) })
    }

    fn idle_tree<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, IdleTree> {
        let tree = self.trees().get(target).cloned();
        // What a mounted tree has of its layers as files cannot be evicted, so it would be others' chunks that go.
        let tree = tree.filter(|_| !self.cache.is_nearly_full());
        Box::pin(async move {
            let Some(tree) = tree else { return IdleTree::GiveUp };
            match spawn_blocking(move || tree.is_outdated()).await {
                Ok(true) => IdleTree::Renew,
                Ok(false) => IdleTree::Keep,
                Err(_) => IdleTree::GiveUp,
            }
        })
    }

    fn usage<'a>(&'a self, layer: &'a RemoteLayer) -> BoxFuture<'a, Result<Usage, EngineError>> {
        let (cache, diff_id, blob) = (self.cache.clone(), layer.plain_layer, layer.layer_digest);
        Box::pin(async move {
            let (bytes, inodes) = spawn_blocking(move || cache.layer_usage(&diff_id, &blob)).await?;
            Ok(Usage { bytes, inodes })
        })
    }

    fn container_prepared(&self, start: &ContainerStart) {
        if let Some(starts) = &self.starts {
            self.runtime.spawn(starts.clone().begin(start.layers.clone()));
        }
        self.runtime.spawn(self.wholes.clone().begin(start.clone()));
    }

    fn forget(&self, layer: &RemoteLayer) {
        self.images
            .forget(&ImageKey::new(&layer.reference, Some(layer.manifest_digest)));
    }

    fn can_map_ids(&self) -> bool {
        self.layers.front() == Front::Erofs
    }
}

/// ChainIDs of a stack, from the lowest layer to all of them.
fn chain_ids(layers: &[LazyLayer]) -> impl Iterator<Item = ChainId> {
    layers.iter().scan(None, |chain, layer| {
        *chain = Some(ChainId::extend(*chain, layer.listed));
        *chain
    })
}
