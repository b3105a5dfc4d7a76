//! The same image with uncompressed layers, from the cache alone.
//!
//! A plain layer is a tar, which is a layer blob like any other: its digest is the DiffID that the config lists. So the config and with it
//! the image ID stay, every layer is checked against its DiffID while it is copied, and only the manifest is a new one.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_format::{DiffId, Digest, artifact};
use sluice_storage::Blob;

use super::{Exporter, plain_blob};
use crate::Error;
use crate::convert::documents::{self, NewLayer};
use crate::convert::{ImagePlan, Plan};
use crate::report::{ExportedBlob, Origin, Outcome};
use crate::transfer::copy;

impl Exporter<'_> {
    /// Makes the image of what the cache has; gives the digest of its manifest.
    pub(super) async fn export_plain(&self, plan: &Plan) -> Result<(Digest, Vec<ExportedBlob>), Error> {
        let images = plan.images();
        let [image] = images[..] else {
            let reason = "name the platform whose plain layers are to be exported";
            return Err(Error::Refused(reason.to_owned()));
        };
        // All of them before any is written: what is missing shows at once.
        let mut layers: BTreeMap<DiffId, Arc<dyn Blob>> = BTreeMap::new();
        for layer in &image.layers {
            let found = self.cached(layer.diff_id).await;
            layers.insert(
                layer.diff_id,
                found.map_err(|error| error.of_layer(layer.descriptor.digest))?,
            );
        }
        let plain_len = layers.values().map(|layer| layer.stored_len()).sum();
        self.progress.planned(layers.len(), plain_len);
        let mut blobs = Vec::with_capacity(layers.len() + 1);
        for layer in layers.values() {
            blobs.push(self.put_layer(layer).await?);
        }
        blobs.push(self.put_config(&image.config).await?);
        let new = new_layers(image, &layers);
        let document = documents::replace_layers(&image.document, &new);
        let bytes = documents::to_bytes(&image.manifest, &image.document, &document)?;
        let digest = Digest::of(&bytes);
        let media_type = match digest == image.manifest.digest {
            true => &image.manifest.media_type,
            false => artifact::OCI_MANIFEST,
        };
        self.target.put_root(media_type, bytes).await?;
        Ok((digest, blobs))
    }

    async fn put_layer(&self, layer: &Arc<dyn Blob>) -> Result<ExportedBlob, Error> {
        let (digest, plain_len) = (layer.digest(), layer.stored_len());
        let to = self.target.repository();
        self.progress.layer_started(digest, plain_len);
        let mut origin = Origin::Present;
        if !to.has_blob(&digest).await? {
            let advanced = |len| self.progress.layer_advanced(digest, len);
            let copied = copy(layer, to, &advanced).await;
            copied.map_err(|error| error.of_layer(digest))?;
            origin = Origin::Cache;
        }
        self.progress.layer_finished(digest, Outcome::Kept);
        Ok(ExportedBlob::new(digest, plain_len, origin))
    }
}

/// The layers of `image` as they are stored now.
fn new_layers(image: &ImagePlan, plain: &BTreeMap<DiffId, Arc<dyn Blob>>) -> Vec<NewLayer> {
    let new = |diff_id: &DiffId| NewLayer {
        media_type: artifact::OCI_LAYER_TAR,
        digest: plain_blob(*diff_id),
        stored_len: plain.get(diff_id).map_or(0, |layer| layer.stored_len()),
        location: None,
    };
    image.layers.iter().map(|layer| new(&layer.diff_id)).collect()
}
