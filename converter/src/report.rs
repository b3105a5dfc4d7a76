//! What was done, in a form that prints and serialises.
//!
//! Digests are text here: reports are read by people and by scripts, not by Sluice.

use serde::{Serialize, Serializer};
use sluice_format::{BlobDigest, DiffId, Digest};

/// What happened to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Recompressed into chunks, with a layer index.
    Converted,
    /// It had a valid layer index already; its blob was copied as it is.
    Kept,
    /// As [`Outcome::Kept`], and the target took the blob from another repository or had it already.
    Mounted,
}

/// One layer of a converted image.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Digest of the source blob.
    #[serde(serialize_with = "as_text")]
    pub source_digest: BlobDigest,
    /// Stored length of the source blob in bytes.
    pub source_stored_len: u64,
    /// Digest of the new blob.
    #[serde(serialize_with = "as_text")]
    pub digest: BlobDigest,
    /// Stored length of the new blob in bytes, layer index included.
    pub stored_len: u64,
    /// Stored length of the layer index in bytes.
    pub index_stored_len: u64,
    /// Identity of the plain layer, the same before and after.
    #[serde(serialize_with = "as_text")]
    pub diff_id: DiffId,
    /// Length of the plain layer in bytes.
    pub plain_len: u64,
    /// Number of chunks.
    pub chunks: usize,
    /// What was done.
    pub outcome: Outcome,
    /// Oddities of the layer that do not hinder its use.
    pub warnings: Vec<String>,
}

/// One layer of an image that was indexed as it is.
#[derive(Clone, Debug, Serialize)]
pub struct IndexedLayerReport {
    /// Digest of its blob.
    #[serde(serialize_with = "as_text")]
    pub digest: BlobDigest,
    /// Identity of the plain layer.
    #[serde(serialize_with = "as_text")]
    pub diff_id: DiffId,
    /// Stored length of the blob in bytes.
    pub stored_len: u64,
    /// Length of the plain layer in bytes.
    pub plain_len: u64,
    /// Number of chunks.
    pub chunks: usize,
    /// Stored length of the layer index in bytes; 0 when there is none.
    pub index_stored_len: u64,
    /// Why the layer has no index: it cannot be read by ranges.
    pub refusal: Option<String>,
    /// Oddities of the layer that do not hinder its use.
    pub warnings: Vec<String>,
}

/// An image that was indexed as it is.
#[derive(Clone, Debug, Serialize)]
pub struct IndexReport {
    /// Digest of the manifest, which has not changed.
    #[serde(serialize_with = "as_text")]
    pub manifest_digest: Digest,
    /// Digest of the config.
    #[serde(serialize_with = "as_text")]
    pub image_id: Digest,
    /// Digest of the artifact with the indexes; `None` when no layer needed or got one.
    #[serde(serialize_with = "as_optional_text")]
    pub artifact_digest: Option<Digest>,
    /// The distinct layers without an index inside, bottom first.
    pub layers: Vec<IndexedLayerReport>,
    /// Time that it took.
    pub seconds: f64,
}

/// One converted image: a manifest with its layers.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    /// `os/architecture[/variant]`, where the config or the image index says so.
    pub platform: Option<String>,
    /// Digest of the source manifest.
    #[serde(serialize_with = "as_text")]
    pub source_digest: Digest,
    /// Digest of the new manifest.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// Digest of the config, the same before and after: the image ID of Docker and Podman.
    #[serde(serialize_with = "as_text")]
    pub image_id: Digest,
    /// Layers, bottom first.
    pub layers: Vec<LayerReport>,
}

/// Where the bytes of an exported blob came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// From where the image is.
    Source,
    /// From the cache.
    Cache,
    /// The target had it, or its registry took it from another repository.
    Present,
}

/// One blob of an exported image.
#[derive(Clone, Debug, Serialize)]
pub struct ExportedBlob {
    /// Its digest.
    #[serde(serialize_with = "as_text")]
    pub digest: BlobDigest,
    /// Its length in bytes.
    pub stored_len: u64,
    /// Where it came from.
    pub origin: Origin,
}

impl ExportedBlob {
    pub(crate) fn new(digest: BlobDigest, stored_len: u64, origin: Origin) -> Self {
        Self {
            digest,
            stored_len,
            origin,
        }
    }
}

/// One exported image.
#[derive(Clone, Debug, Serialize)]
pub struct ExportedImage {
    /// `os/architecture[/variant]`, where the config says so.
    pub platform: Option<String>,
    /// Digest of its manifest at the source.
    #[serde(serialize_with = "as_text")]
    pub source_digest: Digest,
    /// Digest of the config, the same at the target.
    #[serde(serialize_with = "as_text")]
    pub image_id: Digest,
}

