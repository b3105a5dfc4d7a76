//! Layer indexes that are attached to an image whose layers have none inside.
//!
//! One artifact per image manifest holds the indexes of its layers, each pinned by digest in the artifact's manifest, beside the digest of
//! the blob and the DiffID that it is for. Which artifact belongs to a manifest is asked once per image and remembered in the cache, so that the
//! next start needs no repository. An attached index is as trustworthy as the right to write to the repository: it is taken only for the
//! manifest that it is attached to, and only when its DiffID is that of the config. What cannot be used is said in the log and counts as
//! absent.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sluice_format::artifact::{
    CREATED_ANNOTATION, IMAGE_ID_ANNOTATION, INDEX_ARTIFACT, INDEXED_BLOB_ANNOTATION,
    INDEXED_DIFF_ID_ANNOTATION, LAYER_INDEX_DOCUMENT,
};
use sluice_format::{BlobDigest, DiffId, Digest, LayerIndex, Limits};

use crate::cache::Cache;
use crate::image::parse_index;
use crate::referrers::{
    Artifact, ArtifactDocument, ArtifactManifest, Referrer, attach_artifact, fetch_artifact,
};
use crate::{
    Blob, Descriptor, Error, ErrorKind, LazyLayer, ManifestName, Repository, WritableRepository, blocking,
};

/// Artifacts of one image that are tried, newest first.
const CANDIDATES_MAX: usize = 4;

/// After so long a registry that does not answer is not waited for: the layers are streamed instead.
const FIND_TIMEOUT: Duration = Duration::from_secs(10);

/// Indexes fetched at the same time.
const INDEXES_AT_ONCE: usize = 64;

/// The index of one layer, to be attached to an image.
#[derive(Clone, Debug)]
pub struct IndexedLayer {
    /// The blob that holds the layer.
    pub blob: BlobDigest,
    /// The plain layer.
    pub diff_id: DiffId,
    /// The encoded [`LayerIndex`].
    pub index: Bytes,
}

/// Attaches indexes of layers to the image manifest `subject`, which stays as it is. `created` is the time in the format of RFC 3339, in
/// UTC; of several such artifacts the newest is found. Gives the digest of the artifact.
///
/// # Errors
/// What hinders writing.
pub async fn push_indexes(
    repository: &dyn WritableRepository,
    subject: &Descriptor,
    image_id: &Digest,
    layers: &[IndexedLayer],
    created: &str,
) -> Result<Digest, Error> {
    let annotation = |name: &str, value: String| (name.to_owned(), value);
    let document = |layer: &IndexedLayer| ArtifactDocument {
        media_type: LAYER_INDEX_DOCUMENT.to_owned(),
        bytes: layer.index.clone(),
        annotations: BTreeMap::from([
            annotation(INDEXED_BLOB_ANNOTATION, layer.blob.to_string()),
            annotation(INDEXED_DIFF_ID_ANNOTATION, layer.diff_id.to_string()),
        ]),
    };
    let artifact = Artifact {
        artifact_type: INDEX_ARTIFACT.to_owned(),
        documents: layers.iter().map(document).collect(),
        annotations: BTreeMap::from([
            annotation(IMAGE_ID_ANNOTATION, image_id.to_string()),
            annotation(CREATED_ANNOTATION, created.to_owned()),
        ]),
    };
    attach_artifact(repository, subject, &artifact).await
}

/// A layer that has no index inside, and is looked for among the attached ones.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) blob: &'a Arc<dyn Blob>,
    pub(crate) diff_id: DiffId,
}

