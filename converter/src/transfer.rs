//! Blobs from one place to another, unchanged.
//!
//! A blob that the target has is left alone; one that lies in another repository of the target's registry is taken over there; any other one
//! is copied. A copy is fetched in several ranges at once, resumed where it broke, and compared with its digest before the target is told
//! to keep it: what does not match is dropped with its writer. As one of several hosts may have spoilt it, it is fetched once more then.

use std::sync::Arc;

use futures_util::StreamExt as _;
use sluice_format::{BlobDigest, Hasher};
use sluice_storage::{Blob, ByteStream, Descriptor, WritableRepository, stream_in_ranges};

use crate::{Error, Source, Target};

/// How a blob came to be at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// It was there.
    Present,
    /// Its registry took it from another repository.
    TakenOver,
    /// Its bytes were copied.
    Copied,
}

/// Brings a blob from `source` to `target`. `advanced` hears the length of every piece.
///
/// # Errors
/// [`Error::Corrupt`] when the bytes do not match the digest; [`Error::Unreadable`] for what hinders reading; otherwise what hinders writing.
pub(crate) async fn transfer(
    source: &Source,
    target: &Target,
    descriptor: &Descriptor,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Moved, Error> {
    if let Some(moved) = offer(source, target, &descriptor.digest).await? {
        return Ok(moved);
    }
    let blob = source.repository().open_blob(descriptor);
    copy(&blob, target.repository(), advanced).await?;
    Ok(Moved::Copied)
}

/// Lets the target have a blob without moving its bytes; `None` when it must be copied.
///
/// # Errors
/// What hinders asking the target.
pub(crate) async fn offer(
    source: &Source,
    target: &Target,
    digest: &BlobDigest,
) -> Result<Option<Moved>, Error> {
    let to = target.repository();
    if to.has_blob(digest).await? {
        return Ok(Some(Moved::Present));
    }
    match target.neighbour(source) {
        Some(neighbour) if to.mount_blob(digest, neighbour).await? => Ok(Some(Moved::TakenOver)),
        _ => Ok(None),
    }
}

/// Copies a blob to where it is not yet.
///
/// # Errors
/// As [`transfer`].
pub(crate) async fn copy(
    blob: &Arc<dyn Blob>,
    target: &dyn WritableRepository,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    match copy_bytes(stream_in_ranges(blob), blob, target, advanced).await {
        Err(error @ Error::Corrupt { .. }) => {
            blob.gave_wrong_bytes();
            tracing::warn!(blob = %blob.digest(), %error, "a blob is fetched once more");
            copy_bytes(stream_in_ranges(blob), blob, target, advanced).await
        }
        outcome => outcome,
    }
}

fn unreadable(blob: &Arc<dyn Blob>, source: sluice_storage::Error) -> Error {
    Error::Unreadable {
        blob: blob.digest(),
        place: blob.upstream().to_string(),
        source,
    }
}

async fn copy_bytes(
    mut pieces: ByteStream,
    blob: &Arc<dyn Blob>,
    target: &dyn WritableRepository,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    let mut writer = target.begin_blob().await?;
    let mut hasher = Hasher::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| unreadable(blob, error))?;
        hasher.update(&piece);
        advanced(piece.len() as u64);
        writer.write(piece).await?;
    }
    let found = BlobDigest(hasher.finish());
    if found != blob.digest() {
        return Err(Error::Corrupt {
            what: "blob",
            expected: blob.digest().0,
            found: found.0,
        });
    }
    Ok(writer.finish(found).await?)
}
