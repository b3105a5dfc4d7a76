//! The plain layers that mounted trees lie on, each served once.
//!
//! A tree takes a [`LayerLease`] on each of its layers. The first one opens the layer, the last one that is given back closes
//! it and takes its file out of the session. For EROFS there is one hidden session for all layers, made here and nowhere
//! else.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_format::{DiffId, Digest};
use sluice_fuse::plain::LayerDirectory;
use sluice_fuse::{Front, Layer, Session, SessionOptions, complete_device};
use sluice_storage::{Cache, Fetcher, LazyLayer, PlainLayer, PlainLayerOptions, ReadPolicy};
use tokio::runtime::Handle;

use super::EngineOptions;
use super::starts::LayerWatch;

/// A layer that is read.
#[derive(Debug)]
pub(super) struct ServedLayer {
    pub(super) plain: Arc<PlainLayer>,
    /// Who wants to know what is read.
    pub(super) watch: Arc<LayerWatch>,
    /// How it is cut.
    pub(super) index_digest: Digest,
}

/// All layers that are read.
#[derive(Debug)]
pub(super) struct ServedLayers {
    front: Front,
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    policy: ReadPolicy,
    runtime: Handle,
    directory: Arc<LayerDirectory>,
    /// Root of the session; empty without one.
    root: PathBuf,
    /// Never looked at: the connection ends with it.
    _session: Mutex<Option<Session>>,
    /// Each with the number of its leases.
    served: Mutex<HashMap<DiffId, (Arc<ServedLayer>, usize)>>,
}

impl ServedLayers {
    /// Makes the session if `front` needs one.
    pub(super) fn open(options: &EngineOptions, front: Front) -> anyhow::Result<Arc<Self>> {
        let directory = Arc::new(LayerDirectory::new());
        let runtime = Handle::current();
        let session = match front {
            Front::Fuse => None,
            Front::Erofs | Front::Auto => {
                let options = SessionOptions::default();
                Some(Session::hidden(directory.clone(), &options, &runtime)?)
            }
        };
        Ok(Arc::new(Self {
            front,
            cache: options.cache.clone(),
            fetcher: options.fetcher.clone(),
            policy: options.policy,
            runtime,
            directory,
            root: session.as_ref().map(Session::root).unwrap_or_default(),
            _session: Mutex::new(session),
            served: Mutex::default(),
        }))
    }

    /// How trees are shown.
    pub(super) fn front(&self) -> Front {
        self.front
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
        self.layers.directory.insert(layer)?;
        Ok(self.layers.root.join(LayerDirectory::path_of(diff_id)))
    }
}

impl Drop for LayerLease {
    fn drop(&mut self) {
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
