//! A whole blob in parallel parts, its bytes in order.
//!
//! One connection seldom fills a link, but several do not get equal shares of it: one fills it, another one loses a packet and crawls
//! for seconds. (Measured with four of them on a link of 1 Gbit/s: a part takes 76 ms at the median, the slowest one 1.9 s.) Bytes
//! in order wait for the slowest. So when a part is complete and the first one that is not was much slower so far, the
//! rest of that one is asked for again, which goes over the connection that has just shown to be fast.
//!
//! A source that knows no ranges is asked for the whole blob instead, once that shows.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;

use crate::blob::stream_rest_of_whole;
use crate::{Blob, ByteStream, Error, ErrorKind};

/// Stored length of a part: at 100 MB/s some eighty milliseconds, so that asking costs little beside it.
const PART_LEN: u64 = 8 << 20;

/// Parts under way. Of several layers that are streamed side by side, each has so many. Over a link of 1 Gbit/s, 2.0 GB took 20.7 s with four
/// parts of 4 MiB, 18.2 s with two of 8 MiB, and 17.4 s over one connection, which a slower host would not fill the link with.
const PARTS_AT_ONCE: usize = 2;

/// Stored bytes that are asked for ahead of the reader, which are in memory at the worst.
const WINDOW: u64 = 32 << 20;

/// A part is slow when a complete one was so many times as fast.
const SLOWER: f64 = 2.0;

/// And when it has fallen so many bytes behind: pieces come in any size, so of short parts one is soon twice as fast.
const BEHIND: f64 = (PART_LEN / 4) as f64;

/// The bytes of a blob that have arrived and those under way. A transfer that breaks is resumed by the blob itself, at the byte where it
/// broke.
pub(super) struct InOrder {
    blob: Arc<dyn Blob>,
    /// Ascending and without gaps; the first one holds the byte that the reader wants next.
    parts: VecDeque<Part>,
    bodies: SelectAll<BoxStream<'static, (u64, Result<Bytes, Error>)>>,
    /// The first byte that nobody was asked for.
    next_off: u64,
    /// The first byte that the reader has not taken.
    taken_off: u64,
    bodies_begun: u64,
    /// The source knows no ranges: one body brings all that is missing.
    is_whole: bool,
}

/// A range of the blob.
struct Part {
    /// Names the body that brings it.
    body: u64,
    abort: AbortHandle,
    pieces: VecDeque<Bytes>,
    /// Where its body began, and when.
    begun_off: u64,
    begun: Instant,
    /// The first byte that has not arrived.
    arrived_off: u64,
    end: u64,
}

impl Part {
    fn begun(body: u64, abort: AbortHandle, stored: Range<u64>) -> Self {
        Self {
            body,
            abort,
            pieces: VecDeque::new(),
            begun_off: stored.start,
            begun: Instant::now(),
            arrived_off: stored.start,
            end: stored.end,
        }
    }

    /// Goes on with another body where it is.
    fn begin_again(&mut self, (body, abort): (u64, AbortHandle)) {
        (self.body, self.abort) = (body, abort);
        (self.begun_off, self.begun) = (self.arrived_off, Instant::now());
    }

    fn is_complete(&self) -> bool {
        self.arrived_off >= self.end
    }

    /// Bytes per second of its body.
    fn speed(&self, took: Duration) -> f64 {
        (self.arrived_off - self.begun_off) as f64 / took.as_secs_f64().max(1e-6)
    }
}

impl InOrder {
    pub(super) fn new(blob: &Arc<dyn Blob>) -> Self {
        let mut all = Self {
            blob: blob.clone(),
            parts: VecDeque::new(),
            bodies: SelectAll::new(),
            next_off: 0,
            taken_off: 0,
            bodies_begun: 0,
            is_whole: false,
        };
        all.begin_parts();
        all
    }

    /// Whether [`Self::pop`] has a piece.
    pub(super) fn has_piece(&self) -> bool {
        self.parts.front().is_some_and(|part| !part.pieces.is_empty())
    }

