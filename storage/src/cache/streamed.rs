//! Layers on their way into the cache as a whole.
//!
//! The plain bytes of a layer without index arrive before it is known where it is cut, so they are written to a file of their own in
//! `streams/`. When the last byte has come and the DiffID is right, the file takes its place as the data of the layer in one step
//! ([`Cache::adopt`]). It has reached the disk by then, since the kernel may be given it at once: a write that failed later could not be taken
//! back. Until then nobody reads it: a layer that turns out to be wrong leaves nothing.
//!
//! Who writes such a file holds a lock on it. A process that was killed holds none, so whoever opens the cache next removes what it
//! left. The lock on the directory keeps a file safe between its making and its being locked.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sluice_format::{BlobDigest, DiffId, LayerIndex};
use tempfile::NamedTempFile;
use tokio::sync::Semaphore;

use super::Cache;
use super::cached::CachedLayer;
use super::cuts::Cuts;
use super::evict::Goal;
use super::files::OpenFiles;
use super::layer::LayerFiles;
use super::partial::PartialBlob;
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// Directory of layers under way below the cache directory.
const STREAMS: &str = "streams";

/// Plain bytes after which the kernel is told to write them to the disk: some tens of milliseconds of a fast one.
const PUSH_LEN: u64 = 8 << 20;

/// Bytes that are freed at least when the disk is full, so that it is not full again at once.
const FREED_MIN: u64 = 32 << 20;

/// Layers streamed at once at least, so that one decodes while another waits for the network, and at most: each takes some 30 MB.
const AT_ONCE_MIN: usize = 2;
const AT_ONCE_MAX: usize = 6;

/// One turn at a layer.
pub(crate) type Turn = Arc<tokio::sync::Mutex<()>>;

/// Who streams what in this process.
#[derive(Debug)]
pub(super) struct Streams {
    turns: Mutex<HashMap<DiffId, Weak<tokio::sync::Mutex<()>>>>,
    at_once: Arc<Semaphore>,
    /// What is kept of the blobs that this process streams.
    partial: Mutex<Vec<Weak<PartialBlob>>>,
    /// Layers that were adopted since the last flush, so that whoever mounts them next need not verify them anew.
    fresh: Mutex<Vec<Arc<LayerFiles>>>,
}

impl Streams {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            turns: Mutex::default(),
            at_once: Arc::new(Semaphore::new(cores.clamp(AT_ONCE_MIN, AT_ONCE_MAX))),
            partial: Mutex::default(),
            fresh: Mutex::default(),
        }
    }

    /// Lets go of layers whose bits are on the disk now.
    pub(super) fn flushed(&self) {
        drop(std::mem::take(&mut *lock(&self.fresh)));
    }
}

/// The plain bytes of a layer that is being streamed. Dropped before it is adopted, it leaves nothing.
#[derive(Debug)]
pub(crate) struct StreamedFile {
    /// `None` once it has taken its place.
    file: Option<NamedTempFile>,
    cache: Arc<Cache>,
    plain_len: u64,
    /// How much of it the kernel has been told to write to the disk.
    pushed: u64,
}

impl StreamedFile {
    /// Appends plain bytes. A cache that is full makes room first. Blocks on the disk.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when neither quota nor disk has place for the layer; [`ErrorKind::Io`] and others as the disk says.
    pub(crate) fn append(&mut self, plain: &[u8]) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        self.cache.reserve_streamed(plain.len() as u64)?;
        let offset = self.plain_len;
        self.plain_len += plain.len() as u64;
        while let Err(error) = file.as_file().write_all_at(plain, offset) {
            if error.kind() != io::ErrorKind::StorageFull || !self.cache.free_disk(plain.len() as u64)? {
                let what = format!("stream a layer into {}", self.cache.dir.display());
                return Err(Error::io(what, error));
            }
        }
        if self.plain_len - self.pushed >= PUSH_LEN {
            push_out(file.as_file(), self.pushed..self.plain_len);
            self.pushed = self.plain_len;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file
            .as_ref()
            .map_or(Ok(()), |file| file.as_file().sync_data())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.file {
            Some(file) => file.as_file().read_exact_at(bytes, offset),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Drop for StreamedFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.cache.shared.space.release(self.plain_len);
        }
    }
}

impl Cache {
    /// The right to stream a layer: whoever holds the lock is the only one in this process.
    pub(crate) fn turn(&self, diff_id: DiffId) -> Turn {
        let mut turns = lock(&self.streams.turns);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let known = turns.get(&diff_id).and_then(Weak::upgrade);
        let turn = known.unwrap_or_default();
        turns.insert(diff_id, Arc::downgrade(&turn));
        turn
    }

    /// Bounds how many layers are streamed at once.
    pub(crate) fn streams_at_once(&self) -> Arc<Semaphore> {
        self.streams.at_once.clone()
    }

    /// A file for the plain bytes of a layer. Blocks on the disk.
    ///
    /// # Errors
    /// What hinders making it.
    pub(crate) fn begin_streamed(self: &Arc<Self>, diff_id: DiffId) -> Result<StreamedFile, Error> {
        let dir = self.dir.join(STREAMS);
        let begin = || {
            std::fs::create_dir_all(&dir)?;
            let locked = File::open(&dir)?;
            locked.lock()?;
            let prefix = format!("{}-", diff_id.0.to_hex());
            let file = tempfile::Builder::new().prefix(&prefix).tempfile_in(&dir)?;
            file.as_file().lock()?;
            Ok(file)
        };
        let file =
            begin().map_err(|error| Error::io(format!("stream a layer into {}", dir.display()), error))?;
        Ok(StreamedFile {
            file: Some(file),
            cache: self.clone(),
            plain_len: 0,
            pushed: 0,
        })
    }

