//! Work that blocks, away from the threads that drive sockets.

use crate::Error;

/// Runs `work` on the blocking pool and waits for it. A panic in it becomes an error.
pub(crate) async fn run<T, F>(what: &'static str, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            let message = format!("{what}: the worker thread stopped before it was done");
            Err(Error::internal(message, error))
        }
    }
}
