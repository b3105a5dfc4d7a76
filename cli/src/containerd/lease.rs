//! Work under a lease: what it makes in containerd is not collected as garbage before it has ended.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::client::{Client, Labels};

/// When containerd collects a lease that nobody ended.
const EXPIRE: &str = "containerd.io/gc.expire";

/// Work that takes longer than this has died, in seconds.
const LEASE_SECONDS: u64 = 24 * 60 * 60;

/// Runs `work` with a client whose things belong to a lease named after `purpose`, and ends the lease.
///
/// # Errors
/// When no lease can be made; those of the work.
pub(crate) async fn under_lease<T>(
    client: &Client,
    purpose: &str,
    work: impl AsyncFnOnce(&Client) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let id = format!("sluice-{purpose}-{}-{}", std::process::id(), nanoseconds()?);
    let expire = Labels::from([(EXPIRE.to_owned(), expiry()?)]);
    let leased = client.with_lease(&id, expire).await.context("making a lease")?;
    let done = work(&leased).await;
    if let Err(error) = leased.end_lease().await {
        tracing::warn!(lease = id, %error, "a lease stays until it expires");
    }
    done
}

/// Tells things of one process apart.
pub(crate) fn nanoseconds() -> anyhow::Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}

/// When the lease ends, in the form of RFC 3339.
fn expiry() -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(sluice_format::date::rfc3339(now + LEASE_SECONDS))
}
