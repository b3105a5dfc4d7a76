//! The thread of a cache: what is done in the background.
//!
//! Every turn it winds the clock, brings stored chunks to the disk and notes them, takes over what other processes noted
//! or removed, and evicts when the cache is above its high watermark. Now and then it removes blobs that nobody streams any more. It ends with the cache.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::evict::{Evicted, Goal};
use super::space::{List, Shared};
use super::{Cache, LayerFiles, partial};
use crate::sync::lock;

/// Time between turns. What a `kill -9` finds not noted is verified and taken over when the layer is opened again, so
/// the length only bounds that work; a power cut loses what was stored since.
const TURN: Duration = Duration::from_secs(1);
/// Seconds between flushes without a reason to hurry.
const FLUSH_SECONDS: u32 = 2;
/// Seconds between writing down when chunks were used, and between looks at what the disk really takes while chunks are
/// stored.
const SLOW_SECONDS: u32 = 10;

/// Seconds between looks for blobs that were never complete.
const TIDY_SECONDS: u32 = 60 * 60;

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
    let (mut next_flush, mut next_slow) = (0, 0);
    let mut next_tidy = shared.clock.now().saturating_add(TIDY_SECONDS);
    let mut stored = 0u64;
    loop {
        let list = shared.errands.wait(TURN);
        shared.clock.wind();
        let now = shared.clock.now();
        let Some(cache) = cache.upgrade().filter(|_| !list.stop) else {
            return;
        };
        if list.flush || now >= next_flush {
            stored += cache.flush();
            cache.refresh();
            next_flush = now.saturating_add(FLUSH_SECONDS);
        }
        if now >= next_slow {
            cache.open_layers().iter().for_each(|layer| layer.save_stamps());
            if std::mem::take(&mut stored) > 0 {
                shared.space.measure(&shared.dir);
            }
            next_slow = now.saturating_add(SLOW_SECONDS);
        }
        if now >= next_tidy {
            partial::remove_abandoned(&shared.dir, now.into());
            next_tidy = now.saturating_add(TIDY_SECONDS);
        }
        cache.make_room(list);
    }
}

impl Cache {
    /// Brings all stored chunks to the disk and notes them. Returns how many bytes were stored since the last time. Blocks.
    pub fn flush(&self) -> u64 {
        let stored = self.shared.errands.take_unsynced();
        self.open_layers().iter().for_each(|layer| layer.flush());
        self.streams.flushed();
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
        partial::remove_abandoned(&self.shared.dir, self.shared.clock.now().into());
        let list = self.shared.errands.take();
        self.make_room(list);
    }

    fn make_room(self: &Arc<Self>, list: List) {
        let (space, now) = (&self.shared.space, self.shared.clock.now());
        if self.shared.errands.rests(now) {
            return;
        }
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
                // Others store meanwhile, so the sum alone does not tell whether anything went.
                let made_room = evicted.after < evicted.before || evicted.chunks + evicted.layers > 0;
                if made_room {
                    self.shared.outage.retry();
                } else if list.full || evicted.after > space.high() {
                    self.shared.errands.rest(now);
                    self.say_full(&evicted);
                }
            }
            Err(error) => tracing::warn!(%error, "the cache could not make room"),
        }
    }

    /// The log says once that the bound is reached by what must stay.
    fn say_full(&self, evicted: &Evicted) {
        if !evicted.busy && !self.said_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                dir = %self.dir.display(),
                used = evicted.after,
                quota = self.shared.space.limit(),
                "the cache is full of what is pinned or in use elsewhere; reads go on without keeping what they fetch"
            );
        }
    }

    /// The layers that this process has open.
    fn open_layers(&self) -> Vec<Arc<LayerFiles>> {
        lock(&self.open).values().filter_map(Weak::upgrade).collect()
    }
}
