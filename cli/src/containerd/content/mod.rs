//! containerd's content store as a place that holds images.
//!
//! Blobs go in as ingests that are committed with the expected digest ([`upload`]), and documents with labels that refer to what they name,
//! so that containerd's garbage collector keeps all of it as long as the image has a name. A tag is an image's name in containerd. What is
//! stored belongs to the lease of the client until then.

mod upload;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use sluice_format::{BlobDigest, Digest, FormatError, Limits, artifact};
use sluice_storage::documents::{ImageIndex, ImageManifest, manifest_media_type};
use sluice_storage::{
    Blob, BlobWriter, ByteStream, Descriptor, Error, ErrorKind, Manifest, ManifestName, Repository,
    WritableRepository,
};
use tonic::{Code, Status};

use self::upload::Upload;
use super::client::{Client, Labels};
use super::proto::content::v1::ReadContentRequest;

/// Where containerd looks for what a blob refers to.
pub(super) const CONTENT_REFERENCE: &str = "containerd.io/gc.ref.content.";

/// The content store of one namespace.
#[derive(Debug)]
pub(crate) struct ContentStore {
    client: Client,
    namespace: String,
    limits: Limits,
    /// Ingests that were begun and neither committed nor called off.
    unfinished: Arc<Mutex<BTreeSet<String>>>,
}

impl ContentStore {
    /// The store that `client` reaches, of the namespace called `namespace`.
    pub(crate) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            client: client.clone(),
            namespace: namespace.to_owned(),
            limits: Limits::default(),
            unfinished: Arc::default(),
        }
    }

    /// Calls off what was begun and not finished.
    pub(crate) async fn clean_up(&self) {
        let unfinished = std::mem::take(&mut *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner));
        for reference in unfinished {
            if let Err(error) = upload::call_off(&self.client, &reference).await {
                tracing::warn!(ingest = reference, %error, "an unfinished upload stays in containerd until it is collected");
            }
        }
    }

    /// All bytes of a document, verified.
    async fn load(&self, digest: BlobDigest, max_len: u64) -> Result<Bytes, Error> {
        let what = || format!("blob {digest} in containerd");
        let stored_len = self.client.blob_len(&digest.to_string()).await;
        let stored_len = stored_len.map_err(|status| refused(what(), &status))?;
        FormatError::check_limit("length of a document", stored_len, max_len)?;
        let bytes = read(&self.client, digest, 0..stored_len).await?;
        let found = Digest::of(&bytes);
        if found != digest.0 {
            let (what, expected) = (what(), digest.0);
            return Err(FormatError::Corrupt {
                what,
                expected,
                found,
            }
            .into());
        }
        Ok(bytes)
    }
}

impl Repository for ContentStore {
    fn location(&self) -> String {
        format!("containerd, namespace {}", self.namespace)
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        async move {
            let digest = match name {
                ManifestName::Digest(digest) => *digest,
                ManifestName::Tag(name) => {
                    let target = self.client.image_target(name).await;
                    let target = target.map_err(|status| refused(format!("image {name}"), &status))?;
                    target
                        .ok_or_else(|| {
                            Error::new(ErrorKind::NotFound, format!("containerd has no image {name}"))
                        })?
                        .parse()?
                }
            };
            let bytes = self.load(BlobDigest(digest), self.limits.manifest_len).await?;
            Ok(Manifest {
                media_type: manifest_media_type(&bytes, &self.limits)?,
                digest,
                bytes,
            })
        }
        .boxed()
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        Arc::new(ContentBlob {
            client: self.client.clone(),
            digest: descriptor.digest,
            stored_len: descriptor.size,
            upstream: self.location().into(),
        })
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        self.load(descriptor.digest, max_len).boxed()
    }
}

impl WritableRepository for ContentStore {
    fn has_blob<'a>(&'a self, digest: &'a BlobDigest) -> BoxFuture<'a, Result<bool, Error>> {
        async move {
            let found = self.client.has_blob(&digest.to_string()).await;
            found.map_err(|status| refused(format!("the question for blob {digest}"), &status))
        }
        .boxed()
    }

    fn begin_blob(&self) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, Error>> {
        let upload = Upload::begin(&self.client, &self.unfinished);
        futures_util::future::ready(Ok(Box::new(upload) as Box<dyn BlobWriter>)).boxed()
    }

