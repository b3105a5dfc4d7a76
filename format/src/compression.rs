//! One chunk in, one chunk out; and the frames of other parts, with a bound.

use std::fmt;
use std::io::Read as _;

use crate::chunk::{ChunkRef, ChunkTable};
use crate::gzip::{SpanStart, decode_span};
use crate::{Digest, FormatError};

/// What can be decoded from the begin of one of its members on, without what is stored before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// Members of a gzip stream.
    Gzip,
    /// zstd frames.
    Zstd,
}

/// How the stored bytes of a chunk become plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Stored bytes are the plain bytes.
    Stored,
    /// zstd frames, one or several.
    Zstd,
    /// A gzip stream from the header of a member on. It may go on with further members, and is cut off where the chunk ends.
    Gzip,
    /// A gzip stream from between two deflate blocks on.
    Deflate {
        /// How many high bits of the first stored byte belong to the chunk, 1 to 7; with 0, all of that byte does.
        bits: u8,
        /// Position of what the chunk copies from among the windows of the chunk table.
        window: u32,
    },
    /// Part of what members of a gzip stream or zstd frames decode to, from the header of the first one on. What follows the chunk is cut
    /// off. Only in an index that is made of another tool's table of contents ([`crate::toc`]), and never written.
    Within {
        /// What the stored bytes are.
        stream: MemberKind,
        /// Decoded bytes before the chunk.
        skip: u32,
    },
    /// Zero bytes, of which nothing is stored: what a synthetic plain layer has between files. Never written, as [`Codec::Within`].
    Zeros,
    /// The chunk cannot be fetched by itself: it comes when the blob is decoded from its beginning. Only in an index that this host has
    /// made of a blob without one; [`crate::LayerIndex::parse`] refuses it.
    Streamed,
}

impl Codec {
    /// The on-disk number. Those that are never written have one that no reader takes.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
            Self::Gzip => 2,
            Self::Deflate { .. } => 3,
            Self::Within { .. } | Self::Zeros => 254,
            Self::Streamed => 255,
        }
    }

    /// The codec with this on-disk number. `restart` gives what [`Codec::Deflate`] has besides.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for a number that this version does not know; what `restart` says.
    pub(crate) fn from_number(
        number: u8,
        restart: impl FnOnce() -> Result<(u8, u32), FormatError>,
    ) -> Result<Self, FormatError> {
        match number {
            0 => Ok(Self::Stored),
            1 => Ok(Self::Zstd),
            2 => Ok(Self::Gzip),
            3 => restart().map(|(bits, window)| Self::Deflate { bits, window }),
            255 => Ok(Self::Streamed),
            _ => Err(FormatError::Unsupported {
                format: "chunk table",
                reason: format!("codec {number}"),
            }),
        }
    }
}

/// Makes one independent zstd frame of each chunk. One per thread.
pub struct ChunkEncoder {
    zstd: zstd::bulk::Compressor<'static>,
}

impl fmt::Debug for ChunkEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkEncoder")
    }
}

impl ChunkEncoder {
    /// An encoder at a zstd level.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when zstd refuses the level.
    pub fn new(level: i32) -> Result<Self, FormatError> {
        let mut zstd = zstd::bulk::Compressor::new(level)
            .map_err(|e| FormatError::malformed("zstd", format!("level {level}"), e))?;
        // The digest of the plain bytes is in the chunk table, so the frame's own checksum would be four idle bytes.
        zstd.include_checksum(false)
            .map_err(|e| FormatError::malformed("zstd", "checksum flag", e))?;
        Ok(Self { zstd })
    }

    /// The frame of `plain`. The same bytes and level give the same frame.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when zstd fails, which it does only without memory.
    pub fn encode(&mut self, plain: &[u8]) -> Result<Vec<u8>, FormatError> {
        self.zstd
            .compress(plain)
            .map_err(|e| FormatError::malformed("zstd", "chunk", e))
    }
}

/// Decodes and verifies chunks. One per thread.
pub struct ChunkDecoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl fmt::Debug for ChunkDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkDecoder")
    }
}

impl ChunkDecoder {
    /// A decoder that has seen no chunk.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when zstd has no memory.
    pub fn new() -> Result<Self, FormatError> {
        let zstd =
            zstd::bulk::Decompressor::new().map_err(|e| FormatError::malformed("zstd", "decoder", e))?;
        Ok(Self { zstd })
    }

    /// The plain bytes of the chunk at position `at` of `table` from its stored bytes, verified. Never allocates more than the chunk's
    /// `plain_len` and a window, whatever the stored bytes claim.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when there is no such chunk or the bytes do not decode to exactly `plain_len` bytes,
    /// [`FormatError::Corrupt`] when their digest is another one.
    pub fn decode(&mut self, table: &ChunkTable, at: usize, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
        let chunk = table.chunks().get(at);
        let chunk =
            chunk.ok_or_else(|| FormatError::malformed("chunk", format!("position {at}"), "is not there"))?;
        let place = || format!("chunk at plain offset {}", chunk.plain_off);
        let plain = match chunk.codec {
            Codec::Stored => stored.to_vec(),
            Codec::Streamed => {
                let reason = "has no stored bytes of its own";
                return Err(FormatError::malformed("chunk", place(), reason));
            }
            Codec::Gzip => decode_gzip(SpanStart::Member, chunk, stored)?,
            Codec::Within { stream, skip } => decode_within(stream, stored, skip, chunk.plain_len)
                .map_err(|reason| FormatError::malformed("chunk", place(), reason))?,
            Codec::Zeros => vec![0; chunk.plain_len as usize],
            Codec::Deflate { bits, window } => {
                let window = table.window(window).ok_or_else(|| {
                    FormatError::malformed("chunk", place(), "copies from a window that is not there")
                })?;
                decode_gzip(SpanStart::Block { bits, window }, chunk, stored)?
            }
            Codec::Zstd => match self.zstd.decompress(stored, chunk.plain_len as usize) {
                Ok(plain) => plain,
                Err(error) => {
                    // A context that failed in mid-frame is not used again.
                    *self = Self::new()?;
                    return Err(FormatError::malformed("zstd", place(), error));
                }
            },
        };
        verify_chunk(chunk, &plain)?;
        Ok(plain)
    }
}

