//! From the name of an image to its layers and their indexes.
//!
//! The number of round trips does not depend on the number of layers: image index, manifest, then the config and the index
//! of every layer at the same time (one more where a layer's index must be found through the blob's footer). What is
//! returned has been checked as far as it can be without reading the layers: the manifest by its digest, the config by the
//! manifest's, each layer index by the digest in its annotation and by the DiffID that the config lists.
//!
//! With a cache, documents and indexes that are there are not asked for again, and a name that the repository cannot be asked
//! about means what it meant the last time (see the module `offline`).
//!
//! A footer's index is as trustworthy as the connection: its digest comes from the same blob. The annotation's is pinned by
//! the manifest.

pub mod choice;
mod unindexed;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use sluice_format::artifact::{self, INDEX_ANNOTATION};
use sluice_format::layer_index::{FOOTER_LEN, parse_footer};
use sluice_format::merge::merge;
use sluice_format::{
    BlobDigest, ChainId, DiffId, Digest, FormatError, IndexLocation, LayerIndex, Limits, Tree,
};
use tokio::time::Instant;

use self::unindexed::{Found, Without, complete};
use crate::blob::read_in_parts;
use crate::cache::Cache;
use crate::documents::{ImageConfig, ImageIndex, ImageManifest};
use crate::foreign;
use crate::offline::{self, Remembering, full_name};
use crate::stream::StreamProgress;
use crate::{Blob, Descriptor, Error, ErrorKind, Manifest, ManifestName, Platform, Repository, blocking};

/// Layer indexes fetched at the same time: more than nearly every image has layers, fewer than a registry's patience.
const INDEXES_AT_ONCE: usize = 64;

/// Indexes come in parts of at least so many bytes: as many as a new connection brings in two round trips, of 10 and of 20 packets.
const INDEX_PART_MIN: u64 = 40 << 10;
/// About how many parts the indexes of an image come in. More connections would begin at once than a link has room for.
const INDEX_PARTS: u64 = 8;
/// A repository that took so long to name the manifest is far away, and its round trips cost more than more requests do.
const FAR_AWAY: Duration = Duration::from_millis(20);

/// An image whose layers can be read by ranges.
#[derive(Debug)]
pub struct LazyImage {
    /// Digest of the manifest of the chosen platform.
    pub manifest_digest: Digest,
    /// Digest of the config; conversion keeps it.
    pub image_id: Digest,
    /// The image config.
    pub config: Bytes,
    /// The layers, lowest first.
    pub layers: Vec<LazyLayer>,
    /// Stored bytes of all layer indexes.
    pub index_bytes: u64,
    /// Stored bytes of layers without an index that were streamed now.
    pub streamed_bytes: u64,
}

impl LazyImage {
    /// The ChainID of all layers; `None` for an image without layers.
    pub fn chain_id(&self) -> Option<ChainId> {
        let diff_ids: Vec<DiffId> = self.layers.iter().map(|layer| layer.listed).collect();
        ChainId::of_stack(&diff_ids)
    }

    /// The trees of all layers, merged; device *i* is the *i*-th layer from the bottom. Computes for some milliseconds, a tenth of
    /// a second for a hundred thousand files.
    ///
    /// # Errors
    /// [`FormatError`] when a tree breaks a rule or the layers cannot be stacked.
    pub fn merged_tree(&self, limits: &Limits) -> Result<Tree, FormatError> {
        let trees = self.layers.iter().map(|layer| layer.index.layer_tree(limits));
        merge(trees.collect::<Result<_, _>>()?, limits)
    }
}

/// A layer with its index.
#[derive(Clone, Debug)]
pub struct LazyLayer {
    /// What the manifest says of its blob.
    pub descriptor: Descriptor,
    /// What names the plain layer that is read, in the cache, in mounts and in profiles: its digest, or what takes the place of one for a
    /// synthetic plain layer ([`LayerIndex::is_synthetic`]).
    pub diff_id: DiffId,
    /// The DiffID that the config lists. The same, except for a synthetic plain layer.
    pub listed: DiffId,
    /// Length of the plain layer in bytes.
    pub plain_len: u64,
    /// Its tree and chunk table.
    pub index: Arc<LayerIndex>,
    /// Digest of its index as it is stored.
    pub index_digest: Digest,
    /// Its stored bytes.
    pub blob: Arc<dyn Blob>,
}

