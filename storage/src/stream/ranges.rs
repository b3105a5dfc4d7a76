//! A whole blob in parallel ranges, its bytes in order.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};

use crate::{Blob, ByteStream};

/// Stored length of a range: at 100 MB/s some forty milliseconds, so that asking costs little beside it.
const RANGE_LEN: u64 = 4 << 20;

/// Ranges under way or waiting for the one before them. One connection seldom fills a link; four do, and 16 MiB are all that a slow
/// decoder can make wait.
const RANGES_AT_ONCE: usize = 4;

/// The bytes of a blob. A transfer that breaks is resumed by the blob itself, at the byte where it broke.
pub(crate) fn in_order(blob: &Arc<dyn Blob>) -> ByteStream {
    let stored_len = blob.stored_len();
    let blob = blob.clone();
    let starts = (0..stored_len.div_ceil(RANGE_LEN)).map(|at| at * RANGE_LEN);
    let ranges = starts.map(move |start| {
        let blob = blob.clone();
        async move { blob.read_range(start..(start + RANGE_LEN).min(stored_len)).await }
    });
    stream::iter(ranges).buffered(RANGES_AT_ONCE).boxed()
}
