//! An image as it is, given back whole.
//!
//! A lazily started image leaves its blobs in the registry. [`export`] brings all of them to another place, each with its very digest
//! ([`original`]): index, manifests, configs and layers; what the target has is left alone. A layer that is stored plain and complete in
//! the cache is taken from there, everything else from the source. When the source is gone, the cache still has the plain bytes of complete
//! layers: [`plain`] makes the same image of them, with the same config and DiffIDs, and another manifest.

mod original;
mod plain;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sluice_format::{BlobDigest, DiffId, Limits};
use sluice_storage::{Blob, Cache, Descriptor, Platform};
use tokio::task::spawn_blocking;

use crate::convert::{ImagePlan, Plan, read_plan, read_sparse};
use crate::error::joined;
use crate::progress::Progress;
use crate::report::{ExportReport, ExportedBlob, ExportedImage, Origin};
use crate::{Error, Source, Target};

/// Blobs under way at once; each is fetched in several ranges by itself.
const BLOBS_AT_ONCE: usize = 3;

/// In which form layers are exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerForm {
    /// As they are stored: every digest stays.
    #[default]
    Original,
    /// Uncompressed, from the cache: config and DiffIDs stay, blobs and manifest are others.
    Plain,
}

/// How to export.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// The form of the layers.
    pub form: LayerForm,
    /// The one image of an image index; `None` for all of them, or with [`LayerForm::Plain`] for that of this machine.
    pub platform: Option<Platform>,
    /// Whether the target gets the image index also when it gets one of its images only. With [`LayerForm::Original`].
    pub keeps_index: bool,
    /// Bounds on what the source may contain.
    pub limits: Limits,
}

/// Brings the image `source` to `target`. Layers that `cache` has are taken from there as far as their form allows.
///
/// # Errors
/// [`Error::NoOriginal`] naming a layer that cannot be had; [`Error::Layer`] naming one that is wrong or, with
/// [`LayerForm::Plain`], not complete in the cache; otherwise what hinders reading or writing. The target then has no new tag, and no blob
/// that does not match its digest.
pub async fn export(
    source: &Source,
    target: &Target,
    cache: Option<&Arc<Cache>>,
    options: &ExportOptions,
    progress: &dyn Progress,
) -> Result<ExportReport, Error> {
    let started = Instant::now();
    let exporter = Exporter {
        source,
        target,
        cache,
        limits: &options.limits,
        progress,
    };
    let plan = exporter.plan(options).await?;
    let (digest, blobs) = match options.form {
        LayerForm::Original => (plan.digest(), exporter.export_original(&plan).await?),
        LayerForm::Plain => exporter.export_plain(&plan).await?,
    };
    target.seal().await?;
    Ok(ExportReport {
        source: source.to_string(),
        target: target.to_string(),
        source_digest: plan.digest(),
        digest,
        images: plan.images().into_iter().map(exported).collect(),
        blobs,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn exported(image: &ImagePlan) -> ExportedImage {
    ExportedImage {
        platform: image.platform.clone(),
        source_digest: image.manifest.digest,
        image_id: image.config.digest.0,
    }
}

/// One export under way.
#[derive(Clone, Copy, Debug)]
struct Exporter<'a> {
    source: &'a Source,
    target: &'a Target,
    cache: Option<&'a Arc<Cache>>,
    limits: &'a Limits,
    progress: &'a dyn Progress,
}

impl Exporter<'_> {
    async fn plan(&self, options: &ExportOptions) -> Result<Plan, Error> {
        let (repository, name) = (self.source.repository(), self.source.name());
        match (&options.platform, options.form) {
            (Some(platform), LayerForm::Original) if options.keeps_index => {
                read_sparse(repository, name, platform, self.limits).await
            }
            (None, LayerForm::Plain) => {
                read_plan(repository, name, Some(&Platform::host()), self.limits).await
            }
            (platform, _) => read_plan(repository, name, platform.as_ref(), self.limits).await,
        }
    }

    /// A complete layer of the cache.
    async fn cached(&self, diff_id: DiffId) -> Result<Arc<dyn Blob>, Error> {
        let Some(cache) = self.cache.cloned() else {
            return Err(Error::Refused("there is no cache".to_owned()));
        };
        joined(spawn_blocking(move || Ok(cache.complete_layer(&diff_id)?)).await)
    }

    /// Stores the config of an image, which the cache may know when the registry is gone.
    async fn put_config(&self, config: &Descriptor) -> Result<ExportedBlob, Error> {
        let to = self.target.repository();
        let mut origin = Origin::Present;
        if !to.has_blob(&config.digest).await? {
            let repository = self.source.repository();
            let bytes: Bytes = repository.fetch_blob(config, self.limits.manifest_len).await?;
            let mut writer = to.begin_blob().await?;
            writer.write(bytes).await?;
            writer.finish(config.digest).await?;
            origin = Origin::Source;
        }
        Ok(ExportedBlob::new(config.digest, config.size, origin))
    }
}

/// The digest of a plain layer as that of a blob.
fn plain_blob(diff_id: DiffId) -> BlobDigest {
    BlobDigest(diff_id.0)
}

/// The layer that a blob is when it is stored plain.
fn plain_layer(blob: BlobDigest) -> DiffId {
    DiffId(blob.0)
}
