//! A blob of which nothing is asked for twice.
//!
//! [`ResumableBlob`] stands before the blob of a layer that is streamed. What comes is kept block by block ([`PartialBlob`]); what is kept is read from there, and
//! only what lies between is asked for. So a stream that was cut, or whose process was killed, begins at its first byte again, and
//! its decoder, its digests and its tree with it, but the network is needed for the rest only. That holds for every compression, also for
//! one that cannot be decoded from the middle, and the blob digest covers all bytes as ever.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use sluice_format::BlobDigest;

use crate::blob::{check_range, stream_rest_of_whole};
use crate::cache::{Cache, PartialBlob};
use crate::{Blob, ByteStream, Error, ErrorKind, blocking};

/// Blobs up to this length are not kept: they come again in a moment.
const LEN_MIN: u64 = 1 << 20;

/// A blob and what has come of it.
#[derive(Clone)]
pub(super) struct ResumableBlob {
    inner: Arc<dyn Blob>,
    partial: Arc<PartialBlob>,
    /// Stored bytes that were read from there and not taken note of.
    resumed: Arc<AtomicU64>,
}

impl fmt::Debug for ResumableBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumableBlob")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl ResumableBlob {
    /// Takes up what the cache has of a blob. `None` for one that is short, lies on this host, or whose bytes cannot be kept.
    pub(super) async fn take_up(blob: &Arc<dyn Blob>, cache: &Arc<Cache>) -> Result<Option<Self>, Error> {
        if blob.is_local() || blob.stored_len() <= LEN_MIN {
            return Ok(None);
        }
        let (cache, digest, stored_len) = (cache.clone(), blob.digest(), blob.stored_len());
        let opened = blocking::run("read the cache", move || {
            Ok(cache.partial_blob(digest, stored_len))
        });
        let inner = blob.clone();
        Ok(opened.await?.map(|partial| Self {
            inner,
            partial,
            resumed: Arc::default(),
        }))
    }

    /// Stored bytes that were here and not asked for since the last call.
    pub(super) fn take_resumed(&self) -> u64 {
        self.resumed.swap(0, Ordering::Relaxed)
    }

    /// What has to last as long as the stream.
    pub(super) fn hold(&self) -> Hold {
        Hold(self.partial.clone())
    }

    /// The blob is not needed any more, or not worth keeping.
    pub(super) async fn discard(&self) -> Result<(), Error> {
        let partial = self.partial.clone();
        blocking::run("write the cache", move || {
            partial.give_up();
            Ok(())
        })
        .await
    }
}

