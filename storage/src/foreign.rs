//! Layers in another lazy format, eStargz or zstd:chunked, read as they are.
//!
//! A manifest may pin the digest of a layer's table of contents (TOC). Then the layer starts lazily, without conversion and without any
//! setting: its TOC is fetched, from where an annotation says, with the tail of the blob, or from an image of TOCs beside the image, and makes the layer index
//! ([`sluice_format::toc`]). The stored TOC is kept as a document, so that the next start needs no repository.
//!
//! A TOC that no annotation pins is not looked for: it would be no more trustworthy than whoever wrote the blob's last bytes, while the bytes of
//! the layer are pinned by its DiffID. What is wrong with a TOC is said in the log, and the layer is treated like any other without an index:
//! the blob is still an ordinary layer.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use sluice_format::toc::{ForeignLayer, PinnedToc, Toc, TocKind, TocLocation, find_toc};
use sluice_format::{BlobDigest, Digest, FormatError, Limits};

use tokio::sync::OnceCell;

use crate::attached::Wanted;
use crate::cache::{Cache, TocRecord};
use crate::documents::ImageManifest;
use crate::{Blob, Descriptor, Error, ErrorKind, LazyLayer, ManifestName, Repository, blocking, offline};

/// TOCs fetched at the same time: more than nearly every image has layers.
const TOCS_AT_ONCE: usize = 64;

/// Least and most bytes at the end of a blob that are read when only its footer tells where the TOC is. With the most comes the TOC of a layer
/// with some thousand files, and it costs about two round trips at 10 MB/s.
const TAIL_LEN: RangeInclusive<u64> = (16 << 10)..=(256 << 10);

/// Share of a blob that this may be: the TOC of a layer of small files is about a thirtieth of it.
const TAIL_SHARE: u64 = 16;

/// Times that a TOC is read when its digest is not the pinned one: a transfer, or one of several hosts, may have spoilt it.
const ATTEMPTS: usize = 2;

/// A TOC as it is stored.
#[derive(Clone, Debug)]
struct Stored {
    location: TocLocation,
    bytes: Bytes,
}

/// Whether the manifest pins a TOC for this layer, well or not.
pub(crate) fn is_pinned(layer: &Descriptor) -> bool {
    !matches!(pinned(layer), Ok(None))
}

fn pinned(layer: &Descriptor) -> Result<Option<PinnedToc>, FormatError> {
    PinnedToc::of_annotations(|name| layer.annotations.get(name).map(String::as_str))
}

/// Says why a blob that ends with the footer of another lazy format is not read lazily, when its last bytes are here anyway.
pub(crate) fn note_unpinned(layer: &Descriptor, tail: &[u8], stored_len: u64) {
    if let Ok(Some(_)) = find_toc(tail, stored_len) {
        tracing::info!(
            layer = %layer.digest,
            "the layer has a table of contents, but no annotation of the manifest pins it; it is taken for an ordinary layer"
        );
    }
}

/// TOCs of eStargz that lie in an image of their own, beside the image in its repository. Its name follows from that of the image; which TOC
/// is whose, an annotation tells. What it holds is pinned by the manifest of the image, whoever has written it.
#[derive(Debug)]
pub(crate) struct Apart<'a> {
    repository: &'a dyn Repository,
    /// What the image was called; a digest has no image beside it.
    tag: Option<&'a str>,
    found: OnceCell<HashMap<BlobDigest, Descriptor>>,
}

/// What the tag of an image with TOCs has behind that of its image.
const APART_SUFFIX: &str = "-esgztoc";
/// Names the layer that a TOC belongs to.
const APART_ANNOTATION: &str = "containerd.io/snapshot/stargz/layer.digest";

impl<'a> Apart<'a> {
    pub(crate) fn new(repository: &'a dyn Repository, tag: Option<&'a str>) -> Self {
        Self {
            repository,
            tag,
            found: OnceCell::new(),
        }
    }

