//! A tar entry: a header with the extension headers before it.
//!
//! PAX records replace header fields, GNU long names replace both, as in Go. A second PAX header replaces the first as a
//! whole. A global PAX header changes nothing: Go hands it to containerd as an entry of its own, which containerd skips;
//! by that it also separates the extensions before it from the entry after it.

use super::header::{Block, Header, is_header_only, text};
use super::pax::{Records, bound_time};
use super::refusal::Refusal;
use super::sparse::SparseRecords;
use crate::Limits;
use crate::inode::Timestamp;
use std::collections::BTreeMap;

/// Type flags of extension headers, whose data describes the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtensionKind {
    Pax,
    GlobalPax,
    LongName,
    LongLink,
}

impl ExtensionKind {
    /// The extension that a type flag stands for.
    pub(super) const fn of(flag: u8) -> Option<Self> {
        match flag {
            b'x' => Some(Self::Pax),
            b'g' => Some(Self::GlobalPax),
            b'L' => Some(Self::LongName),
            b'K' => Some(Self::LongLink),
            _ => None,
        }
    }
}

/// What extension headers said since the last entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extensions {
    records: Records,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl Extensions {
    /// Takes the data of one extension header.
    pub(super) fn add(&mut self, kind: ExtensionKind, data: &[u8], limits: &Limits) -> Result<(), Refusal> {
        match kind {
            ExtensionKind::Pax => self.records = Records::parse(data, limits)?,
            ExtensionKind::GlobalPax => {
                Records::check(data)?;
                *self = Self::default();
            }
            ExtensionKind::LongName => self.long_name = text(data).to_vec(),
            ExtensionKind::LongLink => self.long_link = text(data).to_vec(),
        }
        Ok(())
    }
}

/// What kind of file an entry describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Regular,
    /// A regular file with a sparse map in GNU header blocks.
    GnuSparse,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// A type flag that containerd refuses.
    Other(u8),
}

/// One entry, fields as they come: what is invalid for a file system is refused only when the entry is used, because
/// containerd skips an entry for the root and reduces a whiteout to its name before it looks at anything else.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Length of the data in the tar.
    pub(crate) stored_len: u64,
    pub(crate) mode: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) mtime: Timestamp,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) sparse: Option<SparseRecords>,
}

impl Entry {
    /// Joins a header with the extensions before it.
    pub(crate) fn new(header: Header, extensions: Extensions) -> Result<Self, Refusal> {
        let Extensions {
            records,
            long_name,
            long_link,
        } = extensions;
        let choose = |long: Vec<u8>, pax: Option<Vec<u8>>, plain| match pax {
            _ if !long.is_empty() => long,
            Some(pax) => pax,
            None => plain,
        };
        let mut name = choose(long_name, records.path, header.name);
        let kind = kind_of(header.flag, &name);
        if let Some(sparse_name) = records.sparse.as_ref().and_then(|sparse| sparse.name.clone()) {
            name = sparse_name;
        }
        let size = records.size.unwrap_or(header.size);
        let has_data = !is_header_only(header.flag) && kind != EntryKind::Directory;
        let stored_len = if has_data {
            u64::try_from(size).map_err(|_| "size is negative")?
        } else {
            0
        };
        Ok(Self {
            name,
            link: choose(long_link, records.link, header.link),
            kind,
            stored_len,
            mode: header.mode,
            uid: records.uid.unwrap_or(header.uid),
            gid: records.gid.unwrap_or(header.gid),
            mtime: records.mtime.unwrap_or_else(|| bound_time(header.mtime, 0)),
            major: header.major,
            minor: header.minor,
            xattrs: records.xattrs,
            sparse: records.sparse,
        })
    }
}

/// A v7 tar has no directories of their own: there a trailing slash makes one, but only with type NUL.
fn kind_of(flag: u8, name: &[u8]) -> EntryKind {
    match flag {
        0 if name.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' => EntryKind::Regular,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'S' => EntryKind::GnuSparse,
        other => EntryKind::Other(other),
    }
}

/// Whether a block ends the archive.
pub(super) fn is_zero(block: &Block) -> bool {
    block.iter().all(|byte| *byte == 0)
}
