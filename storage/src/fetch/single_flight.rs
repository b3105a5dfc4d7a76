//! One fetch per chunk at a time, whoever asks.
//!
//! The first reader of a chunk gets a [`Flight`], which stands for the fetch and goes with the task that does it; later
//! readers get a [`Ticket`] and wait. Readers that go away take nothing with them. When the flight lands, all tickets see
//! the same outcome and the chunk is free again: a failure is not remembered. A flight that is dropped without landing (a
//! panic, a runtime that shuts down) tells its waiters so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;

use crate::sync::lock;
use crate::{Error, ErrorKind};

/// Plain bytes of a chunk, or why there are none.
pub(super) type Outcome = Result<Bytes, Error>;

/// The chunks of one layer that are being fetched.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    in_the_air: Mutex<HashMap<usize, Ticket>>,
}

/// The right to wait for a chunk.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    outcome: watch::Receiver<Option<Outcome>>,
}

/// The duty to fetch a chunk.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Arc<Flights>,
    pub(super) chunk: usize,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Flights {
    /// A ticket for every chunk, and flights for those that nobody fetches yet.
    pub(super) fn board(self: &Arc<Self>, chunks: &[usize]) -> (Vec<Ticket>, Vec<Flight>) {
        let mut in_the_air = lock(&self.in_the_air);
        let mut flights = Vec::new();
        let tickets = chunks.iter().map(|chunk| {
            let ticket = in_the_air.entry(*chunk).or_insert_with(|| {
                let (outcome, ticket) = watch::channel(None);
                flights.push(Flight {
                    flights: self.clone(),
                    chunk: *chunk,
                    outcome,
                });
                Ticket { outcome: ticket }
            });
            ticket.clone()
        });
        (tickets.collect(), flights)
    }
}

impl Ticket {
    /// Waits for the flight.
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

impl Flight {
    /// Gives the outcome to all who wait. Whoever asks from now on starts anew.
    pub(super) fn land(self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        lock(&self.flights.in_the_air).remove(&self.chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_flight_tells_its_waiters_and_frees_the_chunk() {
        let flights = Arc::new(Flights::default());
        let (mut tickets, flown) = flights.board(&[7]);
        drop(flown);
        let error = tickets.remove(0).outcome().await.unwrap_err();
        assert!(error.is_temporary());
        assert_eq!(flights.board(&[7]).1.len(), 1);
    }

    #[tokio::test]
    async fn all_tickets_see_one_outcome() {
        let flights = Arc::new(Flights::default());
        let (first, mut flown) = flights.board(&[1, 2]);
        let (second, none) = flights.board(&[2]);
        assert!(none.is_empty());
        flown.remove(1).land(Ok(Bytes::from_static(b"x")));
        for ticket in [first[1].clone(), second[0].clone()] {
            assert_eq!(ticket.outcome().await.unwrap(), "x");
        }
    }
}
