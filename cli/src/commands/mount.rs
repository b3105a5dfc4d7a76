//! `sluice mount`: serves one image in the foreground until it is unmounted or the process is asked to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;
use sluice_format::Limits;
use sluice_format::erofs::{DeviceSlot, write_image};
use sluice_fuse::{Front, Guard, Layer, MountRequest, MountedImage, SessionOptions};
use sluice_storage::registry::RegistryClient;
use sluice_storage::{Cache, CacheOptions, Counters, Fetcher, LazyImage, PlainLayer};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::args::{FrontArg, MountArgs};
use crate::wiring::{EndSignals, Interrupted};
use crate::{output, wiring};

/// Hidden command of the process that watches over the mounts of this one.
const GUARD_COMMAND: &str = "mount-guard";

/// Readahead window of a mount that is not complete: a wider one fetches chunks that nobody reads, because the window of
/// a page fault is centred on the fault.
const READ_AHEAD_KIB: u32 = 64;

/// Readahead window when nearly every chunk is on this host: little is fetched in vain, wide requests cost least, and the
/// page cache gets large folios (random 4 KiB reads then run at the speed of ext4, at 0.95 of it with the small window).
const READ_AHEAD_COMPLETE_KIB: u32 = 1024;

/// One missing chunk in this many counts as complete: chunks of tar headers and padding only are never read.
const COMPLETE_SHARE: usize = 50;

impl From<FrontArg> for Front {
    fn from(front: FrontArg) -> Self {
        match front {
            FrontArg::Auto => Self::Auto,
            FrontArg::Erofs => Self::Erofs,
            FrontArg::Fuse => Self::Fuse,
        }
    }
}

pub(super) fn run(args: &MountArgs) -> anyhow::Result<()> {
    ensure!(
        args.dir.is_dir(),
        "{} is not a directory; create it first",
        args.dir.display()
    );
    let exe = std::env::current_exe().context("finding the path of this program")?;
    let mut guard = Guard::spawn(&exe, &[GUARD_COMMAND])?;
    let runtime = wiring::runtime()?;
    runtime.block_on(serve(args, &mut guard))
}

async fn serve(args: &MountArgs, guard: &mut Guard) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut signals = EndSignals::new()?;
    let registries = wiring::registries(&args.common)?;
    let prepared = tokio::select! {
        prepared = prepare(args, &registries) => prepared?,
        () = signals.recv() => return Err(Interrupted.into()),
    };
    let image = prepared.image;
    let counters = prepared.counters;
    let request = prepared.request;
    // Mounting takes milliseconds and is not interruptible; a signal that arrives meanwhile is seen right after it.
    let runtime = Handle::current();
    let mut mounted = tokio::task::block_in_place(|| MountedImage::mount(request, Some(guard), &runtime))?;
    report_ready(args, &image, &mounted, &registries, started)?;
    let reason = tokio::select! {
        gone = mounted.wait_unmounted() => gone.map(|()| "unmounted")?,
        () = signals.recv() => "interrupted",
    };
    spawn_blocking(move || unmount(&mut mounted)).await??;
    report_end(args, reason, &counters)
}

struct Prepared {
    image: LazyImage,
    counters: Arc<Counters>,
    request: MountRequest,
}

/// Loads the indexes, merges the trees and writes the image tree: everything before the first mount.
async fn prepare(args: &MountArgs, registries: &Arc<RegistryClient>) -> anyhow::Result<Prepared> {
    let platform = wiring::platform(args.platform.as_deref())?;
    let cache_dir = args.cache.clone().map_or_else(Cache::default_dir, Ok)?;
    let cache_options = CacheOptions {
        quota: args.cache_quota.map(|quota| quota.as_u64()),
        ..CacheOptions::default()
    };
    let cache = Cache::open_with(cache_dir, cache_options)?;
    let image = wiring::load_image(&args.source, &platform, registries, &cache).await?;
    let tree_file = write_tree(&image, &cache)?;
    let counters = Arc::new(Counters::default());
    let fetcher = Fetcher::new(counters.clone());
    let plain = |layer| PlainLayer::new(layer, Some(cache.layer(&layer.index)), &fetcher);
    let layers: Vec<_> = image.layers.iter().map(plain).collect();
    let missing: usize = layers.iter().map(|layer| layer.missing_chunks()).sum();
    let chunks: usize = image
        .layers
        .iter()
        .map(|layer| layer.index.chunks.chunks().len())
        .sum();
    let complete = missing * COMPLETE_SHARE <= chunks;
    let request = MountRequest {
        front: args.front.into(),
        tree_file,
        layers: layers.into_iter().map(Layer::from).collect(),
        target: args.dir.clone(),
        run_dir: args.run_dir.clone().unwrap_or_else(wiring::default_run_dir),
        image: args.source.to_string(),
        read_ahead_kib: Some(if complete {
            READ_AHEAD_COMPLETE_KIB
        } else {
            READ_AHEAD_KIB
        }),
        session: SessionOptions::default(),
    };
    Ok(Prepared {
        image,
        counters,
        request,
    })
}

