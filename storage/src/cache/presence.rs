//! The file `present`: which chunks of a layer the data file holds.
//!
//! All numbers little-endian:
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 8 | magic `SLUICEPR` |
//! | 8 | 4 | version, 2 |
//! | 12 | 4 | marks: 1 = the data file was handed to the kernel (sealed), 2 = the layer is refused |
//! | 16 | 8 | number of chunks |
//! | 24 | 32 | digest of the cuts (see the `cuts` module) |
//! | 56 | 8 | 0 |
//! | 64 | chunks / 8, rounded up | bit *i* % 8 of byte *i* / 8: chunk *i* is there |
//!
//! A file with another header is replaced by an empty one, by rename, together with the data file: a process that still has
//! the old ones open goes on with them and cannot set bits that mean other chunks. Bits are changed under a lock that
//! processes share, because two may change the same byte.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::SystemTime;

use sluice_format::Digest;

use super::disk::{DiskFile, Observer};
use super::locks::{Held, Hold, Lock, set};
use super::states::bit;
use crate::sync::lock;

const MAGIC: &[u8; 8] = b"SLUICEPR";
const VERSION: u32 = 2;
const HEADER_LEN: usize = 64;
const MARKS_OFFSET: usize = 12;

/// The data file was given to the kernel as a whole: its bytes are never taken away, only its name.
pub(super) const SEALED: u32 = 1;
/// Every chunk matched its digest, but the layer is not the one that its DiffID names.
pub(super) const REFUSED: u32 = 2;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) marks: u32,
    pub(super) chunks: usize,
    pub(super) cuts: Digest,
}

impl Header {
    /// Reads the header of a file that is as long as it should be.
    pub(super) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let len = file.metadata()?.len();
        Ok(Self::parse(&bytes).filter(|header| len == file_len(header.chunks)))
    }

    fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let chunks = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
        let cuts = Digest::from_bytes(bytes.get(24..56)?.try_into().ok()?);
        let known = bytes.starts_with(MAGIC) && number(8)? == VERSION;
        // A number of chunks that no file can have would overflow the length that it is compared with.
        let header = Self {
            marks: number(MARKS_OFFSET)?,
            chunks: usize::try_from(chunks).ok()?,
            cuts,
        };
        (known && bytes[56..].iter().all(|byte| *byte == 0)).then_some(header)
    }

    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[MARKS_OFFSET..16].copy_from_slice(&self.marks.to_le_bytes());
        header[16..24].copy_from_slice(&(self.chunks as u64).to_le_bytes());
        header[24..56].copy_from_slice(self.cuts.as_bytes());
        header
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct Presence {
    file: DiskFile,
    chunks: usize,
    /// The lock between processes does not exclude threads that use the same open file.
    changing: Mutex<()>,
    /// Time of change of the file when its bits were last read by [`Self::changed`].
    seen: Mutex<Option<SystemTime>>,
}

