//! Stored bytes of blobs that are being streamed, kept until their layer is complete.
//!
//! A blob of which not everything has come leaves what has come in `partial/<blob digest>`, so that whoever streams it next, after a cut, a
//! crash or a `kill -9`, asks for the rest only. The file is a log of blocks of [`BLOCK_LEN`] bytes (the last block of the blob is shorter), in
//! the order in which they came. All numbers are little-endian:
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 8 | magic `SLUICEPB` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | 0 |
//! | 16 | 8 | length of the blob |
//! | 24 | 32 | digest of the blob |
//! | 56 | 4 | CRC-32 of the 56 bytes before |
//! | 60 | 4 | 0 |
//! | 64 | | records |
//!
//! | offset in a record | length | field |
//! |---|---|---|
//! | 0 | 8 | which block of the blob |
//! | 8 | 4 | CRC-32 of its bytes |
//! | 12 | 4 | CRC-32 of the 12 bytes before |
//! | 16 | length of the block | its bytes |
//!
//! A record's head is written after its bytes, so a process that is killed leaves whole records and a tail without head, which is cut off. Nothing is synced:
//! what a power cut spoils does not have its checksum, is not used, and comes again. Checksums find accidents only. Whether the bytes are
//! the blob is decided by the blob digest and the DiffID, when all of them have passed; a blob that fails there takes its file with it.
//!
//! One stream at a time has a file (flock). It is a convenience: it goes first when a layer needs the room, it is evicted like everything
//! else, and after [`ABANDONED_SECONDS`] without a write it is removed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sluice_format::{BlobDigest, Digest};

use super::disk::allocated;
use super::space::Shared;
use crate::sync::lock;

/// Directory of partial blobs below the cache directory.
const PARTIAL: &str = "partial";

const MAGIC: &[u8; 8] = b"SLUICEPB";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const HEAD_LEN: usize = 16;

/// Stored bytes that are kept or lost together. Short beside what a link brings in a moment, long enough that a record costs nothing.
const BLOCK_LEN: u64 = 256 << 10;

/// Time after which nobody will take a file up any more: an image that was wanted is tried again within a day.
const ABANDONED_SECONDS: u64 = 24 * 60 * 60;

/// Where a block lies in the file.
#[derive(Clone, Copy, Debug)]
struct Kept {
    offset: u64,
    checksum: u32,
}

#[derive(Debug)]
struct Log {
    blocks: HashMap<u64, Kept>,
    /// Where the next record begins.
    end: u64,
}

/// A blob of which some bytes are here. Calls block on the disk.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    file: File,
    path: PathBuf,
    shared: Arc<Shared>,
    stored_len: u64,
    /// `None` once the file was given up.
    log: Mutex<Option<Log>>,
}

/// A file in the directory, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) path: PathBuf,
    pub(super) digest: BlobDigest,
    pub(super) stored_len: u64,
    pub(super) disk_bytes: u64,
    /// Second after the epoch of the last write.
    pub(super) used: u64,
}

