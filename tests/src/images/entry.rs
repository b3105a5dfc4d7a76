//! One tar entry with control over every byte of its header.
//!
//! [`Entry`] holds what the header says; [`Dialect`] decides how values that do not fit the classic header are written:
//! as PAX records, or as GNU tar does with extra entries and base-256 numbers. Nothing is checked, so that wrong
//! archives can be made too.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::sparse::Sparse;

/// Length of a tar block in bytes; headers and contents are padded to it.
pub const BLOCK: usize = 512;

/// Largest number that eleven octal digits hold.
const OCTAL_11: u64 = 0o777_7777_7777;
/// Largest number that seven octal digits hold: uid, gid and device numbers in a classic header.
const OCTAL_7: u64 = 0o777_7777;

/// How long names and large numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// POSIX.1-2001: an `x` entry with records before the entry.
    Pax,
    /// GNU tar: `L` and `K` entries for long names, base-256 numbers.
    Gnu,
    /// POSIX.1-1988: a name of more than 100 bytes is split at a slash into prefix and name.
    Ustar,
}

/// Where the bytes of a file come from.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// `len` bytes made while they are written, the same for the same `seed`, compressible about ten times.
    Generated {
        /// Length in bytes.
        len: u64,
        /// Distinguishes contents.
        seed: u64,
    },
    /// So many zeros.
    Zeros(u64),
    /// The first `len` bytes of a local file.
    File {
        /// Where it is.
        path: PathBuf,
        /// Length in bytes.
        len: u64,
    },
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
            Self::Generated { len, .. } | Self::File { len, .. } => *len,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => out.write_all(bytes),
            Self::Zeros(len) => io::copy(&mut io::repeat(0).take(*len), out).map(|_| ()),
            Self::Generated { len, seed } => io::copy(&mut Pattern::new(*seed).take(*len), out).map(|_| ()),
            Self::File { path, len } => {
                let copied = io::copy(&mut File::open(path)?.take(*len), out)?;
                if copied == *len {
                    return Ok(());
                }
                Err(io::Error::other(format!("{} has become shorter", path.display())))
            }
        }
    }
}

/// An endless stream of lines with one changing number each: compressible, but no two runs of 64 KiB alike.
#[derive(Debug)]
pub struct Pattern {
    state: u64,
    line: Vec<u8>,
    taken: usize,
}

impl Pattern {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            line: Vec::new(),
            taken: 0,
        }
    }

    fn next_line(&mut self) {
        // xorshift64: good enough to be incompressible, and the same everywhere.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.line.clear();
        self.line.extend_from_slice(&self.state.to_le_bytes());
        self.line.extend_from_slice(&[b'.'; 120]);
        self.taken = 0;
    }
}

impl Read for Pattern {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            if self.taken == self.line.len() {
                self.next_line();
            }
            let n = (into.len() - filled).min(self.line.len() - self.taken);
            into[filled..filled + n].copy_from_slice(&self.line[self.taken..self.taken + n]);
            self.taken += n;
            filled += n;
        }
        Ok(filled)
    }
}

/// One entry of a tar.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path as it stands in the archive, bytes of any encoding.
    pub name: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Type flag.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since the epoch, negative before it.
    pub mtime: i64,
    /// Nanoseconds within the second; other than 0 only in PAX.
    pub nanos: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, written as PAX records.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// More PAX records, written as they are.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes after the header.
    pub content: Content,
    /// Length claimed in the header, when it is not that of the content.
    pub claimed_len: Option<u64>,
    /// Holes of a regular file.
    pub sparse: Option<Sparse>,
    /// How values that do not fit are written.
    pub dialect: Dialect,
}

/// Modification time of entries that do not say another one: 2023-11-14T22:13:20Z.
pub const DEFAULT_MTIME: i64 = 1_700_000_000;

