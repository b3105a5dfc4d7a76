//! Layers without an index: fetched once as a whole, and served like any other from then on.
//!
//! The stored bytes of a layer come in parallel ranges and in order (`ranges`), are decoded on one thread (`pipeline`) and taken in on
//! another one, which scans the tar, cuts it into chunks, digests them and writes the plain bytes into the cache (`scanned`). When the
//! blob has the digest of the manifest and the plain bytes have the DiffID of the config, the file becomes the layer's data in one step,
//! and its [`LayerIndex`] is kept under the DiffID: the next time the layer needs no byte from the registry. Until then nothing is shown,
//! and a layer that is wrong leaves nothing. One that was cut, or whose process was killed, leaves the stored bytes that have come (`resume`): it is
//! decoded again from its first byte, and only what is missing is asked for.
//!
//! A layer for which the cache has no place, even after others have made room, gets an index of its blob instead and is lazy (`indexed`).
//!
//! The chunks of such a layer cannot be fetched one by one ([`Codec::Streamed`](sluice_format::compression::Codec::Streamed)), unless the
//! blob is a plain tar. When one of them is lost, the whole blob is streamed again and fills all holes at once (`again`). Memory is bounded
//! by the window of ranges and two short queues, whatever the length of the layer.

mod again;
mod counted;
mod indexed;
mod pipeline;
mod ranges;
mod resume;
mod scanned;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use sluice_format::{BlobDigest, DiffId, Digest, FormatError, LayerIndex, Limits};

pub(crate) use self::again::{Refill, refill};
pub use self::counted::CountedProgress;
pub(crate) use self::ranges::in_order;
use self::resume::ResumableBlob;
use self::scanned::{ScannedFile, Scanning};
use crate::cache::Cache;
use crate::{Blob, Descriptor, Error, ErrorKind, LazyLayer, blocking};

/// Times that a blob is read when its bytes do not match its digest: a transfer, or one of several hosts, may have spoilt it.
const ATTEMPTS: usize = 2;

/// Layers of one image that wait for their turn; how many are really under way is the cache's affair.
const LAYERS_WAITING: usize = 64;

/// Is told how streaming goes. Lengths are stored bytes.
pub trait StreamProgress: Debug + Send + Sync {
    /// So many layers are to be streamed.
    fn planned(&self, _layers: usize, _stored_len: u64) {}

    /// A layer begins.
    fn started(&self, _layer: BlobDigest, _stored_len: u64) {}

    /// More bytes of a layer have arrived.
    fn advanced(&self, _layer: BlobDigest, _bytes: u64) {}

    /// So many of the bytes that advance next had been kept since an earlier attempt and were not asked for.
    fn resumed(&self, _layer: BlobDigest, _bytes: u64) {}

    /// A layer is complete, or has failed.
    fn finished(&self, _layer: BlobDigest) {}
}

/// Nobody is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl StreamProgress for NoProgress {}

/// A layer that comes without an index.
#[derive(Clone, Debug)]
pub(crate) struct Unindexed {
    pub(crate) descriptor: Descriptor,
    pub(crate) blob: Arc<dyn Blob>,
    pub(crate) diff_id: DiffId,
}

/// The index of a layer as this host made it.
#[derive(Clone, Debug)]
struct Made {
    index: Arc<LayerIndex>,
    digest: Digest,
}

impl Unindexed {
    /// The layer with the index that this host has made earlier, if any.
    pub(crate) async fn known(
        &self,
        cache: &Arc<Cache>,
        limits: &Limits,
    ) -> Result<Option<LazyLayer>, Error> {
        match load(cache, self, limits).await? {
            Some(made) => self.with(&made, limits).map(Some),
            None => Ok(None),
        }
    }

    /// A blob whose digest is the DiffID holds the plain bytes, which can be fetched by ranges.
    fn with(&self, made: &Made, limits: &Limits) -> Result<LazyLayer, Error> {
        let index = match self.descriptor.digest.0 == self.diff_id.0 {
            true => Arc::new(made.index.stored_plain(limits)?),
            false => made.index.clone(),
        };
        Ok(LazyLayer {
            descriptor: self.descriptor.clone(),
            diff_id: self.diff_id,
            listed: self.diff_id,
            plain_len: index.plain_len(),
            index,
            index_digest: made.digest,
            blob: self.blob.clone(),
        })
    }
}

