//! Room for fetched bytes.

use std::path::Path;

use anyhow::Context as _;
use nix::sys::statvfs::statvfs;
use sluice_storage::{Cache, CacheOptions};
use tokio::task::spawn_blocking;

use super::Finding;
use super::finding::told;
use crate::output;

/// Less room than this is used up by one large image, in bytes.
const LITTLE: u64 = 2 << 30;

pub(super) async fn examine(directory: &Path) -> anyhow::Result<Vec<Finding>> {
    let shown = directory.display();
    if !directory.is_dir() {
        let what = format!("there is no cache in {shown} yet");
        return Ok(vec![Finding::good("cache", what)]);
    }
    let (room, owned) = (free(directory)?, directory.to_owned());
    let options = CacheOptions {
        upkeep: false,
        ..CacheOptions::default()
    };
    let opened = spawn_blocking(move || Cache::open_with(owned, options)).await?;
    let cache = match opened {
        Ok(cache) => cache,
        Err(error) => {
            return Ok(vec![Finding::warning(
                "cache",
                format!("the cache in {shown} cannot be used: {}", told(&error)),
                "bytes are fetched from the registry again and again",
                "make the directory writable for root, or name another with --cache",
            )]);
        }
    };
    let used = cache.used_bytes();
    let what = format!(
        "the cache in {shown} has {}; {} are free on its file system",
        output::bytes(used),
        output::bytes(room)
    );
    // What the cache has can be evicted.
    if room.saturating_add(used) >= LITTLE {
        return Ok(vec![Finding::good("cache", what)]);
    }
    Ok(vec![Finding::warning(
        "cache",
        what,
        "what does not fit is evicted and fetched again",
        "make room, or name a larger file system with --cache of sluice snapshotter",
    )])
}

fn free(directory: &Path) -> anyhow::Result<u64> {
    let status = statvfs(directory).with_context(|| format!("looking at {}", directory.display()))?;
    Ok(status.blocks_available().saturating_mul(status.fragment_size()))
}
