//! One layer: stored source bytes in, a blob of chunks with its layer index out.
//!
//! Four stages run at once, joined by bounded queues:
//!
//! 1. a task takes pieces off the source stream;
//! 2. a thread adds them to the blob digest and decodes them (`decode`);
//! 3. a thread adds the plain bytes to the DiffID, scans the tar and cuts chunks (`cut`), which the threads shared by
//!    all layers digest and compress (`pool`);
//! 4. a task writes the frames in chunk order and adds them to the digest of the new blob.
//!
//! A stage that fails closes its queues, which stops its neighbours; the failure nearest to the source is the cause and
//! the one reported. The new blob is finished only after every stage has ended well and blob digest and DiffID are the
//! expected ones; otherwise the writer is dropped, which leaves nothing in the target. Dropping the future stops all stages.

mod cut;
pub(crate) mod decode;
mod pool;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use sluice_format::layer_index::frame_index;
use sluice_format::scan::ScannedLayer;
use sluice_format::{
    BlobDigest, ChunkRef, ChunkTable, DiffId, Digest, Hasher, IndexLocation, LayerIndex, Limits,
    compression::{ChunkEncoder, Codec},
};
use sluice_storage::decompress::Compression;
use sluice_storage::{BlobWriter, ByteStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use self::cut::Cut;
use self::decode::Decoded;
use self::pool::{ChunkPool, PendingChunk};
use crate::Error;
use crate::error::joined;

/// Longest piece of stored bytes put into a queue, in bytes. Longer ones are split, so that a queue bounds bytes.
const STORED_PIECE_LEN: usize = 256 << 10;

/// Pieces of stored bytes that may wait for the decoder: enough to bridge the gaps of a network connection.
const STORED_QUEUE: usize = 8;

/// Pieces of plain bytes that may wait for the scanner.
const PLAIN_QUEUE: usize = 8;

/// What the source layer has to be. `None` is not checked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) blob_digest: Option<BlobDigest>,
    pub(crate) stored_len: Option<u64>,
    pub(crate) diff_id: Option<DiffId>,
}

/// A layer as it was read and as it was written.
#[derive(Debug)]
pub(crate) struct RecompressedLayer {
    pub(crate) compression: Compression,
    pub(crate) digest: BlobDigest,
    pub(crate) stored_len: u64,
    pub(crate) diff_id: DiffId,
    pub(crate) plain_len: u64,
    pub(crate) chunks: usize,
    pub(crate) location: IndexLocation,
    /// The encoded layer index.
    pub(crate) index: Bytes,
    pub(crate) warnings: Vec<String>,
}

/// Recompresses layers; shared by all of them.
#[derive(Clone, Debug)]
pub(crate) struct Recompressor {
    pool: Arc<ChunkPool>,
    level: i32,
    chunk_size: u32,
    limits: Limits,
}

impl Recompressor {
    /// Starts the compressing threads.
    ///
    /// # Errors
    /// A refused level, or a thread that the system does not grant.
    pub(crate) fn start(threads: usize, level: i32, chunk_size: u32, limits: Limits) -> Result<Self, Error> {
        let pool = Arc::new(ChunkPool::start(threads, level, chunk_size)?);
        Ok(Self {
            pool,
            level,
            chunk_size,
            limits,
        })
    }

