//! Header and checksum of the document.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FORMAT, Profile, columns};
use crate::compression::decode_frame;
use crate::{Digest, FormatError, Hasher, Limits};

/// First bytes of every document. The first byte is not ASCII, so that no text file is taken for one.
const MAGIC: [u8; 8] = *b"\x89SLPROF\n";

/// Version of header and columns. A reader refuses any other.
const VERSION: u16 = 1;

/// Incompatible feature bits known to this version: none yet.
const KNOWN_INCOMPATIBLE: u32 = 0;

/// zstd level of the body. It has some kilobytes and is written once per start: size counts, time does not.
const BODY_LEVEL: i32 = 19;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U16,
    layer_count: U16,
    compatible: U32,
    incompatible: U32,
    runs: U32,
    demand_count: U32,
    /// Length of the columns before compression.
    body_len: U32,
    image_id: [u8; 32],
    /// Over all header bytes before it and the stored body behind it.
    checksum: [u8; 32],
}

/// Bytes of the header that the checksum covers.
const CHECKED_LEN: usize = size_of::<RawHeader>() - Digest::LEN;

pub(super) fn encode(profile: &Profile) -> Result<Vec<u8>, FormatError> {
    let columns = columns::encode(&profile.layers);
    let body = zstd::bulk::compress(&columns, BODY_LEVEL)
        .map_err(|error| FormatError::malformed(FORMAT, "body", error))?;
    let mut header = RawHeader {
        magic: MAGIC,
        version: VERSION.into(),
        layer_count: u16::try_from(profile.layers.len()).unwrap_or(u16::MAX).into(),
        compatible: 0.into(),
        incompatible: KNOWN_INCOMPATIBLE.into(),
        runs: profile.runs.into(),
        demand_count: u32::try_from(profile.demand_count()).unwrap_or(u32::MAX).into(),
        body_len: u32::try_from(columns.len()).unwrap_or(u32::MAX).into(),
        image_id: *profile.image_id.as_bytes(),
        checksum: [0; 32],
    };
    header.checksum = *checksum(&header.as_bytes()[..CHECKED_LEN], &body).as_bytes();
    let mut document = header.as_bytes().to_vec();
    document.extend_from_slice(&body);
    Ok(document)
}

pub(super) fn parse(bytes: &[u8], limits: &Limits) -> Result<Profile, FormatError> {
    FormatError::check_limit(
        "stored length of a profile",
        bytes.len() as u64,
        limits.profile_stored_len,
    )?;
    let refuse = |reason: &str| FormatError::malformed(FORMAT, "header", reason);
    let (header, body) = RawHeader::ref_from_prefix(bytes).map_err(|_| refuse("is cut short"))?;
    if header.magic != MAGIC {
        return Err(refuse("does not begin with the magic of a profile"));
    }
    check_version(header)?;
    let (expected, found) = (
        Digest::from_bytes(header.checksum),
        checksum(&bytes[..CHECKED_LEN], body),
    );
    if expected != found {
        return Err(FormatError::Corrupt {
            what: FORMAT.into(),
            expected,
            found,
        });
    }
    let (layers, demands) = (header.layer_count.get(), header.demand_count.get());
    FormatError::check_limit(
        "number of demands in a profile",
        demands.into(),
        limits.profile_demands as u64,
    )?;
    let body_limit = columns::longest(layers.into(), demands.into());
    FormatError::check_limit(
        "decoded length of a profile's body",
        header.body_len.get().into(),
        body_limit,
    )?;
    let columns = decode_frame(body, header.body_len.get().into())
        .map_err(|reason| FormatError::malformed(FORMAT, "body", reason))?;
    let layers = columns::parse(&columns, layers.into(), demands as usize)?;
    let image_id = Digest::from_bytes(header.image_id);
    Profile::new(image_id, header.runs.get(), layers, limits)
}

fn check_version(header: &RawHeader) -> Result<(), FormatError> {
    let (version, incompatible) = (header.version.get(), header.incompatible.get());
    if version == VERSION && incompatible & !KNOWN_INCOMPATIBLE == 0 {
        return Ok(());
    }
    Err(FormatError::Unsupported {
        format: FORMAT,
        reason: format!("version {version}, incompatible features {incompatible:#x}"),
    })
}

fn checksum(header: &[u8], body: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(header);
    hasher.update(body);
    hasher.finish()
}
