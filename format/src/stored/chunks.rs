//! The chunk that is passing, and those before it.

use crate::compression::Codec;
use crate::gzip::SparseWindow;
use crate::{ChunkDigest, ChunkRef, FormatError, Hasher, Limits};

#[derive(Debug)]
pub(super) struct Chunks {
    stored_off: u64,
    codec: Codec,
    plain_off: u64,
    plain_len: u64,
    hasher: Hasher,
    /// Plain bytes of a plain tar that belong to no chunk yet, at most 1.25 times the chunk size.
    uncut: Vec<u8>,
    chunks: Vec<ChunkRef>,
    windows: Vec<SparseWindow>,
    /// Longest chunk, in plain bytes and in stored ones.
    most_plain: u64,
    most_stored: u64,
    refusal: Option<FormatError>,
}

impl Chunks {
    /// Before the first plain byte. `first` is the codec of the first chunk.
    pub(super) fn new(first: Codec, limits: &Limits) -> Self {
        Self {
            stored_off: 0,
            codec: first,
            plain_off: 0,
            plain_len: 0,
            hasher: Hasher::new(),
            uncut: Vec::new(),
            chunks: Vec::new(),
            windows: Vec::new(),
            most_plain: limits.chunk_plain_len.into(),
            most_stored: u64::from(limits.chunk_plain_len) * 2,
            refusal: None,
        }
    }

    pub(super) fn take(&mut self, plain: &[u8]) {
        match self.codec {
            Codec::Stored => self.uncut.extend_from_slice(plain),
            _ => {
                self.hasher.update(plain);
                self.plain_len += plain.len() as u64;
            }
        }
    }

    /// Whether the present chunk has at least `spacing` plain bytes.
    pub(super) fn is_due(&self, spacing: u64) -> bool {
        self.plain_len >= spacing
    }

    /// Whether the present chunk has no plain bytes yet.
    pub(super) fn is_empty(&self) -> bool {
        self.plain_len == 0
    }

    /// The position of the window that the next chunk between two blocks has.
    pub(super) fn next_window(&self) -> u32 {
        // The number of chunks is limited to far less than 2^32 before a table is made of them.
        u32::try_from(self.windows.len()).unwrap_or(u32::MAX)
    }

    /// The next chunk begins, at a stored offset.
    pub(super) fn begin(&mut self, stored_off: u64, codec: Codec) {
        self.stored_off = stored_off;
        self.codec = codec;
    }

    /// The present chunk of a compressed blob ends. One without plain bytes is none.
    pub(super) fn end(&mut self, stored_end: u64, window: Option<SparseWindow>) {
        if self.plain_len == 0 {
            return;
        }
        let digest = ChunkDigest(std::mem::take(&mut self.hasher).finish());
        let (plain_len, stored_len) = (self.plain_len, stored_end - self.stored_off);
        if plain_len > self.most_plain || stored_len > self.most_stored {
            self.refusal.get_or_insert(FormatError::NoRestart {
                plain_off: self.plain_off,
                plain_len,
                stored_len,
            });
        }
        self.add(plain_len, stored_len, digest);
        self.windows.extend(window);
    }

    /// A chunk of a plain tar ends at plain offset `end`, which the scanner has decided on.
    pub(super) fn cut_plain(&mut self, end: u64) {
        let len = usize::try_from(end.saturating_sub(self.plain_off)).unwrap_or(usize::MAX);
        let rest = self.uncut.split_off(len.min(self.uncut.len()));
        let chunk = std::mem::replace(&mut self.uncut, rest);
        let mut hasher = Hasher::new();
        hasher.update(&chunk);
        self.stored_off = self.plain_off;
        self.add(
            chunk.len() as u64,
            chunk.len() as u64,
            ChunkDigest(hasher.finish()),
        );
    }

    fn add(&mut self, plain_len: u64, stored_len: u64, digest: ChunkDigest) {
        if self.refusal.is_none() {
            self.chunks.push(ChunkRef {
                plain_off: self.plain_off,
                plain_len: u32::try_from(plain_len).unwrap_or(u32::MAX),
                stored_off: self.stored_off,
                stored_len: u32::try_from(stored_len).unwrap_or(u32::MAX),
                codec: self.codec,
                digest,
            });
        }
        self.plain_off += plain_len;
        self.plain_len = 0;
    }

    pub(super) fn finish(self) -> Result<(Vec<ChunkRef>, Vec<SparseWindow>), FormatError> {
        match self.refusal {
            Some(refusal) => Err(refusal),
            None => Ok((self.chunks, self.windows)),
        }
    }
}
