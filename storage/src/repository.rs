//! The contract for reading and writing images as manifests and blobs.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Deserializer, Serialize};
use sluice_format::{BlobDigest, Digest};

use crate::referrers::{self, Referrer};
use crate::{Blob, Error};

/// How a manifest is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ManifestName {
    /// By a tag, which may move.
    Tag(String),
    /// By its digest.
    Digest(Digest),
}

impl ManifestName {
    /// The tag; `None` for a digest.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest(_) => None,
        }
    }
}

impl fmt::Display for ManifestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

/// A manifest or image index with the exact bytes that its digest covers.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Media type, from the answer's header or, without one, from the document.
    pub media_type: String,
    /// Digest of `bytes`, verified.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
}

/// What a manifest says of a blob. Fields that Sluice does not interpret are not kept: documents are edited as JSON, never
/// rebuilt from this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the blob.
    pub media_type: String,
    /// Digest of the stored bytes.
    #[serde(with = "digest_text")]
    pub digest: BlobDigest,
    /// Length of the stored bytes.
    pub size: u64,
    /// Annotations. Some tools write `null` for none.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub annotations: BTreeMap<String, String>,
}

pub(crate) fn null_as_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

mod digest_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
    use sluice_format::BlobDigest;

    pub(super) fn serialize<S: Serializer>(digest: &BlobDigest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BlobDigest, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A place that holds the manifests and blobs of images.
pub trait Repository: Debug + Send + Sync {
    /// Where the repository is, for messages: `docker://host/name`, `oci:path`.
    fn location(&self) -> String {
        format!("{self:?}")
    }

    /// Opens connections beside whatever is asked for first, so that what is asked for next need not wait for them. Returns at once, and never fails.
    fn connect(&self) {}

    /// The manifest or image index called `name`, its bytes checked against the digest.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when there is none;
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when its bytes do not match the digest.
    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>>;

    /// The blob of a descriptor. Opening moves no byte; absence shows when the blob is read.
    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob>;

    /// All bytes of a small blob (an image config), verified against its digest.
    ///
    /// # Errors
    /// As [`Blob::read_range`]; [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the digest does not match;
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when the blob is larger than `max_len`.
    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>>;

    /// The artifacts of this type attached to manifest `subject`, in no order; at most
    /// [`REFERRERS_MAX`](referrers::REFERRERS_MAX). None is no error. A list may be wrong: see
    /// [`fetch_artifact`](referrers::fetch_artifact).
    ///
    /// # Errors
    /// What hinders reading the list.
    fn fetch_referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Referrer>, Error>> {
        Box::pin(referrers::fetch_tagged(self, subject, artifact_type))
    }
}

/// A repository that takes new images.
pub trait WritableRepository: Repository {
    /// Whether a blob is there already.
    ///
    /// # Errors
    /// Whatever hinders the question; absence is `Ok(false)`.
    fn has_blob<'a>(&'a self, digest: &'a BlobDigest) -> BoxFuture<'a, Result<bool, Error>>;

    /// Takes a blob over from another repository of the same registry without moving its bytes. `Ok(false)` when this
    /// place cannot do that, as most cannot.
    ///
    /// # Errors
    /// Whatever hinders the question.
    fn mount_blob<'a>(
        &'a self,
        _digest: &'a BlobDigest,
        _from_repository: &'a str,
    ) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// Starts a blob whose digest is known only at its end.
    ///
    /// # Errors
    /// Whatever hinders writing.
    fn begin_blob(&self) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, Error>>;

    /// Stores a manifest or image index under its digest and, when `name` is a tag, under the tag. All blobs it names
    /// must have been stored. Atomic.
    ///
    /// # Errors
    /// Whatever hinders writing.
    fn put_manifest<'a>(
        &'a self,
        name: &'a ManifestName,
        media_type: &'a str,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Stores the manifest `bytes`, which names `subject` as its subject, under its digest and lists it among the
    /// referrers of `subject`. Idempotent.
    ///
    /// # Errors
    /// Whatever hinders writing.
    fn put_referrer<'a>(
        &'a self,
        subject: &'a Digest,
        referrer: &'a Referrer,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(referrers::put_tagged(self, subject, referrer, bytes))
    }
}

/// A blob being written. Dropping it before [`BlobWriter::finish`] leaves nothing behind.
pub trait BlobWriter: Debug + Send {
    /// Appends bytes. Waits while the place takes no more.
    ///
    /// # Errors
    /// Whatever hinders writing, after retries.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), Error>>;

    /// Ends the blob, whose digest over all bytes written is `digest`. Idempotent with an equal blob stored before.
    ///
    /// # Errors
    /// Whatever hinders writing; the place checks the digest where it can.
    fn finish(self: Box<Self>, digest: BlobDigest) -> BoxFuture<'static, Result<(), Error>>;
}
