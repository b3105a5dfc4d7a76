//! A complete layer of the cache as a blob.
//!
//! The plain bytes of a layer are a tar, and a tar is a valid layer blob whose digest is the DiffID. So a complete layer stands in for a blob
//! that is stored plain, and for any other one when the original bytes cannot be had. Each chunk is verified as it is read; whoever reads
//! all of them compares the whole with the DiffID. A chunk that is evicted or turns out to be damaged ends the reading with an error.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use sluice_format::{BlobDigest, DiffId};

use super::Cache;
use super::layer::LayerFiles;
use crate::blob::check_range;
use crate::{Blob, ByteStream, Error, ErrorKind, blocking};

/// Plain bytes that a stream reads at once.
const PIECE_LEN: u64 = 1 << 20;

impl Cache {
    /// The plain bytes of a layer of which every chunk is here, as a blob named by the DiffID. Blocks on the disk for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] saying how much of the layer is here.
    pub fn complete_layer(self: &Arc<Self>, diff_id: &DiffId) -> Result<Arc<dyn Blob>, Error> {
        let place = self.dir.display();
        let Some(files) = self.stored_layer(diff_id) else {
            let message = format!("nothing of layer {diff_id} is in the cache {place}");
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        let missing: u64 = files
            .states()
            .chunks(false)
            .filter_map(|chunk| files.cuts().get(chunk))
            .map(|cut| u64::from(cut.plain_len))
            .sum();
        if missing > 0 {
            let whole = files.cuts().plain_len();
            let message = format!(
                "layer {diff_id} is not complete in the cache {place}: {} of {whole} bytes are there",
                whole - missing
            );
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        Ok(Arc::new(PlainBlob {
            files,
            upstream: place.to_string().into(),
        }))
    }
}

/// The plain bytes of a layer.
#[derive(Clone, Debug)]
struct PlainBlob {
    files: Arc<LayerFiles>,
    upstream: Arc<str>,
}

impl Blob for PlainBlob {
    fn digest(&self) -> BlobDigest {
        BlobDigest(self.files.diff_id().0)
    }

    fn stored_len(&self) -> u64 {
        self.files.cuts().plain_len()
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        async move {
            check_range(&self.digest(), self.stored_len(), &stored)?;
            let files = self.files.clone();
            blocking::run("read the cache", move || {
                files.read_range(stored).ok_or_else(|| gone(&files))
            })
            .await
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            check_range(&self.digest(), self.stored_len(), &stored)?;
            let pieces = stream::try_unfold((self.clone(), stored), |(blob, rest)| async move {
                if rest.is_empty() {
                    return Ok(None);
                }
                let end = rest.end.min(rest.start + PIECE_LEN);
                let piece = blob.read_range(rest.start..end).await?;
                Ok(Some((piece, (blob, end..rest.end))))
            });
            Ok(pieces.boxed())
        }
        .boxed()
    }

    fn upstream(&self) -> Arc<str> {
        self.upstream.clone()
    }
}

fn gone(files: &LayerFiles) -> Error {
    let message = format!(
        "bytes of layer {} have left the cache or are damaged there",
        files.diff_id()
    );
    Error::new(ErrorKind::NotFound, message)
}
