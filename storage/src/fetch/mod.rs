//! Fetching of chunks: stored bytes from the source in, verified plain bytes out.
//!
//! [`crate::PlainLayer`] asks; the parts here do one step each. `single_flight` makes sure that a chunk is fetched once
//! however many readers wait, and that it is fetched to the end when they go away. `coalesce` joins chunks that lie close
//! together into one range. `run` asks the source for that range, and `decode` turns stored into plain bytes on the
//! blocking pool. What the disk cannot keep, `recent` remembers for a while.
//!
//! Nothing here decides what to fetch ahead, and a chunk that fails verification is never kept anywhere.

mod coalesce;
mod decode;
mod recent;
mod run;
mod single_flight;

use std::sync::Arc;

use tokio::sync::Semaphore;

use self::decode::Decoders;
use self::recent::Recent;
pub(crate) use self::run::{Source, fetch_missing};
pub(crate) use self::single_flight::Flights;
use crate::Counters;

/// Ranges asked of the sources at the same time by one fetcher: enough to fill a fast link at registry latencies with ranges
/// of a few hundred KiB, and few enough that their buffers stay in the tens of megabytes.
const REQUESTS_AT_ONCE: usize = 32;

/// What all plain layers of a process share: decoders, the bound on requests, and counters.
#[derive(Debug)]
pub struct Fetcher {
    decoders: Arc<Decoders>,
    requests: Semaphore,
    recent: Recent,
    counters: Arc<Counters>,
}

impl Fetcher {
    /// A fetcher that counts in `counters`.
    pub fn new(counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            decoders: Decoders::new(),
            requests: Semaphore::new(REQUESTS_AT_ONCE),
            recent: Recent::new(),
            counters,
        })
    }

    /// The counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}
