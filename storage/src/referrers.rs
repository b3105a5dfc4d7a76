//! Artifacts attached to an image: manifests whose `subject` is the image manifest.
//!
//! What belongs to an image without being part of it travels this way, so that the image's own digest and signatures stay.
//! [`attach_artifact`] stores the documents of an artifact and its manifest; [`Repository::fetch_referrers`] lists what is
//! attached to a manifest, and [`fetch_artifact`] reads one of the list. A list is whatever somebody wrote there: an artifact
//! is believed to belong to the subject only when its own manifest, read by digest, says so.
//!
//! How a repository knows its referrers is its own affair. A registry has an API for it; where it has none, and by default
//! here, the tag `sha256-<hex>` names an image index that lists them. Source: OCI distribution spec 1.1, "Listing referrers" and
//! "Pushing manifests with subject".

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sluice_format::artifact::{OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, is_image_index};
use sluice_format::{BlobDigest, Digest, FormatError, Limits};

use crate::documents;
use crate::repository::null_as_default;
use crate::{Descriptor, Error, ErrorKind, Manifest, ManifestName, Repository, WritableRepository};

/// Referrers of one manifest that are looked at; what is listed behind them is not there.
pub const REFERRERS_MAX: usize = 1000;

/// The document behind [`OCI_EMPTY`].
const EMPTY: &[u8] = b"{}";

/// Writes of the list by tag before giving up against others who write it at the same time.
const LIST_ATTEMPTS: usize = 4;

/// What a list says of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// The artifact's manifest. Its annotations are copied from there.
    #[serde(flatten)]
    pub descriptor: Descriptor,
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Referrer {
    pub(crate) fn has_type(&self, artifact_type: &str) -> bool {
        self.artifact_type.as_deref() == Some(artifact_type)
    }
}

/// The manifest of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactManifest {
    /// What kind of artifact it is.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// The manifest that it belongs to.
    pub subject: Option<Descriptor>,
    /// Its documents.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    /// Its annotations.
    #[serde(default, deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

impl ArtifactManifest {
    /// Parses an OCI image manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the bytes are no such document or pass a limit.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Error> {
        let manifest: Self = documents::parse("artifact manifest", bytes, limits)?;
        FormatError::check_limit(
            "number of documents of an artifact",
            manifest.layers.len() as u64,
            limits.layers as u64,
        )?;
        Ok(manifest)
    }

    /// Whether the artifact is of this type and attached to `subject`.
    pub fn belongs(&self, artifact_type: &str, subject: &Digest) -> bool {
        let attached = self.subject.as_ref().map(|descriptor| descriptor.digest.0);
        self.artifact_type.as_deref() == Some(artifact_type) && attached == Some(*subject)
    }
}

/// One document of an artifact to be attached.
#[derive(Clone, Debug)]
pub struct ArtifactDocument {
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
    /// Annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// An artifact to be attached.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// What kind of artifact it is.
    pub artifact_type: String,
    /// Its documents, at least one.
    pub documents: Vec<ArtifactDocument>,
    /// Annotations of its manifest, which lists copy.
    pub annotations: BTreeMap<String, String>,
}

/// Stores `artifact` and lists it as a referrer of the manifest `subject`, which need not be there. Gives the digest of the
/// artifact's manifest. Attaching an equal artifact twice changes nothing.
///
/// # Errors
/// What hinders writing. What was stored before stays, and nothing refers to it.
pub async fn attach_artifact(
    repository: &dyn WritableRepository,
    subject: &Descriptor,
    artifact: &Artifact,
) -> Result<Digest, Error> {
    let config = put_blob(repository, OCI_EMPTY, Bytes::from_static(EMPTY)).await?;
    let mut layers = Vec::new();
    for document in &artifact.documents {
        let stored = put_blob(repository, &document.media_type, document.bytes.clone()).await?;
        layers.push(Descriptor {
            annotations: document.annotations.clone(),
            ..stored
        });
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact.artifact_type,
        "config": config,
        "layers": layers,
        "subject": Descriptor { annotations: BTreeMap::new(), ..subject.clone() },
        "annotations": artifact.annotations,
    });
    let bytes = Bytes::from(manifest.to_string());
    let referrer = Referrer {
        descriptor: Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: BlobDigest(Digest::of(&bytes)),
            size: bytes.len() as u64,
            annotations: artifact.annotations.clone(),
        },
        artifact_type: Some(artifact.artifact_type.clone()),
    };
    repository
        .put_referrer(&subject.digest.0, &referrer, bytes)
        .await?;
    Ok(referrer.descriptor.digest.0)
}

