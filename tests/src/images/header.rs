//! The 512-byte header of a tar entry, with the entries of long names and PAX records that go before it.
//!
//! [`super::entry::Dialect`] decides how a value is written that the classic header cannot hold.

use std::io::{self, Write};

use super::entry::{BLOCK, Dialect, Entry};

/// Largest number that eleven octal digits hold.
const OCTAL_11: u64 = 0o777_7777_7777;
/// Largest number that seven octal digits hold: uid, gid and device numbers in a classic header.
const OCTAL_7: u64 = 0o777_7777;

/// Fills up the last block of a content of `len` bytes.
pub(super) fn write_padding(len: u64, out: &mut dyn Write) -> io::Result<()> {
    let used = usize::try_from(len % BLOCK as u64).unwrap_or(0);
    if used == 0 {
        return Ok(());
    }
    out.write_all(&[0; BLOCK][used..])
}

/// A header with the PAX records that go before it.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    link: Vec<u8>,
    pub(super) kind: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    pub(super) len: u64,
    pub(super) mtime: i64,
    device: (u32, u32),
    pub(super) dialect: Dialect,
    pub(super) records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes that an old GNU sparse header keeps from offset 386.
    pub(super) sparse_area: Vec<u8>,
}

/// Offset of the sparse map in an old GNU header.
const SPARSE_AREA: usize = 386;

