//! Single flight under every order of steps that a random scheduler finds: readers, a profile, a fill that may be interrupted, and
//! transfers that break off, decode out of order or find bytes corrupt. The wishes and the board are the real ones; a transfer
//! is a model that takes and lands as the real one does.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use shuttle::thread;

use super::*;
use crate::Fetcher;
use crate::testing::SampleLayer;

/// More than one range holds, and long enough that a reader at the end of one takes its chunk away from it.
const CHUNKS: usize = 14;
const CHUNK_LEN: usize = 100_000;
/// Transfers that run side by side.
const TRANSFERS: usize = 3;
/// Orders that are tried: some seconds of them.
const ORDERS: usize = 3_000;
/// One in so many chunks breaks its transfer off, or is corrupt.
const FAILS: u32 = 12;

struct Model {
    source: Arc<Source>,
    state: Mutex<Modelled>,
    changed: Condvar,
}

#[derive(Default)]
struct Modelled {
    state: State,
    /// The transfers that carry a chunk and have not landed it.
    carried: Vec<Vec<Carried>>,
    transfers: u64,
    wishes_ended: usize,
}

/// One chunk in a transfer.
#[derive(Clone)]
struct Carried {
    transfer: u64,
    lane: Lane,
    /// A reader has taken the chunk away from it. What becomes of the chunk is none of its business any more.
    is_robbed: bool,
}

/// A range on its way.
struct Carrier {
    id: u64,
    batch: Batch,
    course: Arc<Course>,
}

