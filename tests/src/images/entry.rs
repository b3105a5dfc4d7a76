//! One tar entry with control over every byte of its header.
//!
//! [`Entry`] holds what the header says; [`Dialect`] decides how values that do not fit the classic header are written:
//! as PAX records, or as GNU tar does with extra entries and base-256 numbers. Nothing is checked, so that wrong
//! archives can be made too.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::header::{Header, write_padding};
use super::sparse::Sparse;

/// Length of a tar block in bytes; headers and contents are padded to it.
pub const BLOCK: usize = 512;

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
    pub(super) fn new(kind: u8, name: impl AsRef<[u8]>, mode: u32) -> Self {
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
