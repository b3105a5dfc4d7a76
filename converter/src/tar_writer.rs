//! Tar headers as bytes: ustar, with a PAX extended header where ustar cannot say it.
//!
//! The same entry always gives the same bytes. A PAX header is written only for what needs one: a path or link target over
//! 100 bytes, a time with nanoseconds or outside the field, a large owner or size, extended attributes (as
//! `SCHILY.xattr.<name>`, the form that Docker, containerd and GNU tar read). Source: POSIX.1-2017, `pax`.

use std::collections::BTreeMap;

/// Unit of a tar stream in bytes: headers are one block, data is padded to a whole number of them.
pub(crate) const BLOCK_LEN: usize = 512;

/// End of an archive: two blocks of zeros.
pub(crate) const END_LEN: usize = 2 * BLOCK_LEN;

const NAME_LEN: usize = 100;

/// Largest values of octal fields: 7 digits for owners and devices, 11 for sizes and times.
const OWNER_MAX: u64 = 0o777_7777;
const SIZE_MAX: u64 = 0o777_7777_7777;

/// Kind of an entry: its type flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryKind {
    Regular = b'0',
    HardLink = b'1',
    Symlink = b'2',
    CharDevice = b'3',
    BlockDevice = b'4',
    Directory = b'5',
    Fifo = b'6',
}

