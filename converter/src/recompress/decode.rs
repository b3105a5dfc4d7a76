//! Stored bytes → plain bytes on a thread of its own, through bounded channels: a slow successor makes no memory grow.

use bytes::Bytes;
use sluice_format::{Digest, Limits};
use sluice_storage::decompress::{Compression, PlainPieces, StoredReader};
use tokio::sync::mpsc;

use crate::Error;

/// What the decoder's thread learned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded {
    pub(crate) blob_digest: Digest,
    pub(crate) stored_len: u64,
    pub(crate) compression: Compression,
}

/// Reads all stored bytes and sends the plain ones on. `None` when nobody takes them any more: the cause is known
/// further down. Blocks; runs on its own thread.
///
/// # Errors
/// What makes the stored bytes undecodable, or a plain length over the limit.
pub(crate) fn decode(
    stored: mpsc::Receiver<Bytes>,
    plain: &mpsc::Sender<Bytes>,
    limits: &Limits,
) -> Result<Option<Decoded>, Error> {
    let mut stored = StoredReader::new(stored);
    let taken = each_piece(&mut stored, limits, |piece| {
        Ok(plain.blocking_send(piece).is_ok())
    })?;
    Ok(taken.map(|compression| {
        let (blob_digest, stored_len) = stored.finish();
        Decoded {
            blob_digest,
            stored_len,
            compression,
        }
    }))
}

/// Decodes `stored` to its end and hands every piece of plain bytes to `take`, which returns whether it wants more. `None`
/// when it did not.
///
/// # Errors
/// What makes the stored bytes undecodable, a plain length over the limit, or what `take` reports.
pub(crate) fn each_piece(
    stored: &mut StoredReader,
    limits: &Limits,
    mut take: impl FnMut(Bytes) -> Result<bool, Error>,
) -> Result<Option<Compression>, Error> {
    let mut pieces = PlainPieces::new(stored, limits)?;
    while let Some(piece) = pieces.next_piece()? {
        if !take(piece)? {
            return Ok(None);
        }
    }
    Ok(Some(pieces.compression()))
}
