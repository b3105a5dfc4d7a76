//! Plain layers in memory that misbehave on demand.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sluice_fuse::PlainSource;
use sluice_storage::{Error, ErrorKind};

/// A plain layer held in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) bytes: Bytes,
    /// How long each read takes, in milliseconds.
    pub(crate) delay_ms: AtomicU64,
    pub(crate) fails: AtomicBool,
    pub(crate) panics: AtomicBool,
    /// Answers one byte less than asked.
    pub(crate) cuts: AtomicBool,
    pub(crate) reads: AtomicUsize,
    pub(crate) file: Option<PathBuf>,
}

impl Memory {
    pub(crate) fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: bytes.into(),
            ..Self::default()
        })
    }
}

impl PlainSource for Memory {
    fn plain_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(self: Arc<Self>, plain: Range<u64>) -> BoxFuture<'static, Result<Bytes, Error>> {
        assert!(
            plain.start < plain.end && plain.end <= self.plain_len(),
            "the contract of reads: {plain:?}"
        );
        async move {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let delay = self.delay_ms.load(Ordering::Relaxed);
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay)).await;
            }
            assert!(
                !self.panics.load(Ordering::Relaxed),
                "a source that panics on demand"
            );
            if self.fails.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Corrupt, "a source that fails on demand"));
            }
            let cut = u64::from(self.cuts.load(Ordering::Relaxed));
            Ok(self.bytes.slice(plain.start as usize..(plain.end - cut) as usize))
        }
        .boxed()
    }

    fn complete_file(&self) -> Option<PathBuf> {
        self.file.clone()
    }
}

/// A plain layer of any length whose bytes follow from their position.
#[derive(Debug)]
pub(crate) struct Pattern {
    pub(crate) len: u64,
}

impl Pattern {
    /// The bytes of a range.
    pub(crate) fn bytes(plain: Range<u64>) -> Vec<u8> {
        plain
            .map(|at| ((at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 8 * 8)) as u8)
            .collect()
    }
}

impl PlainSource for Pattern {
    fn plain_len(&self) -> u64 {
        self.len
    }

    fn read(self: Arc<Self>, plain: Range<u64>) -> BoxFuture<'static, Result<Bytes, Error>> {
        async move { Ok(Self::bytes(plain).into()) }.boxed()
    }
}
