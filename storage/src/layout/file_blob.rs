//! A blob that is a local file.
//!
//! Ranges are read with pread(2) on the blocking pool through one descriptor, which is opened by the first read. A file that
//! is shorter or longer than its descriptor says is corrupt and is never read in part.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use sluice_format::BlobDigest;

use crate::blob::check_range;
use crate::{Blob, ByteStream, Error, ErrorKind, blocking};

/// Bytes per read of a stream: large enough that the hop to the blocking pool costs nothing beside it.
const STREAM_READ_LEN: u64 = 1 << 20;
/// All local files share one upstream: the disks of this host.
const UPSTREAM: &str = "local disk";

/// A blob in a layout directory.
#[derive(Clone, Debug)]
pub(super) struct FileBlob {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    digest: BlobDigest,
    stored_len: u64,
    file: OnceLock<File>,
}

impl FileBlob {
    pub(super) fn new(path: PathBuf, digest: BlobDigest, stored_len: u64) -> Self {
        let inner = Inner {
            path,
            digest,
            stored_len,
            file: OnceLock::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    async fn read(&self, stored: Range<u64>) -> Result<Bytes, Error> {
        check_range(&self.inner.digest, self.inner.stored_len, &stored)?;
        let inner = self.inner.clone();
        blocking::run("read a blob", move || inner.read(stored)).await
    }
}

impl Inner {
    fn read(&self, stored: Range<u64>) -> Result<Bytes, Error> {
        let file = self.open()?;
        let mut bytes = vec![0; (stored.end - stored.start) as usize];
        file.read_exact_at(&mut bytes, stored.start)
            .map_err(|error| self.failed(error))?;
        Ok(bytes.into())
    }

    fn open(&self) -> Result<&File, Error> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = File::open(&self.path).map_err(|error| self.failed(error))?;
        let len = file.metadata().map_err(|error| self.failed(error))?.len();
        if len != self.stored_len {
            let message = format!(
                "blob {} has {len} bytes, its descriptor says {}",
                self.digest, self.stored_len
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(self.file.get_or_init(|| file))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io(format!("read blob {}", self.path.display()), error)
    }
}

impl Blob for FileBlob {
    fn digest(&self) -> BlobDigest {
        self.inner.digest
    }

    fn stored_len(&self) -> u64 {
        self.inner.stored_len
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        self.read(stored).boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            check_range(&self.inner.digest, self.inner.stored_len, &stored)?;
            let (blob, end) = (self.clone(), stored.end);
            let pieces = stream::try_unfold(stored.start, move |next| {
                let blob = blob.clone();
                async move {
                    if next == end {
                        return Ok(None);
                    }
                    let bytes = blob.read(next..end.min(next + STREAM_READ_LEN)).await?;
                    let after = next + bytes.len() as u64;
                    Ok(Some((bytes, after)))
                }
            });
            Ok(pieces.boxed())
        }
        .boxed()
    }

    fn upstream(&self) -> Arc<str> {
        UPSTREAM.into()
    }

    fn is_local(&self) -> bool {
        true
    }
}
