//! What the cache has, for people, and the check of all of it.
//!
//! Both open every layer for a moment, beside whoever uses it; neither changes when a chunk was used last.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use sluice_format::{DiffId, Limits};

use super::partial::{self, Left};
use super::pins::{Pin, Pinned};
use super::{Cache, ImageRecord};
use crate::{Error, ErrorKind};

/// Everything in a cache directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The images that were loaded.
    pub images: Vec<ImageEntry>,
    /// The layers.
    pub layers: Vec<LayerEntry>,
    /// Blobs of which some came before their stream was cut.
    pub partial: Vec<PartialEntry>,
    /// Bytes that the directory takes on the disk.
    pub disk_bytes: u64,
    /// Bytes that it may take.
    pub quota: u64,
}

/// A layer in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerEntry {
    /// The layer.
    pub diff_id: String,
    /// Length of the plain layer in bytes.
    pub plain_len: u64,
    /// Plain bytes of it that are here.
    pub cached_bytes: u64,
    /// Bytes that its files take on the disk.
    pub disk_bytes: u64,
    /// Number of chunks.
    pub chunks: usize,
    /// Chunks that are here.
    pub cached_chunks: usize,
    /// Seconds after the epoch of the last use of a chunk; 0 for never.
    pub used: u64,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// Whether every chunk is here.
    pub complete: bool,
    /// Whether the whole layer was verified against its DiffID.
    pub verified: bool,
}

/// A blob of which some came before its stream was cut, or that is being streamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartialEntry {
    /// Digest of the blob.
    pub blob: String,
    /// Length of the blob in bytes; 0 when it is not known.
    pub stored_len: u64,
    /// Bytes that its file takes on the disk, nearly all of them bytes of the blob.
    pub disk_bytes: u64,
    /// Seconds after the epoch at which the last byte came.
    pub used: u64,
}

impl From<Left> for PartialEntry {
    fn from(left: Left) -> Self {
        Self {
            blob: left.digest.to_string(),
            stored_len: left.stored_len,
            disk_bytes: left.disk_bytes,
            used: left.used,
        }
    }
}

/// An image in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageEntry {
    /// What was loaded, and when.
    #[serde(flatten)]
    pub record: ImageRecord,
    /// Length of all its plain layers in bytes.
    pub plain_len: u64,
    /// Plain bytes of them that are here.
    pub cached_bytes: u64,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// Whether every chunk is here.
    pub complete: bool,
}

/// What a check of the cache found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Layers that were looked at.
    pub layers: usize,
    /// Chunks that were verified.
    pub chunks: usize,
    /// Their plain bytes.
    pub bytes: u64,
    /// Chunks that did not match their digest and were removed.
    pub bad_chunks: usize,
    /// The layers that they belong to.
    pub bad_layers: Vec<String>,
    /// Documents that did not match their digest and were removed.
    pub bad_documents: usize,
}

impl Checked {
    /// Whether everything was right.
    pub fn is_sound(&self) -> bool {
        self.bad_chunks == 0 && self.bad_documents == 0
    }
}

impl Cache {
    /// Lists everything, images by name, layers by DiffID. Blocks on the disk.
    pub fn inventory(self: &Arc<Self>) -> Inventory {
        let pinned = Pinned::load(&self.dir, &self.documents);
        let mut layers: Vec<LayerEntry> = self
            .stored_layers()
            .iter()
            .filter_map(|diff_id| self.layer_entry(diff_id, &pinned))
            .collect();
        layers.sort_by(|one, other| one.diff_id.cmp(&other.diff_id));
        let by_id: HashMap<&str, &LayerEntry> = layers
            .iter()
            .map(|layer| (layer.diff_id.as_str(), layer))
            .collect();
        let records = self.documents.images().into_iter();
        let mut images: Vec<ImageEntry> = records
            .map(|(_, record)| image_entry(record, &by_id, &pinned))
            .collect();
        images.sort_by(|one, other| one.record.name.cmp(&other.record.name));
        let mut partial: Vec<PartialEntry> = partial::list(&self.dir)
            .into_iter()
            .map(PartialEntry::from)
            .collect();
        partial.sort_by(|one, other| one.blob.cmp(&other.blob));
        Inventory {
            images,
            layers,
            partial,
            disk_bytes: self.shared.space.measure(&self.dir),
            quota: self.shared.space.limit(),
        }
    }