impl Entry {
    fn new(kind: u8, name: impl AsRef<[u8]>, mode: u32) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: DEFAULT_MTIME,
            nanos: 0,
            device: (0, 0),
            xattrs: Vec::new(),
            records: Vec::new(),
            content: Content::Bytes(Vec::new()),
            claimed_len: None,
            sparse: None,
            dialect: Dialect::Pax,
        }
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Self {
        Self {
            content: Content::Bytes(bytes.as_ref().to_vec()),
            ..Self::new(b'0', name, 0o644)
        }
    }

    /// A regular file whose bytes are made while they are written.
    pub fn generated(name: impl AsRef<[u8]>, len: u64, seed: u64) -> Self {
        Self {
            content: Content::Generated { len, seed },
            ..Self::new(b'0', name, 0o644)
        }
    }

    /// A regular file of zeros that are really in the tar.
    pub fn zeros(name: impl AsRef<[u8]>, len: u64) -> Self {
        Self {
            content: Content::Zeros(len),
            ..Self::new(b'0', name, 0o644)
        }
    }

    /// A regular file with holes.
    pub fn sparse(name: impl AsRef<[u8]>, sparse: Sparse) -> Self {
        Self {
            sparse: Some(sparse),
            ..Self::new(b'0', name, 0o644)
        }
    }

    /// A directory.
    pub fn directory(name: impl AsRef<[u8]>, mode: u32) -> Self {
        Self::new(b'5', name, mode)
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            ..Self::new(b'2', name, 0o777)
        }
    }

    /// A hard link.
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            ..Self::new(b'1', name, 0o644)
        }
    }

    /// A character device.
    pub fn char_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..Self::new(b'3', name, 0o600)
        }
    }

    /// A block device.
    pub fn block_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..Self::new(b'4', name, 0o660)
        }
    }

    /// A named pipe.
    pub fn fifo(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'6', name, 0o644)
    }

    /// A whiteout of `path`.
    pub fn whiteout(path: &str) -> Self {
        let (parent, name) = path
            .rsplit_once('/')
            .map_or(("", path), |(parent, name)| (parent, name));
        let slash = if parent.is_empty() { "" } else { "/" };
        Self::file(format!("{parent}{slash}.wh.{name}"), b"")
    }

    /// The marker that makes `directory` opaque.
    pub fn opaque(directory: &str) -> Self {
        Self::file(format!("{directory}/.wh..wh..opq"), b"")
    }

    /// With these permission bits.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// With this owner and group.
    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    /// With this time.
    #[must_use]
    pub fn mtime(self, mtime: i64, nanos: u32) -> Self {
        Self { mtime, nanos, ..self }
    }

    /// With one more extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs
            .push((name.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// With one more PAX record.
    #[must_use]
    pub fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records
            .push((key.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// With long names and large numbers as GNU tar writes them.
    #[must_use]
    pub fn gnu(self) -> Self {
        Self {
            dialect: Dialect::Gnu,
            ..self
        }
    }

    /// With a long name split into prefix and name.
    #[must_use]
    pub fn ustar(self) -> Self {
        Self {
            dialect: Dialect::Ustar,
            ..self
        }
    }

    /// With another type flag.
    #[must_use]
    pub fn kind(self, kind: u8) -> Self {
        Self { kind, ..self }
    }

    /// With a length in the header that is not that of the content.
    #[must_use]
    pub fn claimed_len(self, len: u64) -> Self {
        Self {
            claimed_len: Some(len),
            ..self
        }
    }

    /// Writes header, extension entries, content and padding.
    ///
    /// # Errors
    /// What `out` gives.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.sparse {
            Some(sparse) => self.write_sparse(sparse, out),
            None => self.write_plain(out),
        }
    }

    fn write_plain(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut header = Header::of(self);
        header.len = self.claimed_len.unwrap_or_else(|| self.content.len());
        header.write(out)?;
        self.content.write(out)?;
        write_padding(self.content.len(), out)
    }

    fn write_sparse(&self, sparse: &Sparse, out: &mut dyn Write) -> io::Result<()> {
        let mut header = Header::of(self);
        let stored = sparse.prepare(&mut header);
        header.len = stored.len() as u64;
        header.write(out)?;
        // The extension blocks of an old GNU map stand between header and data and do not count in the length.
        out.write_all(&sparse.extension_blocks())?;
        out.write_all(&stored)?;
        write_padding(stored.len() as u64, out)
    }
}

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
    mtime: i64,
    device: (u32, u32),
    pub(super) dialect: Dialect,
    pub(super) records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes that an old GNU sparse header keeps from offset 386.
    pub(super) sparse_area: Vec<u8>,
}

/// Offset of the sparse map in an old GNU header.
const SPARSE_AREA: usize = 386;

impl Header {
    fn of(entry: &Entry) -> Self {
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

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
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
