//! A blob that misbehaves in named ways, and that remembers what it was asked.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use sluice_format::BlobDigest;
use tokio::time::sleep;

use crate::sync::lock;
use crate::{Blob, ByteStream, Error, ErrorKind};

/// One way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every answer takes this long.
    Latency(Duration),
    /// The transfer fails for now: a range as a whole, a stream after this many bytes.
    Cut {
        /// Bytes that a stream still gives.
        after: u64,
    },
    /// The byte at this stored offset comes with one bit turned.
    FlippedByte {
        /// Offset in the blob.
        stored_off: u64,
    },
    /// A range comes without its last bytes, against the contract of [`Blob::read_range`].
    Short {
        /// Bytes that are missing.
        by: u64,
    },
    /// Bytes trickle: a stream comes in pieces with a pause before each, and a range takes as long in all.
    Throttled {
        /// Bytes of a piece.
        piece_len: usize,
        /// Before each piece.
        pause: Duration,
    },
    /// The source falls silent and does not say so: a stream after this many bytes, a range at once.
    Stalled {
        /// Bytes that a stream still gives.
        after: u64,
    },
}

/// For how many answers a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// For this many answers that it applies to.
    First(u32),
    /// For all.
    Always,
}

/// A decorator that adds faults to a blob.
#[derive(Debug)]
pub struct FaultyBlob {
    inner: Arc<dyn Blob>,
    faults: Mutex<Vec<(Fault, Times)>>,
    requests: Mutex<Vec<Range<u64>>>,
}

impl FaultyBlob {
    /// A blob without faults so far.
    pub fn new(inner: Arc<dyn Blob>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            faults: Mutex::default(),
            requests: Mutex::default(),
        })
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault, times: Times) {
        lock(&self.faults).push((fault, times));
    }

    /// Removes all faults.
    pub fn heal(&self) {
        lock(&self.faults).clear();
    }

    /// The ranges that were asked for, whole or as streams.
    pub fn requests(&self) -> Vec<Range<u64>> {
        lock(&self.requests).clone()
    }

    /// Faults that apply to an answer for `stored`; each is used up a little.
    fn take(&self, stored: &Range<u64>) -> Vec<Fault> {
        lock(&self.requests).push(stored.clone());
        let mut faults = lock(&self.faults);
        let mut applied = Vec::new();
        for (fault, times) in faults.iter_mut() {
            if matches!(fault, Fault::FlippedByte { stored_off } if !stored.contains(stored_off)) {
                continue;
            }
            match times {
                Times::Always => {}
                Times::First(0) => continue,
                Times::First(left) => *left -= 1,
            }
            applied.push(*fault);
        }
        applied
    }
}

impl Blob for FaultyBlob {
    fn digest(&self) -> BlobDigest {
        self.inner.digest()
    }

    fn stored_len(&self) -> u64 {
        self.inner.stored_len()
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        async move {
            let faults = self.take(&stored);
            let mut bytes = BytesMut::from(self.inner.read_range(stored.clone()).await?);
            for fault in faults {
                match fault {
                    Fault::Latency(latency) => sleep(latency).await,
                    Fault::Cut { .. } => return Err(cut()),
                    Fault::FlippedByte { stored_off } => bytes[(stored_off - stored.start) as usize] ^= 1,
                    Fault::Short { by } => bytes.truncate(bytes.len().saturating_sub(by as usize)),
                    Fault::Throttled { piece_len, pause } => {
                        sleep(pause * bytes.len().div_ceil(piece_len) as u32).await;
                    }
                    Fault::Stalled { .. } => return std::future::pending().await,
                }
            }
            Ok(bytes.freeze())
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            let faults = self.take(&stored);
            let mut flow = Flow::new(BytesMut::from(self.inner.read_range(stored.clone()).await?));
            for fault in faults {
                match fault {
                    Fault::Latency(latency) => sleep(latency).await,
                    Fault::Cut { after } => flow.stop(after, End::Cut),
                    Fault::FlippedByte { stored_off: at } => {
                        // Another fault may have taken that byte away.
                        let byte = flow.bytes.get_mut((at - stored.start) as usize);
                        byte.into_iter().for_each(|byte| *byte ^= 1);
                    }
                    Fault::Short { by } => {
                        let kept = (flow.bytes.len() as u64).saturating_sub(by);
                        flow.stop(kept, End::Whole);
                    }
                    Fault::Throttled { piece_len, pause } => {
                        (flow.piece_len, flow.pause) = (piece_len, pause)
                    }
                    Fault::Stalled { after } => flow.stop(after, End::Stalled),
                }
            }
            Ok(flow.into_stream())
        }
        .boxed()
    }

    fn gave_wrong_bytes(&self) {
        self.inner.gave_wrong_bytes();
    }

    fn upstream(&self) -> Arc<str> {
        self.inner.upstream()
    }
}

/// How the bytes of a stream come.
struct Flow {
    bytes: BytesMut,
    piece_len: usize,
    pause: Duration,
    end: End,
}

/// What comes after the last byte.
#[derive(Clone, Copy)]
enum End {
    Whole,
    Cut,
    Stalled,
}

impl Flow {
    fn new(bytes: BytesMut) -> Self {
        Self {
            piece_len: bytes.len().max(1),
            bytes,
            pause: Duration::ZERO,
            end: End::Whole,
        }
    }

    fn stop(&mut self, after: u64, end: End) {
        self.bytes.truncate(after as usize);
        self.end = end;
    }

    fn into_stream(self) -> ByteStream {
        let (piece_len, pause) = (self.piece_len, self.pause);
        let pieces = stream::unfold(self.bytes.freeze(), move |mut rest| async move {
            if rest.is_empty() {
                return None;
            }
            if !pause.is_zero() {
                sleep(pause).await;
            }
            let piece = rest.split_to(piece_len.min(rest.len()));
            Some((Ok(piece), rest))
        });
        match self.end {
            End::Whole => pieces.boxed(),
            End::Cut => pieces.chain(stream::iter([Err(cut())])).boxed(),
            End::Stalled => pieces.chain(stream::pending()).boxed(),
        }
    }
}

fn cut() -> Error {
    Error::new(ErrorKind::Unavailable, "the transfer was cut, as the test asked")
}
