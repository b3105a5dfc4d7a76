//! What the readers of a layer will want next.
//!
//! Readers leave tracks: chunks touched one after the other. A track that goes on forward is a sequential reader, and its window ahead
//! is half as long as the track, so that what is fetched in vain when it stops is less than what it has read; a long track doubles it with every
//! step up to a bound, so that whoever reads everything soon waits for nothing. Several tracks are kept, because
//! programs read several files at once and a loader walks two sections of a library side by side.
//!
//! Other touches come in clusters: modules of one package, functions of one library. So chunks around a touch are fetched too, the more of
//! them the more chunks nearby were touched already; of a touch that stands alone only the next one is likely to follow. These are guesses, and they
//! are bounded by how many turn out right: what was fetched in vain never exceeds what was touched, and a little to begin with. The numbers come from replaying recorded starts of a PyTorch
//! program, a web server and a small function against many of them: these leave one wait in four at 1.3 to 1.6 times the bytes, see
//! `docs/decisions/0006-fetching-ahead.md`.
//!
//! When more than half of a layer, or a third of an image, was touched by readers on a track, the rest will be too: it is asked for at once, in the lane of
//! fills, unless the layer is to stay lazy. A layer that is shorter than it is worth to ask for its parts is asked for when it is touched. See [`WholeWhen`].
//!
//! A chunk that comes for another reason, such as a profile, tells less. Its touch keeps a track up, so that the track goes on behind it, and only lengthens one that is long already.
//! Once a track is long somebody reads everything of the image. Tracks in its other layers grow faster then, and its files are not looked into any more: what each leads to is
//! read anyway, and fetching it out of turn breaks one long range into many short ones.
//!
//! Only the first touch of a chunk counts, whether it was here already or not.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Lane, LayerChunks};
use crate::sync::lock;

/// Tracks that are remembered: more than a busy program reads side by side.
const TRACKS: usize = 32;
/// Chunks that a reader may leap over and still be on its track: headers and padding between files are never touched.
const LEAP: usize = 1;
/// Window that a long track may have at once, in plain bytes: about 16 MiB stored, so that a lost packet that is noticed only by a timeout of
/// 200 ms does not stop a reader at 80 MB/s.
const LONG_WINDOW: u64 = 32 << 20;
/// Window of a sequential reader at its longest, in plain bytes. What is fetched waits on the disk and not in memory, and where the bytes compress
/// well the reader is slower than the link: it takes this much to use that time for the stretches where the link is slower than the reader.
const LONGEST_WINDOW: u64 = 256 << 20;
/// Plain bytes that are asked for together once a window is long.
const PORTION: u64 = 8 << 20;
/// Steps after which a track is that of a reader of everything, and its window doubles.
const LONG_TRACK: usize = 32;
/// Steps for which one counts in an image that somebody reads everything of: its other layers are read soon.
const SWEEPING_STEPS: usize = 8;
/// How far on either side of a touch earlier touches count as near.
const REACH: usize = 24;
/// Touches nearby for each of which one more chunk is guessed behind a touch, and before it. Tracks guess forward as well.
const NEAR_PER_FORWARD: usize = 5;
const NEAR_PER_BACKWARD: usize = 3;
/// Most chunks that are guessed on either side of a touch.
const MOST_GUESSES: usize = 8;
/// Stored bytes of guesses that may be wrong before any was right.
const WRONG_BYTES: u64 = 256 << 10;
/// Wrong guesses beyond that, in percent of what was touched.
const WRONG_PERCENT: u64 = 100;

/// Share of a layer, in percent of its chunks, that readers on a track have touched when all of it is wanted. A program that reads a few files, however
/// large, leaves most of a layer alone.
const DENSE_PERCENT: usize = 50;
/// The same of an image: who reads a third of it from end to end, whichever layers that is in, comes to the others as well. Starts of images of 85 MB to 2 GB
/// read 3 to 12 % of their chunks on a track.
const IMAGE_DENSE_PERCENT: usize = 33;
/// Chunks of a layer of which that can be told: of fewer, the window of a track is the rest anyway.
const DENSE_AT_LEAST: usize = 16;

/// When all of a layer is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WholeWhen {
    /// Never.
    Never,
    /// When its readers turn out to read it from end to end.
    #[default]
    Dense,
    /// When it is touched.
    Touched,
}

/// How much of an image readers on a track have touched, in chunks of all its layers.
#[derive(Debug)]
pub(crate) struct Reading {
    chunks: usize,
    on_track: AtomicUsize,
    /// Some track was that of a reader of everything. Starts leave none: the longest of PyTorch's had 16 steps.
    swept: AtomicBool,
}

