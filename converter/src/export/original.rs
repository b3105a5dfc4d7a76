//! Every blob with its very digest.
//!
//! Blobs come first, several at once and the largest first, then manifests from the leaves up, and the name last: a target never names what
//! it lacks.

use std::cmp::Reverse;
use std::collections::HashMap;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use sluice_format::BlobDigest;
use sluice_storage::{Descriptor, ErrorKind, Manifest, ManifestName};

use super::{BLOBS_AT_ONCE, Exporter, plain_layer};
use crate::Error;
use crate::convert::Plan;
use crate::report::{ExportedBlob, Origin, Outcome};
use crate::transfer::{copy, offer};

impl Exporter<'_> {
    /// Brings everything to the target.
    pub(super) async fn export_original(&self, plan: &Plan) -> Result<Vec<ExportedBlob>, Error> {
        let blobs = distinct(plan);
        let stored_len = blobs.iter().map(|blob| blob.size).sum();
        self.progress.planned(blobs.len(), stored_len);
        // Boxed here and now: a stream over the closure is not `Send` for every lifetime.
        let moves: Vec<BoxFuture<'_, Result<ExportedBlob, Error>>> = blobs
            .into_iter()
            .map(|blob| self.move_blob(blob).boxed())
            .collect();
        let mut moved: Vec<ExportedBlob> = stream::iter(moves)
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_collect()
            .await?;
        for image in plan.images() {
            moved.push(self.put_config(&image.config).await?);
        }
        let (root, below) = manifests(plan);
        for manifest in below {
            let name = ManifestName::Digest(manifest.digest);
            let bytes = manifest.bytes.clone();
            let to = self.target.repository();
            to.put_manifest(&name, &manifest.media_type, bytes).await?;
        }
        self.target.put_root(&root.media_type, root.bytes.clone()).await?;
        Ok(moved)
    }

    async fn move_blob(&self, blob: &Descriptor) -> Result<ExportedBlob, Error> {
        self.progress.layer_started(blob.digest, blob.size);
        let origin = self.bring(blob).await.map_err(|error| told(error, blob.digest))?;
        let outcome = match origin {
            Origin::Present => Outcome::Mounted,
            Origin::Cache | Origin::Source => Outcome::Kept,
        };
        self.progress.layer_finished(blob.digest, outcome);
        Ok(ExportedBlob::new(blob.digest, blob.size, origin))
    }

    async fn bring(&self, blob: &Descriptor) -> Result<Origin, Error> {
        if offer(self.source, self.target, &blob.digest).await?.is_some() {
            return Ok(Origin::Present);
        }
        let to = self.target.repository();
        let advanced = |len| self.progress.layer_advanced(blob.digest, len);
        if let Ok(local) = self.cached(plain_layer(blob.digest)).await {
            match copy(&local, to, &advanced).await {
                Ok(()) => return Ok(Origin::Cache),
                Err(error @ (Error::Corrupt { .. } | Error::Unreadable { .. })) => {
                    tracing::warn!(layer = %blob.digest, %error, "the cache cannot give a layer; it is fetched");
                }
                Err(error) => return Err(error),
            }
        }
        copy(&self.source.repository().open_blob(blob), to, &advanced).await?;
        Ok(Origin::Source)
    }
}

/// The error of a layer; one that may be made up for says how.
fn told(error: Error, digest: BlobDigest) -> Error {
    match error {
        Error::Unreadable { place, source, .. }
            if matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::Unavailable | ErrorKind::Denied
            ) =>
        {
            Error::NoOriginal {
                digest,
                place,
                source,
            }
        }
        error => error.of_layer(digest),
    }
}

/// All blobs but configs, each once, the largest first.
fn distinct(plan: &Plan) -> Vec<&Descriptor> {
    let layers = plan.images().into_iter().flat_map(|image| &image.layers);
    let of_copies = plan.copies().into_iter().flat_map(|copy| &copy.blobs);
    let all = layers.map(|layer| &layer.descriptor).chain(of_copies);
    let distinct: HashMap<BlobDigest, &Descriptor> = all.map(|blob| (blob.digest, blob)).collect();
    let mut blobs: Vec<&Descriptor> = distinct.into_values().collect();
    blobs.sort_by_key(|blob| (Reverse(blob.size), blob.digest.0));
    blobs
}

/// The document that the name leads to, and all below it, each after what it names.
fn manifests(plan: &Plan) -> (&Manifest, Vec<&Manifest>) {
    match plan {
        Plan::Image(image) => (&image.manifest, Vec::new()),
        Plan::Copy(copy) => (&copy.manifest, Vec::new()),
        Plan::Index(index) => {
            let mut below = Vec::new();
            for (root, rest) in index.entries.iter().map(manifests) {
                below.extend(rest);
                below.push(root);
            }
            (&index.manifest, below)
        }
    }
}