/// The manifest of an artifact from a list of what is attached to `subject`. `None` when it is not of the type that the list
/// said, or belongs to something else.
///
/// # Errors
/// What hinders reading; [`ErrorKind::Corrupt`] when it is no manifest.
pub async fn fetch_artifact(
    repository: &dyn Repository,
    subject: &Digest,
    artifact_type: &str,
    referrer: &Referrer,
    limits: &Limits,
) -> Result<Option<ArtifactManifest>, Error> {
    let name = ManifestName::Digest(referrer.descriptor.digest.0);
    let found = repository.fetch_manifest(&name).await?;
    let manifest = ArtifactManifest::parse(&found.bytes, limits)?;
    Ok(Some(manifest).filter(|manifest| manifest.belongs(artifact_type, subject)))
}

/// The tag that lists the referrers of a manifest where there is no API for it.
pub fn referrers_tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.to_hex())
}

/// The referrers that the tag of `subject` lists.
pub(crate) async fn fetch_tagged<R: Repository + ?Sized>(
    repository: &R,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Vec<Referrer>, Error> {
    match fetch_list(repository, subject).await? {
        Some(list) => parse_list(&list.bytes, artifact_type, &Limits::default()),
        None => Ok(Vec::new()),
    }
}

/// Stores the manifest of a referrer and lists it under the tag of `subject`.
pub(crate) async fn put_tagged<R: WritableRepository + ?Sized>(
    repository: &R,
    subject: &Digest,
    referrer: &Referrer,
    bytes: Bytes,
) -> Result<(), Error> {
    let name = ManifestName::Digest(referrer.descriptor.digest.0);
    repository
        .put_manifest(&name, &referrer.descriptor.media_type, bytes)
        .await?;
    list_tagged(repository, subject, referrer).await
}

/// Adds a referrer to the list under the tag of `subject`. Others may write the list at the same time, and the last one wins: so
/// it is read again until it has the entry.
pub(crate) async fn list_tagged<R: WritableRepository + ?Sized>(
    repository: &R,
    subject: &Digest,
    referrer: &Referrer,
) -> Result<(), Error> {
    let tag = ManifestName::Tag(referrers_tag(subject));
    for _ in 0..LIST_ATTEMPTS {
        let old = fetch_list(repository, subject).await?;
        let Some(list) = extended(old.as_ref(), referrer, &tag)? else {
            return Ok(());
        };
        repository.put_manifest(&tag, OCI_INDEX, list).await?;
    }
    let message = format!(
        "others keep writing the list {tag} of {} at the same time",
        repository.location()
    );
    Err(Error::new(ErrorKind::Unavailable, message))
}

async fn fetch_list<R: Repository + ?Sized>(
    repository: &R,
    subject: &Digest,
) -> Result<Option<Manifest>, Error> {
    let tag = ManifestName::Tag(referrers_tag(subject));
    match repository.fetch_manifest(&tag).await {
        Ok(list) => Ok(Some(list)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The list with one entry more, edited as JSON so that what others wrote stays; `None` when it has the entry.
fn extended(old: Option<&Manifest>, referrer: &Referrer, tag: &ManifestName) -> Result<Option<Bytes>, Error> {
    let refuse = || {
        let message = format!("tag {tag} is taken by something that is no list of referrers");
        Error::new(ErrorKind::Unsupported, message)
    };
    let mut list = match old {
        None => json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }),
        Some(old) if is_image_index(&old.media_type) => {
            serde_json::from_slice(&old.bytes).map_err(|error| refuse().with_source(error))?
        }
        Some(_) => return Err(refuse()),
    };
    let entries = list["manifests"].as_array_mut().ok_or_else(refuse)?;
    let digest = referrer.descriptor.digest.to_string();
    if entries.iter().any(|entry| entry["digest"] == digest.as_str()) {
        return Ok(None);
    }
    entries.push(json!(referrer));
    Ok(Some(list.to_string().into()))
}

/// The entries of a list that are of this type. Entries that are not understood are passed over.
pub(crate) fn parse_list(bytes: &[u8], artifact_type: &str, limits: &Limits) -> Result<Vec<Referrer>, Error> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default, deserialize_with = "null_as_default")]
        manifests: Vec<Value>,
    }
    let list: List = documents::parse("list of referrers", bytes, limits)?;
    let entries = list.manifests.into_iter().filter_map(|entry| {
        let referrer: Option<Referrer> = serde_json::from_value(entry).ok();
        referrer.filter(|referrer| referrer.has_type(artifact_type))
    });
    Ok(entries.take(REFERRERS_MAX).collect())
}

async fn put_blob(
    repository: &dyn WritableRepository,
    media_type: &str,
    bytes: Bytes,
) -> Result<Descriptor, Error> {
    let descriptor = Descriptor {
        media_type: media_type.to_owned(),
        digest: BlobDigest(Digest::of(&bytes)),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
    };
    if !repository.has_blob(&descriptor.digest).await? {
        let mut writer = repository.begin_blob().await?;
        writer.write(bytes).await?;
        writer.finish(descriptor.digest).await?;
    }
    Ok(descriptor)
}
