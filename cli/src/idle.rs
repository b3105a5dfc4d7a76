//! What a long-lived process does when it has done something: it gives the memory back that it took for that.
//!
//! Loading and merging the trees of an image takes buffers that are free a moment later, but the C library keeps free memory
//! for itself, in an arena for every few threads. After starting a hundred images that was 54 MB, and as much when all of
//! them were removed.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use tokio::task::spawn_blocking;

/// How often one looks whether there is anything to give back.
const LOOK: Duration = Duration::from_secs(10);
/// Processor time between two looks from which on the process works, and will need the memory again.
const BUSY: Duration = Duration::from_millis(100);
/// Processor time since memory was given back from which on there may be more to give.
const WORTHWHILE: Duration = Duration::from_millis(2);

/// Gives free memory back after every time of work, for as long as the process lives.
pub(crate) async fn give_memory_back() {
    let mut looks = tokio::time::interval(LOOK);
    let mut given = Duration::ZERO;
    let mut before = Duration::ZERO;
    loop {
        looks.tick().await;
        let now = processor_time();
        let is_busy = now.saturating_sub(before) >= BUSY;
        before = now;
        if is_busy || now.saturating_sub(given) < WORTHWHILE {
            continue;
        }
        if let Err(error) = spawn_blocking(sluice_fuse::release_free_memory).await {
            tracing::warn!(%error, "free memory is kept");
        }
        given = processor_time();
    }
}

/// What this process has used so far. Zero should the kernel not tell; then nothing is given back.
fn processor_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let times = [usage.user_time(), usage.system_time()];
    let times = times.map(|time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or_default();
        let microseconds = u64::try_from(time.tv_usec()).unwrap_or_default();
        Duration::from_secs(seconds) + Duration::from_micros(microseconds)
    });
    times.iter().sum()
}