/// Resolves `name` to the image for `platform` and loads the index of every layer.
///
/// # Errors
/// What hinders reading the repository; [`ErrorKind::NotFound`] for a platform that the image lacks;
/// [`ErrorKind::Corrupt`] when documents, digests and indexes contradict each other; [`ErrorKind::Unsupported`] naming the
/// layer that has no index.
pub async fn load_lazy_image(
    repository: &Arc<dyn Repository>,
    name: &ManifestName,
    platform: &Platform,
    limits: &Limits,
) -> Result<LazyImage, Error> {
    let resolved = resolve_image(repository.as_ref(), name, platform, limits).await?;
    load_resolved(repository.as_ref(), &resolved, limits, Without::REFUSE).await
}

/// An image of which no more than the manifest is known: enough to ask for what is attached to it while the rest loads.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The manifest of the chosen platform.
    pub manifest: Manifest,
    document: ImageManifest,
    /// For messages.
    shown: String,
    /// What it was called, unless by digest.
    tag: Option<String>,
    is_far_away: bool,
}

impl ResolvedImage {
    /// Says by which name its user knows an image that was resolved by its digest.
    pub fn named(mut self, name: &ManifestName) -> Self {
        self.tag = name.tag().map(str::to_owned);
        self
    }

    /// Digest of the config; conversion keeps it.
    pub fn image_id(&self) -> Digest {
        self.document.config.digest.0
    }

    /// What the manifest says of the config.
    pub fn config(&self) -> &Descriptor {
        &self.document.config
    }

    /// What the manifest says of the layers, lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.document.layers
    }

    /// What an artifact that is attached to the manifest names as its subject.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.manifest.media_type.clone(),
            digest: BlobDigest(self.manifest.digest),
            size: self.manifest.bytes.len() as u64,
            annotations: Default::default(),
        }
    }
}

/// The first step of [`load_lazy_image`]: `name` to the manifest for `platform`.
///
/// # Errors
/// As [`fetch_platform_manifest`]; [`ErrorKind::Corrupt`] for a manifest that is not valid.
pub async fn resolve_image(
    repository: &dyn Repository,
    name: &ManifestName,
    platform: &Platform,
    limits: &Limits,
) -> Result<ResolvedImage, Error> {
    let began = Instant::now();
    let manifest = fetch_platform_manifest(repository, name, platform, limits).await?;
    let is_far_away = began.elapsed() >= FAR_AWAY;
    let document = ImageManifest::parse(&manifest.bytes, limits)?;
    Ok(ResolvedImage {
        manifest,
        document,
        shown: format!("{} ({name})", repository.location()),
        tag: name.tag().map(str::to_owned),
        is_far_away,
    })
}

/// The second step of [`load_lazy_image`]: the config and the index of every layer.
///
/// # Errors
/// As [`load_lazy_image`].
pub async fn load_resolved_image(
    repository: &dyn Repository,
    resolved: &ResolvedImage,
    limits: &Limits,
) -> Result<LazyImage, Error> {
    load_resolved(repository, resolved, limits, Without::REFUSE).await
}

/// [`load_lazy_image`] with a cache: the repository is asked what a tag means, and for what the cache lacks. When it cannot be asked,
/// the tag means what it meant the last time. A name with a digest needs no repository when everything is cached.
///
/// # Errors
/// As [`load_lazy_image`].
pub async fn load_lazy_image_cached(
    repository: &Arc<dyn Repository>,
    name: &ManifestName,
    platform: &Platform,
    limits: &Limits,
    cache: &Arc<Cache>,
) -> Result<LazyImage, Error> {
    let resolved = resolve_image_cached(repository, name, platform, limits, cache).await?;
    load_resolved_image_cached(repository, name, platform, &resolved, limits, cache).await
}

