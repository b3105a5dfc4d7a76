//! Layers of which every chunk is there.
//!
//! Chunks are verified one by one, against digests from a layer index; only the whole layer can be verified against the
//! DiffID itself. That is done once a layer is complete (a synthetic one, which has no digest, is verified chunk by chunk once more), and
//! noted in the file `whole`:
//!
//! ```json
//! {"boot":"<boot id of the kernel>","inode":12,"plain_len":1536,"modified_ns":1700000000000000000,"changed_ns":1700000000000000000}
//! ```
//!
//! The note holds as long as nobody wrote to the data file (its times of change are those of then) and the kernel is
//! still the same one: after another boot the disk may have lost what the kernel knew, so the file is read through again.
//!
//! A whole layer may be given to the kernel as a file, and then the kernel shows its bytes without asking. It goes on doing so when this
//! process dies. Such a file is *sealed* first: from then on nobody ever punches holes into it. It leaves the disk as a whole,
//! by losing its name, and a mount keeps the nameless file.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use sluice_format::{Digest, Hasher};

use super::cached::CachedLayer;
use super::files::{OpenFiles, begin};
use super::layer::{DATA_FILE, LayerFiles};
use super::presence::SEALED;
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// Name of the note in the directory of a layer.
pub(super) const WHOLE_FILE: &str = "whole";

/// Where the kernel tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Bytes read at a time.
const READ_LEN: usize = 1 << 20;