/// The layers of `wanted` whose index is attached to the manifest `subject`, by blob, with the stored length of the index. Never an
/// error.
pub(crate) async fn find(
    repository: &dyn Repository,
    subject: &Digest,
    wanted: &[Wanted<'_>],
    limits: &Limits,
    cache: Option<&Arc<Cache>>,
) -> HashMap<BlobDigest, (LazyLayer, u64)> {
    if wanted.is_empty() {
        return HashMap::new();
    }
    let found = tokio::time::timeout(FIND_TIMEOUT, find_artifact(repository, subject, limits, cache)).await;
    let manifest = match found {
        Ok(Ok(Some(manifest))) => manifest,
        Ok(Ok(None)) => return HashMap::new(),
        Ok(Err(error)) => {
            tracing::warn!(manifest = %subject, %error, "the indexes attached to an image cannot be looked for");
            return HashMap::new();
        }
        Err(_) => {
            tracing::warn!(manifest = %subject, "the indexes attached to an image were not found in time");
            return HashMap::new();
        }
    };
    let documents = by_blob(&manifest);
    let loads = wanted.iter().filter_map(|layer| {
        let document = documents.get(&layer.descriptor.digest)?;
        Some(Box::pin(load(repository, layer, document, limits)))
    });
    let loads: Vec<_> = loads.collect();
    let loaded: Vec<_> = stream::iter(loads).buffered(INDEXES_AT_ONCE).collect().await;
    loaded.into_iter().flatten().collect()
}

/// The documents by the blob that they are for.
fn by_blob(manifest: &ArtifactManifest) -> HashMap<BlobDigest, &Descriptor> {
    let of_blob = |document| {
        let document: &Descriptor = document;
        let blob = document.annotations.get(INDEXED_BLOB_ANNOTATION)?;
        (document.media_type == LAYER_INDEX_DOCUMENT).then_some((blob.parse().ok()?, document))
    };
    manifest.layers.iter().filter_map(of_blob).collect()
}

async fn load(
    repository: &dyn Repository,
    layer: &Wanted<'_>,
    document: &Descriptor,
    limits: &Limits,
) -> Option<(BlobDigest, (LazyLayer, u64))> {
    match try_load(repository, layer, document, limits).await {
        Ok(loaded) => Some((layer.descriptor.digest, (loaded, document.size))),
        Err(error) => {
            let blob = layer.descriptor.digest;
            tracing::warn!(%blob, index = %document.digest, %error, "an attached index cannot be used");
            None
        }
    }
}

async fn try_load(
    repository: &dyn Repository,
    layer: &Wanted<'_>,
    document: &Descriptor,
    limits: &Limits,
) -> Result<LazyLayer, Error> {
    let bytes = repository.fetch_blob(document, limits.index_stored_len).await?;
    let what = format!("attached index of {}", layer.descriptor.digest);
    let (stored_len, digest, limits) = (layer.blob.stored_len(), document.digest.0, limits.clone());
    let index: LayerIndex = blocking::run("parse a layer index", move || {
        parse_index(&what, &bytes, &digest, stored_len, &limits)
    })
    .await?;
    if index.diff_id != layer.diff_id {
        let message = format!(
            "it is for DiffID {}, but the config lists {}",
            index.diff_id, layer.diff_id
        );
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(LazyLayer {
        descriptor: layer.descriptor.clone(),
        diff_id: index.diff_id,
        listed: index.diff_id,
        plain_len: index.plain_len(),
        index_digest: digest,
        index: Arc::new(index),
        blob: layer.blob.clone(),
    })
}

/// The artifact that belongs to a manifest: the one that was found before, or the newest that is listed.
async fn find_artifact(
    repository: &dyn Repository,
    subject: &Digest,
    limits: &Limits,
    cache: Option<&Arc<Cache>>,
) -> Result<Option<ArtifactManifest>, Error> {
    let location = repository.location();
    if let Some(known) = known(cache, *subject, &location).await {
        let name = ManifestName::Digest(known);
        if let Ok(found) = repository.fetch_manifest(&name).await
            && let Ok(manifest) = ArtifactManifest::parse(&found.bytes, limits)
            && manifest.belongs(INDEX_ARTIFACT, subject)
        {
            return Ok(Some(manifest));
        }
    }
    let listed = repository.fetch_referrers(subject, INDEX_ARTIFACT).await?;
    for candidate in newest_first(listed).iter().take(CANDIDATES_MAX) {
        let fetched = fetch_artifact(repository, subject, INDEX_ARTIFACT, candidate, limits).await?;
        if fetched.is_some() {
            remember(cache, *subject, location, candidate.descriptor.digest.0).await;
            return Ok(fetched);
        }
    }
    Ok(None)
}

fn newest_first(mut listed: Vec<Referrer>) -> Vec<Referrer> {
    let created = |referrer: &Referrer| referrer.descriptor.annotations.get(CREATED_ANNOTATION).cloned();
    // Times of one zone and form sort as text. Of equals, the last one listed was stored last.
    listed.reverse();
    listed.sort_by_key(|referrer| std::cmp::Reverse(created(referrer)));
    listed
}

async fn known(cache: Option<&Arc<Cache>>, subject: Digest, location: &str) -> Option<Digest> {
    let (cache, location) = (cache?.clone(), location.to_owned());
    let known = blocking::run("read the cache", move || {
        Ok(cache.documents().attached(&subject, &location))
    });
    known.await.ok()?
}

async fn remember(cache: Option<&Arc<Cache>>, subject: Digest, location: String, artifact: Digest) {
    let Some(cache) = cache.cloned() else { return };
    let kept = blocking::run("write the cache", move || {
        cache.documents().put_attached(&subject, &location, &artifact);
        Ok(())
    });
    // What is not kept is looked for again.
    let _ = kept.await;
}
