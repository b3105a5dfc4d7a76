//! Manifests, image indexes and configs as JSON.
//!
//! They are edited as JSON values and never rebuilt from types, so that fields that Sluice does not know survive, in
//! their order. A document that needs no edit keeps its bytes and thereby its digest.

use bytes::Bytes;
use serde_json::Value;
use sluice_format::artifact::{self, INDEX_ANNOTATION};
use sluice_format::{BlobDigest, DiffId, IndexLocation, Limits};
use sluice_storage::decompress::Compression;
use sluice_storage::{Descriptor, Manifest};

use crate::Error;

/// Annotations that say where something lies in the stored bytes of the source layer, by prefix: eStargz and
/// zstd:chunked. They are wrong for the new blob, and Podman refuses a layer whose zstd:chunked annotations do not hold.
const LAYOUT_ANNOTATIONS: [&str; 3] = [
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
];

/// Where an entry of an image index names the entry that it is about. Source: BuildKit, "image attestation storage".
const REFERENCE_POINTER: &str = "/annotations/vnd.docker.reference.digest";

/// Layers that are to be had only from the place in their `urls` (Windows base layers), by media type.
const NON_DISTRIBUTABLE: [&str; 5] = [
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Parses the JSON object in `bytes`; `what` names it in errors.
///
/// # Errors
/// [`Error::Document`] when it is no JSON object.
pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Value, Error> {
    let document: Value = serde_json::from_slice(bytes).map_err(|error| Error::document(what, error))?;
    if document.is_object() {
        Ok(document)
    } else {
        Err(Error::document(what, "is not a JSON object"))
    }
}

/// The bytes of an edited document: the old ones when nothing was changed.
pub(crate) fn to_bytes(old: &Manifest, before: &Value, after: &Value) -> Result<Bytes, Error> {
    if before == after {
        return Ok(old.bytes.clone());
    }
    let bytes = serde_json::to_vec(after).map_err(|error| Error::document("manifest", error))?;
    Ok(Bytes::from(bytes))
}

/// The elements of the array `field`, empty when it is absent.
pub(crate) fn array<'a>(document: &'a Value, field: &str) -> &'a [Value] {
    document
        .get(field)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// A descriptor, checked.
///
/// # Errors
/// [`Error::Document`] when a field is missing or has another type.
pub(crate) fn descriptor(value: &Value, what: &str) -> Result<Descriptor, Error> {
    serde_json::from_value(value.clone()).map_err(|error| Error::document(what, error))
}

/// The `mediaType` of a descriptor or document, empty when absent.
pub(crate) fn media_type(value: &Value) -> &str {
    value.get("mediaType").and_then(Value::as_str).unwrap_or_default()
}

/// Why a manifest is not a container image, or `None` when it is one: an image config, and layers that are tars.
pub(crate) fn why_no_image(manifest: &Value) -> Option<String> {
    let config = manifest.get("config").map(media_type).unwrap_or_default();
    if !matches!(config, artifact::OCI_CONFIG | artifact::DOCKER_CONFIG) {
        return Some(format!("its config has the media type \"{config}\""));
    }
    array(manifest, "layers")
        .iter()
        .map(media_type)
        .find_map(|layer| {
            let is_tar = Compression::of_media_type(layer).is_some() || NON_DISTRIBUTABLE.contains(&layer);
            (!is_tar).then(|| format!("it has a layer of media type \"{layer}\""))
        })
}

/// The layers of an image manifest, bottom first.
///
/// # Errors
/// [`Error::Document`] for a broken descriptor, [`Error::Unsupported`] for a layer that may not be redistributed,
/// [`Error::Format`] for too many layers.
pub(crate) fn layers(manifest: &Value, limits: &Limits) -> Result<Vec<Descriptor>, Error> {
    let layers = array(manifest, "layers");
    sluice_format::FormatError::check_limit("number of layers", layers.len() as u64, limits.layers as u64)?;
    layers.iter().map(layer).collect()
}