impl Header {
    pub(super) fn of(entry: &Entry) -> Self {
        let mut records = Vec::new();
        for (name, value) in &entry.xattrs {
            records.push(([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone()));
        }
        if entry.nanos != 0 {
            let text = pax_time(entry.mtime, entry.nanos);
            records.push((b"mtime".to_vec(), text.into_bytes()));
        }
        records.extend(entry.records.iter().cloned());
        Self {
            name: entry.name.clone(),
            link: entry.link.clone(),
            kind: entry.kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            len: 0,
            mtime: entry.mtime,
            device: entry.device,
            dialect: entry.dialect,
            records,
            sparse_area: Vec::new(),
        }
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let records = self.all_records();
        if !records.is_empty() {
            write_extension(b'x', b"PaxHeaders/entry", &records, out)?;
        }
        if self.dialect == Dialect::Gnu {
            for (kind, text) in [(b'K', &self.link), (b'L', &self.name)] {
                if text.len() > 100 {
                    write_extension(kind, b"././@LongLink", &[text.as_slice(), b"\0"].concat(), out)?;
                }
            }
        }
        out.write_all(&self.block())
    }

    /// PAX records of the entry, with those for values that the classic header cannot hold.
    fn all_records(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in &self.records {
            bytes.extend(pax_record(key, value));
        }
        if self.dialect != Dialect::Pax {
            return bytes;
        }
        if self.name.len() > 100 {
            bytes.extend(pax_record(b"path", &self.name));
        }
        if self.link.len() > 100 {
            bytes.extend(pax_record(b"linkpath", &self.link));
        }
        let numbers = [
            ("uid", self.uid, OCTAL_7),
            ("gid", self.gid, OCTAL_7),
            ("size", self.len, OCTAL_11),
        ];
        for (key, value, most) in numbers {
            if value > most {
                bytes.extend(pax_record(key.as_bytes(), value.to_string().as_bytes()));
            }
        }
        bytes
    }

    /// Prefix and name: the prefix is as short as leaves at most 100 bytes of name.
    fn split_name(&self) -> (&[u8], &[u8]) {
        let name = self.name.as_slice();
        let split = name
            .iter()
            .enumerate()
            .position(|(at, byte)| *byte == b'/' && name.len() - at <= 101);
        match split {
            Some(at) if self.dialect == Dialect::Ustar && name.len() > 100 => (&name[..at], &name[at + 1..]),
            _ => (b"", name),
        }
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let gnu = self.dialect == Dialect::Gnu;
        let (prefix, name) = self.split_name();
        put(&mut block, 0, 100, name);
        put(&mut block, 345, 155, prefix);
        put_number(&mut block, 100, 8, self.mode.into(), gnu);
        put_number(&mut block, 108, 8, self.uid, gnu);
        put_number(&mut block, 116, 8, self.gid, gnu);
        put_number(&mut block, 124, 12, self.len, gnu);
        put_time(&mut block, self.mtime);
        block[156] = self.kind;
        put(&mut block, 157, 100, &self.link);
        let magic: &[u8] = if gnu { b"ustar  \0" } else { b"ustar\x0000" };
        put(&mut block, 257, 8, magic);
        put_number(&mut block, 329, 8, self.device.0.into(), gnu);
        put_number(&mut block, 337, 8, self.device.1.into(), gnu);
        put(&mut block, SPARSE_AREA, BLOCK - SPARSE_AREA, &self.sparse_area);
        put_checksum(&mut block);
        block
    }
}

/// An entry that carries long names or PAX records for the next one.
fn write_extension(kind: u8, name: &[u8], content: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let mut header = Header::of(&Entry::new(kind, name, 0o644).gnu());
    header.mtime = 0;
    header.len = content.len() as u64;
    out.write_all(&header.block())?;
    out.write_all(content)?;
    write_padding(content.len() as u64, out)
}

/// One PAX record: its length in decimal counts itself.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A time as PAX writes it: before the epoch the fraction counts away from zero.
fn pax_time(secs: i64, nanos: u32) -> String {
    if secs >= 0 {
        return format!("{secs}.{nanos:09}");
    }
    let (whole, fraction) = (-(secs + 1), 1_000_000_000 - nanos);
    format!("-{whole}.{fraction:09}")
}

fn put(block: &mut [u8], at: usize, len: usize, bytes: &[u8]) {
    let n = bytes.len().min(len);
    block[at..at + n].copy_from_slice(&bytes[..n]);
}

/// A number in octal, or in base 256 where that does not fit (`gnu`), or 0 where PAX records say it.
fn put_number(block: &mut [u8], at: usize, len: usize, value: u64, gnu: bool) {
    let most = if len == 12 { OCTAL_11 } else { OCTAL_7 };
    if value <= most {
        let text = format!("{value:0width$o}\0", width = len - 1);
        put(block, at, len, text.as_bytes());
    } else if gnu {
        put_base256(block, at, len, i128::from(value));
    } else {
        put(
            block,
            at,
            len,
            format!("{:0width$o}\0", 0, width = len - 1).as_bytes(),
        );
    }
}

fn put_time(block: &mut [u8], mtime: i64) {
    match u64::try_from(mtime) {
        Ok(mtime) => put_number(block, 136, 12, mtime, true),
        Err(_) => put_base256(block, 136, 12, i128::from(mtime)),
    }
}

/// Two's complement, big-endian, with the top bit of the first byte set as the mark of base 256.
fn put_base256(block: &mut [u8], at: usize, len: usize, value: i128) {
    let bytes = value.to_be_bytes();
    block[at..at + len].copy_from_slice(&bytes[bytes.len() - len..]);
    block[at] |= 0x80;
}

/// The sum over the header with the checksum field itself as spaces.
pub fn put_checksum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(block, 148, 8, format!("{sum:06o}\0 ").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_count_their_own_length() {
        assert_eq!(pax_record(b"path", b"x"), b"9 path=x\n");
        assert_eq!(pax_record(b"path", b"ab"), b"11 path=ab\n");
        let long = pax_record(b"k", &[b'v'; 100]);
        assert!(long.starts_with(format!("{} k=", long.len()).as_bytes()));
    }

    #[test]
    fn times_before_the_epoch_are_written_as_go_reads_them() {
        assert_eq!(pax_time(-2, 500_000_000), "-1.500000000");
        assert_eq!(pax_time(5, 1), "5.000000001");
    }
}
