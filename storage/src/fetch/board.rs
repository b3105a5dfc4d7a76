//! Which chunks are wanted of one upstream, how urgently, and who waits for them.
//!
//! A chunk is wanted at most once: its [`Flight`] is *queued* in a lane until a transfer takes it, and *moving* from then on. Everybody
//! who wants it holds a [`Ticket`] of the same flight. A more urgent wish moves a queued flight to the better lane. When a reader
//! waits for a chunk that a transfer for less urgent work will reach much later, the flight is taken away from that transfer and queued
//! again as demand; whichever brings it first lands it.
//!
//! | state | becomes | when |
//! |---|---|---|
//! | – | queued | somebody wants the chunk |
//! | queued | queued, more urgent | somebody wants it more urgently |
//! | queued | moving | a transfer takes it |
//! | moving | queued as demand | a reader waits and the transfer is far from it, or silent |
//! | moving | queued | its transfer is given up, because it is silent and a reader waits |
//! | queued, moving | – | it lands with bytes, by whichever transfer |
//! | moving | – | its own transfer fails |
//! | queued | – | its layer is closed |
//!
//! This is a plain data structure without lock, clock or I/O. Landing forgets the flight: a failure is not remembered, and bytes are kept
//! by the cache, which has them *before* the flight lands. So whoever looks at the cache after finding no flight misses nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::coalesce::{self, Batch};
use super::decode::Urgency;
use super::{Lane, Source};
use crate::{Error, ErrorKind};

/// Stored bytes that a transfer may be away from a chunk before a reader that waits for it gets a transfer of its own: at
/// 10 MB/s this is about a round trip.
const SPLIT_DISTANCE: u64 = 256 << 10;

/// Plain bytes of a chunk, or why there are none.
pub(crate) type Outcome = Result<Bytes, Error>;

/// Which chunk of which layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) layer: u64,
    pub(super) chunk: usize,
}

impl Key {
    /// Another chunk of the same layer.
    pub(super) fn of(self, chunk: usize) -> Self {
        Self { chunk, ..self }
    }
}

/// The right to wait for a chunk.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Ticket {
    /// Waits until the chunk lands.
    pub(crate) async fn outcome(mut self) -> Outcome {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => match &*outcome {
                Some(outcome) => outcome.clone(),
                None => Err(interrupted()),
            },
            Err(_) => Err(interrupted()),
        }
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Unavailable, "the fetch of a chunk was interrupted")
}

/// One range under way.
#[derive(Debug)]
pub(super) struct Course {
    id: u64,
    pub(super) lane: Lane,
    /// Stored offset up to which bytes have arrived.
    reached: AtomicU64,
    /// No bytes have come for longer than usual.
    silent: AtomicBool,
}

impl Course {
    /// Tells how far the bytes have come.
    pub(super) fn reach(&self, stored_off: u64) {
        self.reached.store(stored_off, Ordering::Relaxed);
    }

    /// Whether all bytes before a stored offset have arrived.
    pub(super) fn has_arrived(&self, stored_off: u64) -> bool {
        self.reached.load(Ordering::Relaxed) >= stored_off
    }

    /// Tells whether bytes are coming.
    pub(super) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    fn is_far_from(&self, stored_off: u64) -> bool {
        stored_off.saturating_sub(self.reached.load(Ordering::Relaxed)) > SPLIT_DISTANCE
    }
}

#[derive(Debug)]
enum Phase {
    /// Its turn in the queue of its lane.
    Queued(u64),
    Moving(Arc<Course>),
}

#[derive(Debug)]
struct Flight {
    source: Arc<Source>,
    urgency: Arc<Urgency>,
    phase: Phase,
    outcome: watch::Sender<Option<Outcome>>,
}

/// What became of a wish.
#[derive(Debug)]
pub(super) enum Wish {
    /// Nobody else wanted the chunk.
    New(Ticket),
    /// Somebody did.
    Joined(Ticket),
}

/// All flights of one upstream.
#[derive(Debug, Default)]
pub(super) struct Board {
    flights: HashMap<Key, Flight>,
    queues: [BTreeMap<u64, Key>; Lane::COUNT],
    next_turn: u64,
    next_course: u64,
}

impl Board {
    /// Asks for a chunk in a lane.
    pub(super) fn want(&mut self, source: &Arc<Source>, chunk: usize, lane: Lane) -> Wish {
        let key = Key {
            layer: source.layer,
            chunk,
        };
        if let Some(flight) = self.flights.get(&key) {
            let ticket = Ticket {
                outcome: flight.outcome.subscribe(),
            };
            if lane < flight.urgency.lane() {
                self.hurry(key, lane);
            }
            return Wish::Joined(ticket);
        }
        let (outcome, ticket) = watch::channel(None);
        let turn = self.queue(key, lane);
        let flight = Flight {
            source: source.clone(),
            urgency: Urgency::new(lane),
            phase: Phase::Queued(turn),
            outcome,
        };
        self.flights.insert(key, flight);
        Wish::New(Ticket { outcome: ticket })
    }