/// Lets go of what is kept when the stream ends, however it does.
pub(super) struct Hold(Arc<PartialBlob>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl Blob for ResumableBlob {
    fn digest(&self) -> BlobDigest {
        self.inner.digest()
    }

    fn stored_len(&self) -> u64 {
        self.inner.stored_len()
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        async move {
            let mut bytes = BytesMut::with_capacity((stored.end - stored.start) as usize);
            let mut pieces = self.stream(stored).await?;
            while let Some(piece) = pieces.try_next().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            check_range(&self.digest(), self.stored_len(), &stored)?;
            let reader = Reader::new(self.clone(), stored);
            let pieces = stream::try_unfold(reader, |mut reader| async move {
                Ok(reader.next().await?.map(|piece| (piece, reader)))
            });
            Ok(pieces.boxed())
        }
        .boxed()
    }

    fn upstream(&self) -> Arc<str> {
        self.inner.upstream()
    }

    fn gave_wrong_bytes(&self) {
        self.inner.gave_wrong_bytes();
    }
}

/// A range on its way.
struct Reader {
    blob: ResumableBlob,
    /// What has not been given yet.
    stored: Range<u64>,
    /// Bytes from the source, and where they end: where a block begins that is here, or with the range.
    arriving: Option<(ByteStream, u64)>,
    /// What has arrived and not been given.
    rest: Bytes,
    /// What has arrived of the present block, if it was seen from its first byte on.
    block: Vec<Bytes>,
    block_len: u64,
    /// The source sends the whole blob for any range.
    is_whole: bool,
}

impl Reader {
    fn new(blob: ResumableBlob, stored: Range<u64>) -> Self {
        Self {
            blob,
            stored,
            arriving: None,
            rest: Bytes::new(),
            block: Vec::new(),
            block_len: 0,
            is_whole: false,
        }
    }

    /// The next bytes, within one block.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.stored.is_empty() {
            return Ok(None);
        }
        let block = PartialBlob::block_at(self.stored.start);
        let kept = match self.arriving {
            None => self.read_kept(block).await?,
            Some(_) => None,
        };
        let piece = match kept {
            Some(bytes) => bytes,
            None => self.receive(block).await?,
        };
        self.stored.start += piece.len() as u64;
        if matches!(&self.arriving, Some((_, end)) if *end == self.stored.start) {
            self.arriving = None;
        }
        Ok(Some(piece))
    }

    /// The wanted bytes of a block that is here.
    async fn read_kept(&mut self, block: u64) -> Result<Option<Bytes>, Error> {
        let partial = self.blob.partial.clone();
        if !partial.has(block) {
            return Ok(None);
        }
        let range = partial.range(block);
        let Some(bytes) = blocking::run("read the cache", move || Ok(partial.read(block))).await? else {
            return Ok(None);
        };
        let (start, end) = (self.stored.start, self.stored.end.min(range.end));
        self.blob.resumed.fetch_add(end - start, Ordering::Relaxed);
        Ok(Some(bytes.slice(
            (start - range.start) as usize..(end - range.start) as usize,
        )))
    }

    /// Bytes of a block that is not here, and the block to its place when they are its last.
    async fn receive(&mut self, block: u64) -> Result<Bytes, Error> {
        while self.rest.is_empty() {
            self.rest = self.arrive().await?;
        }
        let (range, start) = (self.blob.partial.range(block), self.stored.start);
        let part = self.rest.len().min((range.end - start) as usize);
        let piece = self.rest.split_to(part);
        if start == range.start {
            (self.block, self.block_len) = (Vec::new(), 0);
        }
        if start == range.start + self.block_len {
            self.block.push(piece.clone());
            self.block_len += part as u64;
            if self.block_len == range.end - range.start {
                self.keep(block).await?;
            }
        }
        Ok(piece)
    }

    async fn keep(&mut self, block: u64) -> Result<(), Error> {
        let (partial, pieces) = (self.blob.partial.clone(), std::mem::take(&mut self.block));
        blocking::run("write the cache", move || {
            partial.put(block, &pieces);
            Ok(())
        })
        .await
    }

    /// The next bytes from the source. One without ranges sends everything to a reader of all the rest; to others it says that it has none.
    async fn arrive(&mut self) -> Result<Bytes, Error> {
        match self.arrive_in_range().await {
            Err(error) if error.kind() == ErrorKind::Unsupported && self.wants_the_rest() => {
                self.is_whole = true;
                let rest = stream_rest_of_whole(self.blob.inner.as_ref(), self.stored.start).await?;
                self.arriving = Some((rest, self.stored.end));
                self.arrive_in_range().await
            }
            arrived => arrived,
        }
    }

    fn wants_the_rest(&self) -> bool {
        self.stored.end == self.blob.stored_len() && !self.is_whole
    }

    async fn arrive_in_range(&mut self) -> Result<Bytes, Error> {
        let arriving = match &mut self.arriving {
            Some((arriving, _)) => arriving,
            None => {
                let wanted = self.stored.start..self.end_of_gap();
                let arriving = self.blob.inner.stream(wanted.clone()).await?;
                &mut self.arriving.insert((arriving, wanted.end)).0
            }
        };
        match arriving.try_next().await? {
            Some(piece) => Ok(piece),
            None => {
                let message = format!("blob {} ended early", self.blob.digest());
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    /// Where the next block begins that is here, or the end of the range.
    fn end_of_gap(&self) -> u64 {
        let partial = &self.blob.partial;
        let mut block = PartialBlob::block_at(self.stored.start) + 1;
        while partial.range(block).start < self.stored.end && !partial.has(block) {
            block += 1;
        }
        partial.range(block).start.min(self.stored.end)
    }
}
