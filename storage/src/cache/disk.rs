//! The file operations whose order decides what a crash leaves behind.
//!
//! A write reaches the disk at any time after it was made, or never, unless a sync came back after it. [`DiskFile`] makes
//! the calls; a [`DiskObserver`] sees them in order, so that a test can build the disk of a power cut from any subset of
//! the writes that no sync covers.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek};

/// Unit of `st_blocks`.
const STAT_BLOCK: u64 = 512;

/// Is told of every change of the files `data` and `present` after it was made.
pub trait DiskObserver: Debug + Send + Sync {
    /// An empty file took this name.
    fn created(&self, path: &Path);
    /// Bytes were written.
    fn wrote(&self, path: &Path, offset: u64, bytes: &[u8]);
    /// A range reads as zeros now.
    fn punched(&self, path: &Path, range: Range<u64>);
    /// Everything written so far is on the disk.
    fn synced(&self, path: &Path);
}

/// Nobody, or somebody who is told.
pub(super) type Observer = Option<Arc<dyn DiskObserver>>;

/// An open file of the cache.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    path: PathBuf,
    observer: Observer,
}

impl DiskFile {
    pub(super) fn new(file: File, path: &Path, observer: &Observer) -> Self {
        Self {
            file,
            path: path.to_owned(),
            observer: observer.clone(),
        }
    }

    /// Takes a file that has just got its name.
    pub(super) fn created(file: File, path: &Path, observer: &Observer) -> Self {
        if let Some(observer) = observer {
            observer.created(path);
        }
        Self::new(file, path, observer)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        if let Some(observer) = &self.observer {
            observer.wrote(&self.path, offset, bytes);
        }
        Ok(())
    }

    /// Waits until everything written is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if let Some(observer) = &self.observer {
            observer.synced(&self.path);
        }
        Ok(())
    }

    /// Gives the blocks that lie wholly in `range` back to the file system and zeroes the rest of it; bytes outside stay as they
    /// are whatever the block size. A range may reach beyond the end of the file, whose length stays.
    pub(super) fn punch(&self, range: Range<u64>) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let len = range.end.saturating_sub(range.start);
        fallocate(&self.file, flags, signed(range.start)?, signed(len)?)?;
        if let Some(observer) = &self.observer {
            observer.punched(&self.path, range);
        }
        Ok(())
    }

    /// Bytes that the file takes on the disk.
    pub(super) fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * STAT_BLOCK)
    }

    /// The ranges of the file that are not holes. A file system that cannot tell reports the whole file.
    pub(super) fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        let mut from = 0;
        loop {
            let start = match lseek(&self.file, signed(from)?, Whence::SeekData) {
                Ok(start) => start,
                Err(Errno::ENXIO) => return Ok(ranges),
                Err(error) => return Err(error.into()),
            };
            let end = lseek(&self.file, start, Whence::SeekHole)?;
            let (start, end) = (start.unsigned_abs(), end.unsigned_abs());
            if end <= from {
                return Ok(ranges);
            }
            ranges.push(start..end);
            from = end;
        }
    }

    /// Lets go of the pages of `range` that are on the disk.
    pub(super) fn drop_pages(&self, range: Range<u64>) {
        self.advise(range, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }

    /// Begins to read `range` into the page cache, without waiting for it.
    pub(super) fn read_ahead(&self, range: Range<u64>) {
        self.advise(range, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }

    fn advise(&self, range: Range<u64>, advice: PosixFadviseAdvice) {
        if let (Ok(start), Ok(len)) = (signed(range.start), signed(range.end - range.start)) {
            // A file system that does not take it does what it would do anyway.
            let _ = posix_fadvise(&self.file, start, len, advice);
        }
    }
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Bytes that a file or directory takes on the disk.
pub(super) fn allocated(metadata: &std::fs::Metadata) -> u64 {
    metadata.blocks() * STAT_BLOCK
}
