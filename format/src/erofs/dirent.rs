//! Directory blocks.
//!
//! A directory is a sequence of 512-byte blocks, the last one possibly shorter. Each block holds some entries and behind
//! them their names, without terminators; a name ends where the next one begins, the last one at the first NUL or at
//! the end of the block. Names are in byte order over the whole directory, `.` and `..` in their places, so that a name
//! is found by two binary searches.

use std::cmp::Ordering;

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{BLOCK_LEN, Dirent};

const DIRENT_LEN: usize = size_of::<Dirent>();

/// Length of the directory whose names are `names`, in order.
pub(super) fn directory_len<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut full, mut used) = (0u64, 0);
    for name in names {
        let need = DIRENT_LEN + name.len();
        if used + need > BLOCK_LEN {
            full += 1;
            used = 0;
        }
        used += need;
    }
    full * BLOCK_LEN as u64 + used as u64
}

/// One entry to write.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// Appends the blocks of a directory to `out`; the result has [`directory_len`] bytes more.
pub(super) fn encode(entries: &[NewEntry<'_>], out: &mut Vec<u8>) {
    let mut rest = entries;
    while !rest.is_empty() {
        let (block, after) = rest.split_at(entries_of_block(rest));
        let start = out.len();
        encode_block(block, out);
        if !after.is_empty() {
            out.resize(start + BLOCK_LEN, 0);
        }
        rest = after;
    }
}

/// How many of the first entries share a block.
fn entries_of_block(entries: &[NewEntry<'_>]) -> usize {
    let mut used = 0;
    let fitting = entries.iter().take_while(|entry| {
        used += DIRENT_LEN + entry.name.len();
        used <= BLOCK_LEN
    });
    fitting.count().max(1)
}

fn encode_block(entries: &[NewEntry<'_>], out: &mut Vec<u8>) {
    let mut name_off = entries.len() * DIRENT_LEN;
    for entry in entries {
        let dirent = Dirent {
            nid: entry.nid.into(),
            name_off: u16::try_from(name_off)
                .expect("a directory block has 512 bytes")
                .into(),
            file_type: entry.file_type,
            reserved: 0,
        };
        out.extend_from_slice(dirent.as_bytes());
        name_off += entry.name.len();
    }
    for entry in entries {
        out.extend_from_slice(entry.name);
    }
}

/// One directory block, with its entry count checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirBlock<'a> {
    bytes: &'a [u8],
    dirents: &'a [Dirent],
}

/// Why a block is refused.
pub(super) type Reason = &'static str;

impl<'a> DirBlock<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Reason> {
        const BAD_COUNT: Reason = "has a directory block with an impossible number of entries";
        let (first, _) = Dirent::ref_from_prefix(bytes).map_err(|_| BAD_COUNT)?;
        let table_len = usize::from(first.name_off.get());
        if table_len == 0 || table_len % DIRENT_LEN != 0 {
            return Err(BAD_COUNT);
        }
        let table = bytes.get(..table_len).ok_or(BAD_COUNT)?;
        let dirents = <[Dirent]>::ref_from_bytes(table).map_err(|_| BAD_COUNT)?;
        Ok(Self { bytes, dirents })
    }

    pub(super) fn dirents(&self) -> &'a [Dirent] {
        self.dirents
    }

    /// Name of the entry at `index`.
    pub(super) fn name(&self, index: usize) -> Result<&'a [u8], Reason> {
        const BAD_NAME: Reason = "has a directory entry whose name is empty or outside of its block";
        let dirent = self.dirents.get(index).ok_or(BAD_NAME)?;
        let start = usize::from(dirent.name_off.get());
        let name = match self.dirents.get(index + 1) {
            Some(next) => self.bytes.get(start..usize::from(next.name_off.get())),
            None => self
                .bytes
                .get(start..)
                .and_then(|rest| rest.split(|byte| *byte == 0).next()),
        };
        match name {
            Some(name) if !name.is_empty() && start >= self.dirents.len() * DIRENT_LEN => Ok(name),
            _ => Err(BAD_NAME),
        }
    }

    /// Compares the first name with `wanted`.
    pub(super) fn compare_first(&self, wanted: &[u8]) -> Result<Ordering, Reason> {
        Ok(self.name(0)?.cmp(wanted))
    }

    /// The entry called `wanted`.
    pub(super) fn find(&self, wanted: &[u8]) -> Result<Option<&'a Dirent>, Reason> {
        let (mut low, mut high) = (0, self.dirents.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle)?.cmp(wanted) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(self.dirents.get(middle)),
            }
        }
        Ok(None)
    }
}
