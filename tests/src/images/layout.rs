//! OCI layout directories.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layer::Layer;
use crate::document::{self, Layout, REF_NAME};

/// Time in every config, so that the same image gets the same digest.
const CREATED: &str = "2023-11-14T22:13:20Z";

/// A layer that lies in a layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the plain bytes.
    pub diff_id: String,
    /// Number of plain bytes.
    pub plain_len: u64,
    /// Digest of the stored bytes.
    pub digest: String,
    /// Number of stored bytes.
    pub stored_len: u64,
    /// Media type.
    pub media_type: String,
}

/// An image that lies in a layout.
#[derive(Clone, Debug)]
pub struct Image {
    /// The layout.
    pub layout: Layout,
    /// Its tag there.
    pub tag: String,
    /// Digest of its manifest or image index.
    pub digest: String,
    /// Its layers, lowest first; none for an image index.
    pub layers: Vec<LayerRecord>,
}

impl Image {
    /// What the command line calls it: `oci:DIRECTORY:TAG`.
    pub fn reference(&self) -> String {
        format!("oci:{}:{}", self.layout.directory.display(), self.tag)
    }
}

/// Writes blobs and documents into a layout directory.
#[derive(Debug)]
pub struct LayoutWriter {
    layout: Layout,
}

impl LayoutWriter {
    /// A layout in `directory`, which may hold one already.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(directory: &Path) -> Result<Self> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        fs::write(
            directory.join("oci-layout"),
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        )?;
        let index = directory.join("index.json");
        if !index.exists() {
            fs::write(index, json!({"schemaVersion": 2, "manifests": []}).to_string())?;
        }
        Ok(Self {
            layout: Layout::open(directory),
        })
    }

    /// Stores bytes, gives their descriptor.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_blob(&self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let digest = document::digest(bytes);
        fs::write(self.layout.blob_path(&digest)?, bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }

    /// Stores a layer.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_layer(&self, layer: &Layer) -> Result<LayerRecord> {
        self.put_layer_from(layer.media_type(), |out| layer.write_stored(out))
    }

    /// Stores a layer whose stored bytes `write` writes; `write` gives digest and number of the plain bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_layer_from(
        &self,
        media_type: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<(String, u64)>,
    ) -> Result<LayerRecord> {
        let unnamed = tempfile::NamedTempFile::new_in(self.blob_directory())?;
        let mut stored = Stored::new(unnamed.reopen()?);
        let (diff_id, plain_len) = write(&mut stored)?;
        let (digest, stored_len) = stored.finish()?;
        unnamed.persist(self.layout.blob_path(&digest)?)?;
        Ok(LayerRecord {
            diff_id,
            plain_len,
            digest,
            stored_len,
            media_type: media_type.to_owned(),
        })
    }

    fn blob_directory(&self) -> PathBuf {
        self.layout.directory.join("blobs/sha256")
    }

    /// Stores a manifest with its config, without a tag. `change_config` and `change_manifest` edit the documents.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_image(&self, image: &ImageBuilder, layers: &[LayerRecord]) -> Result<Value> {
        let mut config = json!({
            "architecture": "amd64", "os": "linux", "created": CREATED,
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
            "history": layers.iter().map(|_| json!({"created_by": "sluice-tests"})).collect::<Vec<_>>(),
        });
        for (pointer, value) in &image.config_changes {
            let (parent, key) = pointer
                .rsplit_once('/')
                .context("a config change needs a JSON pointer")?;
            config
                .pointer_mut(parent)
                .context("a config change has no parent")?[key] = value.clone();
        }
        // The odd white space is the point: nobody may write the config anew.
        let config_bytes = format!("{config:#}\n");
        let config = self.put_blob(
            "application/vnd.oci.image.config.v1+json",
            config_bytes.as_bytes(),
        )?;
        let layers = layers.iter().map(
            |layer| json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.stored_len}),
        );
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers.collect::<Vec<_>>(),
        });
        if !image.annotations.is_null() {
            manifest["annotations"] = image.annotations.clone();
        }
        self.put_blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    /// Gives a manifest or image index a tag, which no other then has.
    ///
    /// # Errors
    /// When `index.json` cannot be written.
    pub fn tag(&self, descriptor: &Value, tag: &str) -> Result<()> {
        let mut index = self.layout.index()?;
        let mut entry = descriptor.clone();
        entry["annotations"][REF_NAME] = tag.into();
        let manifests = index["manifests"]
            .as_array_mut()
            .context("index.json has no manifests")?;
        manifests.retain(|other| other["annotations"][REF_NAME] != tag);
        manifests.push(entry);
        fs::write(self.layout.directory.join("index.json"), index.to_string())?;
        Ok(())
    }

    /// Stores an image index of manifests, each with its platform, under a tag.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_index(&self, tag: &str, manifests: &[(Value, &str, &str)]) -> Result<Image> {
        let manifests = manifests.iter().map(|(descriptor, os, architecture)| {
            let mut entry = descriptor.clone();
            entry["platform"] = json!({"os": os, "architecture": architecture});
            entry
        });
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({
            "schemaVersion": 2, "mediaType": media_type, "manifests": manifests.collect::<Vec<_>>(),
            "annotations": {"org.example.kept": "every annotation"},
        });
        let descriptor = self.put_blob(media_type, index.to_string().as_bytes())?;
        self.tag(&descriptor, tag)?;
        Ok(self.tagged(&descriptor, tag, Vec::new()))
    }

    fn tagged(&self, descriptor: &Value, tag: &str, layers: Vec<LayerRecord>) -> Image {
        Image {
            layout: self.layout.clone(),
            tag: tag.to_owned(),
            digest: descriptor["digest"].as_str().unwrap_or_default().to_owned(),
            layers,
        }
    }
}

