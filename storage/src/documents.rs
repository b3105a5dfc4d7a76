//! Typed views of the JSON documents of an image.
//!
//! Only the fields that Sluice reads are here; others are skipped. A view is for reading: a document that is changed and
//! stored again is edited as JSON, because a view would lose what it does not know. Every parser is bounded by
//! [`Limits`] before it sees the first byte.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sluice_format::{DiffId, FormatError, Limits, artifact};

use crate::{Descriptor, Error, ErrorKind, Platform};

/// The manifest of one platform.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageManifest {
    /// The image config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

impl ImageManifest {
    /// Parses an OCI or Docker image manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the bytes are no such document or pass a limit.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Error> {
        let manifest: Self = parse("image manifest", bytes, limits)?;
        FormatError::check_limit(
            "number of layers",
            manifest.layers.len() as u64,
            limits.layers as u64,
        )?;
        Ok(manifest)
    }
}

/// The list of an image's platforms.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageIndex {
    /// One entry per platform; also attestations, which name an unknown platform or none.
    pub manifests: Vec<ImageIndexEntry>,
}

/// One entry of an image index.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageIndexEntry {
    /// The manifest.
    #[serde(flatten)]
    pub descriptor: Descriptor,
    /// The platform it is for.
    #[serde(default, deserialize_with = "platform")]
    pub platform: Option<Platform>,
}

impl ImageIndex {
    /// Parses an OCI image index or a Docker manifest list.
    ///
    /// # Errors
    /// As [`ImageManifest::parse`].
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Error> {
        parse("image index", bytes, limits)
    }
}

/// What Sluice reads of an image config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// DiffIDs of the layers, lowest first.
    pub diff_ids: Vec<DiffId>,
}

#[derive(Deserialize)]
struct ConfigDocument {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl ImageConfig {
    /// Parses an image config.
    ///
    /// # Errors
    /// As [`ImageManifest::parse`].
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Error> {
        let document: ConfigDocument = parse("image config", bytes, limits)?;
        let listed = document.rootfs.diff_ids;
        FormatError::check_limit("number of DiffIDs", listed.len() as u64, limits.layers as u64)?;
        let diff_ids = listed
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, FormatError>>()?;
        Ok(Self { diff_ids })
    }
}

/// The media type of a manifest or image index that came without one: from the document itself, or from the fields that it
/// has.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when the document is neither.
pub fn manifest_media_type(bytes: &[u8], limits: &Limits) -> Result<String, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = parse("manifest", bytes, limits)?;
    match shape {
        Shape {
            media_type: Some(media_type),
            ..
        } => Ok(media_type),
        Shape {
            manifests: Some(_), ..
        } => Ok(artifact::OCI_INDEX.to_owned()),
        Shape { layers: Some(_), .. } => Ok(artifact::OCI_MANIFEST.to_owned()),
        _ => Err(Error::new(
            ErrorKind::Corrupt,
            "the document is neither an image manifest nor an image index",
        )),
    }
}

pub(crate) fn parse<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    limits: &Limits,
) -> Result<T, Error> {
    FormatError::check_limit(
        "length of a manifest or config",
        bytes.len() as u64,
        limits.manifest_len,
    )?;
    serde_json::from_slice(bytes).map_err(|error| {
        let message = format!("the {what} is not valid");
        Error::new(ErrorKind::Corrupt, message).with_source(error)
    })
}

fn platform<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Platform>, D::Error> {
    #[derive(Deserialize)]
    struct Field {
        os: String,
        architecture: String,
        variant: Option<String>,
    }
    let field = Option::<Field>::deserialize(from)?;
    Ok(field.map(|field| Platform {
        os: field.os,
        architecture: field.architecture,
        variant: field.variant.filter(|variant| !variant.is_empty()),
    }))
}

#[cfg(test)]
mod tests {
    use sluice_format::Digest;

    use super::*;

    #[test]
    fn unknown_fields_and_null_annotations_are_no_obstacle() {
        let digest = Digest::of(b"x");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"m","new":[1],"config":{{"mediaType":"c","digest":"{digest}","size":1}},
            "layers":[{{"mediaType":"l","digest":"{digest}","size":2,"annotations":null,"urls":[]}}]}}"#
        );
        let manifest = ImageManifest::parse(text.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(manifest.layers[0].size, 2);
        assert_eq!(manifest.config.digest.0, digest);
    }

    #[test]
    fn entries_without_platform_are_kept() {
        let digest = Digest::of(b"x");
        let text = format!(
            r#"{{"manifests":[{{"mediaType":"m","digest":"{digest}","size":1}},
            {{"mediaType":"m","digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"arm","variant":""}}}}]}}"#
        );
        let index = ImageIndex::parse(text.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(index.manifests[0].platform, None);
        let platform = index.manifests[1].platform.as_ref().unwrap();
        assert_eq!(platform.to_string(), "linux/arm");
    }

    #[test]
    fn a_media_type_is_found_without_the_header() {
        let limits = Limits::default();
        let of = |text: &str| manifest_media_type(text.as_bytes(), &limits);
        assert_eq!(of(r#"{"mediaType":"x/y","layers":[]}"#).unwrap(), "x/y");
        assert_eq!(of(r#"{"layers":[]}"#).unwrap(), artifact::OCI_MANIFEST);
        assert_eq!(of(r#"{"manifests":[]}"#).unwrap(), artifact::OCI_INDEX);
        assert_eq!(of("{}").unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn limits_and_nonsense_are_refused() {
        let limits = Limits {
            manifest_len: 100,
            layers: 1,
            ..Limits::default()
        };
        assert!(ImageIndex::parse(&[b' '; 101], &limits).is_err());
        assert!(ImageIndex::parse(b"[]", &limits).is_err());
        let two = r#"{"rootfs":{"diff_ids":["sha256:1","sha256:2"]}}"#;
        let error = ImageConfig::parse(two.as_bytes(), &limits).unwrap_err();
        assert!(error.to_string().contains("limit of 1"), "{error}");
    }
}
