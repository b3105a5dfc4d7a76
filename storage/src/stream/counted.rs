//! Progress of streaming, counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sluice_format::BlobDigest;
use tokio::time::Instant;

use super::StreamProgress;
use crate::Counters;
use crate::sync::lock;

/// Counts what it is told, and passes it on.
#[derive(Debug)]
pub struct CountedProgress {
    inner: Arc<dyn StreamProgress>,
    counters: Arc<Counters>,
    under_way: Mutex<HashMap<BlobDigest, UnderWay>>,
}

/// A layer that is being streamed.
#[derive(Debug)]
struct UnderWay {
    began: Instant,
    /// Bytes that are about to advance and did not come from the source.
    resumed: u64,
}

impl CountedProgress {
    /// Counts in `counters` and tells `inner`.
    pub fn new(inner: Arc<dyn StreamProgress>, counters: Arc<Counters>) -> Self {
        Self {
            inner,
            counters,
            under_way: Mutex::default(),
        }
    }
}

impl StreamProgress for CountedProgress {
    fn planned(&self, layers: usize, stored_len: u64) {
        self.inner.planned(layers, stored_len);
    }

    fn started(&self, layer: BlobDigest, stored_len: u64) {
        let begun = UnderWay {
            began: Instant::now(),
            resumed: 0,
        };
        lock(&self.under_way).insert(layer, begun);
        self.inner.started(layer, stored_len);
    }

    fn resumed(&self, layer: BlobDigest, bytes: u64) {
        if let Some(under_way) = lock(&self.under_way).get_mut(&layer) {
            under_way.resumed += bytes;
        }
        self.counters.stream_resumed(bytes);
        self.inner.resumed(layer, bytes);
    }

    fn advanced(&self, layer: BlobDigest, bytes: u64) {
        let mut arrived = bytes;
        if let Some(under_way) = lock(&self.under_way).get_mut(&layer) {
            arrived = bytes.saturating_sub(under_way.resumed);
            under_way.resumed -= bytes - arrived;
        }
        self.counters.stream_arrived(arrived);
        self.inner.advanced(layer, bytes);
    }

    fn finished(&self, layer: BlobDigest) {
        if let Some(under_way) = lock(&self.under_way).remove(&layer) {
            self.counters.streamed(under_way.began.elapsed());
        }
        self.inner.finished(layer);
    }
}
