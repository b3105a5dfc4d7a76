//! Header and section list.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::FORMAT;
use crate::compression::decode_frame;
use crate::{DiffId, Digest, FormatError, Limits};

/// First bytes of every index. The first byte is not ASCII, so that no text file is taken for one.
const MAGIC: [u8; 8] = *b"\x89SLUICE\n";

/// Version of the layout of header and section list. A reader refuses any other.
const VERSION: u16 = 1;

/// Incompatible feature: chunks begin at restart points inside a gzip stream. The restart section is there exactly then.
pub(super) const RESTARTS: u32 = 1;

/// Incompatible feature bits known to this version. A reader refuses an index with any other bit set; unknown compatible bits are ignored.
const KNOWN_INCOMPATIBLE: u32 = RESTARTS;

/// Sections per index at most: four are known, the rest is room for additions that older readers skip.
const SECTIONS_MAX: u16 = 64;

/// Level for sections. They are small next to the layer and read at every start, so size matters more than time; above
/// this level zstd gains under 2 % on trees.
const SECTION_LEVEL: i32 = 12;

/// What a section holds. The number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SectionKind {
    /// EROFS metadata image of the layer.
    Tree = 1,
    /// Chunk table.
    Chunks = 2,
    /// Implied directories and deferred hard links.
    Stacking = 3,
    /// Restart points inside a gzip stream, with their windows.
    Restarts = 4,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U16,
    section_count: U16,
    compatible: U32,
    incompatible: U32,
    reserved: U32,
    plain_len: U64,
    diff_id: [u8; 32],
}

/// How a section's bytes are stored. Only zstd is written; the number leaves room.
const ENCODING_ZSTD: u32 = 1;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSection {
    kind: U32,
    encoding: U32,
    /// From the start of the index.
    off: U64,
    stored_len: U64,
    decoded_len: U64,
    /// Over the stored bytes.
    digest: [u8; 32],
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) diff_id: DiffId,
    pub(super) plain_len: u64,
    /// Whether the index has a restart section.
    pub(super) has_restarts: bool,
    sections: &'a [RawSection],
    section_limit: u64,
}

impl<'a> Header<'a> {
    pub(super) fn parse(bytes: &'a [u8], limits: &Limits) -> Result<Self, FormatError> {
        let refuse = |place: &str, reason: &str| FormatError::malformed(FORMAT, place, reason);
        let (raw, rest) = RawHeader::ref_from_prefix(bytes).map_err(|_| refuse("header", "is cut short"))?;
        if raw.magic != MAGIC {
            return Err(refuse("header", "does not begin with the magic of a layer index"));
        }
        let (version, incompatible) = (raw.version.get(), raw.incompatible.get());
        if version != VERSION || incompatible & !KNOWN_INCOMPATIBLE != 0 {
            let reason = format!("version {version}, incompatible features {incompatible:#x}");
            return Err(FormatError::Unsupported {
                format: FORMAT,
                reason,
            });
        }
        let count = raw.section_count.get();
        FormatError::check_limit(
            "number of sections in a layer index",
            count.into(),
            SECTIONS_MAX.into(),
        )?;
        FormatError::check_limit(
            "plain length of a layer",
            raw.plain_len.get(),
            limits.layer_plain_len,
        )?;
        let (sections, _) = <[RawSection]>::ref_from_prefix_with_elems(rest, count.into())
            .map_err(|_| refuse("section list", "is cut short"))?;
        Ok(Self {
            diff_id: DiffId(Digest::from_bytes(raw.diff_id)),
            plain_len: raw.plain_len.get(),
            has_restarts: incompatible & RESTARTS != 0,
            sections,
            section_limit: limits.section_len,
        })
    }

    /// The decoded bytes of a section that must be there.
    pub(super) fn load_section(&self, bytes: &[u8], kind: SectionKind) -> Result<Vec<u8>, FormatError> {
        let place = || format!("section {kind:?}");
        let mut found = self
            .sections
            .iter()
            .filter(|section| section.kind.get() == kind as u32);
        let (Some(section), None) = (found.next(), found.next()) else {
            return Err(FormatError::malformed(
                FORMAT,
                place(),
                "is missing or there twice",
            ));
        };
        let stored = stored_bytes(bytes, section)
            .ok_or_else(|| FormatError::malformed(FORMAT, place(), "lies outside the index"))?;
        let (expected, found) = (Digest::from_bytes(section.digest), Digest::of(stored));
        if expected != found {
            return Err(FormatError::Corrupt {
                what: format!("{FORMAT} {}", place()),
                expected,
                found,
            });
        }
        if section.encoding.get() != ENCODING_ZSTD {
            let reason = format!("encoding {} of {}", section.encoding, place());
            return Err(FormatError::Unsupported {
                format: FORMAT,
                reason,
            });
        }
        FormatError::check_limit(
            "decoded length of an index section",
            section.decoded_len.get(),
            self.section_limit,
        )?;
        decode_frame(stored, section.decoded_len.get())
            .map_err(|reason| FormatError::malformed(FORMAT, place(), reason))
    }
}

fn stored_bytes<'a>(bytes: &'a [u8], section: &RawSection) -> Option<&'a [u8]> {
    let start = usize::try_from(section.off.get()).ok()?;
    let len = usize::try_from(section.stored_len.get()).ok()?;
    bytes.get(start..start.checked_add(len)?)
}

/// Puts header, section list and compressed sections together.
pub(super) fn assemble(
    diff_id: DiffId,
    plain_len: u64,
    sections: &[(SectionKind, Vec<u8>)],
) -> Result<Vec<u8>, FormatError> {
    let section_count = u16::try_from(sections.len()).unwrap_or(u16::MAX);
    FormatError::check_limit(
        "number of sections in a layer index",
        section_count.into(),
        SECTIONS_MAX.into(),
    )?;
    let has_restarts = sections.iter().any(|(kind, _)| *kind == SectionKind::Restarts);
    let incompatible = if has_restarts { RESTARTS } else { 0 };
    let raw = RawHeader {
        magic: MAGIC,
        version: VERSION.into(),
        section_count: section_count.into(),
        compatible: 0.into(),
        incompatible: incompatible.into(),
        reserved: 0.into(),
        plain_len: plain_len.into(),
        diff_id: *diff_id.0.as_bytes(),
    };
    let mut index = raw.as_bytes().to_vec();
    let mut bodies = Vec::new();
    let bodies_off = size_of::<RawHeader>() + sections.len() * size_of::<RawSection>();
    for (kind, decoded) in sections {
        let stored = zstd::bulk::compress(decoded, SECTION_LEVEL)
            .map_err(|e| FormatError::malformed(FORMAT, format!("section {kind:?}"), e))?;
        let section = RawSection {
            kind: (*kind as u32).into(),
            encoding: ENCODING_ZSTD.into(),
            off: ((bodies_off + bodies.len()) as u64).into(),
            stored_len: (stored.len() as u64).into(),
            decoded_len: (decoded.len() as u64).into(),
            digest: *Digest::of(&stored).as_bytes(),
        };
        index.extend_from_slice(section.as_bytes());
        bodies.extend_from_slice(&stored);
    }
    index.extend_from_slice(&bodies);
    Ok(index)
}