fn decode_gzip(start: SpanStart<'_>, chunk: &ChunkRef, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
    decode_span(start, stored, chunk.plain_len as usize).map_err(|reason| {
        FormatError::malformed(
            "gzip",
            format!("chunk at plain offset {}", chunk.plain_off),
            reason,
        )
    })
}

/// The `plain_len` bytes behind the first `skip` that members decode to. Decodes nothing behind them.
pub(crate) fn decode_within(
    stream: MemberKind,
    stored: &[u8],
    skip: u32,
    plain_len: u32,
) -> Result<Vec<u8>, String> {
    let (skip, plain_len) = (skip as usize, plain_len as usize);
    match stream {
        MemberKind::Gzip => {
            let mut decoded = decode_span(SpanStart::Member, stored, skip.saturating_add(plain_len))?;
            decoded.drain(..skip);
            Ok(decoded)
        }
        MemberKind::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(|e| e.to_string())?;
            let skipped = std::io::copy(&mut decoder.by_ref().take(skip as u64), &mut std::io::sink());
            skipped.map_err(|e| e.to_string())?;
            let mut decoded = vec![0; plain_len];
            decoder.read_exact(&mut decoded).map_err(|e| e.to_string())?;
            Ok(decoded)
        }
    }
}

/// Checks that `plain` are the bytes of `chunk`.
///
/// # Errors
/// [`FormatError::Malformed`] for another length, [`FormatError::Corrupt`] for another digest.
pub fn verify_chunk(chunk: &ChunkRef, plain: &[u8]) -> Result<(), FormatError> {
    if plain.len() as u64 != u64::from(chunk.plain_len) {
        let reason = format!("decodes to {} bytes, expected {}", plain.len(), chunk.plain_len);
        return Err(FormatError::malformed(
            "chunk",
            format!("plain offset {}", chunk.plain_off),
            reason,
        ));
    }
    let found = Digest::of(plain);
    if found != chunk.digest.0 {
        let what = format!("chunk at plain offset {}", chunk.plain_off);
        return Err(FormatError::Corrupt {
            what,
            expected: chunk.digest.0,
            found,
        });
    }
    Ok(())
}

/// Decodes one zstd frame that must hold exactly `decoded_len` bytes. Streams, so that memory grows with what the frame
/// really holds and not with what its header claims.
pub(crate) fn decode_frame(stored: &[u8], decoded_len: u64) -> Result<Vec<u8>, String> {
    let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(|e| e.to_string())?;
    let mut decoded = Vec::new();
    decoder
        .take(decoded_len.saturating_add(1))
        .read_to_end(&mut decoded)
        .map_err(|e| e.to_string())?;
    if decoded.len() as u64 != decoded_len {
        return Err(format!(
            "decodes to another length than the {decoded_len} bytes announced"
        ));
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChunkDigest, Limits};

    fn encoded(plain: &[u8]) -> (ChunkTable, Vec<u8>) {
        let stored = ChunkEncoder::new(3).unwrap().encode(plain).unwrap();
        let chunk = ChunkRef {
            plain_off: 0,
            plain_len: plain.len() as u32,
            stored_off: 0,
            stored_len: stored.len() as u32,
            codec: Codec::Zstd,
            digest: ChunkDigest(Digest::of(plain)),
        };
        (table(chunk), stored)
    }

    fn table(chunk: ChunkRef) -> ChunkTable {
        ChunkTable::new(vec![chunk], chunk.plain_len.into(), &Limits::default()).unwrap()
    }

    #[test]
    fn chunks_round_trip() {
        let plain: Vec<u8> = (0..100_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        let (chunks, stored) = encoded(&plain);
        assert_eq!(
            ChunkDecoder::new().unwrap().decode(&chunks, 0, &stored).unwrap(),
            plain
        );
    }

    #[test]
    fn every_flipped_byte_is_an_error_or_harmless_never_wrong_data() {
        let plain: Vec<u8> = (0..3000u32).flat_map(|i| (i * i).to_le_bytes()).collect();
        let (chunks, stored) = encoded(&plain);
        let mut decoder = ChunkDecoder::new().unwrap();
        for at in 0..stored.len() {
            let mut flipped = stored.clone();
            flipped[at] ^= 0x41;
            if let Ok(decoded) = decoder.decode(&chunks, 0, &flipped) {
                assert_eq!(decoded, plain, "byte {at}");
            }
        }
        assert_eq!(decoder.decode(&chunks, 0, &stored).unwrap(), plain);
    }

    #[test]
    fn a_frame_that_expands_beyond_the_table_is_refused() {
        let (chunks, stored) = encoded(&vec![0; 1 << 20]);
        let short = table(ChunkRef {
            plain_len: 1000,
            ..chunks.chunks()[0]
        });
        assert!(ChunkDecoder::new().unwrap().decode(&short, 0, &stored).is_err());
    }
}
