//! `sluice mount`: serves one image until it is unmounted or the process is asked to end, in the foreground or behind the command ([`background`]).

mod background;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use sluice_fuse::{Front, Guard, Layer, MountHelper, MountRequest, MountedImage, SessionOptions};
use sluice_storage::registry::RegistryClient;
use sluice_storage::{
    Cache, CacheOptions, CountedProgress, Counters, Fetcher, Lane, LazyImage, ReadPolicy, Timeline,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use self::background::Background;
pub(super) use self::background::NotMounted;
use crate::args::{FrontArg, MountArgs};
use crate::open_image::{OpenImage, Opener, Starts, read_ahead_kib};
use crate::progress::Bars;
use crate::wiring::{EndSignals, Interrupted};
use crate::{output, wiring};

/// Hidden command of the process that watches over the mounts of this one.
const GUARD_COMMAND: &str = "mount-guard";

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
    if !args.detach {
        return serve_with(start_helpers()?, args, None);
    }
    match Background::of_this_process(args)? {
        Some(background) => serve_with(background.start_aside(start_helpers)?, args, Some(&background)),
        None => background::start(),
    }
}

/// The processes that help this one to mount and to end.
fn start_helpers() -> anyhow::Result<(Arc<MountHelper>, Guard)> {
    let exe = std::env::current_exe().context("finding the path of this program")?;
    Ok((wiring::mount_helper()?, Guard::spawn(&exe, &[GUARD_COMMAND])?))
}

fn serve_with(
    (helper, mut guard): (Arc<MountHelper>, Guard),
    args: &MountArgs,
    background: Option<&Background>,
) -> anyhow::Result<()> {
    wiring::runtime()?.block_on(serve(args, helper, &mut guard, background))
}

async fn serve(
    args: &MountArgs,
    helper: Arc<MountHelper>,
    guard: &mut Guard,
    background: Option<&Background>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut signals = EndSignals::new()?;
    let registries = wiring::registries(&args.common);
    let timeline = args.stats.as_ref().map(|_| Arc::new(Timeline::new()));
    let counters = Arc::new(Counters::default());
    let bars = Arc::new(Bars::new(args.common.json));
    let opener = opener(args, timeline.clone(), &counters, &bars)?;
    let open = tokio::select! {
        open = open(args, &registries, &opener) => open,
        () = signals.recv() => Err(Interrupted.into()),
    };
    bars.clear();
    let mut open = open?;
    // Mounting takes milliseconds and is not interruptible; a signal that arrives meanwhile is seen right after it.
    let runtime = Handle::current();
    let request = request(args, &open, helper);
    let mut mounted = tokio::task::block_in_place(|| MountedImage::mount(request, Some(guard), &runtime))?;
    if let Some(timeline) = &timeline {
        timeline.phase("mounted");
    }
    let report = || report_ready(args, &open, &mounted, &registries, started);
    match background {
        Some(background) => background.leave(report)?,
        None => report()?,
    }
    let fill = tokio::spawn(fill(args, &open));
    let (goes_on, ends) = oneshot::channel::<()>();
    let pages = open.read_pages_ahead(mounted.target(), async { drop(ends.await) });
    // A session that serves the tree itself does not know who reads ahead.
    let pages = (mounted.front() == Front::Erofs).then(|| tokio::spawn(pages));
    let reason = tokio::select! {
        gone = mounted.wait_unmounted() => gone.map(|()| "unmounted")?,
        () = signals.recv() => "interrupted",
    };
    fill.abort();
    drop(goes_on);
    if let Some(pages) = pages {
        // A panic in it was reported.
        let _ = pages.await;
    }
    open.finish_recording().await;
    spawn_blocking(move || unmount(&mut mounted)).await??;
    if let (Some(file), Some(timeline)) = (&args.stats, &timeline) {
        write_stats(file, &open.image, &counters, timeline)?;
    }
    report_end(args, reason, &counters)
}

/// Brings the layers that are wanted whole.
fn fill(args: &MountArgs, open: &OpenImage) -> impl Future<Output = ()> + Send + 'static {
    let (layers, rate) = match args.fill {
        true => (open.layers.clone(), args.fill_rate.map(|rate| rate.as_u64())),
        false => (open.whole.clone(), None),
    };
    async move { sluice_storage::fill(&layers, rate).await }
}

fn opener(
    args: &MountArgs,
    timeline: Option<Arc<Timeline>>,
    counters: &Arc<Counters>,
    bars: &Arc<Bars>,
) -> anyhow::Result<Opener> {
    let cache_dir = args.cache.clone().map_or_else(Cache::default_dir, Ok)?;
    let cache_options = CacheOptions {
        quota: args.cache_quota.map(|quota| quota.as_u64()),
        ..CacheOptions::default()
    };
    let progress = CountedProgress::new(bars.clone(), counters.clone());
    Ok(Opener {
        cache: Cache::open_with(cache_dir, cache_options)?,
        fetcher: Fetcher::new(counters.clone()),
        policy: read_policy(args),
        timeline,
        starts: if args.no_profile {
            Starts::Ignored
        } else {
            Starts::Learnt
        },
        layers: args.layers,
        progress: Arc::new(progress),
    })
}

