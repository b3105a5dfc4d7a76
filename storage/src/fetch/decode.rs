//! Decoders for the blocking pool.
//!
//! A zstd context costs more to make than a chunk to decode, so contexts are kept and lent. Decoding is bounded to one
//! task per core: more would only take turns and hold their buffers meanwhile.

use std::sync::{Arc, Mutex};

use sluice_format::compression::ChunkDecoder;
use tokio::sync::Semaphore;

use crate::sync::lock;
use crate::{Error, ErrorKind, blocking};

/// Idle decoders and the bound on busy ones.
#[derive(Debug)]
pub(super) struct Decoders {
    idle: Mutex<Vec<ChunkDecoder>>,
    busy: Semaphore,
}

impl Decoders {
    pub(super) fn new() -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            idle: Mutex::default(),
            busy: Semaphore::new(cores),
        })
    }

    /// Runs `work` with a decoder on the blocking pool.
    pub(super) async fn run<T, F>(self: &Arc<Self>, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut ChunkDecoder) -> T + Send + 'static,
    {
        let closed = |error| Error::new(ErrorKind::Io, "the decoders are closed").with_source(error);
        let _turn = self.busy.acquire().await.map_err(closed)?;
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