    /// Reads `source` to its end and writes the new blob to `target`. `advanced` hears the length of every piece read.
    ///
    /// # Errors
    /// The cause nearest to the source; nothing is left in the target.
    pub(crate) async fn run(
        &self,
        source: ByteStream,
        expected: &Expected,
        target: Box<dyn BlobWriter>,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<RecompressedLayer, Error> {
        let mut body = BlobBody::new(target);
        let (decoded, cut) = self.recompress(source, expected, &mut body, advanced).await?;
        verify(expected, &decoded, &cut)?;
        self.finish(body, decoded, cut).await
    }

    async fn recompress(
        &self,
        source: ByteStream,
        expected: &Expected,
        body: &mut BlobBody,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<(Decoded, Cut), Error> {
        let (stored_to, stored) = mpsc::channel(STORED_QUEUE);
        let (plain_to, plain) = mpsc::channel(PLAIN_QUEUE);
        let (chunks_to, chunks) = mpsc::unbounded_channel();
        let limits = self.limits.clone();
        let decoding = spawn_blocking(move || decode::decode(stored, &plain_to, &limits));
        let (this, runtime) = (self.clone(), Handle::current());
        let cutting = spawn_blocking(move || {
            cut::cut(
                plain,
                &chunks_to,
                &this.pool,
                &runtime,
                this.chunk_size,
                &this.limits,
            )
        });
        let (fed, decoded, cut, written) = tokio::join!(
            feed(source, expected.stored_len, stored_to, advanced),
            decoding,
            cutting,
            write_chunks(chunks, body),
        );
        fed?;
        let decoded = joined(decoded)?;
        let cut = joined(cut)?;
        written?;
        // A stage stops without an error of its own only when a later one failed, which has been reported above.
        decoded
            .zip(cut)
            .ok_or_else(|| Error::Refused("recompression was interrupted".to_owned()))
    }

    /// Appends the index and closes the blob.
    async fn finish(
        &self,
        mut body: BlobBody,
        decoded: Decoded,
        cut: Cut,
    ) -> Result<RecompressedLayer, Error> {
        if body.chunks.is_empty() {
            // A blob of skippable frames alone is no data at all to some decoders; an empty frame makes it a zstd file.
            body.append(ChunkEncoder::new(self.level)?.encode(&[])?).await?;
        }
        let (diff_id, plain_len) = (cut.diff_id, cut.scanned.plain_len);
        let (table, blob_len) = (std::mem::take(&mut body.chunks), body.stored_len);
        let chunks = table.len();
        let limits = self.limits.clone();
        let ScannedLayer { layer, warnings, .. } = cut.scanned;
        let building = spawn_blocking(move || {
            let table = ChunkTable::new(table, plain_len, &limits)?;
            let index = LayerIndex::new(diff_id, table, &layer)?;
            // The tree of a layer with many files is far larger than its encoded form.
            drop(layer);
            let encoded = index.encode()?;
            let (framed, location) = frame_index(&encoded, blob_len)?;
            Ok((framed, location, encoded))
        });
        let (framed, location, index) = joined(building.await)?;
        body.append(framed).await?;
        let stored_len = body.stored_len;
        Ok(RecompressedLayer {
            compression: decoded.compression,
            digest: body.finish().await?,
            stored_len,
            diff_id,
            plain_len,
            chunks,
            location,
            index: Bytes::from(index),
            warnings,
        })
    }
}

/// Stage 1: source stream → queue of stored pieces.
async fn feed(
    mut source: ByteStream,
    expected_len: Option<u64>,
    to: mpsc::Sender<Bytes>,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    let mut stored_len = 0;
    loop {
        let piece = tokio::select! {
            () = to.closed() => return Ok(()),
            piece = source.next() => piece,
        };
        let Some(piece) = piece else { return Ok(()) };
        let mut piece = piece?;
        stored_len += piece.len() as u64;
        if let Some(expected) = expected_len
            && stored_len > expected
        {
            let reason = format!("holds more than the {expected} bytes that its descriptor promises");
            return Err(Error::document("blob", reason));
        }
        advanced(piece.len() as u64);
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(STORED_PIECE_LEN));
            if to.send(part).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Stage 4: chunks in order → blob.
async fn write_chunks(
    mut chunks: mpsc::UnboundedReceiver<PendingChunk>,
    body: &mut BlobBody,
) -> Result<(), Error> {
    while let Some(pending) = chunks.recv().await {
        let mut chunk = pending.await.map_err(|_| {
            Error::io(
                "a compressing thread ended early",
                std::io::Error::other("no answer"),
            )
        })??;
        let stored = std::mem::take(&mut chunk.stored);
        let stored_len = u32::try_from(stored.len())
            .map_err(|_| Error::document("chunk", "is stored in more than 4 GiB"))?;
        let reference = ChunkRef {
            plain_off: chunk.plain_off,
            plain_len: chunk.plain_len,
            stored_off: body.stored_len,
            stored_len,
            codec: Codec::Zstd,
            digest: chunk.digest,
        };
        body.append(stored).await?;
        body.chunks.push(reference);
    }
    Ok(())
}

/// The new blob while it grows.
#[derive(Debug)]
struct BlobBody {
    target: Box<dyn BlobWriter>,
    hasher: Hasher,
    stored_len: u64,
    chunks: Vec<ChunkRef>,
}

impl BlobBody {
    fn new(target: Box<dyn BlobWriter>) -> Self {
        Self {
            target,
            hasher: Hasher::new(),
            stored_len: 0,
            chunks: Vec::new(),
        }
    }

    async fn append(&mut self, stored: Vec<u8>) -> Result<(), Error> {
        self.hasher.update(&stored);
        self.stored_len += stored.len() as u64;
        Ok(self.target.write(Bytes::from(stored)).await?)
    }

    async fn finish(self) -> Result<BlobDigest, Error> {
        let digest = BlobDigest(self.hasher.finish());
        self.target.finish(digest).await?;
        Ok(digest)
    }
}

fn verify(expected: &Expected, decoded: &Decoded, cut: &Cut) -> Result<(), Error> {
    if let Some(stored_len) = expected.stored_len
        && stored_len != decoded.stored_len
    {
        let reason = format!(
            "holds {} bytes, its descriptor promises {stored_len}",
            decoded.stored_len
        );
        return Err(Error::document("blob", reason));
    }
    if let Some(blob_digest) = expected.blob_digest {
        compare("blob", blob_digest.0, decoded.blob_digest)?;
    }
    match expected.diff_id {
        Some(diff_id) => compare("plain layer (DiffID)", diff_id.0, cut.diff_id.0),
        None => Ok(()),
    }
}

fn compare(what: &'static str, expected: Digest, found: Digest) -> Result<(), Error> {
    if expected == found {
        Ok(())
    } else {
        Err(Error::Corrupt {
            what,
            expected,
            found,
        })
    }
}
