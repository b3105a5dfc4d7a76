//! The thread of a cache: what is done in the background.
//!
//! Every turn it winds the clock, brings stored chunks to the disk and notes them, takes over what other processes noted
//! or removed, and evicts when the cache is above its high watermark. It ends with the cache.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::evict::Goal;
use super::space::{List, Shared};
use super::{Cache, LayerFiles};
use crate::sync::lock;

/// Time between turns. What a `kill -9` finds not noted is verified and taken over when the layer is opened again, so
/// the length only bounds that work; a power cut loses what was stored since.
const TURN: Duration = Duration::from_secs(1);
/// Turns between flushes without a reason to hurry.
const FLUSH_TURNS: u32 = 2;
/// Turns between looks at what the disk really takes, while chunks are stored.
const MEASURE_TURNS: u32 = 10;
/// Turns between writing down when chunks were used.
const STAMP_TURNS: u32 = 10;

/// Share of the cache that is given up when the disk is full, at least [`FULL_MIN`].
const FULL_SHARE: u64 = 16;
/// Least that is given up when the disk is full.
const FULL_MIN: u64 = 32 << 20;

/// Starts the thread. Without it nothing is flushed before layers are closed, and nothing is evicted: that is said once.
pub(super) fn start(cache: &Arc<Cache>) {
    let (weak, shared) = (Arc::downgrade(cache), cache.shared.clone());
    let thread = std::thread::Builder::new().name("sluice-cache".to_owned());
    if let Err(error) = thread.spawn(move || run(&weak, &shared)) {
        tracing::warn!(%error, "the cache has no thread for its upkeep; it will not grow beyond its quota, nor make room");
    }
}

fn run(cache: &Weak<Cache>, shared: &Arc<Shared>) {
    let mut turn = 0u32;
    let mut stored = 0u64;
    loop {
        let list = shared.errands.wait(TURN);
        shared.clock.wind();
        let Some(cache) = cache.upgrade().filter(|_| !list.stop) else {
            return;
        };
        turn = turn.wrapping_add(1);
        if list.flush || turn.is_multiple_of(FLUSH_TURNS) {
            stored += cache.flush();
            cache.refresh();
        }
        if turn.is_multiple_of(STAMP_TURNS) {
            cache.open_layers().iter().for_each(|layer| layer.save_stamps());
        }
        if stored > 0 && turn.is_multiple_of(MEASURE_TURNS) {
            shared.space.measure(&shared.dir);
            stored = 0;
        }
        cache.make_room(list);
    }
}

impl Cache {
    /// Brings all stored chunks to the disk and notes them. Returns how many bytes were stored since the last time. Blocks.
    pub fn flush(&self) -> u64 {
        let stored = self.shared.errands.take_unsynced();
        self.open_layers().iter().for_each(|layer| layer.flush());
        stored
    }

    /// Takes over what other processes noted and removed.
    pub fn refresh(&self) {
        self.open_layers().iter().for_each(|layer| layer.refresh());
        self.copies.rest();
    }

    /// Does what the thread would do now. For processes without the thread, and for tests.
    pub fn tend(self: &Arc<Self>) {
        self.shared.clock.wind();
        self.flush();
        self.refresh();
        let list = self.shared.errands.take();
        self.make_room(list);
    }

    fn make_room(self: &Arc<Self>, list: List) {
        let space = &self.shared.space;
        let keep = match list.full {
            true => {
                let used = space.used();
                space
                    .low()
                    .min(used.saturating_sub((used / FULL_SHARE).max(FULL_MIN)))
            }
            false if list.evict || space.used() > space.high() => space.low(),
            false => return,
        };
        let goal = Goal {
            keep,
            used_before: None,
        };
        match self.evict(goal) {
            Ok(evicted) => {
                tracing::debug!(?evicted, "evicted");
                if evicted.after < evicted.before {
                    self.shared.outage.retry();
                }
            }
            Err(error) => tracing::warn!(%error, "the cache could not make room"),
        }
    }

    /// The layers that this process has open.
    fn open_layers(&self) -> Vec<Arc<LayerFiles>> {
        lock(&self.open).values().filter_map(Weak::upgrade).collect()
    }
}
