//! Bringing whole layers to this host while nobody waits.
//!
//! Chunks are fetched in the lane of fills, a batch at a time, so that a fill yields to everything else and can be held to a rate. One that is not
//! held to any has the next batch on its way meanwhile, so that the link is never idle. When a layer has
//! every chunk its plain bytes are verified against the DiffID; from then on new mounts can hand its file to the kernel. A fill that
//! fails for now is tried again later; one that cannot succeed is given up with a warning.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{Error, ErrorKind, Lane, PlainLayer};

/// Stored bytes per batch: a few ranges side by side.
const BATCH_LEN: u64 = 8 << 20;
/// First wait after a failure, doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Layers at a time without a rate: while one is verified the next one comes.
const LAYERS_AT_ONCE: usize = 2;

/// Fetches what is missing of `layers` in their order and verifies each. `rate` bounds the stored bytes per second.
pub async fn fill(layers: &[Arc<PlainLayer>], rate: Option<u64>) {
    let at_once = if rate.is_some() { 1 } else { LAYERS_AT_ONCE };
    // Boxed here and now: a stream over the closure is not `Send` for every lifetime.
    let fills: Vec<BoxFuture<'_, ()>> = layers
        .iter()
        .map(|layer| fill_or_warn(layer, rate).boxed())
        .collect();
    stream::iter(fills).buffer_unordered(at_once).collect().await
}

async fn fill_or_warn(layer: &Arc<PlainLayer>, rate: Option<u64>) {
    if let Err(error) = fill_layer(layer, rate).await {
        tracing::warn!(layer = %layer.diff_id(), %error, "a layer was not filled");
    }
}

/// Fetches a batch, and unless there is a rate has the next one on its way.
async fn fetch(layer: &PlainLayer, batch: &[usize], runs_ahead: bool) -> Result<(), Error> {
    let fetch = layer.fetch(batch, Lane::Fill);
    if !runs_ahead {
        return fetch.await;
    }
    let mut next = layer.next_missing(2 * BATCH_LEN).chunks;
    next.retain(|chunk| !batch.contains(chunk));
    let (fetched, wanted) = tokio::join!(fetch, layer.want(&next, Lane::Fill));
    fetched.and(wanted)
}

async fn fill_layer(layer: &Arc<PlainLayer>, rate: Option<u64>) -> Result<(), Error> {
    let mut wait = FIRST_WAIT;
    loop {
        let batch = layer.next_missing(BATCH_LEN);
        if batch.chunks.is_empty() {
            return layer.verify_whole().await;
        }
        let due = rate.map(|rate| {
            Instant::now() + Duration::from_secs_f64(batch.stored_len as f64 / rate.max(1) as f64)
        });
        match fetch(layer, &batch.chunks, rate.is_none()).await {
            Ok(()) => wait = FIRST_WAIT,
            Err(error) if error.is_temporary() => {
                tracing::debug!(layer = %layer.diff_id(), %error, "a fill waits");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
                continue;
            }
            Err(error) => return Err(error),
        }
        if layer.next_missing(BATCH_LEN).chunks == batch.chunks {
            let message = "the cache does not keep what is fetched";
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        if let Some(due) = due {
            sleep_until(due).await;
        }
    }
}
