//! Decoders for the blocking pool.
//!
//! A zstd context costs more to make than a chunk to decode, so contexts are kept and lent. Decoding is bounded to one
//! task per core: more would only take turns and hold their buffers meanwhile. Who waits for a turn gets it by urgency: where the cores are slower than the
//! link, chunks of lesser lanes pile up here, and a reader behind them would wait for all of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sluice_format::compression::ChunkDecoder;
use tokio::sync::oneshot;

use super::Lane;
use crate::sync::lock;
use crate::{Error, ErrorKind, blocking};

/// The lane of a wish, as everybody sees it who works for the wish. It only becomes more urgent.
#[derive(Debug)]
pub(super) struct Urgency(AtomicUsize);

impl Urgency {
    pub(super) fn new(lane: Lane) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(lane.at())))
    }

    pub(super) fn lane(&self) -> Lane {
        let at = self.0.load(Ordering::Relaxed);
        Lane::ALL.get(at).copied().unwrap_or(Lane::Fill)
    }

    pub(super) fn raise(&self, lane: Lane) {
        self.0.fetch_min(lane.at(), Ordering::Relaxed);
    }
}

/// Idle decoders and the bound on busy ones.
#[derive(Debug)]
pub(super) struct Decoders {
    idle: Mutex<Vec<ChunkDecoder>>,
    turns: Mutex<Turns>,
}

/// Who may decode.
#[derive(Debug)]
struct Turns {
    free: usize,
    /// In the order in which they came: some ten, as the bytes that wait are bounded.
    waiting: Vec<(Arc<Urgency>, oneshot::Sender<Turn>)>,
}

/// The right to decode. Dropping it passes it on.
#[derive(Debug)]
struct Turn {
    decoders: Arc<Decoders>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = lock(&self.decoders.turns).next();
        if let Some(next) = next {
            let turn = Self {
                decoders: self.decoders.clone(),
            };
            // Somebody who went away passes it on in turn.
            drop(next.send(turn));
        }
    }
}

impl Turns {
    /// The most urgent of those who wait, and of these who came first; if nobody waits, a turn is free.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let waiting = self.waiting.iter().enumerate();
        match waiting.min_by_key(|(_, (urgency, _))| urgency.lane()) {
            Some((at, _)) => Some(self.waiting.remove(at).1),
            None => {
                self.free += 1;
                None
            }
        }
    }
}

impl Decoders {
    pub(super) fn new() -> Arc<Self> {
        Self::with_turns(std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn with_turns(free: usize) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::default(),
            turns: Mutex::new(Turns {
                free,
                waiting: Vec::new(),
            }),
        })
    }

    async fn turn(self: &Arc<Self>, urgency: &Arc<Urgency>) -> Result<Turn, Error> {
        let given = {
            let mut turns = lock(&self.turns);
            if turns.free > 0 {
                turns.free -= 1;
                return Ok(Turn {
                    decoders: self.clone(),
                });
            }
            let (turn, given) = oneshot::channel();
            turns.waiting.push((urgency.clone(), turn));
            given
        };
        let closed = |error| Error::new(ErrorKind::Io, "the decoders are closed").with_source(error);
        given.await.map_err(closed)
    }

    /// Runs `work` with a decoder on the blocking pool.
    pub(super) async fn run<T, F>(self: &Arc<Self>, urgency: &Arc<Urgency>, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut ChunkDecoder) -> T + Send + 'static,
    {
        let _turn = self.turn(urgency).await?;
        let decoders = self.clone();
        blocking::run("decode chunks", move || {
            let kept = lock(&decoders.idle).pop();
            let mut decoder = match kept {
                Some(decoder) => decoder,
                None => ChunkDecoder::new()?,
            };
            let result = work(&mut decoder);
            lock(&decoders.idle).push(decoder);
            Ok(result)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_most_urgent_is_next_and_among_equals_the_first() {
        let decoders = Decoders::with_turns(1);
        let busy = decoders.turn(&Urgency::new(Lane::Fill)).await.unwrap();
        let urgencies = [
            Lane::Fill,
            Lane::Neighbour,
            Lane::Demand,
            Lane::Fill,
            Lane::Demand,
        ]
        .map(Urgency::new);
        let mut waiting: Vec<_> = urgencies
            .iter()
            .map(|urgency| Box::pin(decoders.turn(urgency)))
            .collect();
        for wait in &mut waiting {
            assert!(wait.now_or_never().is_none());
        }
        // A reader has come to wait for it meanwhile.
        urgencies[3].raise(Lane::Demand);
        urgencies[3].raise(Lane::Neighbour);
        let mut turn = busy;
        for next in [2, 3, 4, 1, 0] {
            drop(turn);
            for at in (0..waiting.len()).filter(|at| *at != next) {
                let is_served = [2, 3, 4, 1, 0]
                    .iter()
                    .take_while(|served| **served != next)
                    .any(|served| *served == at);
                assert!(
                    is_served || waiting[at].as_mut().now_or_never().is_none(),
                    "{at} before {next}"
                );
            }
            turn = waiting[next].as_mut().await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_turn_of_who_went_away_goes_to_the_next() {
        let decoders = Decoders::with_turns(1);
        let busy = decoders.turn(&Urgency::new(Lane::Fill)).await.unwrap();
        let urgencies = [Lane::Demand, Lane::Fill].map(Urgency::new);
        let mut gone = Box::pin(decoders.turn(&urgencies[0]));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        let waiting = tokio::spawn({
            let (decoders, urgency) = (decoders.clone(), urgencies[1].clone());
            async move { decoders.turn(&urgency).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(busy);
        tokio::time::timeout(Duration::from_secs(60), waiting)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        drop(decoders.turn(&urgencies[0]).await.unwrap());
    }
}