    /// The TOCs by layer, looked for once.
    async fn found(&self, limits: &Limits) -> Result<&HashMap<BlobDigest, Descriptor>, Error> {
        let look = async || {
            let tag = self.tag.ok_or_else(|| {
                unusable(
                    "its table of contents lies beside a tag, and the image is named by digest".to_owned(),
                )
            })?;
            let name = ManifestName::Tag(format!("{tag}{APART_SUFFIX}"));
            let manifest = self.repository.fetch_manifest(&name).await?;
            let layers = ImageManifest::parse(&manifest.bytes, limits)?.layers;
            let of_layer = |toc: Descriptor| {
                let layer = toc.annotations.get(APART_ANNOTATION)?.parse().ok()?;
                Some((BlobDigest(layer), toc))
            };
            Ok(layers.into_iter().filter_map(of_layer).collect())
        };
        self.found.get_or_try_init(look).await
    }

    async fn fetch(&self, layer: &BlobDigest, limits: &Limits) -> Result<Bytes, Error> {
        let toc = self.found(limits).await?.get(layer);
        let toc =
            toc.ok_or_else(|| unusable("the image with tables of contents has none for it".to_owned()))?;
        self.repository.fetch_blob(toc, limits.toc_stored_len).await
    }
}

/// The layers of `wanted` whose TOC the manifest pins, by blob, with the stored length of the TOC. Never an error.
pub(crate) async fn find(
    wanted: &[Wanted<'_>],
    image: &str,
    apart: &Apart<'_>,
    limits: &Limits,
    cache: Option<&Arc<Cache>>,
) -> HashMap<BlobDigest, (LazyLayer, u64)> {
    let loads = wanted.iter().filter(|layer| is_pinned(layer.descriptor));
    let loads: Vec<_> = loads
        .map(|layer| Box::pin(load(layer, image, apart, limits, cache)))
        .collect();
    let loaded: Vec<_> = stream::iter(loads).buffered(TOCS_AT_ONCE).collect().await;
    let loaded: HashMap<_, _> = loaded.into_iter().flatten().collect();
    if !loaded.is_empty() {
        tracing::info!(
            image,
            layers = loaded.len(),
            "layers in another lazy format are read as they are"
        );
    }
    loaded
}

async fn load(
    layer: &Wanted<'_>,
    image: &str,
    apart: &Apart<'_>,
    limits: &Limits,
    cache: Option<&Arc<Cache>>,
) -> Option<(BlobDigest, (LazyLayer, u64))> {
    match try_load(layer, apart, limits, cache).await {
        Ok(loaded) => Some((layer.descriptor.digest, loaded)),
        Err(error) => {
            let blob = layer.descriptor.digest;
            tracing::warn!(image, layer = %blob, %error, "the table of contents of a layer cannot be used; it is taken for an ordinary layer");
            None
        }
    }
}

async fn try_load(
    layer: &Wanted<'_>,
    apart: &Apart<'_>,
    limits: &Limits,
    cache: Option<&Arc<Cache>>,
) -> Result<(LazyLayer, u64), Error> {
    let pinned = pinned(layer.descriptor)?;
    let pinned = pinned.ok_or_else(|| unusable("no annotation pins a table of contents".to_owned()))?;
    if let Some(kept) = kept(cache, layer.descriptor.digest, limits).await
        && let Ok(loaded) = make(layer, kept, &pinned, limits, None).await
    {
        return Ok(loaded);
    }
    let mut attempts = 1;
    loop {
        let stored = fetch(layer.blob, &pinned, apart, limits).await?;
        match make(layer, stored, &pinned, limits, cache).await {
            Err(error) if error.kind() == ErrorKind::Corrupt && attempts < ATTEMPTS => {
                layer.blob.gave_wrong_bytes();
                attempts += 1;
            }
            outcome => return outcome,
        }
    }
}

fn unusable(message: String) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}

