//! The plain layers that mounted trees lie on, each served once.
//!
//! A tree takes a [`LayerLease`] on each of its layers. The first one opens the layer, the last one that is given back closes
//! it and takes its file out of the session. For EROFS there is one hidden session for all layers. It may be that of an
//! earlier process, which asks for layers at once: they are leased before ([`super::takeover`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::Context as _;
use sluice_format::{DiffId, Digest};
use sluice_fuse::plain::LayerDirectory;
use sluice_fuse::session::Origin;
use sluice_fuse::{DescriptorStore, Front, Layer, MountHelper, Session, SessionOptions, complete_device};
use sluice_snapshotter::images::TreeRequest;
use sluice_storage::{Cache, Fetcher, LazyLayer, PlainLayer, PlainLayerOptions, ReadPolicy};
use tokio::runtime::Handle;

use super::EngineOptions;
use super::records::{OwnRecord, Records, TreeRecord};
use super::starts::LayerWatch;

/// Name of the session in the service manager's store.
pub(super) const SESSION: &str = "layers";

/// A layer that is read.
#[derive(Debug)]
pub(super) struct ServedLayer {
    pub(super) plain: Arc<PlainLayer>,
    /// Who wants to know what is read.
    pub(super) watch: Arc<LayerWatch>,
    /// How it is cut.
    pub(super) index_digest: Digest,
}

/// The session of all layers. The connection ends with it, unless somebody keeps it.
#[derive(Debug)]
struct Hidden {
    session: Session,
    /// Keeps the session when this process ends.
    keeper: Option<DescriptorStore>,
}

/// What mounts need of the session.
#[derive(Debug)]
struct Place {
    root: PathBuf,
    /// Its device number. No other session gets it as long as a mounted tree lies on this one.
    device: u64,
    /// Where trees are recorded, when a successor can go on with them.
    records: Option<Records>,
}

/// All layers that are read.
#[derive(Debug)]
pub(super) struct ServedLayers {
    front: Front,
    mount_helper: Arc<MountHelper>,
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    policy: ReadPolicy,
    runtime: Handle,
    directory: Arc<LayerDirectory>,
    hidden: Mutex<Option<Hidden>>,
    /// Empty without a session.
    place: OnceLock<Place>,
    /// Whether a successor goes on: from then on no layer is taken out of the session.
    leaving: AtomicBool,
    /// Each with the number of its leases.
    served: Mutex<HashMap<DiffId, (Arc<ServedLayer>, usize)>>,
}

impl ServedLayers {
    /// No layers, and no session.
    pub(super) fn new(options: &EngineOptions, front: Front) -> Arc<Self> {
        Arc::new(Self {
            front,
            mount_helper: options.mount_helper.clone(),
            cache: options.cache.clone(),
            fetcher: options.fetcher.clone(),
            policy: options.policy,
            runtime: Handle::current(),
            directory: Arc::new(LayerDirectory::new()),
            hidden: Mutex::default(),
            place: OnceLock::new(),
            leaving: AtomicBool::new(false),
            served: Mutex::default(),
        })
    }

    /// Goes on with the session that `store` holds, or makes one. Without `records` the session ends with this process. Blocks.
    ///
    /// # Errors
    /// When the host cannot have the session.
    pub(super) fn open_session(
        &self,
        mut store: DescriptorStore,
        records: Option<Records>,
    ) -> anyhow::Result<Origin> {
        let (directory, options) = (self.directory.clone(), SessionOptions::default());
        let opened = Session::hidden_or_adopted(&mut store, SESSION, directory, &options, &self.runtime);
        let (session, origin) = opened?;
        let root = session.root();
        let device = session.device_number().context("looking at the FUSE session")?;
        let keeper = records.is_some().then_some(store);
        *self.hidden() = Some(Hidden { session, keeper });
        // Opened once; a second place would be of no session.
        let _ = self.place.set(Place {
            root,
            device,
            records,
        });
        Ok(origin)
    }

    /// How trees are shown.
    pub(super) fn front(&self) -> Front {
        self.front
    }

    /// Who waits for the session while a tree is mounted over it.
    pub(super) fn mount_helper(&self) -> &MountHelper {
        &self.mount_helper
    }