    /// Whether somebody wants the chunk already.
    pub(super) fn has(&self, layer: u64, chunk: usize) -> bool {
        self.flights.contains_key(&Key { layer, chunk })
    }

    /// How urgently a chunk is wanted, now and later; `None` when nobody wants it.
    pub(super) fn urgency(&self, key: Key) -> Option<Arc<Urgency>> {
        self.flights.get(&key).map(|flight| flight.urgency.clone())
    }

    /// Whether the chunk waits for a transfer.
    pub(super) fn is_queued(&self, layer: u64, chunk: usize) -> bool {
        let flight = self.flights.get(&Key { layer, chunk });
        flight.is_some_and(|flight| matches!(flight.phase, Phase::Queued(_)))
    }

    /// Flights that wait in a lane.
    pub(super) fn waiting(&self, lane: Lane) -> usize {
        self.queues[lane.at()].len()
    }

    fn queue(&mut self, key: Key, lane: Lane) -> u64 {
        let turn = self.next_turn;
        self.next_turn += 1;
        self.queues[lane.at()].insert(turn, key);
        turn
    }

    /// Moves a flight to a better lane.
    fn hurry(&mut self, key: Key, lane: Lane) {
        let Some(flight) = self.flights.get_mut(&key) else {
            return;
        };
        let queued = match &flight.phase {
            Phase::Queued(turn) => {
                self.queues[flight.urgency.lane().at()].remove(turn);
                true
            }
            Phase::Moving(course) => {
                let stored_off = flight.source.chunk(key.chunk).stored_off;
                let is_late = course.is_far_from(stored_off) || course.is_silent();
                lane == Lane::Demand && course.lane != Lane::Demand && is_late
            }
        };
        flight.urgency.raise(lane);
        if queued {
            let turn = self.queue(key, lane);
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.phase = Phase::Queued(turn);
            }
        }
    }

    /// The range to fetch next among the lanes up to `last`: the flight that is first in line, and others that travel well with it; `long` as for
    /// [`coalesce::join`].
    pub(super) fn take(&mut self, last: Lane, long: u64) -> Option<(Batch, Arc<Course>)> {
        let lanes = Lane::ALL.iter().take_while(|lane| **lane <= last);
        let first = lanes
            .filter_map(|lane| self.queues[lane.at()].first_key_value())
            .next()?;
        let key = *first.1;
        let flight = self.flights.get(&key)?;
        let (source, lane) = (flight.source.clone(), flight.urgency.lane());
        let batch = coalesce::join(self, &source, key.chunk, lane, long);
        let course = Arc::new(Course {
            id: self.next_course,
            lane,
            reached: AtomicU64::new(batch.stored.start),
            silent: AtomicBool::new(false),
        });
        self.next_course += 1;
        for chunk in &batch.chunks {
            self.set_moving(&source, *chunk, &course);
        }
        Some((batch, course))
    }

    /// A chunk that was queued, or one that merely lies between two others, moves with `course`.
    fn set_moving(&mut self, source: &Arc<Source>, chunk: usize, course: &Arc<Course>) {
        let key = Key {
            layer: source.layer,
            chunk,
        };
        if !self.flights.contains_key(&key) {
            // Its bytes travel anyway.
            self.want(source, chunk, Lane::Fill);
        }
        if let Some(flight) = self.flights.get_mut(&key) {
            if let Phase::Queued(turn) = flight.phase {
                self.queues[flight.urgency.lane().at()].remove(&turn);
            }
            flight.phase = Phase::Moving(course.clone());
        }
    }

    /// Whether the chunk still moves with `course`.
    fn moves_with(&self, key: Key, course: &Course) -> bool {
        let flight = self.flights.get(&key);
        flight.is_some_and(|flight| matches!(&flight.phase, Phase::Moving(own) if own.id == course.id))
    }

    /// Whether a reader waits for one of `chunks` that still move with `course`.
    pub(super) fn delays_a_reader(&self, layer: u64, chunks: &[usize], course: &Course) -> bool {
        chunks.iter().any(|chunk| {
            let key = Key { layer, chunk: *chunk };
            let flight = self.flights.get(&key);
            flight.is_some_and(|flight| flight.urgency.lane() == Lane::Demand) && self.moves_with(key, course)
        })
    }

    /// Queues those of `chunks` again that still move with `course`, each in its lane.
    pub(super) fn give_up(&mut self, layer: u64, chunks: &[usize], course: &Course) {
        for chunk in chunks {
            let key = Key { layer, chunk: *chunk };
            if !self.moves_with(key, course) {
                continue;
            }
            let Some(lane) = self.flights.get(&key).map(|flight| flight.urgency.lane()) else {
                continue;
            };
            let turn = self.queue(key, lane);
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.phase = Phase::Queued(turn);
            }
        }
    }

    /// Ends the flight of a chunk. Bytes are welcome from any transfer, a failure only from its own. The lane that the flight had in
    /// the end, when it ended.
    pub(super) fn land(&mut self, key: Key, course: &Course, outcome: Outcome) -> Option<Lane> {
        if outcome.is_err() && !self.moves_with(key, course) {
            return None;
        }
        let flight = self.flights.remove(&key)?;
        if let Phase::Queued(turn) = flight.phase {
            self.queues[flight.urgency.lane().at()].remove(&turn);
        }
        flight.outcome.send_replace(Some(outcome));
        Some(flight.urgency.lane())
    }

    /// Forgets what waits for a layer in the lanes from `first` on. What is under way goes on.
    pub(super) fn forget(&mut self, layer: u64, first: Lane) {
        for queue in &mut self.queues[first.at()..] {
            let flights = &mut self.flights;
            queue.retain(|_, key| {
                let stays = key.layer != layer;
                if !stays {
                    flights.remove(key);
                }
                stays
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::coalesce::{GAP, LONG_GAP, RANGE_LEN};
    use super::super::pace::LONG_RANGE;
    use super::*;
    use crate::Fetcher;
    use crate::testing::SampleLayer;

    /// A layer of `chunks` incompressible chunks of `len` bytes with `gap` bytes between them.
    fn source(chunks: usize, len: usize, gap: usize) -> Arc<Source> {
        let sample = SampleLayer::new(chunks, len, gap);
        Fetcher::new(Arc::default()).source(&sample.layer, None)
    }

    fn want(board: &mut Board, source: &Arc<Source>, chunks: &[usize], lane: Lane) -> Vec<Ticket> {
        let wish = |chunk: &usize| match board.want(source, *chunk, lane) {
            Wish::New(ticket) | Wish::Joined(ticket) => ticket,
        };
        chunks.iter().map(wish).collect()
    }

    fn take(board: &mut Board) -> Option<(Vec<usize>, Arc<Course>)> {
        board
            .take(Lane::Fill, LONG_RANGE)
            .map(|(batch, course)| (batch.chunks, course))
    }

    fn key(source: &Source, chunk: usize) -> Key {
        Key {
            layer: source.layer,
            chunk,
        }
    }

    fn failure() -> Outcome {
        Err(Error::new(ErrorKind::Unavailable, "no"))
    }

    #[tokio::test]
    async fn lanes_are_strict_and_a_wish_can_be_hurried() {
        let source = source(60, 1000, GAP as usize + 1);
        let mut board = Board::default();
        want(&mut board, &source, &[50], Lane::Fill);
        want(&mut board, &source, &[40, 41], Lane::Profile);
        want(&mut board, &source, &[30], Lane::Readahead);
        want(&mut board, &source, &[20], Lane::Demand);
        want(&mut board, &source, &[50], Lane::Demand);
        want(&mut board, &source, &[20], Lane::Fill);
        let mut order = Vec::new();
        while let Some((chunks, _)) = take(&mut board) {
            order.extend(chunks);
        }
        assert_eq!(order, [20, 50, 30, 40, 41]);
    }

    #[tokio::test]
    async fn only_urgent_lanes_are_taken_when_asked() {
        let source = source(10, 1000, GAP as usize + 1);
        let mut board = Board::default();
        want(&mut board, &source, &[3], Lane::Profile);
        assert!(board.take(Lane::Demand, LONG_RANGE).is_none());
        assert!(board.take(Lane::Profile, LONG_RANGE).is_some());
    }

    #[tokio::test]
    async fn neighbours_travel_together_with_what_lies_between() {
        let source = source(20, 1000, 0);
        let mut board = Board::default();
        want(&mut board, &source, &[8, 4, 6, 7], Lane::Profile);
        let (batch, course) = board.take(Lane::Fill, LONG_RANGE).expect("a batch");
        assert_eq!(batch.chunks, [4, 5, 6, 7, 8]);
        assert_eq!(
            batch.stored,
            source.chunk(4).stored_off..source.chunk(8).stored_range().end
        );
        assert!(
            board.moves_with(key(&source, 5), &course),
            "what lies between is kept"
        );
        assert!(take(&mut board).is_none());
    }

    #[tokio::test]
    async fn a_demanded_chunk_comes_first_in_its_range() {
        let source = source(20, 1000, 0);
        let mut board = Board::default();
        want(&mut board, &source, &[5, 9, 10], Lane::Profile);
        want(&mut board, &source, &[8], Lane::Demand);
        assert_eq!(take(&mut board).expect("a range").0, [8, 9, 10]);
        assert_eq!(take(&mut board).expect("a range").0, [5]);
    }

    #[tokio::test]
    async fn ranges_are_bounded_by_gap_and_length() {
        for (lane, most_gap, most_len) in [(Lane::Demand, GAP, RANGE_LEN), (Lane::Fill, LONG_GAP, LONG_RANGE)]
        {
            let far = source(4, 1000, most_gap as usize + 1);
            let mut board = Board::default();
            want(&mut board, &far, &[0, 1], lane);
            assert_eq!(take(&mut board).expect("a range").0, [0]);
            assert_eq!(take(&mut board).expect("a range").0, [1]);
            let half = most_len as usize / 2 - 1000;
            let long = source(4, half, 0);
            let mut board = Board::default();
            want(&mut board, &long, &[0, 1, 2, 3], lane);
            assert_eq!(take(&mut board).expect("a range").0, [0, 1]);
            assert_eq!(take(&mut board).expect("a range").0, [2, 3]);
        }
    }

    #[tokio::test]
    async fn what_lies_between_the_chunks_of_a_profile_is_left_out() {
        let source = source(4, 1000, GAP as usize + 1);
        for (follows, taken) in [(true, vec![0]), (false, vec![0, 1])] {
            source.follows_profile.store(follows, Ordering::Relaxed);
            let mut board = Board::default();
            want(&mut board, &source, &[0, 1], Lane::Profile);
            assert_eq!(take(&mut board).expect("a range").0, taken);
        }
    }

    #[tokio::test]
    async fn a_waiting_reader_takes_a_far_chunk_from_a_lesser_transfer() {
        let source = source(20, 40_000, 0);
        let mut board = Board::default();
        want(&mut board, &source, &(0..20).collect::<Vec<_>>(), Lane::Profile);
        let (chunks, lesser) = take(&mut board).expect("a range");
        assert_eq!(chunks.len(), 20);
        want(&mut board, &source, &[1], Lane::Demand);
        assert!(take(&mut board).is_none(), "near enough to wait for");
        let mut ticket = want(&mut board, &source, &[15], Lane::Demand).remove(0);
        let (chunks, own) = take(&mut board).expect("a transfer of its own");
        assert_eq!((chunks, own.lane), (vec![15], Lane::Demand));
        // The lesser transfer fails, which does not matter to the reader; its own brings the bytes.
        assert_eq!(board.land(key(&source, 15), &lesser, failure()), None);
        assert_eq!(
            board.land(key(&source, 15), &own, Ok(Bytes::from_static(b"x"))),
            Some(Lane::Demand)
        );
        assert!(ticket.outcome.borrow_and_update().is_some());
        assert_eq!(
            board.land(key(&source, 15), &lesser, Ok(Bytes::new())),
            None,
            "landed already"
        );
    }

    #[tokio::test]
    async fn bytes_are_welcome_from_whoever_brings_them() {
        let source = source(20, 40_000, 0);
        let mut board = Board::default();
        want(&mut board, &source, &(0..20).collect::<Vec<_>>(), Lane::Fill);
        let (_, lesser) = take(&mut board).expect("a range");
        want(&mut board, &source, &[19], Lane::Demand);
        assert_eq!(
            board.land(key(&source, 19), &lesser, Ok(Bytes::new())),
            Some(Lane::Demand)
        );
        assert!(take(&mut board).is_none(), "nothing is left in the queue");
    }

    #[tokio::test]
    async fn a_failure_is_told_once_and_not_remembered() {
        let source = source(2, 1000, 0);
        let mut board = Board::default();
        let tickets =
            [Lane::Demand, Lane::Demand].map(|lane| want(&mut board, &source, &[0], lane).remove(0));
        let (_, course) = take(&mut board).expect("a range");
        assert!(board.land(key(&source, 0), &course, failure()).is_some());
        for ticket in tickets {
            assert!(ticket.outcome().await.expect_err("failed").is_temporary());
        }
        assert!(matches!(board.want(&source, 0, Lane::Demand), Wish::New(_)));
    }

    #[tokio::test]
    async fn a_closed_layer_is_forgotten_but_for_its_readers() {
        let source = source(20, 1000, GAP as usize + 1);
        let mut board = Board::default();
        want(&mut board, &source, &[1, 2], Lane::Profile);
        want(&mut board, &source, &[3], Lane::Demand);
        board.forget(source.layer, Lane::Readahead);
        assert_eq!(
            (board.waiting(Lane::Profile), board.waiting(Lane::Demand)),
            (0, 1)
        );
        assert_eq!(take(&mut board).expect("the reader's").0, [3]);
        let ticket = want(&mut board, &source, &[4], Lane::Demand).remove(0);
        drop(board);
        assert!(ticket.outcome().await.expect_err("dropped").is_temporary());
    }
}
