//! One range from the upstream to landed chunks.
//!
//! The body is cut into chunks while it arrives, and each chunk goes to the decoders at once; a reader of the first one does not wait for
//! the last. Decoding runs beside the network: the body is read on while chunks are decoded, up to a bound of bytes for the whole
//! process. A chunk that does not verify is asked for once more by itself, in case the transfer spoilt it; then it is corrupt. When the
//! first byte of a range that a reader waits for is late, a second request is sent, and whichever answers first is read. Another range, or a body, that
//! falls silent no longer counts as under way; when a reader waits for a part of it, it is given up and the rest is asked for again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use sluice_format::FormatError;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::board::{Course, Key, Outcome};
use super::coalesce::Batch;
use super::decode::Urgency;
use super::pace::UnderWay;
use super::upstream::Upstream;
use super::{Lane, Source};
use crate::{ByteStream, Error, ErrorKind};

/// How often it is asked whether something is late: the first ranges begin before anything is known of their upstream, and the answers of others tell.
const LATE_YET: Duration = Duration::from_millis(50);

/// A range that is to be fetched. Dropping it ends it, however far it came.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) upstream: Arc<Upstream>,
    pub(super) batch: Batch,
    pub(super) course: Arc<Course>,
    pub(super) received: AtomicU64,
    /// Stored bytes that do not count as under way any more, because the body fell silent; 0 when it did not.
    written_off: AtomicU64,
    failure: Option<Error>,
}

/// A body and what of it has not been cut yet.
struct Body {
    pieces: ByteStream,
    arrived: BytesMut,
    /// Stored offset of the first byte of `arrived`.
    stored_off: u64,
    /// What was cut last, all of which, or whose last byte, the next chunk may share.
    last: (Range<u64>, Bytes),
}

impl Body {
    /// Takes the bytes of a range off, all of which have arrived. It begins at or behind the end of the one before, or at its last byte; or it
    /// is the one before.
    fn cut(&mut self, stored: Range<u64>) -> Bytes {
        if stored == self.last.0 {
            return self.last.1.clone();
        }
        let shared = match self.last.1.last() {
            Some(last) if stored.start < self.stored_off => Some(*last),
            _ => None,
        };
        let start = stored.start.max(self.stored_off);
        self.arrived.advance((start - self.stored_off) as usize);
        let bytes = self.arrived.split_to((stored.end - start) as usize);
        self.stored_off = stored.end;
        let bytes = match shared {
            None => bytes.freeze(),
            Some(shared) => {
                let mut whole = BytesMut::with_capacity(bytes.len() + 1);
                whole.extend_from_slice(&[shared]);
                whole.extend_from_slice(&bytes);
                whole.freeze()
            }
        };
        self.last = (stored, bytes.clone());
        bytes
    }
}

impl Transfer {
    pub(super) fn new(upstream: Arc<Upstream>, batch: Batch, course: Arc<Course>) -> Self {
        Self {
            upstream,
            batch,
            course,
            received: AtomicU64::new(0),
            written_off: AtomicU64::new(0),
            failure: None,
        }
    }

    /// Fetches the range and lands its chunks. Chunks that cannot be fetched land with the error.
    pub(super) async fn run(mut self) {
        let fetched = match self.batch.source.is_streamed {
            true => self.stream().await,
            false => self.fetch().await,
        };
        self.failure = fetched.err();
    }

    async fn fetch(&self) -> Result<(), Error> {
        let asked = Instant::now();
        let Some((first, pieces)) = self.open().await? else {
            return Ok(());
        };
        self.upstream.answered(asked.elapsed());
        self.batch.source.fetcher.counters.first_byte(asked.elapsed());
        let mut body = Body {
            pieces,
            arrived: BytesMut::new(),
            stored_off: self.batch.stored.start,
            last: (0..0, Bytes::new()),
        };
        self.take_in(&mut body, &first);
        for (position, at) in self.batch.chunks.iter().enumerate() {
            if !self.arrive(&mut body, position).await? {
                return Ok(());
            }
            if let Some((stored, urgency)) = self.cut(&mut body, *at) {
                self.decode_later(*at, stored, urgency).await;
            }
        }
        self.batch.source.fetcher.counters.range_took(asked.elapsed());
        if self.course.lane != Lane::Demand {
            let stored = &self.batch.stored;
            self.upstream.took(stored.end - stored.start, asked.elapsed());
        }
        Ok(())
    }

    /// Begins the body; `None` when the transfer was given up.
    async fn open(&self) -> Result<Option<(Bytes, ByteStream)>, Error> {
        match self.course.lane {
            Lane::Demand => self.begin_twice().await.map(Some),
            _ => self.begin_silently().await,
        }
    }