/// The first step of [`load_lazy_image_cached`].
///
/// # Errors
/// As [`resolve_image`].
pub async fn resolve_image_cached(
    repository: &Arc<dyn Repository>,
    name: &ManifestName,
    platform: &Platform,
    limits: &Limits,
    cache: &Arc<Cache>,
) -> Result<ResolvedImage, Error> {
    resolve_image(&Remembering::new(repository, cache), name, platform, limits).await
}

/// The second step of [`load_lazy_image_cached`], with the name and platform that the image was resolved from.
///
/// # Errors
/// As [`load_resolved_image`].
pub async fn load_resolved_image_cached(
    repository: &Arc<dyn Repository>,
    name: &ManifestName,
    platform: &Platform,
    resolved: &ResolvedImage,
    limits: &Limits,
    cache: &Arc<Cache>,
) -> Result<LazyImage, Error> {
    let remembering = Remembering::new(repository, cache);
    let unindexed = Without {
        cache: Some(cache),
        progress: None,
    };
    let image = load_resolved(&remembering, resolved, limits, unindexed).await?;
    offline::remember_image(cache, &full_name(repository.as_ref(), name), platform, &image).await;
    Ok(image)
}

/// [`load_resolved_image_cached`] of any image: a layer that has no index is streamed into the cache first, which takes as long as
/// fetching it. `progress` is told.
///
/// # Errors
/// As [`load_resolved_image`], but for layers without index: [`ErrorKind::NoSpace`] when the cache has no place for one,
/// [`ErrorKind::Corrupt`] when its blob or its plain bytes do not have their digests or are no layer, [`ErrorKind::Unsupported`] when no
/// runtime takes its compression. A layer that fails leaves nothing.
pub async fn load_resolved_image_streaming(
    repository: &Arc<dyn Repository>,
    name: &ManifestName,
    platform: &Platform,
    resolved: &ResolvedImage,
    limits: &Limits,
    cache: &Arc<Cache>,
    progress: &dyn StreamProgress,
) -> Result<LazyImage, Error> {
    let remembering = Remembering::new(repository, cache);
    let unindexed = Without {
        cache: Some(cache),
        progress: Some(progress),
    };
    let image = load_resolved(&remembering, resolved, limits, unindexed).await?;
    offline::remember_image(cache, &full_name(repository.as_ref(), name), platform, &image).await;
    Ok(image)
}

async fn load_resolved(
    repository: &dyn Repository,
    resolved: &ResolvedImage,
    limits: &Limits,
    unindexed: Without<'_>,
) -> Result<LazyImage, Error> {
    let document = &resolved.document;
    let config = repository.fetch_blob(&document.config, limits.manifest_len);
    let indexes = load_indexes(repository, resolved, limits, unindexed);
    let (config, loaded) = futures_util::future::try_join(config, indexes).await?;

    let diff_ids = ImageConfig::parse(&config, limits)?.diff_ids;
    let image = &resolved.shown;
    check_count(image, &diff_ids, &loaded)?;
    let (loaded, streamed_bytes) =
        complete(loaded, &diff_ids, (repository, resolved), limits, unindexed).await?;
    check_diff_ids(image, &diff_ids, &loaded)?;
    let index_bytes = loaded.iter().map(|(_, stored_len)| stored_len).sum();
    Ok(LazyImage {
        manifest_digest: resolved.manifest.digest,
        image_id: document.config.digest.0,
        config,
        layers: loaded.into_iter().map(|(layer, _)| layer).collect(),
        index_bytes,
        streamed_bytes,
    })
}

