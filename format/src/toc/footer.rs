//! The last bytes of a blob, which tell where its TOC is.
//!
//! eStargz ends with an empty gzip member. Its header has an extra field; all numbers little-endian:
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 4 | `1f 8b 08 04`: gzip, with an extra field |
//! | 4 | 6 | time, flags, system: of no meaning |
//! | 10 | 2 | length of the extra field: 26 |
//! | 12 | 4 | subfield `SG`, of 22 bytes |
//! | 16 | 16 | stored offset of the TOC in hexadecimal |
//! | 32 | 6 | `STARGZ` |
//! | 38 | 13 | an empty deflate block, and the trailer of the member |
//!
//! The older form of 47 bytes has no subfield header. Another form of 46 bytes says that the TOC lies in another image.
//!
//! zstd:chunked ends with a skippable frame whose payload is a run of 64-bit numbers and a magic: offset, stored length and decoded length of
//! the TOC, its type, in the longer form of 64 bytes also place and lengths of a second document, which is not needed here.

use super::{FORMAT, TocKind, TocLocation};
use crate::FormatError;

/// Length of the longest footer in bytes, with the header of its frame.
pub const FOOTER_LEN_MAX: u64 = 72;

const STARGZ: &[u8] = b"STARGZ";
/// Subfield identifier and length before the offset.
const SUBFIELD: &[u8] = b"SG\x16\0";
const EXTERNAL_TOC: &[u8] = b"SG\x11\0STARGZEXTERNALTOC";
/// Length of the footer of a blob whose TOC lies apart.
const EXTERNAL_FOOTER_LEN: u64 = 46;
/// Fixed begin of the header of a gzip member with an extra field.
const GZIP_MAGIC: &[u8] = b"\x1f\x8b\x08\x04";
/// Header of a gzip member up to the length of its extra field.
const GZIP_HEADER_LEN: usize = 10;
/// Deflate block without bytes, checksum and length of a member without bytes.
const EMPTY_MEMBER: &[u8] = b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0";
const OFFSET_DIGITS: usize = 16;

/// Footers of zstd:chunked: payload length and magic.
const ZSTD_FOOTERS: [(usize, &[u8]); 2] = [(40, b"GnUlInUx"), (64, b"GNUlInUx")];
/// The only type of TOC that is in use.
pub(super) const ZSTD_TOC_TYPE: u64 = 1;

/// Looks for the footer of a blob of `stored_len` bytes at the end of `tail`, its last bytes: [`FOOTER_LEN_MAX`] of them are enough. `None` when
/// it has none.
///
/// # Errors
/// [`FormatError::Malformed`] for a footer that contradicts itself or the length of the blob; [`FormatError::Unsupported`] for a TOC of an
/// unknown type.
pub fn find_toc(tail: &[u8], stored_len: u64) -> Result<Option<TocLocation>, FormatError> {
    if let Some(extra) = stargz_extra(tail, SUBFIELD.len() + OFFSET_DIGITS + STARGZ.len())
        && let Some(rest) = extra.strip_prefix(SUBFIELD)
        && let Some(digits) = rest.strip_suffix(STARGZ)
    {
        return estargz(digits, stored_len, 51).map(Some);
    }
    if let Some(extra) = stargz_extra(tail, OFFSET_DIGITS + STARGZ.len())
        && let Some(digits) = extra.strip_suffix(STARGZ)
    {
        return estargz(digits, stored_len, 47).map(Some);
    }
    if stargz_extra(tail, EXTERNAL_TOC.len()) == Some(EXTERNAL_TOC) {
        return Ok(Some(TocLocation {
            kind: TocKind::EstargzApart,
            stored: stored_len.saturating_sub(EXTERNAL_FOOTER_LEN)..stored_len,
            plain_len: None,
        }));
    }
    for (len, magic) in ZSTD_FOOTERS {
        if let Some(payload) = tail.last_chunk::<64>().map(|last| &last[64 - len..])
            && payload.ends_with(magic)
        {
            return zstd_chunked(payload, stored_len).map(Some);
        }
    }
    Ok(None)
}

/// The extra field of an empty gzip member at the very end, if it has this length.
fn stargz_extra(tail: &[u8], len: usize) -> Option<&[u8]> {
    let member_len = GZIP_HEADER_LEN + 2 + len + EMPTY_MEMBER.len();
    let member = tail.get(tail.len().checked_sub(member_len)?..)?;
    let (header, rest) = member.split_at_checked(GZIP_HEADER_LEN)?;
    let (extra_len, rest) = rest.split_first_chunk::<2>()?;
    let is_it = header.starts_with(GZIP_MAGIC)
        && usize::from(u16::from_le_bytes(*extra_len)) == len
        && rest.ends_with(EMPTY_MEMBER);
    is_it.then(|| rest.get(..len))?
}

fn estargz(digits: &[u8], stored_len: u64, footer_len: u64) -> Result<TocLocation, FormatError> {
    let refuse = |reason: String| FormatError::malformed(FORMAT, "eStargz footer", reason);
    let digits = std::str::from_utf8(digits).ok();
    let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let start = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let start = start.ok_or_else(|| refuse("the offset of the TOC is no number".into()))?;
    let end = stored_len.saturating_sub(footer_len);
    if start >= end {
        return Err(refuse(format!(
            "places the TOC at stored offset {start} of {stored_len}"
        )));
    }
    Ok(TocLocation {
        kind: TocKind::Estargz,
        stored: start..end,
        plain_len: None,
    })
}

fn zstd_chunked(payload: &[u8], stored_len: u64) -> Result<TocLocation, FormatError> {
    let (numbers, _) = payload.as_chunks::<8>();
    let mut numbers = numbers.iter().map(|number| u64::from_le_bytes(*number));
    let mut next = || numbers.next().unwrap_or_default();
    let position = [next(), next(), next(), next()];
    of_position(position, "zstd:chunked footer", stored_len)
}

/// A TOC of zstd:chunked by offset, stored length, decoded length and type.
pub(super) fn of_position(
    [off, len, plain_len, kind]: [u64; 4],
    place: &'static str,
    stored_len: u64,
) -> Result<TocLocation, FormatError> {
    let end = off.checked_add(len).filter(|end| *end <= stored_len);
    match end {
        _ if kind != ZSTD_TOC_TYPE => Err(FormatError::Unsupported {
            format: FORMAT,
            reason: format!("the {place} tells of a TOC of type {kind}"),
        }),
        Some(end) if len > 0 => Ok(TocLocation {
            kind: TocKind::ZstdChunked,
            stored: off..end,
            plain_len: Some(plain_len),
        }),
        _ => {
            let reason =
                format!("places the TOC at stored offset {off}, {len} bytes, in a blob of {stored_len}");
            Err(FormatError::malformed(FORMAT, place, reason))
        }
    }
}
