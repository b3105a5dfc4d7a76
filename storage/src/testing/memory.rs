//! Blobs and repositories in memory.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use sluice_format::{BlobDigest, Digest};

use crate::blob::check_range;
use crate::sync::lock;
use crate::{
    Blob, BlobWriter, ByteStream, Descriptor, Error, ErrorKind, Manifest, ManifestName, Repository,
    WritableRepository,
};

/// Bytes per piece of a stream: small, so that readers see many pieces.
const STREAM_PIECE: usize = 1000;

/// A blob in memory.
#[derive(Clone, Debug)]
pub struct MemoryBlob {
    digest: BlobDigest,
    stored_len: u64,
    /// `None` for a blob that is not there.
    bytes: Option<Bytes>,
}

impl MemoryBlob {
    /// A blob of `bytes`.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            digest: BlobDigest(Digest::of(&bytes)),
            stored_len: bytes.len() as u64,
            bytes: Some(bytes),
        }
    }

    fn slice(&self, stored: Range<u64>) -> Result<Bytes, Error> {
        check_range(&self.digest, self.stored_len, &stored)?;
        match &self.bytes {
            Some(bytes) => Ok(bytes.slice(stored.start as usize..stored.end as usize)),
            None => Err(not_found(&self.digest)),
        }
    }
}

impl Blob for MemoryBlob {
    fn digest(&self) -> BlobDigest {
        self.digest
    }

    fn stored_len(&self) -> u64 {
        self.stored_len
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        let bytes = self.slice(stored);
        async move { bytes }.boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let bytes = self.slice(stored);
        async move {
            let bytes = bytes?;
            let pieces: Vec<_> = bytes
                .chunks(STREAM_PIECE)
                .map(|piece| Ok(bytes.slice_ref(piece)))
                .collect();
            Ok(stream::iter(pieces).boxed())
        }
        .boxed()
    }

    fn upstream(&self) -> Arc<str> {
        "memory".into()
    }
}

/// A repository in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryRepository {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    blobs: HashMap<BlobDigest, Bytes>,
    manifests: HashMap<Digest, Manifest>,
    tags: HashMap<String, Digest>,
}

impl MemoryRepository {
    /// An empty repository.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores a blob and describes it.
    pub fn add_blob(&self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let digest = BlobDigest(Digest::of(&bytes));
        let size = bytes.len() as u64;
        lock(&self.kept).blobs.insert(digest, bytes);
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: Default::default(),
        }
    }
}

impl Repository for MemoryRepository {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        let kept = lock(&self.kept);
        let digest = match name {
            ManifestName::Digest(digest) => Some(digest),
            ManifestName::Tag(tag) => kept.tags.get(tag),
        };
        let found = digest.and_then(|digest| kept.manifests.get(digest)).cloned();
        let found =
            found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no manifest {name} in memory")));
        async move { found }.boxed()
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let bytes = lock(&self.kept).blobs.get(&descriptor.digest).cloned();
        Arc::new(MemoryBlob {
            digest: descriptor.digest,
            stored_len: descriptor.size,
            bytes,
        })
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        let blob = self.open_blob(descriptor);
        async move {
            if descriptor.size > max_len {
                return Err(Error::new(ErrorKind::InvalidInput, "the blob is over the limit"));
            }
            blob.read_range(0..descriptor.size).await
        }
        .boxed()
    }
}

impl WritableRepository for MemoryRepository {
    fn has_blob<'a>(&'a self, digest: &'a BlobDigest) -> BoxFuture<'a, Result<bool, Error>> {
        let has = lock(&self.kept).blobs.contains_key(digest);
        async move { Ok(has) }.boxed()
    }

    fn begin_blob(&self) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, Error>> {
        let writer = MemoryWriter {
            repository: self.clone(),
            bytes: BytesMut::new(),
        };
        async move { Ok(Box::new(writer) as Box<dyn BlobWriter>) }.boxed()
    }

    fn put_manifest<'a>(
        &'a self,
        name: &'a ManifestName,
        media_type: &'a str,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let digest = Digest::of(&bytes);
        if matches!(name, ManifestName::Digest(expected) if *expected != digest) {
            return async { Err(Error::new(ErrorKind::Corrupt, "the manifest has another digest")) }.boxed();
        }
        let mut kept = lock(&self.kept);
        if let ManifestName::Tag(tag) = name {
            kept.tags.insert(tag.clone(), digest);
        }
        let manifest = Manifest {
            media_type: media_type.to_owned(),
            digest,
            bytes,
        };
        kept.manifests.insert(digest, manifest);
        async { Ok(()) }.boxed()
    }
}

#[derive(Debug)]
struct MemoryWriter {
    repository: MemoryRepository,
    bytes: BytesMut,
}

impl BlobWriter for MemoryWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        self.bytes.extend_from_slice(&bytes);
        async { Ok(()) }.boxed()
    }

    fn finish(self: Box<Self>, digest: BlobDigest) -> BoxFuture<'static, Result<(), Error>> {
        let bytes = self.bytes.freeze();
        let result = if Digest::of(&bytes) == digest.0 {
            lock(&self.repository.kept).blobs.insert(digest, bytes);
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Corrupt, "the blob has another digest"))
        };
        async move { result }.boxed()
    }
}

fn not_found(digest: &BlobDigest) -> Error {
    Error::new(ErrorKind::NotFound, format!("no blob {digest} in memory"))
}
