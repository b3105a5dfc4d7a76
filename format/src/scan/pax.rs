//! PAX extended header records.
//!
//! A record is `length key=value\n`; the length counts the whole record. Of several records with one key the last counts,
//! and an empty value leaves the plain header's value in place. One broken record refuses the archive: what a reader would
//! otherwise miss decides where the next header lies.

use std::collections::BTreeMap;

use super::refusal::Refusal;
use super::sparse::{SparseMap, SparseRecords, segments};
use crate::Limits;
use crate::inode::Timestamp;

/// Prefix of the keys under which star, GNU tar and containerd keep extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Length of the shortest record, `5 k=\n`.
const RECORD_MIN: usize = 5;

const BROKEN_RECORD: &str = "broken PAX record";

/// Latest representable time in nanoseconds since the epoch; containerd turns later ones into the epoch.
const LATEST_NANOS: i128 = i64::MAX as i128;

/// What the records of one extended header say about the next entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    /// Names without the key prefix, and values.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: Option<SparseRecords>,
}

type Map<'a> = BTreeMap<&'a [u8], &'a [u8]>;

impl Records {
    /// Reads the data of an extended header.
    pub(super) fn parse(data: &[u8], limits: &Limits) -> Result<Self, Refusal> {
        let (map, pairs) = split(data).ok_or(BROKEN_RECORD)?;
        value(&map, "atime", time)?;
        value(&map, "ctime", time)?;
        Ok(Self {
            path: bytes(&map, "path"),
            link: bytes(&map, "linkpath"),
            size: value(&map, "size", decimal)?,
            uid: value(&map, "uid", decimal)?,
            gid: value(&map, "gid", decimal)?,
            mtime: value(&map, "mtime", time)?,
            xattrs: xattrs(&map),
            sparse: sparse(&map, &pairs, limits)?,
        })
    }

    /// Checks the records of a global header, which containerd reads and then ignores.
    pub(super) fn check(data: &[u8]) -> Result<(), Refusal> {
        split(data).map(drop).ok_or_else(|| BROKEN_RECORD.into())
    }
}

/// All records by key, and apart from them the repeated offset and length records of sparse format 0.0 in order.
fn split(mut data: &[u8]) -> Option<(Map<'_>, Vec<&[u8]>)> {
    let mut map = Map::new();
    let mut pairs = Vec::new();
    while !data.is_empty() {
        let (key, value, rest) = record(data)?;
        data = rest;
        match key {
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = key == b"GNU.sparse.offset";
                if is_offset != pairs.len().is_multiple_of(2) {
                    return None;
                }
                pairs.push(value);
            }
            _ => {
                map.insert(key, value);
            }
        }
    }
    Some((map, pairs))
}

/// The first record and what follows it.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(data.get(..space)?)?)
        .ok()
        .filter(|len| *len >= RECORD_MIN)?;
    let body = data.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (body.get(..equals)?, body.get(equals + 1..)?);
    let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    let holds_nul = key.contains(&0) || is_text && value.contains(&0);
    (!holds_nul).then_some((key, value, data.get(len..)?))
}

/// A decimal number with an optional sign.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction, brought into the range of a tree: what lies before the epoch, or later than 64 bits
/// of nanoseconds can say, becomes the epoch.
fn time(text: &[u8]) -> Option<Timestamp> {
    const NANO_DIGITS: usize = 9;
    let (secs, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (text.get(..dot)?, text.get(dot + 1..)?),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let padded = fraction
        .iter()
        .copied()
        .chain(std::iter::repeat(b'0'))
        .take(NANO_DIGITS);
    let nanos = padded.fold(0_i64, |nanos, digit| nanos * 10 + i64::from(digit - b'0'));
    let nanos = if secs.starts_with(b"-") { -nanos } else { nanos };
    Some(bound_time(decimal(secs)?, nanos))
}

/// A time as a tree can hold it; see [`time`]. `nanos` has the sign of the whole.
pub(crate) fn bound_time(secs: i64, nanos: i64) -> Timestamp {
    const NANOS_PER_SEC: i128 = 1_000_000_000;
    let total = i128::from(secs) * NANOS_PER_SEC + i128::from(nanos);
    if !(0..=LATEST_NANOS).contains(&total) {
        return Timestamp::default();
    }
    let parts = (
        u64::try_from(total / NANOS_PER_SEC),
        u32::try_from(total % NANOS_PER_SEC),
    );
    match parts {
        (Ok(secs), Ok(nanos)) => Timestamp { secs, nanos },
        _ => Timestamp::default(),
    }
}

/// The value of a key in the form that `parse` reads; `None` when it is absent or empty.
fn value<T>(map: &Map<'_>, key: &str, parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, Refusal> {
    match text(map, key) {
        b"" => Ok(None),
        text => parse(text)
            .map(Some)
            .ok_or_else(|| format!("PAX {key} is not of its form").into()),
    }
}

fn bytes(map: &Map<'_>, key: &str) -> Option<Vec<u8>> {
    Some(text(map, key))
        .filter(|value| !value.is_empty())
        .map(<[u8]>::to_vec)
}

fn text<'a>(map: &Map<'a>, key: &str) -> &'a [u8] {
    map.get(key.as_bytes()).copied().unwrap_or_default()
}

fn xattrs(map: &Map<'_>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let found = map
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?, value)));
    found
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect()
}

/// Recognises GNU's sparse formats 0.0, 0.1 and 1.0 as Go does: by the version records, or without them by the map.
fn sparse(map: &Map<'_>, pairs: &[&[u8]], limits: &Limits) -> Result<Option<SparseRecords>, Refusal> {
    let listed: Vec<&[u8]> = match text(map, "GNU.sparse.map") {
        _ if !pairs.is_empty() => pairs.to_vec(),
        b"" => Vec::new(),
        list => list.split(|byte| *byte == b',').collect(),
    };
    let in_data = match (text(map, "GNU.sparse.major"), text(map, "GNU.sparse.minor")) {
        (b"1", b"0") => true,
        (b"0", b"0" | b"1") => false,
        (b"", b"") if !listed.is_empty() => false,
        _ => return Ok(None),
    };
    let real_size = match value(map, "GNU.sparse.size", decimal)? {
        None => value(map, "GNU.sparse.realsize", decimal)?,
        size => size,
    };
    let sparse_map = if in_data {
        SparseMap::InData
    } else {
        known_map(map, &listed, limits)?
    };
    Ok(Some(SparseRecords {
        name: bytes(map, "GNU.sparse.name"),
        real_size,
        map: sparse_map,
    }))
}

fn known_map(map: &Map<'_>, listed: &[&[u8]], limits: &Limits) -> Result<SparseMap, Refusal> {
    let count = decimal(text(map, "GNU.sparse.numblocks")).and_then(|count| usize::try_from(count).ok());
    if count.and_then(|count| count.checked_mul(2)) != Some(listed.len()) {
        return Err("GNU sparse map does not have the announced number of segments".into());
    }
    Ok(SparseMap::Known(segments(listed, limits)?))
}
