//! A layer for whose plain bytes the cache has no place: an index of its blob as it is, instead.
//!
//! The blob is read once more, and nothing of it is kept but its tree and the places where decoding can begin again ([`index_pass`]). The layer is then as
//! lazy as one with an attached index, and keeps in the cache what there is place for. A layer that cannot be decoded from the middle (one
//! long zstd frame, say) has no such index; then the missing place stays the error.

use futures_util::TryStreamExt as _;
use sluice_format::stored::StoredLayer;
use sluice_format::{FormatError, LayerIndex, Limits};
use tokio::sync::mpsc;

use super::{Unindexed, ranges};
use crate::decompress::index_pass;
use crate::{Error, ErrorKind, blocking};

/// Pieces of stored bytes that wait for the pass.
const QUEUE: usize = 1;

/// Reads the blob of a layer through and gives its index; `None` for a layer that cannot be decoded from the middle.
///
/// # Errors
/// What hinders reading the blob; [`ErrorKind::Corrupt`] when blob or layer are not what their digests say, or no layer.
pub(super) async fn index(
    layer: &Unindexed,
    limits: &Limits,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Option<LayerIndex>, Error> {
    let (to_pass, pieces) = mpsc::channel(QUEUE);
    let bounds = limits.clone();
    let passing = tokio::spawn(blocking::run("index a layer", move || {
        Ok(index_pass(pieces, &bounds)?)
    }));
    let mut arriving = ranges::in_order(&layer.blob);
    while let Some(piece) = arriving.try_next().await? {
        advanced(piece.len() as u64);
        if to_pass.send(piece).await.is_err() {
            break;
        }
    }
    drop(to_pass);
    let ended = |error| Error::new(ErrorKind::Io, "a worker thread ended early").with_source(error);
    let stored = passing.await.map_err(ended)??;
    verify(layer, &stored)?;
    match stored.index {
        Ok(index) => Ok(Some(index)),
        Err(FormatError::NoRestart { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn verify(layer: &Unindexed, stored: &StoredLayer) -> Result<(), Error> {
    let digests = [
        ("the blob", layer.descriptor.digest.0, stored.blob_digest.0),
        ("the plain layer", layer.diff_id.0, stored.diff_id.0),
    ];
    for (what, expected, found) in digests {
        if expected != found {
            let what = what.to_owned();
            let corrupt = FormatError::Corrupt {
                what,
                expected,
                found,
            };
            return Err(corrupt.into());
        }
    }
    Ok(())
}

/// The layer does not fit: said before anything is read when the stored bytes alone are too many.
pub(super) fn check_place(layer: &Unindexed, quota: u64) -> Result<(), Error> {
    let stored_len = layer.descriptor.size;
    if stored_len <= quota {
        return Ok(());
    }
    let message =
        format!("the cache has no place for the layer: {stored_len} stored bytes, and a bound of {quota}");
    Err(Error::new(ErrorKind::NoSpace, message))
}
