//! Stored bytes → an index of them as they are.

use bytes::{Bytes, BytesMut};
use sluice_format::Limits;
use sluice_format::stored::{LayerPass, StoredForm, StoredLayer};
use tokio::sync::mpsc;

use super::{Compression, DecompressError};

/// Indexes a blob, whose pieces arrive in order and may be of any length. Blocks, so it belongs on a thread of its own.
///
/// # Errors
/// As [`Compression::of`] and [`LayerPass`].
pub fn index_pass(
    mut pieces: mpsc::Receiver<Bytes>,
    limits: &Limits,
) -> Result<StoredLayer, DecompressError> {
    let mut first = BytesMut::new();
    while first.len() < Compression::MAGIC_LEN
        && let Some(piece) = pieces.blocking_recv()
    {
        first.extend_from_slice(&piece);
    }
    let form = match Compression::of(&first)? {
        Compression::Plain => StoredForm::Plain,
        Compression::Gzip => StoredForm::Gzip,
        Compression::Zstd => StoredForm::Zstd,
    };
    let mut pass = LayerPass::new(form, limits)?;
    pass.push(&first)?;
    while let Some(piece) = pieces.blocking_recv() {
        pass.push(&piece)?;
    }
    Ok(pass.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_comes_byte_by_byte_is_known_by_its_first_bytes() {
        let stored = zstd::encode_all(&[0; 1024][..], 3).unwrap();
        let (to, pieces) = mpsc::channel(stored.len());
        for byte in &stored {
            to.blocking_send(Bytes::copy_from_slice(&[*byte])).unwrap();
        }
        drop(to);
        let layer = index_pass(pieces, &Limits::default()).unwrap();
        assert_eq!(layer.diff_id.0, sluice_format::Digest::of(&[0; 1024]));
    }
}
