//! How much the cache takes, how much it may take, and what happens when the disk says no.
//!
//! What the disk says (`st_blocks` of every file) is the truth: it is taken at open, before and after evictions, and now and then
//! while chunks are stored. In between, stores add to it and evictions subtract. A store that would pass the quota is
//! refused, so the quota holds even when nothing can be evicted; eviction begins below it, at the high watermark, and goes on
//! to the low one.
//!
//! A write that fails begins an *outage*: for a few seconds nothing is stored, then the next store tries again. The log has
//! one line for an outage however many stores it refuses.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use super::disk::{Observer, allocated};
use super::stamps::Clock;
use crate::sync::lock;

/// Without an explicit quota the cache takes at most this share (percent) of what is free plus what it has. It shrinks
/// when other programs fill the disk.
const SHARE_PERCENT: u64 = 80;
/// Share of the quota (percent) at which eviction begins.
const HIGH_PERCENT: u64 = 95;
/// Share of the quota (percent) at which eviction ends.
const LOW_PERCENT: u64 = 85;
/// How long nothing is stored after a write failed, in seconds: long enough that a full disk costs no failing write per chunk,
/// short enough that the cache is back soon.
pub(super) const OUTAGE_SECONDS: u32 = 5;
/// Bytes that wait for a sync at which the cache's thread is woken early.
const UNSYNCED_HIGH: u64 = 64 << 20;

/// What all layers of a cache share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) clock: Clock,
    pub(super) space: Space,
    pub(super) outage: Outage,
    pub(super) observer: Observer,
    pub(super) errands: Errands,
}

/// Bytes on the disk.
#[derive(Debug)]
pub(super) struct Space {
    explicit: Option<u64>,
    limit: AtomicU64,
    used: AtomicU64,
}

impl Space {
    pub(super) fn new(quota: Option<u64>) -> Self {
        Self {
            explicit: quota,
            limit: AtomicU64::new(quota.unwrap_or(u64::MAX)),
            used: AtomicU64::new(0),
        }
    }

    /// Takes what the disk says.
    pub(super) fn measure(&self, dir: &Path) -> u64 {
        let used = tree_allocated(dir);
        self.used.store(used, Ordering::Relaxed);
        if let (None, Ok(stat)) = (self.explicit, statvfs(dir)) {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            let limit = free.saturating_add(used) / 100 * SHARE_PERCENT;
            self.limit.store(limit, Ordering::Relaxed);
        }
        used
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Bytes at which eviction begins.
    pub(super) fn high(&self) -> u64 {
        self.limit() / 100 * HIGH_PERCENT
    }

    /// Bytes at which eviction ends.
    pub(super) fn low(&self) -> u64 {
        self.limit() / 100 * LOW_PERCENT
    }

    /// Claims bytes that are about to be written; whether the quota has place for them.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        let fits = self
            .used
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes)
            <= self.limit();
        if !fits {
            self.release(bytes);
        }
        fits
    }

    /// Gives bytes back.
    pub(super) fn release(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// Bytes that everything below a directory takes. What vanishes meanwhile takes none.
pub(super) fn tree_allocated(dir: &Path) -> u64 {
    let own = std::fs::symlink_metadata(dir).map_or(0, |metadata| allocated(&metadata));
    let Ok(entries) = std::fs::read_dir(dir) else {
        return own;
    };
    let of_entry = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => tree_allocated(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| allocated(&metadata)),
    };
    own + entries.flatten().map(of_entry).sum::<u64>()
}

/// A time during which the disk takes nothing.
#[derive(Debug, Default)]
pub(super) struct Outage {
    until: AtomicU32,
    said: AtomicBool,
}

impl Outage {
    /// Begins or prolongs it.
    pub(super) fn begin(&self, dir: &Path, now: u32, error: &io::Error) {
        self.until
            .store(now.saturating_add(OUTAGE_SECONDS), Ordering::Relaxed);
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                dir = %dir.display(),
                %error,
                "the cache cannot keep what is fetched; reads go on without it until it can"
            );
        }
    }

    /// Whether it lasts at `now`.
    pub(super) fn lasts(&self, now: u32) -> bool {
        now < self.until.load(Ordering::Relaxed)
    }

    /// Something was stored.
    pub(super) fn end(&self, dir: &Path) {
        if self.said.load(Ordering::Relaxed) && self.said.swap(false, Ordering::Relaxed) {
            tracing::info!(dir = %dir.display(), "the cache keeps what is fetched again");
        }
    }

    /// Lets the next store try.
    pub(super) fn retry(&self) {
        self.until.store(0, Ordering::Relaxed);
    }
}

/// What the cache's thread is asked to do before its next turn.
#[derive(Debug, Default)]
pub(super) struct Errands {
    unsynced: AtomicU64,
    /// Second of the clock until which nobody asks for room, since there was nothing to remove.
    rest_until: AtomicU32,
    list: Mutex<List>,
    changed: Condvar,
}

/// The list of errands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct List {
    /// Sync and note what has been stored.
    pub(super) flush: bool,
    /// Evict to the low watermark.
    pub(super) evict: bool,
    /// The disk was full: evict some even below the watermark.
    pub(super) full: bool,
    /// The cache is gone.
    pub(super) stop: bool,
}

impl Errands {
    /// Adds to the list and wakes the thread.
    pub(super) fn add(&self, change: impl FnOnce(&mut List)) {
        change(&mut lock(&self.list));
        self.changed.notify_one();
    }

    /// Has chunks evicted, unless that was in vain a moment ago.
    pub(super) fn ask_for_room(&self, now: u32) {
        if now >= self.rest_until.load(Ordering::Relaxed) {
            self.add(|list| list.evict = true);
        }
    }

    /// Nothing more can be removed at `now`.
    pub(super) fn rest(&self, now: u32) {
        let until = now.saturating_add(OUTAGE_SECONDS);
        self.rest_until.store(until, Ordering::Relaxed);
    }

    /// Whether nothing could be removed a moment ago.
    pub(super) fn rests(&self, now: u32) -> bool {
        now < self.rest_until.load(Ordering::Relaxed)
    }

    /// Counts bytes that were written and not synced.
    pub(super) fn add_unsynced(&self, bytes: u64) {
        let before = self.unsynced.fetch_add(bytes, Ordering::Relaxed);
        if before < UNSYNCED_HIGH && before + bytes >= UNSYNCED_HIGH {
            self.add(|list| list.flush = true);
        }
    }

    /// Bytes written since the last call.
    pub(super) fn take_unsynced(&self) -> u64 {
        self.unsynced.swap(0, Ordering::Relaxed)
    }

    /// Waits for errands, or for `turn`, and takes the list.
    pub(super) fn wait(&self, turn: Duration) -> List {
        let list = lock(&self.list);
        let idle = |list: &mut List| !(list.flush || list.evict || list.full || list.stop);
        let waited = self.changed.wait_timeout_while(list, turn, idle);
        let (mut list, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *list)
    }

    /// Takes the list without waiting.
    pub(super) fn take(&self) -> List {
        std::mem::take(&mut *lock(&self.list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_never_passed() {
        let space = Space::new(Some(1000));
        assert!(space.reserve(600));
        assert!(!space.reserve(401));
        assert!(space.reserve(400));
        space.release(2000);
        assert_eq!(space.used(), 0);
        assert!(space.low() < space.high() && space.high() < space.limit());
    }

    #[test]
    fn the_share_of_a_file_system_is_below_its_size() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), [1; 100_000]).unwrap();
        let space = Space::new(None);
        assert!(space.measure(dir.path()) >= 100_000);
        assert!(space.limit() < u64::MAX);
    }
}
