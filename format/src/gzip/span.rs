//! From a restart point to the next one.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::header::HeaderParser;
use super::trace::resumed;
use super::{SparseWindow, TRAILER_LEN, WINDOW_LEN};

/// Where a span begins.
#[derive(Clone, Copy, Debug)]
pub enum SpanStart<'a> {
    /// At the header of a member.
    Member,
    /// Between two blocks.
    Block {
        /// How many high bits of the first stored byte belong to the span; with 0, all of that byte does.
        bits: u8,
        /// What the span copies from.
        window: &'a SparseWindow,
    },
}

/// Decodes exactly `plain_len` plain bytes from `stored`, which may hold the ends and beginnings of members. Makes nothing longer than that,
/// whatever the stored bytes say. Checksums of members are not looked at: the caller verifies a digest.
///
/// # Errors
/// What is wrong with the stored bytes.
pub fn decode_span(start: SpanStart<'_>, stored: &[u8], plain_len: usize) -> Result<Vec<u8>, &'static str> {
    let mut span = Span {
        stored,
        plain: vec![0; WINDOW_LEN + plain_len],
        filled: WINDOW_LEN,
    };
    let mut inflate = match start {
        SpanStart::Member => span.skip_header()?,
        SpanStart::Block { bits, window } => {
            window.fill(&mut span.plain[..WINDOW_LEN]);
            span.resume(bits)?
        }
    };
    while span.inflate(&mut inflate)? {
        span.skip(TRAILER_LEN)?;
        inflate = span.skip_header()?;
    }
    span.plain.drain(..WINDOW_LEN);
    Ok(span.plain)
}

struct Span<'a> {
    stored: &'a [u8],
    /// The window, and behind it the span.
    plain: Vec<u8>,
    filled: usize,
}

impl Span<'_> {
    fn skip(&mut self, len: usize) -> Result<(), &'static str> {
        self.stored = self.stored.get(len..).ok_or("the stored bytes are too few")?;
        Ok(())
    }

    fn resume(&mut self, bits: u8) -> Result<DecompressorOxide, &'static str> {
        match (bits, self.stored.first()) {
            (0, _) => Ok(resumed(0, 0)),
            (1..=7, Some(shared)) => {
                let shared = *shared;
                self.skip(1)?;
                Ok(resumed(bits, shared))
            }
            _ => Err("the restart point is no place between two blocks"),
        }
    }

    fn skip_header(&mut self) -> Result<DecompressorOxide, &'static str> {
        let mut header = HeaderParser::new();
        let used = header.push(self.stored, 0);
        let used = used.map_err(|_| "the header of a member is broken")?;
        if !header.is_complete() {
            return Err("the stored bytes are too few");
        }
        self.skip(used)?;
        Ok(DecompressorOxide::new())
    }

    /// Decodes to the end of a member or of the span; whether more is missing.
    fn inflate(&mut self, inflate: &mut DecompressorOxide) -> Result<bool, &'static str> {
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, used, len) = decompress(inflate, self.stored, &mut self.plain, self.filled, flags);
        self.filled += len;
        self.skip(used)?;
        match status {
            // What is behind the last byte of the span, or missing there, belongs to the next one.
            _ if self.filled == self.plain.len() => Ok(false),
            TINFLStatus::Done => Ok(true),
            TINFLStatus::FailedCannotMakeProgress => Err("the stored bytes are too few"),
            _ => Err("the deflate stream is broken"),
        }
    }
}
