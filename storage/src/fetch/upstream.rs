//! One upstream: its board, how much of it may be under way, and how quick it is.
//!
//! [`Upstream::request`] puts wishes on the board and starts transfers for them; a transfer that ends starts the next. So there is no task that
//! schedules: whoever changes something also sees to it that the best work is under way. Several layers, images and readers share one
//! upstream, and its lock is held for map operations only.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::board::{Board, Course, Key, Outcome, Ticket, Wish};
use super::latency::Latency;
use super::pace::Pace;
use super::transfer::Transfer;
use super::{Lane, Source};
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// What a reader gets for a chunk.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Somebody fetches it.
    Fetched(Ticket),
    /// It has arrived since the reader looked.
    Kept,
}

/// Everything that is asked of one host.
#[derive(Debug)]
pub(crate) struct Upstream {
    name: Arc<str>,
    /// The moment that times of [`Pace`] count from.
    epoch: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    board: Board,
    under_way: usize,
    pace: Pace,
    latency: Latency,
}

impl Upstream {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            epoch: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// The host.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Claims the chunks that a reader waits for, in the same order, and has `ahead` fetched in its lane where nobody has it yet.
    pub(crate) fn request(
        self: &Arc<Self>,
        source: &Arc<Source>,
        demanded: &[usize],
        ahead: &[(usize, Lane)],
    ) -> Vec<Claim> {
        let counters = &source.fetcher.counters;
        let mut state = lock(&self.state);
        let mut claim = |chunk: &usize| {
            // The cache has a chunk before its flight ends, so looking under the lock misses nothing.
            if !state.board.has(source.layer, *chunk) && source.keeps(*chunk) {
                return Claim::Kept;
            }
            match state.board.want(source, *chunk, Lane::Demand) {
                Wish::New(ticket) => Claim::Fetched(ticket),
                Wish::Joined(ticket) => {
                    counters.add_joined();
                    Claim::Fetched(ticket)
                }
            }
        };
        let claims = demanded.iter().map(&mut claim).collect();
        for (chunk, lane) in ahead {
            if state.board.has(source.layer, *chunk) || !source.may_keep(*chunk) {
                state.board.want(source, *chunk, *lane);
            }
        }
        self.start_transfers(&mut state);
        claims
    }

    /// Forgets what waits for a layer in the lanes from `first` on.
    pub(crate) fn forget(&self, layer: u64, first: Lane) {
        lock(&self.state).board.forget(layer, first);
    }

    /// Flights that wait in a lane.
    pub(crate) fn waiting(&self, lane: Lane) -> usize {
        lock(&self.state).board.waiting(lane)
    }

    fn start_transfers(self: &Arc<Self>, state: &mut State) {
        loop {
            let last = if state.pace.admits(state.under_way, false) {
                Lane::Fill
            } else if state.pace.admits(state.under_way, true) {
                Lane::Demand
            } else {
                return;
            };
            let Some((batch, course)) = state.board.take(last) else {
                return;
            };
            state.under_way += 1;
            let fetcher = &batch.source.fetcher;
            fetcher.counters.add_request(course.lane);
            let transfer = Transfer::new(self.clone(), batch, course, state.latency.late_after());
            tokio::spawn(transfer.run());
        }
    }

    /// Notes how long a first byte took.
    pub(super) fn answered(&self, first_byte: Duration) {
        lock(&self.state).latency.note(first_byte);
    }

    /// Takes the right to a second request for a late range.
    pub(super) fn take_hedge(&self) -> bool {
        lock(&self.state).latency.take_hedge()
    }

    /// Ends a transfer that brought `bytes`, and starts what waits.
    pub(super) fn ended(self: &Arc<Self>, bytes: u64, error: Option<&Error>) {
        let mut state = lock(&self.state);
        state.under_way -= 1;
        match error {
            Some(error) if error.kind() == ErrorKind::Unavailable => state.pace.refused(),
            _ => {
                let busy = Lane::ALL.iter().any(|lane| state.board.waiting(*lane) > 0);
                state.pace.ended(self.epoch.elapsed(), bytes, busy);
            }
        }
        self.start_transfers(&mut state);
    }

    /// Whether somebody wants the chunk.
    pub(super) fn is_awaited(&self, key: Key) -> bool {
        lock(&self.state).board.has(key.layer, key.chunk)
    }

    /// Ends the flight of a chunk; see [`Board::land`].
    pub(super) fn land(&self, key: Key, course: &Course, outcome: Outcome) -> Option<Lane> {
        lock(&self.state).board.land(key, course, outcome)
    }
}