    fn hidden(&self) -> MutexGuard<'_, Option<Hidden>> {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn served(&self) -> MutexGuard<'_, HashMap<DiffId, (Arc<ServedLayer>, usize)>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a layer, or shares it with those who have it open. Blocks on the disk.
    pub(super) fn lease(self: &Arc<Self>, layer: &LazyLayer) -> LayerLease {
        let mut served = self.served();
        let (found, leases) = served
            .entry(layer.diff_id)
            .or_insert_with(|| (Arc::new(self.serve(layer)), 0));
        *leases += 1;
        LayerLease {
            layer: found.clone(),
            layers: self.clone(),
        }
    }

    fn serve(&self, layer: &LazyLayer) -> ServedLayer {
        let watch = Arc::new(LayerWatch::default());
        let options = PlainLayerOptions {
            policy: self.policy,
            observers: vec![watch.clone()],
            ..PlainLayerOptions::default()
        };
        let cached = Some(self.cache.layer(&layer.index));
        let _runtime = self.runtime.enter();
        ServedLayer {
            plain: PlainLayer::with_options(layer, cached, &self.fetcher, options),
            watch,
            index_digest: layer.index_digest,
        }
    }

    /// The layers, if each of them is read and cut as told.
    pub(super) fn find(&self, layers: &[LazyLayer]) -> Option<Vec<Arc<ServedLayer>>> {
        let served = self.served();
        let find = |layer: &LazyLayer| {
            let (found, _) = served.get(&layer.diff_id)?;
            (found.index_digest == layer.index_digest).then(|| found.clone())
        };
        layers.iter().map(find).collect()
    }

    /// Records that `tree` is about to be mounted on `target`, where nothing may be mounted now. `None` when no successor
    /// can go on with it: then the successor mounts it anew.
    pub(super) fn record(&self, tree: &TreeRequest, target: &Path) -> Option<OwnRecord> {
        let place = self.place.get()?;
        let record = TreeRecord {
            target: target.to_owned(),
            layers: tree.layers.clone(),
            session: place.device,
            leaving: None,
        };
        let recorded = place.records.as_ref()?.put(record);
        recorded
            .inspect_err(|error| tracing::warn!(%error, "a mount is not recorded"))
            .ok()
    }

    /// Whether a recorded tree lies on the session that is served here.
    pub(super) fn carries(&self, record: &TreeRecord) -> bool {
        self.place
            .get()
            .is_some_and(|place| place.device == record.session)
    }

    /// Leaves a session that somebody keeps to a successor, which goes on with every layer of now. Tells whether there is
    /// anything to go on with: a session that nobody uses ends.
    pub(super) fn leave(&self) -> bool {
        let Some(Hidden { session, keeper }) = self.hidden().take() else {
            return false;
        };
        let Some(keeper) = keeper else { return false };
        if self.served().is_empty() {
            if let Err(error) = keeper.remove_session(SESSION) {
                tracing::warn!(%error, "the service manager keeps a FUSE session that nobody uses");
            }
            return false;
        }
        self.leaving.store(true, Ordering::SeqCst);
        session.leave();
        true
    }
}

/// Keeps a layer open.
#[derive(Debug)]
pub(super) struct LayerLease {
    layer: Arc<ServedLayer>,
    layers: Arc<ServedLayers>,
}

impl LayerLease {
    pub(super) fn plain(&self) -> &Arc<PlainLayer> {
        &self.layer.plain
    }

    /// The file that EROFS reads: that of the cache when it has every byte, else one of the session.
    pub(super) fn device(&self) -> anyhow::Result<PathBuf> {
        let layer = Layer::from(self.layer.plain.clone());
        if let Some(file) = complete_device(&layer) {
            return Ok(file);
        }
        let diff_id = layer.diff_id;
        self.show()?;
        let place = self.layers.place.get().context("there is no FUSE session")?;
        Ok(place.root.join(LayerDirectory::path_of(diff_id)))
    }

    /// Puts the layer into the session, complete or not: the kernel may have opened it there before it was.
    pub(super) fn show(&self) -> anyhow::Result<()> {
        let layer = Layer::from(self.layer.plain.clone());
        Ok(self.layers.directory.insert(layer)?)
    }
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        if self.layers.leaving.load(Ordering::SeqCst) {
            return;
        }
        let diff_id = self.layer.plain.diff_id();
        let mut served = self.layers.served();
        let Some((_, leases)) = served.get_mut(&diff_id) else {
            return;
        };
        *leases -= 1;
        if *leases == 0 {
            self.layers.directory.remove(diff_id);
            served.remove(&diff_id);
        }
    }
}