impl Model {
    fn new(source: Arc<Source>) -> Self {
        let modelled = Modelled {
            carried: vec![Vec::new(); CHUNKS],
            ..Modelled::default()
        };
        Self {
            source,
            state: Mutex::new(modelled),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Modelled> {
        self.state.lock().expect("not poisoned")
    }

    fn key(&self, chunk: usize) -> Key {
        Key {
            layer: self.source.layer,
            chunk,
        }
    }

    /// Waits for chunks as a reader or a fill does; a wait that nobody ends is a deadlock, which the scheduler reports.
    fn wait_for(&self, chunks: &[usize], lane: Lane) {
        let claims = self.lock().state.claim(&self.source, chunks, lane);
        self.changed.notify_all();
        for (claim, chunk) in claims.into_iter().zip(chunks) {
            let Claim::Fetched(ticket) = claim else {
                assert!(self.source.keeps(*chunk));
                continue;
            };
            let mut modelled = self.lock();
            let outcome = loop {
                if let Some(outcome) = ticket.clone().outcome().now_or_never() {
                    break outcome;
                }
                modelled = self.changed.wait(modelled).expect("not poisoned");
            };
            assert!(
                outcome.is_err() || self.source.keeps(*chunk),
                "bytes that nobody keeps"
            );
        }
    }

    fn want(&self, chunks: impl Iterator<Item = usize>, lane: Lane) {
        let wishes: Vec<_> = chunks.map(|chunk| (chunk, lane)).collect();
        self.lock().state.want(&self.source, &wishes);
        self.changed.notify_all();
    }

    fn end_wish(&self) {
        self.lock().wishes_ended += 1;
        self.changed.notify_all();
    }

    /// The next range, or `None` when nobody wants anything any more.
    fn next(&self, wishes: usize) -> Option<Carrier> {
        let mut modelled = self.lock();
        loop {
            if let Some((batch, course)) = modelled.state.board.take(Lane::Fill, u64::MAX) {
                let id = modelled.transfers;
                modelled.transfers += 1;
                for chunk in &batch.chunks {
                    let carried = &mut modelled.carried[*chunk];
                    for other in carried.iter_mut().filter(|other| !other.is_robbed) {
                        let is_split = course.lane == Lane::Demand && other.lane != Lane::Demand;
                        assert!(is_split, "chunk {chunk} is fetched twice");
                        other.is_robbed = true;
                    }
                    carried.push(Carried {
                        transfer: id,
                        lane: course.lane,
                        is_robbed: false,
                    });
                }
                return Some(Carrier { id, batch, course });
            }
            if modelled.wishes_ended == wishes {
                return None;
            }
            modelled = self.changed.wait(modelled).expect("not poisoned");
        }
    }

    fn land(&self, carrier: &Carrier, chunk: usize, outcome: Outcome) {
        if outcome.is_ok() {
            // The cache has a chunk before its flight ends.
            let digest = self.source.chunk(chunk).digest;
            self.source
                .fetcher
                .recent
                .put(digest, Bytes::from_static(b"kept"));
            thread::yield_now();
        }
        let mut modelled = self.lock();
        modelled.carried[chunk].retain(|carried| carried.transfer != carrier.id);
        modelled
            .state
            .board
            .land(self.key(chunk), &carrier.course, outcome);
        drop(modelled);
        self.changed.notify_all();
    }

    /// One range: bytes arrive in order, chunks land in any order, and any of it may fail.
    fn transfer(&self, carrier: &Carrier) {
        let mut decoding = Vec::new();
        let mut rest = carrier.batch.chunks.iter().copied();
        let mut broken = None;
        for chunk in rest.by_ref() {
            if thread_rng().gen_ratio(1, FAILS) {
                broken = Some(chunk);
                break;
            }
            carrier.course.reach(self.source.chunk(chunk).stored_range().end);
            decoding.push(chunk);
            if thread_rng().gen_ratio(1, 2) {
                let at = thread_rng().gen_range(0..decoding.len());
                self.decode(carrier, decoding.swap_remove(at));
            }
        }
        for chunk in broken.into_iter().chain(rest) {
            self.land(carrier, chunk, failure());
        }
        for chunk in decoding {
            self.decode(carrier, chunk);
        }
    }

    fn decode(&self, carrier: &Carrier, chunk: usize) {
        let is_corrupt = thread_rng().gen_ratio(1, FAILS);
        let outcome = if is_corrupt {
            failure()
        } else {
            Ok(Bytes::from_static(b"kept"))
        };
        self.land(carrier, chunk, outcome);
    }
}

fn failure() -> Outcome {
    Err(Error::new(ErrorKind::Unavailable, "no"))
}

/// All that is wanted in one order of steps, each by a thread of its own.
const WISHES: [fn(&Model); 5] = [
    |model| model.want(0..CHUNKS, Lane::Profile),
    |model| {
        model.wait_for(&[CHUNKS - 5], Lane::Demand);
        model.wait_for(&[CHUNKS - 5, CHUNKS - 4], Lane::Demand);
    },
    |model| model.wait_for(&[8, 9, 1], Lane::Demand),
    |model| model.wait_for(&[3, 9, 12], Lane::Fill),
    |model| {
        model.want([6, 7].into_iter(), Lane::Readahead);
        let layer = model.source.layer;
        model.lock().state.board.forget(layer, Lane::Readahead);
        model.changed.notify_all();
    },
];

fn run(source: Arc<Source>) {
    let model = shuttle::sync::Arc::new(Model::new(source));
    let mut threads = Vec::new();
    for wish in WISHES {
        let model = model.clone();
        threads.push(thread::spawn(move || {
            wish(&model);
            model.end_wish();
        }));
    }
    for _ in 0..TRANSFERS {
        let model = model.clone();
        threads.push(thread::spawn(move || {
            while let Some(carrier) = model.next(WISHES.len()) {
                model.transfer(&carrier);
            }
        }));
    }
    for thread in threads {
        thread.join().expect("no panic");
    }
    let modelled = model.lock();
    assert_eq!(
        Lane::ALL.map(|lane| modelled.state.board.waiting(lane)),
        [0; Lane::COUNT]
    );
    for chunk in 0..CHUNKS {
        assert!(
            !modelled.state.board.has(model.source.layer, chunk),
            "a flight of {chunk} stays"
        );
        assert!(modelled.carried[chunk].is_empty());
    }
}

#[test]
fn no_order_of_steps_leaves_a_reader_waiting_or_fetches_a_chunk_twice() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let handle = runtime.handle().clone();
    let sample = SampleLayer::new(CHUNKS, CHUNK_LEN, 0);
    let order = move || {
        let entered = handle.enter();
        let source = Fetcher::new(Arc::default()).source(&sample.layer, None);
        drop(entered);
        run(source);
    };
    shuttle::check_random(order, ORDERS);
}
