//! One layer of the cache: its data file and which chunks of it can be used.
//!
//! A chunk is in one of three states: *absent*; *noted* (its bit is on disk, from this process or an earlier one); *trusted*
//! (its bytes were verified in this process, on arrival or on first use). Only trusted chunks are read. Noted → trusted when
//! the digest matches, noted → absent when it does not.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sluice_format::compression::verify_chunk;
use sluice_format::{ChunkTable, Digest, LayerIndex};

use super::WarnOnce;
use super::presence::{ChunkSet, Presence};
use crate::sync::lock;

const DATA_FILE: &str = "data";
const PRESENCE_FILE: &str = "present";

/// The files of one layer, shared by all its users in this process.
#[derive(Debug)]
pub(super) struct LayerFiles {
    dir: PathBuf,
    /// `None` when the disk has no place for the layer: all reads miss, all stores are dropped.
    open: Option<OpenFiles>,
    trusted: ChunkSet,
    warned: Arc<WarnOnce>,
    /// A damaged file has many bad chunks; the log gets one line.
    said_corrupt: AtomicBool,
}

#[derive(Debug)]
struct OpenFiles {
    data: File,
    presence: Presence,
    /// flock(2) does not exclude threads that use the same open file.
    changing: Mutex<()>,
}

impl LayerFiles {
    pub(super) fn open(dir: &Path, chunks: &ChunkTable, cuts: Digest, warned: &Arc<WarnOnce>) -> Self {
        let count = chunks.chunks().len();
        let opened = OpenFiles::open(dir, chunks, cuts).or_else(|error| {
            warned.pass_through(&error);
            OpenFiles::open_read_only(dir, count, cuts)
        });
        Self {
            dir: dir.to_owned(),
            open: opened.ok(),
            trusted: ChunkSet::empty(count),
            warned: warned.clone(),
            said_corrupt: AtomicBool::new(false),
        }
    }

    fn forget(&self, files: &OpenFiles, chunk: usize) {
        if !self.said_corrupt.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                layer = %self.dir.display(),
                chunk,
                "cached bytes do not match their digest; they are fetched again"
            );
        }
        self.trusted.remove(chunk);
        let _changing = lock(&files.changing);
        if let Err(error) = files.presence.remove(chunk) {
            self.warned.pass_through(&error);
        }
    }
}

impl OpenFiles {
    /// Opens both files of one generation. The lock on the directory keeps another process from beginning a new generation
    /// between the two.
    fn open(dir: &Path, chunks: &ChunkTable, cuts: Digest) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let locked = File::open(dir)?;
        locked.lock()?;
        let count = chunks.chunks().len();
        let (data, presence) = match Presence::open(&dir.join(PRESENCE_FILE), count, cuts)? {
            Some(presence) => (open_data(dir)?, presence),
            None => {
                let data = begin_data(dir)?;
                (data, Presence::begin(&dir.join(PRESENCE_FILE), count, cuts)?)
            }
        };
        if data.metadata()?.len() != chunks.plain_len() {
            data.set_len(chunks.plain_len())?;
        }
        Ok(Self::new(data, presence))
    }

    fn open_read_only(dir: &Path, chunks: usize, cuts: Digest) -> io::Result<Self> {
        let data = File::open(dir.join(DATA_FILE))?;
        let presence = Presence::open_read_only(&dir.join(PRESENCE_FILE), chunks, cuts)?;
        Ok(Self::new(data, presence))
    }

    fn new(data: File, presence: Presence) -> Self {
        Self {
            data,
            presence,
            changing: Mutex::new(()),
        }
    }

    fn store(&self, chunk: usize, plain_off: u64, plain: &[u8]) -> io::Result<()> {
        self.data.write_all_at(plain, plain_off)?;
        let _changing = lock(&self.changing);
        self.presence.insert(chunk)
    }
}

fn open_data(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(dir.join(DATA_FILE))
}

