//! The compressing threads, shared by all layers.
//!
//! A [`ChunkPool`] has one thread per job. Each takes a chunk of plain bytes, computes its digest and its zstd frame, and
//! answers through a channel that the layer's writer awaits in chunk order. Bytes in flight, over all layers together, are
//! bounded by permits: a chunk takes one per byte of its buffer before it is cut and gives them back when its frame has
//! been written. Buffers are used again: allocated by one thread and freed by another they would stay in the
//! allocator's arena of each, which doubled the memory of a conversion.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use sluice_format::compression::ChunkEncoder;
use sluice_format::{ChunkDigest, Digest, FormatError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::Error;

/// Least and most bytes of chunks in flight. The lower bound keeps two cores fed while a writer hesitates, the upper one
/// keeps the whole converter under 200 MB.
const IN_FLIGHT_MIN: usize = 16 << 20;
const IN_FLIGHT_MAX: usize = 64 << 20;

/// Chunks in flight per thread: one being compressed, one waiting for it, and two finished that wait for an earlier one.
const CHUNKS_PER_THREAD: usize = 4;

/// A compressed chunk. Its permits are given back when it is dropped.
#[derive(Debug)]
pub(crate) struct EncodedChunk {
    pub(crate) plain_off: u64,
    pub(crate) plain_len: u32,
    pub(crate) digest: ChunkDigest,
    pub(crate) stored: Vec<u8>,
    _in_flight: Option<OwnedSemaphorePermit>,
}

/// An empty buffer for a chunk, with its permits.
#[derive(Debug)]
pub(crate) struct ChunkBuffer {
    pub(crate) plain: Vec<u8>,
    in_flight: Option<OwnedSemaphorePermit>,
}

/// A chunk that will be compressed.
pub(crate) type PendingChunk = oneshot::Receiver<Result<EncodedChunk, FormatError>>;

#[derive(Debug)]
struct Job {
    plain_off: u64,
    buffer: ChunkBuffer,
    reply: oneshot::Sender<Result<EncodedChunk, FormatError>>,
}

/// The threads and the bound on bytes in flight. Dropping it ends the threads after the chunk they are at.
pub(crate) struct ChunkPool {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    in_flight: Arc<Semaphore>,
    in_flight_max: usize,
    chunk_size: usize,
    spare: Arc<SpareBuffers>,
}

/// Buffers that wait to be used again. There are never more than chunks in flight.
#[derive(Debug, Default)]
struct SpareBuffers(Mutex<Vec<Vec<u8>>>);

impl SpareBuffers {
    fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

impl fmt::Debug for ChunkPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkPool")
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl ChunkPool {
    /// Starts `threads` threads that compress at `level`.
    ///
    /// # Errors
    /// A refused level, or a thread that the system does not grant.
    pub(crate) fn start(threads: usize, level: i32, chunk_size: u32) -> Result<Self, Error> {
        let wanted = threads
            .saturating_mul(chunk_size as usize)
            .saturating_mul(CHUNKS_PER_THREAD);
        let in_flight_max = wanted.clamp(IN_FLIGHT_MIN, IN_FLIGHT_MAX);
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut pool = Self {
            jobs: Some(jobs),
            threads: Vec::with_capacity(threads),
            in_flight: Arc::new(Semaphore::new(in_flight_max)),
            in_flight_max,
            chunk_size: chunk_size as usize,
            spare: Arc::default(),
        };
        for number in 0..threads {
            let encoder = ChunkEncoder::new(level)?;
            let (queue, spare) = (Arc::clone(&queue), Arc::clone(&pool.spare));
            let thread = thread::Builder::new()
                .name(format!("compress-{number}"))
                .spawn(move || run(&queue, &spare, encoder))
                .map_err(|error| Error::io("cannot start a thread", error))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// A buffer for a chunk of `len` bytes; waits while too many bytes are in flight. For threads outside the async
    /// runtime.
    pub(crate) fn buffer_blocking(&self, runtime: &tokio::runtime::Handle, len: usize) -> ChunkBuffer {
        let permits = len.max(self.chunk_size).min(self.in_flight_max);
        // The clamp of the maximum keeps the number far below 2^32.
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let granted = runtime.block_on(Arc::clone(&self.in_flight).acquire_many_owned(permits));
        let mut plain = self.spare.take().unwrap_or_default();
        plain.reserve_exact(len.max(self.chunk_size));
        ChunkBuffer {
            plain,
            // The semaphore is never closed.
            in_flight: granted.ok(),
        }
    }

    /// Gives a filled buffer, the chunk at `plain_off`, to the threads.
    pub(crate) fn submit(&self, plain_off: u64, buffer: ChunkBuffer) -> PendingChunk {
        let (reply, pending) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // Threads end only with the pool; a job that none takes shows as a closed reply.
            let _ = jobs.send(Job {
                plain_off,
                buffer,
                reply,
            });
        }
        pending
    }
}

impl Drop for ChunkPool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a compressing thread panicked");
            }
        }
    }
}

fn run(queue: &Mutex<mpsc::Receiver<Job>>, spare: &SpareBuffers, mut encoder: ChunkEncoder) {
    loop {
        // A thread that panicked while holding the lock was only waiting, so the queue is intact.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            plain_off,
            buffer,
            reply,
        }) = job
        else {
            return;
        };
        let ChunkBuffer { plain, in_flight } = buffer;
        if !reply.is_closed() {
            let encoded = encode(&mut encoder, plain_off, &plain, in_flight);
            // The layer was given up meanwhile: nobody wants the chunk.
            let _ = reply.send(encoded);
        }
        spare.put(plain);
    }
}

fn encode(
    encoder: &mut ChunkEncoder,
    plain_off: u64,
    plain: &[u8],
    in_flight: Option<OwnedSemaphorePermit>,
) -> Result<EncodedChunk, FormatError> {
    let plain_len = u32::try_from(plain.len()).map_err(|_| {
        FormatError::malformed(
            "chunk",
            format!("plain offset {plain_off}"),
            "is longer than 4 GiB",
        )
    })?;
    let mut stored = encoder.encode(plain)?;
    // The encoder makes room for bytes that do not compress at all.
    stored.shrink_to_fit();
    Ok(EncodedChunk {
        plain_off,
        plain_len,
        digest: ChunkDigest(Digest::of(plain)),
        stored,
        _in_flight: in_flight,
    })
}
