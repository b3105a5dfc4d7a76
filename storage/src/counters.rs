//! What reading plain layers has cost so far, and why.
//!
//! One [`Counters`] is shared by all plain layers of a [`crate::Fetcher`]. The numbers only grow; a report takes a [`Stats`] before and after
//! and subtracts. [`Counters::openmetrics`] gives all of them under the names of this table:
//!
//! | name | labels | meaning |
//! |---|---|---|
//! | `sluice_fetch_requests_total` | `lane` | ranges asked of upstreams |
//! | `sluice_fetch_stored_bytes_total` | `lane` | stored bytes that arrived, gaps between joined chunks included |
//! | `sluice_fetch_plain_bytes_total` | `lane` | plain bytes of chunks that landed, by the most urgent wish for them |
//! | `sluice_chunk_hits_total` | | chunks that a read found on this host |
//! | `sluice_chunk_misses_total` | | chunks that a read had to wait for |
//! | `sluice_chunk_joined_total` | | misses that somebody was fetching already |
//! | `sluice_fetch_hedged_total` | | second requests for late ranges |
//! | `sluice_fetch_retried_total` | | chunks asked for again because they did not verify |
//! | `sluice_chunk_corrupt_total` | | chunks that did not match their digest on arrival |
//! | `sluice_read_failures_total` | | reads that ended with an error |
//! | `sluice_read_wait_seconds` | | how long reads with a miss took |
//! | `sluice_fetch_first_byte_seconds` | | from a request to its first byte |
//! | `sluice_fetch_range_seconds` | | from a request to its last byte |
//! | `sluice_stream_stored_bytes_total` | | stored bytes that arrived of layers that are streamed as a whole |
//! | `sluice_stream_resumed_bytes_total` | | stored bytes of such layers that an earlier attempt had kept |
//! | `sluice_stream_layer_seconds` | | how long a layer was streamed, until it was complete or failed |

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::fetch::Lane;

/// Buckets of times: a quarter of a millisecond, doubled up to about eight seconds.
const FIRST_BUCKET_SECONDS: f64 = 0.000_25;
const BUCKETS: u16 = 16;

/// Buckets of whole layers: a sixteenth of a second, doubled up to about half an hour.
const FIRST_LAYER_BUCKET_SECONDS: f64 = 0.062_5;

type LaneLabel = [(&'static str, &'static str); 1];

/// A counter for each lane.
#[derive(Debug, Default)]
struct PerLane {
    family: Family<LaneLabel, Counter>,
    /// The counters of the family, found without its lock.
    lanes: [Counter; Lane::COUNT],
}

impl PerLane {
    fn new() -> Self {
        let family = Family::<LaneLabel, Counter>::default();
        let of_lane = |lane: Lane| family.get_or_create(&[("lane", lane.name())]).clone();
        let lanes = Lane::ALL.map(of_lane);
        Self { family, lanes }
    }

    fn add(&self, lane: Lane, count: u64) {
        self.lanes[lane.at()].inc_by(count);
    }

    fn get(&self) -> [u64; Lane::COUNT] {
        Lane::ALL.map(|lane| self.lanes[lane.at()].get())
    }
}

