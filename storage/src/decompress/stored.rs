//! The stored bytes of a layer, as a reader for the decoder's thread.
//!
//! Pieces arrive over a bounded channel from the task that reads the network or the disk. Every piece is counted and
//! added to the blob digest on its way to the decoder, so that all stored bytes are covered whatever the decoder skips.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes, BytesMut};
use sluice_format::{Digest, Hasher};
use tokio::sync::mpsc;

/// Reads the pieces of a channel in order; the end of the channel is the end of the blob. Must not be used on a thread
/// of the async runtime.
#[derive(Debug)]
pub struct StoredReader {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
    hasher: Hasher,
    stored_len: u64,
}

impl StoredReader {
    /// A reader of the pieces that come over a channel.
    pub fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            hasher: Hasher::new(),
            stored_len: 0,
        }
    }

    fn receive(&mut self) -> Option<Bytes> {
        let piece = self.pieces.blocking_recv()?;
        self.hasher.update(&piece);
        self.stored_len += piece.len() as u64;
        Some(piece)
    }

    /// The next `len` bytes without consuming them; fewer at the end of the blob.
    pub fn peek(&mut self, len: usize) -> &[u8] {
        if self.current.len() < len {
            let mut joined = BytesMut::from(&self.current[..]);
            while joined.len() < len
                && let Some(piece) = self.receive()
            {
                joined.extend_from_slice(&piece);
            }
            self.current = joined.freeze();
        }
        &self.current[..len.min(self.current.len())]
    }

    /// Takes in what the decoder left and gives digest and length of all stored bytes.
    pub fn finish(mut self) -> (Digest, u64) {
        while self.receive().is_some() {}
        (self.hasher.finish(), self.stored_len)
    }
}

impl BufRead for StoredReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty()
            && let Some(piece) = self.receive()
        {
            self.current = piece;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for StoredReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let len = from.len().min(to.len());
        to[..len].copy_from_slice(&from[..len]);
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peeking_over_short_pieces_loses_no_byte_and_hashes_each_once() {
        let (to, pieces) = mpsc::channel(8);
        for piece in ["a", "", "bc", "defg"] {
            to.blocking_send(Bytes::from(piece)).unwrap();
        }
        drop(to);
        let mut reader = StoredReader::new(pieces);
        assert_eq!(reader.peek(3), b"abc");
        assert_eq!(reader.peek(2), b"ab");
        let mut start = [0; 5];
        reader.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"abcde");
        assert_eq!(reader.peek(99), b"fg");
        assert_eq!(reader.finish(), (Digest::of(b"abcdefg"), 7));
    }
}
