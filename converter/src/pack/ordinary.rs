//! Layers as other tools write them: a plain tar, or gzip. For comparing and demonstrating conversion.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt as _;
use sluice_format::{BlobDigest, DiffId, Hasher, artifact};
use sluice_storage::{BlobWriter, ByteStream};
use tokio::task::spawn_blocking;

use super::config::PackedLayer;
use crate::Error;
use crate::error::joined;

/// Stores the plain layer `plain` in `target`, compressed with gzip or as it is.
///
/// # Errors
/// What hinders reading or writing; nothing is left in the target then.
pub(super) async fn store(
    mut plain: ByteStream,
    gzip: bool,
    target: Box<dyn BlobWriter>,
) -> Result<PackedLayer, Error> {
    let mut target = HashingWriter {
        target,
        hasher: Hasher::new(),
        stored_len: 0,
    };
    let (mut diff_id, mut plain_len) = (Hasher::new(), 0);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    while let Some(piece) = plain.next().await {
        let piece = piece?;
        diff_id.update(&piece);
        plain_len += piece.len() as u64;
        if !gzip {
            target.write(piece).await?;
            continue;
        }
        let compressing = spawn_blocking(move || {
            let written = encoder.write_all(&piece);
            written.map_err(|error| Error::io("gzip", error))?;
            Ok(encoder)
        });
        encoder = joined(compressing.await)?;
        target
            .write(Bytes::from(std::mem::take(encoder.get_mut())))
            .await?;
    }
    if gzip {
        let end = encoder.finish().map_err(|error| Error::io("gzip", error))?;
        target.write(Bytes::from(end)).await?;
    }
    let stored_len = target.stored_len;
    Ok(PackedLayer {
        media_type: if gzip {
            artifact::OCI_LAYER_GZIP
        } else {
            artifact::OCI_LAYER_TAR
        },
        digest: target.finish().await?,
        stored_len,
        diff_id: DiffId(diff_id.finish()),
        plain_len,
        chunks: 0,
        index: None,
    })
}

struct HashingWriter {
    target: Box<dyn BlobWriter>,
    hasher: Hasher,
    stored_len: u64,
}

impl HashingWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.hasher.update(&bytes);
        self.stored_len += bytes.len() as u64;
        Ok(self.target.write(bytes).await?)
    }

    async fn finish(self) -> Result<BlobDigest, Error> {
        let digest = BlobDigest(self.hasher.finish());
        self.target.finish(digest).await?;
        Ok(digest)
    }
}