/// The manifest called `name`, or, when that is an image index, the one in it for `platform`.
///
/// # Errors
/// What hinders reading the repository; [`ErrorKind::NotFound`] for a platform that the image lacks;
/// [`ErrorKind::Unsupported`] for a document that is neither.
pub async fn fetch_platform_manifest(
    repository: &dyn Repository,
    name: &ManifestName,
    platform: &Platform,
    limits: &Limits,
) -> Result<Manifest, Error> {
    let mut found = repository.fetch_manifest(name).await?;
    if artifact::is_image_index(&found.media_type) {
        let index = ImageIndex::parse(&found.bytes, limits)?;
        let entry = platform.choose(&index)?;
        let chosen = ManifestName::Digest(entry.descriptor.digest.0);
        found = repository.fetch_manifest(&chosen).await?;
    }
    if !artifact::is_manifest(&found.media_type) {
        let message = format!(
            "manifest {} of {} has media type \"{}\", which is not an image manifest",
            found.digest,
            repository.location(),
            found.media_type
        );
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(found)
}

/// The layers with their indexes, and how many stored bytes each index took.
async fn load_indexes(
    repository: &dyn Repository,
    resolved: &ResolvedImage,
    limits: &Limits,
    unindexed: Without<'_>,
) -> Result<Vec<Found>, Error> {
    let (layers, image) = (&resolved.document.layers, &resolved.shown);
    let part_len = if resolved.is_far_away {
        part_len(layers)
    } else {
        u64::MAX
    };
    // Boxed here and now: a stream over the closure is not `Send` for every lifetime, as a task of its own needs it.
    let mut loads: Vec<BoxFuture<'_, Result<Found, Error>>> = Vec::with_capacity(layers.len());
    for (at, descriptor) in layers.iter().enumerate() {
        let blob = repository.open_blob(descriptor);
        let what = format!("index of layer {} ({}) of {image}", at + 1, descriptor.digest);
        loads.push(load_layer(blob, descriptor, part_len, what, limits, unindexed).boxed());
    }
    stream::iter(loads).buffered(INDEXES_AT_ONCE).try_collect().await
}

/// How long the parts are in which the indexes of these layers are asked for.
fn part_len(layers: &[Descriptor]) -> u64 {
    let located = |layer: &Descriptor| layer.annotations.get(INDEX_ANNOTATION)?.parse().ok();
    let locations = layers.iter().filter_map(located);
    let lens = locations.map(|location: IndexLocation| location.stored_len);
    let all = lens.fold(0u64, u64::saturating_add);
    INDEX_PART_MIN.max(all / INDEX_PARTS)
}

async fn load_layer(
    blob: Arc<dyn Blob>,
    descriptor: &Descriptor,
    part_len: u64,
    what: String,
    limits: &Limits,
    unindexed: Without<'_>,
) -> Result<Found, Error> {
    let cache = unindexed.cache;
    let Some(location) = locate_index(&blob, descriptor, cache).await? else {
        return Ok(Found::NoIndex(descriptor.clone(), blob));
    };
    FormatError::check_limit(
        "stored length of a layer index",
        location.stored_len,
        limits.index_stored_len,
    )?;
    let stored = index_range(&location, blob.stored_len(), &what)?;
    let kept = offline::load(cache, location.digest, limits.index_stored_len).await;
    let is_kept = kept.is_some();
    let from = IndexSource {
        blob: &blob,
        stored,
        part_len,
        location: &location,
        what: &what,
    };
    let index = match from.load(kept, limits, cache).await {
        // The transfer, or one of several hosts, may have spoilt it.
        Err(error) if error.kind() == ErrorKind::Corrupt && !is_kept => {
            blob.gave_wrong_bytes();
            from.load(None, limits, cache).await?
        }
        outcome => outcome?,
    };
    let layer = LazyLayer {
        descriptor: descriptor.clone(),
        diff_id: index.diff_id,
        listed: index.diff_id,
        plain_len: index.chunks.plain_len(),
        index_digest: location.digest,
        index: Arc::new(index),
        blob,
    };
    Ok(Found::Indexed(layer, location.stored_len))
}

/// Where the bytes of an index are.
struct IndexSource<'a> {
    blob: &'a Arc<dyn Blob>,
    stored: Range<u64>,
    part_len: u64,
    location: &'a IndexLocation,
    what: &'a str,
}

