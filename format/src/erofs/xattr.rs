//! Extended attributes behind an inode.
//!
//! A name is stored as the number of a known prefix and the rest. Prefixes outside [`PREFIXES`] cannot be stored; the
//! kernel offers them on no file system that holds images either.

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{XattrEntry, XattrHeader};
use crate::inode::Xattrs;
use crate::name::Printable;
use crate::{FormatError, Limits};

/// Number and text of the prefixes that can be stored. The two ACL names stand for themselves, their rest is empty.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];
/// Numbers of the prefixes that are whole names.
const ACL_PREFIXES: [u8; 2] = [2, 3];
/// Alignment of entries in bytes, and the unit of [`super::layout::ExtendedInode::xattr_count`].
const ALIGN: usize = size_of::<XattrEntry>();
const HEADER_LEN: usize = size_of::<XattrHeader>();
/// Largest area that the 16-bit length code can express, in bytes.
const AREA_MAX: usize = HEADER_LEN + (u16::MAX as usize - 1) * ALIGN;

/// Bytes that `count`, the length code of an inode, stands for.
pub(super) fn area_len(count: u16) -> usize {
    match usize::from(count) {
        0 => 0,
        count => HEADER_LEN + (count - 1) * ALIGN,
    }
}

/// Length code of an area that [`encode`] made.
pub(super) fn area_count(len: usize) -> u16 {
    let count = if len == 0 {
        0
    } else {
        (len - HEADER_LEN) / ALIGN + 1
    };
    u16::try_from(count).expect("encode bounds the area by AREA_MAX")
}

/// The area for `xattrs`, plus `extra` attributes that sort anywhere. Empty when there are none.
pub(super) fn encode<'a>(xattrs: &'a Xattrs, extra: Option<(&'a [u8], &'a [u8])>) -> Result<Vec<u8>, String> {
    if xattrs.is_empty() && extra.is_none() {
        return Ok(Vec::new());
    }
    let header = XattrHeader {
        name_filter: 0.into(),
        shared_count: 0,
        reserved: [0; 7],
    };
    let mut area = header.as_bytes().to_vec();
    let own = xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()));
    for (name, value) in own.chain(extra) {
        push_entry(&mut area, name, value)?;
        if area.len() > AREA_MAX {
            return Err(format!(
                "has extended attributes of more than the {AREA_MAX} bytes that EROFS can hold"
            ));
        }
    }
    Ok(area)
}

fn push_entry(area: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), String> {
    let refuse = |reason: &str| {
        format!(
            "has the extended attribute \"{}\", whose {reason}",
            Printable(name)
        )
    };
    let (prefix, rest) = split(name).ok_or_else(|| refuse("name EROFS cannot store"))?;
    let entry = XattrEntry {
        name_len: u8::try_from(rest.len()).map_err(|_| refuse("name is over 255 bytes"))?,
        prefix,
        value_len: u16::try_from(value.len())
            .map_err(|_| refuse("value is over 65535 bytes"))?
            .into(),
    };
    area.extend_from_slice(entry.as_bytes());
    area.extend_from_slice(rest);
    area.extend_from_slice(value);
    area.resize(area.len().next_multiple_of(ALIGN), 0);
    Ok(())
}

/// Number of the prefix of `name` and what follows it.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    let (number, rest) = PREFIXES
        .iter()
        .find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)))?;
    is_possible(number, rest).then_some((number, rest))
}

/// One stored attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredXattr<'a> {
    prefix: &'static [u8],
    rest: &'a [u8],
    pub(super) value: &'a [u8],
}

impl StoredXattr<'_> {
    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.prefix) == Some(self.rest)
    }
}

/// Reads the attributes of an area one after the other.
pub(super) fn entries(
    area: &[u8],
) -> Result<impl Iterator<Item = Result<StoredXattr<'_>, &'static str>>, &'static str> {
    let mut rest = match XattrHeader::ref_from_prefix(area) {
        Ok((header, [_, ..])) if header.shared_count != 0 => return Err("has shared extended attributes"),
        Ok((_, rest @ [_, ..])) => rest,
        // The kernel refuses a header alone.
        _ if !area.is_empty() => return Err("has an area for extended attributes without any"),
        _ => area,
    };
    Ok(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = next_entry(rest);
        rest = next.map_or(&[], |(_, behind)| behind);
        Some(next.map(|(found, _)| found))
    }))
}

fn next_entry(area: &[u8]) -> Result<(StoredXattr<'_>, &[u8]), &'static str> {
    const CUT: &str = "has an extended attribute that ends outside of its area";
    let (entry, rest) = XattrEntry::ref_from_prefix(area).map_err(|_| CUT)?;
    let (name, tail) = rest.split_at_checked(usize::from(entry.name_len)).ok_or(CUT)?;
    let value_len = usize::from(entry.value_len.get());
    let value = tail.get(..value_len).ok_or(CUT)?;
    let used = (name.len() + value_len).next_multiple_of(ALIGN);
    let (_, prefix) = PREFIXES
        .iter()
        .find(|(number, _)| *number == entry.prefix)
        .ok_or("has an extended attribute with an unknown prefix")?;
    if !is_possible(entry.prefix, name) {
        return Err("has an extended attribute with an impossible name");
    }
    let found = StoredXattr {
        prefix,
        rest: name,
        value,
    };
    Ok((found, rest.get(used..).ok_or(CUT)?))
}

/// Whether a prefix and a rest make a name: the ACL names have no rest, all others need one.
fn is_possible(prefix: u8, rest: &[u8]) -> bool {
    ACL_PREFIXES.contains(&prefix) == rest.is_empty() && !rest.contains(&0)
}

/// All attributes of an area.
pub(super) fn parse(area: &[u8], limits: &Limits) -> Result<Xattrs, FormatError> {
    let mut xattrs = Xattrs::new();
    let mut len = 0;
    let malformed = |reason| FormatError::malformed("EROFS", "inode", reason);
    for entry in entries(area).map_err(malformed)? {
        let entry = entry.map_err(malformed)?;
        let name = [entry.prefix, entry.rest].concat();
        len += (name.len() + entry.value.len()) as u64;
        FormatError::check_limit("length of extended attributes", len, limits.xattr_bytes as u64)?;
        if xattrs.contains_key(&name) {
            let reason = format!("has the extended attribute \"{}\" twice", Printable(&name));
            return Err(FormatError::malformed("EROFS", "inode", reason));
        }
        xattrs.insert(name, entry.value.to_vec());
        let count = xattrs.len() as u64;
        FormatError::check_limit("number of extended attributes", count, limits.xattr_count as u64)?;
    }
    Ok(xattrs)
}