/// Puts an empty data file in place. Whoever uses the old one keeps it, out of reach of writers with other cuts: until a layer
/// is complete nothing ties the digests in a chunk table to the DiffID, so tables must not share bytes.
fn begin_data(dir: &Path) -> io::Result<File> {
    let file = tempfile::Builder::new().prefix(".data-").tempfile_in(dir)?;
    file.persist(dir.join(DATA_FILE)).map_err(|error| error.error)
}

/// The cached bytes of one layer under one chunk table. All calls block on the disk: they belong on a blocking thread.
#[derive(Clone, Debug)]
pub struct CachedLayer {
    files: Arc<LayerFiles>,
    index: Arc<LayerIndex>,
}

impl CachedLayer {
    pub(super) fn new(files: Arc<LayerFiles>, index: Arc<LayerIndex>) -> Self {
        Self { files, index }
    }

    /// The file with the plain bytes. It has holes where chunks are missing, and another file takes its name when the layer
    /// is cached anew under other cuts.
    pub fn data_path(&self) -> PathBuf {
        self.files.dir.join(DATA_FILE)
    }

    /// The bytes of chunk `chunk`, verified, or `None` when they must be fetched.
    pub fn read_chunk(&self, chunk: usize) -> Option<Bytes> {
        self.read_range(self.index.chunks.chunks().get(chunk)?.plain_range())
    }

    /// The plain bytes of `plain`, verified, or `None` when any of them must be fetched. `None` also for a range that does not
    /// lie within the layer.
    pub fn read_range(&self, plain: Range<u64>) -> Option<Bytes> {
        let files = self.files.open.as_ref()?;
        let table = &self.index.chunks;
        if plain.start > plain.end || plain.end > table.plain_len() {
            return None;
        }
        for chunk in table.covering(plain.clone()) {
            if !self.files.trusted.contains(chunk) && !self.trust(files, chunk) {
                return None;
            }
        }
        let mut bytes = vec![0; (plain.end - plain.start) as usize];
        files.data.read_exact_at(&mut bytes, plain.start).ok()?;
        Some(bytes.into())
    }

    /// Whether the chunk was verified in this process. Does not block.
    pub(crate) fn is_trusted(&self, chunk: usize) -> bool {
        self.files.trusted.contains(chunk)
    }

    /// Whether the disk is said to have the chunk, verified or not. Does not block.
    pub(crate) fn is_noted(&self, chunk: usize) -> bool {
        self.files
            .open
            .as_ref()
            .is_some_and(|files| files.presence.knows(chunk))
    }

    /// Verifies a chunk that is noted; whether it can be used.
    fn trust(&self, files: &OpenFiles, chunk: usize) -> bool {
        if !files.presence.contains(chunk) {
            return false;
        }
        let cut = &self.index.chunks.chunks()[chunk];
        let mut plain = vec![0; cut.plain_len as usize];
        let read = files.data.read_exact_at(&mut plain, cut.plain_off);
        if read.is_err() || verify_chunk(cut, &plain).is_err() {
            self.files.forget(files, chunk);
            return false;
        }
        self.files.trusted.insert(chunk);
        true
    }

    /// Keeps the bytes of a chunk, which the caller has verified. Whether they were kept: a disk that cannot is no error.
    pub fn store_chunk(&self, chunk: usize, plain: &[u8]) -> bool {
        let (Some(files), Some(cut)) = (&self.files.open, self.index.chunks.chunks().get(chunk)) else {
            return false;
        };
        if plain.len() as u64 != u64::from(cut.plain_len) {
            return false;
        }
        match files.store(chunk, cut.plain_off, plain) {
            Ok(()) => {
                self.files.trusted.insert(chunk);
                true
            }
            Err(error) => {
                self.files.warned.pass_through(&error);
                false
            }
        }
    }

    /// Chunks that are not noted on disk.
    pub fn missing_chunks(&self) -> usize {
        let all = self.index.chunks.chunks().len();
        let noted = self.files.open.as_ref().map_or(0, |files| files.presence.len());
        all - noted.min(all)
    }
}
