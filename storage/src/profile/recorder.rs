//! Watches one start.
//!
//! Readers on many threads call [`Recorder::record`] for every range that they demand, hit or miss. One bit per block tells
//! first demands from later ones without a lock; only a first demand takes the lock and the time. Times count from the first
//! demand, because a mount may wait long for its container.
//!
//! States: *idle* until the first demand, then *recording*, then *ended* for good. It ends at a quiet point (nothing was new
//! for a while, and no reader waits), at a cap on time or bytes, or when it is finished from outside. Whoever demands
//! next finds a quiet point late; [`Recorder::ended`] finds it in time.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_format::{Digest, LayerIndex};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::recording::{EndReason, LayerDemands, Recording, Touch};
use crate::ReadObserver;
use crate::sync::lock;

/// Nothing new for so long, and a program is either ready or waits for its user. Shorter pauses occur while one computes.
const QUIET: Duration = Duration::from_secs(3);
/// A start that takes longer is one that never gets quiet, such as a batch job.
const LONGEST: Duration = Duration::from_secs(120);
/// Demanding more than this share of the image is reading it, not starting from it.
const PLAIN_SHARE: u64 = 2;
/// Images so small that even all of it may be a start, in plain bytes.
const SMALL_IMAGE: u64 = 64 << 20;

/// Ranges noted at most, some megabytes: a start of four gigabytes of PyTorch notes 5,000.
const MOST_TOUCHES: usize = 1 << 17;

/// Plain bytes per bit of the bitmap: a page of the kernel, which asks for no less.
const BLOCK: u64 = 4096;
/// Blocks per word of the bitmap.
const WORD_BITS: u64 = u64::BITS as u64;

/// When a recording ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordingOptions {
    /// Without a new demand for so long the start is over.
    pub quiet: Duration,
    /// A recording lasts no longer than this from its first demand.
    pub longest: Duration,
    /// Plain bytes at which it ends; `None` for half of the image, or 64 MiB for small ones.
    pub plain_cap: Option<u64>,
}

impl Default for RecordingOptions {
    fn default() -> Self {
        Self {
            quiet: QUIET,
            longest: LONGEST,
            plain_cap: None,
        }
    }
}

/// A layer of the image being started.
#[derive(Clone, Debug)]
pub struct RecordedLayer {
    /// How the layer is cut here.
    pub index: Arc<LayerIndex>,
    /// Whether every demand is seen. Not so when the kernel reads the layer from a local file by itself: then nothing is learnt
    /// of it, and what earlier starts demanded of it stays.
    pub observed: bool,
}

/// Records the demands of one start. Shared by all readers.
#[derive(Debug)]
pub struct Recorder {
    image_id: Digest,
    options: RecordingOptions,
    plain_cap: u64,
    layers: Vec<LayerBits>,
    ended: AtomicBool,
    /// Unless the program is read ahead of.
    sees_all: AtomicBool,
    waiting: AtomicUsize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct LayerBits {
    layer: RecordedLayer,
    /// Position of the first layer with the same DiffID. Both read the same bytes; demands are noted there.
    first: usize,
    demanded: Box<[AtomicU64]>,
}

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    /// When a demand was last new, or its bytes arrived.
    last: Option<Instant>,
    plain_len: u64,
    touches: Vec<Noted>,
    end: Option<EndReason>,
}

#[derive(Clone, Debug)]
struct Noted {
    layer: usize,
    plain: Range<u64>,
    ms: u32,
}

/// What is known of the end.
enum Outlook {
    Idle,
    /// Look again then.
    At(Instant),
    Ended(EndReason),
}

impl LayerBits {
    /// Marks the blocks of a range within the layer, and tells how many were not.
    fn mark(&self, plain: &Range<u64>) -> u64 {
        let mut new = 0;
        for block in plain.start / BLOCK..plain.end.div_ceil(BLOCK) {
            let Some(word) = self.demanded.get((block / WORD_BITS) as usize) else {
                break;
            };
            let bit = 1 << (block % WORD_BITS);
            let known =
                word.load(Ordering::Relaxed) & bit != 0 || word.fetch_or(bit, Ordering::Relaxed) & bit != 0;
            new += u64::from(!known);
        }
        new
    }
}