impl Reading {
    /// That of an image with so many chunks.
    pub(crate) fn new(chunks: usize) -> Arc<Self> {
        Arc::new(Self {
            chunks,
            on_track: AtomicUsize::new(0),
            swept: AtomicBool::new(false),
        })
    }

    fn add(&self, chunks: usize, on_long_track: bool) {
        self.on_track.fetch_add(chunks, Ordering::Relaxed);
        self.swept.fetch_or(on_long_track, Ordering::Relaxed);
    }

    fn is_swept(&self) -> bool {
        self.swept.load(Ordering::Relaxed)
    }

    fn is_dense(&self) -> bool {
        self.on_track.load(Ordering::Relaxed) * 100 > self.chunks * IMAGE_DENSE_PERCENT
    }
}

/// What was touched of one layer, and what follows from it.
#[derive(Debug)]
pub(crate) struct Foresight {
    index: LayerChunks,
    windows: Windows,
    state: Mutex<State>,
}

/// Lengths in chunks of this layer.
#[derive(Clone, Copy, Debug)]
struct Windows {
    long: usize,
    longest: usize,
    portion: usize,
}

#[derive(Debug)]
struct State {
    touched: Bits,
    expected: Bits,
    guessed: Bits,
    /// Stored bytes that bound the guesses: what was touched, and what was guessed and not touched so far.
    touched_bytes: u64,
    wrong_bytes: u64,
    /// The one used last comes last.
    tracks: VecDeque<Track>,
    /// Chunks touched for the first time by a reader on a track.
    on_track: usize,
    whole_when: WholeWhen,
    image: Arc<Reading>,
    /// The rest has been asked for.
    is_filling: bool,
}

/// One sequence of touches.
#[derive(Clone, Copy, Debug)]
struct Track {
    /// The chunk touched last.
    last: usize,
    /// First chunk that has not been asked for ahead.
    ahead: usize,
    /// How often it went on.
    steps: usize,
}

impl Foresight {
    pub(crate) fn new(index: LayerChunks) -> Self {
        let count = index.chunks.chunks().len();
        let chunk_len = index.chunks.plain_len() / count.max(1) as u64;
        let in_chunks = |bytes: u64| (bytes / chunk_len.max(1)).max(1) as usize;
        let state = State {
            touched: Bits::new(count),
            expected: Bits::new(count),
            guessed: Bits::new(count),
            touched_bytes: 0,
            wrong_bytes: 0,
            tracks: VecDeque::new(),
            on_track: 0,
            whole_when: WholeWhen::default(),
            image: Reading::new(count),
            is_filling: false,
        };
        Self {
            windows: Windows {
                long: in_chunks(LONG_WINDOW),
                longest: in_chunks(LONGEST_WINDOW),
                portion: in_chunks(PORTION),
            },
            index,
            state: Mutex::new(state),
        }
    }

    /// Says when all of the layer is wanted, and what it is part of.
    pub(crate) fn come_whole(&self, when: WholeWhen, image: Arc<Reading>) {
        let mut state = lock(&self.state);
        state.whole_when = when;
        state.image = image;
    }

    /// Says that a chunk will be fetched for another reason: its touch tells nothing new, except of a reader on a long track.
    pub(crate) fn expect(&self, chunk: usize) {
        lock(&self.state).expected.set(chunk);
    }

    /// Notes that chunks were touched, and tells what to fetch ahead.
    pub(crate) fn touch(&self, touched: Range<usize>) -> Vec<(usize, Lane)> {
        let mut state = lock(&self.state);
        let (mut first, mut tells) = (0, false);
        let mut ahead = Vec::new();
        for chunk in touched.clone() {
            if !state.touched.set(chunk) {
                continue;
            }
            first += 1;
            if !state.expected.get(chunk) {
                tells = true;
                state.guess_around(&self.index, chunk, &mut ahead);
            }
        }
        if first > 0 {
            let window = state.follow(touched, first, tells, self.windows);
            ahead.extend(window.map(|chunk| (chunk, Lane::Readahead)));
        }
        if tells {
            state.fill(&mut ahead);
        }
        ahead
    }

    /// Whether somebody reads everything of the image: what a file leads to says nothing then.
    pub(crate) fn is_swept(&self) -> bool {
        lock(&self.state).image.is_swept()
    }
}

