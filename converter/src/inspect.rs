//! What the documents of an image say, without its layers.
//!
//! Unlike a conversion this never stops at what it cannot use: a foreign layer, an attestation or a missing manifest is
//! shown as what it is. Of the layers only their indexes are read, to tell their plain length and chunks.

use serde::Serialize;
use serde_json::Value;
use sluice_format::{BlobDigest, DiffId, Digest, Limits, artifact};
use sluice_storage::documents::ImageIndex;
use sluice_storage::{Descriptor, Manifest, ManifestName, Platform, Repository};

use crate::convert::{SourceLayer, documents, find_index};
use crate::error::describe;
use crate::report::as_text;
use crate::{Error, Source};

/// What a name leads to.
#[derive(Clone, Debug, Serialize)]
pub struct InspectReport {
    /// The image as it was named.
    pub name: String,
    /// Media type of the manifest or image index.
    pub media_type: String,
    /// Its digest.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// The manifests, in the order of the image index.
    pub manifests: Vec<InspectedManifest>,
}

/// One manifest.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedManifest {
    /// `os/architecture[/variant]`, where the image index or the config says so.
    pub platform: Option<String>,
    /// Media type.
    pub media_type: String,
    /// Digest.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// Digest of the config, of a container image.
    pub image_id: Option<String>,
    /// The config's `config` object: entry point, environment and so on.
    pub run: Option<Value>,
    /// The layers, bottom first.
    pub layers: Vec<InspectedLayer>,
    /// Why it cannot be converted.
    pub not_convertible: Option<String>,
}

impl InspectedManifest {
    /// Whether every layer has a layer index, so that the image can be mounted lazily.
    pub fn is_lazy(&self) -> bool {
        self.not_convertible.is_none() && self.layers.iter().all(|layer| layer.index.is_some())
    }
}

/// One layer.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedLayer {
    /// Digest of the blob.
    #[serde(serialize_with = "as_text")]
    pub digest: BlobDigest,
    /// Media type.
    pub media_type: String,
    /// Length of the blob in bytes.
    pub stored_len: u64,
    /// Identity of the plain layer, where the config lists it.
    pub diff_id: Option<String>,
    /// Its layer index, when it has a usable one.
    pub index: Option<InspectedIndex>,
    /// Why the layer index that is there cannot be used.
    pub index_problem: Option<String>,
}

/// One layer index.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct InspectedIndex {
    /// Stored length of the index in bytes.
    pub stored_len: u64,
    /// Length of the plain layer in bytes.
    pub plain_len: u64,
    /// Number of chunks.
    pub chunks: usize,
}

/// Describes the image, or only its manifest for `platform`.
///
/// # Errors
/// What hinders reading the manifest or image index that the name leads to.
pub async fn inspect(
    source: &Source,
    platform: Option<&Platform>,
    limits: &Limits,
) -> Result<InspectReport, Error> {
    let root = source.repository().fetch_manifest(source.name()).await?;
    let mut manifests = Vec::new();
    if artifact::is_image_index(&root.media_type) {
        let index = ImageIndex::parse(&root.bytes, limits)?;
        let chosen = platform.map(|platform| platform.choose(&index)).transpose()?;
        for entry in index
            .manifests
            .iter()
            .filter(|entry| chosen.is_none_or(|chosen| chosen == *entry))
        {
            let platform = entry.platform.as_ref().map(ToString::to_string);
            manifests.push(inspect_entry(source.repository(), &entry.descriptor, platform, limits).await);
        }
    } else {
        manifests.push(inspect_manifest(source.repository(), root.clone(), None, limits).await?);
    }
    Ok(InspectReport {
        name: source.to_string(),
        media_type: root.media_type,
        digest: root.digest,
        manifests,
    })
}

async fn inspect_entry(
    repository: &dyn Repository,
    entry: &Descriptor,
    platform: Option<String>,
    limits: &Limits,
) -> InspectedManifest {
    let name = ManifestName::Digest(entry.digest.0);
    let found = match repository.fetch_manifest(&name).await {
        Ok(manifest) => inspect_manifest(repository, manifest, platform.clone(), limits).await,
        Err(error) => Err(error.into()),
    };
    found.unwrap_or_else(|error| InspectedManifest {
        platform,
        media_type: entry.media_type.clone(),
        digest: entry.digest.0,
        image_id: None,
        run: None,
        layers: Vec::new(),
        not_convertible: Some(error.to_string()),
    })
}

async fn inspect_manifest(
    repository: &dyn Repository,
    manifest: Manifest,
    platform: Option<String>,
    limits: &Limits,
) -> Result<InspectedManifest, Error> {
    let document = documents::parse("manifest", &manifest.bytes)?;
    let mut not_convertible = documents::why_no_image(&document);
    let mut inspected = InspectedManifest {
        platform,
        media_type: manifest.media_type,
        digest: manifest.digest,
        image_id: None,
        run: None,
        layers: Vec::new(),
        not_convertible: None,
    };
    let mut diff_ids = Vec::new();
    if not_convertible.is_none() {
        let config = documents::descriptor(&document["config"], "config descriptor")?;
        let bytes = repository.fetch_blob(&config, limits.manifest_len).await?;
        let config_document = documents::parse("image config", &bytes)?;
        diff_ids = documents::diff_ids(&config_document)?;
        inspected.image_id = Some(config.digest.to_string());
        inspected.run = config_document.get("config").cloned();
        inspected.platform = inspected
            .platform
            .or_else(|| documents::platform_text(&config_document));
        not_convertible = documents::layers(&document, limits)
            .err()
            .map(|error| describe(&error));
    }
    for (at, layer) in documents::array(&document, "layers").iter().enumerate() {
        let layer = documents::descriptor(layer, "layer descriptor")?;
        inspected
            .layers
            .push(inspect_layer(repository, layer, diff_ids.get(at).copied(), limits).await?);
    }
    inspected.not_convertible = not_convertible;
    Ok(inspected)
}

async fn inspect_layer(
    repository: &dyn Repository,
    descriptor: Descriptor,
    diff_id: Option<DiffId>,
    limits: &Limits,
) -> Result<InspectedLayer, Error> {
    let mut inspected = InspectedLayer {
        digest: descriptor.digest,
        media_type: descriptor.media_type.clone(),
        stored_len: descriptor.size,
        diff_id: diff_id.map(|diff_id| diff_id.to_string()),
        index: None,
        index_problem: None,
    };
    let Some(diff_id) = diff_id else {
        return Ok(inspected);
    };
    match find_index(repository, &SourceLayer { descriptor, diff_id }, limits).await {
        Ok(None) => {}
        Ok(Some(Ok(found))) => {
            inspected.index = Some(InspectedIndex {
                stored_len: found.location.stored_len,
                plain_len: found.index.plain_len(),
                chunks: found.index.chunks.chunks().len(),
            });
        }
        Ok(Some(Err(reason))) => inspected.index_problem = Some(reason),
        Err(error) => inspected.index_problem = Some(describe(&error)),
    }
    Ok(inspected)
}
