//! What happened in one start, in order: its phases, which chunks were touched first when, and every wait.
//!
//! Counters tell how much; a timeline tells when, and so where the time of a start went. It is bounded: after so many entries further
//! ones are only counted.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::ReadObserver;
use crate::sync::lock;

/// Entries of each kind that are kept: a start of tens of gigabytes of image touches fewer chunks.
const MOST_ENTRIES: usize = 100_000;

/// A growing timeline. Times are milliseconds since it began.
#[derive(Debug)]
pub struct Timeline {
    began: Instant,
    entries: Mutex<Entries>,
}

/// What a timeline holds, as it is written down.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Entries {
    /// Phases by name, with the time at which each was over.
    pub phases: Vec<Phase>,
    /// First touches, in order.
    pub touches: Vec<Touch>,
    /// Reads that waited, in the order in which they were over.
    pub waits: Vec<Wait>,
    /// Entries that were too many to keep.
    pub left_out: u64,
    #[serde(skip)]
    touched: HashSet<(usize, usize)>,
}

/// The end of a phase.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// When it was over.
    pub at_ms: f64,
}

/// The first touch of a chunk.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Touch {
    /// When.
    pub at_ms: f64,
    /// Layer, from the bottom.
    pub layer: usize,
    /// Position in the layer's chunk table.
    pub chunk: usize,
}

/// A read that waited.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Wait {
    /// When it was over.
    pub at_ms: f64,
    /// How long it took.
    pub wait_ms: f64,
    /// Layer, from the bottom.
    pub layer: usize,
    /// First chunk that it read.
    pub chunk: usize,
    /// How many chunks it read.
    pub chunks: usize,
}

impl Timeline {
    /// A timeline that begins now.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            entries: Mutex::default(),
        }
    }

    /// Notes that a phase is over.
    pub fn phase(&self, name: &'static str) {
        let at_ms = self.now_ms();
        lock(&self.entries).phases.push(Phase { name, at_ms });
    }

    /// What happened so far.
    pub fn entries(&self) -> Entries {
        lock(&self.entries).clone()
    }

    fn now_ms(&self) -> f64 {
        milliseconds(self.began.elapsed())
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

impl ReadObserver for Timeline {
    fn touched(&self, layer: usize, _: &Range<u64>, chunks: Range<usize>) {
        let at_ms = self.now_ms();
        let mut entries = lock(&self.entries);
        for chunk in chunks {
            if entries.touches.len() == MOST_ENTRIES {
                entries.left_out += 1;
            } else if entries.touched.insert((layer, chunk)) {
                entries.touches.push(Touch { at_ms, layer, chunk });
            }
        }
    }

    fn waited(&self, layer: usize, chunks: Range<usize>, wait: Duration) {
        let at_ms = self.now_ms();
        let mut entries = lock(&self.entries);
        if entries.waits.len() == MOST_ENTRIES {
            entries.left_out += 1;
            return;
        }
        entries.waits.push(Wait {
            at_ms,
            wait_ms: milliseconds(wait),
            layer,
            chunk: chunks.start,
            chunks: chunks.len(),
        });
    }
}

fn milliseconds(time: Duration) -> f64 {
    // Whole microseconds: a timeline is read by people and plotted.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_touches_are_kept_once_and_entries_are_bounded() {
        let timeline = Timeline::new();
        timeline.phase("mounted");
        for chunk in [3, 1, 3] {
            timeline.touched(0, &(0..0), chunk..chunk + 1);
        }
        for chunk in 0..MOST_ENTRIES + 5 {
            timeline.waited(1, chunk..chunk + 2, Duration::from_millis(1));
        }
        let entries = timeline.entries();
        let chunks: Vec<_> = entries.touches.iter().map(|touch| touch.chunk).collect();
        assert_eq!(chunks, [3, 1]);
        assert_eq!((entries.waits.len(), entries.left_out), (MOST_ENTRIES, 5));
        assert_eq!(entries.waits[0].chunks, 2);
    }
}
