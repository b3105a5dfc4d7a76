//! Images without their repository.
//!
//! [`Remembering`] wraps a repository: what is named by digest is taken from the cache when it is there, and what the repository says is
//! kept there. A tag is always asked for first, since it can move. When the repository cannot be asked (nobody answers, or it asks to
//! come back later), the tag means what it meant the last time, with a warning; "not found" and "denied" are answers, and stay errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sluice_format::{BlobDigest, Digest, IndexLocation, Limits};

use crate::cache::{Cache, ImageRecord, LayerRecord};
use crate::documents::manifest_media_type;
use crate::{
    Blob, Descriptor, Error, LazyImage, Manifest, ManifestName, Platform, Referrer, Repository, blocking,
};

/// `repository` with its documents kept in `cache`: manifests and configs that are there are not asked for again, and a tag that the
/// repository cannot be asked about means what it meant the last time.
pub fn remembering(repository: &Arc<dyn Repository>, cache: &Arc<Cache>) -> Arc<dyn Repository> {
    Arc::new(Remembering::new(repository, cache))
}

/// A repository whose documents are kept in a cache.
#[derive(Debug)]
pub(crate) struct Remembering {
    inner: Arc<dyn Repository>,
    cache: Arc<Cache>,
    has_connected: AtomicBool,
}

impl Remembering {
    pub(crate) fn new(inner: &Arc<dyn Repository>, cache: &Arc<Cache>) -> Self {
        Self {
            inner: inner.clone(),
            cache: cache.clone(),
            has_connected: AtomicBool::new(false),
        }
    }

    /// What this host does not know yet has more documents that it does not know.
    fn connect(&self) {
        if !self.has_connected.swap(true, Ordering::Relaxed) {
            self.inner.connect();
        }
    }

    async fn fetch_by_digest(&self, digest: Digest) -> Result<Manifest, Error> {
        if let Some(manifest) = self.kept_manifest(digest).await {
            return Ok(manifest);
        }
        self.connect();
        let manifest = self.inner.fetch_manifest(&ManifestName::Digest(digest)).await?;
        keep(&self.cache, manifest.digest, manifest.bytes.clone(), None).await;
        Ok(manifest)
    }

    async fn fetch_by_tag(&self, name: &ManifestName) -> Result<Manifest, Error> {
        let full_name = full_name(self.inner.as_ref(), name);
        let remembered = self.remembered(&full_name).await;
        if remembered.is_none() {
            self.connect();
        }
        match self.inner.fetch_manifest(name).await {
            Ok(manifest) => {
                let (digest, bytes) = (manifest.digest, manifest.bytes.clone());
                keep(&self.cache, digest, bytes, Some(full_name)).await;
                Ok(manifest)
            }
            Err(error) if error.is_temporary() => {
                let remembered = remembered.ok_or_else(|| error.clone())?;
                tracing::warn!(
                    image = full_name,
                    digest = %remembered.digest,
                    %error,
                    "the repository cannot be asked; the name means what it meant the last time"
                );
                Ok(remembered)
            }
            Err(error) => Err(error),
        }
    }

    /// What a name meant when it was last asked for.
    async fn remembered(&self, full_name: &str) -> Option<Manifest> {
        let (cache, name) = (self.cache.clone(), full_name.to_owned());
        let tag = blocking::run("read the cache", move || Ok(cache.documents().tag(&name)));
        let digest = tag.await.ok()??.digest.parse().ok()?;
        self.kept_manifest(digest).await
    }

    async fn kept_manifest(&self, digest: Digest) -> Option<Manifest> {
        let limits = Limits::default();
        let bytes = load(Some(&self.cache), digest, limits.manifest_len).await?;
        let media_type = manifest_media_type(&bytes, &limits).ok()?;
        Some(Manifest {
            media_type,
            digest,
            bytes,
        })
    }
}

