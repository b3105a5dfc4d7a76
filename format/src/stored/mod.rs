//! The index of a layer as it is stored: one pass over the blob's bytes.
//!
//! [`LayerPass`] takes the stored bytes of a layer that nobody prepared, decodes them, and looks at the plain bytes once: for the DiffID, for
//! the tree ([`crate::scan`]), and for the digests of chunks. A chunk lies between two places where decoding can begin again: cuts of the tar where the
//! blob is a plain tar, restart points of a gzip stream ([`crate::gzip`]), ends of zstd frames (`frames`). Nothing of the layer is kept but
//! what the index holds, so that memory does not grow with its length.
//!
//! A layer whose plain bytes hang together over a longer range than a chunk may have (one large zstd frame, most often) has a DiffID and
//! a tree, but cannot be read by ranges: [`StoredLayer::index`] then says so.

mod chunks;
mod frames;
#[cfg(test)]
mod tests;

use crate::compression::Codec;
use crate::cut::DEFAULT_CHUNK_SIZE;
use crate::gzip::{GzipDecoder, SparseWindow, WindowTrace};
use crate::scan::{LayerScanner, ScannedLayer};
use crate::{BlobDigest, ChunkTable, DiffId, FormatError, Hasher, LayerIndex, Limits};
use chunks::Chunks;
use frames::Frames;

/// Plain bytes after which the next restart point of a gzip stream begins a chunk. A chunk is fetched and decoded as a whole, so short ones waste less of
/// what a start reads; but each costs about 2.1 KiB of index, nearly all of it window, whatever the spacing (layers of Python wheels and Debian
/// packages: 0.9 % of the stored bytes at 1 MiB, 1.5 % at 512 KiB, 2.8 % at 256 KiB), which is fetched before the start and held in memory.
pub const RESTART_SPACING: u64 = 1 << 20;

/// Plain bytes after which the next end of a zstd frame ends a chunk: as in converted layers. A frame needs no window.
const FRAME_SPACING: u64 = DEFAULT_CHUNK_SIZE as u64;

/// How a layer is stored. The caller has looked at its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredForm {
    /// The stored bytes are the plain bytes.
    Plain,
    /// Members of a gzip stream.
    Gzip,
    /// zstd frames, with or without skippable ones.
    Zstd,
}

/// What a blob turned out to be.
#[derive(Debug)]
pub struct StoredLayer {
    /// Digest of the stored bytes.
    pub blob_digest: BlobDigest,
    /// Length of the stored bytes.
    pub stored_len: u64,
    /// Digest of the plain bytes.
    pub diff_id: DiffId,
    /// Length of the plain bytes.
    pub plain_len: u64,
    /// Things that containerd's unpack also ignores, each in a line for the user.
    pub warnings: Vec<String>,
    /// The index, or [`FormatError::NoRestart`] when the layer cannot be read by ranges.
    pub index: Result<LayerIndex, FormatError>,
}

/// Indexes a layer while its stored bytes pass.
#[derive(Debug)]
pub struct LayerPass {
    decoder: Decoder,
    plain: PlainSide,
    blob: Hasher,
    stored_len: u64,
    limits: Limits,
}

#[derive(Debug)]
enum Decoder {
    Plain,
    Gzip(Box<Gzip>),
    Zstd(Frames),
}

#[derive(Debug)]
struct Gzip {
    decoder: GzipDecoder,
    /// Watches what the present chunk copies from its window.
    trace: Option<WindowTrace>,
    /// The stored byte before the next one.
    last: u8,
}

/// What is done with plain bytes.
#[derive(Debug)]
struct PlainSide {
    layer: Hasher,
    scanner: LayerScanner,
    chunks: Chunks,
    ends: Vec<u64>,
}

impl PlainSide {
    fn take(&mut self, plain: &[u8]) -> Result<(), FormatError> {
        self.layer.update(plain);
        self.scanner.push(plain, &mut self.ends)?;
        self.chunks.take(plain);
        Ok(())
    }
}

