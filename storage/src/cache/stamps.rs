//! When chunks were used last, roughly.
//!
//! Readers stamp chunks with the reading of a [`Clock`] that the cache's thread winds once a second: one relaxed store, no
//! system call, no lock. The file `used` keeps the stamps over restarts; it is written now and then, without sync, since a
//! wrong stamp only evicts a chunk early or late. All numbers little-endian:
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 8 | magic `SLUICEUS` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | 0 |
//! | 16 | 4 × chunks | seconds after the epoch; 0 for never |

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::SystemTime;

const MAGIC: &[u8; 8] = b"SLUICEUS";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;

/// Seconds after the epoch, as coarse as it is wound.
#[derive(Debug)]
pub(super) struct Clock {
    seconds: AtomicU32,
}

impl Clock {
    pub(super) fn new() -> Self {
        let seconds = AtomicU32::new(0);
        let clock = Self { seconds };
        clock.wind();
        clock
    }

    /// Sets it to the time of the system. It never goes back.
    pub(super) fn wind(&self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since.map_or(0, |since| u32::try_from(since.as_secs()).unwrap_or(u32::MAX));
        self.seconds.fetch_max(seconds, Ordering::Relaxed);
    }

    /// Moves it ahead of the system's.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn advance(&self, seconds: u32) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> u32 {
        self.seconds.load(Ordering::Relaxed)
    }
}

/// The last use of every chunk of a layer.
#[derive(Debug)]
pub(super) struct Stamps {
    seconds: Vec<AtomicU32>,
    changed: AtomicBool,
}

impl Stamps {
    /// All chunks never used.
    pub(super) fn new(chunks: usize) -> Self {
        let mut seconds = Vec::new();
        seconds.resize_with(chunks, AtomicU32::default);
        Self {
            seconds,
            changed: AtomicBool::new(false),
        }
    }

    /// Takes over what a file says, if it is one for this layer. A stamp of the future counts as `now`.
    pub(super) fn load(&self, path: &Path, now: u32) {
        let Ok(bytes) = std::fs::read(path) else { return };
        let expected = HEADER_LEN + 4 * self.seconds.len();
        if bytes.len() != expected || bytes[..HEADER_LEN] != header() {
            return;
        }
        let (stamps, _) = bytes[HEADER_LEN..].as_chunks::<4>();
        for (stamp, bytes) in self.seconds.iter().zip(stamps) {
            stamp.store(u32::from_le_bytes(*bytes).min(now), Ordering::Relaxed);
        }
    }

    /// Writes the file if a stamp has changed since the last time.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let mut bytes = header().to_vec();
        for stamp in &self.seconds {
            bytes.extend_from_slice(&stamp.load(Ordering::Relaxed).to_le_bytes());
        }
        std::fs::write(path, bytes)
    }

    pub(super) fn touch(&self, chunk: usize, now: u32) {
        // Reading first keeps the cache line shared while a chunk is read over and over.
        if self.seconds[chunk].load(Ordering::Relaxed) != now {
            self.seconds[chunk].store(now, Ordering::Relaxed);
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// All chunks were used.
    pub(super) fn touch_all(&self, now: u32) {
        (0..self.seconds.len()).for_each(|chunk| self.touch(chunk, now));
    }

    pub(super) fn get(&self, chunk: usize) -> u32 {
        self.seconds[chunk].load(Ordering::Relaxed)
    }

    /// The latest of all.
    pub(super) fn last(&self) -> u32 {
        let stamps = self.seconds.iter();
        stamps
            .map(|stamp| stamp.load(Ordering::Relaxed))
            .max()
            .unwrap_or(0)
    }
}

fn header() -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header
}
