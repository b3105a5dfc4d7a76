//! What reading plain layers has cost so far.
//!
//! One [`Counters`] is shared by all plain layers of a [`crate::Fetcher`]. The numbers only grow; a report takes a
//! [`Stats`] before and after and subtracts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that many readers add to.
#[derive(Debug, Default)]
pub struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    requests: AtomicU64,
    stored_bytes: AtomicU64,
    plain_bytes: AtomicU64,
    corrupt: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks that a read found on this host.
    pub hits: u64,
    /// Chunks that a read had to wait for, its own fetch or another reader's.
    pub misses: u64,
    /// Ranges asked of the source.
    pub requests: u64,
    /// Stored bytes that arrived from the source, gaps between joined chunks included.
    pub stored_bytes: u64,
    /// Plain bytes of the chunks decoded from them.
    pub plain_bytes: u64,
    /// Chunks that did not match their digest when they arrived.
    pub corrupt: u64,
}

impl Counters {
    /// The counters now. Each is exact; together they are not one instant while readers run.
    pub fn stats(&self) -> Stats {
        Stats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            stored_bytes: self.stored_bytes.load(Ordering::Relaxed),
            plain_bytes: self.plain_bytes.load(Ordering::Relaxed),
            corrupt: self.corrupt.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn add_hits(&self, chunks: usize) {
        self.hits.fetch_add(chunks as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_misses(&self, chunks: usize) {
        self.misses.fetch_add(chunks as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_stored(&self, bytes: usize) {
        self.stored_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_plain(&self, bytes: usize) {
        self.plain_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_corrupt(&self) {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
    }
}