    /// Begins the body of a range that nobody waits for, until somebody does.
    async fn begin_silently(&self) -> Result<Option<(Bytes, ByteStream)>, Error> {
        let mut begun = Box::pin(self.begin());
        loop {
            match self.until(Upstream::silent_after, &mut begun).await {
                Some(begun) => {
                    self.course.set_silent(false);
                    return begun.map(Some);
                }
                None if self.fall_silent(self.batch.stored.start, 0) => return Ok(None),
                None => {}
            }
        }
    }

    /// What `work` gives, unless it takes as long as `patience` of the upstream, by what is known of that meanwhile.
    async fn until<W>(&self, patience: impl Fn(&Upstream) -> Duration, work: &mut W) -> Option<W::Output>
    where
        W: Future + Unpin,
    {
        let began = Instant::now();
        loop {
            let rest = patience(&self.upstream).saturating_sub(began.elapsed());
            if rest.is_zero() {
                return None;
            }
            if let Ok(done) = timeout(rest.min(LATE_YET), &mut *work).await {
                return Some(done);
            }
        }
    }

    /// Begins the body, twice when the first request is late.
    async fn begin_twice(&self) -> Result<(Bytes, ByteStream), Error> {
        let mut first = Box::pin(self.begin());
        if let Some(begun) = self.until(Upstream::late_after, &mut first).await {
            return begun;
        }
        if !self.upstream.take_hedge() {
            return first.await;
        }
        self.batch.source.fetcher.counters.add_hedged();
        tracing::debug!(
            upstream = self.upstream.name(),
            "a first byte is late; the range is asked for again"
        );
        match select(first, Box::pin(self.begin())).await {
            Either::Left((Ok(begun), _)) | Either::Right((Ok(begun), _)) => Ok(begun),
            Either::Left((Err(_), second)) => second.await,
            Either::Right((Err(_), first)) => first.await,
        }
    }

    /// Sends the request and waits for the first bytes.
    async fn begin(&self) -> Result<(Bytes, ByteStream), Error> {
        let mut pieces = self.batch.source.blob.stream(self.batch.stored.clone()).await?;
        match pieces.next().await {
            Some(first) => Ok((first?, pieces)),
            None => Err(self.short()),
        }
    }

    fn short(&self) -> Error {
        let message = format!(
            "blob {} ended in the middle of stored range {}-{}",
            self.batch.source.blob.digest(),
            self.batch.stored.start,
            self.batch.stored.end
        );
        Error::new(ErrorKind::Corrupt, message)
    }