impl LayerPass {
    /// A pass over a layer of which no byte was seen.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when a decoder has no memory.
    pub fn new(form: StoredForm, limits: &Limits) -> Result<Self, FormatError> {
        let decoder = match form {
            StoredForm::Plain => Decoder::Plain,
            StoredForm::Gzip => Decoder::Gzip(Box::new(Gzip {
                decoder: GzipDecoder::new(),
                trace: None,
                last: 0,
            })),
            StoredForm::Zstd => Decoder::Zstd(Frames::new()?),
        };
        let first = match form {
            StoredForm::Plain => Codec::Stored,
            StoredForm::Gzip => Codec::Gzip,
            StoredForm::Zstd => Codec::Zstd,
        };
        Ok(Self {
            decoder,
            plain: PlainSide {
                layer: Hasher::new(),
                scanner: LayerScanner::new(DEFAULT_CHUNK_SIZE, limits.clone())?,
                chunks: Chunks::new(first, limits),
                ends: Vec::new(),
            },
            blob: Hasher::new(),
            stored_len: 0,
            limits: limits.clone(),
        })
    }

    /// Takes the next stored bytes.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] for bytes that cannot be decoded or are no layer; [`FormatError::Limit`] when a bound is passed. The pass is
    /// of no use afterwards.
    pub fn push(&mut self, stored: &[u8]) -> Result<(), FormatError> {
        self.blob.update(stored);
        self.stored_len += stored.len() as u64;
        match &mut self.decoder {
            Decoder::Plain => {
                self.plain.take(stored)?;
                for end in self.plain.ends.drain(..) {
                    self.plain.chunks.cut_plain(end);
                }
            }
            Decoder::Gzip(gzip) => gzip.push(stored, &mut self.plain)?,
            Decoder::Zstd(frames) => frames.push(stored, &mut self.plain)?,
        }
        self.plain.ends.clear();
        Ok(())
    }

    /// After the last byte.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when stored or plain bytes are cut short, or the tree does not fit an index.
    pub fn finish(self) -> Result<StoredLayer, FormatError> {
        let mut plain = self.plain;
        plain.ends.clear();
        let ScannedLayer {
            layer,
            plain_len,
            warnings,
        } = plain.scanner.finish(&mut plain.ends)?;
        match self.decoder {
            Decoder::Plain => plain.ends.drain(..).for_each(|end| plain.chunks.cut_plain(end)),
            Decoder::Gzip(gzip) => {
                gzip.decoder.finish()?;
                let window = gzip.trace.map(WindowTrace::finish);
                plain.chunks.end(self.stored_len, window);
            }
            Decoder::Zstd(frames) => {
                let stored_end = frames.finish()?;
                plain.chunks.end(stored_end, None);
            }
        }
        let diff_id = DiffId(plain.layer.finish());
        let index = match plain.chunks.finish() {
            Err(error) => Err(error),
            Ok((chunks, windows)) => {
                let table = ChunkTable::with_windows(chunks, windows, plain_len, &self.limits)?;
                Ok(LayerIndex::new(diff_id, table, &layer)?)
            }
        };
        Ok(StoredLayer {
            blob_digest: BlobDigest(self.blob.finish()),
            stored_len: self.stored_len,
            diff_id,
            plain_len,
            warnings,
            index,
        })
    }
}

impl Gzip {
    fn push(&mut self, mut stored: &[u8], plain: &mut PlainSide) -> Result<(), FormatError> {
        while !stored.is_empty() {
            let step = self.decoder.step(stored)?;
            let (used, point) = (step.used, step.point);
            plain.take(step.plain)?;
            let (taken, rest) = stored.split_at(used);
            if let Some(trace) = &mut self.trace {
                trace.push(taken);
            }
            self.last = taken.last().copied().unwrap_or(self.last);
            stored = rest;
            if let Some(point) = point
                && plain.chunks.is_due(RESTART_SPACING)
            {
                plain.chunks.end(point.stored_off, self.window());
                self.begin(point.bits, point.stored_off, plain);
            }
        }
        Ok(())
    }

    fn window(&mut self) -> Option<SparseWindow> {
        self.trace.take().map(WindowTrace::finish)
    }

    fn begin(&mut self, bits: Option<u8>, stored_off: u64, plain: &mut PlainSide) {
        match bits {
            None => plain.chunks.begin(stored_off, Codec::Gzip),
            Some(bits) => {
                self.trace = Some(WindowTrace::new(bits, self.last, self.decoder.window()));
                let window = plain.chunks.next_window();
                // The byte that the block before ends in is fetched with both chunks.
                let shared = u64::from(bits > 0);
                plain
                    .chunks
                    .begin(stored_off - shared, Codec::Deflate { bits, window });
            }
        }
    }
}