fn layer(value: &Value) -> Result<Descriptor, Error> {
    let layer = descriptor(value, "layer descriptor")?;
    let has_urls = value
        .get("urls")
        .and_then(Value::as_array)
        .is_some_and(|urls| !urls.is_empty());
    if has_urls || NON_DISTRIBUTABLE.contains(&layer.media_type.as_str()) {
        return Err(Error::Unsupported(
            "is a foreign layer, which may not be copied to another place; choose another platform"
                .to_owned(),
        )
        .of_layer(layer.digest));
    }
    Ok(layer)
}

/// The DiffIDs in an image config, bottom first.
///
/// # Errors
/// [`Error::Document`] when there are none or one is broken.
pub(crate) fn diff_ids(config: &Value) -> Result<Vec<DiffId>, Error> {
    let refuse = |reason: &str| Error::document("image config", reason);
    let listed = config
        .get("rootfs")
        .and_then(|rootfs| rootfs.get("diff_ids"))
        .ok_or_else(|| refuse("has no rootfs.diff_ids"))?;
    // Go writes an empty list as null.
    let listed = listed.as_array().map_or(&[][..], Vec::as_slice);
    listed
        .iter()
        .map(|id| {
            let text = id
                .as_str()
                .ok_or_else(|| refuse("has a DiffID that is no text"))?;
            text.parse().map_err(Error::from)
        })
        .collect()
}

/// `os/architecture[/variant]` of a platform object or an image config.
pub(crate) fn platform_text(value: &Value) -> Option<String> {
    let field = |name| {
        value
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let mut text = format!("{}/{}", field("os")?, field("architecture")?);
    if let Some(variant) = field("variant") {
        text.push('/');
        text.push_str(variant);
    }
    Some(text)
}

/// A layer as a new manifest names it.
#[derive(Clone, Debug)]
pub(crate) struct NewLayer {
    pub(crate) media_type: &'static str,
    pub(crate) digest: BlobDigest,
    pub(crate) stored_len: u64,
    /// Where its layer index lies in the blob.
    pub(crate) location: Option<IndexLocation>,
}

/// The manifest with its layers replaced. A Docker manifest becomes an OCI manifest, because Docker's schema knows no
/// zstd layers; the config it names keeps its bytes, so the image ID stays.
pub(crate) fn replace_layers(manifest: &Value, layers: &[NewLayer]) -> Value {
    let mut manifest = manifest.clone();
    if media_type(&manifest) == artifact::DOCKER_MANIFEST {
        manifest["mediaType"] = artifact::OCI_MANIFEST.into();
    }
    if manifest.get("config").map(media_type) == Some(artifact::DOCKER_CONFIG) {
        manifest["config"]["mediaType"] = artifact::OCI_CONFIG.into();
    }
    if let Some(descriptors) = manifest.get_mut("layers").and_then(Value::as_array_mut) {
        for (descriptor, layer) in descriptors.iter_mut().zip(layers) {
            replace_layer(descriptor, layer);
        }
    }
    manifest
}

fn replace_layer(descriptor: &mut Value, layer: &NewLayer) {
    let digest = layer.digest.to_string();
    let new_blob = descriptor.get("digest").and_then(Value::as_str) != Some(&digest);
    descriptor["mediaType"] = layer.media_type.into();
    descriptor["digest"] = digest.into();
    descriptor["size"] = layer.stored_len.into();
    let Some(fields) = descriptor.as_object_mut() else {
        return;
    };
    if new_blob {
        fields.shift_remove("data");
    }
    let annotations = fields
        .entry("annotations")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    if annotations.is_null() {
        *annotations = Value::Object(serde_json::Map::new());
    }
    let Some(annotations) = annotations.as_object_mut() else {
        return;
    };
    if new_blob {
        annotations.retain(|key, _| !is_of_layout(key));
    }
    match layer.location {
        Some(location) => {
            annotations.insert(INDEX_ANNOTATION.to_owned(), location.to_string().into());
        }
        None if annotations.is_empty() => {
            fields.shift_remove("annotations");
        }
        None => {}
    }
}

/// Whether an annotation says where something lies in the stored bytes of its layer.
fn is_of_layout(key: &str) -> bool {
    key == INDEX_ANNOTATION || LAYOUT_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix))
}