    fn layer_entry(self: &Arc<Self>, diff_id: &DiffId, pinned: &Pinned) -> Option<LayerEntry> {
        let layer = self.stored_layer(diff_id)?;
        let lengths = layer
            .states()
            .chunks(true)
            .filter_map(|chunk| layer.cuts().get(chunk));
        let (cached_chunks, cached_bytes) = lengths.fold((0, 0), |(chunks, bytes), cut| {
            (chunks + 1, bytes + u64::from(cut.plain_len))
        });
        Some(LayerEntry {
            diff_id: diff_id.to_string(),
            plain_len: layer.cuts().plain_len(),
            cached_bytes,
            disk_bytes: super::space::tree_allocated(layer.dir()),
            chunks: layer.cuts().len(),
            cached_chunks,
            used: layer.stamps().last().into(),
            pinned: pinned.layers.contains(diff_id),
            complete: cached_chunks == layer.cuts().len(),
            verified: layer.is_whole(),
        })
    }

    /// Verifies every chunk and document, and removes what is wrong; it is fetched again when it is needed. A process
    /// that has the layer open stops using such chunks within seconds. Blocks on the disk.
    pub fn verify(self: &Arc<Self>) -> Checked {
        let mut checked = Checked::default();
        for diff_id in self.stored_layers() {
            self.verify_layer(&diff_id, &mut checked);
        }
        let documents = std::fs::read_dir(self.dir.join("documents/sha256"));
        for entry in documents.into_iter().flatten().flatten() {
            let digest = entry.file_name().to_str().map(sluice_format::Digest::from_hex);
            if let Some(Ok(digest)) = digest
                && self
                    .documents
                    .load(&digest, Limits::default().index_stored_len)
                    .is_none()
            {
                checked.bad_documents += 1;
            }
        }
        checked
    }

    fn verify_layer(self: &Arc<Self>, diff_id: &DiffId, checked: &mut Checked) {
        let Some(layer) = self.stored_layer(diff_id) else {
            return;
        };
        let Some(files) = layer.files() else { return };
        checked.layers += 1;
        let corrupt = layer.corrupt();
        for chunk in layer.states().chunks(true).collect::<Vec<_>>() {
            checked.chunks += 1;
            checked.bytes += layer.cuts().get(chunk).map_or(0, |cut| cut.plain_len.into());
            // A chunk that was evicted meanwhile is neither right nor wrong.
            if !layer.verify(files, chunk) && layer.states().is_present(chunk) {
                layer.forget(files, chunk);
            }
        }
        let bad = layer.corrupt() - corrupt;
        checked.bad_chunks += bad;
        if bad > 0 {
            checked.bad_layers.push(diff_id.to_string());
        }
    }

    /// Keeps a layer or an image from being evicted.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an image that was never loaded; what hinders writing.
    pub fn pin(&self, pin: &Pin) -> Result<(), Error> {
        if let Pin::Image(name) = pin
            && !self
                .documents
                .images()
                .iter()
                .any(|(_, image)| image.name == *name)
        {
            let message = format!("the cache knows no image {name}; mount it first");
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        pin.put(&self.dir)
    }

    /// Lets a layer or an image be evicted again.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for what is not pinned; what hinders removing the pin.
    pub fn unpin(&self, pin: &Pin) -> Result<(), Error> {
        if !pin.exists(&self.dir) {
            return Err(Error::new(ErrorKind::NotFound, format!("{pin} is not pinned")));
        }
        pin.remove(&self.dir)
    }
}

fn image_entry(record: ImageRecord, layers: &HashMap<&str, &LayerEntry>, pinned: &Pinned) -> ImageEntry {
    let here = || {
        record
            .layers
            .iter()
            .map(|layer| layers.get(layer.diff_id.as_str()))
    };
    ImageEntry {
        plain_len: record.layers.iter().map(|layer| layer.plain_len).sum(),
        cached_bytes: here()
            .map(|layer| layer.map_or(0, |layer| layer.cached_bytes))
            .sum(),
        complete: here().all(|layer| layer.is_some_and(|layer| layer.complete)),
        pinned: pinned.images.contains(&record.name),
        record,
    }
}