/// What an export did.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    /// The source as it was named.
    pub source: String,
    /// The target as it was named.
    pub target: String,
    /// Digest of what the source name led to: a manifest or an image index.
    #[serde(serialize_with = "as_text")]
    pub source_digest: Digest,
    /// Digest of what the target name leads to: the same one, unless layers are exported plain.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// The images, in the order of the image index.
    pub images: Vec<ExportedImage>,
    /// Layers and configs.
    pub blobs: Vec<ExportedBlob>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Sums over the distinct layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Number of distinct layers.
    pub layers: usize,
    /// Stored length of the source blobs in bytes.
    pub source_stored_len: u64,
    /// Stored length of the new blobs in bytes.
    pub stored_len: u64,
    /// Stored length of the layer indexes in bytes, contained in `stored_len`.
    pub index_stored_len: u64,
    /// Length of the plain layers in bytes.
    pub plain_len: u64,
    /// Number of chunks.
    pub chunks: usize,
}

impl Totals {
    pub(crate) fn add(&mut self, layer: &LayerReport) {
        self.layers += 1;
        self.source_stored_len += layer.source_stored_len;
        self.stored_len += layer.stored_len;
        self.index_stored_len += layer.index_stored_len;
        self.plain_len += layer.plain_len;
        self.chunks += layer.chunks;
    }
}

/// What a conversion did.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertReport {
    /// The source as it was named.
    pub source: String,
    /// The target as it was named.
    pub target: String,
    /// Digest of what the source name led to: a manifest or an image index.
    #[serde(serialize_with = "as_text")]
    pub source_digest: Digest,
    /// Digest of the new manifest or image index.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// Converted images in the order of the image index.
    pub images: Vec<ImageReport>,
    /// Digests of manifests that are not container images (attestations, signatures) and were copied unchanged.
    pub copied_manifests: Vec<String>,
    /// Oddities that belong to no layer.
    pub warnings: Vec<String>,
    /// Sums.
    pub totals: Totals,
    /// Duration in seconds.
    pub seconds: f64,
}

/// What packing did.
#[derive(Clone, Debug, Serialize)]
pub struct PackReport {
    /// The target as it was named.
    pub target: String,
    /// Digest of the manifest.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// Digest of the config.
    #[serde(serialize_with = "as_text")]
    pub image_id: Digest,
    /// Digest of the layer's blob.
    #[serde(serialize_with = "as_text")]
    pub layer: BlobDigest,
    /// Identity of the plain layer.
    #[serde(serialize_with = "as_text")]
    pub diff_id: DiffId,
    /// Entries in the layer.
    pub entries: u64,
    /// Length of the plain layer in bytes.
    pub plain_len: u64,
    /// Stored length of the layer's blob in bytes.
    pub stored_len: u64,
    /// Number of chunks, 0 for a layer without index.
    pub chunks: usize,
    /// What was left out or is odd.
    pub warnings: Vec<String>,
    /// Duration in seconds.
    pub seconds: f64,
}

/// One layer of a checked image.
#[derive(Clone, Debug, Serialize)]
pub struct CheckedLayer {
    /// Digest of the blob.
    #[serde(serialize_with = "as_text")]
    pub digest: BlobDigest,
    /// Identity of the plain layer, as the config lists it.
    #[serde(serialize_with = "as_text")]
    pub diff_id: DiffId,
    /// Length of the blob in bytes.
    pub stored_len: u64,
    /// Number of chunks, `None` for a layer without a layer index.
    pub chunks: Option<usize>,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// One checked image.
#[derive(Clone, Debug, Serialize)]
pub struct CheckedImage {
    /// `os/architecture[/variant]`, where the config says so.
    pub platform: Option<String>,
    /// Digest of the manifest.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// Digest of the config.
    #[serde(serialize_with = "as_text")]
    pub image_id: Digest,
    /// Layers, bottom first.
    pub layers: Vec<CheckedLayer>,
    /// What is wrong beyond single layers.
    pub problems: Vec<String>,
}

impl CheckedImage {
    /// All problems, each with the layer that it is about.
    pub fn all_problems(&self) -> impl Iterator<Item = String> {
        let of_layers = self.layers.iter().flat_map(|layer| {
            let name = layer.digest;
            layer
                .problems
                .iter()
                .map(move |problem| format!("layer {name}: {problem}"))
        });
        of_layers.chain(self.problems.iter().cloned())
    }
}

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// The image as it was named.
    pub name: String,
    /// The image that it was compared with, as it was named.
    pub against: Option<String>,
    /// Digest of the manifest or image index.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// The images, in the order of the image index.
    pub images: Vec<CheckedImage>,
    /// What is wrong beyond single images.
    pub problems: Vec<String>,
    /// Duration in seconds.
    pub seconds: f64,
}

impl CheckReport {
    /// All problems, in lines for the user.
    pub fn all_problems(&self) -> Vec<String> {
        let of_images = self.images.iter().flat_map(CheckedImage::all_problems);
        self.problems.iter().cloned().chain(of_images).collect()
    }

    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.all_problems().is_empty()
    }
}

fn as_optional_text<T: ToString, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(serializer)
}

pub(crate) fn as_text<T: std::fmt::Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}
