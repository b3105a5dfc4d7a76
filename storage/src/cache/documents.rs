//! Manifests, configs and layer indexes, kept by digest, and what names meant when they were last asked for.
//!
//! ```text
//! documents/sha256/<digest>    the bytes
//! locations/<blob digest>      where in a blob its layer index lies, when the manifest does not say: text as in the annotation,
//!                              or "none"
//! tags/<digest of the name>    JSON: the name, the digest of its manifest, when the registry said so
//! attached/<manifest digest>   JSON: the artifact with layer indexes that is attached to a manifest, and where
//! tocs/<blob digest>           JSON: the table of contents of a layer in another lazy format, and what its plain layer is called
//! streamed/<DiffID>            JSON: the layer index that this host has made while it streamed the layer
//! images/<digest of the name>  JSON: an image that was loaded, for people, for pins, and for removing what belongs together
//! ```
//!
//! Documents are verified when they are loaded. None of these files is synced: one that a power cut spoils is not what its
//! digest says, or no JSON, and is fetched anew. The time of change of a file is that of its last use, for eviction.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sluice_format::{BlobDigest, DiffId, Digest, IndexLocation};

use super::files::begin;
use super::space::Shared;

/// A use within this time of the last one is not written down.
const USE_STEP: Duration = Duration::from_secs(60);

/// Longest record that is read; one of 512 layers has a tenth of it.
const RECORD_LEN_MAX: u64 = 1 << 20;

/// Text in place of a location when a blob holds no index.
const NO_INDEX: &[u8] = b"none";

/// Directories of documents and records below the cache directory.
pub(super) const DIRECTORIES: [&str; 7] = [
    "documents/sha256",
    "locations",
    "tags",
    "attached",
    "tocs",
    "streamed",
    "images",
];

/// What a tag meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TagRecord {
    pub(crate) name: String,
    pub(crate) digest: String,
    /// Seconds after the epoch at which the registry said so.
    pub(crate) resolved: u64,
}

/// The layer indexes that are attached to a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AttachedRecord {
    location: String,
    artifact: String,
}

/// The index of a layer that was streamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StreamedRecord {
    diff_id: String,
    index: String,
    /// The only blob that the index is for. Without it, the index is for whatever blob has the layer, and read as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blob: Option<String>,
}

/// The table of contents of a layer in another lazy format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TocRecord {
    /// Digest of the stored bytes, which are kept as a document.
    pub(crate) document: String,
    /// Where they lie in the blob.
    pub(crate) stored_off: u64,
    pub(crate) stored_len: u64,
    /// Length of the zstd:chunked document when it is decoded; none for eStargz.
    pub(crate) plain_len: Option<u64>,
    /// They lie in another image; their place is that of the footer then.
    #[serde(default)]
    pub(crate) is_apart: bool,
    /// What the synthetic plain layer is called.
    pub(crate) plain_layer: String,
}

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The name under which it was asked for.
    pub name: String,
    /// The platform.
    pub platform: String,
    /// Digest of the manifest of that platform.
    pub manifest: String,
    /// Digest of the config.
    pub image_id: String,
    /// The layers, lowest first.
    pub layers: Vec<LayerRecord>,
    /// Seconds after the epoch at which it was loaded last.
    pub used: u64,
}

/// A layer of an [`ImageRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The plain layer.
    pub diff_id: String,
    /// The blob that it is stored in.
    pub blob: String,
    /// Digest of its layer index.
    pub index: String,
    /// Its length in bytes.
    pub plain_len: u64,
}

impl ImageRecord {
    /// The DiffIDs that are valid.
    pub(super) fn diff_ids(&self) -> Vec<DiffId> {
        self.layers
            .iter()
            .filter_map(|layer| layer.diff_id.parse().ok())
            .collect()
    }

    /// The files below the cache directory that say what the image is, but for the record itself.
    pub(super) fn files(&self, tag: Option<&TagRecord>) -> Vec<PathBuf> {
        let hex = |text: &str| text.parse().ok().map(|digest: Digest| digest.to_hex());
        let of_layers = self.layers.iter().map(|layer| &layer.index);
        let documents = [&self.manifest, &self.image_id]
            .into_iter()
            .chain(of_layers)
            .chain(tag.map(|tag| &tag.digest));
        let documents = documents
            .filter_map(|text| hex(text))
            .map(|hex| Path::new("documents/sha256").join(hex));
        let locations = self.layers.iter().filter_map(|layer| hex(&layer.blob));
        let locations =
            locations.flat_map(|hex| ["locations", "tocs"].map(|directory| Path::new(directory).join(&hex)));
        let tag = tag.map(|tag| Path::new("tags").join(Digest::of(tag.name.as_bytes()).to_hex()));
        let streamed = self.layers.iter().filter_map(|layer| hex(&layer.diff_id));
        let streamed = streamed.map(|hex| Path::new("streamed").join(hex));
        let attached = hex(&self.manifest).map(|hex| Path::new("attached").join(hex));
        documents
            .chain(locations)
            .chain(streamed)
            .chain(attached)
            .chain(tag)
            .collect()
    }

