//! Which bytes of a window a span copies from.
//!
//! What a deflate stream does depends on its bits alone, never on the bytes that it copies. So the span is decoded three times beside the
//! real run, behind windows that hold, instead of the real bytes, the low half of each byte's position, the high half, and the complement of
//! the low half. Where the first and the third run agree, a byte was written by the stream; where they differ, it came out of the window, and
//! the first two say from which position. Only the first 32 KiB behind the restart point can copy from the window itself (what comes later
//! copies from copies), so no more than that is decoded.

use std::fmt;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress, inflate_flags};

use super::{SparseWindow, WINDOW_LEN};

const FLAGS: u32 =
    inflate_flags::TINFL_FLAG_HAS_MORE_INPUT | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;

/// One decoding behind a window of marks.
struct Run {
    inflate: Box<DecompressorOxide>,
    /// The window, and behind it what was decoded.
    buffer: Vec<u8>,
    filled: usize,
    is_over: bool,
}

impl Run {
    fn new(bits: u8, shared: u8, mark: impl Fn(usize) -> u8) -> Self {
        let mut buffer: Vec<u8> = (0..WINDOW_LEN).map(mark).collect();
        buffer.resize(WINDOW_LEN * 2, 0);
        Self {
            inflate: Box::new(resumed(bits, shared)),
            buffer,
            filled: WINDOW_LEN,
            is_over: false,
        }
    }

    fn push(&mut self, mut stored: &[u8]) {
        while !self.is_over && !stored.is_empty() {
            let (status, used, len) =
                decompress(&mut self.inflate, stored, &mut self.buffer, self.filled, FLAGS);
            self.filled += len;
            stored = stored.get(used..).unwrap_or_default();
            // When the member ends here nothing behind it copies from this window.
            self.is_over = status != TINFLStatus::NeedsMoreInput;
        }
    }
}

/// A decoder between two blocks. `shared` is the stored byte before, whose `bits` high bits belong to the next block.
pub(super) fn resumed(bits: u8, shared: u8) -> DecompressorOxide {
    let bit_buf = match bits {
        1..=7 => shared >> (8 - bits),
        _ => 0,
    };
    DecompressorOxide::from_block_boundary_state(&BlockBoundaryState {
        num_bits: bits & 7,
        bit_buf,
        ..BlockBoundaryState::default()
    })
}

/// Watches the beginning of a span.
pub struct WindowTrace {
    window: Vec<u8>,
    low: Run,
    high: Run,
    inverse: Run,
}

impl fmt::Debug for WindowTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowTrace")
            .field("window_len", &self.window.len())
            .finish_non_exhaustive()
    }
}

impl WindowTrace {
    /// A trace of what follows a restart point between two blocks. `shared` is the stored byte before it, `window` the plain bytes before
    /// it, of which no more than the last [`WINDOW_LEN`] count.
    pub fn new(bits: u8, shared: u8, window: &[u8]) -> Self {
        let window = &window[window.len().saturating_sub(WINDOW_LEN)..];
        Self {
            window: window.to_vec(),
            low: Run::new(bits, shared, |at| (at & 0xff) as u8),
            high: Run::new(bits, shared, |at| (at >> 8) as u8),
            inverse: Run::new(bits, shared, |at| !((at & 0xff) as u8)),
        }
    }

    /// Takes the next stored bytes.
    pub fn push(&mut self, stored: &[u8]) {
        self.low.push(stored);
        self.high.push(stored);
        self.inverse.push(stored);
    }

    /// The bytes of the window that were copied.
    pub fn finish(self) -> SparseWindow {
        let mut is_copied = vec![false; WINDOW_LEN];
        let decoded = WINDOW_LEN..self.low.filled;
        for at in decoded {
            let low = self.low.buffer[at];
            if low != self.inverse.buffer[at] {
                let position = usize::from(self.high.buffer[at]) << 8 | usize::from(low);
                if let Some(copied) = is_copied.get_mut(position) {
                    *copied = true;
                }
            }
        }
        SparseWindow::of(&self.window, &is_copied)
    }
}