/// Counters that many readers add to.
#[derive(Debug)]
pub struct Counters {
    registry: Registry,
    requests: PerLane,
    stored_bytes: PerLane,
    plain_bytes: PerLane,
    hits: Counter<u64, AtomicU64>,
    misses: Counter<u64, AtomicU64>,
    joined: Counter<u64, AtomicU64>,
    hedged: Counter<u64, AtomicU64>,
    retried: Counter<u64, AtomicU64>,
    corrupt: Counter<u64, AtomicU64>,
    failures: Counter<u64, AtomicU64>,
    read_wait: Histogram,
    first_byte: Histogram,
    range_time: Histogram,
    stream_stored_bytes: Counter<u64, AtomicU64>,
    stream_resumed_bytes: Counter<u64, AtomicU64>,
    stream_time: Histogram,
    /// The histogram's count and its sum in milliseconds, which it does not give back.
    streamed_layers: AtomicU64,
    streamed_ms: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks that a read found on this host.
    pub hits: u64,
    /// Chunks that a read had to wait for, its own fetch or another reader's.
    pub misses: u64,
    /// Misses that somebody was fetching already.
    pub joined: u64,
    /// Second requests for late ranges.
    pub hedged: u64,
    /// Ranges asked of upstreams.
    pub requests: u64,
    /// Stored bytes that arrived from upstreams, gaps between joined chunks included.
    pub stored_bytes: u64,
    /// Plain bytes of the chunks decoded from them.
    pub plain_bytes: u64,
    /// Chunks that did not match their digest when they arrived.
    pub corrupt: u64,
    /// Stored bytes that arrived of layers that were streamed as a whole; not part of `stored_bytes`.
    pub streamed_bytes: u64,
    /// Stored bytes of such layers that an earlier attempt had kept.
    pub resumed_bytes: u64,
    /// Layers whose streaming ended, well or not.
    pub streamed_layers: u64,
    /// Time that they took, in milliseconds; that of layers side by side adds up.
    pub streamed_ms: u64,
    /// `requests` by lane.
    pub lane_requests: [u64; Lane::COUNT],
    /// `stored_bytes` by lane.
    pub lane_stored_bytes: [u64; Lane::COUNT],
    /// `plain_bytes` by lane.
    pub lane_plain_bytes: [u64; Lane::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        let buckets = || exponential_buckets(FIRST_BUCKET_SECONDS, 2.0, BUCKETS);
        let layer_buckets = exponential_buckets(FIRST_LAYER_BUCKET_SECONDS, 2.0, BUCKETS);
        let mut counters = Self {
            registry: Registry::with_prefix("sluice"),
            requests: PerLane::new(),
            stored_bytes: PerLane::new(),
            plain_bytes: PerLane::new(),
            hits: Counter::default(),
            misses: Counter::default(),
            joined: Counter::default(),
            hedged: Counter::default(),
            retried: Counter::default(),
            corrupt: Counter::default(),
            failures: Counter::default(),
            read_wait: Histogram::new(buckets()),
            first_byte: Histogram::new(buckets()),
            range_time: Histogram::new(buckets()),
            stream_stored_bytes: Counter::default(),
            stream_resumed_bytes: Counter::default(),
            stream_time: Histogram::new(layer_buckets),
            streamed_layers: AtomicU64::default(),
            streamed_ms: AtomicU64::default(),
        };
        counters.register();
        counters
    }
}

