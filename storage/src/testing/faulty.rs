//! A blob that misbehaves in named ways, and that remembers what it was asked.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use sluice_format::BlobDigest;

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
                    Fault::Latency(latency) => tokio::time::sleep(latency).await,
                    Fault::Cut { .. } => return Err(cut()),
                    Fault::FlippedByte { stored_off } => bytes[(stored_off - stored.start) as usize] ^= 1,
                    Fault::Short { by } => bytes.truncate(bytes.len().saturating_sub(by as usize)),
                }
            }
            Ok(bytes.freeze())
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            let faults = self.take(&stored);
            let mut bytes = BytesMut::from(self.inner.read_range(stored.clone()).await?);
            let mut last = None;
            for fault in faults {
                match fault {
                    Fault::Latency(latency) => tokio::time::sleep(latency).await,
                    Fault::Cut { after } => {
                        bytes.truncate(after as usize);
                        last = Some(Err(cut()));
                    }
                    Fault::FlippedByte { stored_off: at } => bytes[(at - stored.start) as usize] ^= 1,
                    Fault::Short { by } => bytes.truncate(bytes.len().saturating_sub(by as usize)),
                }
            }
            Ok(stream::iter([Ok(bytes.freeze())].into_iter().chain(last)).boxed())
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

fn cut() -> Error {
    Error::new(ErrorKind::Unavailable, "the transfer was cut, as the test asked")
}
