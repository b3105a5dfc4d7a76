//! A gzip stream in pieces, with the points where decoding could begin again.

use std::fmt;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::header::HeaderParser;
use super::{FORMAT, TRAILER_LEN, WINDOW_LEN};
use crate::FormatError;

/// Plain bytes decoded in one step at most: the window is moved once per so many bytes, and fits a core's cache beside them.
const STEP_LEN: usize = 128 << 10;

/// The buffer is used from its beginning to its end, and the window then moved to the front. That way `miniz_oxide` itself refuses
/// what copies from before the beginning of a member.
const FLAGS: u32 = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT
    | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF
    | inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;

/// A place in a gzip stream where decoding can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPoint {
    /// Plain bytes before it.
    pub plain_off: u64,
    /// Stored bytes before it, a byte that is shared with the block before counted in.
    pub stored_off: u64,
    /// `None` at the header of a member. Between two blocks, how many high bits of the stored byte before `stored_off` belong to the
    /// second one, 0 to 7; [`GzipDecoder::window`] then has what it copies from.
    pub bits: Option<u8>,
}

/// What one step brought.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Stored bytes that were used. Fewer than were given when something is to be reported first.
    pub used: usize,
    /// The plain bytes that they brought.
    pub plain: &'a [u8],
    /// Whether decoding could begin here again.
    pub point: Option<RestartPoint>,
}

#[derive(Debug)]
enum State {
    Header(HeaderParser),
    Deflate,
    Trailer { bytes: [u8; TRAILER_LEN], filled: usize },
}

/// Decodes all members of a gzip stream and checks their checksums and lengths.
pub struct GzipDecoder {
    state: State,
    inflate: Box<DecompressorOxide>,
    buffer: Vec<u8>,
    /// Bytes in the buffer, the present member's last ones.
    filled: usize,
    crc: crc32fast::Hasher,
    member_len: u64,
    members: u64,
    plain_off: u64,
    stored_off: u64,
    /// Whether the member that is about to begin was reported.
    reported: bool,
}

impl fmt::Debug for GzipDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzipDecoder")
            .field("state", &self.state)
            .field("stored_off", &self.stored_off)
            .field("plain_off", &self.plain_off)
            .finish_non_exhaustive()
    }
}

impl Default for GzipDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl GzipDecoder {
    /// A decoder before the first byte of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header(HeaderParser::new()),
            inflate: Box::default(),
            buffer: vec![0; WINDOW_LEN + STEP_LEN],
            filled: 0,
            crc: crc32fast::Hasher::new(),
            member_len: 0,
            members: 0,
            plain_off: 0,
            stored_off: 0,
            reported: false,
        }
    }

    /// Uses some of `stored`, the bytes behind those that were used before, which must not be empty. To be called again with the rest until
    /// nothing is left; every call uses bytes, brings bytes or reports a point.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] naming the offset for what is no gzip stream. The decoder is of no use afterwards.
    pub fn step(&mut self, stored: &[u8]) -> Result<Step<'_>, FormatError> {
        if let State::Header(header) = &self.state
            && header.is_untouched()
            && !self.reported
        {
            self.reported = true;
            return Ok(self.at_point(0, None));
        }
        match &mut self.state {
            State::Header(header) => {
                let used = header.push(stored, self.stored_off)?;
                if header.is_complete() {
                    self.begin_member();
                }
                Ok(self.used(used))
            }
            State::Deflate => self.inflate(stored),
            State::Trailer { bytes, filled } => {
                let used = (TRAILER_LEN - *filled).min(stored.len());
                bytes[*filled..*filled + used].copy_from_slice(&stored[..used]);
                *filled += used;
                if *filled == TRAILER_LEN {
                    let bytes = *bytes;
                    self.end_member(bytes)?;
                }
                Ok(self.used(used))
            }
        }
    }

    /// The plain bytes before the point that the last step reported, at most [`WINDOW_LEN`], and none from before the member.
    pub fn window(&self) -> &[u8] {
        &self.buffer[self.filled.saturating_sub(WINDOW_LEN)..self.filled]
    }

    /// After the last byte: checks that a member ended with it.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when the stream is cut short.
    pub fn finish(self) -> Result<(), FormatError> {
        match &self.state {
            State::Header(header) if header.is_untouched() && self.members > 0 => Ok(()),
            _ => Err(self.refuse("the stream is cut short")),
        }
    }

    fn begin_member(&mut self) {
        self.state = State::Deflate;
        self.inflate.init();
        self.filled = 0;
        self.crc = crc32fast::Hasher::new();
        self.member_len = 0;
    }

    fn end_member(&mut self, trailer: [u8; TRAILER_LEN]) -> Result<(), FormatError> {
        let [a, b, c, d, lens @ ..] = trailer;
        if u32::from_le_bytes([a, b, c, d]) != self.crc.clone().finalize() {
            return Err(self.refuse("a member has another checksum than its trailer says"));
        }
        // The trailer has the length modulo 2^32.
        if u64::from(u32::from_le_bytes(lens)) != self.member_len & u64::from(u32::MAX) {
            return Err(self.refuse("a member has another length than its trailer says"));
        }
        self.members += 1;
        self.reported = false;
        self.state = State::Header(HeaderParser::new());
        Ok(())
    }

    fn inflate(&mut self, stored: &[u8]) -> Result<Step<'_>, FormatError> {
        if self.filled == self.buffer.len() {
            self.buffer.copy_within(self.filled - WINDOW_LEN..self.filled, 0);
            self.filled = WINDOW_LEN;
        }
        let begin = self.filled;
        let (status, used, len) = decompress(&mut self.inflate, stored, &mut self.buffer, begin, FLAGS);
        self.filled += len;
        self.member_len += len as u64;
        self.plain_off += len as u64;
        self.crc.update(&self.buffer[begin..self.filled]);
        let bits = match status {
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => None,
            TINFLStatus::BlockBoundary => self.inflate.block_boundary_state().map(|state| state.num_bits),
            TINFLStatus::Done => {
                self.state = State::Trailer {
                    bytes: [0; TRAILER_LEN],
                    filled: 0,
                };
                None
            }
            _ => return Err(self.refuse("the deflate stream is broken")),
        };
        let point = bits.map(|bits| RestartPoint {
            plain_off: self.plain_off,
            stored_off: self.stored_off + used as u64,
            bits: Some(bits),
        });
        self.stored_off += used as u64;
        Ok(Step {
            used,
            plain: &self.buffer[begin..self.filled],
            point,
        })
    }

    fn used(&mut self, used: usize) -> Step<'_> {
        self.stored_off += used as u64;
        Step {
            used,
            plain: &[],
            point: None,
        }
    }

    fn at_point(&self, used: usize, bits: Option<u8>) -> Step<'_> {
        let point = RestartPoint {
            plain_off: self.plain_off,
            stored_off: self.stored_off,
            bits,
        };
        Step {
            used,
            plain: &[],
            point: Some(point),
        }
    }

    fn refuse(&self, reason: &str) -> FormatError {
        FormatError::malformed(FORMAT, format!("stored offset {}", self.stored_off), reason)
    }
}
