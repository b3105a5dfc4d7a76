//! `index.json`, the list of a layout's manifests.
//!
//! The file is edited as JSON, so that fields of other tools survive, and replaced by rename, so that readers see the old
//! list or the new one. Writers hold flock(2) on the layout directory itself: two of them never lose each other's entry, no
//! lock file is left in the image, and a killed writer holds nothing.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use sluice_format::artifact::{OCI_INDEX, REF_NAME_ANNOTATION};
use sluice_format::{BlobDigest, Digest, Limits};

use super::load_bounded;
use crate::{Descriptor, Error, ErrorKind, Referrer};

const FILE: &str = "index.json";

/// How the names of temporary files begin.
const TEMPORARY: &str = ".index-";

/// Mode of the files of a layout: an image is no secret, and other users' tools read it.
pub(super) const FILE_MODE: u32 = 0o644;

/// One manifest or image index of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutEntry {
    /// Its tag, if it has one.
    pub tag: Option<String>,
    /// Where it is.
    pub descriptor: Descriptor,
    /// What kind of artifact it is; `None` for an image.
    pub artifact_type: Option<String>,
}

impl LayoutEntry {
    pub(super) fn new(tag: Option<String>, media_type: &str, digest: Digest, len: u64) -> Self {
        Self {
            tag,
            descriptor: Descriptor {
                media_type: media_type.to_owned(),
                digest: BlobDigest(digest),
                size: len,
                annotations: BTreeMap::new(),
            },
            artifact_type: None,
        }
    }

    pub(super) fn of_artifact(referrer: &Referrer) -> Self {
        Self {
            tag: None,
            descriptor: referrer.descriptor.clone(),
            artifact_type: referrer.artifact_type.clone(),
        }
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "mediaType": self.descriptor.media_type,
            "digest": self.descriptor.digest.to_string(),
            "size": self.descriptor.size,
        });
        if let Some(artifact_type) = &self.artifact_type {
            entry["artifactType"] = artifact_type.as_str().into();
            entry["annotations"] = json!(self.descriptor.annotations);
        }
        if let Some(tag) = &self.tag {
            entry["annotations"] = json!({ REF_NAME_ANNOTATION: tag });
        }
        entry
    }
}

/// Excludes other writers of the layout until the file is closed.
pub(super) fn lock(dir: &Path) -> Result<File, Error> {
    let what = |error| Error::io(format!("lock OCI layout {}", dir.display()), error);
    let file = File::open(dir).map_err(what)?;
    file.lock().map_err(what)?;
    Ok(file)
}

/// Whether a directory that is no layout yet may hold a file of this name, left by an interrupted [`create`].
pub(super) fn is_unfinished(name: &str) -> bool {
    name == FILE || name == "blobs" || name.starts_with(TEMPORARY)
}

/// Writes an empty list.
pub(super) fn create(dir: &Path) -> Result<(), Error> {
    replace(dir, &empty())
}

/// The entries in file order.
pub(super) fn load(dir: &Path, limits: &Limits) -> Result<Vec<LayoutEntry>, Error> {
    let document = load_json(dir, limits)?;
    let entries = document["manifests"].as_array().map_or(&[][..], Vec::as_slice);
    entries
        .iter()
        .map(|entry| {
            let descriptor =
                Descriptor::deserialize(entry).map_err(|error| malformed(dir).with_source(error))?;
            Ok(LayoutEntry {
                tag: tag_of(entry).map(str::to_owned),
                descriptor,
                artifact_type: entry["artifactType"].as_str().map(str::to_owned),
            })
        })
        .collect()
}

/// The entry tagged `tag`.
pub(super) fn find(dir: &Path, tag: &str, limits: &Limits) -> Result<LayoutEntry, Error> {
    let entries = load(dir, limits)?;
    let tags = listed(&entries);
    let found = entries
        .into_iter()
        .find(|entry| entry.tag.as_deref() == Some(tag));
    found.ok_or_else(|| {
        let message = format!("OCI layout {} has no tag \"{tag}\"; it has {tags}", dir.display());
        Error::new(ErrorKind::NotFound, message)
    })
}

/// The tags of `entries` for a message; digests of those without one.
pub(super) fn listed(entries: &[LayoutEntry]) -> String {
    let names: Vec<String> = entries
        .iter()
        .map(|entry| {
            entry
                .tag
                .clone()
                .unwrap_or_else(|| entry.descriptor.digest.to_string())
        })
        .collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// Adds an entry. One with the same tag is replaced; without a tag, one with the same digest and no tag.
pub(super) fn add(dir: &Path, entry: &LayoutEntry, limits: &Limits) -> Result<(), Error> {
    let _locked = lock(dir)?;
    let mut document = load_json(dir, limits)?;
    let Some(entries) = document["manifests"].as_array_mut() else {
        return Err(malformed(dir));
    };
    let digest = entry.descriptor.digest.to_string();
    entries.retain(|old| {
        let same_tag = tag_of(old) == entry.tag.as_deref();
        let same_entry = same_tag && (entry.tag.is_some() || old["digest"] == digest.as_str());
        !same_entry
    });
    entries.push(entry.to_json());
    replace(dir, &document)
}

fn tag_of(entry: &Value) -> Option<&str> {
    entry["annotations"][REF_NAME_ANNOTATION].as_str()
}

fn empty() -> Value {
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] })
}

fn load_json(dir: &Path, limits: &Limits) -> Result<Value, Error> {
    let path = dir.join(FILE);
    let what = format!("read {}", path.display());
    let bytes = load_bounded(&path, &what, limits.manifest_len)?;
    serde_json::from_slice(&bytes).map_err(|error| malformed(dir).with_source(error))
}

fn malformed(dir: &Path) -> Error {
    let message = format!("{} is not an image index", dir.join(FILE).display());
    Error::new(ErrorKind::Corrupt, message)
}

/// Replaces the file in one step that survives a power cut.
fn replace(dir: &Path, document: &Value) -> Result<(), Error> {
    let what = |error| Error::io(format!("write {}", dir.join(FILE).display()), error);
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(Permissions::from_mode(FILE_MODE))
        .tempfile_in(dir)
        .map_err(what)?;
    file.write_all(document.to_string().as_bytes()).map_err(what)?;
    file.as_file().sync_all().map_err(what)?;
    file.persist(dir.join(FILE)).map_err(|error| what(error.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(what)
}
