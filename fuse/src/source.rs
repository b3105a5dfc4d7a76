//! What a front end asks of the engine: bytes of plain layers.
//!
//! The trait exists so that mounts can be tested with sources that are slow or fail, and so that this crate does not
//! care how a plain layer gets its bytes.

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sluice_format::DiffId;
use sluice_storage::{Error, PlainLayer};

/// A plain layer that can be read.
pub trait PlainSource: Debug + Send + Sync + 'static {
    /// Length of the plain layer in bytes. Never changes.
    fn plain_len(&self) -> u64;

    /// Exactly the bytes of `plain`, verified. The range is never empty and lies within the layer.
    ///
    /// Any number of reads may be in flight; dropping the future gives its interest up. The future is polled on a
    /// worker of the runtime that the session was given.
    ///
    /// # Errors
    /// Whatever hinders fetching, after retries. The next read of the same range starts afresh.
    fn read(self: Arc<Self>, plain: Range<u64>) -> BoxFuture<'static, Result<Bytes, Error>>;

    /// The verified bytes of `plain` when this host has all of them. May block on the disk, never on the network: it is
    /// called on a thread that takes the kernel's requests, and spares a cached read the way through the runtime.
    fn read_cached(&self, _plain: Range<u64>) -> Option<Bytes> {
        None
    }

    /// The same for somebody who reads ahead of programs, which says nothing about what they want.
    fn read_unnoticed(&self, plain: Range<u64>) -> Option<Bytes> {
        self.read_cached(plain)
    }

    /// A local file that holds the whole plain layer, verified, and keeps it as long as this source lives. The kernel
    /// then reads the file itself.
    fn complete_file(&self) -> Option<PathBuf> {
        None
    }
}

impl PlainSource for PlainLayer {
    fn plain_len(&self) -> u64 {
        Self::plain_len(self)
    }

    fn read(self: Arc<Self>, plain: Range<u64>) -> BoxFuture<'static, Result<Bytes, Error>> {
        async move { Self::read(&self, plain).await }.boxed()
    }

    fn read_cached(&self, plain: Range<u64>) -> Option<Bytes> {
        Self::read_cached(self, plain)
    }

    fn read_unnoticed(&self, plain: Range<u64>) -> Option<Bytes> {
        Self::read_unnoticed(self, plain)
    }

    fn complete_file(&self) -> Option<PathBuf> {
        Self::complete_file(self)
    }
}

/// A plain layer that is served even when a local file has all of it, so that every read comes by.
#[derive(Debug)]
struct Watched(Arc<dyn PlainSource>);

impl PlainSource for Watched {
    fn plain_len(&self) -> u64 {
        self.0.plain_len()
    }

    fn read(self: Arc<Self>, plain: Range<u64>) -> BoxFuture<'static, Result<Bytes, Error>> {
        self.0.clone().read(plain)
    }

    fn read_cached(&self, plain: Range<u64>) -> Option<Bytes> {
        self.0.read_cached(plain)
    }
}

/// A plain layer with its name.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Which layer it is.
    pub diff_id: DiffId,
    /// Its bytes.
    pub source: Arc<dyn PlainSource>,
}

impl Layer {
    /// The same layer, never given to the kernel as a file: every read of it is one of the session.
    pub fn watched(self) -> Self {
        Self {
            diff_id: self.diff_id,
            source: Arc::new(Watched(self.source)),
        }
    }
}

impl From<Arc<PlainLayer>> for Layer {
    fn from(layer: Arc<PlainLayer>) -> Self {
        Self {
            diff_id: layer.diff_id(),
            source: layer,
        }
    }
}
