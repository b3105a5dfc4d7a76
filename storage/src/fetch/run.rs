//! From missing chunks to landed flights.
//!
//! The chunks that nobody else fetches are joined into ranges, and each range becomes a task of its own: ask the source, cut the
//! answer, decode and verify chunk by chunk on the blocking pool, keep each and land its flight at once. A chunk that does not
//! verify is asked for once more by itself, in case the transfer spoilt it; then it is corrupt.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sluice_format::compression::ChunkDecoder;
use sluice_format::{ChunkRef, FormatError, LayerIndex};

use super::Fetcher;
use super::coalesce::{Joined, join};
use super::single_flight::{Flight, Flights, Ticket};
use crate::{Blob, CachedLayer, Error, ErrorKind, blocking};

/// Where the chunks of one layer come from and where they go.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) index: Arc<LayerIndex>,
    pub(crate) blob: Arc<dyn Blob>,
    pub(crate) cache: Option<CachedLayer>,
    pub(crate) fetcher: Arc<Fetcher>,
}

impl Source {
    /// The bytes of a chunk that this host has. Blocks on the disk.
    pub(crate) fn kept(&self, chunk: usize) -> Option<Bytes> {
        let cached = self.cache.as_ref().and_then(|cache| cache.read_chunk(chunk));
        cached.or_else(|| self.fetcher.recent.get(&self.index.chunks.chunks()[chunk].digest))
    }

    /// Whether [`Self::kept`] will most likely give bytes. Does not block.
    fn keeps(&self, chunk: usize) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.is_trusted(chunk))
            || self
                .fetcher
                .recent
                .contains(&self.index.chunks.chunks()[chunk].digest)
    }
}

/// Has `chunks` fetched by whoever does so, and returns their tickets in the same order.
pub(crate) fn fetch_missing(source: &Source, flights: &Arc<Flights>, chunks: &[usize]) -> Vec<Ticket> {
    let (tickets, mine) = flights.board(chunks);
    let (kept, mine): (Vec<_>, Vec<_>) = mine.into_iter().partition(|flight| source.keeps(flight.chunk));
    if !kept.is_empty() {
        tokio::spawn(land_kept(source.clone(), kept));
    }
    spawn_fetches(source, mine);
    tickets
}

/// Lands flights for chunks that another flight brought in between this reader's look and its boarding.
async fn land_kept(source: Source, flights: Vec<Flight>) {
    let of_chunks = source.clone();
    let missing = blocking::run("read the cache", move || {
        let mut missing = Vec::new();
        for flight in flights {
            match of_chunks.kept(flight.chunk) {
                Some(plain) => flight.land(Ok(plain)),
                None => missing.push(flight),
            }
        }
        Ok(missing)
    });
    spawn_fetches(&source, missing.await.unwrap_or_default());
}

fn spawn_fetches(source: &Source, mine: Vec<Flight>) {
    let wanted = mine.iter().map(|flight| flight.chunk).collect();
    let mut by_chunk: HashMap<usize, Flight> =
        mine.into_iter().map(|flight| (flight.chunk, flight)).collect();
    for joined in join(source.index.chunks.chunks(), wanted) {
        let flights = joined
            .chunks
            .iter()
            .filter_map(|chunk| by_chunk.remove(chunk))
            .collect();
        tokio::spawn(fetch_joined(source.clone(), joined, flights));
    }
}

async fn fetch_joined(source: Source, joined: Joined, flights: Vec<Flight>) {
    match fetch_range(&source, joined.stored.clone()).await {
        Err(error) => flights
            .into_iter()
            .for_each(|flight| flight.land(Err(error.clone()))),
        Ok(stored) => decode_all(source, joined.stored.start, stored, flights).await,
    }
}

async fn fetch_range(source: &Source, stored: Range<u64>) -> Result<Bytes, Error> {
    let closed = |error| Error::new(ErrorKind::Unavailable, "the fetcher is closed").with_source(error);
    let _turn = source.fetcher.requests.acquire().await.map_err(closed)?;
    source.fetcher.counters.add_request();
    let wanted = stored.end - stored.start;
    let bytes = source.blob.read_range(stored).await?;
    source.fetcher.counters.add_stored(bytes.len());
    if bytes.len() as u64 != wanted {
        let message = format!(
            "blob {} gave {} bytes of a range of {wanted}",
            source.blob.digest(),
            bytes.len()
        );
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(bytes)
}

/// Decodes the chunks of one range whose stored bytes begin at `stored_off`. Good ones land; bad ones are fetched again.
async fn decode_all(source: Source, stored_off: u64, stored: Bytes, flights: Vec<Flight>) {
    let decoders = source.fetcher.decoders.clone();
    let of_range = source.clone();
    let decoded = decoders.run(move |decoder| {
        let mut bad = Vec::new();
        for flight in flights {
            let chunk = of_range.index.chunks.chunks()[flight.chunk];
            let start = (chunk.stored_off - stored_off) as usize;
            let stored = &stored[start..start + chunk.stored_len as usize];
            match decode(&of_range, decoder, flight.chunk, &chunk, stored) {
                Ok(plain) => flight.land(Ok(plain)),
                Err(_) => bad.push(flight),
            }
        }
        bad
    });
    // When the pool fails, the flights are dropped in it and their waiters are told.
    for flight in decoded.await.unwrap_or_default() {
        let outcome = fetch_again(&source, flight.chunk).await;
        flight.land(outcome);
    }
}

/// The second and last attempt at a chunk that did not verify.
async fn fetch_again(source: &Source, at: usize) -> Result<Bytes, Error> {
    let chunk = source.index.chunks.chunks()[at];
    tracing::debug!(blob = %source.blob.digest(), chunk = at, "a chunk did not verify; it is fetched again");
    let stored = fetch_range(source, chunk.stored_range()).await?;
    let decoders = source.fetcher.decoders.clone();
    let of_chunk = source.clone();
    let decoded = decoders
        .run(move |decoder| decode(&of_chunk, decoder, at, &chunk, &stored))
        .await?;
    decoded.map_err(|error| {
        let message = format!(
            "chunk {at} of layer {} is corrupt in blob {}, twice in a row",
            source.index.diff_id,
            source.blob.digest()
        );
        Error::new(ErrorKind::Corrupt, message).with_source(error)
    })
}

/// Decodes, verifies and keeps one chunk.
fn decode(
    source: &Source,
    decoder: &mut ChunkDecoder,
    at: usize,
    chunk: &ChunkRef,
    stored: &[u8],
) -> Result<Bytes, FormatError> {
    let counters = &source.fetcher.counters;
    let plain = match decoder.decode(chunk, stored) {
        Ok(plain) => Bytes::from(plain),
        Err(error) => {
            counters.add_corrupt();
            return Err(error);
        }
    };
    counters.add_plain(plain.len());
    let kept = source
        .cache
        .as_ref()
        .is_some_and(|cache| cache.store_chunk(at, &plain));
    if !kept {
        source.fetcher.recent.put(chunk.digest, plain.clone());
    }
    Ok(plain)
}
