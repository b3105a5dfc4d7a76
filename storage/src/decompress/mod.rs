//! Stored bytes → plain bytes, whatever a layer is compressed with.
//!
//! The compression is found by the first bytes: media types are wrong often enough (a plain tar called gzip, a zstd blob
//! in a Docker manifest) that every runtime looks at the bytes, and so do we. Output is bounded by
//! [`Limits::layer_plain_len`] and leaves in pieces of equal length, so a decompression bomb makes no memory grow. Everything here
//! blocks and belongs on a thread of its own.

mod pass;
mod stored;

use std::fmt;
use std::io::{self, BufRead, Read};

use bytes::Bytes;
use sluice_format::{FormatError, Limits, artifact};
use thiserror::Error as ThisError;

pub use self::pass::index_pass;
pub use self::stored::StoredReader;
use crate::{Error, ErrorKind};

/// Length of the pieces of plain bytes: long enough that passing one between threads costs nothing beside decoding it, short
/// enough that a queue of them stays small.
pub const PLAIN_PIECE_LEN: usize = 256 << 10;

/// Largest zstd window that is decoded, as a power of two: 128 MiB, what `zstd --long` writes. containerd and Podman
/// refuse larger ones as well.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// The stored bytes are the plain bytes.
    Plain,
    /// One gzip member or several.
    Gzip,
    /// zstd frames, with or without skippable ones.
    Zstd,
}

/// Why stored bytes give no plain bytes.
#[derive(Debug, ThisError)]
pub enum DecompressError {
    /// A compression that no container image may have.
    #[error("{0} compression is not allowed in container images; recompress the layer with gzip or zstd")]
    Refused(&'static str),
    /// Bytes that the decoder does not take.
    #[error("{what} cannot be decoded")]
    Undecodable {
        /// What they should be.
        what: &'static str,
        /// The decoder's reason.
        source: io::Error,
    },
    /// More plain bytes than a layer may have.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl From<DecompressError> for Error {
    fn from(error: DecompressError) -> Self {
        match error {
            DecompressError::Refused(_) => Self::new(ErrorKind::Unsupported, error.to_string()),
            DecompressError::Undecodable { what, source } => {
                Self::new(ErrorKind::Corrupt, format!("the {what} cannot be decoded")).with_source(source)
            }
            DecompressError::Format(error) => error.into(),
        }
    }
}

impl Compression {
    /// Bytes of a blob that decide its compression.
    pub const MAGIC_LEN: usize = 6;

    /// Looks at the first bytes of a blob.
    ///
    /// # Errors
    /// [`DecompressError::Refused`] for a compression that no container image may have.
    pub fn of(start: &[u8]) -> Result<Self, DecompressError> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame (RFC 8878, section 3.1.1), or a skippable frame (section 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err(DecompressError::Refused("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(DecompressError::Refused("xz")),
            _ => Ok(Self::Plain),
        }
    }

    /// What a layer media type promises, or `None` for a type that promises nothing.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            artifact::OCI_LAYER_TAR | artifact::DOCKER_LAYER_TAR => Some(Self::Plain),
            artifact::OCI_LAYER_GZIP | artifact::DOCKER_LAYER_GZIP => Some(Self::Gzip),
            artifact::OCI_LAYER_ZSTD | artifact::DOCKER_LAYER_ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Its name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The name of the bytes for messages.
    pub fn stream_name(self) -> &'static str {
        match self {
            Self::Plain => "plain layer",
            Self::Gzip => "gzip stream",
            Self::Zstd => "zstd stream",
        }
    }

    /// A reader of the plain bytes. All members of a gzip file and all frames of a zstd file belong to them.
    ///
    /// # Errors
    /// [`DecompressError::Undecodable`] when the decoder has no memory.
    pub fn decoder<'a, R: BufRead + 'a>(self, stored: R) -> Result<Box<dyn Read + 'a>, DecompressError> {
        let undecodable = |source| DecompressError::Undecodable {
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

/// The plain bytes of a layer, piece by piece.
pub struct PlainPieces<'a> {
    compression: Compression,
    decoder: Box<dyn Read + 'a>,
    plain_len: u64,
    most_len: u64,
}

impl fmt::Debug for PlainPieces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainPieces")
            .field("compression", &self.compression)
            .field("plain_len", &self.plain_len)
            .finish_non_exhaustive()
    }
}

impl<'a> PlainPieces<'a> {
    /// Finds out how `stored` is compressed.
    ///
    /// # Errors
    /// As [`Compression::of`] and [`Compression::decoder`].
    pub fn new(stored: &'a mut StoredReader, limits: &Limits) -> Result<Self, DecompressError> {
        let compression = Compression::of(stored.peek(Compression::MAGIC_LEN))?;
        Ok(Self {
            compression,
            decoder: compression.decoder(stored)?,
            plain_len: 0,
            most_len: limits.layer_plain_len,
        })
    }

    /// How the stored bytes are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The next piece: of [`PLAIN_PIECE_LEN`] bytes, shorter at the end, `None` after it.
    ///
    /// # Errors
    /// [`DecompressError::Undecodable`] for stored bytes that are not what their beginning says, [`DecompressError::Format`] for a
    /// plain length over the limit.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, DecompressError> {
        let mut piece = vec![0; PLAIN_PIECE_LEN];
        let len = self
            .fill(&mut piece)
            .map_err(|source| DecompressError::Undecodable {
                what: self.compression.stream_name(),
                source,
            })?;
        piece.truncate(len);
        self.plain_len += piece.len() as u64;
        FormatError::check_limit("plain length of a layer", self.plain_len, self.most_len)?;
        Ok((!piece.is_empty()).then(|| piece.into()))
    }

    /// Reads until `piece` is full or the layer ends. `read_to_end` would begin with short reads, each of which the decoder has to set up.
    fn fill(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let mut len = 0;
        while len < piece.len() {
            match self.decoder.read(&mut piece[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(len)
    }
}