    fn key(&self) -> String {
        format!("{}\n{}", self.name, self.platform)
    }
}

/// The documents of a cache. Calls block on the disk. What cannot be kept is not kept.
#[derive(Debug)]
pub(crate) struct Documents {
    dir: PathBuf,
    shared: Arc<Shared>,
}

impl Documents {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            dir: shared.dir.clone(),
            shared: shared.clone(),
        }
    }

    /// The bytes with this digest, if they are here and not longer than `max_len`.
    pub(crate) fn load(&self, digest: &Digest, max_len: u64) -> Option<Bytes> {
        let path = self.document_path(digest);
        let bytes = read_bounded(&path, max_len)?;
        if Digest::of(&bytes) != *digest {
            tracing::warn!(path = %path.display(), "a cached document does not match its digest; it is fetched again");
            self.remove(&path);
            return None;
        }
        used(&path);
        Some(bytes.into())
    }

    /// Keeps bytes under their digest.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) {
        if self.load(digest, bytes.len() as u64).is_none() {
            self.keep(&self.document_path(digest), bytes);
        }
    }

    fn document_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("documents").join("sha256").join(digest.to_hex())
    }

    /// Where the layer index of a blob lies.
    pub(crate) fn location(&self, blob: &BlobDigest) -> Option<IndexLocation> {
        let path = self.dir.join("locations").join(blob.0.to_hex());
        let text = String::from_utf8(read_bounded(&path, RECORD_LEN_MAX)?).ok()?;
        used(&path);
        text.parse().ok()
    }

    /// Whether the blob is known to hold no layer index.
    pub(crate) fn has_no_index(&self, blob: &BlobDigest) -> bool {
        let path = self.dir.join("locations").join(blob.0.to_hex());
        let found = read_bounded(&path, RECORD_LEN_MAX);
        found.is_some_and(|text| text == NO_INDEX) && {
            used(&path);
            true
        }
    }

    /// Notes that a blob holds no layer index.
    pub(crate) fn put_no_index(&self, blob: &BlobDigest) {
        let path = self.dir.join("locations").join(blob.0.to_hex());
        self.keep(&path, NO_INDEX);
    }

    pub(crate) fn put_location(&self, blob: &BlobDigest, location: &IndexLocation) {
        let path = self.dir.join("locations").join(blob.0.to_hex());
        self.keep(&path, location.to_string().as_bytes());
    }

    /// Digest of the layer index that this host has made of a layer in `blob`.
    pub(crate) fn streamed(&self, diff_id: &DiffId, blob: &BlobDigest) -> Option<Digest> {
        let path = self.streamed_path(diff_id);
        let record: StreamedRecord = load_record(&path)?;
        used(&path);
        let is_it = record.diff_id == diff_id.to_string()
            && record.blob.is_none_or(|recorded| recorded == blob.to_string());
        is_it.then(|| record.index.parse().ok())?
    }

    /// Whether this host has streamed a layer, so that one chunk of it comes back with all the others only.
    pub(super) fn is_streamed(&self, diff_id: &DiffId) -> bool {
        let record: Option<StreamedRecord> = load_record(&self.streamed_path(diff_id));
        record.is_some_and(|record| record.blob.is_none())
    }

    /// The artifact with layer indexes that is attached to a manifest in a repository, as far as known.
    pub(crate) fn attached(&self, manifest: &Digest, location: &str) -> Option<Digest> {
        let path = self.dir.join("attached").join(manifest.to_hex());
        let record: AttachedRecord = load_record(&path)?;
        used(&path);
        (record.location == location).then(|| record.artifact.parse().ok())?
    }

    pub(crate) fn put_attached(&self, manifest: &Digest, location: &str, artifact: &Digest) {
        let record = AttachedRecord {
            location: location.to_owned(),
            artifact: artifact.to_string(),
        };
        if let Ok(bytes) = serde_json::to_vec(&record) {
            self.keep(&self.dir.join("attached").join(manifest.to_hex()), &bytes);
        }
    }

    /// The table of contents of a blob, if it was read before.
    pub(crate) fn toc(&self, blob: &BlobDigest) -> Option<TocRecord> {
        let path = self.dir.join("tocs").join(blob.0.to_hex());
        let record = load_record(&path)?;
        used(&path);
        Some(record)
    }

    pub(crate) fn put_toc(&self, blob: &BlobDigest, record: &TocRecord) {
        if let Ok(bytes) = serde_json::to_vec(record) {
            self.keep(&self.dir.join("tocs").join(blob.0.to_hex()), &bytes);
        }
    }

    /// Notes which index this host has made of a layer: for one `blob`, or for whatever has the layer.
    pub(crate) fn put_streamed(&self, diff_id: &DiffId, blob: Option<BlobDigest>, index: &Digest) {
        let record = StreamedRecord {
            diff_id: diff_id.to_string(),
            index: index.to_string(),
            blob: blob.map(|blob| blob.to_string()),
        };
        if let Ok(bytes) = serde_json::to_vec(&record) {
            self.keep(&self.streamed_path(diff_id), &bytes);
        }
    }

    fn streamed_path(&self, diff_id: &DiffId) -> PathBuf {
        self.dir.join("streamed").join(diff_id.0.to_hex())
    }

    /// What a name meant when the registry was last asked.
    pub(crate) fn tag(&self, name: &str) -> Option<TagRecord> {
        let path = self.record_path("tags", name);
        let record: TagRecord = serde_json::from_slice(&read_bounded(&path, RECORD_LEN_MAX)?).ok()?;
        used(&path);
        (record.name == name).then_some(record)
    }

    pub(crate) fn put_tag(&self, name: &str, digest: &Digest) {
        let record = TagRecord {
            name: name.to_owned(),
            digest: digest.to_string(),
            resolved: self.now(),
        };
        self.keep_record("tags", name, &record);
    }

    /// Notes that an image was loaded now.
    pub(crate) fn put_image(&self, record: ImageRecord) {
        let record = ImageRecord {
            used: self.now(),
            ..record
        };
        self.keep_record("images", &record.key(), &record);
    }

    /// All images that were loaded, with the files that say so.
    pub(super) fn images(&self) -> Vec<(PathBuf, ImageRecord)> {
        let Ok(entries) = std::fs::read_dir(self.dir.join("images")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| Some((entry.path(), load_record(&entry.path())?)))
            .collect()
    }

    fn now(&self) -> u64 {
        self.shared.clock.now().into()
    }

    fn record_path(&self, kind: &str, name: &str) -> PathBuf {
        self.dir.join(kind).join(Digest::of(name.as_bytes()).to_hex())
    }

    fn keep_record(&self, kind: &str, name: &str, record: &impl Serialize) {
        if let Ok(bytes) = serde_json::to_vec(record) {
            self.keep(&self.record_path(kind, name), &bytes);
        }
    }

    fn keep(&self, path: &Path, bytes: &[u8]) {
        let len = bytes.len() as u64;
        if self.shared.outage.lasts(self.shared.clock.now()) || !self.shared.space.reserve(len) {
            return;
        }
        if let Err(error) = write(path, bytes) {
            self.shared.space.release(len);
            self.shared
                .outage
                .begin(&self.dir, self.shared.clock.now(), &error);
        }
    }

    fn remove(&self, path: &Path) {
        // A file that stays is found out again.
        let _ = std::fs::remove_file(path);
    }
}

pub(super) fn load_record<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read_bounded(path, RECORD_LEN_MAX)?).ok()
}

/// Puts a file in place under its name, with its directory.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    std::fs::create_dir_all(dir)?;
    begin(dir, name, bytes).map(drop)
}

fn read_bounded(path: &Path, max_len: u64) -> Option<Vec<u8>> {
    let len = std::fs::metadata(path).ok()?.len();
    (len <= max_len).then(|| std::fs::read(path).ok())?
}

/// Notes the use of a file in its time of change.
fn used(path: &Path) {
    let now = SystemTime::now();
    let is_recent = |metadata: std::fs::Metadata| {
        metadata
            .modified()
            .is_ok_and(|then| now.duration_since(then).is_ok_and(|since| since < USE_STEP))
    };
    if !std::fs::metadata(path).is_ok_and(is_recent) {
        // A cache that cannot be written to is not evicted from either.
        let _ = File::options()
            .append(true)
            .open(path)
            .and_then(|file| file.set_modified(now));
    }
}
