//! Plain bytes → tree, DiffID and chunks in flight.
//!
//! The scanner says where chunks end only after it has seen some bytes beyond; until then pieces wait in [`Uncut`]. Each
//! chunk is copied once, out of the pieces into a buffer of the pool, and handed to the compressing threads.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use sluice_format::scan::{LayerScanner, ScannedLayer};
use sluice_format::{DiffId, FormatError, Hasher, Limits};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::pool::{ChunkPool, PendingChunk};
use crate::Error;

/// What the scanning thread learned.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) diff_id: DiffId,
    pub(crate) scanned: ScannedLayer,
}

/// Scans all plain bytes and submits their chunks in order. `None` when nobody takes the chunks any more: the cause is
/// known further down. Blocks; runs on its own thread.
///
/// # Errors
/// What makes the plain bytes no layer.
pub(crate) fn cut(
    mut plain: mpsc::Receiver<Bytes>,
    chunks: &mpsc::UnboundedSender<PendingChunk>,
    pool: &ChunkPool,
    runtime: &Handle,
    chunk_size: u32,
    limits: &Limits,
) -> Result<Option<Cut>, Error> {
    let mut scanner = LayerScanner::new(chunk_size, limits.clone())?;
    let mut hasher = Hasher::new();
    let mut uncut = Uncut::default();
    let mut ends = Vec::new();
    while let Some(piece) = plain.blocking_recv() {
        hasher.update(&piece);
        scanner.push(&piece, &mut ends)?;
        uncut.push(piece);
        submit(&mut uncut, &mut ends, chunks, pool, runtime)?;
        if chunks.is_closed() {
            return Ok(None);
        }
    }
    let scanned = scanner.finish(&mut ends)?;
    submit(&mut uncut, &mut ends, chunks, pool, runtime)?;
    Ok(Some(Cut {
        diff_id: DiffId(hasher.finish()),
        scanned,
    }))
}

fn submit(
    uncut: &mut Uncut,
    ends: &mut Vec<u64>,
    chunks: &mpsc::UnboundedSender<PendingChunk>,
    pool: &ChunkPool,
    runtime: &Handle,
) -> Result<(), Error> {
    for end in ends.drain(..) {
        if chunks.is_closed() {
            break;
        }
        let plain_off = uncut.plain_off;
        let len = uncut.len_until(end)?;
        let mut buffer = pool.buffer_blocking(runtime, len);
        uncut.take(len, &mut buffer.plain);
        let pending = pool.submit(plain_off, buffer);
        // Closed since the look above: the writer gave up and reports why.
        let _ = chunks.send(pending);
    }
    Ok(())
}

/// Plain bytes that belong to no chunk yet.
#[derive(Debug, Default)]
struct Uncut {
    pieces: VecDeque<Bytes>,
    plain_off: u64,
    len: usize,
}

impl Uncut {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        self.pieces.push_back(piece);
    }

    /// Number of bytes up to plain offset `end`.
    fn len_until(&self, end: u64) -> Result<usize, Error> {
        end.checked_sub(self.plain_off)
            .and_then(|len| usize::try_from(len).ok())
            .filter(|len| (1..=self.len).contains(len))
            .ok_or_else(|| {
                let reason = format!("a chunk from {} cannot end at {end}", self.plain_off);
                FormatError::malformed("chunk cuts", "plain layer", reason).into()
            })
    }

    /// Moves the next `len` bytes, which must be there, into `chunk`.
    fn take(&mut self, len: usize, chunk: &mut Vec<u8>) {
        while chunk.len() < len
            && let Some(piece) = self.pieces.front_mut()
        {
            let part = piece.len().min(len - chunk.len());
            chunk.extend_from_slice(&piece[..part]);
            piece.advance(part);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        self.len -= chunk.len();
        self.plain_off += chunk.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_span_pieces_without_loss() {
        let mut uncut = Uncut::default();
        for piece in ["abc", "", "de", "fghij"] {
            uncut.push(Bytes::from(piece));
        }
        let mut take_until = |end| {
            let (mut chunk, len) = (Vec::new(), uncut.len_until(end)?);
            uncut.take(len, &mut chunk);
            Ok::<_, Error>(chunk)
        };
        assert_eq!(take_until(1).unwrap(), b"a");
        assert_eq!(take_until(6).unwrap(), b"bcdef");
        assert!(take_until(6).is_err());
        assert!(take_until(11).is_err());
        assert_eq!(take_until(10).unwrap(), b"ghij");
    }
}