impl Windows {
    /// The window after so many steps of a track.
    fn after(&self, steps: usize) -> usize {
        let half = 1 + steps / 2;
        let doublings = steps.saturating_sub(LONG_TRACK).min(8);
        let doubled = ((1 + steps.min(LONG_TRACK) / 2) << doublings).min(self.long);
        half.max(doubled).min(self.longest)
    }
}

impl State {
    /// Chunks around a touch that are worth a guess.
    fn guess_around(&mut self, index: &LayerChunks, chunk: usize, ahead: &mut Vec<(usize, Lane)>) {
        let stored_len = |chunk: usize| {
            index
                .chunks
                .chunks()
                .get(chunk)
                .map_or(0, |chunk| u64::from(chunk.stored_len))
        };
        self.touched_bytes += stored_len(chunk);
        if self.guessed.get(chunk) {
            self.wrong_bytes -= stored_len(chunk);
        }
        let end = self.touched.len();
        let near = chunk.saturating_sub(REACH)..(chunk + REACH + 1).min(end);
        let density = near.filter(|near| self.touched.get(*near)).count() - 1;
        let forward = (1 + density / NEAR_PER_FORWARD).min(MOST_GUESSES);
        let backward = (density / NEAR_PER_BACKWARD).min(MOST_GUESSES);
        let around =
            (chunk + 1..(chunk + 1 + forward).min(end)).chain((chunk.saturating_sub(backward)..chunk).rev());
        for guess in around {
            if self.wrong_bytes >= WRONG_BYTES + self.touched_bytes / 100 * WRONG_PERCENT {
                return;
            }
            if !self.touched.get(guess) && !self.expected.get(guess) && self.guessed.set(guess) {
                self.wrong_bytes += stored_len(guess);
                ahead.push((guess, Lane::Neighbour));
            }
        }
    }

    /// The rest of a layer, once, when all of it is wanted. What comes because of one touch travels with it.
    fn fill(&mut self, ahead: &mut Vec<(usize, Lane)>) {
        let chunks = self.touched.len();
        let is_dense = || {
            let is_own = self.on_track * 100 > chunks * DENSE_PERCENT;
            chunks >= DENSE_AT_LEAST && (is_own || self.image.is_dense())
        };
        let lane = match self.whole_when {
            _ if self.is_filling => return,
            WholeWhen::Touched => Lane::Neighbour,
            WholeWhen::Dense if is_dense() => Lane::Fill,
            WholeWhen::Dense | WholeWhen::Never => return,
        };
        self.is_filling = true;
        let rest = (0..chunks).filter(|chunk| !self.touched.get(*chunk));
        ahead.extend(rest.map(|chunk| (chunk, lane)));
    }

    fn begin_track(&mut self, touched: Range<usize>) {
        if self.tracks.len() == TRACKS {
            self.tracks.pop_front();
        }
        self.tracks.push_back(Track {
            last: touched.end - 1,
            ahead: touched.end,
            steps: 0,
        });
    }

    /// What a sequential reader that has just touched these chunks, so many of them as the first, will come to. When its touch tells nothing, a track
    /// is only kept up, unless it is long.
    fn follow(&mut self, touched: Range<usize>, first: usize, tells: bool, windows: Windows) -> Range<usize> {
        let Some(last) = touched.end.checked_sub(1) else {
            return 0..0;
        };
        let on_track = |track: &Track| touched.start <= track.last + 1 + LEAP && last > track.last;
        let Some(mut track) = self
            .tracks
            .iter()
            .rposition(on_track)
            .and_then(|at| self.tracks.remove(at))
        else {
            if tells {
                self.begin_track(touched);
            }
            return 0..0;
        };
        track.last = last;
        if !tells && !track.is_long() {
            self.tracks.push_back(track);
            return 0..0;
        }
        let hurries = self.image.is_swept() && !track.is_long();
        track.steps += if hurries { SWEEPING_STEPS } else { 1 };
        self.on_track += first;
        self.image.add(first, track.is_long());
        let window = windows.after(track.steps);
        let from = track.ahead.max(touched.end);
        let to = (touched.end + window).min(self.touched.len());
        // Asked for in halves of the window, so that ranges are long; at the end of the layer no half may be left.
        let least = window.div_ceil(2).min(windows.portion);
        let is_due = from < to && (to - from >= least || to == self.touched.len());
        if is_due {
            track.ahead = to;
        }
        self.tracks.push_back(track);
        if is_due { from..to } else { 0..0 }
    }
}

impl Track {
    /// Whether it is that of a reader of everything.
    fn is_long(&self) -> bool {
        self.steps >= LONG_TRACK
    }
}

