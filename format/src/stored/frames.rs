//! zstd frames in pieces, with their ends.

use std::fmt;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use super::{FRAME_SPACING, PlainSide};
use crate::FormatError;
use crate::compression::Codec;

/// Plain bytes decoded in one step at most.
const STEP_LEN: usize = 128 << 10;

/// Largest window that is decoded, as a power of two: 128 MiB, what `zstd --long` writes.
const WINDOW_LOG_MAX: u32 = 27;

pub(super) struct Frames {
    zstd: Decoder<'static>,
    buffer: Vec<u8>,
    stored_off: u64,
    /// End of the last frame of the present chunk that brought plain bytes.
    stored_end: u64,
    /// Whether a frame has begun and not ended.
    is_inside: bool,
    /// Whether the present frame has brought plain bytes.
    has_grown: bool,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames")
            .field("stored_off", &self.stored_off)
            .field("is_inside", &self.is_inside)
            .finish_non_exhaustive()
    }
}

impl Frames {
    pub(super) fn new() -> Result<Self, FormatError> {
        let refuse = |error| FormatError::malformed("zstd", "decoder", error);
        let mut zstd = Decoder::new().map_err(refuse)?;
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(refuse)?;
        Ok(Self {
            zstd,
            buffer: vec![0; STEP_LEN],
            stored_off: 0,
            stored_end: 0,
            is_inside: false,
            has_grown: false,
        })
    }

    pub(super) fn push(&mut self, mut stored: &[u8], plain: &mut PlainSide) -> Result<(), FormatError> {
        let mut has_more = false;
        while !stored.is_empty() || has_more {
            let (mut from, mut to) = (InBuffer::around(stored), OutBuffer::around(&mut self.buffer[..]));
            let left = self.zstd.run(&mut from, &mut to).map_err(|error| {
                FormatError::malformed("zstd", format!("stored offset {}", self.stored_off), error)
            })?;
            let (used, len) = (from.pos(), to.pos());
            stored = stored.get(used..).unwrap_or_default();
            self.stored_off += used as u64;
            self.has_grown |= len > 0;
            self.is_inside = left > 0;
            has_more = self.is_inside && len == self.buffer.len();
            plain.take(&self.buffer[..len])?;
            if !self.is_inside {
                self.end_frame(plain);
            }
        }
        Ok(())
    }

    fn end_frame(&mut self, plain: &mut PlainSide) {
        if std::mem::take(&mut self.has_grown) {
            self.stored_end = self.stored_off;
        }
        if plain.chunks.is_due(FRAME_SPACING) {
            plain.chunks.end(self.stored_end, None);
        }
        if plain.chunks.is_empty() {
            plain.chunks.begin(self.stored_off, Codec::Zstd);
        }
    }

    /// After the last byte. Gives where the last frame with plain bytes ends.
    pub(super) fn finish(self) -> Result<u64, FormatError> {
        match self.is_inside {
            false => Ok(self.stored_end),
            true => Err(FormatError::malformed(
                "zstd",
                format!("stored offset {}", self.stored_off),
                "the stream is cut short",
            )),
        }
    }
}
