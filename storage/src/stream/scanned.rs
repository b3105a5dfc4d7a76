//! Plain bytes of a layer that is seen for the first time → tree, chunks, DiffID, and a file in the cache.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use sluice_format::compression::Codec;
use sluice_format::cut::DEFAULT_CHUNK_SIZE;
use sluice_format::scan::{LayerScanner, ScannedLayer};
use sluice_format::{
    ChunkDigest, ChunkRef, ChunkTable, DiffId, FormatError, Hasher, LayerIndex, LayerTree, Limits,
};

use super::pipeline::Sink;
use crate::Error;
use crate::cache::StreamedFile;

/// The sink of a first stream.
#[derive(Debug)]
pub(super) struct Scanning {
    file: StreamedFile,
    scanner: LayerScanner,
    layer: Hasher,
    uncut: Uncut,
    ends: Vec<u64>,
    chunks: Vec<ChunkRef>,
}

/// A layer of which every byte is in the file.
#[derive(Debug)]
pub(super) struct ScannedFile {
    pub(super) file: StreamedFile,
    pub(super) diff_id: DiffId,
    /// Things that containerd's unpack also ignores.
    pub(super) warnings: Vec<String>,
    layer: LayerTree,
    plain_len: u64,
    chunks: Vec<ChunkRef>,
}

impl ScannedFile {
    /// The index of the layer. Its chunks are [`Codec::Streamed`], so that it is the same whatever the layer is compressed with.
    pub(super) fn index(&self, limits: &Limits) -> Result<LayerIndex, FormatError> {
        let chunks = ChunkTable::new(self.chunks.clone(), self.plain_len, limits)?;
        LayerIndex::new(self.diff_id, chunks, &self.layer)
    }
}

impl Scanning {
    pub(super) fn new(file: StreamedFile, limits: &Limits) -> Result<Self, Error> {
        Ok(Self {
            file,
            scanner: LayerScanner::new(DEFAULT_CHUNK_SIZE, limits.clone())?,
            layer: Hasher::new(),
            uncut: Uncut::default(),
            ends: Vec::new(),
            chunks: Vec::new(),
        })
    }
}

impl Sink for Scanning {
    type Taken = ScannedFile;

    fn take(&mut self, plain: Bytes) -> Result<bool, Error> {
        self.scanner.push(&plain, &mut self.ends)?;
        self.layer.update(&plain);
        self.file.append(&plain)?;
        self.uncut.pieces.push_back(plain);
        self.chunks
            .extend(self.ends.drain(..).map(|end| self.uncut.cut(end)));
        Ok(true)
    }

    fn finish(mut self) -> Result<ScannedFile, Error> {
        let ScannedLayer {
            layer,
            plain_len,
            warnings,
        } = self.scanner.finish(&mut self.ends)?;
        self.chunks
            .extend(self.ends.drain(..).map(|end| self.uncut.cut(end)));
        Ok(ScannedFile {
            file: self.file,
            diff_id: DiffId(self.layer.finish()),
            warnings,
            layer,
            plain_len,
            chunks: self.chunks,
        })
    }
}

/// Plain bytes that belong to no chunk yet.
#[derive(Debug, Default)]
struct Uncut {
    pieces: VecDeque<Bytes>,
    plain_off: u64,
}

impl Uncut {
    /// The chunk that ends at plain offset `end`. An end that lies wrong gives a chunk that the table refuses.
    fn cut(&mut self, end: u64) -> ChunkRef {
        let plain_off = self.plain_off;
        let mut missing = usize::try_from(end.saturating_sub(plain_off)).unwrap_or(usize::MAX);
        let mut hasher = Hasher::new();
        while missing > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let part = piece.len().min(missing);
            hasher.update(&piece[..part]);
            piece.advance(part);
            missing -= part;
            self.plain_off += part as u64;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        ChunkRef {
            plain_off,
            plain_len: u32::try_from(self.plain_off - plain_off).unwrap_or(u32::MAX),
            stored_off: 0,
            stored_len: 1,
            codec: Codec::Streamed,
            digest: ChunkDigest(hasher.finish()),
        }
    }
}
