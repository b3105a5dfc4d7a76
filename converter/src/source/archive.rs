//! The repository inside a tar file.
//!
//! Both archive formats come down to the same: blobs by digest, each a range of the file or a document made up while
//! opening, and one manifest that the user meant.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use sluice_format::{BlobDigest, Digest, FormatError, Limits};
use sluice_storage::{
    Blob, ByteStream, Descriptor, Error, ErrorKind, Manifest, ManifestName, Repository, documents,
};
use tokio::task::spawn_blocking;

/// Length of a piece that a stream reads at once, in bytes.
const PIECE_LEN: u64 = 512 << 10;

/// Where a blob's bytes are.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    /// A range of the archive.
    Range(Range<u64>),
    /// A document that the archive implies.
    Made(Bytes),
}

/// An opened archive.
#[derive(Debug)]
pub(super) struct ArchiveRepository {
    pub(super) location: String,
    pub(super) file: Arc<File>,
    pub(super) blobs: HashMap<BlobDigest, Stored>,
    /// Tag to manifest.
    pub(super) tags: HashMap<String, BlobDigest>,
    pub(super) limits: Limits,
}

impl ArchiveRepository {
    fn absent(&self, what: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::NotFound, format!("{} holds no {what}", self.location))
    }

    async fn load(&self, digest: BlobDigest, max_len: u64) -> Result<Bytes, Error> {
        let stored = self
            .blobs
            .get(&digest)
            .ok_or_else(|| self.absent(format!("blob {digest}")))?;
        let bytes = match stored.clone() {
            Stored::Made(bytes) => bytes,
            Stored::Range(range) => {
                let len = range.end - range.start;
                FormatError::check_limit("length of a document", len, max_len)?;
                read(Arc::clone(&self.file), range).await?
            }
        };
        let found = Digest::of(&bytes);
        if found != digest.0 {
            let what = format!("blob in {}", self.location);
            return Err(FormatError::Corrupt {
                what,
                expected: digest.0,
                found,
            }
            .into());
        }
        Ok(bytes)
    }
}

impl Repository for ArchiveRepository {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        async move {
            let digest = match name {
                ManifestName::Digest(digest) => BlobDigest(*digest),
                ManifestName::Tag(tag) => *self
                    .tags
                    .get(tag)
                    .ok_or_else(|| self.absent(format!("image tagged {tag}")))?,
            };
            let bytes = self.load(digest, self.limits.manifest_len).await?;
            Ok(Manifest {
                media_type: documents::manifest_media_type(&bytes, &self.limits)?,
                digest: digest.0,
                bytes,
            })
        }
        .boxed()
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        Arc::new(ArchiveBlob {
            digest: descriptor.digest,
            stored_len: descriptor.size,
            file: Arc::clone(&self.file),
            stored: self.blobs.get(&descriptor.digest).cloned(),
            location: self.location.clone(),
        })
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        self.load(descriptor.digest, max_len).boxed()
    }
}

/// A blob in an archive. Absence and a wrong length show when it is read.
#[derive(Debug)]
struct ArchiveBlob {
    digest: BlobDigest,
    stored_len: u64,
    file: Arc<File>,
    stored: Option<Stored>,
    location: String,
}

impl ArchiveBlob {
    fn check(&self, wanted: &Range<u64>) -> Result<&Stored, Error> {
        let refuse = |kind, reason: String| {
            Err(Error::new(
                kind,
                format!("blob {} of {} {reason}", self.digest, self.location),
            ))
        };
        let Some(stored) = &self.stored else {
            return refuse(ErrorKind::NotFound, "is not in the archive".to_owned());
        };
        let len = match stored {
            Stored::Range(range) => range.end - range.start,
            Stored::Made(bytes) => bytes.len() as u64,
        };
        if len != self.stored_len {
            return refuse(
                ErrorKind::Corrupt,
                format!("has {len} bytes, expected {}", self.stored_len),
            );
        }
        if wanted.start > wanted.end || wanted.end > len {
            return refuse(ErrorKind::InvalidInput, format!("has no range {wanted:?}"));
        }
        Ok(stored)
    }
}

impl Blob for ArchiveBlob {
    fn digest(&self) -> BlobDigest {
        self.digest
    }

    fn stored_len(&self) -> u64 {
        self.stored_len
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        async move {
            match self.check(&stored)? {
                Stored::Made(bytes) => {
                    let whole = ..bytes.len();
                    let index = |off: u64| usize::try_from(off).unwrap_or(whole.end);
                    Ok(bytes.slice(index(stored.start)..index(stored.end)))
                }
                Stored::Range(range) => {
                    let range = range.start + stored.start..range.start + stored.end;
                    read(Arc::clone(&self.file), range).await
                }
            }
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            match self.check(&stored)? {
                Stored::Made(_) => {
                    let bytes = self.read_range(stored).await?;
                    Ok(stream::once(async move { Ok(bytes) }).boxed())
                }
                Stored::Range(range) => {
                    let in_file = range.start + stored.start..range.start + stored.end;
                    Ok(pieces(Arc::clone(&self.file), in_file).boxed())
                }
            }
        }
        .boxed()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn upstream(&self) -> Arc<str> {
        self.location.as_str().into()
    }
}

fn pieces(file: Arc<File>, range: Range<u64>) -> impl stream::Stream<Item = Result<Bytes, Error>> + Send {
    stream::try_unfold(range, move |rest| {
        let file = Arc::clone(&file);
        async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let end = rest.end.min(rest.start + PIECE_LEN);
            let piece = read(file, rest.start..end).await?;
            Ok(Some((piece, end..rest.end)))
        }
    })
}

async fn read(file: Arc<File>, range: Range<u64>) -> Result<Bytes, Error> {
    let reading = spawn_blocking(move || {
        let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(Bytes::from(bytes))
    });
    let outcome = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    outcome.map_err(|error| Error::io("cannot read the archive", error))
}
