//! One layer, read once and examined twice.
//!
//! The stored bytes go to two threads. One decodes them as any tool does that knows nothing of Sluice, and scans the tar:
//! that gives DiffID and tree from first principles. The other, for a layer with an index, decodes every chunk from where the
//! chunk table says it lies and compares its digest. Then the tree in the index is held against the scanned one. What is
//! wrong becomes a line in a list, and the rest is examined nevertheless.

use std::io::{self, Read};

use bytes::Bytes;
use futures_util::StreamExt as _;
use sluice_format::compression::ChunkDecoder;
use sluice_format::scan::{LayerScanner, ScannedLayer};
use sluice_format::{BlobDigest, ChunkTable, DiffId, Digest, Hasher, LayerTree, Limits};
use sluice_storage::decompress::StoredReader;
use sluice_storage::{ByteStream, Repository, stream_whole};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::trees;
use crate::convert::{DEFAULT_CHUNK_SIZE, SourceLayer, find_index};
use crate::error::{describe, joined};
use crate::recompress::decode;
use crate::report::CheckedLayer;
use crate::{Error, Progress};

/// Pieces of stored bytes that may wait for each thread.
const QUEUE: usize = 8;

/// Bad chunks that are listed.
const BAD_CHUNKS_MAX: usize = 10;

/// What was found out about a layer.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) report: CheckedLayer,
    /// The tree of the plain bytes, when they could be read.
    pub(super) tree: Option<LayerTree>,
}

