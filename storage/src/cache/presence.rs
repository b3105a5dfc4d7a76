//! Which chunks of a layer the data file holds.
//!
//! The file `present`, all numbers little-endian:
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 8 | magic `SLUICEPR` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | 0 |
//! | 16 | 8 | number of chunks |
//! | 24 | 32 | digest of the cuts: plain offset, plain length and digest of every chunk |
//! | 56 | 8 | 0 |
//! | 64 | chunks / 8, rounded up | bit *i* % 8 of byte *i* / 8: chunk *i* is there |
//!
//! A file with another header is replaced by an empty one, by rename, together with the data file: a process that still has
//! the old ones open goes on with them and cannot set bits that mean other chunks. Bits are changed under flock(2), because two processes may change the
//! same byte. The set in memory follows the file: a bit that another process has set is seen when it is asked for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use sluice_format::{ChunkTable, Digest, Hasher};

const MAGIC: &[u8; 8] = b"SLUICEPR";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;

/// Digest over where a layer is cut and what each chunk holds; the same for every stored form with the same cuts.
pub(super) fn cuts_digest(table: &ChunkTable) -> Digest {
    let mut hasher = Hasher::new();
    for chunk in table.chunks() {
        hasher.update(&chunk.plain_off.to_le_bytes());
        hasher.update(&chunk.plain_len.to_le_bytes());
        hasher.update(chunk.digest.0.as_bytes());
    }
    hasher.finish()
}

/// A set of chunk numbers that many threads change.
#[derive(Debug)]
pub(super) struct ChunkSet {
    bytes: Vec<AtomicU8>,
}

impl ChunkSet {
    pub(super) fn empty(chunks: usize) -> Self {
        let mut bytes = Vec::new();
        bytes.resize_with(chunks.div_ceil(8), AtomicU8::default);
        Self { bytes }
    }

    pub(super) fn contains(&self, chunk: usize) -> bool {
        self.bytes[chunk / 8].load(Ordering::Acquire) & bit(chunk) != 0
    }

    pub(super) fn insert(&self, chunk: usize) {
        self.bytes[chunk / 8].fetch_or(bit(chunk), Ordering::Release);
    }

    pub(super) fn remove(&self, chunk: usize) {
        self.bytes[chunk / 8].fetch_and(!bit(chunk), Ordering::Release);
    }

    pub(super) fn len(&self) -> usize {
        let ones = |byte: &AtomicU8| byte.load(Ordering::Acquire).count_ones() as usize;
        self.bytes.iter().map(ones).sum()
    }
}

fn bit(chunk: usize) -> u8 {
    1 << (chunk % 8)
}

/// The open file and its set in memory.
#[derive(Debug)]
pub(super) struct Presence {
    file: File,
    known: ChunkSet,
}

impl Presence {
    /// Opens the file; `None` when it is missing or belongs to other cuts.
    pub(super) fn open(path: &Path, chunks: usize, cuts: Digest) -> io::Result<Option<Self>> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) if is_whole(&file, chunks, cuts) => Self::load(file, chunks).map(Some),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts an empty file in place.
    pub(super) fn begin(path: &Path, chunks: usize, cuts: Digest) -> io::Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".present-").tempfile_in(dir)?;
        file.as_file().write_all_at(&header(chunks, cuts), 0)?;
        file.as_file().set_len(file_len(chunks))?;
        let file = file.persist(path).map_err(|error| error.error)?;
        Self::load(file, chunks)
    }

    /// Opens the file where nothing can be written; one for other cuts is an error.
    pub(super) fn open_read_only(path: &Path, chunks: usize, cuts: Digest) -> io::Result<Self> {
        let file = File::open(path)?;
        if !is_whole(&file, chunks, cuts) {
            return Err(io::Error::other("belongs to other cuts"));
        }
        Self::load(file, chunks)
    }

    fn load(file: File, chunks: usize) -> io::Result<Self> {
        let known = ChunkSet::empty(chunks);
        let mut bytes = vec![0; chunks.div_ceil(8)];
        file.read_exact_at(&mut bytes, HEADER_LEN as u64)?;
        // Bits beyond the last chunk would be counted as chunks.
        if let (Some(last), used @ 1..) = (bytes.last_mut(), chunks % 8) {
            *last &= (1 << used) - 1;
        }
        for (known, byte) in known.bytes.iter().zip(&bytes) {
            known.store(*byte, Ordering::Release);
        }
        Ok(Self { file, known })
    }

    /// Whether this process has seen that the chunk is there. Does not look at the file.
    pub(super) fn knows(&self, chunk: usize) -> bool {
        self.known.contains(chunk)
    }

    /// Whether the chunk is there, as far as the file knows.
    pub(super) fn contains(&self, chunk: usize) -> bool {
        if self.known.contains(chunk) {
            return true;
        }
        let mut byte = [0];
        let found = self.file.read_exact_at(&mut byte, offset(chunk)).is_ok() && byte[0] & bit(chunk) != 0;
        if found {
            self.known.insert(chunk);
        }
        found
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Notes that the chunk is in the data file.
    pub(super) fn insert(&self, chunk: usize) -> io::Result<()> {
        self.known.insert(chunk);
        self.change(chunk, |byte| byte | bit(chunk))
    }

    /// Forgets the chunk.
    pub(super) fn remove(&self, chunk: usize) -> io::Result<()> {
        self.known.remove(chunk);
        self.change(chunk, |byte| byte & !bit(chunk))
    }

    fn change(&self, chunk: usize, to: impl FnOnce(u8) -> u8) -> io::Result<()> {
        let _locked = Locked::new(&self.file)?;
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, offset(chunk))?;
        self.file.write_all_at(&[to(byte[0])], offset(chunk))
    }
}

fn offset(chunk: usize) -> u64 {
    (HEADER_LEN + chunk / 8) as u64
}

fn header(chunks: usize, cuts: Digest) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&(chunks as u64).to_le_bytes());
    header[24..56].copy_from_slice(cuts.as_bytes());
    header
}

fn file_len(chunks: usize) -> u64 {
    (HEADER_LEN + chunks.div_ceil(8)) as u64
}

/// Whether the file has the header for these cuts and every bit.
fn is_whole(file: &File, chunks: usize, cuts: Digest) -> bool {
    let mut found = [0; HEADER_LEN];
    let has_header = file.read_exact_at(&mut found, 0).is_ok() && found == header(chunks, cuts);
    has_header
        && file
            .metadata()
            .is_ok_and(|metadata| metadata.len() == file_len(chunks))
}

/// The file lock, released by drop. It also excludes other threads of this process that use another open file.
struct Locked<'a>(&'a File);

impl<'a> Locked<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        file.lock()?;
        Ok(Self(file))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "a presence file could not be unlocked");
        }
    }
}