/// Everything before the first mount.
async fn open(
    args: &MountArgs,
    registries: &Arc<RegistryClient>,
    opener: &Opener,
) -> anyhow::Result<OpenImage> {
    let platform = wiring::platform(args.platform.as_deref())?;
    let (repository, name) = wiring::repository(&args.source, registries).await?;
    opener.open(&repository, &name, &platform).await
}

fn request(args: &MountArgs, open: &OpenImage, helper: Arc<MountHelper>) -> MountRequest {
    let (missing, chunks) = open.missing_chunks();
    MountRequest {
        front: args.front.into(),
        tree_file: open.tree_file.clone(),
        layers: open.layers.iter().cloned().map(Layer::from).collect(),
        target: args.dir.clone(),
        run_dir: args.run_dir.clone().unwrap_or_else(wiring::default_run_dir),
        image: args.source.to_string(),
        read_ahead_kib: Some(read_ahead_kib(missing, chunks)),
        session: SessionOptions::default(),
        helper: Some(helper),
    }
}

fn read_policy(args: &MountArgs) -> ReadPolicy {
    ReadPolicy {
        on_failure: args.on_failure,
        deadline: Some(Duration::from_secs(args.read_deadline)),
    }
}

/// Writes where the time and the bytes of this mount went.
fn write_stats(
    file: &Path,
    image: &LazyImage,
    counters: &Counters,
    timeline: &Timeline,
) -> anyhow::Result<()> {
    let stats = counters.stats();
    let lanes = Lane::ALL.map(|lane| {
        json!({
            "lane": lane.name(),
            "requests": stats.lane_requests[lane.at()],
            "stored_bytes": stats.lane_stored_bytes[lane.at()],
            "plain_bytes": stats.lane_plain_bytes[lane.at()],
        })
    });
    let entries = timeline.entries();
    // Chunk numbers mean nothing once the image is cut in another way; offsets in plain layers do.
    let touches: Vec<_> = entries
        .touches
        .iter()
        .filter_map(|touch| {
            let chunk = image
                .layers
                .get(touch.layer)?
                .index
                .chunks
                .chunks()
                .get(touch.chunk)?;
            Some(json!({
                "at_ms": touch.at_ms,
                "layer": touch.layer,
                "chunk": touch.chunk,
                "plain_off": chunk.plain_off,
                "plain_len": chunk.plain_len,
                "stored_len": chunk.stored_len,
            }))
        })
        .collect();
    let document = json!({
        "manifest_digest": image.manifest_digest.to_string(),
        "image_id": image.image_id.to_string(),
        "layers": image.layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>(),
        "requests": stats.requests,
        "stored_bytes": stats.stored_bytes,
        "plain_bytes": stats.plain_bytes,
        "chunk_hits": stats.hits,
        "chunk_misses": stats.misses,
        "chunk_joined": stats.joined,
        "hedged": stats.hedged,
        "corrupt_chunks": stats.corrupt,
        "streamed_layers": stats.streamed_layers,
        "streamed_stored_bytes": stats.streamed_bytes,
        "resumed_stored_bytes": stats.resumed_bytes,
        "streaming_seconds": Duration::from_millis(stats.streamed_ms).as_secs_f64(),
        "lanes": lanes,
        "phases": entries.phases,
        "touches": touches,
        "waits": entries.waits,
        "left_out": entries.left_out,
    });
    let text = serde_json::to_vec(&document)?;
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
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
    open: &OpenImage,
    mounted: &MountedImage,
    registries: &RegistryClient,
    started: Instant,
) -> anyhow::Result<()> {
    let image = &open.image;
    let stored_len: u64 = image.layers.iter().map(|layer| layer.descriptor.size).sum();
    let plain_len: u64 = image.layers.iter().map(|layer| layer.plain_len).sum();
    let seconds = started.elapsed().as_secs_f64();
    if !args.common.json {
        let end = if args.detach { "" } else { "Ctrl-C or " };
        return output::line(format!(
            "{} is mounted on {} ({}), {} plain, after reading {} of {} in {seconds:.2} s; {end}`sluice umount` ends it",
            args.source,
            mounted.target().display(),
            front_name(mounted.front()),
            output::bytes(plain_len),
            output::bytes(image.index_bytes + image.streamed_bytes),
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
        "streamed_len": image.streamed_bytes,
        "profile_chunks": open.planned_chunks,
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