/// An entry of an image index, pointed at another manifest. `data` would be the old manifest itself.
pub(crate) fn replace_entry(entry: &mut Value, media_type: &str, digest: &str, size: u64) {
    if entry.get("digest").and_then(Value::as_str) == Some(digest) {
        return;
    }
    entry["mediaType"] = media_type.into();
    entry["digest"] = digest.into();
    entry["size"] = size.into();
    if let Some(fields) = entry.as_object_mut() {
        fields.shift_remove("data");
    }
}

/// Points entries of an image index that belong to another entry (BuildKit's attestations) at that entry's new digest.
/// `renamed` pairs old and new digests.
pub(crate) fn follow_references(index: &mut Value, renamed: &[(String, String)]) {
    let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return;
    };
    for entry in entries {
        let Some(reference) = entry.pointer_mut(REFERENCE_POINTER) else {
            continue;
        };
        if let Some((_, new)) = renamed.iter().find(|(old, _)| *reference == old.as_str()) {
            *reference = new.as_str().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn attestations_and_unknown_layers_are_no_images() {
        let image = json!({"config": {"mediaType": artifact::DOCKER_CONFIG}, "layers": [{"mediaType": artifact::DOCKER_LAYER_GZIP}]});
        assert_eq!(why_no_image(&image), None);
        let attestation = json!({"config": {"mediaType": artifact::OCI_CONFIG}, "layers": [{"mediaType": "application/vnd.in-toto+json"}]});
        assert!(why_no_image(&attestation).unwrap().contains("in-toto"));
        let chart =
            json!({"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}, "layers": []});
        assert!(why_no_image(&chart).unwrap().contains("helm"));
    }

    #[test]
    fn a_plain_layer_keeps_no_annotation_about_stored_bytes() {
        let digest = |byte: &str| format!("sha256:{}", byte.repeat(64));
        let manifest = json!({"layers": [
            {"mediaType": artifact::OCI_LAYER_ZSTD, "digest": digest("a"), "size": 9, "data": "eA==",
             "annotations": {(INDEX_ANNOTATION): "x", "io.containers.estargz.uncompressed-size": "1", "kept": "y"}},
            {"mediaType": artifact::OCI_LAYER_GZIP, "digest": digest("b"), "size": 9, "annotations": {(INDEX_ANNOTATION): "x"}},
        ]});
        let plain = |byte: &str| NewLayer {
            media_type: artifact::OCI_LAYER_TAR,
            digest: digest(byte).parse().unwrap(),
            stored_len: 7,
            location: None,
        };
        let expected = json!({"layers": [
            {"mediaType": artifact::OCI_LAYER_TAR, "digest": digest("c"), "size": 7, "annotations": {"kept": "y"}},
            {"mediaType": artifact::OCI_LAYER_TAR, "digest": digest("d"), "size": 7},
        ]});
        assert_eq!(replace_layers(&manifest, &[plain("c"), plain("d")]), expected);
    }

    #[test]
    fn foreign_layers_are_refused_by_name() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for layer in [
            json!({"mediaType": NON_DISTRIBUTABLE[4], "digest": digest, "size": 1}),
            json!({"mediaType": artifact::OCI_LAYER_GZIP, "digest": digest, "size": 1, "urls": ["https://example.com/x"]}),
        ] {
            let error = layers(&json!({"layers": [layer]}), &Limits::default()).unwrap_err();
            assert!(error.to_string().contains(&digest), "{error}");
        }
    }
}
