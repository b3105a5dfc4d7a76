//! The contract for reading stored bytes.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use sluice_format::BlobDigest;

use crate::{Error, ErrorKind};

/// Bytes of a blob in order, in pieces of any length.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// An immutable run of stored bytes, named by digest, read by ranges.
///
/// The bytes of a range are *not* verified here: a range has no digest of its own. Whoever decodes them verifies.
pub trait Blob: Debug + Send + Sync {
    /// Digest that names the blob.
    fn digest(&self) -> BlobDigest;

    /// Length in bytes.
    fn stored_len(&self) -> u64;

    /// Exactly the bytes of `stored`, which must lie within the blob.
    ///
    /// Temporary failures have been retried by the implementation before they surface.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a range outside the blob; otherwise what hinders
    /// the transfer. A short answer is an error, never a short result.
    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>>;

    /// The bytes of `stored` in order, each piece as soon as it has arrived. A transfer that breaks is resumed where it
    /// broke; what cannot be resumed ends the stream with an error. The stream never ends early without one. Dropping it
    /// gives the rest up.
    ///
    /// # Errors
    /// As [`Blob::read_range`].
    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>>;

    /// Who carries the load of reading it: a host, or a local disk. Blobs with the same upstream share its bandwidth and its
    /// patience.
    fn upstream(&self) -> Arc<str>;

    /// Whether it lies on this host, so that nothing is gained by keeping its bytes.
    fn is_local(&self) -> bool {
        false
    }

    /// What was read last did not verify. A blob that can be read from several hosts is read from another one for a while.
    fn gave_wrong_bytes(&self) {}
}

/// Refuses a range that does not lie within a blob of `stored_len` bytes.
pub(crate) fn check_range(digest: &BlobDigest, stored_len: u64, stored: &Range<u64>) -> Result<(), Error> {
    if stored.start <= stored.end && stored.end <= stored_len {
        return Ok(());
    }
    let message = format!(
        "stored range {}-{} is outside blob {digest}, which has {stored_len} bytes",
        stored.start, stored.end
    );
    Err(Error::new(ErrorKind::InvalidInput, message))
}

/// The bytes of a range, of which parts of `part_len` are asked for at the same time: a connection that is new brings ten packets, and twice as many with
/// each round trip, but several bring several times as many.
///
/// # Errors
/// As [`Blob::read_range`].
pub(crate) async fn read_in_parts(
    blob: &dyn Blob,
    stored: Range<u64>,
    part_len: u64,
) -> Result<Bytes, Error> {
    if blob.is_local() || stored.end.saturating_sub(stored.start) <= part_len {
        return blob.read_range(stored).await;
    }
    let starts = (stored.start..stored.end).step_by(part_len as usize);
    let parts = starts.map(|start| blob.read_range(start..stored.end.min(start + part_len)));
    let parts = future::try_join_all(parts).await?;
    Ok(parts.concat().into())
}

/// All bytes of a blob in order.
///
/// # Errors
/// As [`Blob::stream`].
pub async fn stream_whole(blob: &dyn Blob) -> Result<ByteStream, Error> {
    blob.stream(0..blob.stored_len()).await
}

/// The bytes of a blob from `stored_off` on, from a source that knows no ranges: what comes before is received and dropped.
///
/// # Errors
/// As [`Blob::stream`].
pub(crate) async fn stream_rest_of_whole(blob: &dyn Blob, stored_off: u64) -> Result<ByteStream, Error> {
    let mut to_skip = stored_off;
    let rest = stream_whole(blob).await?.map_ok(move |mut piece| {
        let skipped = to_skip.min(piece.len() as u64);
        to_skip -= skipped;
        piece.split_off(skipped as usize)
    });
    let rest = rest.try_filter(|piece| future::ready(!piece.is_empty()));
    Ok(rest.boxed())
}

/// All bytes of a blob in order, fetched in a few ranges side by side, since one connection seldom fills a link, or at once
/// from a source that knows no ranges. Keeps a bounded number of bytes in memory.
pub fn stream_in_ranges(blob: &Arc<dyn Blob>) -> ByteStream {
    crate::stream::in_order(blob)
}