    /// Reads on until a chunk has arrived. Whether it has: not when the transfer was given up.
    async fn arrive(&self, body: &mut Body, position: usize) -> Result<bool, Error> {
        let end = self
            .batch
            .source
            .chunk(self.batch.chunks[position])
            .stored_range()
            .end;
        while body.stored_off + (body.arrived.len() as u64) < end {
            match self.until(Upstream::silent_after, &mut body.pieces.next()).await {
                Some(piece) => {
                    self.course.set_silent(false);
                    let piece = piece.ok_or_else(|| self.short())??;
                    self.take_in(body, &piece);
                }
                None => {
                    let reached = body.stored_off + body.arrived.len() as u64;
                    if self.fall_silent(reached, position) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Nothing has come for a while: other work may use the link, and when a reader waits for one of the chunks from `position` on, the transfer is given up.
    /// Whether it was.
    fn fall_silent(&self, reached: u64, position: usize) -> bool {
        self.course.set_silent(true);
        self.write_off(reached);
        let rest = &self.batch.chunks[position..];
        let is_given_up = self.upstream.give_up(self.batch.source.layer, rest, &self.course);
        if is_given_up {
            self.batch.source.fetcher.counters.add_hedged();
            tracing::debug!(
                upstream = self.upstream.name(),
                "a transfer is silent; its rest is asked for again"
            );
        }
        is_given_up
    }

    /// What has not come does not keep other work from the link.
    fn write_off(&self, reached: u64) {
        if self.written_off.load(Ordering::Relaxed) == 0 {
            let rest = self.batch.stored.end - reached;
            self.written_off.store(rest, Ordering::Relaxed);
            self.upstream.fell_silent(rest);
        }
    }

    /// The stored bytes of a chunk that has arrived; `None` when another transfer has taken the chunk over.
    fn cut(&self, body: &mut Body, at: usize) -> Option<(Bytes, Arc<Urgency>)> {
        let stored = self.batch.source.chunk(at).stored_range();
        let bytes = body.cut(stored);
        Some((bytes, self.upstream.urgency(self.key(at))?))
    }

    /// Has a chunk decoded and landed. Waits only while too many bytes wait for decoding, and not when a reader waits for the chunk: ranges for readers
    /// are few and short.
    async fn decode_later(&self, at: usize, stored: Bytes, urgency: Arc<Urgency>) {
        // Made before the wait: from here on it tells those who wait, however this ends.
        let landing = Landing {
            source: self.batch.source.clone(),
            upstream: self.upstream.clone(),
            course: self.course.clone(),
            key: self.key(at),
            urgency,
        };
        let source = &self.batch.source;
        let room = match landing.urgency.lane() {
            Lane::Demand => None,
            _ => source.fetcher.room_for(source.chunk(at).plain_len).await,
        };
        tokio::spawn(landing.decode(stored, room));
    }

    fn take_in(&self, body: &mut Body, piece: &[u8]) {
        body.arrived.extend_from_slice(piece);
        self.received.fetch_add(piece.len() as u64, Ordering::Relaxed);
        self.course.reach(body.stored_off + body.arrived.len() as u64);
    }

    pub(super) fn key(&self, at: usize) -> Key {
        Key {
            layer: self.batch.source.layer,
            chunk: at,
        }
    }

    /// Tells whoever waits for a chunk that did not arrive.
    fn fail_rest(&self, error: &Error) {
        for at in &self.batch.chunks {
            let arrived = self
                .course
                .has_arrived(self.batch.source.chunk(*at).stored_range().end);
            if !arrived {
                self.upstream
                    .land(self.key(*at), &self.course, Err(error.clone()));
            }
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let interrupted = || Error::new(ErrorKind::Unavailable, "a transfer was interrupted");
        let failure = self.failure.take();
        self.fail_rest(failure.as_ref().unwrap_or(&interrupted()));
        let received = *self.received.get_mut();
        self.batch
            .source
            .fetcher
            .counters
            .add_stored(self.course.lane, received);
        let stored_len = self.batch.stored.end - self.batch.stored.start;
        let written_off = *self.written_off.get_mut();
        let part = UnderWay {
            ranges: 1,
            silent: usize::from(written_off > 0),
            bytes: stored_len - written_off,
        };
        self.upstream.ended(part, received, failure.as_ref());
    }
}

/// A chunk between its arrival and its landing. When it is dropped on the way, those who wait are told.
struct Landing {
    source: Arc<Source>,
    upstream: Arc<Upstream>,
    course: Arc<Course>,
    key: Key,
    urgency: Arc<Urgency>,
}

impl Landing {
    async fn decode(self, stored: Bytes, _room: Option<OwnedSemaphorePermit>) {
        let decoded = match self.try_decode(stored).await {
            Ok(Ok(plain)) => Ok(plain),
            Ok(Err(_)) => self.fetch_again().await,
            Err(error) => Err(error),
        };
        let plain_len = decoded.as_ref().map_or(0, Bytes::len);
        if let Some(lane) = self.land(decoded) {
            self.source.fetcher.counters.add_plain(lane, plain_len);
        }
    }

    async fn try_decode(&self, stored: Bytes) -> Result<Result<Bytes, FormatError>, Error> {
        let (source, at) = (self.source.clone(), self.key.chunk);
        let decoders = source.fetcher.decoders.clone();
        decoders
            .run(&self.urgency, move |decoder| source.decode(decoder, at, &stored))
            .await
    }

    /// The second and last attempt at a chunk that did not verify.
    async fn fetch_again(&self) -> Outcome {
        let blob = &self.source.blob;
        let chunk = self.source.chunk(self.key.chunk);
        tracing::debug!(blob = %blob.digest(), chunk = self.key.chunk, "a chunk did not verify; it is fetched again");
        blob.gave_wrong_bytes();
        let stored = blob.read_range(chunk.stored_range()).await?;
        self.source.fetcher.counters.add_retried(stored.len() as u64);
        if stored.len() as u64 != u64::from(chunk.stored_len) {
            let message = format!(
                "blob {} gave {} bytes of a chunk of {}",
                blob.digest(),
                stored.len(),
                chunk.stored_len
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        self.try_decode(stored).await?.map_err(|error| {
            let message = format!(
                "chunk {} of layer {} is corrupt in blob {}, twice in a row",
                self.key.chunk,
                self.source.index.diff_id,
                blob.digest()
            );
            Error::new(ErrorKind::Corrupt, message).with_source(error)
        })
    }

    fn land(&self, outcome: Outcome) -> Option<Lane> {
        self.upstream.land(self.key, &self.course, outcome)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // Does nothing when it has landed.
        let message = "a chunk was dropped between its arrival and its landing";
        let error = Error::new(ErrorKind::Unavailable, message);
        self.upstream.land(self.key, &self.course, Err(error));
    }
}