    fn reserve_streamed(self: &Arc<Self>, len: u64) -> Result<(), Error> {
        let space = &self.shared.space;
        if space.reserve(len) || self.give_up_partial() && space.reserve(len) {
            return Ok(());
        }
        self.evict(Goal {
            keep: space.low(),
            used_before: None,
        })?;
        if space.reserve(len) {
            return Ok(());
        }
        let message = format!(
            "the cache {} has no place for the layer: it takes {} of {} bytes",
            self.dir.display(),
            space.used(),
            space.limit()
        );
        Err(Error::new(ErrorKind::NoSpace, message))
    }

    /// Makes room on a disk that is full, whatever the quota says; whether anything went. `len` bytes have been reserved and not been written.
    fn free_disk(self: &Arc<Self>, len: u64) -> Result<bool, Error> {
        if self.give_up_partial() {
            return Ok(true);
        }
        let used = self.shared.space.measure(&self.dir);
        let evicted = self.evict(Goal {
            keep: used.saturating_sub(len.max(FREED_MIN)),
            used_before: None,
        })?;
        let is_some = evicted.after < evicted.before;
        // What was measured does not hold the bytes that are about to be written.
        let is_some = self.shared.space.reserve(len) && is_some;
        Ok(is_some)
    }

    /// What has come of a blob, and what comes from now on. `None` when somebody else streams it, or nothing can be kept. Blocks on the disk.
    pub(crate) fn partial_blob(&self, digest: BlobDigest, stored_len: u64) -> Option<Arc<PartialBlob>> {
        let partial = Arc::new(PartialBlob::open(&self.shared, digest, stored_len)?);
        let mut all = lock(&self.streams.partial);
        all.retain(|partial| partial.strong_count() > 0);
        all.push(Arc::downgrade(&partial));
        Some(partial)
    }

    /// Blobs are kept for convenience: they go before anything else does. Whether anything went.
    fn give_up_partial(&self) -> bool {
        let all = std::mem::take(&mut *lock(&self.streams.partial));
        let went = all
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|partial| partial.give_up());
        went.count() > 0
    }

    /// Makes a streamed file the data of its layer. The caller has verified it against the DiffID and against the digests in `index`.
    /// Where the layer is there already, cut alike, its holes are filled instead. Blocks on the disk.
    ///
    /// # Errors
    /// What hinders it; nothing is left then.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        mut streamed: StreamedFile,
        index: &LayerIndex,
    ) -> Result<CachedLayer, Error> {
        let what = |error| Error::io(format!("keep streamed layer {}", index.diff_id), error);
        let cuts = Cuts::of_table(&index.chunks);
        self.copies.add(index.diff_id, &cuts);
        streamed.sync().map_err(what)?;
        let adopted = self.install(&mut streamed, index.diff_id, &cuts).map_err(what)?;
        let files = match adopted {
            Some(files) => files,
            None => {
                let files = self.open_layer(index.diff_id, cuts);
                fill_holes(&files, &streamed).map_err(what)?;
                files.verify_whole(false)?;
                files
            }
        };
        lock(&self.streams.fresh).push(files.clone());
        Ok(CachedLayer {
            files,
            cache: self.clone(),
            is_synthetic: false,
        })
    }

    /// Puts the file in place; `None` when the layer is there, cut alike.
    fn install(
        &self,
        streamed: &mut StreamedFile,
        diff_id: DiffId,
        cuts: &Cuts,
    ) -> io::Result<Option<Arc<LayerFiles>>> {
        let Some(file) = streamed.file.take() else {
            return Ok(None);
        };
        let mut open = lock(&self.open);
        let dir = self.layer_dir(&diff_id);
        match OpenFiles::install(&dir, cuts, file, &self.shared.observer) {
            Ok(Ok(files)) => {
                let adopted = LayerFiles::adopt(diff_id, dir, cuts.clone(), &self.shared, files)?;
                let adopted = Arc::new(adopted);
                open.insert((diff_id, cuts.digest()), Arc::downgrade(&adopted));
                Ok(Some(adopted))
            }
            Ok(Err(file)) => {
                streamed.file = Some(file);
                Ok(None)
            }
            Err(error) => {
                self.shared.space.release(streamed.plain_len);
                Err(error)
            }
        }
    }
}

/// Stores the chunks that a layer lacks.
fn fill_holes(files: &LayerFiles, streamed: &StreamedFile) -> io::Result<()> {
    let missing: Vec<usize> = files.states().chunks(false).collect();
    for chunk in missing {
        let Some(cut) = files.cuts().get(chunk) else {
            continue;
        };
        let mut plain = vec![0; cut.plain_len as usize];
        streamed.read_at(&mut plain, cut.plain_off)?;
        if !files.store(chunk, &plain) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
    }
    Ok(())
}

/// Has the kernel begin to write dirty pages to the disk, so that the sync at the end has little left to wait for. Advice on pages that are
/// not needed does that first; pages that are still being written stay in memory.
fn push_out(file: &File, range: Range<u64>) {
    if let (Ok(start), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) {
        // Advice: without it the sync at the end takes longer.
        let _ = posix_fadvise(file, start, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// Removes what processes left that were killed while they streamed.
pub(super) fn remove_leftovers(dir: &Path) {
    let dir = dir.join(STREAMS);
    let Ok(locked) = File::open(&dir) else { return };
    if locked.try_lock().is_err() {
        return;
    }
    for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
        let is_left = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if is_left && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "a layer that was never finished could not be removed");
        }
    }
}