impl PartialBlob {
    /// Opens or begins the file of a blob. `None` when another stream has it, or nothing can be written.
    pub(super) fn open(shared: &Arc<Shared>, digest: BlobDigest, stored_len: u64) -> Option<Self> {
        let path = shared.dir.join(PARTIAL).join(digest.0.to_hex());
        match open_alone(&path) {
            Ok(Some(file)) => Self::taken_up(file, path, shared, (digest, stored_len)).ok(),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "what comes of a blob cannot be kept");
                None
            }
        }
    }

    fn taken_up(
        file: File,
        path: PathBuf,
        shared: &Arc<Shared>,
        (digest, stored_len): (BlobDigest, u64),
    ) -> io::Result<Self> {
        let header = header(digest, stored_len);
        let mut found = [0; HEADER_LEN];
        let is_known = file.read_exact_at(&mut found, 0).is_ok() && found == header;
        let log = match is_known {
            true => scan(&file, stored_len)?,
            false => Log {
                blocks: HashMap::new(),
                end: HEADER_LEN as u64,
            },
        };
        file.set_len(if is_known { log.end } else { 0 })?;
        file.write_all_at(&header, 0)?;
        Ok(Self {
            file,
            path,
            shared: shared.clone(),
            stored_len,
            log: Mutex::new(Some(log)),
        })
    }

    /// Number of a byte's block.
    pub(crate) fn block_at(stored_off: u64) -> u64 {
        stored_off / BLOCK_LEN
    }

    /// The bytes of the blob that a block is.
    pub(crate) fn range(&self, block: u64) -> Range<u64> {
        block_range(block, self.stored_len)
    }

    /// Whether a block is here, as far as is known without reading it.
    pub(crate) fn has(&self, block: u64) -> bool {
        let log = lock(&self.log);
        log.as_ref().is_some_and(|log| log.blocks.contains_key(&block))
    }

    /// Stored bytes that are here.
    pub(crate) fn kept_len(&self) -> u64 {
        let log = lock(&self.log);
        let blocks = log.iter().flat_map(|log| log.blocks.keys());
        let lens = blocks.map(|block| {
            let range = self.range(*block);
            range.end - range.start
        });
        lens.sum()
    }

    /// The bytes of a block. One that is not what was written is forgotten.
    pub(crate) fn read(&self, block: u64) -> Option<Bytes> {
        let kept = *lock(&self.log).as_ref()?.blocks.get(&block)?;
        let range = self.range(block);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let read = self.file.read_exact_at(&mut bytes, kept.offset + HEAD_LEN as u64);
        if read.is_err() || crc32fast::hash(&bytes) != kept.checksum {
            if let Some(log) = lock(&self.log).as_mut() {
                log.blocks.remove(&block);
            }
            return None;
        }
        Some(bytes.into())
    }

    /// Keeps a block. Without room for it the whole file is given up.
    pub(crate) fn put(&self, block: u64, pieces: &[Bytes]) {
        let mut log = lock(&self.log);
        let Some(kept) = log.as_mut() else { return };
        if kept.blocks.contains_key(&block) {
            return;
        }
        let record_len = HEAD_LEN as u64 + pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let written = match self.shared.space.reserve(record_len) {
            true => self.write(kept, block, pieces),
            false => Err(io::ErrorKind::QuotaExceeded.into()),
        };
        if let Err(error) = written {
            tracing::debug!(path = %self.path.display(), %error, "what comes of a blob is not kept any more");
            self.empty(&mut log);
        }
    }

    fn write(&self, log: &mut Log, block: u64, pieces: &[Bytes]) -> io::Result<()> {
        let mut hasher = crc32fast::Hasher::new();
        let mut at = log.end + HEAD_LEN as u64;
        for piece in pieces {
            hasher.update(piece);
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        let checksum = hasher.finalize();
        self.file.write_all_at(&head(block, checksum), log.end)?;
        let offset = std::mem::replace(&mut log.end, at);
        log.blocks.insert(block, Kept { offset, checksum });
        Ok(())
    }

    /// Removes the file; nothing is kept from now on. Whether there was something.
    pub(crate) fn give_up(&self) -> bool {
        self.empty(&mut lock(&self.log))
    }

    /// Leaves the file to the next stream, also while a block of this one waits for a thread to write it; that block is not kept.
    pub(crate) fn let_go(&self) {
        let mut log = lock(&self.log);
        match &*log {
            Some(kept) if kept.blocks.is_empty() => {
                self.empty(&mut log);
            }
            Some(_) => {
                *log = None;
                let _ = self.file.unlock();
            }
            None => {}
        }
    }

    fn empty(&self, log: &mut Option<Log>) -> bool {
        let was_kept = log.is_some();
        if log.take().is_some() {
            let taken = self.file.metadata().map_or(0, |metadata| allocated(&metadata));
            // The lock is held, so the name means this file.
            let _ = self
                .file
                .set_len(0)
                .and_then(|()| std::fs::remove_file(&self.path));
            self.shared.space.release(taken);
        }
        was_kept
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        if self.kept_len() == 0 {
            self.give_up();
        }
    }
}

fn block_range(block: u64, stored_len: u64) -> Range<u64> {
    let start = block.saturating_mul(BLOCK_LEN).min(stored_len);
    start..start.saturating_add(BLOCK_LEN).min(stored_len)
}

