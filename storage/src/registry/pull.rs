//! Reading a blob over HTTP by ranges: one blob, wherever it may be read from.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use sluice_format::BlobDigest;

use super::RegistryClient;
use super::part::Wanted;
use super::retry::Patience;
use super::route::Route;
use super::transfer::{Place, Transfer};
use crate::blob::check_range;
use crate::{Blob, ByteStream, Error, ErrorKind};

/// A blob at one or more hosts.
#[derive(Clone, Debug)]
pub(super) struct RemoteBlob {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) client: Arc<RegistryClient>,
    /// Repository or layout, for messages.
    shown: String,
    upstream: Arc<str>,
    digest: BlobDigest,
    stored_len: u64,
    /// In the order in which they are asked.
    places: Vec<Place>,
    /// The place that served the last range.
    pub(super) served_by: AtomicUsize,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.shown, self.digest)
    }
}

impl Inner {
    pub(super) fn place(&self, at: usize) -> Result<&Place, Error> {
        self.places.get(at).ok_or_else(|| {
            let message = format!("{} has no host that blobs may be pulled from", self.shown);
            Error::new(ErrorKind::Unsupported, message)
        })
    }

    pub(super) fn route(&self) -> Route {
        let standings = self.places.iter().map(|place| place.standing.clone());
        Route::new(standings.collect(), Patience::new(&self.client.options))
    }
}

impl RemoteBlob {
    /// A blob of `shown`, which shares `upstream` with others.
    pub(super) fn new(
        client: &Arc<RegistryClient>,
        shown: String,
        upstream: Arc<str>,
        (digest, stored_len): (BlobDigest, u64),
        places: Vec<Place>,
    ) -> Self {
        let inner = Inner {
            client: client.clone(),
            shown,
            upstream,
            digest,
            stored_len,
            places,
            served_by: AtomicUsize::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A transfer of `stored`, which begins when the first bytes are asked for.
    fn transfer(&self, stored: Range<u64>) -> Result<Transfer, Error> {
        let (digest, stored_len) = (self.inner.digest, self.inner.stored_len);
        check_range(&digest, stored_len, &stored)?;
        self.inner.place(0)?;
        let wanted = Wanted::new(digest, stored_len, stored);
        Ok(Transfer::new(self.inner.clone(), wanted))
    }
}

impl Blob for RemoteBlob {
    fn digest(&self) -> BlobDigest {
        self.inner.digest
    }

    fn stored_len(&self) -> u64 {
        self.inner.stored_len
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        async move {
            let mut transfer = self.transfer(stored.clone())?;
            let mut bytes = BytesMut::with_capacity((stored.end - stored.start) as usize);
            while let Some(next) = transfer.next().await? {
                bytes.extend_from_slice(&next);
            }
            Ok(bytes.freeze())
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            let transfer = self.transfer(stored)?;
            let bytes = stream::try_unfold(transfer, |mut transfer| async move {
                Ok(transfer.next().await?.map(|next| (next, transfer)))
            });
            Ok(bytes.boxed())
        }
        .boxed()
    }

    fn upstream(&self) -> Arc<str> {
        self.inner.upstream.clone()
    }

    fn gave_wrong_bytes(&self) {
        let at = self.inner.served_by.load(Ordering::Relaxed);
        if let Some(place) = self.inner.places.get(at) {
            place.standing.gave_wrong_bytes();
        }
    }
}