impl Recorder {
    /// A recorder for a start of image `image_id`, whose layers are given lowest first.
    pub fn new(image_id: Digest, layers: Vec<RecordedLayer>, options: RecordingOptions) -> Arc<Self> {
        let plain_len: u64 = layers.iter().map(|layer| layer.index.plain_len()).sum();
        let plain_cap = options
            .plain_cap
            .unwrap_or((plain_len / PLAIN_SHARE).max(SMALL_IMAGE));
        let firsts: Vec<usize> = layers
            .iter()
            .map(|layer| {
                let same = |other: &RecordedLayer| other.index.diff_id == layer.index.diff_id;
                layers.iter().position(same).unwrap_or_default()
            })
            .collect();
        let bits = |(layer, first): (RecordedLayer, usize)| LayerBits {
            demanded: (0..layer.index.plain_len().div_ceil(BLOCK * WORD_BITS))
                .map(|_| AtomicU64::new(0))
                .collect(),
            layer,
            first,
        };
        Arc::new(Self {
            image_id,
            options,
            plain_cap,
            layers: layers.into_iter().zip(firsts).map(bits).collect(),
            ended: AtomicBool::new(false),
            sees_all: AtomicBool::new(true),
            waiting: AtomicUsize::new(0),
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Notes that a reader demanded `plain` of the layer at position `layer`. Cheap after the first time; what does not exist is
    /// ignored. Callable outside of a runtime.
    pub fn record(&self, layer: usize, plain: Range<u64>) {
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        let Some(bits) = self.layers.get(layer) else {
            return;
        };
        let plain = plain.start..plain.end.min(bits.layer.index.plain_len());
        let new = bits.mark(&plain);
        if new > 0 {
            self.note(layer, plain, new * BLOCK);
        }
    }

    /// Notes that a reader waits for bytes until the value is dropped. While anybody waits no point is quiet, however slow the
    /// network is.
    pub fn waiting(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting {
            recorder: self.clone(),
        }
    }

    /// Says that somebody reads ahead of the program what earlier starts demanded: that it demands this again is not seen from
    /// now on, and only what is new is learnt.
    pub fn tell_read_ahead(&self) {
        self.sees_all.store(false, Ordering::Relaxed);
    }

    /// Says that the start begins now, if it has not: there may be no demand to tell.
    pub fn begin(&self) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        state.began.get_or_insert(now);
        state.last.get_or_insert(now);
        self.changed.notify_waiters();
    }

    /// Waits until the recording ends. Never before the first demand.
    pub async fn ended(&self) -> EndReason {
        loop {
            let changed = self.changed.notified();
            match self.outlook() {
                Outlook::Ended(reason) => return reason,
                Outlook::Idle => changed.await,
                Outlook::At(time) => {
                    // Either way the outlook is asked anew.
                    let _ = tokio::time::timeout_at(time, changed).await;
                }
            }
        }
    }

    /// Whether nothing is recorded any more.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Ends the recording unless it has ended, and gives what was recorded. The same every time.
    pub fn finish(&self) -> Recording {
        let mut state = lock(&self.state);
        let end = self.end(&mut state, EndReason::Finished);
        let mut layers: Vec<LayerDemands> = self
            .layers
            .iter()
            .map(|bits| LayerDemands {
                diff_id: bits.layer.index.diff_id,
                observed: bits.layer.observed && self.sees_all.load(Ordering::Relaxed),
                touches: Vec::new(),
            })
            .collect();
        for noted in &state.touches {
            layers[self.layers[noted.layer].first].touches.push(Touch {
                plain: noted.plain.clone(),
                ms: noted.ms,
            });
        }
        let doubles = self.layers.iter().enumerate().map(|(at, bits)| at != bits.first);
        let layers = layers.into_iter().zip(doubles);
        let layers = layers.filter_map(|(layer, double)| (!double).then_some(layer));
        Recording::new(self.image_id, end, layers.collect())
    }

    fn note(&self, layer: usize, plain: Range<u64>, new_len: u64) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if let Some(reason) = self.due(&state, now) {
            self.end(&mut state, reason);
        }
        if state.end.is_some() {
            return;
        }
        let began = *state.began.get_or_insert(now);
        state.last = Some(now);
        let ms = u32::try_from((now - began).as_millis()).unwrap_or(u32::MAX);
        state.touches.push(Noted { layer, plain, ms });
        state.plain_len += new_len;
        if state.plain_len > self.plain_cap || state.touches.len() > MOST_TOUCHES {
            self.end(&mut state, EndReason::TooMuch);
        }
        if state.touches.len() == 1 {
            self.changed.notify_waiters();
        }
    }

    /// Why the recording should have ended by `now`.
    fn due(&self, state: &State, now: Instant) -> Option<EndReason> {
        let (began, last) = (state.began?, state.last?);
        if now >= began + self.options.longest {
            return Some(EndReason::TooLong);
        }
        let busy = self.waiting.load(Ordering::Relaxed) > 0;
        (!busy && now >= last + self.options.quiet).then_some(EndReason::Quiet)
    }

    fn outlook(&self) -> Outlook {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if let Some(reason) = state.end.or_else(|| self.due(&state, now)) {
            return Outlook::Ended(self.end(&mut state, reason));
        }
        let (Some(began), Some(last)) = (state.began, state.last) else {
            return Outlook::Idle;
        };
        // Later than now even while readers wait: then the quiet time has yet to begin.
        let quiet = match last + self.options.quiet {
            quiet if quiet > now => quiet,
            _ => now + self.options.quiet,
        };
        Outlook::At(quiet.min(began + self.options.longest))
    }

    /// Ends with `reason` unless it has ended; gives the reason that counts.
    fn end(&self, state: &mut State, reason: EndReason) -> EndReason {
        let reason = *state.end.get_or_insert(reason);
        self.ended.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
        reason
    }
}

impl ReadObserver for Recorder {
    fn touched(&self, layer: usize, plain: &Range<u64>, _: Range<usize>) {
        self.record(layer, plain.clone());
    }

    fn begin_wait(self: Arc<Self>) -> Option<Box<dyn Send + Sync>> {
        (!self.is_ended()).then(|| Box::new(self.waiting()) as _)
    }
}

/// A reader that waits for bytes ([`Recorder::waiting`]).
#[derive(Debug)]
pub struct Waiting {
    recorder: Arc<Recorder>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.recorder.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.recorder.is_ended() {
            return;
        }
        let mut state = lock(&self.recorder.state);
        if state.began.is_some() {
            state.last = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
