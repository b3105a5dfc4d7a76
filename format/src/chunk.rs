//! The chunk table: where the stored bytes of every chunk of a plain layer lie.

use std::ops::Range;
use std::sync::Arc;

use crate::compression::Codec;
use crate::gzip::SparseWindow;
use crate::{ChunkDigest, FormatError, Limits};

/// One chunk: a range of the plain layer and the stored bytes it is decoded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// Offset of the first byte in the plain layer.
    pub plain_off: u64,
    /// Length in the plain layer, never 0.
    pub plain_len: u32,
    /// Offset of the stored bytes in the registry blob.
    pub stored_off: u64,
    /// Length of the stored bytes; 0 only for [`Codec::Zeros`].
    pub stored_len: u32,
    /// How stored bytes become plain bytes.
    pub codec: Codec,
    /// Digest of the plain bytes.
    pub digest: ChunkDigest,
}

impl ChunkRef {
    /// The range in the plain layer.
    pub fn plain_range(&self) -> Range<u64> {
        self.plain_off..self.plain_off + u64::from(self.plain_len)
    }

    /// The range in the registry blob.
    pub fn stored_range(&self) -> Range<u64> {
        self.stored_off..self.stored_off + u64::from(self.stored_len)
    }
}

/// All chunks of a layer, sorted by plain offset, without gap or overlap, from 0 to the plain length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkTable {
    chunks: Vec<ChunkRef>,
    /// What chunks of a gzip stream copy from, in the order of those chunks.
    windows: Arc<[SparseWindow]>,
}

impl ChunkTable {
    /// Checks and takes chunks that cover `0..plain_len` in order, and copy from no window.
    ///
    /// # Errors
    /// [`FormatError`] when the chunks leave a gap, overlap, are empty, or pass a limit.
    pub fn new(chunks: Vec<ChunkRef>, plain_len: u64, limits: &Limits) -> Result<Self, FormatError> {
        Self::with_windows(chunks, Vec::new(), plain_len, limits)
    }

    /// [`ChunkTable::new`] with the windows of its [`Codec::Deflate`] chunks, one for each, in the same order.
    ///
    /// # Errors
    /// As [`ChunkTable::new`]; also when a chunk has not its own window, or bits that no byte has.
    pub fn with_windows(
        chunks: Vec<ChunkRef>,
        windows: Vec<SparseWindow>,
        plain_len: u64,
        limits: &Limits,
    ) -> Result<Self, FormatError> {
        FormatError::check_limit(
            "number of chunks in a layer",
            chunks.len() as u64,
            limits.chunks as u64,
        )?;
        FormatError::check_limit("plain length of a layer", plain_len, limits.layer_plain_len)?;
        let mut next = 0;
        for (at, chunk) in chunks.iter().enumerate() {
            check_chunk(chunk, at, next, limits)?;
            next = chunk.plain_range().end;
        }
        if next != plain_len {
            let reason = format!("chunks end at plain offset {next}, the layer at {plain_len}");
            return Err(FormatError::malformed("chunk table", "end", reason));
        }
        check_restarts(&chunks, windows.len())?;
        Ok(Self {
            chunks,
            windows: windows.into(),
        })
    }

    /// What [`Codec::Deflate`] chunks copy from, in the order of those chunks.
    pub fn windows(&self) -> &[SparseWindow] {
        &self.windows
    }

    /// The window that a chunk names.
    pub fn window(&self, at: u32) -> Option<&SparseWindow> {
        self.windows.get(usize::try_from(at).ok()?)
    }

    /// The chunks in plain order.
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// Length of the plain layer.
    pub fn plain_len(&self) -> u64 {
        self.chunks.last().map_or(0, |last| last.plain_range().end)
    }

    /// Positions of the chunks that hold `plain`. Empty for an empty range or one past the end.
    pub fn covering(&self, plain: Range<u64>) -> Range<usize> {
        if plain.is_empty() {
            return 0..0;
        }
        let first = self
            .chunks
            .partition_point(|chunk| chunk.plain_range().end <= plain.start);
        let end = self.chunks.partition_point(|chunk| chunk.plain_off < plain.end);
        first..end.max(first)
    }
}

fn check_restarts(chunks: &[ChunkRef], windows: usize) -> Result<(), FormatError> {
    let refuse = |place: String, reason| Err(FormatError::malformed("chunk table", place, reason));
    let mut next = 0;
    for (at, chunk) in chunks.iter().enumerate() {
        if let Codec::Deflate { bits, window } = chunk.codec {
            if bits > 7 || window as usize != next || next >= windows {
                return refuse(format!("chunk {at}"), "begins at no restart point");
            }
            next += 1;
        }
    }
    match next == windows {
        true => Ok(()),
        false => refuse("windows".to_owned(), "belong to no chunk"),
    }
}

fn check_chunk(chunk: &ChunkRef, at: usize, expected_off: u64, limits: &Limits) -> Result<(), FormatError> {
    let refuse = |reason: &str| {
        Err(FormatError::malformed(
            "chunk table",
            format!("chunk {at}"),
            reason,
        ))
    };
    FormatError::check_limit(
        "plain length of a chunk",
        chunk.plain_len.into(),
        limits.chunk_plain_len.into(),
    )?;
    // Incompressible input grows by a frame header and a few bytes per block; twice the plain bound is ample.
    let stored_limit = u64::from(limits.chunk_plain_len) * 2;
    FormatError::check_limit("stored length of a chunk", chunk.stored_len.into(), stored_limit)?;
    if chunk.plain_len == 0 || (chunk.stored_len == 0) != (chunk.codec == Codec::Zeros) {
        return refuse("is empty");
    }
    if chunk.plain_off != expected_off {
        return refuse("does not begin where the chunk before it ends");
    }
    let plain_end = chunk.plain_off.checked_add(chunk.plain_len.into());
    let stored_end = chunk.stored_off.checked_add(chunk.stored_len.into());
    if plain_end.is_none() || stored_end.is_none() {
        return refuse("ends after 2^64 bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn chunk(plain_off: u64, plain_len: u32) -> ChunkRef {
        let digest = ChunkDigest(Digest::of(b""));
        ChunkRef {
            plain_off,
            plain_len,
            stored_off: plain_off,
            stored_len: 1,
            codec: Codec::Zstd,
            digest,
        }
    }

    #[test]
    fn ranges_find_their_chunks() {
        let table = ChunkTable::new(
            vec![chunk(0, 10), chunk(10, 5), chunk(15, 1)],
            16,
            &Limits::default(),
        )
        .unwrap();
        assert_eq!(table.covering(0..1), 0..1);
        assert_eq!(table.covering(9..10), 0..1);
        assert_eq!(table.covering(9..11), 0..2);
        assert_eq!(table.covering(10..16), 1..3);
        assert_eq!(table.covering(15..99), 2..3);
        assert!(table.covering(16..20).is_empty());
        assert!(table.covering(3..3).is_empty());
    }

    #[test]
    fn gaps_overlaps_and_empty_chunks_are_refused() {
        let limits = Limits::default();
        for bad in [
            vec![chunk(1, 9)],
            vec![chunk(0, 5), chunk(4, 6)],
            vec![chunk(0, 5), chunk(6, 4)],
            vec![chunk(0, 0)],
            vec![chunk(0, 9)],
            vec![],
        ] {
            assert!(ChunkTable::new(bad.clone(), 10, &limits).is_err(), "{bad:?}");
        }
        let overflow = ChunkRef {
            stored_off: u64::MAX,
            ..chunk(0, 10)
        };
        assert!(ChunkTable::new(vec![overflow], 10, &limits).is_err());
    }
}
