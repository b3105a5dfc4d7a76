//! gzip layers as they are: where decoding can begin again, and what that takes.
//!
//! A gzip file is a row of members, each a header, a deflate stream and a trailer. Decoding can begin at a member without knowing anything,
//! and between two deflate blocks knowing two things: how many bits of the byte at hand belong to the next block, and what the 32 KiB of
//! plain bytes before it were, because blocks copy from there (the *window*). [`GzipDecoder`] decodes a stream in pieces, checks it, and
//! reports both kinds of [`RestartPoint`]. [`WindowTrace`] finds out which bytes of a window are really copied, most often a small part, and
//! [`SparseWindow`] keeps just those. [`decode_span`] decodes from a restart point; whoever calls it verifies the bytes.
//!
//! Inflating itself is `miniz_oxide`'s, which can stop between blocks.

mod decoder;
mod header;
mod span;
#[cfg(test)]
mod tests;
mod trace;
mod window;

pub use decoder::{GzipDecoder, RestartPoint, Step};
pub use span::{SpanStart, decode_span};
pub use trace::WindowTrace;
pub use window::SparseWindow;

pub(crate) use window::{encode_windows, parse_windows};

/// How far back a deflate block copies from, in bytes (RFC 1951, section 2).
pub const WINDOW_LEN: usize = 32 << 10;

/// Name of this format in errors.
const FORMAT: &str = "gzip";

/// Length of a member's trailer: CRC-32 and length, of the plain bytes.
const TRAILER_LEN: usize = 8;
