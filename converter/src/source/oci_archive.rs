//! `oci-archive:` an OCI layout in a tar.

use std::collections::HashMap;

use serde_json::Value;
use sluice_format::artifact::REF_NAME_ANNOTATION;
use sluice_format::{BlobDigest, Digest, Limits};
use sluice_storage::{ManifestName, documents::ImageIndex};

use super::archive::{ArchiveRepository, Stored};
use super::tar_file::TarFile;
use crate::Error;

/// Opens the layout in `tar` and finds the manifest that `name` means; without a name, the only one.
///
/// # Errors
/// [`Error::Document`] for a broken layout, [`Error::Refused`] when the name is not enough.
pub(super) fn open(
    location: String,
    tar: &TarFile,
    name: Option<&ManifestName>,
    limits: &Limits,
) -> Result<(ArchiveRepository, ManifestName), Error> {
    let index_bytes = tar.read("index.json", limits.manifest_len)?;
    let index = ImageIndex::parse(&index_bytes, limits)?;
    let document: Value =
        serde_json::from_slice(&index_bytes).map_err(|error| Error::document("index.json", error))?;
    let tags = tags(&document);
    let name = match name {
        Some(name) => name.clone(),
        None => match &index.manifests[..] {
            [only] => ManifestName::Digest(only.descriptor.digest.0),
            several => return Err(ambiguous(&location, several.len(), tags.keys())),
        },
    };
    let repository = ArchiveRepository {
        location,
        file: tar.file().clone(),
        blobs: blobs(tar),
        tags,
        limits: limits.clone(),
    };
    Ok((repository, name))
}

/// All members under `blobs/sha256/`.
pub(super) fn blobs(tar: &TarFile) -> HashMap<BlobDigest, Stored> {
    tar.files()
        .filter_map(|(path, range)| {
            let hex = std::str::from_utf8(path.strip_prefix(b"blobs/sha256/")?).ok()?;
            let digest = Digest::from_hex(hex).ok()?;
            Some((BlobDigest(digest), Stored::Range(range.clone())))
        })
        .collect()
}

fn tags(index: &Value) -> HashMap<String, BlobDigest> {
    let entries = index["manifests"].as_array().map_or(&[][..], Vec::as_slice);
    entries
        .iter()
        .filter_map(|entry| {
            let tag = entry["annotations"][REF_NAME_ANNOTATION].as_str()?;
            Some((tag.to_owned(), entry["digest"].as_str()?.parse().ok()?))
        })
        .collect()
}

/// The error for an archive of several images when none was named.
pub(super) fn ambiguous<'a>(location: &str, images: usize, names: impl Iterator<Item = &'a String>) -> Error {
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_unstable();
    let names = names.join(", ");
    Error::Refused(format!(
        "{location} holds {images} images; name one of them: {names}"
    ))
}
