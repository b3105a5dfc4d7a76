//! One layer of the cache: its files, and what can be done with them.
//!
//! [`LayerFiles`] is shared by all users of a layer in this process. Which chunk is in which state, and who may change that
//! when, is told in the [`states`](super::states) module; the steps on disk are here. A layer whose files cannot be opened reads as
//! missing and keeps nothing, and tries again after a while.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use sluice_format::DiffId;

use super::cuts::{Cut, Cuts};
use super::files::OpenFiles;
use super::presence::{REFUSED, SEALED};
use super::ranges::{holes, runs};
use super::recover;
use super::space::{OUTAGE_SECONDS, Shared};
use super::stamps::Stamps;
use super::states::{ChunkStates, Trust};
use crate::sync::lock;

/// Name of the file with the plain bytes in the directory of a layer.
pub(super) const DATA_FILE: &str = "data";
/// Name of the file that says which of them are there.
pub(super) const PRESENCE_FILE: &str = "present";
/// Name of the file that says where the layer is cut.
pub(super) const CUTS_FILE: &str = "cuts";
/// Name of the file that says when chunks were used.
pub(super) const STAMPS_FILE: &str = "used";

/// Seconds that stored chunks stay in the page cache: those fetched ahead, and a layer that was streamed, are read by a container that starts soon. What is
/// read is then in the page cache of the mount too, so the first copy goes.
const PAGES_SECONDS: u32 = 60;

/// How often chunks are noted anew when others were removed meanwhile, before they are left to the next flush.
const NOTE_ATTEMPTS: usize = 3;

/// The files of one layer, shared by all its users in this process.
#[derive(Debug)]
pub(super) struct LayerFiles {
    diff_id: DiffId,
    dir: PathBuf,
    cuts: Cuts,
    shared: Arc<Shared>,
    states: ChunkStates,
    stamps: Stamps,
    open: OnceLock<OpenFiles>,
    /// Second of the clock before which it is not tried to open the files again.
    opening: Mutex<u32>,
    /// Held while chunks are evicted; the number of users that were given the data file as a whole.
    leases: Mutex<usize>,
    /// Held while chunks are noted; ranges that are on the disk since a second of the clock, and also in the page cache.
    flushed: Mutex<VecDeque<(u32, Range<u64>)>>,
    refused: AtomicBool,
    /// A damaged file has many bad chunks; the log gets one line.
    corrupt: AtomicUsize,
}

impl LayerFiles {
    /// Opens or creates the files of a layer.
    pub(super) fn open(diff_id: DiffId, dir: PathBuf, cuts: Cuts, shared: &Arc<Shared>) -> Self {
        let files = Self::new(diff_id, dir, cuts, shared);
        files.files();
        files
    }

    /// A layer whose files hold every byte, verified against chunk digests and DiffID while they were written, and on the disk. The next
    /// flush sets the bits.
    pub(super) fn adopt(
        diff_id: DiffId,
        dir: PathBuf,
        cuts: Cuts,
        shared: &Arc<Shared>,
        files: OpenFiles,
    ) -> io::Result<Self> {
        let layer = Self::new(diff_id, dir, cuts, shared);
        for chunk in 0..layer.cuts.len() {
            layer.states.store(chunk, || Ok::<(), io::Error>(()))?;
        }
        layer.stamps.touch_all(shared.clock.now());
        layer.note_streamed(&files)?;
        shared.errands.add_unsynced(layer.cuts.plain_len());
        drop(layer.open.set(files));
        Ok(layer)
    }

    fn new(diff_id: DiffId, dir: PathBuf, cuts: Cuts, shared: &Arc<Shared>) -> Self {
        Self {
            diff_id,
            dir,
            states: ChunkStates::new(cuts.len()),
            stamps: Stamps::new(cuts.len()),
            cuts,
            shared: shared.clone(),
            open: OnceLock::new(),
            opening: Mutex::new(0),
            leases: Mutex::new(0),
            flushed: Mutex::default(),
            refused: AtomicBool::new(false),
            corrupt: AtomicUsize::new(0),
        }
    }