/// A set of chunk numbers below a bound.
#[derive(Debug)]
struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    fn new(len: usize) -> Self {
        Self {
            words: vec![0; len.div_ceil(64)],
            len,
        }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, at: usize) -> bool {
        self.words
            .get(at / 64)
            .is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    /// Whether it was not in the set before.
    fn set(&mut self, at: usize) -> bool {
        let Some(word) = self.words.get_mut(at / 64).filter(|_| at < self.len) else {
            return false;
        };
        let before = *word;
        *word |= 1 << (at % 64);
        *word != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::testing::SampleLayer;

    const CHUNKS: usize = 1000;
    const CHUNK_LEN: usize = 64 << 10;

    /// A layer of incompressible chunks, so that stored and plain lengths are alike.
    fn foresight() -> Foresight {
        let sample = SampleLayer::new(CHUNKS, CHUNK_LEN, 0);
        Foresight::new(LayerChunks::from(sample.layer.index.as_ref()))
    }

    fn touch(foresight: &Foresight, chunk: usize, lane: Lane) -> Vec<usize> {
        let ahead = foresight.touch(chunk..chunk + 1).into_iter();
        ahead
            .filter(|ahead| ahead.1 == lane)
            .map(|ahead| ahead.0)
            .collect()
    }

    #[test]
    fn a_sequential_reader_is_run_ahead_of_without_gaps() {
        let foresight = foresight();
        let mut asked = Vec::new();
        let mut steps = 0;
        for chunk in 0..200 {
            let ahead = touch(&foresight, chunk, Lane::Readahead);
            steps += usize::from(!ahead.is_empty());
            assert!(ahead.iter().all(|ahead| *ahead > chunk && *ahead <= chunk + 512));
            asked.extend(ahead);
        }
        assert_eq!(asked, (2..2 + asked.len()).collect::<Vec<_>>());
        assert!(
            asked.len() > 225 && steps < 60,
            "{} in {steps} steps",
            asked.len()
        );
    }

    #[test]
    fn a_layer_that_is_read_from_end_to_end_is_wanted_whole_once() {
        let dense = foresight();
        dense.come_whole(WholeWhen::Dense, Reading::new(2 * CHUNKS));
        let filled: Vec<_> = (0..CHUNKS)
            .map(|chunk| touch(&dense, chunk, Lane::Fill))
            .filter(|filled| !filled.is_empty())
            .collect();
        assert_eq!(filled.len(), 1);
        // The first touch of a track tells nothing yet.
        assert_eq!(filled[0], (CHUNKS / 2 + 2..CHUNKS).collect::<Vec<_>>());

        let lazy = foresight();
        lazy.come_whole(WholeWhen::Never, Reading::new(CHUNKS));
        assert!((0..CHUNKS).all(|chunk| touch(&lazy, chunk, Lane::Fill).is_empty()));
        let short = foresight();
        short.come_whole(WholeWhen::Touched, Reading::new(CHUNKS));
        let rest = (0..CHUNKS).filter(|chunk| *chunk != 9);
        let asked: Bits =
            touch(&short, 9, Lane::Neighbour)
                .into_iter()
                .fold(Bits::new(CHUNKS), |mut bits, at| {
                    bits.set(at);
                    bits
                });
        assert!(rest.into_iter().all(|chunk| asked.get(chunk)) && !asked.get(9));
        assert!(touch(&short, 500, Lane::Fill).is_empty());
        let scattered = foresight();
        let touches = (0..CHUNKS).map(|at| (at * 397) % CHUNKS);
        assert!(
            touches
                .into_iter()
                .all(|chunk| touch(&scattered, chunk, Lane::Fill).is_empty())
        );
    }

    #[test]
    fn who_reads_a_third_of_an_image_is_expected_in_every_layer() {
        let image = Reading::new(2 * CHUNKS);
        let layers = [foresight(), foresight()];
        for layer in &layers {
            layer.come_whole(WholeWhen::Dense, image.clone());
        }
        let one_touch = |layer: &Foresight, chunk| touch(layer, chunk, Lane::Fill).len();
        (0..CHUNKS * 3 / 5).for_each(|chunk| _ = one_touch(&layers[0], chunk));
        assert_eq!(one_touch(&layers[1], 0), 0);
        (CHUNKS * 3 / 5..CHUNKS * 3 / 4).for_each(|chunk| _ = one_touch(&layers[0], chunk));
        assert_eq!(one_touch(&layers[1], 500), CHUNKS - 2);
    }

    #[test]
    fn a_reader_of_everything_is_known_by_a_long_track_and_run_ahead_of_in_every_layer() {
        let image = Reading::new(10 * CHUNKS);
        let layers = [foresight(), foresight()];
        for layer in &layers {
            layer.come_whole(WholeWhen::Dense, image.clone());
        }
        let longest = |layer: &Foresight, chunks: Range<usize>| {
            let windows = chunks.map(|chunk| touch(layer, chunk, Lane::Readahead).len());
            windows.max()
        };
        assert!(longest(&layers[0], 0..LONG_TRACK) < Some(LONG_TRACK / 2));
        assert!(longest(&layers[1], 0..10) < Some(4));
        assert!(!layers[1].is_swept());
        longest(&layers[0], LONG_TRACK..LONG_TRACK + 1);
        assert!(layers[1].is_swept());
        assert!(longest(&layers[1], 200..210) > Some(LONG_TRACK));
    }

    #[test]
    fn a_track_goes_on_behind_chunks_that_are_expected() {
        let foresight = foresight();
        // What is expected of a short track is known already, and makes it no longer.
        (2..60).for_each(|chunk| foresight.expect(chunk));
        let ahead: usize = (0..60)
            .map(|chunk| touch(&foresight, chunk, Lane::Readahead).len())
            .sum();
        assert_eq!(ahead, 1);
        assert_eq!(touch(&foresight, 60, Lane::Readahead), [61, 62]);
        // A long one is lengthened by whatever it passes.
        (61..100).for_each(|chunk| _ = foresight.touch(chunk..chunk + 1));
        (100..CHUNKS).for_each(|chunk| foresight.expect(chunk));
        let ahead: usize = (100..300)
            .map(|chunk| touch(&foresight, chunk, Lane::Readahead).len())
            .sum();
        assert!(ahead > 100, "{ahead}");
    }

    #[test]
    fn readers_side_by_side_have_tracks_of_their_own() {
        let foresight = foresight();
        for step in 0..20 {
            for reader in 0..8 {
                let ahead = touch(&foresight, reader * 100 + step, Lane::Readahead);
                assert!(ahead.iter().all(|ahead| ahead / 100 == reader));
                match step {
                    0 => assert!(ahead.is_empty()),
                    1 => assert_eq!(ahead, [reader * 100 + 2]),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn guesses_grow_with_what_was_touched_nearby() {
        let foresight = foresight();
        assert_eq!(touch(&foresight, 500, Lane::Neighbour), [501]);
        for near in 501..508 {
            touch(&foresight, near, Lane::Neighbour);
        }
        let dense = touch(&foresight, 520, Lane::Neighbour);
        assert_eq!(dense, [521, 522, 519, 518]);
    }

    #[test]
    fn wrong_guesses_are_bounded_and_right_ones_are_not() {
        const TOUCHED: usize = 40;
        let spread = foresight();
        // So near that more and more is guessed, and none of it right.
        let guesses = (0..TOUCHED).map(|at| touch(&spread, at * 6, Lane::Neighbour).len());
        let wrong: usize = guesses.sum();
        let most = (WRONG_BYTES as usize).div_ceil(CHUNK_LEN) + TOUCHED * WRONG_PERCENT as usize / 100;
        assert!((TOUCHED..=most + 1).contains(&wrong), "{wrong} of {most}");
        let dense = foresight();
        let mut waits = 0;
        let mut here = Bits::new(CHUNKS);
        // A cluster that is read in no order.
        for at in 0..200 {
            let chunk = 300 + (at * 77) % 200;
            waits += usize::from(!here.get(chunk));
            here.set(chunk);
            for ahead in touch(&dense, chunk, Lane::Neighbour) {
                here.set(ahead);
            }
        }
        assert!(waits < 70, "{waits}");
    }

    #[test]
    fn what_is_expected_or_touched_again_tells_nothing() {
        let foresight = foresight();
        for chunk in [7, 8, 9, 40] {
            foresight.expect(chunk);
        }
        assert!(touch(&foresight, 40, Lane::Neighbour).is_empty());
        assert!(touch(&foresight, 6, Lane::Neighbour).is_empty());
        assert!(foresight.touch(6..7).is_empty() && foresight.touch(40..41).is_empty());
        assert_eq!(touch(&foresight, 41, Lane::Neighbour), [42]);
        assert!(touch(&foresight, CHUNKS - 1, Lane::Neighbour).is_empty());
    }
}