impl IndexSource<'_> {
    /// Verifies and parses the index, from the bytes that the cache kept or from the blob; then it is kept.
    async fn load(
        &self,
        kept: Option<Bytes>,
        limits: &Limits,
        cache: Option<&Arc<Cache>>,
    ) -> Result<LayerIndex, Error> {
        let keep = cache.cloned().filter(|_| kept.is_none());
        let bytes = match kept {
            Some(bytes) => bytes,
            None => read_in_parts(self.blob.as_ref(), self.stored.clone(), self.part_len).await?,
        };
        let (stored_len, digest) = (self.blob.stored_len(), self.blob.digest());
        let (what, location, limits) = (self.what.to_owned(), *self.location, limits.clone());
        blocking::run("parse a layer index", move || {
            let index = parse_index(&what, &bytes, &location.digest, stored_len, &limits)?;
            if let Some(cache) = keep {
                cache.documents().put(&location.digest, &bytes);
                cache.documents().put_location(&digest, &location);
            }
            Ok(index)
        })
        .await
    }
}

/// The stored range of an index, which must lie within its blob.
fn index_range(location: &IndexLocation, stored_len: u64, what: &str) -> Result<Range<u64>, Error> {
    let end = location.stored_off.checked_add(location.stored_len);
    match end.filter(|end| *end <= stored_len) {
        Some(end) => Ok(location.stored_off..end),
        None => {
            let message = format!("the {what} lies outside its blob");
            Err(Error::new(ErrorKind::Corrupt, message))
        }
    }
}

/// Where the layer's index is: from the annotation, from an earlier look, or from the footer of a zstd blob.
async fn locate_index(
    blob: &Arc<dyn Blob>,
    layer: &Descriptor,
    cache: Option<&Arc<Cache>>,
) -> Result<Option<IndexLocation>, Error> {
    if let Some(text) = layer.annotations.get(INDEX_ANNOTATION) {
        return Ok(Some(text.parse()?));
    }
    if let Some(location) = offline::location(cache, layer.digest).await {
        return Ok(Some(location));
    }
    if foreign::is_pinned(layer) {
        return Ok(None);
    }
    let is_zstd = matches!(
        layer.media_type.as_str(),
        artifact::OCI_LAYER_ZSTD | artifact::DOCKER_LAYER_ZSTD
    );
    let stored_len = blob.stored_len();
    if !is_zstd || stored_len < FOOTER_LEN || offline::has_no_index(cache, layer.digest).await {
        return Ok(None);
    }
    let tail = blob.read_range(stored_len - FOOTER_LEN..stored_len).await?;
    let found = parse_footer(&tail, stored_len)?;
    if found.is_none() {
        foreign::note_unpinned(layer, &tail, stored_len);
        offline::keep_no_index(cache, layer.digest).await;
    }
    Ok(found)
}

/// Verifies and parses the index of a blob of `stored_len` bytes.
pub(crate) fn parse_index(
    what: &str,
    bytes: &[u8],
    digest: &Digest,
    stored_len: u64,
    limits: &Limits,
) -> Result<LayerIndex, Error> {
    let found = Digest::of(bytes);
    if found != *digest {
        return Err(FormatError::Corrupt {
            what: format!("the {what}"),
            expected: *digest,
            found,
        }
        .into());
    }
    let index = LayerIndex::parse(bytes, limits).map_err(|error| {
        let error = Error::from(error);
        Error::new(error.kind(), format!("the {what} is not valid")).with_source(error)
    })?;
    let outside = |chunk: &&sluice_format::ChunkRef| chunk.stored_range().end > stored_len;
    if let Some(chunk) = index.chunks.chunks().iter().find(outside) {
        let message = format!(
            "the {what} places the chunk at plain offset {} outside its blob of {stored_len} bytes",
            chunk.plain_off
        );
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(index)
}

fn check_count(image: &str, listed: &[DiffId], layers: &[Found]) -> Result<(), Error> {
    if listed.len() != layers.len() {
        let message = format!(
            "{image} has {} layers, but its config lists {} DiffIDs",
            layers.len(),
            listed.len()
        );
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(())
}

fn check_diff_ids(image: &str, listed: &[DiffId], layers: &[(LazyLayer, u64)]) -> Result<(), Error> {
    for (at, (listed, (layer, _))) in listed.iter().zip(layers).enumerate() {
        if *listed != layer.listed {
            let message = format!(
                "the index of layer {} ({}) of {image} is for DiffID {}, but the config lists {listed}",
                at + 1,
                layer.descriptor.digest,
                layer.listed
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
    }
    Ok(())
}
