//! One upstream: its board, how much of it may be under way, and how quick it is.
//!
//! [`Upstream::claim`] puts wishes on the board and starts transfers for them; a transfer that ends starts the next. So there is no task that
//! schedules: whoever changes something also sees to it that the best work is under way. Several layers, images and readers share one
//! upstream, and its lock is held for map operations only.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::board::{Board, Course, Key, Outcome, Ticket, Wish};
use super::coalesce::Batch;
use super::decode::Urgency;
use super::latency::Latency;
use super::pace::{Pace, UnderWay};
use super::transfer::Transfer;
use super::{Lane, Source};
use crate::sync::lock;
use crate::{Error, ErrorKind, Link};

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
    /// Wishes may come from threads outside the runtime.
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    board: Board,
    under_way: UnderWay,
    /// Somebody is starting transfers, and looks again after each.
    starting: bool,
    pace: Pace,
    latency: Latency,
}

impl State {
    fn admits(&self, demanded: bool) -> bool {
        self.pace.admits(self.under_way, demanded)
    }

    fn claim(&mut self, source: &Arc<Source>, chunks: &[usize], lane: Lane) -> Vec<Claim> {
        let claim = |chunk: &usize| {
            // The cache has a chunk before its flight ends, so looking under the lock misses nothing.
            if !self.board.has(source.layer, *chunk) && source.keeps(*chunk) {
                return Claim::Kept;
            }
            match self.board.want(source, *chunk, lane) {
                Wish::New(ticket) => Claim::Fetched(ticket),
                Wish::Joined(ticket) => {
                    source.fetcher.counters.add_joined();
                    Claim::Fetched(ticket)
                }
            }
        };
        chunks.iter().map(claim).collect()
    }

    fn want(&mut self, source: &Arc<Source>, chunks: &[(usize, Lane)]) {
        for (chunk, lane) in chunks {
            if self.board.has(source.layer, *chunk) || !source.may_keep(*chunk) {
                self.board.want(source, *chunk, *lane);
            }
        }
    }

    /// The best range that may be under way now.
    fn take(&mut self) -> Option<(Batch, Arc<Course>)> {
        let last = if self.admits(false) {
            Lane::Fill
        } else if self.admits(true) {
            Lane::Demand
        } else {
            return None;
        };
        let (batch, course) = self.board.take(last, self.pace.range_len())?;
        self.under_way.ranges += 1;
        self.under_way.bytes += batch.stored.end - batch.stored.start;
        Some((batch, course))
    }
}

