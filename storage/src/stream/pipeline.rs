//! A blob through three stages at once: bytes from the source, decoding on one thread, a [`Sink`] on another.
//!
//! The failure nearest to the source is the cause. A blob is read to its end when its bytes cannot be decoded or mean nothing, because
//! only its digest tells whether the blob is bad or the transfer was. A sink that cannot go on for another reason, such as a full disk, stops
//! everything, and so does dropping the future.

use std::sync::Arc;

use bytes::Bytes;
use sluice_format::{Digest, Limits};
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};

use super::ranges::InOrder;
use crate::decompress::{DecompressError, PlainPieces, StoredReader};
use crate::{Blob, Error, ErrorKind};

/// Pieces of stored bytes, as they come from a connection, that wait for the decoder.
const STORED_QUEUE: usize = 16;

/// Pieces of plain bytes that wait for the sink.
const PLAIN_QUEUE: usize = 8;

/// Takes the plain bytes of a layer. Called on a thread that may block.
pub(super) trait Sink: Send + 'static {
    /// What has become of the bytes.
    type Taken: Send;

    /// Takes the next bytes; whether it wants more.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for bytes that mean nothing; others for what hinders taking them.
    fn take(&mut self, plain: Bytes) -> Result<bool, Error>;

    /// After the last byte, or after enough of them.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when bytes are missing.
    fn finish(self) -> Result<Self::Taken, Error>;
}

/// A blob that was read.
#[derive(Debug)]
pub(super) struct Read<T> {
    /// Whether the stored bytes have the digest of the blob. Also when the sink did not want them all.
    pub(super) is_intact: bool,
    pub(super) taken: Result<T, Error>,
}

/// What the decoder's thread learned.
enum Decoded {
    /// All stored bytes passed; what the decoder says of them.
    ToTheEnd {
        digest: Digest,
        outcome: Result<(), DecompressError>,
    },
    /// The sink wants no more.
    Stopped,
}

/// Reads `blob` through into `sink`. `advanced` hears the length of every piece of stored bytes.
///
/// # Errors
/// What hinders reading the blob.
pub(super) async fn run<S: Sink>(
    blob: &Arc<dyn Blob>,
    sink: S,
    limits: &Limits,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Read<S::Taken>, Error> {
    let (stored, to_decode) = mpsc::channel(STORED_QUEUE);
    let (plain, to_take) = mpsc::channel(PLAIN_QUEUE);
    let limits = limits.clone();
    let decoding = spawn_blocking(move || decode(to_decode, &plain, &limits));
    let taking = spawn_blocking(move || take(to_take, sink));
    let fed = feed(blob, stored, advanced).await;
    // Also after a failure: whoever hears of it must find nothing left of the attempt, neither its file nor the space that this takes.
    let (decoded, taken) = (decoding.await, taking.await);
    fed?;
    let (decoded, taken) = (decoded.map_err(ended_early)?, taken.map_err(ended_early)?);
    Ok(match decoded {
        Decoded::Stopped => Read {
            is_intact: true,
            taken,
        },
        Decoded::ToTheEnd { digest, outcome } => Read {
            is_intact: digest == blob.digest().0,
            taken: outcome.map_err(Error::from).and(taken),
        },
    })
}

fn ended_early(error: JoinError) -> Error {
    Error::new(ErrorKind::Io, "a worker thread ended early").with_source(error)
}

async fn feed(
    blob: &Arc<dyn Blob>,
    stored: mpsc::Sender<Bytes>,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    let mut pieces = InOrder::new(blob);
    while pieces.has_piece() || pieces.is_under_way() {
        tokio::select! {
            biased;
            room = stored.reserve(), if pieces.has_piece() => match (room, pieces.pop()) {
                (Ok(room), Some(piece)) => {
                    advanced(piece.len() as u64);
                    room.send(piece);
                }
                _ => break,
            },
            arrived = pieces.arrive(), if pieces.has_room() => arrived?,
        }
    }
    Ok(())
}

fn decode(stored: mpsc::Receiver<Bytes>, plain: &mpsc::Sender<Bytes>, limits: &Limits) -> Decoded {
    let mut stored = StoredReader::new(stored);
    let outcome = match decode_all(&mut stored, plain, limits) {
        Ok(true) => Ok(()),
        Ok(false) => return Decoded::Stopped,
        Err(error) => Err(error),
    };
    let (digest, _) = stored.finish();
    Decoded::ToTheEnd { digest, outcome }
}

/// Whether all pieces were wanted.
fn decode_all(
    stored: &mut StoredReader,
    plain: &mpsc::Sender<Bytes>,
    limits: &Limits,
) -> Result<bool, DecompressError> {
    let mut pieces = PlainPieces::new(stored, limits)?;
    while let Some(piece) = pieces.next_piece()? {
        if plain.blocking_send(piece).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn take<S: Sink>(mut plain: mpsc::Receiver<Bytes>, mut sink: S) -> Result<S::Taken, Error> {
    while let Some(piece) = plain.blocking_recv() {
        match sink.take(piece) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                if error.kind() == ErrorKind::Corrupt {
                    // The rest decides whether the blob is to blame or the transfer.
                    while plain.blocking_recv().is_some() {}
                }
                return Err(error);
            }
        }
    }
    sink.finish()
}