/// Streams layers, several at once, and gives each with its index, and the stored bytes that had to be streamed. A layer that is complete on this host is not read again; one that was
/// and has lost chunks is, unless nobody can be asked for it.
///
/// # Errors
/// What hinders streaming the first layer that fails.
pub(crate) async fn stream_layers(
    layers: &[Unindexed],
    cache: &Arc<Cache>,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<(Vec<LazyLayer>, u64), Error> {
    let mut wanted: HashMap<DiffId, &Unindexed> = HashMap::new();
    for layer in layers {
        if !is_complete(layer, cache, limits).await? {
            wanted.entry(layer.diff_id).or_insert(layer);
        }
    }
    let stored_len = wanted.values().map(|layer| layer.descriptor.size).sum();
    if !wanted.is_empty() {
        progress.planned(wanted.len(), stored_len);
    }
    // The largest first, so that the last one to end is a small one.
    let mut wanted: Vec<&Unindexed> = wanted.into_values().collect();
    wanted.sort_by_key(|layer| (std::cmp::Reverse(layer.descriptor.size), layer.diff_id.0));
    // Boxed here and now: a stream over the closure is not `Send` for every lifetime.
    let streams: Vec<BoxFuture<'_, Result<(DiffId, Made), Error>>> = wanted
        .into_iter()
        .map(|layer| {
            let made = stream_layer(layer, cache, limits, progress);
            made.map(move |made| made.map(|made| (layer.diff_id, made)))
                .boxed()
        })
        .collect();
    let streamed: HashMap<DiffId, Made> = stream::iter(streams)
        .buffer_unordered(LAYERS_WAITING)
        .try_collect()
        .await?;
    let mut complete = Vec::with_capacity(layers.len());
    for layer in layers {
        let made = match streamed.get(&layer.diff_id) {
            Some(made) => made.clone(),
            None => load(cache, layer, limits).await?.ok_or_else(|| lost(layer))?,
        };
        complete.push(layer.with(&made, limits)?);
    }
    Ok((complete, stored_len))
}

fn lost(layer: &Unindexed) -> Error {
    let message = format!(
        "the index of layer {} has left the cache meanwhile",
        layer.diff_id
    );
    Error::new(ErrorKind::Unavailable, message)
}

/// Whether this host has index and bytes of a layer, or index and a blob whose parts can be fetched.
pub(crate) async fn is_complete(
    layer: &Unindexed,
    cache: &Arc<Cache>,
    limits: &Limits,
) -> Result<bool, Error> {
    let Some(known) = layer.known(cache, limits).await? else {
        return Ok(false);
    };
    if !known.index.is_streamed() {
        return Ok(true);
    }
    let cache = cache.clone();
    blocking::run("read the cache", move || {
        Ok(cache.layer(&known.index).is_complete())
    })
    .await
}

async fn stream_layer(
    layer: &Unindexed,
    cache: &Arc<Cache>,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<Made, Error> {
    let turn = cache.turn(layer.diff_id);
    let _turn = turn.lock().await;
    let known = load(cache, layer, limits).await?;
    if let Some(known) = &known
        && is_complete(layer, cache, limits).await?
    {
        return Ok(known.clone());
    }
    let closed = |error| Error::new(ErrorKind::Io, "the cache is closed").with_source(error);
    let at_once = cache.streams_at_once();
    let _room = at_once.acquire().await.map_err(closed)?;
    let digest = layer.descriptor.digest;
    progress.started(digest, layer.descriptor.size);
    let streamed = stream_and_keep(layer, cache, limits, progress).await;
    progress.finished(digest);
    match (streamed, known) {
        (Err(error), Some(known)) if error.is_temporary() => {
            tracing::warn!(layer = %layer.diff_id, %error, "a layer that has lost chunks cannot be streamed again now; what is here is served");
            Ok(known)
        }
        (outcome, _) => outcome.map_err(|error| of_layer(layer, error)),
    }
}

fn of_layer(layer: &Unindexed, error: Error) -> Error {
    let digest = layer.descriptor.digest;
    Error::new(error.kind(), format!("layer {digest} cannot be streamed")).with_source(error)
}

async fn stream_and_keep(
    layer: &Unindexed,
    cache: &Arc<Cache>,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<Made, Error> {
    let made = match indexed::check_place(layer, cache.quota()) {
        Ok(()) => stream_whole(layer, cache, limits, progress).await,
        Err(error) => Err(error),
    };
    match made {
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            index_only(layer, error, cache, limits, progress).await
        }
        made => made,
    }
}

/// Makes up for missing place with an index of the blob, which lets the layer be read by ranges. Where there can be none, the missing place is the error.
async fn index_only(
    layer: &Unindexed,
    no_space: Error,
    cache: &Arc<Cache>,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<Made, Error> {
    let digest = layer.descriptor.digest;
    tracing::info!(layer = %layer.diff_id, error = %no_space, "the layer is read once more for an index of its blob");
    let advanced = |bytes| progress.advanced(digest, bytes);
    let indexed = indexed::index(layer, limits, &advanced).await;
    if indexed
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::Corrupt)
    {
        layer.blob.gave_wrong_bytes();
    }
    let Some(index) = indexed? else {
        return Err(no_space);
    };
    tracing::warn!(layer = %layer.diff_id, error = %no_space, "what is read of the layer is fetched when it is read");
    let (cache, limits) = (cache.clone(), limits.clone());
    blocking::run("keep an index", move || {
        let bytes = encode(&index, &limits)?;
        Ok(keep_index(&cache, index, &bytes, Some(digest)))
    })
    .await
}

async fn stream_whole(
    layer: &Unindexed,
    cache: &Arc<Cache>,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<Made, Error> {
    let resumable = ResumableBlob::take_up(&layer.blob, cache).await?;
    let _hold = resumable.as_ref().map(ResumableBlob::hold);
    let made = match scan(layer, resumable.as_ref(), cache, limits, progress).await {
        Ok(scanned) => verify_and_keep(layer, scanned, cache, limits).await,
        Err(error) => Err(error),
    };
    let is_of_use = made.as_ref().is_err_and(|error| is_worth_resuming(error.kind()));
    if let Some(resumable) = resumable.filter(|_| !is_of_use) {
        resumable.discard().await?;
    }
    made
}

/// Whether what has come of a blob is of use to the next attempt.
fn is_worth_resuming(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable | ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Io
    )
}

async fn verify_and_keep(
    layer: &Unindexed,
    scanned: ScannedFile,
    cache: &Arc<Cache>,
    limits: &Limits,
) -> Result<Made, Error> {
    if scanned.diff_id != layer.diff_id {
        return Err(FormatError::Corrupt {
            what: "the plain layer".to_owned(),
            expected: layer.diff_id.0,
            found: scanned.diff_id.0,
        }
        .into());
    }
    for warning in &scanned.warnings {
        tracing::debug!(layer = %layer.diff_id, warning, "an odd layer");
    }
    let (cache, limits) = (cache.clone(), limits.clone());
    blocking::run("keep a streamed layer", move || keep(&cache, scanned, &limits)).await
}

/// Reads the blob through, once more when it is not the one that its digest names, and from its source alone then.
async fn scan(
    layer: &Unindexed,
    resumable: Option<&ResumableBlob>,
    cache: &Arc<Cache>,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<ScannedFile, Error> {
    let digest = layer.descriptor.digest;
    let blob = match resumable {
        Some(resumable) => Arc::new(resumable.clone()),
        None => layer.blob.clone(),
    };
    let mut attempts = 1;
    loop {
        let (begun, diff_id, bounds) = (cache.clone(), layer.diff_id, limits.clone());
        let scanning = blocking::run("begin a layer", move || {
            Scanning::new(begun.begin_streamed(diff_id)?, &bounds)
        });
        let advanced = |bytes| {
            match resumable.map_or(0, ResumableBlob::take_resumed) {
                0 => {}
                resumed => progress.resumed(digest, resumed),
            }
            progress.advanced(digest, bytes);
        };
        let read = pipeline::run(&blob, scanning.await?, limits, &advanced).await?;
        if read.is_intact {
            return read.taken;
        }
        if let Some(resumable) = resumable {
            resumable.discard().await?;
        }
        layer.blob.gave_wrong_bytes();
        if attempts == ATTEMPTS {
            let message = format!("blob {digest} is corrupt: its bytes have another digest, twice in a row");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        attempts += 1;
    }
}

/// Puts the plain bytes in place and keeps the index. Blocks.
fn keep(cache: &Arc<Cache>, scanned: ScannedFile, limits: &Limits) -> Result<Made, Error> {
    let index = scanned.index(limits)?;
    let bytes = encode(&index, limits)?;
    cache.adopt(scanned.file, &index)?;
    Ok(keep_index(cache, index, &bytes, None))
}

fn encode(index: &LayerIndex, limits: &Limits) -> Result<Vec<u8>, Error> {
    let bytes = index.encode()?;
    FormatError::check_limit(
        "stored length of a layer index",
        bytes.len() as u64,
        limits.index_stored_len,
    )?;
    Ok(bytes)
}

/// Keeps an index of a layer; one that tells where the chunks lie in `blob` is for that blob only. Blocks.
fn keep_index(cache: &Arc<Cache>, index: LayerIndex, bytes: &[u8], blob: Option<BlobDigest>) -> Made {
    let digest = Digest::of(bytes);
    cache.documents().put(&digest, bytes);
    cache.documents().put_streamed(&index.diff_id, blob, &digest);
    Made {
        index: Arc::new(index),
        digest,
    }
}

/// The index that this host has made of a layer.
async fn load(cache: &Arc<Cache>, layer: &Unindexed, limits: &Limits) -> Result<Option<Made>, Error> {
    let (cache, limits) = (cache.clone(), limits.clone());
    let (diff_id, blob) = (layer.diff_id, layer.descriptor.digest);
    blocking::run("read the cache", move || {
        let documents = cache.documents();
        let found = documents
            .streamed(&diff_id, &blob)
            .and_then(|digest| Some((digest, documents.load(&digest, limits.index_stored_len)?)));
        Ok(found.and_then(|(digest, bytes)| parse(&bytes, digest, diff_id, &limits)))
    })
    .await
}

/// An index that cannot be read is made again.
fn parse(bytes: &Bytes, digest: Digest, diff_id: DiffId, limits: &Limits) -> Option<Made> {
    match LayerIndex::parse_local(bytes, limits) {
        Ok(index) if index.diff_id == diff_id => Some(Made {
            index: Arc::new(index),
            digest,
        }),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(layer = %diff_id, %error, "the index of a streamed layer cannot be read; it is made again");
            None
        }
    }
}
