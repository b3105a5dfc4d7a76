//! A transfer that reads a whole blob, because its chunks cannot be fetched by themselves.
//!
//! It is one transfer for all chunks of the layer that are not here, whoever asked for them and whoever asks while it runs. Each lands as
//! soon as its bytes have come. When one does not verify, the blob is read once more for the rest, from another host where there is one.

use std::sync::atomic::Ordering;

use super::transfer::Transfer;
use crate::stream::{Refill, refill};
use crate::{Error, ErrorKind};

impl Transfer {
    pub(super) async fn stream(&self) -> Result<(), Error> {
        match self.stream_once().await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::debug!(%error, "a blob did not verify; it is streamed again");
                self.batch.source.blob.gave_wrong_bytes();
                self.stream_once().await
            }
            outcome => outcome,
        }
    }

    async fn stream_once(&self) -> Result<(), Error> {
        let (source, upstream, course) = (
            self.batch.source.clone(),
            self.upstream.clone(),
            self.course.clone(),
        );
        let chunks = self.batch.chunks.iter().copied();
        let wanted = chunks
            .filter(|at| self.upstream.urgency(self.key(*at)).is_some())
            .collect();
        let (index, blob) = (source.index.clone(), source.blob.clone());
        let key = self.key(0);
        let landing = move |at, plain: bytes::Bytes| {
            source.keep(at, &plain);
            let plain_len = plain.len();
            if let Some(lane) = upstream.land(key.of(at), &course, Ok(plain)) {
                source.fetcher.counters.add_plain(lane, plain_len);
            }
        };
        let advanced = |bytes| {
            self.received.fetch_add(bytes, Ordering::Relaxed);
        };
        refill(&blob, Refill::new(index, wanted, Box::new(landing)), &advanced).await
    }
}