/// Digests and counts stored bytes on their way into a file.
struct Stored {
    file: BufWriter<File>,
    hasher: Sha256,
    len: u64,
}

impl Stored {
    fn new(file: File) -> Self {
        Self {
            file: BufWriter::with_capacity(1 << 20, file),
            hasher: Sha256::new(),
            len: 0,
        }
    }

    fn finish(mut self) -> io::Result<(String, u64)> {
        self.file.flush()?;
        Ok((
            format!("sha256:{}", hex::encode(self.hasher.finalize())),
            self.len,
        ))
    }
}

impl Write for Stored {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An image to be written.
#[derive(Clone, Debug, Default)]
pub struct ImageBuilder {
    layers: Vec<Layer>,
    config_changes: Vec<(String, Value)>,
    annotations: Value,
}

impl ImageBuilder {
    /// An image without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// With more layers on top.
    #[must_use]
    pub fn layers(mut self, layers: impl IntoIterator<Item = Layer>) -> Self {
        self.layers.extend(layers);
        self
    }

    /// With another value at a JSON pointer of the config.
    #[must_use]
    pub fn config(mut self, pointer: &str, value: Value) -> Self {
        self.config_changes.push((pointer.to_owned(), value));
        self
    }

    /// With annotations on the manifest.
    #[must_use]
    pub fn annotations(self, annotations: Value) -> Self {
        Self { annotations, ..self }
    }

    /// Writes the image into the layout in `directory` under `tag`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, directory: &Path, tag: &str) -> Result<Image> {
        let writer = LayoutWriter::open(directory)?;
        let (descriptor, layers) = self.write_untagged(&writer)?;
        writer.tag(&descriptor, tag)?;
        Ok(writer.tagged(&descriptor, tag, layers))
    }

    /// Writes the image without a tag, gives its descriptor and layers.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_untagged(&self, writer: &LayoutWriter) -> Result<(Value, Vec<LayerRecord>)> {
        let layers = self
            .layers
            .iter()
            .map(|layer| writer.put_layer(layer))
            .collect::<Result<Vec<_>>>()?;
        Ok((writer.put_image(self, &layers)?, layers))
    }

    /// Writes an image of layers that the layout holds already, under `tag`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_with(&self, writer: &LayoutWriter, layers: Vec<LayerRecord>, tag: &str) -> Result<Image> {
        let descriptor = writer.put_image(self, &layers)?;
        writer.tag(&descriptor, tag)?;
        Ok(writer.tagged(&descriptor, tag, layers))
    }
}