    pub(super) fn diff_id(&self) -> DiffId {
        self.diff_id
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn cuts(&self) -> &Cuts {
        &self.cuts
    }

    pub(super) fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    pub(super) fn states(&self) -> &ChunkStates {
        &self.states
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Chunks in the files that did not match their digest so far.
    pub(super) fn corrupt(&self) -> usize {
        self.corrupt.load(Ordering::Relaxed)
    }

    /// Users that were given the data file as a whole. Chunks are not evicted while the lock is held.
    pub(super) fn leases(&self) -> &Mutex<usize> {
        &self.leases
    }

    /// The open files, if the disk has them.
    pub(super) fn files(&self) -> Option<&OpenFiles> {
        self.open.get().or_else(|| self.open_files())
    }

    fn open_files(&self) -> Option<&OpenFiles> {
        let mut not_before = lock(&self.opening);
        let now = self.shared.clock.now();
        if self.open.get().is_none() && now >= *not_before {
            let opened = OpenFiles::open(&self.dir, &self.cuts, &self.shared.observer).or_else(|error| {
                self.cannot_open(&error, *not_before == 0);
                OpenFiles::open_read_only(&self.dir, &self.cuts, &self.shared.observer)
            });
            match opened.and_then(|files| self.load(&files).map(|()| files)) {
                Ok(files) => drop(self.open.set(files)),
                Err(_) => *not_before = now.saturating_add(OUTAGE_SECONDS),
            }
        }
        self.open.get()
    }

    /// A disk that takes nothing ends storing for a while; what hinders this layer alone is said once.
    fn cannot_open(&self, error: &io::Error, first: bool) {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied => self.failed(error),
            _ if first => {
                tracing::warn!(layer = %self.diff_id, %error, "the cache cannot keep this layer; reads go on without it");
            }
            _ => {}
        }
    }

    /// Takes over what the files say, and what a crash left in them.
    fn load(&self, files: &OpenFiles) -> io::Result<()> {
        self.stamps
            .load(&self.dir.join(STAMPS_FILE), self.shared.clock.now());
        self.refused
            .store(files.presence.marks()? & REFUSED != 0, Ordering::Relaxed);
        let alone = match files.writable {
            true => files.presence.try_alone()?,
            false => None,
        };
        for chunk in files.presence.load()? {
            self.states.found(chunk);
        }
        if alone.is_some() {
            recover::recover(files, &self.cuts, &self.states)?;
        }
        Ok(())
    }

    /// The verified bytes of `plain`, or `None` when any of them must be fetched or the range is outside the layer.
    pub(super) fn read_range(&self, plain: Range<u64>) -> Option<Bytes> {
        let files = self.files()?;
        if plain.start > plain.end || plain.end > self.cuts.plain_len() || self.is_refused() {
            return None;
        }
        let wanted = self.cuts.covering(plain.clone());
        if !wanted.clone().all(|chunk| self.trust(files, chunk)) {
            return None;
        }
        let bytes = self.states.read(wanted.clone(), || {
            let mut bytes = vec![0; (plain.end - plain.start) as usize];
            files.data.read_at(&mut bytes, plain.start).ok().map(|()| bytes)
        })?;
        let now = self.shared.clock.now();
        wanted.for_each(|chunk| self.stamps.touch(chunk, now));
        Some(bytes.into())
    }

    /// The verified bytes of a chunk, read without a trace in its stamp.
    pub(super) fn read_quietly(&self, chunk: usize) -> Option<Bytes> {
        let (files, cut) = (self.files()?, self.cuts.get(chunk)?);
        if self.is_refused() || !self.trust(files, chunk) {
            return None;
        }
        let bytes = self.states.read(chunk..chunk + 1, || read_cut(files, cut))?;
        Some(bytes.into())
    }

    /// Has the kernel read a chunk that is here into its page cache.
    pub(super) fn read_ahead(&self, chunk: usize) {
        let present = self.cuts.get(chunk).filter(|_| self.states.is_present(chunk));
        if let (Some(cut), Some(files)) = (present, self.files()) {
            files.data.read_ahead(cut.plain_range());
        }
    }

    /// Whether a chunk can be read, verified if it has not been yet.
    pub(super) fn trust(&self, files: &OpenFiles, chunk: usize) -> bool {
        if self.states.is_trusted(chunk) {
            return true;
        }
        if !self.states.is_present(chunk) {
            if !files.presence.contains(chunk) {
                return false;
            }
            self.states.found(chunk);
        }
        match self.states.trust(chunk, || self.verify(files, chunk)) {
            Trust::Good => true,
            Trust::Absent => false,
            Trust::Bad => {
                self.forget(files, chunk);
                false
            }
        }
    }

    /// Whether the file has the right bytes of a chunk now.
    pub(super) fn verify(&self, files: &OpenFiles, chunk: usize) -> bool {
        let cut = self.cuts.get(chunk);
        cut.is_some_and(|cut| read_cut(files, cut).is_some_and(|plain| cut.matches(&plain)))
    }

    /// Removes a chunk whose bytes are wrong. They are overwritten when it is fetched again.
    pub(super) fn forget(&self, files: &OpenFiles, chunk: usize) {
        if self.corrupt.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                layer = %self.diff_id,
                chunk,
                "cached bytes do not match their digest; they are fetched again"
            );
        }
        let unnote = || match files.writable {
            true => files.presence.remove(&[chunk]),
            false => Ok(()),
        };
        if let Err(error) = self.states.remove(&[chunk], unnote, |_| ()) {
            self.failed(&error);
        }
    }

    /// Keeps the bytes of a chunk; whether they are kept.
    pub(super) fn store(&self, chunk: usize, plain: &[u8]) -> bool {
        let now = self.shared.clock.now();
        if self.shared.outage.lasts(now) || self.is_refused() {
            return false;
        }
        let (Some(files), Some(cut)) = (self.files(), self.cuts.get(chunk)) else {
            return false;
        };
        let len = u64::from(cut.plain_len);
        if !files.writable || plain.len() as u64 != len {
            return false;
        }
        self.stamps.touch(chunk, now);
        if self.states.is_trusted(chunk) {
            return true;
        }
        let is_new = !self.states.is_present(chunk);
        if is_new && !self.reserve(len) {
            return false;
        }
        match self
            .states
            .store(chunk, || files.data.write_at(plain, cut.plain_off))
        {
            Ok(()) => {
                self.shared.errands.add_unsynced(len);
                self.shared.outage.end(&self.shared.dir);
                true
            }
            Err(error) => {
                self.failed(&error);
                self.undo(files, &[chunk]);
                false
            }
        }
    }

    /// Claims place for a chunk; a cache that is nearly full asks for an eviction.
    fn reserve(&self, len: u64) -> bool {
        let space = &self.shared.space;
        let fits = space.reserve(len);
        if !fits || space.used() > space.high() {
            self.shared.errands.ask_for_room(self.shared.clock.now());
        }
        fits
    }

    fn failed(&self, error: &io::Error) {
        self.shared
            .outage
            .begin(&self.shared.dir, self.shared.clock.now(), error);
        if matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            self.shared.errands.add(|list| list.full = true);
        }
    }

    /// Takes back chunks that could not be written or synced.
    fn undo(&self, files: &OpenFiles, chunks: &[usize]) {
        if let Err(error) = self.withdraw(files, chunks) {
            self.failed(&error);
        }
    }

    /// Removes chunks of a layer that other processes may use. They may trust chunks that this one does not know of, so bytes are
    /// only taken away when there are none; otherwise they stay until the layer is recovered.
    fn withdraw(&self, files: &OpenFiles, chunks: &[usize]) -> io::Result<()> {
        let unnote = || files.presence.remove(chunks);
        match files.presence.try_alone()? {
            Some(_alone) => self.remove(files, chunks, unnote).map(drop),
            None => self.states.remove(chunks, unnote, |_| ()),
        }
    }

    /// Removes chunks and punches them out, as the only user; what that freed is accounted for.
    fn remove(
        &self,
        files: &OpenFiles,
        chunks: &[usize],
        unnote: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<u64> {
        let before = files.data.allocated()?;
        let mut punched = Ok(());
        self.states.remove(chunks, unnote, |present| {
            punched = holes(&self.cuts, chunks, present)
                .into_iter()
                .try_for_each(|hole| files.data.punch(hole));
        })?;
        punched?;
        let freed = before.saturating_sub(files.data.allocated()?);
        self.shared.space.release(freed);
        Ok(freed)
    }

    /// Brings stored chunks to the disk and then notes them. Chunks whose bytes the disk does not take are removed.
    pub(super) fn flush(&self) {
        let Some(files) = self.open.get().filter(|files| files.writable) else {
            return;
        };
        let mut flushed = lock(&self.flushed);
        let now = self.shared.clock.now();
        while let Some((_, range)) =
            flushed.pop_front_if(|(since, _)| now.saturating_sub(*since) >= PAGES_SECONDS)
        {
            files.data.drop_pages(range);
        }
        for _ in 0..NOTE_ATTEMPTS {
            let fresh = self.states.fresh();
            if fresh.chunks.is_empty() {
                return;
            }
            if let Err(error) = files.data.sync() {
                self.failed(&error);
                self.undo(files, &fresh.chunks);
                return;
            }
            match self.states.note(&fresh, |chunks| files.presence.insert(chunks)) {
                Ok(false) => continue,
                Ok(true) => {
                    let ranges = runs(&self.cuts, &fresh.chunks);
                    flushed.extend(ranges.into_iter().map(|range| (now, range)));
                }
                Err(error) => self.failed(&error),
            }
            return;
        }
    }

    /// Takes over what other processes noted, and lets go of what they found to be damaged.
    pub(super) fn refresh(&self) {
        let Some(files) = self.open.get() else { return };
        // Bits of this process are set under the same lock: one that is missing in the file was cleared by another.
        let _flushed = lock(&self.flushed);
        let Ok(found) = files.presence.changed() else {
            return;
        };
        let Some(found) = found else { return };
        let gone: Vec<usize> = (0..self.cuts.len())
            .filter(|chunk| self.states.is_noted(*chunk) && found.binary_search(chunk).is_err())
            .collect();
        if !gone.is_empty() {
            let nothing = || Ok::<(), io::Error>(());
            // Cannot fail: nothing is written.
            let _ = self.states.remove(&gone, nothing, |_| ());
        }
        found.into_iter().for_each(|chunk| self.states.found(chunk));
    }

    /// Writes the stamps, if they changed.
    pub(super) fn save_stamps(&self) {
        if self.open.get().is_some_and(|files| files.writable) {
            // Stamps are hints: without them chunks are evicted in another order.
            let _ = self.stamps.save(&self.dir.join(STAMPS_FILE));
        }
    }

    /// Removes chunks to make room; the bytes that became free. Nothing is removed while another process has the layer open, or
    /// from a file that the kernel was given.
    ///
    /// # Errors
    /// What the disk says; no chunk is half removed.
    pub(super) fn evict(&self, chunks: &[usize]) -> io::Result<u64> {
        let leases = lock(&self.leases);
        let Some(files) = self.files().filter(|files| files.writable) else {
            return Ok(0);
        };
        if *leases > 0 || self.is_sealed() {
            return Ok(0);
        }
        let Some(_alone) = files.presence.try_alone()? else {
            return Ok(0);
        };
        // The bits are off the disk before the bytes are: a power cut leaves no bit without its bytes.
        self.remove(files, chunks, || {
            files.presence.remove(chunks)?;
            files.presence.sync()
        })
    }

    /// Whether the data file was given to the kernel at any time: its bytes must stay as long as it has a user.
    pub(super) fn is_sealed(&self) -> bool {
        self.files()
            .is_some_and(|files| files.presence.marks().map_or(true, |marks| marks & SEALED != 0))
    }

    /// Whether the layer turned out not to be the one that its DiffID names.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes the layer out of service for good, with all its chunks.
    pub(super) fn refuse(&self, files: &OpenFiles) -> io::Result<()> {
        self.refused.store(true, Ordering::Relaxed);
        let all: Vec<usize> = (0..self.cuts.len()).collect();
        self.withdraw(files, &all)?;
        files.presence.mark(REFUSED)
    }
}

impl Drop for LayerFiles {
    fn drop(&mut self) {
        self.flush();
        self.save_stamps();
    }
}

fn read_cut(files: &OpenFiles, cut: &Cut) -> Option<Vec<u8>> {
    let mut plain = vec![0; cut.plain_len as usize];
    files.data.read_at(&mut plain, cut.plain_off).ok()?;
    Some(plain)
}