/// Verifies a TOC and makes the layer of it, which is kept in `cache`.
async fn make(
    layer: &Wanted<'_>,
    stored: Stored,
    pinned: &PinnedToc,
    limits: &Limits,
    cache: Option<&Arc<Cache>>,
) -> Result<(LazyLayer, u64), Error> {
    let (pinned, limits, blob) = (pinned.clone(), limits.clone(), layer.descriptor.digest);
    let (keep, stored_len) = (cache.cloned(), stored.bytes.len() as u64);
    let (index, index_digest) = blocking::run("read a table of contents", move || {
        let toc = Toc::open(&stored.bytes, stored.location.clone(), &pinned, &limits)?;
        let ForeignLayer { index, warnings } = toc.layer_index(&limits)?;
        for warning in warnings {
            tracing::debug!(layer = %blob, warning, "an odd layer");
        }
        let digest = Digest::of(&stored.bytes);
        if let Some(cache) = keep {
            let documents = cache.documents();
            documents.put(&digest, &stored.bytes);
            documents.put_toc(
                &blob,
                &record(&stored.location, digest, &index.diff_id.to_string()),
            );
        }
        Ok((index, digest))
    })
    .await?;
    let lazy = LazyLayer {
        descriptor: layer.descriptor.clone(),
        diff_id: index.diff_id,
        listed: layer.diff_id,
        plain_len: index.plain_len(),
        index_digest,
        index: Arc::new(index),
        blob: layer.blob.clone(),
    };
    Ok((lazy, stored_len))
}

fn record(location: &TocLocation, document: Digest, plain_layer: &str) -> TocRecord {
    TocRecord {
        document: document.to_string(),
        stored_off: location.stored.start,
        stored_len: location.stored.end - location.stored.start,
        plain_len: match location.kind {
            TocKind::Estargz | TocKind::EstargzApart => None,
            TocKind::ZstdChunked => Some(location.plain_len.unwrap_or_default()),
        },
        is_apart: location.kind == TocKind::EstargzApart,
        plain_layer: plain_layer.to_owned(),
    }
}

/// The TOC that was kept. Its digests are verified again by whoever uses it.
async fn kept(cache: Option<&Arc<Cache>>, blob: BlobDigest, limits: &Limits) -> Option<Stored> {
    let known = cache?.clone();
    let record = blocking::run("read the cache", move || Ok(known.documents().toc(&blob)));
    let record = record.await.ok()??;
    let bytes = offline::load(cache, record.document.parse().ok()?, limits.toc_stored_len).await?;
    let end = record.stored_off.checked_add(record.stored_len)?;
    let location = TocLocation {
        kind: match record.plain_len {
            None if record.is_apart => TocKind::EstargzApart,
            None => TocKind::Estargz,
            Some(_) => TocKind::ZstdChunked,
        },
        stored: record.stored_off..end,
        plain_len: record.plain_len,
    };
    Some(Stored { location, bytes })
}

/// Reads the TOC from where the annotation says, or else from where the footer says.
async fn fetch(
    blob: &Arc<dyn Blob>,
    pinned: &PinnedToc,
    apart: &Apart<'_>,
    limits: &Limits,
) -> Result<Stored, Error> {
    let stored_len = blob.stored_len();
    let (tail_off, tail) = match pinned.location(stored_len)? {
        Some(location) => {
            check_len(&location, limits)?;
            let bytes = blob.read_range(location.stored.clone()).await?;
            return Ok(Stored { location, bytes });
        }
        None => {
            let tail_len = (stored_len / TAIL_SHARE).clamp(*TAIL_LEN.start(), *TAIL_LEN.end());
            let tail_off = stored_len.saturating_sub(tail_len);
            (tail_off, blob.read_range(tail_off..stored_len).await?)
        }
    };
    let location = find_toc(&tail, stored_len)?
        .ok_or_else(|| unusable("its blob ends with no footer of eStargz or zstd:chunked".to_owned()))?;
    if location.kind == TocKind::EstargzApart {
        let bytes = apart.fetch(&blob.digest(), limits).await?;
        return Ok(Stored { location, bytes });
    }
    check_len(&location, limits)?;
    let mut bytes = BytesMut::new();
    if location.stored.start < tail_off {
        let head = location.stored.start..location.stored.end.min(tail_off);
        bytes.extend_from_slice(&blob.read_range(head).await?);
    }
    let in_tail = |off: u64| usize::try_from(off.saturating_sub(tail_off)).unwrap_or(usize::MAX);
    let rest = tail.get(in_tail(location.stored.start)..in_tail(location.stored.end));
    bytes.extend_from_slice(rest.unwrap_or_default());
    Ok(Stored {
        location,
        bytes: bytes.freeze(),
    })
}

fn check_len(location: &TocLocation, limits: &Limits) -> Result<(), FormatError> {
    let len = location.stored.end - location.stored.start;
    FormatError::check_limit("stored length of a TOC", len, limits.toc_stored_len)
}