/// All that a tar says of an entry besides its data.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Path from the root, without a leading slash; a directory's ends with one.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Low 12 bits of `st_mode`.
    pub(crate) permissions: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_secs: i64,
    pub(crate) mtime_nanos: u32,
    /// Length of the data that follows, in bytes.
    pub(crate) size: u64,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// An entry with the attributes of a generated file: owned by root, at the epoch.
    pub(crate) fn generated(path: impl Into<Vec<u8>>, kind: EntryKind, permissions: u32, size: u64) -> Self {
        Self {
            path: path.into(),
            kind,
            permissions,
            uid: 0,
            gid: 0,
            mtime_secs: 0,
            mtime_nanos: 0,
            size,
            link: Vec::new(),
            device: (0, 0),
            xattrs: BTreeMap::new(),
        }
    }

    /// The header blocks.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut blocks = Vec::with_capacity(BLOCK_LEN);
        let records = self.pax_records();
        if !records.is_empty() {
            let mut extended = Self::generated(
                "PaxHeaders/entry",
                EntryKind::Regular,
                0o644,
                records.len() as u64,
            );
            extended.mtime_secs = 0;
            blocks.extend_from_slice(&extended.ustar(b'x'));
            blocks.extend_from_slice(&records);
            blocks.resize(blocks.len().next_multiple_of(BLOCK_LEN), 0);
        }
        blocks.extend_from_slice(&self.ustar(self.kind as u8));
        blocks
    }

    fn pax_records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if self.path.len() > NAME_LEN {
            push_record(&mut records, b"path", &self.path);
        }
        if self.link.len() > NAME_LEN {
            push_record(&mut records, b"linkpath", &self.link);
        }
        for (key, value, max) in [
            (&b"uid"[..], u64::from(self.uid), OWNER_MAX),
            (b"gid", u64::from(self.gid), OWNER_MAX),
            (b"size", self.size, SIZE_MAX),
        ] {
            if value > max {
                push_record(&mut records, key, value.to_string().as_bytes());
            }
        }
        if self.mtime_nanos != 0 || !fits_time(self.mtime_secs) {
            push_record(&mut records, b"mtime", self.mtime_text().as_bytes());
        }
        for (name, value) in &self.xattrs {
            push_record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        records
    }

    /// Seconds as a decimal. Nanoseconds count upwards from the second, also before the epoch.
    fn mtime_text(&self) -> String {
        let nanos = i128::from(self.mtime_secs) * 1_000_000_000 + i128::from(self.mtime_nanos);
        let sign = if nanos < 0 { "-" } else { "" };
        let (secs, rest) = (
            nanos.unsigned_abs() / 1_000_000_000,
            nanos.unsigned_abs() % 1_000_000_000,
        );
        let text = format!("{sign}{secs}.{rest:09}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }

    fn ustar(&self, type_flag: u8) -> [u8; BLOCK_LEN] {
        let mut block = [0; BLOCK_LEN];
        put_text(&mut block[0..100], &self.path);
        put_octal(&mut block[100..108], self.permissions.into());
        put_octal(&mut block[108..116], clip(self.uid.into(), OWNER_MAX));
        put_octal(&mut block[116..124], clip(self.gid.into(), OWNER_MAX));
        put_octal(&mut block[124..136], clip(self.size, SIZE_MAX));
        let secs = u64::try_from(self.mtime_secs).unwrap_or(0);
        put_octal(&mut block[136..148], clip(secs, SIZE_MAX));
        block[156] = type_flag;
        put_text(&mut block[157..257], &self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        put_octal(&mut block[329..337], self.device.0.into());
        put_octal(&mut block[337..345], self.device.1.into());
        // The checksum is computed as if its own field held spaces.
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        put_octal(&mut block[148..155], sum);
        block
    }
}

fn fits_time(secs: i64) -> bool {
    u64::try_from(secs).is_ok_and(|secs| secs <= SIZE_MAX)
}

/// A value that does not fit is in the PAX header; readers ignore the field then.
fn clip(value: u64, max: u64) -> u64 {
    if value > max { 0 } else { value }
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// Octal digits, padded with zeros on the left, and a NUL.
fn put_octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    put_text(&mut field[..digits], text.as_bytes());
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn push_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // Space, equals sign, newline.
    let rest = key.len() + value.len() + 3;
    let mut len = rest + decimal_digits(rest);
    if rest + decimal_digits(len) != len {
        len = rest + decimal_digits(len);
    }
    records.extend_from_slice(len.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn decimal_digits(value: usize) -> usize {
    value.to_string().len()
}

/// Zeros needed after `size` bytes of data.
pub(crate) fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK_LEN as u64) - size) as usize
}

#[cfg(test)]
mod tests {
    use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

    use super::*;

    fn read_back(blocks: &[u8]) -> ParsedEntry<'_> {
        match Parser::new(Limits::default()).parse(blocks).unwrap() {
            ParseEvent::Entry { consumed, entry } if consumed == blocks.len() => entry,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn entries_beyond_ustar_are_read_back_by_another_implementation() {
        let path = format!("dir/{}/ä", "long".repeat(60));
        let mut entry = Entry::generated(path.clone(), EntryKind::Symlink, 0o4755, 0);
        entry.link = "t".repeat(150).into_bytes();
        (entry.uid, entry.gid) = (3_000_000_000, 12);
        (entry.mtime_secs, entry.mtime_nanos) = (1_700_000_000, 123_000_000);
        let xattr = (b"user.bin".to_vec(), b"\0\n=\xff".to_vec());
        entry.xattrs.insert(xattr.0.clone(), xattr.1.clone());
        let blocks = entry.encode();
        let found = read_back(&blocks);
        assert_eq!(*found.path, *path.as_bytes());
        assert_eq!(*found.link_target.unwrap(), *entry.link);
        assert_eq!((found.mode, found.uid, found.gid), (0o4755, 3_000_000_000, 12));
        assert_eq!(found.mtime, 1_700_000_000);
        let xattrs: Vec<_> = found
            .xattrs
            .iter()
            .map(|(k, v)| (k.to_vec(), v.to_vec()))
            .collect();
        assert_eq!(xattrs, [xattr]);
        let records = String::from_utf8_lossy(found.pax.unwrap());
        assert!(records.contains("24 mtime=1700000000.123\n"), "{records}");
    }

    #[test]
    fn plain_entries_are_one_block() {
        let mut entry = Entry::generated("a/b", EntryKind::CharDevice, 0o600, 0);
        entry.device = (5, 1_048_575);
        let blocks = entry.encode();
        assert_eq!(blocks.len(), BLOCK_LEN);
        let found = read_back(&blocks);
        assert_eq!((found.dev_major, found.dev_minor), (Some(5), Some(1_048_575)));
    }

    #[test]
    fn record_lengths_count_their_own_digits() {
        for len in 0..1200 {
            let mut record = Vec::new();
            push_record(&mut record, b"k", &vec![b'v'; len]);
            let said: usize = std::str::from_utf8(&record)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(said, record.len());
        }
    }

    #[test]
    fn times_before_the_epoch_keep_their_value() {
        let mut entry = Entry::generated("a", EntryKind::Regular, 0o644, 0);
        (entry.mtime_secs, entry.mtime_nanos) = (-2, 500_000_000);
        assert_eq!(entry.mtime_text(), "-1.5");
        entry.mtime_nanos = 0;
        assert_eq!(entry.mtime_text(), "-2");
    }
}
