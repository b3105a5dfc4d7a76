//! What a process knows of the chunks of one layer, and who may change it when.
//!
//! | state | meaning |
//! |---|---|
//! | absent | to be fetched; whatever lies in the data file there means nothing |
//! | noted | its bit is in the file `present`, from this process or another; not looked at yet |
//! | trusted | verified in this process, on arrival or on first use; only such chunks are shown |
//! | fresh | trusted, and its bit waits until its bytes have reached the disk |
//!
//! Three rules keep a reader from seeing a byte that is not its own:
//!
//! - A chunk is made trusted under the read side of `changing`, in one step with writing or verifying its bytes; a chunk is
//!   made absent under the write side, in one step with punching its bytes out.
//! - Readers take no lock. Removal first makes the chunk absent, then raises `removals`, then punches. A reader that saw the
//!   chunk trusted and finds `removals` unchanged after it has read has read before the punch.
//! - Noting is synced data first, then bits. Chunks removed between the two are told by `removals` as well: a chunk may have been
//!   stored anew meanwhile, by bytes that are not synced.
//!
//! The module does no I/O and knows no file: the steps on disk are closures, so that a model can run it.

use std::ops::Range;

use super::primitives::{AtomicU8, AtomicU64, Ordering, PoisonError, RwLock, fence};

/// How often a reader tries again when chunks of its layer were removed while it read. Removals come in batches, some per
/// second at most; a reader that meets four in a row treats the range as missing, which is always right.
const READ_ATTEMPTS: usize = 4;

/// A set of chunk numbers that many threads change.
#[derive(Debug)]
pub(super) struct ChunkSet {
    bytes: Vec<AtomicU8>,
}

impl ChunkSet {
    pub(super) fn empty(chunks: usize) -> Self {
        let mut bytes = Vec::new();
        bytes.resize_with(chunks.div_ceil(8), || AtomicU8::new(0));
        Self { bytes }
    }

    pub(super) fn contains(&self, chunk: usize) -> bool {
        self.bytes[chunk / 8].load(Ordering::Acquire) & bit(chunk) != 0
    }

    fn insert(&self, chunk: usize) -> bool {
        self.bytes[chunk / 8].fetch_or(bit(chunk), Ordering::AcqRel) & bit(chunk) == 0
    }

    fn remove(&self, chunk: usize) {
        self.bytes[chunk / 8].fetch_and(!bit(chunk), Ordering::AcqRel);
    }

    fn members(&self) -> Vec<usize> {
        let mut members = Vec::new();
        for (at, byte) in self.bytes.iter().enumerate() {
            let byte = byte.load(Ordering::Acquire);
            members.extend(
                (0..8)
                    .filter(|bit| byte & (1 << bit) != 0)
                    .map(|bit| at * 8 + bit),
            );
        }
        members
    }
}

/// The bit of a chunk in its byte.
pub(super) fn bit(chunk: usize) -> u8 {
    1 << (chunk % 8)
}

/// What became of an attempt to trust a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It can be read.
    Good,
    /// It is not there.
    Absent,
    /// Its bytes are not what they should be: to be removed.
    Bad,
}

/// The fresh chunks at one moment.
#[derive(Debug)]
pub(super) struct Fresh {
    removals: u64,
    pub(super) chunks: Vec<usize>,
}

/// The states of all chunks of a layer.
#[derive(Debug)]
pub(super) struct ChunkStates {
    count: usize,
    trusted: ChunkSet,
    fresh: ChunkSet,
    noted: ChunkSet,
    removals: AtomicU64,
    changing: RwLock<()>,
}

impl ChunkStates {
    /// All chunks absent.
    pub(super) fn new(count: usize) -> Self {
        Self {
            count,
            trusted: ChunkSet::empty(count),
            fresh: ChunkSet::empty(count),
            noted: ChunkSet::empty(count),
            removals: AtomicU64::new(0),
            changing: RwLock::new(()),
        }
    }

    pub(super) fn is_trusted(&self, chunk: usize) -> bool {
        self.trusted.contains(chunk)
    }

    /// Whether the data file holds the chunk, as far as this process knows.
    pub(super) fn is_present(&self, chunk: usize) -> bool {
        self.noted.contains(chunk) || self.fresh.contains(chunk)
    }

