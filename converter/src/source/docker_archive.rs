//! `docker-archive:` what `docker save` and `podman save` write.
//!
//! `manifest.json` lists images; each names its config, its layers from the bottom, and the references under which it was
//! saved. Layers are plain tars, so a layer's blob digest is the DiffID that the config has for it; it is verified when
//! the layer is read. A compressed layer, which some tools write, is read once for its digest. Old archives store a repeated
//! layer as a symbolic link. The manifest that registries have is not in the archive and is made up here.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_format::{BlobDigest, DiffId, Digest, Hasher, Limits, artifact};
use sluice_storage::ManifestName;
use sluice_storage::decompress::Compression;
use sluice_storage::documents::ImageConfig;

use super::archive::{ArchiveRepository, Stored};
use super::oci_archive::ambiguous;
use super::tar_file::TarFile;
use crate::Error;

/// Length of the reads that compute the digest of a compressed layer, in bytes.
const HASH_READ_LEN: u64 = 1 << 20;

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Opens the archive in `tar` and makes up the manifest of the image that `reference` names; without one, of the only
/// image. Blocks on the disk.
///
/// # Errors
/// [`Error::Document`] for a broken archive, [`Error::Refused`] when the reference is not enough.
pub(super) fn open(
    location: String,
    tar: &TarFile,
    reference: Option<&str>,
    limits: &Limits,
) -> Result<(ArchiveRepository, ManifestName), Error> {
    let listed = tar.read("manifest.json", limits.manifest_len)?;
    let images: Vec<SavedImage> =
        serde_json::from_slice(&listed).map_err(|error| Error::document("manifest.json", error))?;
    let image = choose(&location, &images, reference)?;
    let mut blobs = HashMap::new();
    let manifest = manifest_of(tar, image, &mut blobs, limits)?;
    let digest = Digest::of(&manifest);
    blobs.insert(BlobDigest(digest), Stored::Made(manifest));
    let repository = ArchiveRepository {
        location,
        file: tar.file().clone(),
        blobs,
        tags: HashMap::new(),
        limits: limits.clone(),
    };
    Ok((repository, ManifestName::Digest(digest)))
}

fn choose<'a>(
    location: &str,
    images: &'a [SavedImage],
    reference: Option<&str>,
) -> Result<&'a SavedImage, Error> {
    let tags_of = |image: &'a SavedImage| image.repo_tags.iter().flatten();
    let all_tags = || images.iter().flat_map(tags_of);
    match (reference, images) {
        (None, [only]) => Ok(only),
        (None, several) => Err(ambiguous(location, several.len(), all_tags())),
        (Some(reference), _) => images
            .iter()
            .find(|image| tags_of(image).any(|tag| same_reference(tag, reference)))
            .ok_or_else(|| {
                let names: Vec<_> = all_tags().map(String::as_str).collect();
                Error::Refused(format!(
                    "{location} holds no image {reference}; it has {}",
                    names.join(", ")
                ))
            }),
    }
}

/// Whether the archive's name for an image is what the user wrote: `busybox` is `busybox:latest`, and Podman writes
/// `docker.io/library/busybox:latest` for it.
fn same_reference(saved: &str, wanted: &str) -> bool {
    let full = |text: &str| text.parse::<sluice_storage::Reference>().ok();
    saved == wanted || full(saved).is_some_and(|saved| full(wanted) == Some(saved))
}

fn manifest_of(
    tar: &TarFile,
    image: &SavedImage,
    blobs: &mut HashMap<BlobDigest, Stored>,
    limits: &Limits,
) -> Result<Bytes, Error> {
    let config = tar.read(&image.config, limits.manifest_len)?;
    let diff_ids = ImageConfig::parse(&config, limits)?.diff_ids;
    let paths = image.layers.as_deref().unwrap_or_default();
    if paths.len() != diff_ids.len() {
        let reason = format!("lists {} layers, the config {}", paths.len(), diff_ids.len());
        return Err(Error::document("manifest.json", reason));
    }
    let mut layers = Vec::with_capacity(paths.len());
    for (path, diff_id) in paths.iter().zip(diff_ids) {
        layers.push(layer_of(tar, path, diff_id, blobs)?);
    }
    let config_digest = Digest::of(&config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": artifact::OCI_MANIFEST,
        "config": descriptor(artifact::OCI_CONFIG, config_digest, config.len() as u64),
        "layers": layers,
    });
    blobs.insert(BlobDigest(config_digest), Stored::Made(config.into()));
    Ok(Bytes::from(manifest.to_string()))
}

fn layer_of(
    tar: &TarFile,
    path: &str,
    diff_id: DiffId,
    blobs: &mut HashMap<BlobDigest, Stored>,
) -> Result<Value, Error> {
    let missing = || {
        Error::document(
            "manifest.json",
            format!("names the layer {path}, which is not there"),
        )
    };
    let range = tar.find(path).ok_or_else(missing)?;
    let read = |error| Error::io(format!("cannot read {path} in the archive"), error);
    let len = range.end - range.start;
    let mut start = [0; Compression::MAGIC_LEN];
    let start = &mut start[..Compression::MAGIC_LEN.min(usize::try_from(len).unwrap_or(usize::MAX))];
    tar.file().read_exact_at(start, range.start).map_err(read)?;
    let (media_type, digest) = match Compression::of(start)? {
        Compression::Plain => (artifact::OCI_LAYER_TAR, diff_id.0),
        Compression::Gzip => (artifact::OCI_LAYER_GZIP, digest_of(tar, &range).map_err(read)?),
        Compression::Zstd => (artifact::OCI_LAYER_ZSTD, digest_of(tar, &range).map_err(read)?),
    };
    blobs.insert(BlobDigest(digest), Stored::Range(range));
    Ok(descriptor(media_type, digest, len))
}

fn digest_of(tar: &TarFile, range: &Range<u64>) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut piece = Vec::new();
    let mut off = range.start;
    while off < range.end {
        let len = HASH_READ_LEN.min(range.end - off);
        piece.resize(len as usize, 0);
        tar.file().read_exact_at(&mut piece, off)?;
        hasher.update(&piece);
        off += len;
    }
    Ok(hasher.finish())
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_compared_in_full_form() {
        assert!(same_reference("docker.io/library/busybox:latest", "busybox"));
        assert!(same_reference("busybox:latest", "busybox"));
        assert!(!same_reference("busybox:1", "busybox"));
    }

    #[test]
    fn an_archive_of_several_images_asks_for_a_name() {
        let image = |tag: &str| SavedImage {
            config: String::new(),
            repo_tags: Some(vec![tag.to_owned()]),
            layers: None,
        };
        let images = [image("a:1"), image("b:1")];
        let error = choose("docker-archive:x", &images, None).unwrap_err().to_string();
        assert!(error.contains("a:1, b:1"), "{error}");
        assert_eq!(
            choose("x", &images, Some("b:1"))
                .unwrap()
                .repo_tags
                .as_ref()
                .unwrap()[0],
            "b:1"
        );
        assert!(choose("x", &images, Some("c")).is_err());
    }
}
