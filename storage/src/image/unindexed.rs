//! Layers of an image that come without an index.
//!
//! Whether they are refused, found among those that this host has streamed, or streamed now, depends on who loads the image.

use std::sync::Arc;

use sluice_format::{DiffId, Limits};

use crate::cache::Cache;
use crate::stream::{self, StreamProgress, Unindexed};
use crate::{Blob, Descriptor, Error, ErrorKind, LazyLayer};

/// What becomes of layers without an index.
#[derive(Clone, Copy)]
pub(super) struct Without<'a> {
    /// Where documents are kept, and indexes that this host has made.
    pub(super) cache: Option<&'a Arc<Cache>>,
    /// Told of layers that are streamed; without it they are refused.
    pub(super) progress: Option<&'a dyn StreamProgress>,
}

impl Without<'_> {
    pub(super) const REFUSE: Self = Self {
        cache: None,
        progress: None,
    };
}

/// A layer as the repository has it.
#[derive(Debug)]
pub(super) enum Found {
    /// With its index, which takes so many stored bytes.
    Indexed(LazyLayer, u64),
    NoIndex(Descriptor, Arc<dyn Blob>),
}

/// Makes up for the layers without an index: with one that this host has made, or makes now. Also tells how many stored bytes were
/// streamed for that.
pub(super) async fn complete(
    found: Vec<Found>,
    diff_ids: &[DiffId],
    image: &str,
    limits: &Limits,
    unindexed: Without<'_>,
) -> Result<(Vec<(LazyLayer, u64)>, u64), Error> {
    let mut without = Vec::new();
    for (found, diff_id) in found.iter().zip(diff_ids) {
        if let Found::NoIndex(descriptor, blob) = found {
            without.push(Unindexed {
                descriptor: descriptor.clone(),
                blob: blob.clone(),
                diff_id: *diff_id,
            });
        }
    }
    let (made, streamed_bytes) = match (unindexed.cache, unindexed.progress) {
        (Some(cache), Some(progress)) if !without.is_empty() => {
            let stored_len: u64 = without.iter().map(|layer| layer.descriptor.size).sum();
            tracing::info!(
                image,
                layers = found.len(),
                without_index = without.len(),
                stored_len,
                "layers without an index are streamed as a whole, unless they are here; the others are lazy"
            );
            stream::stream_layers(&without, cache, limits, progress).await?
        }
        (Some(cache), _) => (known(&without, &found, image, limits, cache).await?, 0),
        (None, _) => (Vec::new(), 0),
    };
    let mut made = made.into_iter();
    let complete = found.into_iter().filter_map(|found| match found {
        Found::Indexed(layer, stored_len) => Some((layer, stored_len)),
        Found::NoIndex(..) => made.next().map(|layer| (layer, 0)),
    });
    Ok((complete.collect(), streamed_bytes))
}

/// The layers with indexes that this host has made earlier.
async fn known(
    without: &[Unindexed],
    found: &[Found],
    image: &str,
    limits: &Limits,
    cache: &Arc<Cache>,
) -> Result<Vec<LazyLayer>, Error> {
    let mut known = Vec::with_capacity(without.len());
    let numbers = (1..)
        .zip(found)
        .filter(|(_, found)| matches!(found, Found::NoIndex(..)));
    for (layer, (number, _)) in without.iter().zip(numbers) {
        match layer.known(cache, limits).await? {
            Some(layer) => known.push(layer),
            None => return Err(no_index(&layer.descriptor, number, image)),
        }
    }
    Ok(known)
}

/// The error for a layer that cannot be read lazily.
pub(super) fn no_index(layer: &Descriptor, number: usize, image: &str) -> Error {
    let message = format!(
        "layer {number} ({}) of {image} has no Sluice index; convert it first: sluice convert SRC DST",
        layer.digest
    );
    Error::new(ErrorKind::Unsupported, message)
}
