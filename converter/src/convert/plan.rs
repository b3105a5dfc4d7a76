//! What is to be converted: the documents of the source, read and checked before any layer is touched.
//!
//! An image index is planned entry by entry and kept whole. An entry that is not a container image (an attestation, a
//! signature) is planned to be copied unchanged with its blobs.

use futures_util::future::BoxFuture;
use serde_json::Value;
use sluice_format::{BlobDigest, DiffId, Digest, Limits, artifact};
use sluice_storage::documents::{ImageIndex, ImageIndexEntry};
use sluice_storage::{Descriptor, Manifest, ManifestName, Platform, Repository};

use super::documents;
use crate::Error;

/// Image indexes within image indexes that are followed. The specification allows nesting; tools write one level.
const INDEX_DEPTH_MAX: usize = 4;

/// Entries of one image index. The largest public ones have about twenty.
const INDEX_ENTRIES_MAX: usize = 1000;

/// A manifest or image index of the source, and what becomes of it.
#[derive(Debug)]
pub(crate) enum Plan {
    Image(ImagePlan),
    Copy(CopyPlan),
    Index(IndexPlan),
}

/// An image whose layers are converted.
#[derive(Debug)]
pub(crate) struct ImagePlan {
    pub(crate) manifest: Manifest,
    pub(crate) document: Value,
    pub(crate) config: Descriptor,
    pub(crate) platform: Option<String>,
    pub(crate) layers: Vec<SourceLayer>,
}

/// A layer of the source; the pair names what a conversion of it has to yield.
#[derive(Clone, Debug)]
pub(crate) struct SourceLayer {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: DiffId,
}

impl SourceLayer {
    /// Two layers with one key are converted once.
    pub(crate) fn key(&self) -> (BlobDigest, DiffId) {
        (self.descriptor.digest, self.diff_id)
    }
}

/// A manifest that is copied as it is, with all its blobs.
#[derive(Debug)]
pub(crate) struct CopyPlan {
    pub(crate) manifest: Manifest,
    pub(crate) blobs: Vec<Descriptor>,
}

/// An image index and its entries in order.
#[derive(Debug)]
pub(crate) struct IndexPlan {
    pub(crate) manifest: Manifest,
    pub(crate) document: Value,
    pub(crate) entries: Vec<Plan>,
}

impl Plan {
    /// Digest of the manifest or image index.
    pub(crate) fn digest(&self) -> Digest {
        match self {
            Self::Image(image) => image.manifest.digest,
            Self::Copy(copy) => copy.manifest.digest,
            Self::Index(index) => index.manifest.digest,
        }
    }

    /// All images, in the order of the image index.
    pub(crate) fn images(&self) -> Vec<&ImagePlan> {
        match self {
            Self::Image(image) => vec![image],
            Self::Copy(_) => Vec::new(),
            Self::Index(index) => index.entries.iter().flat_map(Self::images).collect(),
        }
    }

    /// All manifests that are copied unchanged.
    pub(crate) fn copies(&self) -> Vec<&CopyPlan> {
        match self {
            Self::Image(_) => Vec::new(),
            Self::Copy(copy) => vec![copy],
            Self::Index(index) => index.entries.iter().flat_map(Self::copies).collect(),
        }
    }
}

/// Reads what `name` leads to. With a `platform`, only that image of an image index.
///
/// # Errors
/// [`Error::Refused`] when no image is of the platform; [`Error::Unsupported`] when there is nothing to convert;
/// otherwise what hinders reading, or what is wrong with a document.
pub(crate) async fn read(
    source: &dyn Repository,
    name: &ManifestName,
    platform: Option<&Platform>,
    limits: &Limits,
) -> Result<Plan, Error> {
    let planner = Planner { source, limits };
    let root = source.fetch_manifest(name).await?;
    let plan = match platform {
        None => planner.plan(root, 0).await?,
        Some(platform) => planner.plan_one(root, platform).await?,
    };
    of_images(plan)
}

/// Reads what `name` leads to. An image index is planned with the image for `platform` as its only entry.
///
/// # Errors
/// As [`read`].
pub(crate) async fn read_sparse(
    source: &dyn Repository,
    name: &ManifestName,
    platform: &Platform,
    limits: &Limits,
) -> Result<Plan, Error> {
    let planner = Planner { source, limits };
    let root = source.fetch_manifest(name).await?;
    let plan = planner.plan_one(root.clone(), platform).await?;
    if !artifact::is_image_index(&root.media_type) {
        return of_images(plan);
    }
    let document = documents::parse("manifest", &root.bytes)?;
    of_images(Plan::Index(IndexPlan {
        manifest: root,
        document,
        entries: vec![plan],
    }))
}

/// Refuses a plan without any container image.
fn of_images(plan: Plan) -> Result<Plan, Error> {
    if plan.images().is_empty() {
        let reason = match &plan {
            Plan::Copy(copy) => documents::why_no_image(&documents::parse("manifest", &copy.manifest.bytes)?)
                .unwrap_or_default(),
            Plan::Image(_) | Plan::Index(_) => "no entry of its image index is one".to_owned(),
        };
        return Err(
            Error::Unsupported(format!("is not a container image: {reason}")).of_manifest(plan.digest())
        );
    }
    Ok(plan)
}