    /// The next bytes of the blob, if they are here.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let front = self.parts.front_mut()?;
        let piece = front.pieces.pop_front()?;
        self.taken_off += piece.len() as u64;
        if front.pieces.is_empty() && front.is_complete() {
            self.parts.pop_front();
        }
        self.begin_parts();
        Some(piece)
    }

    /// Whether bytes are under way, so that [`Self::arrive`] will end.
    pub(super) fn is_under_way(&self) -> bool {
        self.parts.iter().any(|part| !part.is_complete())
    }

    /// Whether more bytes are to be received before others are taken.
    pub(super) fn has_room(&self) -> bool {
        let arrived = self.parts.iter().map(|part| part.arrived_off).max();
        self.is_under_way() && arrived.is_some_and(|arrived| arrived < self.taken_off + WINDOW)
    }

    /// Waits until more bytes have arrived. Nothing is lost when it is dropped.
    ///
    /// # Errors
    /// What hinders reading the blob.
    pub(super) async fn arrive(&mut self) -> Result<(), Error> {
        let Some((body, piece)) = self.bodies.next().await else {
            let message = format!("blob {} ended early", self.blob.digest());
            return Err(Error::new(ErrorKind::Corrupt, message));
        };
        // Of a body that was given up, a piece may be on its way still.
        let Some(part) = self.parts.iter_mut().find(|part| part.body == body) else {
            return Ok(());
        };
        let piece = match piece {
            Err(error) if error.kind() == ErrorKind::Unsupported && !self.is_whole => {
                self.ask_for_whole();
                return Ok(());
            }
            piece => piece?,
        };
        part.arrived_off += piece.len() as u64;
        part.pieces.push_back(piece);
        if part.is_complete() {
            let took = part.begun.elapsed();
            let speed = part.speed(took);
            self.relieve(speed, took);
            self.begin_parts();
        }
        Ok(())
    }

    /// The first part that is not complete: the bytes that the reader waits for.
    fn first_missing(&self) -> Option<usize> {
        self.parts.iter().position(|part| !part.is_complete())
    }

    /// Has what is missing brought by one body.
    fn ask_for_whole(&mut self) {
        self.is_whole = true;
        let Some(at) = self.first_missing() else { return };
        self.parts.truncate(at + 1);
        self.bodies = SelectAll::new();
        self.next_off = self.blob.stored_len();
        let (blob, stored_off) = (self.blob.clone(), self.parts[at].arrived_off);
        let rest = stream::once(async move { stream_rest_of_whole(blob.as_ref(), stored_off).await });
        let body = self.receive(rest.try_flatten().boxed());
        self.parts[at].begin_again(body);
        self.parts[at].end = self.next_off;
    }

    /// Asks again for the rest of the first part that is not complete, if one that came with `speed` in a time of `took` was much faster.
    fn relieve(&mut self, speed: f64, took: Duration) {
        let Some(at) = self.first_missing() else { return };
        let part = &self.parts[at];
        let so_far = part.begun.elapsed();
        let behind = (speed - part.speed(so_far)) * so_far.as_secs_f64();
        if so_far < took || part.speed(so_far) * SLOWER > speed || behind < BEHIND {
            return;
        }
        part.abort.abort();
        let body = self.begin_body(part.arrived_off, part.end);
        self.parts[at].begin_again(body);
    }

    fn begin_parts(&mut self) {
        let stored_len = self.blob.stored_len();
        let under_way = self.parts.iter().filter(|part| !part.is_complete()).count();
        for _ in under_way..PARTS_AT_ONCE {
            if self.next_off >= stored_len || self.next_off + PART_LEN > self.taken_off + WINDOW {
                return;
            }
            let (start, end) = (self.next_off, (self.next_off + PART_LEN).min(stored_len));
            self.next_off = end;
            let (body, abort) = self.begin_body(start, end);
            self.parts.push_back(Part::begun(body, abort, start..end));
        }
    }

    fn begin_body(&mut self, start: u64, end: u64) -> (u64, AbortHandle) {
        let blob = self.blob.clone();
        let pieces = stream::once(async move { blob.stream(start..end).await });
        self.receive(pieces.try_flatten().boxed())
    }

    /// Has pieces come together with those of the other bodies.
    fn receive(&mut self, pieces: ByteStream) -> (u64, AbortHandle) {
        let name = self.bodies_begun;
        self.bodies_begun += 1;
        let (abort, registration) = AbortHandle::new_pair();
        let body = Abortable::new(pieces.map(move |piece| (name, piece)), registration);
        self.bodies.push(body.boxed());
        (name, abort)
    }
}