impl Presence {
    /// Opens the file; `None` when it is missing or belongs to other cuts.
    pub(super) fn open(
        path: &Path,
        chunks: usize,
        cuts: &Digest,
        writable: bool,
        observer: &Observer,
    ) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(writable).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let fits = |header: &Header| header.chunks == chunks && header.cuts == *cuts;
        let found = Header::read(&file)?.filter(fits);
        Ok(found.map(|_| Self::new(DiskFile::new(file, path, observer), chunks)))
    }

    /// Puts an empty file in place. Its blocks are allocated now, so that bits can be cleared on a full disk.
    pub(super) fn begin(path: &Path, chunks: usize, cuts: &Digest, observer: &Observer) -> io::Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new().prefix(".present-").tempfile_in(dir)?;
        let header = Header {
            marks: 0,
            chunks,
            cuts: *cuts,
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize(HEADER_LEN + chunks.div_ceil(8), 0);
        temporary.as_file().write_all_at(&bytes, 0)?;
        let file = temporary.persist(path).map_err(|error| error.error)?;
        if let Some(observer) = observer {
            observer.created(path);
            observer.wrote(path, 0, &bytes);
        }
        Ok(Self::new(DiskFile::new(file, path, observer), chunks))
    }

    fn new(file: DiskFile, chunks: usize) -> Self {
        Self {
            file,
            chunks,
            changing: Mutex::new(()),
            seen: Mutex::new(None),
        }
    }

    /// Takes part in the use of the layer for as long as the file is open. Waits while another process removes chunks.
    pub(super) fn join_users(&self) -> io::Result<()> {
        set(self.file.file(), Lock::Use, Hold::Shared)
    }

    /// Keeps all other processes out while the result lives; `None` when one has the layer open.
    pub(super) fn try_alone(&self) -> io::Result<Option<Held<'_>>> {
        Held::try_alone(self.file.file(), Lock::Use)
    }

    /// The chunks whose bit is set.
    pub(super) fn load(&self) -> io::Result<Vec<usize>> {
        let bytes = self.bits()?;
        Ok((0..self.chunks)
            .filter(|chunk| bytes[chunk / 8] & bit(*chunk) != 0)
            .collect())
    }

    /// The chunks whose bit is set, when the file was written to since the last call.
    pub(super) fn changed(&self) -> io::Result<Option<Vec<usize>>> {
        let mut seen = lock(&self.seen);
        let modified = self.file.file().metadata()?.modified()?;
        if seen.replace(modified) == Some(modified) {
            return Ok(None);
        }
        self.load().map(Some)
    }

    fn bits(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.chunks.div_ceil(8)];
        self.file.read_at(&mut bytes, HEADER_LEN as u64)?;
        Ok(bytes)
    }

    /// Whether the file has the bit of a chunk now.
    pub(super) fn contains(&self, chunk: usize) -> bool {
        let mut byte = [0];
        let offset = (HEADER_LEN + chunk / 8) as u64;
        self.file.read_at(&mut byte, offset).is_ok() && byte[0] & bit(chunk) != 0
    }

    /// Sets the bits of chunks whose data is on the disk.
    pub(super) fn insert(&self, chunks: &[usize]) -> io::Result<()> {
        self.change(|bytes| {
            for chunk in chunks {
                bytes[chunk / 8] |= bit(*chunk);
            }
        })
    }

    /// Clears the bits of chunks.
    pub(super) fn remove(&self, chunks: &[usize]) -> io::Result<()> {
        self.change(|bytes| {
            for chunk in chunks {
                bytes[chunk / 8] &= !bit(*chunk);
            }
        })
    }

    /// Rewrites the bytes between the first and the last that `to` changes.
    fn change(&self, to: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let _threads = lock(&self.changing);
        let _processes = Held::wait(self.file.file(), Lock::Bits)?;
        let before = self.bits()?;
        let mut after = before.clone();
        to(&mut after);
        let differs = |at: &usize| before[*at] != after[*at];
        let Some(first) = (0..after.len()).find(differs) else {
            return Ok(());
        };
        let last = (0..after.len()).rfind(differs).unwrap_or(first);
        self.file
            .write_at(&after[first..=last], (HEADER_LEN + first) as u64)
    }

    /// Waits until all changes are on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// The marks of the layer.
    pub(super) fn marks(&self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_at(&mut bytes, MARKS_OFFSET as u64)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Sets a mark and waits until it is on the disk.
    pub(super) fn mark(&self, mark: u32) -> io::Result<()> {
        let _threads = lock(&self.changing);
        let _processes = Held::wait(self.file.file(), Lock::Bits)?;
        let marks = self.marks()? | mark;
        self.file.write_at(&marks.to_le_bytes(), MARKS_OFFSET as u64)?;
        self.file.sync()
    }
}

fn file_len(chunks: usize) -> u64 {
    (HEADER_LEN as u64).saturating_add(chunks.div_ceil(8) as u64)
}