/// The note.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    boot: String,
    inode: u64,
    plain_len: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl Note {
    /// What a note on this file would say now.
    fn of(data: &File) -> io::Result<Self> {
        let metadata = data.metadata()?;
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Ok(Self {
            boot: std::fs::read_to_string(BOOT_ID)?.trim().to_owned(),
            inode: metadata.ino(),
            plain_len: metadata.len(),
            modified_ns: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanos(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn load(dir: &Path) -> Option<Self> {
        let bytes = std::fs::read(dir.join(WHOLE_FILE)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// The data file of a whole layer, for the kernel. Neither this process nor another one removes it while the value lives.
#[derive(Debug)]
pub struct CompleteFile {
    path: PathBuf,
    files: Arc<LayerFiles>,
}

impl CompleteFile {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for CompleteFile {
    fn drop(&mut self) {
        *lock(self.files.leases()) -= 1;
        // The kernel leaves no stamps: the end of its use counts.
        self.files.stamps().touch_all(self.files.shared().clock.now());
    }
}

/// Keeps chunks from being evicted while it lives.
struct Lease<'a>(&'a Mutex<usize>);

impl<'a> Lease<'a> {
    fn new(leases: &'a Mutex<usize>) -> Self {
        *lock(leases) += 1;
        Self(leases)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        *lock(self.0) -= 1;
    }
}

impl CachedLayer {
    /// Whether every chunk is there.
    pub fn is_complete(&self) -> bool {
        self.missing().next().is_none()
    }

    /// Whether the whole layer was verified against its DiffID and has not been written to since.
    pub fn is_whole(&self) -> bool {
        self.files.is_whole()
    }

    /// Why the layer must not be used at all: its chunks match the layer index, but together they are another layer than
    /// the index says. Does not block.
    pub fn refusal(&self) -> Option<Error> {
        self.files.is_refused().then(|| refusal(&self.files))
    }

    /// Reads a complete layer through and compares it with the DiffID, once; the result is kept. `Ok(false)` when chunks are
    /// missing, or turn out to be damaged on the disk, which makes them missing.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when every chunk is right and the layer is not the one that its DiffID names: its index is wrong.
    /// The layer is out of service from then on. [`ErrorKind::Io`] and others when the disk fails.
    pub fn verify_whole(&self) -> Result<bool, Error> {
        self.files.verify_whole(self.is_synthetic)
    }

    /// The layer as a file that holds every byte, to be given to the kernel; `None` until [`CachedLayer::verify_whole`] has
    /// found it right.
    pub fn complete_file(&self) -> Option<CompleteFile> {
        let files = &self.files;
        let open = files.files().filter(|open| open.writable)?;
        let mut leases = lock(files.leases());
        if !files.is_whole() {
            return None;
        }
        if let Err(error) = files.seal(open) {
            tracing::warn!(layer = %files.diff_id(), %error, "a complete layer could not be sealed; it is served as before");
            return None;
        }
        *leases += 1;
        Some(CompleteFile {
            path: files.dir().join(DATA_FILE),
            files: files.clone(),
        })
    }
}

impl LayerFiles {
    pub(super) fn is_whole(&self) -> bool {
        if self.states().chunks(false).next().is_some() {
            return false;
        }
        let now = || Note::of(self.files()?.data.file()).ok();
        let noted = Note::load(self.dir());
        noted.is_some() && noted == now()
    }

    fn seal(&self, open: &OpenFiles) -> io::Result<()> {
        if open.presence.marks()? & SEALED == 0 {
            open.presence.mark(SEALED)?;
        }
        Ok(())
    }

    /// A synthetic layer is right when every chunk is.
    pub(super) fn verify_whole(&self, is_synthetic: bool) -> Result<bool, Error> {
        let what = |error| Error::io(format!("verify layer {}", self.diff_id()), error);
        if self.is_refused() {
            return Err(refusal(self));
        }
        let Some(files) = self.files().filter(|files| files.writable) else {
            return Ok(false);
        };
        if self.states().chunks(false).next().is_some() {
            return Ok(false);
        }
        if self.is_whole() {
            return Ok(true);
        }
        let _lease = Lease::new(self.leases());
        self.flush();
        let before = Note::of(files.data.file()).map_err(what)?;
        if !is_synthetic && self.digest(files).map_err(what)? == self.diff_id().0 {
            return self.note_whole(files, &before).map_err(what);
        }
        let damaged: Vec<usize> = (0..self.cuts().len())
            .filter(|chunk| !self.verify(files, *chunk))
            .collect();
        if damaged.is_empty() && is_synthetic {
            return self.note_whole(files, &before).map_err(what);
        }
        if damaged.is_empty() {
            self.refuse(files).map_err(what)?;
            let error = refusal(self);
            tracing::error!("{error}");
            return Err(error);
        }
        damaged.into_iter().for_each(|chunk| self.forget(files, chunk));
        Ok(false)
    }

    /// Digest of the data file.
    fn digest(&self, files: &OpenFiles) -> io::Result<Digest> {
        let mut hasher = Hasher::new();
        let mut bytes = vec![0; READ_LEN];
        let mut offset = 0;
        while offset < self.cuts().plain_len() {
            let len = (self.cuts().plain_len() - offset).min(READ_LEN as u64);
            let part = &mut bytes[..len as usize];
            files.data.read_at(part, offset)?;
            hasher.update(part);
            offset += len;
        }
        Ok(hasher.finish())
    }

    /// Notes that a file was right which nobody has written to since it was.
    pub(super) fn note_streamed(&self, files: &OpenFiles) -> io::Result<()> {
        let now = Note::of(files.data.file())?;
        self.note_whole(files, &now).map(drop)
    }

    /// Notes a layer that was right, unless its file was written to after `before`.
    fn note_whole(&self, files: &OpenFiles, before: &Note) -> io::Result<bool> {
        if Note::of(files.data.file())? != *before {
            return Ok(false);
        }
        let bytes = serde_json::to_vec(before)?;
        begin(self.dir(), WHOLE_FILE, &bytes)?.sync_data()?;
        Ok(true)
    }
}

fn refusal(files: &LayerFiles) -> Error {
    let message = format!(
        "layer {} is not what its layer index says: every chunk matches the index, but the whole does not match the DiffID; \
         the layer is out of service",
        files.diff_id()
    );
    Error::new(ErrorKind::Corrupt, message)
}
