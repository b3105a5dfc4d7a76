//! A layer that was streamed before and has lost chunks: the blob once more, cut as its index says.
//!
//! Every chunk is verified against the index by itself, so it is of use as soon as it has come, long before the blob has ended. When the
//! last chunk that is wanted has come, the rest of the blob is not read.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sluice_format::Limits;
use sluice_format::compression::verify_chunk;

use super::pipeline::{self, Sink};
use crate::fetch::LayerChunks;
use crate::{Blob, Error};

/// What is done with a chunk that was wanted and has come.
pub(crate) type Landing = Box<dyn FnMut(usize, Bytes) + Send>;

/// The sink of a repeated stream.
pub(crate) struct Refill {
    index: LayerChunks,
    /// Chunks that are wanted, ascending, the next one last.
    wanted: Vec<usize>,
    /// Position and plain bytes of the chunk that is coming.
    at: usize,
    arrived: BytesMut,
    landing: Landing,
}

impl Refill {
    /// Gives the chunks `wanted`, ascending positions in the chunk table, to `landing`.
    pub(crate) fn new(index: LayerChunks, mut wanted: Vec<usize>, landing: Landing) -> Self {
        wanted.reverse();
        Self {
            index,
            wanted,
            at: 0,
            arrived: BytesMut::new(),
            landing,
        }
    }

    /// Takes plain bytes that belong to the chunk at `self.at`; gives what lies behind it.
    fn fill(&mut self, plain: &[u8], plain_len: usize) -> Result<usize, Error> {
        let part = (plain_len - self.arrived.len()).min(plain.len());
        self.arrived.extend_from_slice(&plain[..part]);
        if self.arrived.len() < plain_len {
            return Ok(part);
        }
        let bytes = self.arrived.split().freeze();
        if self.wanted.last() == Some(&self.at) {
            verify_chunk(&self.index.chunks.chunks()[self.at], &bytes)?;
            self.wanted.pop();
            (self.landing)(self.at, bytes);
        }
        self.at += 1;
        Ok(part)
    }
}

impl Sink for Refill {
    type Taken = ();

    fn take(&mut self, plain: Bytes) -> Result<bool, Error> {
        let mut rest = &plain[..];
        while !rest.is_empty() && !self.wanted.is_empty() {
            let Some(chunk) = self.index.chunks.chunks().get(self.at) else {
                break;
            };
            let plain_len = chunk.plain_len as usize;
            let taken = self.fill(rest, plain_len)?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(!self.wanted.is_empty())
    }

    fn finish(self) -> Result<(), Error> {
        match self.wanted.last() {
            None => Ok(()),
            Some(at) => {
                let message = format!("the blob ends before chunk {at} of layer {}", self.index.diff_id);
                Err(Error::new(crate::ErrorKind::Corrupt, message))
            }
        }
    }
}

/// Streams a blob into a refill.
///
/// # Errors
/// What hinders reading it; [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when a chunk is not what the index says.
pub(crate) async fn refill(
    blob: &Arc<dyn Blob>,
    refill: Refill,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    pipeline::run(blob, refill, &Limits::default(), advanced)
        .await?
        .taken
}