    /// The chunks that [`Self::is_present`] holds for, or does not.
    pub(super) fn chunks(&self, present: bool) -> impl Iterator<Item = usize> + '_ {
        (0..self.count).filter(move |chunk| self.is_present(*chunk) == present)
    }

    pub(super) fn is_noted(&self, chunk: usize) -> bool {
        self.noted.contains(chunk)
    }

    /// Takes over a bit that was found in the file.
    pub(super) fn found(&self, chunk: usize) {
        self.noted.insert(chunk);
    }

    /// Runs `read`, which reads bytes of `chunks`, when all of them are trusted. `None` when one is not, or when `read` gives
    /// nothing. Takes no lock.
    pub(super) fn read<T>(&self, chunks: Range<usize>, mut read: impl FnMut() -> Option<T>) -> Option<T> {
        for _ in 0..READ_ATTEMPTS {
            let before = self.removals.load(Ordering::SeqCst);
            if !chunks.clone().all(|chunk| self.trusted.contains(chunk)) {
                return None;
            }
            let value = read()?;
            fence(Ordering::SeqCst);
            if self.removals.load(Ordering::SeqCst) == before {
                return Some(value);
            }
        }
        None
    }

    /// Trusts a chunk that is present when `verify` finds its bytes right.
    pub(super) fn trust(&self, chunk: usize, verify: impl FnOnce() -> bool) -> Trust {
        let _changing = self.changing.read().unwrap_or_else(PoisonError::into_inner);
        if !self.is_present(chunk) {
            return Trust::Absent;
        }
        if !verify() {
            return Trust::Bad;
        }
        self.trusted.insert(chunk);
        Trust::Good
    }

    /// Trusts a chunk once `write` has put its verified bytes into the file.
    ///
    /// # Errors
    /// That of `write`; the chunk is to be removed then, since its bytes may be half old, half new.
    pub(super) fn store<E>(&self, chunk: usize, write: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let _changing = self.changing.read().unwrap_or_else(PoisonError::into_inner);
        write()?;
        if !self.noted.contains(chunk) {
            self.fresh.insert(chunk);
        }
        self.trusted.insert(chunk);
        Ok(())
    }

    /// The fresh chunks now. The caller syncs the data file and then calls [`Self::note`].
    pub(super) fn fresh(&self) -> Fresh {
        Fresh {
            removals: self.removals.load(Ordering::SeqCst),
            chunks: self.fresh.members(),
        }
    }

    /// Writes the bits of chunks whose data has been synced since `fresh` was taken. `Ok(false)` when chunks were removed
    /// meanwhile: nothing is noted, and the caller begins anew.
    ///
    /// # Errors
    /// That of `write`; the chunks stay fresh.
    pub(super) fn note<E>(
        &self,
        fresh: &Fresh,
        write: impl FnOnce(&[usize]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let _changing = self.changing.read().unwrap_or_else(PoisonError::into_inner);
        if self.removals.load(Ordering::SeqCst) != fresh.removals {
            return Ok(false);
        }
        write(&fresh.chunks)?;
        for chunk in &fresh.chunks {
            self.noted.insert(*chunk);
            self.fresh.remove(*chunk);
        }
        Ok(true)
    }

    /// Makes chunks absent: in memory, then in the file by `unnote`, then their bytes by `punch`, which is told what is
    /// still present.
    ///
    /// # Errors
    /// That of `unnote`; nothing is punched then, and the bits in the file stay true.
    pub(super) fn remove<E>(
        &self,
        chunks: &[usize],
        unnote: impl FnOnce() -> Result<(), E>,
        punch: impl FnOnce(&dyn Fn(usize) -> bool),
    ) -> Result<(), E> {
        let _changing = self.changing.write().unwrap_or_else(PoisonError::into_inner);
        for chunk in chunks {
            self.trusted.remove(*chunk);
            self.fresh.remove(*chunk);
            self.noted.remove(*chunk);
        }
        self.removals.fetch_add(1, Ordering::SeqCst);
        unnote()?;
        punch(&|chunk| self.is_present(chunk));
        Ok(())
    }
}
