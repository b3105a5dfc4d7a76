//! Layers that come whole, once a container starts on them.
//!
//! Which ones they are is the business of the policy in `sluice-storage`; here are the numbers that it decides from, and what was asked for: by the
//! options of the service, or by a label of the container's snapshot or of a layer. What is decided is fetched beside the start, in the lane
//! of fills, and given up when nobody has the image mounted any more. An image that is coming already is not fetched twice.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_format::Digest;
use sluice_snapshotter::images::ContainerStart;
use sluice_storage::{Cache, Fetcher, LayerMode, LazyLayer, PlainLayer, ProfileStore};

use super::EngineOptions;
use super::images::{ImageKey, LoadedImages};
use super::layers::ServedLayers;
use crate::open_image::choose_layers;

/// How often it is looked whether an image is still mounted.
const LOOK: Duration = Duration::from_secs(1);

/// Everything that comes whole.
#[derive(Debug)]
pub(super) struct Wholes {
    mode: LayerMode,
    uses_profiles: bool,
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    images: Arc<LoadedImages>,
    layers: Arc<ServedLayers>,
    /// Image IDs of what is coming, and what was asked for.
    coming: Mutex<HashSet<(Digest, LayerMode)>>,
}

impl Wholes {
    pub(super) fn new(
        options: &EngineOptions,
        images: &Arc<LoadedImages>,
        layers: &Arc<ServedLayers>,
    ) -> Self {
        Self {
            mode: options.layer_mode,
            uses_profiles: options.uses_profiles,
            cache: options.cache.clone(),
            fetcher: options.fetcher.clone(),
            images: images.clone(),
            layers: layers.clone(),
            coming: Mutex::default(),
        }
    }

    fn coming(&self) -> MutexGuard<'_, HashSet<(Digest, LayerMode)>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container is about to start: decides, and brings what comes whole.
    pub(super) async fn begin(self: Arc<Self>, start: ContainerStart) {
        let Some(top) = start.layers.last() else { return };
        let key = ImageKey::new(&top.reference, Some(top.manifest_digest));
        let image = match self.images.get(&key).await {
            Ok(Some(image)) if image.image.layers.len() == start.layers.len() => image,
            Ok(_) => return,
            Err(error) => return tracing::debug!(image = top.reference, %error, "no layer comes whole"),
        };
        let Some(served) = self.layers.find(&image.image.layers) else {
            return;
        };
        let known = match self.uses_profiles {
            true => image.profile(ProfileStore::new(self.cache.path())).await,
            false => None,
        };
        let plain: Vec<Arc<PlainLayer>> = served.iter().map(|layer| layer.plain.clone()).collect();
        let mode = self.mode_of(&start);
        let image_and_name = (&image.image, top.reference.as_str());
        let wanted = choose_layers(mode, image_and_name, &plain, known.as_ref(), &self.fetcher);
        drop((plain, served));
        let coming = (image.image.image_id, mode);
        if wanted.is_empty() || !self.coming().insert(coming) {
            return;
        }
        tokio::select! {
            () = sluice_storage::fill(&wanted, None) => {}
            () = self.unmounted(&image.image.layers) => {}
        }
        self.coming().remove(&coming);
    }

    /// What was asked for.
    fn mode_of(&self, start: &ContainerStart) -> LayerMode {
        let Some(asked) = &start.layer_mode else {
            return self.mode;
        };
        asked.parse().unwrap_or_else(|reason: String| {
            tracing::warn!(snapshot = start.key, reason, "a label is ignored");
            self.mode
        })
    }

    /// Waits until nobody has these layers mounted.
    async fn unmounted(&self, layers: &[LazyLayer]) {
        while self.layers.find(layers).is_some() {
            tokio::time::sleep(LOOK).await;
        }
    }
}
