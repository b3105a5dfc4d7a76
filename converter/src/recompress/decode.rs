//! Stored bytes → plain bytes, whatever the source layer is compressed with.
//!
//! The compression is found by the first bytes: media types are wrong often enough (a plain tar called gzip, a zstd blob
//! in a Docker manifest) that every runtime looks at the bytes, and so do we; a mismatch is worth a warning. Output is
//! bounded by [`Limits::layer_plain_len`] and leaves in pieces of equal length through a bounded channel, so neither a
//! decompression bomb nor a slow successor makes memory grow.

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use sluice_format::{Digest, FormatError, Limits, artifact};
use tokio::sync::mpsc;

use super::stored::StoredReader;
use crate::Error;

/// Length of the pieces handed to the scanner, in bytes: long enough that passing one between threads costs nothing
/// beside decoding it, short enough that the queue between them stays small.
pub(crate) const PLAIN_PIECE_LEN: usize = 256 << 10;

/// Largest zstd window that is decoded, as a power of two: 128 MiB, what `zstd --long` writes. containerd and Podman
/// refuse larger ones as well.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a source layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// Bytes of a blob that decide its compression.
    pub(crate) const MAGIC_LEN: usize = 6;

    /// Looks at the first bytes of a blob.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a compression that no container image may have.
    pub(crate) fn of(start: &[u8]) -> Result<Self, Error> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame (RFC 8878, section 3.1.1), or a skippable frame (section 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err(Self::refused("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(Self::refused("xz")),
            _ => Ok(Self::Plain),
        }
    }

    fn refused(name: &str) -> Error {
        Error::Unsupported(format!(
            "{name} compression is not allowed in container images; recompress the layer with gzip or zstd"
        ))
    }

    /// What a layer media type promises, or `None` for a type that promises nothing.
    pub(crate) fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            artifact::OCI_LAYER_TAR | artifact::DOCKER_LAYER_TAR => Some(Self::Plain),
            artifact::OCI_LAYER_GZIP | artifact::DOCKER_LAYER_GZIP => Some(Self::Gzip),
            artifact::OCI_LAYER_ZSTD | artifact::DOCKER_LAYER_ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn stream_name(self) -> &'static str {
        match self {
            Self::Plain => "plain layer",
            Self::Gzip => "gzip stream",
            Self::Zstd => "zstd stream",
        }
    }

    /// A reader of the plain bytes. All members of a gzip file and all frames of a zstd file belong to them.
    ///
    /// # Errors
    /// [`Error::Undecodable`] when the decoder has no memory.
    pub(crate) fn decoder<'a, R: BufRead + 'a>(self, stored: R) -> Result<Box<dyn Read + 'a>, Error> {
        let undecodable = |source| Error::Undecodable {
            what: self.stream_name(),
            source,
        };
        Ok(match self {
            Self::Plain => Box::new(stored),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
            Self::Zstd => {
                let mut zstd = zstd::stream::read::Decoder::with_buffer(stored).map_err(undecodable)?;
                zstd.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(undecodable)?;
                Box::new(zstd)
            }
        })
    }
}

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
    let compression = Compression::of(stored.peek(Compression::MAGIC_LEN))?;
    let mut decoder = compression.decoder(stored)?;
    let mut plain_len = 0;
    loop {
        let piece = read_piece(&mut decoder).map_err(|source| Error::Undecodable {
            what: compression.stream_name(),
            source,
        })?;
        if piece.is_empty() {
            return Ok(Some(compression));
        }
        plain_len += piece.len() as u64;
        FormatError::check_limit("plain length of a layer", plain_len, limits.layer_plain_len)?;
        if !take(piece)? {
            return Ok(None);
        }
    }
}

/// The next piece: full, or shorter at the end of the stream, or empty after it.
fn read_piece(from: &mut dyn Read) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PLAIN_PIECE_LEN);
    from.take(PLAIN_PIECE_LEN as u64).read_to_end(&mut piece)?;
    Ok(Bytes::from(piece))
}
