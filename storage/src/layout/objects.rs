//! Reading a layout, wherever its files are.
//!
//! [`Objects`] is what a place must be able to do; the functions here read manifests and blobs through it.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sluice_format::{BlobDigest, Digest, FormatError, Limits};

use super::catalog;
use crate::{Blob, Descriptor, Error, ErrorKind, Manifest, ManifestName, documents};

/// The files of a layout, for reading.
pub(crate) trait Objects: Debug + Send + Sync {
    /// Where they are, for messages.
    fn location(&self) -> String;

    /// All bytes of a file that has at most `max_len`. `path` has slashes and is relative.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none; an error for a longer one; what hinders reading.
    fn fetch<'a>(&'a self, path: &'a str, max_len: u64) -> BoxFuture<'a, Result<Bytes, Error>>;

    /// The file at `path` as a blob. Opening moves no byte.
    fn open(&self, path: &str, digest: BlobDigest, stored_len: u64) -> Arc<dyn Blob>;
}

/// Where a blob or manifest is within a layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.to_hex())
}

pub(super) async fn fetch_manifest(
    objects: &dyn Objects,
    name: &ManifestName,
    limits: &Limits,
) -> Result<Manifest, Error> {
    let location = objects.location();
    let (digest, listed_type) = match name {
        ManifestName::Digest(digest) => (*digest, None),
        ManifestName::Tag(tag) => {
            let bytes = objects.fetch(catalog::FILE, limits.manifest_len).await?;
            let entry = catalog::find(catalog::parse(&location, &bytes)?, &location, tag)?;
            (entry.descriptor.digest.0, Some(entry.descriptor.media_type))
        }
    };
    let what = format!("manifest {digest} of OCI layout {location}");
    let bytes = objects.fetch(&blob_path(&digest), limits.manifest_len).await?;
    verify(&what, &bytes, &digest)?;
    let media_type = match listed_type.filter(|media_type| !media_type.is_empty()) {
        Some(media_type) => media_type,
        None => documents::manifest_media_type(&bytes, limits)?,
    };
    Ok(Manifest {
        media_type,
        digest,
        bytes,
    })
}

pub(super) async fn fetch_blob(
    objects: &dyn Objects,
    descriptor: &Descriptor,
    max_len: u64,
) -> Result<Bytes, Error> {
    let Descriptor { digest, size, .. } = descriptor;
    let what = format!("blob {digest} of OCI layout {}", objects.location());
    check_len(&what, *size, max_len)?;
    let bytes = objects.fetch(&blob_path(&digest.0), *size).await?;
    verify(&what, &bytes, &digest.0)?;
    Ok(bytes)
}

pub(super) fn check_len(what: &str, len: u64, max_len: u64) -> Result<(), Error> {
    if len <= max_len {
        return Ok(());
    }
    let message = format!("{what} has {len} bytes, over the limit of {max_len}");
    Err(Error::new(ErrorKind::InvalidInput, message))
}

/// Compares the digest of a document with the expected one.
pub(super) fn verify(what: &str, bytes: &[u8], expected: &Digest) -> Result<(), Error> {
    let found = Digest::of(bytes);
    if found == *expected {
        return Ok(());
    }
    Err(FormatError::Corrupt {
        what: what.to_owned(),
        expected: *expected,
        found,
    }
    .into())
}