impl Counters {
    fn register(&mut self) {
        let registry = &mut self.registry;
        for (name, help, family) in [
            ("fetch_requests", "Ranges asked of upstreams", &self.requests),
            (
                "fetch_stored_bytes",
                "Stored bytes that arrived",
                &self.stored_bytes,
            ),
            (
                "fetch_plain_bytes",
                "Plain bytes of chunks that landed",
                &self.plain_bytes,
            ),
        ] {
            registry.register(name, help, family.family.clone());
        }
        for (name, help, counter) in [
            ("chunk_hits", "Chunks that a read found on this host", &self.hits),
            ("chunk_misses", "Chunks that a read had to wait for", &self.misses),
            (
                "chunk_joined",
                "Misses that somebody was fetching already",
                &self.joined,
            ),
            ("fetch_hedged", "Second requests for late ranges", &self.hedged),
            (
                "fetch_retried",
                "Chunks asked for again because they did not verify",
                &self.retried,
            ),
            (
                "chunk_corrupt",
                "Chunks that did not match their digest on arrival",
                &self.corrupt,
            ),
            ("read_failures", "Reads that ended with an error", &self.failures),
            (
                "stream_stored_bytes",
                "Stored bytes that arrived of layers that are streamed as a whole",
                &self.stream_stored_bytes,
            ),
            (
                "stream_resumed_bytes",
                "Stored bytes of such layers that an earlier attempt had kept",
                &self.stream_resumed_bytes,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, histogram) in [
            (
                "read_wait_seconds",
                "How long reads with a miss took",
                &self.read_wait,
            ),
            (
                "fetch_first_byte_seconds",
                "From a request to its first byte",
                &self.first_byte,
            ),
            (
                "fetch_range_seconds",
                "From a request to its last byte",
                &self.range_time,
            ),
            (
                "stream_layer_seconds",
                "How long a layer was streamed",
                &self.stream_time,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
    }

    /// The counters now. Each is exact; together they are not one instant while readers run.
    pub fn stats(&self) -> Stats {
        let (requests, stored, plain) = (
            self.requests.get(),
            self.stored_bytes.get(),
            self.plain_bytes.get(),
        );
        Stats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            joined: self.joined.get(),
            hedged: self.hedged.get(),
            requests: requests.iter().sum(),
            stored_bytes: stored.iter().sum(),
            plain_bytes: plain.iter().sum(),
            corrupt: self.corrupt.get(),
            streamed_bytes: self.stream_stored_bytes.get(),
            resumed_bytes: self.stream_resumed_bytes.get(),
            streamed_layers: self.streamed_layers.load(Ordering::Relaxed),
            streamed_ms: self.streamed_ms.load(Ordering::Relaxed),
            lane_requests: requests,
            lane_stored_bytes: stored,
            lane_plain_bytes: plain,
        }
    }

    /// All counters in the OpenMetrics text format.
    pub fn openmetrics(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    pub(crate) fn add_hits(&self, chunks: usize) {
        self.hits.inc_by(chunks as u64);
    }

    pub(crate) fn add_misses(&self, chunks: usize) {
        self.misses.inc_by(chunks as u64);
    }

    pub(crate) fn add_joined(&self) {
        self.joined.inc();
    }

    pub(crate) fn add_hedged(&self) {
        self.hedged.inc();
    }

    pub(crate) fn add_request(&self, lane: Lane) {
        self.requests.add(lane, 1);
    }

    pub(crate) fn add_stored(&self, lane: Lane, bytes: u64) {
        self.stored_bytes.add(lane, bytes);
    }

    pub(crate) fn add_plain(&self, lane: Lane, bytes: usize) {
        self.plain_bytes.add(lane, bytes as u64);
    }

    /// A chunk of `stored_len` bytes was asked for again, for a reader or for whoever may become one.
    pub(crate) fn add_retried(&self, stored_len: u64) {
        self.retried.inc();
        self.requests.add(Lane::Demand, 1);
        self.stored_bytes.add(Lane::Demand, stored_len);
    }

    pub(crate) fn add_corrupt(&self) {
        self.corrupt.inc();
    }

    pub(crate) fn read_waited(&self, wait: Duration) {
        self.read_wait.observe(wait.as_secs_f64());
    }

    pub(crate) fn read_failed(&self) {
        self.failures.inc();
    }

    pub(crate) fn first_byte(&self, wait: Duration) {
        self.first_byte.observe(wait.as_secs_f64());
    }

    pub(crate) fn range_took(&self, time: Duration) {
        self.range_time.observe(time.as_secs_f64());
    }

    pub(crate) fn stream_arrived(&self, bytes: u64) {
        self.stream_stored_bytes.inc_by(bytes);
    }

    pub(crate) fn stream_resumed(&self, bytes: u64) {
        self.stream_resumed_bytes.inc_by(bytes);
    }

    pub(crate) fn streamed(&self, time: Duration) {
        self.stream_time.observe(time.as_secs_f64());
        self.streamed_layers.fetch_add(1, Ordering::Relaxed);
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.streamed_ms.fetch_add(millis, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_names_is_what_is_exported() {
        let counters = Counters::default();
        counters.add_request(Lane::Profile);
        counters.read_waited(Duration::from_millis(3));
        let text = counters.openmetrics();
        let table = include_str!("counters.rs");
        let names = table
            .lines()
            .filter_map(|line| line.strip_prefix("//! | `")?.split('`').next());
        let names: Vec<&str> = names.collect();
        assert_eq!(names.len(), 16, "{names:?}");
        for name in names {
            assert!(text.contains(name), "{name} is not in\n{text}");
        }
        assert!(
            text.contains("sluice_fetch_requests_total{lane=\"profile\"} 1"),
            "{text}"
        );
        assert_eq!(counters.stats().lane_requests[Lane::Profile.at()], 1);
    }
}