impl Repository for Remembering {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        Box::pin(async move {
            match name {
                ManifestName::Digest(digest) => self.fetch_by_digest(*digest).await,
                ManifestName::Tag(_) => self.fetch_by_tag(name).await,
            }
        })
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        self.inner.open_blob(descriptor)
    }

    fn fetch_referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Referrer>, Error>> {
        self.inner.fetch_referrers(subject, artifact_type)
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let digest = descriptor.digest.0;
            if let Some(bytes) = load(Some(&self.cache), digest, max_len).await {
                return Ok(bytes);
            }
            let bytes = self.inner.fetch_blob(descriptor, max_len).await?;
            keep(&self.cache, digest, bytes.clone(), None).await;
            Ok(bytes)
        })
    }
}

/// A name with the place where it means something.
pub(crate) fn full_name(repository: &dyn Repository, name: &ManifestName) -> String {
    let location = repository.location();
    match name {
        ManifestName::Tag(tag) => format!("{location}:{tag}"),
        ManifestName::Digest(digest) => format!("{location}@{digest}"),
    }
}

/// A document from the cache, if there is a cache and it has the document.
pub(crate) async fn load(cache: Option<&Arc<Cache>>, digest: Digest, max_len: u64) -> Option<Bytes> {
    let cache = cache?.clone();
    let loaded = blocking::run("read the cache", move || {
        Ok(cache.documents().load(&digest, max_len))
    });
    loaded.await.ok()?
}

/// Where the index of a blob lies, if that was found out before.
pub(crate) async fn location(cache: Option<&Arc<Cache>>, blob: BlobDigest) -> Option<IndexLocation> {
    let cache = cache?.clone();
    let found = blocking::run("read the cache", move || Ok(cache.documents().location(&blob)));
    found.await.ok()?
}

/// Whether a blob is known to hold no index.
pub(crate) async fn has_no_index(cache: Option<&Arc<Cache>>, blob: BlobDigest) -> bool {
    let Some(cache) = cache.cloned() else { return false };
    let found = blocking::run("read the cache", move || {
        Ok(cache.documents().has_no_index(&blob))
    });
    found.await.unwrap_or(false)
}

/// Notes that a blob holds no index, so that nobody need ask for its end again.
pub(crate) async fn keep_no_index(cache: Option<&Arc<Cache>>, blob: BlobDigest) {
    let Some(cache) = cache.cloned() else { return };
    let kept = blocking::run("write the cache", move || {
        cache.documents().put_no_index(&blob);
        Ok(())
    });
    // What is not kept is asked for again.
    let _ = kept.await;
}

/// Keeps a document, and that `tag` means it.
async fn keep(cache: &Arc<Cache>, digest: Digest, bytes: Bytes, tag: Option<String>) {
    let cache = cache.clone();
    let kept = blocking::run("write the cache", move || {
        cache.documents().put(&digest, &bytes);
        if let Some(tag) = tag {
            cache.documents().put_tag(&tag, &digest);
        }
        Ok(())
    });
    // What is not kept is fetched again.
    let _ = kept.await;
}

/// Notes that an image was loaded under a name.
pub(crate) async fn remember_image(cache: &Arc<Cache>, name: &str, platform: &Platform, image: &LazyImage) {
    let layer = |layer: &crate::LazyLayer| LayerRecord {
        diff_id: layer.diff_id.to_string(),
        blob: layer.descriptor.digest.to_string(),
        index: layer.index_digest.to_string(),
        plain_len: layer.plain_len,
    };
    let record = ImageRecord {
        name: name.to_owned(),
        platform: platform.to_string(),
        manifest: image.manifest_digest.to_string(),
        image_id: image.image_id.to_string(),
        layers: image.layers.iter().map(layer).collect(),
        used: 0,
    };
    let cache = cache.clone();
    let noted = blocking::run("write the cache", move || {
        cache.documents().put_image(record);
        Ok(())
    });
    // The record serves people and pins; the image is loaded without it.
    let _ = noted.await;
}
