//! Manifests, image indexes and configs as JSON, read from an OCI layout without any code under test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The annotation that carries a tag in a layout's `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// `sha256:<hex>` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A string in a JSON document, by JSON pointer.
///
/// # Errors
/// When it is not there or not a string.
pub fn text<'a>(document: &'a Value, pointer: &str) -> Result<&'a str> {
    document
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("no text at {pointer} in {document}"))
}

/// An array in a JSON document, by JSON pointer.
///
/// # Errors
/// When it is not there or not an array.
pub fn array<'a>(document: &'a Value, pointer: &str) -> Result<&'a Vec<Value>> {
    document
        .pointer(pointer)
        .and_then(Value::as_array)
        .with_context(|| format!("no array at {pointer} in {document}"))
}

/// An OCI layout directory.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Its directory.
    pub directory: PathBuf,
}

/// One image in a layout: its manifest, its config, and the exact bytes of both.
#[derive(Clone, Debug)]
pub struct ImageDocuments {
    /// Digest of the manifest.
    pub manifest_digest: String,
    /// The manifest's bytes.
    pub manifest_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: Value,
    /// The config's bytes; their digest is the image ID.
    pub config_bytes: Vec<u8>,
    /// The config.
    pub config: Value,
}

impl Layout {
    /// The layout in `directory`.
    pub fn open(directory: &Path) -> Self {
        Self {
            directory: directory.to_path_buf(),
        }
    }

    /// Where a blob lies.
    ///
    /// # Errors
    /// When `digest` is not a SHA-256 digest.
    pub fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest
            .strip_prefix("sha256:")
            .with_context(|| format!("{digest} is not a sha256 digest"))?;
        Ok(self.directory.join("blobs/sha256").join(hex))
    }

    /// The bytes of a blob, checked against its digest.
    ///
    /// # Errors
    /// When it is not there, or its bytes are others.
    pub fn blob(&self, digest: &str) -> Result<Vec<u8>> {
        let path = self.blob_path(digest)?;
        let bytes = fs::read(&path).with_context(|| format!("cannot read blob {}", path.display()))?;
        ensure!(self::digest(&bytes) == digest, "blob {digest} has other bytes");
        Ok(bytes)
    }

    /// `index.json`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn index(&self) -> Result<Value> {
        let path = self.directory.join("index.json");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The descriptor that `index.json` has for a tag.
    ///
    /// # Errors
    /// When there is none.
    pub fn tagged(&self, tag: &str) -> Result<Value> {
        let index = self.index()?;
        array(&index, "/manifests")?
            .iter()
            .find(|entry| entry["annotations"][REF_NAME] == tag)
            .cloned()
            .with_context(|| format!("{} has no tag {tag}: {index}", self.directory.display()))
    }

    /// Descriptors of the manifests that have the manifest `subject` as their subject, as a registry lists them.
    ///
    /// # Errors
    /// When the layout cannot be read.
    pub fn referrers(&self, subject: &str) -> Result<Vec<Value>> {
        let mut found = Vec::new();
        for entry in array(&self.index()?, "/manifests")? {
            let manifest: Value = serde_json::from_slice(&self.blob(text(entry, "/digest")?)?)?;
            if manifest["subject"]["digest"] == subject {
                let mut entry = entry.clone();
                entry["artifactType"] = manifest["artifactType"].clone();
                entry["annotations"] = manifest["annotations"].clone();
                found.push(entry);
            }
        }
        Ok(found)
    }

    /// Digest and bytes of the manifest or image index behind a tag.
    ///
    /// # Errors
    /// When it is not there.
    pub fn top(&self, tag: &str) -> Result<(String, Vec<u8>)> {
        let digest = text(&self.tagged(tag)?, "/digest")?.to_owned();
        let bytes = self.blob(&digest)?;
        Ok((digest, bytes))
    }

    /// The single-platform image behind a tag.
    ///
    /// # Errors
    /// When it is not there, or is an image index.
    pub fn image(&self, tag: &str) -> Result<ImageDocuments> {
        let (digest, _) = self.top(tag)?;
        self.image_by_digest(&digest)
    }

    /// The image whose manifest has `digest`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn image_by_digest(&self, digest: &str) -> Result<ImageDocuments> {
        let manifest_bytes = self.blob(digest)?;
        let manifest: Value = serde_json::from_slice(&manifest_bytes)?;
        let config_bytes = self.blob(text(&manifest, "/config/digest")?)?;
        let config = serde_json::from_slice(&config_bytes)?;
        Ok(ImageDocuments {
            manifest_digest: digest.to_owned(),
            manifest_bytes,
            manifest,
            config_bytes,
            config,
        })
    }
}

impl ImageDocuments {
    /// Digest of the config.
    pub fn image_id(&self) -> String {
        digest(&self.config_bytes)
    }

    /// Digests of the layers, lowest first.
    ///
    /// # Errors
    /// When the manifest lacks one.
    pub fn layer_digests(&self) -> Result<Vec<String>> {
        array(&self.manifest, "/layers")?
            .iter()
            .map(|layer| Ok(text(layer, "/digest")?.to_owned()))
            .collect()
    }

    /// DiffIDs of the layers, lowest first.
    ///
    /// # Errors
    /// When the config lacks them.
    pub fn diff_ids(&self) -> Result<Vec<String>> {
        array(&self.config, "/rootfs/diff_ids")?
            .iter()
            .map(|id| id.as_str().map(str::to_owned).context("a DiffID is not text"))
            .collect()
    }

    /// Sum of the stored lengths of all layers in bytes.
    ///
    /// # Errors
    /// When the manifest lacks one.
    pub fn stored_len(&self) -> Result<u64> {
        array(&self.manifest, "/layers")?
            .iter()
            .map(|layer| layer["size"].as_u64().context("a layer has no size"))
            .sum()
    }
}
