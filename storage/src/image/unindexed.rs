//! Layers of an image that come without an index.
//!
//! A layer that this host has streamed is taken from here. Otherwise the manifest may pin the table of contents of another lazy format
//! ([`crate::foreign`]), which costs no look-up; or its index may be attached to the image ([`crate::attached`]), which makes it as lazy as
//! one with an index inside. Whether the rest is refused or streamed now depends on who loads the image.

use std::sync::Arc;

use sluice_format::{DiffId, Limits};

use super::ResolvedImage;
use crate::attached::{self, Wanted};
use crate::cache::Cache;
use crate::foreign::{self, Apart};
use crate::stream::{self, StreamProgress, Unindexed};
use crate::{Blob, Descriptor, Error, ErrorKind, LazyLayer, Repository};

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

/// Makes up for the layers without an index: with one that is attached to the image, or that this host has made, or makes now. Also tells how
/// many stored bytes were streamed for that.
pub(super) async fn complete(
    found: Vec<Found>,
    diff_ids: &[DiffId],
    (repository, resolved): (&dyn Repository, &ResolvedImage),
    limits: &Limits,
    unindexed: Without<'_>,
) -> Result<(Vec<(LazyLayer, u64)>, u64), Error> {
    let image = resolved.shown.as_str();
    let found = attach(found, diff_ids, (repository, resolved), limits, unindexed.cache).await?;
    let without = without_index(&found, diff_ids);
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
        (None, _) => (refuse(&found, image)?, 0),
    };
    let mut made = made.into_iter();
    let complete = found.into_iter().filter_map(|found| match found {
        Found::Indexed(layer, stored_len) => Some((layer, stored_len)),
        Found::NoIndex(..) => made.next().map(|layer| (layer, 0)),
    });
    Ok((complete.collect(), streamed_bytes))
}

fn without_index(found: &[Found], diff_ids: &[DiffId]) -> Vec<Unindexed> {
    let unindexed = |(found, diff_id): (&Found, &DiffId)| match found {
        Found::Indexed(..) => None,
        Found::NoIndex(descriptor, blob) => Some(Unindexed {
            descriptor: descriptor.clone(),
            blob: blob.clone(),
            diff_id: *diff_id,
        }),
    };
    found.iter().zip(diff_ids).filter_map(unindexed).collect()
}

/// Gives layers that are not here as a whole the index that their table of contents makes, or the one that is attached to the image.
async fn attach(
    found: Vec<Found>,
    diff_ids: &[DiffId],
    (repository, resolved): (&dyn Repository, &ResolvedImage),
    limits: &Limits,
    cache: Option<&Arc<Cache>>,
) -> Result<Vec<Found>, Error> {
    let mut missing = Vec::new();
    for layer in without_index(&found, diff_ids) {
        let is_here = match cache {
            Some(cache) => stream::is_complete(&layer, cache, limits).await?,
            None => false,
        };
        if !is_here {
            missing.push(layer);
        }
    }
    let wanted: Vec<Wanted<'_>> = missing
        .iter()
        .map(|layer| Wanted {
            descriptor: &layer.descriptor,
            blob: &layer.blob,
            diff_id: layer.diff_id,
        })
        .collect();
    let apart = Apart::new(repository, resolved.tag.as_deref());
    let mut made = foreign::find(&wanted, &resolved.shown, &apart, limits, cache).await;
    let mut rest = wanted;
    rest.retain(|layer| !made.contains_key(&layer.descriptor.digest));
    let subject = &resolved.manifest.digest;
    made.extend(attached::find(repository, subject, &rest, limits, cache).await);
    let attach = |found| match found {
        Found::NoIndex(descriptor, blob) => match made.get(&descriptor.digest) {
            Some((layer, stored_len)) => Found::Indexed(layer.clone(), *stored_len),
            None => Found::NoIndex(descriptor, blob),
        },
        indexed => indexed,
    };
    Ok(found.into_iter().map(attach).collect())
}

/// No layers, when none lacks an index.
fn refuse(found: &[Found], image: &str) -> Result<Vec<LazyLayer>, Error> {
    for (number, found) in (1..).zip(found) {
        if let Found::NoIndex(descriptor, _) = found {
            return Err(no_index(descriptor, number, image));
        }
    }
    Ok(Vec::new())
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
fn no_index(layer: &Descriptor, number: usize, image: &str) -> Error {
    let message = format!(
        "layer {number} ({}) of {image} has no Sluice index; convert the image (sluice convert SRC DST), or attach an index to it (sluice index IMAGE)",
        layer.digest
    );
    Error::new(ErrorKind::Unsupported, message)
}