/// The bytes of a blob, for whoever takes them one by one.
pub(crate) fn in_order(blob: &Arc<dyn Blob>) -> ByteStream {
    let next = |mut all: InOrder| async move {
        loop {
            if let Some(piece) = all.pop() {
                return Ok(Some((piece, all)));
            }
            if !all.is_under_way() {
                return Ok(None);
            }
            all.arrive().await?;
        }
    };
    stream::try_unfold(InOrder::new(blob), next).boxed()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use sluice_format::BlobDigest;

    use super::*;

    const LEN: usize = 40 << 20;

    fn bytes() -> Vec<u8> {
        (0..LEN).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
    }

    /// Gives a piece per millisecond, but the first body that holds `slow` one per ten seconds.
    #[derive(Debug)]
    struct Uneven {
        bytes: Bytes,
        digest: BlobDigest,
        slow: u64,
        slowed: std::sync::atomic::AtomicBool,
    }

    impl Blob for Uneven {
        fn digest(&self) -> BlobDigest {
            self.digest
        }

        fn stored_len(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
            let bytes = self.bytes.slice(stored.start as usize..stored.end as usize);
            async move { Ok(bytes) }.boxed()
        }

        fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
            let is_slow =
                stored.contains(&self.slow) && !self.slowed.swap(true, std::sync::atomic::Ordering::Relaxed);
            let pause = Duration::from_millis(if is_slow { 10_000 } else { 1 });
            let mut rest = self.bytes.slice(stored.start as usize..stored.end as usize);
            let pieces = stream::unfold((), move |()| {
                let piece = rest.split_to(rest.len().min(256 << 10));
                async move {
                    tokio::time::sleep(pause).await;
                    (!piece.is_empty()).then_some((Ok(piece), ()))
                }
            });
            async move { Ok(pieces.boxed()) }.boxed()
        }

        fn upstream(&self) -> Arc<str> {
            "here".into()
        }
    }

    async fn read_all(slow: u64) -> (Vec<u8>, Duration) {
        let bytes = Bytes::from(bytes());
        let digest = BlobDigest(sluice_format::Digest::of(&bytes));
        let blob: Arc<dyn Blob> = Arc::new(Uneven {
            bytes,
            digest,
            slow,
            slowed: false.into(),
        });
        let begun = Instant::now();
        let mut all = InOrder::new(&blob);
        let mut read = Vec::new();
        loop {
            while let Some(piece) = all.pop() {
                read.extend_from_slice(&piece);
            }
            assert!(all.next_off - all.taken_off <= WINDOW);
            if !all.is_under_way() {
                return (read, begun.elapsed());
            }
            all.arrive().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn parts_come_in_order_whichever_is_slow() {
        for slow in [u64::MAX, 0, PART_LEN, LEN as u64 / 2, LEN as u64 - 1] {
            let (read, _) = read_all(slow).await;
            assert!(read == bytes(), "slow at {slow}");
        }
    }

    /// Refuses every range that does not begin with the blob's first byte, and says how often it was asked for.
    #[derive(Debug)]
    struct WithoutRanges {
        bytes: Bytes,
        asked: std::sync::atomic::AtomicUsize,
    }

    impl Blob for WithoutRanges {
        fn digest(&self) -> BlobDigest {
            BlobDigest(sluice_format::Digest::of(&self.bytes))
        }

        fn stored_len(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_range(&self, _: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
            async move { Err(Error::new(ErrorKind::Unsupported, "no ranges")) }.boxed()
        }

        fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
            self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let bytes = self.bytes.slice(stored.start as usize..stored.end as usize);
            let pieces: Vec<Result<Bytes, Error>> = match stored.start {
                0 => (0..bytes.len())
                    .step_by(100_000)
                    .map(|at| Ok(bytes.slice(at..bytes.len().min(at + 100_000))))
                    .collect(),
                _ => vec![Err(Error::new(ErrorKind::Unsupported, "no ranges"))],
            };
            async move { Ok(stream::iter(pieces).boxed()) }.boxed()
        }

        fn upstream(&self) -> Arc<str> {
            "here".into()
        }
    }

    #[tokio::test]
    async fn a_source_without_ranges_is_asked_for_the_whole_once() {
        let without = Arc::new(WithoutRanges {
            bytes: bytes().into(),
            asked: 0.into(),
        });
        let blob: Arc<dyn Blob> = without.clone();
        let mut all = InOrder::new(&blob);
        let (mut read, mut in_memory_max) = (Vec::new(), 0);
        while all.has_piece() || all.is_under_way() {
            // As slow a reader as the bound allows.
            while all.has_room() {
                all.arrive().await.unwrap();
            }
            let arrived = all.parts.iter().map(|part| part.arrived_off).max().unwrap();
            in_memory_max = in_memory_max.max(arrived - all.taken_off);
            read.extend_from_slice(&all.pop().unwrap());
        }
        assert!(read == bytes());
        assert!(in_memory_max <= WINDOW + 100_000, "{in_memory_max}");
        let asked = without.asked.load(std::sync::atomic::Ordering::Relaxed);
        assert!(asked <= PARTS_AT_ONCE + 2, "asked {asked} times");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_part_is_asked_for_again() {
        let (_, even) = read_all(u64::MAX).await;
        let (_, uneven) = read_all(PART_LEN).await;
        assert!(uneven < even * 2, "{uneven:?} and {even:?}");
    }
}
