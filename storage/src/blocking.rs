//! Work that blocks, away from the threads that drive sockets.
//!
//! Disk calls, decoding and hashing run on the runtime's blocking pool. A closure that panics is reported as an error of
//! the caller's operation, so that one bad chunk never takes a reader's task down.

use crate::{Error, ErrorKind};

/// Runs `work` on the blocking pool and waits for it.
pub(crate) async fn run<T, F>(what: &'static str, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            let message = format!("{what}: the worker thread stopped before it was done");
            Err(Error::new(ErrorKind::Io, message).with_source(error))
        }
    }
}