    fn put_manifest<'a>(
        &'a self,
        name: &'a ManifestName,
        media_type: &'a str,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let document = Descriptor {
                media_type: media_type.to_owned(),
                digest: BlobDigest(Digest::of(&bytes)),
                size: bytes.len() as u64,
                annotations: Default::default(),
            };
            let labels = references(media_type, &bytes, &self.limits)?;
            let whole = stream::once(async move { Ok(bytes) }).boxed();
            let put = self.client.put_blob(&document, whole, labels).await;
            put.map_err(|error| failed("storing a manifest in containerd", error))?;
            if let ManifestName::Tag(name) = name {
                let named = self.client.name_image(name, &document).await;
                named.map_err(|error| failed("naming the image in containerd", error))?;
            }
            Ok(())
        }
        .boxed()
    }
}

/// Labels by which a document refers to what it names, as containerd's own pull sets them.
fn references(media_type: &str, bytes: &[u8], limits: &Limits) -> Result<Labels, Error> {
    let refer =
        |name: String, blob: &Descriptor| (format!("{CONTENT_REFERENCE}{name}"), blob.digest.to_string());
    if artifact::is_image_index(media_type) {
        let index = ImageIndex::parse(bytes, limits)?;
        let entries = index.manifests.iter().enumerate();
        return Ok(entries
            .map(|(at, entry)| refer(format!("m.{at}"), &entry.descriptor))
            .collect());
    }
    let manifest = ImageManifest::parse(bytes, limits)?;
    let layers = manifest.layers.iter().enumerate();
    let layers = layers.map(|(at, layer)| refer(format!("l.{at}"), layer));
    Ok(layers
        .chain([refer("config".to_owned(), &manifest.config)])
        .collect())
}

/// A blob in the content store.
#[derive(Debug)]
struct ContentBlob {
    client: Client,
    digest: BlobDigest,
    stored_len: u64,
    upstream: Arc<str>,
}

impl ContentBlob {
    fn check(&self, stored: &Range<u64>) -> Result<(), Error> {
        if stored.start <= stored.end && stored.end <= self.stored_len {
            return Ok(());
        }
        let message = format!("blob {} has no range {stored:?}", self.digest);
        Err(Error::new(ErrorKind::InvalidInput, message))
    }
}

impl Blob for ContentBlob {
    fn digest(&self) -> BlobDigest {
        self.digest
    }

    fn stored_len(&self) -> u64 {
        self.stored_len
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        async move {
            self.check(&stored)?;
            read(&self.client, self.digest, stored).await
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            self.check(&stored)?;
            pieces(&self.client, self.digest, stored).await
        }
        .boxed()
    }

    fn upstream(&self) -> Arc<str> {
        self.upstream.clone()
    }
}

/// All bytes of a range that fits into memory.
async fn read(client: &Client, digest: BlobDigest, stored: Range<u64>) -> Result<Bytes, Error> {
    let mut pieces = pieces(client, digest, stored).await?;
    let mut bytes = BytesMut::new();
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

/// The bytes of a range as containerd sends them; neither more nor fewer.
async fn pieces(client: &Client, digest: BlobDigest, stored: Range<u64>) -> Result<ByteStream, Error> {
    let what = move || format!("reading blob {digest} in containerd");
    let len = stored.end - stored.start;
    if len == 0 {
        return Ok(stream::empty().boxed());
    }
    let integer = |value: u64| {
        i64::try_from(value).map_err(|error| Error::new(ErrorKind::InvalidInput, what()).with_source(error))
    };
    let request = client.request(ReadContentRequest {
        digest: digest.to_string(),
        offset: integer(stored.start)?,
        size: integer(len)?,
    });
    let answers = client.content().read(request).await;
    let answers = answers.map_err(|status| refused(what(), &status))?.into_inner();
    let other_len = move || Error::new(ErrorKind::Corrupt, format!("{}: not {len} bytes came", what()));
    let pieces = stream::try_unfold((answers, len), move |(mut answers, left)| async move {
        let answer = answers.try_next().await;
        match answer.map_err(|status| refused(what(), &status))? {
            Some(answer) => {
                let left = left.checked_sub(answer.data.len() as u64).ok_or_else(other_len)?;
                Ok(Some((Bytes::from(answer.data), (answers, left))))
            }
            None if left == 0 => Ok(None),
            None => Err(other_len()),
        }
    });
    Ok(pieces.boxed())
}

/// What containerd's answer means for `what`.
fn refused(what: String, status: &Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::Denied,
        Code::Unavailable | Code::DeadlineExceeded => ErrorKind::Unavailable,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::ResourceExhausted => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    Error::new(kind, what).with_source(status.clone())
}

fn failed(what: &str, error: anyhow::Error) -> Error {
    match error.downcast::<Status>() {
        Ok(status) => refused(what.to_owned(), &status),
        Err(error) => Error::new(ErrorKind::Io, what).with_source(error),
    }
}