fn header(digest: BlobDigest, stored_len: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&stored_len.to_le_bytes());
    header[24..56].copy_from_slice(digest.0.as_bytes());
    let checksum = crc32fast::hash(&header[..56]);
    header[56..60].copy_from_slice(&checksum.to_le_bytes());
    header
}

fn head(block: u64, checksum: u32) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[..8].copy_from_slice(&block.to_le_bytes());
    head[8..12].copy_from_slice(&checksum.to_le_bytes());
    let own = crc32fast::hash(&head[..12]);
    head[12..].copy_from_slice(&own.to_le_bytes());
    head
}

/// Which block a head names and the checksum of its bytes; `None` for what is no head.
fn parse_head(head: &[u8; HEAD_LEN]) -> Option<(u64, u32)> {
    let [b0, b1, b2, b3, b4, b5, b6, b7, c0, c1, c2, c3, own @ ..] = *head;
    let is_head = u32::from_le_bytes(own) == crc32fast::hash(&head[..12]);
    is_head.then(|| {
        let block = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
        (block, u32::from_le_bytes([c0, c1, c2, c3]))
    })
}

/// Finds the records, up to the first that is not whole. Each moves on by a block of the blob, and none comes twice, so there are no more than the blob has blocks.
fn scan(file: &File, stored_len: u64) -> io::Result<Log> {
    let len = file.metadata()?.len();
    let mut log = Log {
        blocks: HashMap::new(),
        end: HEADER_LEN as u64,
    };
    let mut bytes = [0; HEAD_LEN];
    while file.read_exact_at(&mut bytes, log.end).is_ok()
        && let Some((block, checksum)) = parse_head(&bytes)
    {
        let range = block_range(block, stored_len);
        let next = log.end + HEAD_LEN as u64 + (range.end - range.start);
        if range.is_empty() || next > len || log.blocks.contains_key(&block) {
            break;
        }
        let offset = std::mem::replace(&mut log.end, next);
        log.blocks.insert(block, Kept { offset, checksum });
    }
    Ok(log)
}

/// Opens a file, made if need be, that nobody else has. The lock ends with the file.
fn open_alone(path: &Path) -> io::Result<Option<File>> {
    loop {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        let is_had = file.try_lock().is_ok();
        // Its holder may have removed it before the lock was had.
        if is_named(&file, path) {
            return Ok(is_had.then_some(file));
        }
    }
}

fn is_named(file: &File, path: &Path) -> bool {
    let ino = |metadata: io::Result<std::fs::Metadata>| metadata.map(|metadata| metadata.ino()).ok();
    ino(std::fs::metadata(path)).is_some_and(|named| ino(file.metadata()) == Some(named))
}

/// The files in a cache directory.
pub(super) fn list(dir: &Path) -> Vec<Left> {
    let entries = std::fs::read_dir(dir.join(PARTIAL));
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter_map(left).collect()
}

fn left(path: PathBuf) -> Option<Left> {
    let digest = BlobDigest(Digest::from_hex(path.file_name()?.to_str()?).ok()?);
    let file = File::open(&path).ok()?;
    let metadata = file.metadata().ok()?;
    let mut found = [0; HEADER_LEN];
    let read = file.read_exact_at(&mut found, 0);
    let [b0, b1, b2, b3, b4, b5, b6, b7] = *found[16..24].first_chunk()?;
    let stored_len = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    let is_whole = read.is_ok() && found == header(digest, stored_len);
    Some(Left {
        digest,
        stored_len: if is_whole { stored_len } else { 0 },
        disk_bytes: allocated(&metadata),
        used: u64::try_from(metadata.mtime()).unwrap_or(0),
        path,
    })
}

/// Removes a file that no stream has.
pub(super) fn remove(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    if file.try_lock().is_ok()
        && is_named(&file, path)
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "a blob that was never complete could not be removed");
    }
}

/// Removes what nobody has taken up for long.
pub(super) fn remove_abandoned(dir: &Path, now: u64) {
    for left in list(dir) {
        if left.used.saturating_add(ABANDONED_SECONDS) < now {
            remove(&left.path);
        }
    }
}

#[cfg(test)]
mod tests;
