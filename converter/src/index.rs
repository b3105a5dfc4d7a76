//! Layer indexes for an image as it is.
//!
//! [`index`] reads every layer once, with a [`LayerPass`] on a thread of its own, checks blob digest and DiffID, and attaches the indexes to the
//! image manifest in the repository, or in another one that takes them. The image stays as it is, to the byte. A layer that has its index inside needs none; one
//! that cannot be read by ranges gets none, and is named with the reason.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use sluice_format::artifact::INDEX_ANNOTATION;
use sluice_format::stored::StoredLayer;
use sluice_format::{BlobDigest, DiffId, FormatError, Limits};
use sluice_storage::attached::{IndexedLayer, push_indexes};
use sluice_storage::blob::stream_whole;
use sluice_storage::decompress::index_pass;
use sluice_storage::documents::ImageConfig;
use sluice_storage::{Descriptor, Repository, ResolvedImage, StreamProgress, WritableRepository};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::Error;
use crate::error::joined;
use crate::report::{IndexReport, IndexedLayerReport};

/// Layers under way at once, at least and at most: a layer keeps one core busy, and a buffer of a megabyte.
const LAYERS_IN_FLIGHT: (usize, usize) = (2, 8);

/// Longest piece of stored bytes in the queue, in bytes, and how many may wait.
const PIECE_LEN: usize = 256 << 10;
const QUEUE: usize = 4;