struct Planner<'a> {
    source: &'a dyn Repository,
    limits: &'a Limits,
}

impl Planner<'_> {
    fn plan(&self, manifest: Manifest, depth: usize) -> BoxFuture<'_, Result<Plan, Error>> {
        Box::pin(async move {
            let digest = manifest.digest;
            let document =
                documents::parse("manifest", &manifest.bytes).map_err(|e| e.of_manifest(digest))?;
            if artifact::is_image_index(&manifest.media_type) {
                self.plan_index(manifest, document, depth).await.map(Plan::Index)
            } else if documents::why_no_image(&document).is_none() {
                let image = self.plan_image(manifest, document).await;
                image.map(Plan::Image).map_err(|e| e.of_manifest(digest))
            } else {
                let blobs = blobs_of(&document).map_err(|e| e.of_manifest(digest))?;
                Ok(Plan::Copy(CopyPlan { manifest, blobs }))
            }
        })
    }

    async fn plan_index(
        &self,
        manifest: Manifest,
        document: Value,
        depth: usize,
    ) -> Result<IndexPlan, Error> {
        let listed = documents::array(&document, "manifests");
        if depth >= INDEX_DEPTH_MAX || listed.len() > INDEX_ENTRIES_MAX {
            let reason = format!(
                "image indexes with more than {INDEX_ENTRIES_MAX} entries or {INDEX_DEPTH_MAX} levels are not read"
            );
            return Err(Error::Unsupported(reason).of_manifest(manifest.digest));
        }
        let mut entries = Vec::with_capacity(listed.len());
        for entry in listed {
            let found = self.fetch_entry(entry).await?;
            entries.push(self.plan(found, depth + 1).await?);
        }
        Ok(IndexPlan {
            manifest,
            document,
            entries,
        })
    }

    async fn fetch_entry(&self, entry: &Value) -> Result<Manifest, Error> {
        let digest = entry.get("digest").and_then(Value::as_str).unwrap_or_default();
        let digest: Digest = digest.parse()?;
        let manifest = self.source.fetch_manifest(&ManifestName::Digest(digest)).await;
        manifest.map_err(|error| {
            if error.kind() == sluice_storage::ErrorKind::NotFound {
                let platform = entry
                    .get("platform")
                    .and_then(documents::platform_text)
                    .unwrap_or_default();
                let hint = format!("the source lacks this manifest ({platform}); choose one platform");
                return Error::Refused(hint).of_manifest(digest);
            }
            Error::from(error).of_manifest(digest)
        })
    }

    /// The image of one platform alone.
    async fn plan_one(&self, root: Manifest, platform: &Platform) -> Result<Plan, Error> {
        let manifest = if artifact::is_image_index(&root.media_type) {
            let index = ImageIndex::parse(&root.bytes, self.limits)?;
            let digest = platform.choose(&index)?.descriptor.digest.0;
            self.source.fetch_manifest(&ManifestName::Digest(digest)).await?
        } else {
            root
        };
        let plan = self.plan(manifest, INDEX_DEPTH_MAX).await?;
        if let Plan::Image(image) = &plan {
            check_platform(image, platform)?;
        }
        Ok(plan)
    }

    async fn plan_image(&self, manifest: Manifest, document: Value) -> Result<ImagePlan, Error> {
        let config = documents::descriptor(&document["config"], "config descriptor")?;
        let layers = documents::layers(&document, self.limits)?;
        let config_bytes = self.source.fetch_blob(&config, self.limits.manifest_len).await?;
        let config_document = documents::parse("image config", &config_bytes)?;
        let diff_ids = documents::diff_ids(&config_document)?;
        if diff_ids.len() != layers.len() {
            let reason = format!("names {} layers, the manifest {}", diff_ids.len(), layers.len());
            return Err(Error::document("image config", reason));
        }
        let layers = layers
            .into_iter()
            .zip(diff_ids)
            .map(|(descriptor, diff_id)| SourceLayer { descriptor, diff_id })
            .collect();
        Ok(ImagePlan {
            manifest,
            document,
            config,
            platform: documents::platform_text(&config_document),
            layers,
        })
    }
}

/// Refuses an image whose config says that it is for another platform.
fn check_platform(image: &ImagePlan, platform: &Platform) -> Result<(), Error> {
    let Some(Ok(found)) = image.platform.as_deref().map(str::parse) else {
        return Ok(());
    };
    let entry = ImageIndexEntry {
        descriptor: image.config.clone(),
        platform: Some(found),
    };
    platform.choose(&ImageIndex {
        manifests: vec![entry],
    })?;
    Ok(())
}

/// All blobs that a manifest of any kind names. OCI 1.0 artifact manifests call them `blobs`.
fn blobs_of(manifest: &Value) -> Result<Vec<Descriptor>, Error> {
    let listed = ["layers", "blobs"]
        .into_iter()
        .flat_map(|field| documents::array(manifest, field));
    manifest
        .get("config")
        .into_iter()
        .chain(listed)
        .map(|blob| documents::descriptor(blob, "blob descriptor"))
        .collect()
}
