//! Index and footer at the end of a converted blob, each in a zstd skippable frame (RFC 8878, section 3.1.2).

use std::fmt;
use std::str::FromStr;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::FORMAT;
use crate::{Digest, FormatError};

/// Magic of the skippable frames used here: one of the sixteen that RFC 8878 sets aside. Two others are taken by
/// zstd:chunked (`0x184D2A50`) and by the zstd seekable format (`0x184D2A5E`).
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5A;

/// First bytes of the footer's payload.
const FOOTER_MAGIC: [u8; 8] = *b"SluiceFt";

/// Version of the footer. A reader refuses any other.
const FOOTER_VERSION: u32 = 1;

/// Length of the whole footer frame: the last bytes of a converted blob.
pub const FOOTER_LEN: u64 = size_of::<RawFooter>() as u64;

/// Header of a skippable frame in bytes: magic and payload length.
const FRAME_HEADER_LEN: u64 = 8;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFooter {
    frame_magic: U32,
    frame_len: U32,
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    index_off: U64,
    index_len: U64,
    index_digest: [u8; 32],
}

/// Where a layer index lies in a blob, and the digest of its bytes.
///
/// Its text form, `<digest>@<stored offset>+<stored length>`, is the value of the layer annotation
/// [`crate::artifact::INDEX_ANNOTATION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexLocation {
    /// Digest of the index bytes.
    pub digest: Digest,
    /// Offset of the index in the blob: behind the header of its skippable frame.
    pub stored_off: u64,
    /// Length of the index in the blob.
    pub stored_len: u64,
}

impl IndexLocation {
    /// Refuses a location outside a blob of `blob_len` bytes.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] naming both.
    pub fn check_within(&self, blob_len: u64) -> Result<(), FormatError> {
        match self.stored_off.checked_add(self.stored_len) {
            Some(end) if end <= blob_len => Ok(()),
            _ => {
                let reason = format!("lies outside the blob of {blob_len} bytes");
                Err(FormatError::malformed(FORMAT, format!("{self}"), reason))
            }
        }
    }
}

impl fmt::Display for IndexLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}+{}", self.digest, self.stored_off, self.stored_len)
    }
}

impl FromStr for IndexLocation {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let refuse = || {
            let shown = text.chars().take(120).collect::<String>();
            FormatError::malformed(
                FORMAT,
                "annotation",
                format!("\"{shown}\" is not <digest>@<offset>+<length>"),
            )
        };
        let (digest, range) = text.split_once('@').ok_or_else(refuse)?;
        let (off, len) = range.split_once('+').ok_or_else(refuse)?;
        Ok(Self {
            digest: digest.parse()?,
            stored_off: parse_decimal(off).ok_or_else(refuse)?,
            stored_len: parse_decimal(len).ok_or_else(refuse)?,
        })
    }
}

/// Only digits: `u64::from_str` would also take a plus sign, and one location must have one spelling.
fn parse_decimal(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// The bytes that follow the last chunk of a blob that is `blob_len` bytes long so far: `index` in a skippable frame
/// and the footer. Also where the index will lie.
///
/// # Errors
/// [`FormatError::Limit`] when the index does not fit a frame.
pub fn frame_index(index: &[u8], blob_len: u64) -> Result<(Vec<u8>, IndexLocation), FormatError> {
    let index_len = index.len() as u64;
    let frame_len = u32::try_from(index_len).map_err(|_| FormatError::Limit {
        what: "stored length of a layer index",
        value: index_len,
        limit: u32::MAX.into(),
    })?;
    let location = IndexLocation {
        digest: Digest::of(index),
        stored_off: blob_len + FRAME_HEADER_LEN,
        stored_len: index_len,
    };
    let footer = RawFooter {
        frame_magic: SKIPPABLE_MAGIC.into(),
        frame_len: ((FOOTER_LEN - FRAME_HEADER_LEN) as u32).into(),
        magic: FOOTER_MAGIC,
        version: FOOTER_VERSION.into(),
        reserved: 0.into(),
        index_off: location.stored_off.into(),
        index_len: index_len.into(),
        index_digest: *location.digest.as_bytes(),
    };
    let mut framed = Vec::with_capacity(index.len() + size_of::<RawFooter>() + FRAME_HEADER_LEN as usize);
    framed.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    framed.extend_from_slice(&frame_len.to_le_bytes());
    framed.extend_from_slice(index);
    framed.extend_from_slice(footer.as_bytes());
    Ok((framed, location))
}

/// Reads a footer from `tail`, the last [`FOOTER_LEN`] bytes of a blob of `blob_len` bytes. `None` when the blob does
/// not end in a Sluice footer.
///
/// # Errors
/// [`FormatError`] when there is a footer but it cannot be used.
pub fn parse_footer(tail: &[u8], blob_len: u64) -> Result<Option<IndexLocation>, FormatError> {
    let Ok(footer) = RawFooter::ref_from_bytes(tail) else {
        return Ok(None);
    };
    if footer.frame_magic.get() != SKIPPABLE_MAGIC || footer.magic != FOOTER_MAGIC {
        return Ok(None);
    }
    if footer.version.get() != FOOTER_VERSION {
        let reason = format!("footer version {}", footer.version);
        return Err(FormatError::Unsupported {
            format: FORMAT,
            reason,
        });
    }
    let location = IndexLocation {
        digest: Digest::from_bytes(footer.index_digest),
        stored_off: footer.index_off.get(),
        stored_len: footer.index_len.get(),
    };
    location.check_within(blob_len.saturating_sub(FOOTER_LEN))?;
    Ok(Some(location))
}