/// Makes the indexes of the image and attaches them to its manifest in `target`. `created` is the time in the format of RFC 3339, in UTC.
///
/// # Errors
/// What hinders reading or writing; a layer that is not what its digests say, or that no runtime takes.
pub async fn index(
    source: &dyn Repository,
    resolved: &ResolvedImage,
    target: &dyn WritableRepository,
    created: &str,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<IndexReport, Error> {
    let began = Instant::now();
    let config = source.fetch_blob(resolved.config(), limits.manifest_len).await?;
    let diff_ids = ImageConfig::parse(&config, limits)?.diff_ids;
    let layers = resolved.layers();
    if diff_ids.len() != layers.len() {
        let reason = format!("lists {} DiffIDs for {} layers", diff_ids.len(), layers.len());
        return Err(Error::document("image config", reason));
    }
    let distinct: HashMap<BlobDigest, (&Descriptor, DiffId)> = layers
        .iter()
        .zip(&diff_ids)
        .map(|(layer, diff_id)| (layer.digest, (layer, *diff_id)))
        .collect();
    let made = index_layers(source, distinct.into_values().collect(), limits, progress).await?;
    let (mut reports, mut indexed) = (Vec::new(), Vec::new());
    for layer in layers {
        if let Some(made) = made.get(&layer.digest)
            && !reports
                .iter()
                .any(|report: &IndexedLayerReport| report.digest == layer.digest)
        {
            reports.push(made.report.clone());
            indexed.extend(made.indexed.clone());
        }
    }
    let artifact_digest = match indexed.is_empty() {
        true => None,
        false => {
            let subject = resolved.descriptor();
            Some(push_indexes(target, &subject, &resolved.image_id(), &indexed, created).await?)
        }
    };
    Ok(IndexReport {
        manifest_digest: resolved.manifest.digest,
        image_id: resolved.image_id(),
        artifact_digest,
        layers: reports,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// What has become of a layer.
#[derive(Debug)]
struct Made {
    report: IndexedLayerReport,
    indexed: Option<IndexedLayer>,
}

async fn index_layers(
    source: &dyn Repository,
    mut layers: Vec<(&Descriptor, DiffId)>,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<HashMap<BlobDigest, Made>, Error> {
    layers.retain(|(layer, _)| !layer.annotations.contains_key(INDEX_ANNOTATION));
    // The largest first, so that the last one to end is a small one.
    layers.sort_by_key(|(layer, _)| (std::cmp::Reverse(layer.size), layer.digest.0));
    progress.planned(layers.len(), layers.iter().map(|(layer, _)| layer.size).sum());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = cores.clamp(LAYERS_IN_FLIGHT.0, LAYERS_IN_FLIGHT.1);
    // Boxed here and now: a stream over the closure is not `Send` for every lifetime.
    let work: Vec<BoxFuture<'_, Result<(BlobDigest, Made), Error>>> = layers
        .into_iter()
        .map(|(layer, diff_id)| {
            let digest = layer.digest;
            index_layer(source, layer, diff_id, limits, progress)
                .map(move |made| match made {
                    Ok(made) => Ok((digest, made)),
                    Err(error) => Err(Error::Layer {
                        digest,
                        source: Box::new(error),
                    }),
                })
                .boxed()
        })
        .collect();
    stream::iter(work).buffer_unordered(at_once).try_collect().await
}

async fn index_layer(
    source: &dyn Repository,
    layer: &Descriptor,
    diff_id: DiffId,
    limits: &Limits,
    progress: &dyn StreamProgress,
) -> Result<Made, Error> {
    progress.started(layer.digest, layer.size);
    let (pieces, to_pass) = mpsc::channel(QUEUE);
    let bounds = limits.clone();
    let passing = spawn_blocking(move || Ok(index_pass(to_pass, &bounds)?));
    let fed = feed(source, layer, pieces, progress).await;
    let passed = joined(passing.await);
    progress.finished(layer.digest);
    fed?;
    let stored = passed?;
    verify(&stored, layer, diff_id)?;
    let limits = limits.clone();
    let encoding = spawn_blocking(move || made(stored, &limits));
    joined(encoding.await)
}

async fn feed(
    source: &dyn Repository,
    layer: &Descriptor,
    to: mpsc::Sender<Bytes>,
    progress: &dyn StreamProgress,
) -> Result<(), Error> {
    let mut pieces = stream_whole(source.open_blob(layer).as_ref()).await?;
    while let Some(piece) = pieces.next().await {
        let mut piece = piece?;
        progress.advanced(layer.digest, piece.len() as u64);
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(PIECE_LEN));
            if to.send(part).await.is_err() {
                // The pass has failed and says why.
                return Ok(());
            }
        }
    }
    Ok(())
}

fn verify(stored: &StoredLayer, layer: &Descriptor, diff_id: DiffId) -> Result<(), Error> {
    let compare = |what, expected, found| match expected == found {
        true => Ok(()),
        false => Err(Error::Corrupt {
            what,
            expected,
            found,
        }),
    };
    compare("blob", layer.digest.0, stored.blob_digest.0)?;
    compare("plain layer (DiffID)", diff_id.0, stored.diff_id.0)
}

fn made(stored: StoredLayer, limits: &Limits) -> Result<Made, Error> {
    let mut report = IndexedLayerReport {
        digest: stored.blob_digest,
        diff_id: stored.diff_id,
        stored_len: stored.stored_len,
        plain_len: stored.plain_len,
        chunks: 0,
        index_stored_len: 0,
        refusal: None,
        warnings: stored.warnings,
    };
    let index = match stored.index {
        Ok(index) => index,
        Err(refusal @ FormatError::NoRestart { .. }) => {
            report.refusal = Some(refusal.to_string());
            return Ok(Made {
                report,
                indexed: None,
            });
        }
        Err(error) => return Err(error.into()),
    };
    let encoded = Bytes::from(index.encode()?);
    FormatError::check_limit(
        "stored length of a layer index",
        encoded.len() as u64,
        limits.index_stored_len,
    )?;
    report.chunks = index.chunks.chunks().len();
    report.index_stored_len = encoded.len() as u64;
    let indexed = IndexedLayer {
        blob: stored.blob_digest,
        diff_id: stored.diff_id,
        index: encoded,
    };
    Ok(Made {
        report,
        indexed: Some(indexed),
    })
}