/// Reads a layer completely.
///
/// # Errors
/// Only what hinders reading; what is wrong with the layer is in the report.
pub(super) async fn examine(
    source: &dyn Repository,
    layer: &SourceLayer,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Examined, Error> {
    let descriptor = &layer.descriptor;
    let mut problems = Vec::new();
    let index = match find_index(source, layer, limits).await? {
        None => None,
        Some(Ok(found)) => Some(found.index),
        Some(Err(reason)) => {
            problems.push(format!("its layer index is not usable: {reason}"));
            None
        }
    };
    let stream = stream_whole(source.open_blob(descriptor).as_ref()).await?;
    let advanced = |len| progress.layer_advanced(descriptor.digest, len);
    let chunks = index.as_ref().map(|index| index.chunks.clone());
    let read = read_twice(stream, chunks, limits, &advanced).await?;

    if read.blob != (descriptor.digest, descriptor.size) {
        let (digest, len) = read.blob;
        problems.push(format!(
            "its blob is {digest} with {len} bytes, expected {} bytes",
            descriptor.size
        ));
    }
    problems.extend(read.chunk_problems);
    let mut tree = None;
    match read.plain {
        Err(error) => problems.push(format!("its stored bytes cannot be read: {}", describe(&error))),
        Ok((diff_id, scanned)) => {
            if diff_id != layer.diff_id {
                problems.push(format!(
                    "its DiffID is {diff_id}, the config lists {}",
                    layer.diff_id
                ));
            }
            if let Some(index) = &index {
                problems.extend(tree_problems(&index.layer_tree(limits), &scanned.layer));
            }
            tree = Some(scanned.layer);
        }
    }
    let report = CheckedLayer {
        digest: descriptor.digest,
        diff_id: layer.diff_id,
        stored_len: descriptor.size,
        chunks: index.as_ref().map(|index| index.chunks.chunks().len()),
        problems,
    };
    Ok(Examined { report, tree })
}

fn tree_problems(
    indexed: &Result<LayerTree, sluice_format::FormatError>,
    scanned: &LayerTree,
) -> Vec<String> {
    match indexed {
        Err(error) => vec![format!("the tree in its layer index cannot be read: {error}")],
        Ok(indexed) => trees::layer_differences(scanned, indexed)
            .into_iter()
            .map(|difference| format!("its layer index differs from its tar: {difference}"))
            .collect(),
    }
}

struct ReadTwice {
    blob: (BlobDigest, u64),
    plain: Result<(DiffId, ScannedLayer), Error>,
    chunk_problems: Vec<String>,
}

async fn read_twice(
    stream: ByteStream,
    chunks: Option<ChunkTable>,
    limits: &Limits,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<ReadTwice, Error> {
    let (to_plain, for_plain) = mpsc::channel(QUEUE);
    let (to_chunks, for_chunks) = mpsc::channel(QUEUE);
    let limits = limits.clone();
    let plain = spawn_blocking(move || read_plain(for_plain, &limits));
    let chunks = spawn_blocking(move || match chunks {
        Some(chunks) => read_chunks(for_chunks, &chunks),
        None => Ok(Vec::new()),
    });
    let (blob, plain, chunks) =
        tokio::join!(distribute(stream, [to_plain, to_chunks], advanced), plain, chunks);
    Ok(ReadTwice {
        blob: blob?,
        plain: joined(plain),
        chunk_problems: joined(chunks)?,
    })
}

/// Sends the stored bytes to all that still want them; gives their digest and length.
async fn distribute(
    mut stream: ByteStream,
    to: [mpsc::Sender<Bytes>; 2],
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<(BlobDigest, u64), Error> {
    let (mut hasher, mut len) = (Hasher::new(), 0);
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        hasher.update(&piece);
        len += piece.len() as u64;
        advanced(piece.len() as u64);
        for to in &to {
            // One that has seen an error wants no more.
            let _ = to.send(piece.clone()).await;
        }
    }
    Ok((BlobDigest(hasher.finish()), len))
}

/// DiffID and tree as a tool finds them that decodes the whole blob.
fn read_plain(stored: mpsc::Receiver<Bytes>, limits: &Limits) -> Result<(DiffId, ScannedLayer), Error> {
    let mut scanner = LayerScanner::new(DEFAULT_CHUNK_SIZE, limits.clone())?;
    let mut hasher = Hasher::new();
    let mut ends = Vec::new();
    decode::each_piece(&mut StoredReader::new(stored), limits, |piece| {
        hasher.update(&piece);
        scanner.push(&piece, &mut ends)?;
        ends.clear();
        Ok(true)
    })?;
    Ok((DiffId(hasher.finish()), scanner.finish(&mut ends)?))
}

/// Decodes every chunk from its place; lists what is wrong with them.
fn read_chunks(stored: mpsc::Receiver<Bytes>, chunks: &ChunkTable) -> Result<Vec<String>, Error> {
    let mut stored = StoredReader::new(stored);
    let mut decoder = ChunkDecoder::new()?;
    let mut problems = Vec::new();
    let mut stored_off = 0;
    let mut frame = Vec::new();
    for (at, chunk) in chunks.chunks().iter().enumerate() {
        let place = format!("chunk at plain offset {}", chunk.plain_off);
        let Some(gap) = chunk.stored_off.checked_sub(stored_off) else {
            problems.push(format!("{place} lies before the one in front of it"));
            break;
        };
        frame.clear();
        let skipped = io::copy(&mut (&mut stored).take(gap), &mut io::sink());
        let read = skipped.and_then(|_| {
            (&mut stored)
                .take(chunk.stored_len.into())
                .read_to_end(&mut frame)
        });
        if read.map_err(|error| Error::io("cannot read a chunk", error))? as u64
            != u64::from(chunk.stored_len)
        {
            problems.push(format!("{place} lies outside the blob"));
            break;
        }
        stored_off = chunk.stored_range().end;
        if let Err(error) = decoder.decode(chunks, at, &frame) {
            problems.push(error.to_string());
            if problems.len() >= BAD_CHUNKS_MAX {
                break;
            }
        }
    }
    Ok(problems)
}

/// Reads a blob that is not a layer and compares its digest.
///
/// # Errors
/// Only what hinders reading.
pub(super) async fn examine_blob(
    source: &dyn Repository,
    descriptor: &sluice_storage::Descriptor,
) -> Result<Option<String>, Error> {
    let mut stream = stream_whole(source.open_blob(descriptor).as_ref()).await?;
    let mut hasher = Hasher::new();
    while let Some(piece) = stream.next().await {
        hasher.update(&piece?);
    }
    let found: Digest = hasher.finish();
    let is_right = found == descriptor.digest.0;
    Ok((!is_right).then(|| format!("blob {} is corrupt: its digest is {found}", descriptor.digest)))
}
