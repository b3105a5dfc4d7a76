//! Fetching of chunks: stored bytes from the source in, verified plain bytes out.
//!
//! Wishes come from [`crate::PlainLayer`] (readers, and what it expects them to want next), and from profiles and fills. Each wish has a
//! [`Lane`]. One [`Fetcher`] serves the whole host; per upstream it keeps
//!
//! - a *board* (`board`): every wanted chunk once, queued by lane or under way, with those who wait for it;
//! - a *pace* (`pace`): how many ranges may be under way, learnt from what more of them bring; readers have a reserve, so lesser work never
//!   holds them up;
//! - a *latency* (`latency`): when a first byte is late and worth asking for a second time.
//!
//! Whenever something is wanted or a range ends, `upstream` takes the best queued chunk, `coalesce` joins its neighbours into one range, and
//! `transfer` fetches it: the body is cut into chunks as it arrives, `decode` turns each into verified plain bytes on a small pool beside the
//! network, and each lands at once. What the disk cannot keep, `recent` remembers for a while. `readahead` tells what a reader will
//! want next, `loader` what a dynamic loader will read of a program, and `constructors` what those of a library touch.
//!
//! Chunks that cannot be fetched by themselves all come in one transfer that reads the whole blob (`streamed`).
//!
//! A chunk is fetched to the end when its readers go away. A chunk that fails verification is never kept anywhere.

mod board;
mod coalesce;
mod constructors;
mod decode;
pub(crate) mod files;
pub(crate) mod imports;
mod lane;
mod latency;
pub(crate) mod loader;
mod pace;
pub(crate) mod readahead;
mod recent;
mod source;
mod streamed;
mod transfer;
mod upstream;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::constructors::FAULT_WINDOW;
use self::decode::Decoders;
pub use self::lane::Lane;
use self::readahead::Foresight;
pub(crate) use self::readahead::WholeWhen;
use self::recent::Recent;
pub(crate) use self::source::{LayerChunks, Source};
pub(crate) use self::upstream::{Claim, Upstream};
use crate::sync::lock;
use crate::{CachedLayer, Counters, LazyLayer, Link};

/// Plain bytes that may wait for decoding or be decoded at one time, beside those that readers wait for: two cores decode this in some 60 ms, and the network is read
/// on meanwhile.
const UNDECODED: usize = 32 << 20;

/// What all plain layers of a process share: what is wanted of which upstream, decoders, and counters.
#[derive(Debug)]
pub struct Fetcher {
    decoders: Arc<Decoders>,
    undecoded: Arc<Semaphore>,
    recent: Recent,
    counters: Arc<Counters>,
    upstreams: Mutex<HashMap<Arc<str>, Arc<Upstream>>>,
    layers: AtomicU64,
}

impl Fetcher {
    /// A fetcher that counts in `counters`.
    pub fn new(counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            decoders: Decoders::new(),
            undecoded: Arc::new(Semaphore::new(UNDECODED)),
            recent: Recent::new(),
            counters,
            upstreams: Mutex::default(),
            layers: AtomicU64::new(0),
        })
    }

    /// The counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What is known of the way to an upstream, from what was fetched of it.
    pub fn link(&self, upstream: &str) -> Link {
        let upstream = lock(&self.upstreams).get(upstream).cloned();
        upstream.map_or_else(Link::default, |upstream| upstream.link())
    }

    /// A layer to fetch chunks of. Panics outside a runtime.
    pub(crate) fn source(self: &Arc<Self>, layer: &LazyLayer, cache: Option<CachedLayer>) -> Arc<Source> {
        let name = layer.blob.upstream();
        let mut upstreams = lock(&self.upstreams);
        let upstream = upstreams
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Upstream::new(name, Handle::current())));
        let index = LayerChunks::from(layer.index.as_ref());
        Arc::new(Source {
            foresight: Foresight::new(index.clone()),
            layer: self.layers.fetch_add(1, Ordering::Relaxed),
            index,
            blob: layer.blob.clone(),
            cache,
            fetcher: self.clone(),
            upstream: upstream.clone(),
            is_streamed: layer.index.is_streamed(),
            follows_profile: AtomicBool::new(false),
        })
    }

    /// Room for a chunk among those that wait for decoding; `None` when the process ends.
    async fn room_for(&self, plain_len: u32) -> Option<OwnedSemaphorePermit> {
        let wanted = plain_len.min(UNDECODED as u32);
        self.undecoded.clone().acquire_many_owned(wanted).await.ok()
    }
}