/// The image tree is written anew at every mount: merging takes milliseconds, and a tree file that was damaged on disk is
/// never mounted.
fn write_tree(image: &LazyImage, cache: &Cache) -> anyhow::Result<PathBuf> {
    let chain_id = image
        .chain_id()
        .context("the image has no layers, so there is nothing to mount")?;
    let tree = image.merged_tree(&Limits::default())?;
    let slot = |diff_id, plain_len| DeviceSlot { diff_id, plain_len };
    let devices: Vec<_> = image
        .layers
        .iter()
        .map(|layer| slot(layer.diff_id, layer.plain_len))
        .collect();
    let written = write_image(&tree, &devices)?;
    Ok(cache.put_tree(&chain_id, &written.bytes)?)
}

fn unmount(mounted: &mut MountedImage) -> anyhow::Result<()> {
    match mounted.unmount(false) {
        Err(sluice_fuse::Error::Busy { .. }) => {
            tracing::warn!(
                "{} was in use; it is detached, and open files in it fail from now on",
                mounted.target().display()
            );
            Ok(mounted.unmount(true)?)
        }
        outcome => Ok(outcome?),
    }
}

fn report_ready(
    args: &MountArgs,
    image: &LazyImage,
    mounted: &MountedImage,
    registries: &RegistryClient,
    started: Instant,
) -> anyhow::Result<()> {
    let stored_len: u64 = image.layers.iter().map(|layer| layer.descriptor.size).sum();
    let plain_len: u64 = image.layers.iter().map(|layer| layer.plain_len).sum();
    let seconds = started.elapsed().as_secs_f64();
    if !args.common.json {
        return output::line(format!(
            "{} is mounted on {} ({}), {} plain, after reading {} of {} in {seconds:.2} s; Ctrl-C or `sluice umount` ends it",
            args.source,
            mounted.target().display(),
            front_name(mounted.front()),
            output::bytes(plain_len),
            output::bytes(image.index_bytes),
            output::bytes(stored_len),
        ));
    }
    let traffic = registries.traffic();
    output::json(&json!({
        "event": "ready",
        "image": args.source.to_string(),
        "dir": mounted.target(),
        "front": mounted.front(),
        "manifest_digest": image.manifest_digest.to_string(),
        "image_id": image.image_id.to_string(),
        "layers": image.layers.len(),
        "plain_len": plain_len,
        "stored_len": stored_len,
        "index_stored_len": image.index_bytes,
        "registry_requests": traffic.requests,
        "registry_received_bytes": traffic.received_bytes,
        "seconds": seconds,
    }))
}

fn front_name(front: Front) -> &'static str {
    match front {
        Front::Auto => "auto",
        Front::Erofs => "erofs",
        Front::Fuse => "fuse",
    }
}

fn report_end(args: &MountArgs, reason: &str, counters: &Counters) -> anyhow::Result<()> {
    let stats = counters.stats();
    if !args.common.json {
        return output::line(format!(
            "{reason}; {} fetched in {} requests became {} plain; {} of {} chunks read were here already",
            output::bytes(stats.stored_bytes),
            stats.requests,
            output::bytes(stats.plain_bytes),
            stats.hits,
            stats.hits + stats.misses
        ));
    }
    output::json(&json!({
        "event": "ended",
        "reason": reason,
        "requests": stats.requests,
        "stored_bytes": stats.stored_bytes,
        "plain_bytes": stats.plain_bytes,
        "chunk_hits": stats.hits,
        "chunk_misses": stats.misses,
        "corrupt_chunks": stats.corrupt,
    }))
}