impl Upstream {
    pub(super) fn new(name: Arc<str>, runtime: Handle) -> Self {
        Self {
            name,
            runtime,
            epoch: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// What was measured of it.
    pub(super) fn link(&self) -> Link {
        let state = lock(&self.state);
        Link {
            rate: state.pace.rate(),
            first_byte: state.latency.mean(),
        }
    }

    /// The host.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Claims the chunks that a reader waits for, in the same order, and has `ahead` fetched in its lanes where nobody has it yet: together, so
    /// that they can travel together.
    pub(crate) fn demand(
        self: &Arc<Self>,
        source: &Arc<Source>,
        chunks: &[usize],
        ahead: &[(usize, Lane)],
    ) -> Vec<Claim> {
        let mut state = lock(&self.state);
        let claims = state.claim(source, chunks, Lane::Demand);
        state.want(source, ahead);
        drop(state);
        self.start();
        claims
    }

    /// Claims chunks in a lane, in the same order.
    pub(crate) fn claim(self: &Arc<Self>, source: &Arc<Source>, chunks: &[usize], lane: Lane) -> Vec<Claim> {
        let claims = lock(&self.state).claim(source, chunks, lane);
        self.start();
        claims
    }

    /// Has chunks fetched where nobody has them yet.
    pub(crate) fn want(self: &Arc<Self>, source: &Arc<Source>, chunks: &[(usize, Lane)]) {
        lock(&self.state).want(source, chunks);
        self.start();
    }

    /// Queues a chunk where nobody has it yet, without starting anything: more may follow that travels with it.
    pub(crate) fn queue(&self, source: &Arc<Source>, chunk: usize, lane: Lane) {
        lock(&self.state).want(source, &[(chunk, lane)]);
    }

    /// Starts what is queued, as far as the pace allows.
    ///
    /// A runtime that has ended drops a transfer at once, and the transfer then comes back here. So no lock is held meanwhile, and whoever
    /// comes while transfers are being started leaves the rest to the one who does it.
    pub(crate) fn start(self: &Arc<Self>) {
        if std::mem::replace(&mut lock(&self.state).starting, true) {
            return;
        }
        while let Some(transfer) = self.next_transfer() {
            self.runtime.spawn(transfer.run());
        }
    }

    fn next_transfer(self: &Arc<Self>) -> Option<Transfer> {
        let taken = {
            let mut state = lock(&self.state);
            let taken = state.take();
            state.starting = taken.is_some();
            taken
        };
        let (batch, course) = taken?;
        batch.source.fetcher.counters.add_request(course.lane);
        Some(Transfer::new(self.clone(), batch, course))
    }

    /// Forgets what waits for a layer in the lanes from `first` on.
    pub(crate) fn forget(&self, layer: u64, first: Lane) {
        lock(&self.state).board.forget(layer, first);
    }

    /// Flights that wait in a lane.
    pub(crate) fn waiting(&self, lane: Lane) -> usize {
        lock(&self.state).board.waiting(lane)
    }

    /// Notes how long a first byte took.
    pub(super) fn answered(&self, first_byte: Duration) {
        let mut state = lock(&self.state);
        state.latency.note(first_byte);
        state.pace.answered(first_byte);
    }

    /// Notes how long a range that nobody waited for took.
    pub(super) fn took(&self, stored_len: u64, time: Duration) {
        lock(&self.state).pace.took(stored_len, time);
    }

    /// The wait for a first byte after which a second request is worth it.
    pub(super) fn late_after(&self) -> Duration {
        lock(&self.state).latency.late_after()
    }

    /// The pause of a body after which it is silent.
    pub(super) fn silent_after(&self) -> Duration {
        lock(&self.state).latency.silent_after()
    }

    /// Takes the right to a second request for a late range.
    pub(super) fn take_hedge(&self) -> bool {
        lock(&self.state).latency.take_hedge()
    }

    /// Notes that a range has brought nothing for a while and `stored_len` bytes of it are missing, so that other work may use the link meanwhile. Once
    /// for a range.
    pub(super) fn fell_silent(self: &Arc<Self>, stored_len: u64) {
        let mut state = lock(&self.state);
        state.under_way.silent += 1;
        state.under_way.bytes -= stored_len;
        drop(state);
        self.start();
    }

    /// Takes from a silent transfer what it has not brought, if a reader waits for part of that and the ration of second requests
    /// allows it. Whether it did.
    pub(super) fn give_up(self: &Arc<Self>, layer: u64, chunks: &[usize], course: &Course) -> bool {
        let mut state = lock(&self.state);
        let given_up = state.board.delays_a_reader(layer, chunks, course) && state.latency.take_hedge();
        if given_up {
            state.board.give_up(layer, chunks, course);
        }
        drop(state);
        if given_up {
            self.start();
        }
        given_up
    }

    /// Ends a transfer that counts as `part` of what is under way and brought `bytes`, and starts what waits.
    pub(super) fn ended(self: &Arc<Self>, part: UnderWay, bytes: u64, error: Option<&Error>) {
        let mut state = lock(&self.state);
        state.under_way.ranges -= part.ranges;
        state.under_way.silent -= part.silent;
        state.under_way.bytes -= part.bytes;
        match error {
            Some(error) if error.kind() == ErrorKind::Unavailable => state.pace.refused(),
            _ => {
                let busy = Lane::ALL.iter().any(|lane| state.board.waiting(*lane) > 0);
                state.pace.ended(self.epoch.elapsed(), bytes, busy);
            }
        }
        drop(state);
        self.start();
    }

    /// How urgently a chunk is wanted, now and later; `None` when nobody wants it.
    pub(super) fn urgency(&self, key: Key) -> Option<Arc<Urgency>> {
        lock(&self.state).board.urgency(key)
    }

    /// Ends the flight of a chunk; see [`Board::land`].
    pub(super) fn land(&self, key: Key, course: &Course, outcome: Outcome) -> Option<Lane> {
        lock(&self.state).board.land(key, course, outcome)
    }
}

#[cfg(test)]
mod model;
