//! `sluice profile record`: one start of a container, watched.
//!
//! The image is mounted where only this process and its container see it. Layers that are on this host whole are served like the others, and
//! not given to the kernel as files: what the kernel reads by itself is not seen. The recording ends as that of any start does, at the first
//! quiet point, or when the container ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use sluice_format::{Digest, Profile};
use sluice_fuse::{Front, Layer, MountHelper, MountRequest, MountedImage, SessionOptions};
use sluice_storage::profile::{EndReason, Recorder, Recording};
use sluice_storage::{Cache, Counters, Fetcher, LayerMode, OnFailure, ReadPolicy};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::{exchange, load, show, store};
use crate::args::profile::ProfileRecordArgs;
use crate::container::{self, Container, ContainerOptions, RunConfig};
use crate::open_image::{OpenImage, Opener, READ_AHEAD_KIB, Starts, learn};
use crate::progress::Bars;
use crate::wiring::{EndSignals, Interrupted};
use crate::{output, wiring};

/// How long a read may wait for the registry. A start that waits longer teaches nothing.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// How long blocking work may hold up the end of the process.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Begin of the name of the directory that the image is mounted in; a process number follows.
const DIRECTORY: &str = "record-";

/// Directory of the container in that of the recording.
const CONTAINER: &str = "container";

/// The directory of a recording. What is mounted below it is seen by this process and its container only. Dropping it, after what is
/// mounted there, removes it.
#[derive(Debug)]
struct Place(PathBuf);

impl Place {
    /// Makes the directory of this process, and removes those of processes that were killed.
    fn new(run_dir: &Path) -> anyhow::Result<Self> {
        let run_dir = &std::path::absolute(run_dir)?;
        let making = || format!("making a directory in {}", run_dir.display());
        fs::create_dir_all(run_dir).with_context(making)?;
        let own = std::process::id();
        for entry in fs::read_dir(run_dir).with_context(making)?.flatten() {
            let name = entry.file_name();
            let pid = name
                .to_str()
                .and_then(|name| name.strip_prefix(DIRECTORY)?.parse::<u32>().ok());
            if pid.is_some_and(|pid| pid == own || !Path::new("/proc").join(pid.to_string()).exists()) {
                drop(Self(entry.path()));
            }
        }
        let place = run_dir.join(format!("{DIRECTORY}{own}"));
        fs::create_dir(&place).with_context(making)?;
        Ok(Self(place))
    }

    /// Makes a directory in it.
    fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.0.join(name);
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(directory)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "a directory was left behind");
        }
    }
}

/// A start that was recorded.
#[derive(Debug)]
struct Recorded {
    image_id: Digest,
    end: EndReason,
    plain_len: u64,
    took: Duration,
}

pub(super) fn run(args: &ProfileRecordArgs) -> anyhow::Result<()> {
    container::enclose()?;
    let helper = wiring::mount_helper()?;
    let runtime = wiring::runtime()?;
    let recorded = runtime.block_on(record(args, helper));
    runtime.shutdown_timeout(SHUTDOWN_WAIT);
    let recorded = recorded?;
    let profile = load(
        &store(args.store.cache.as_deref())?,
        &recorded.image_id,
        &args.image.to_string(),
    )?;
    report(args, &recorded, &profile)?;
    match args.push {
        true => exchange::push(&args.image, &args.store),
        false => Ok(()),
    }
}

fn report(args: &ProfileRecordArgs, recorded: &Recorded, profile: &Profile) -> anyhow::Result<()> {
    let seconds = recorded.took.as_secs_f64();
    if args.store.common.json {
        return output::json(&json!({
            "image": args.image.to_string(),
            "image_id": recorded.image_id.to_string(),
            "ended": ended(recorded.end),
            "seconds": seconds,
            "plain_len": recorded.plain_len,
            "runs": profile.runs(),
            "ranges": profile.demand_count(),
        }));
    }
    output::line(format!(
        "a start of {} read {} in {seconds:.1} s ({}); its profile now: {}",
        args.image,
        output::bytes(recorded.plain_len),
        ended(recorded.end),
        show::extent(profile)
    ))
}

fn ended(end: EndReason) -> &'static str {
    match end {
        EndReason::Quiet => "until it was quiet",
        EndReason::TooLong => "until the time was over",
        EndReason::TooMuch => "until it had read most of the image",
        _ => "until it ended",
    }
}

/// Opens the image, starts it, learns, and takes everything away again.
async fn record(args: &ProfileRecordArgs, helper: Arc<MountHelper>) -> anyhow::Result<Recorded> {
    let mut signals = EndSignals::new()?;
    let run_dir = args.run_dir.clone().unwrap_or_else(wiring::default_run_dir);
    let place = Place::new(&run_dir)?;
    let bars = Arc::new(Bars::new(args.store.common.json));
    let opened = tokio::select! {
        opened = open(args, &bars) => opened,
        () = signals.recv() => Err(Interrupted.into()),
    };
    bars.clear();
    let open = opened?;
    let config = RunConfig::parse(&open.image.config)?;
    let mounted = mount(args, &open, &place, helper).await?;
    let recorder = open.recorder().context("this start is not recorded")?;
    let began = Instant::now();
    let started = start(args, &config, &mounted, &place);
    let recording = match started {
        Ok(container) => watch(container, &recorder, &mut signals).await,
        Err(error) => Err(error),
    };
    let took = began.elapsed();
    unmount(mounted, &place).await?;
    let recording = recording?;
    let recorded = Recorded {
        image_id: recording.image_id(),
        end: recording.end_reason(),
        plain_len: recording.plain_len(),
        took,
    };
    ensure!(
        recorded.plain_len > 0,
        "the container read nothing of its image, so there is nothing to keep"
    );
    learn(recording, open.known, store(args.store.cache.as_deref())?).await?;
    Ok(recorded)
}

async fn open(args: &ProfileRecordArgs, bars: &Arc<Bars>) -> anyhow::Result<OpenImage> {
    let registries = wiring::registries(&args.store.common);
    let platform = wiring::platform(args.store.platform.as_deref())?;
    let cache_dir = args.store.cache.clone().map_or_else(Cache::default_dir, Ok)?;
    let opener = Opener {
        cache: Cache::open(cache_dir)?,
        fetcher: Fetcher::new(Arc::new(Counters::default())),
        policy: ReadPolicy {
            on_failure: OnFailure::Error,
            deadline: Some(READ_DEADLINE),
        },
        timeline: None,
        starts: Starts::Watched,
        layers: LayerMode::Lazy,
        progress: bars.clone(),
    };
    let (repository, name) = wiring::repository(&args.image, &registries).await?;
    opener.open(&repository, &name, &platform).await
}

async fn mount(
    args: &ProfileRecordArgs,
    open: &OpenImage,
    place: &Place,
    helper: Arc<MountHelper>,
) -> anyhow::Result<MountedImage> {
    let watched = |layer: &Arc<_>| Layer::from(Arc::clone(layer)).watched();
    let request = MountRequest {
        front: Front::Auto,
        tree_file: open.tree_file.clone(),
        layers: open.layers.iter().map(watched).collect(),
        target: place.directory("image")?,
        // Nobody else can see the mount or take it away.
        run_dir: place.directory("mounts")?,
        image: args.image.to_string(),
        // A wider window asks for chunks that no start demands.
        read_ahead_kib: Some(READ_AHEAD_KIB),
        session: SessionOptions::default(),
        helper: Some(helper),
    };
    let runtime = Handle::current();
    Ok(spawn_blocking(move || MountedImage::mount(request, None, &runtime)).await??)
}

fn start(
    args: &ProfileRecordArgs,
    config: &RunConfig,
    mounted: &MountedImage,
    place: &Place,
) -> anyhow::Result<Container> {
    let options = ContainerOptions {
        arguments: args.arguments.clone(),
        env: args.env.clone(),
        net_host: args.net_host,
    };
    Container::start(mounted.target(), config, &options, &place.directory(CONTAINER)?)
}

/// Waits until the start is over, and removes the container.
async fn watch(
    mut container: Container,
    recorder: &Arc<Recorder>,
    signals: &mut EndSignals,
) -> anyhow::Result<Recording> {
    let outcome = tokio::select! {
        () = signals.recv() => Err(Interrupted.into()),
        _ = recorder.ended() => Ok(None),
        status = container.wait() => status.map(Some),
    };
    // Reading the root directory for the removal is none of the start.
    let recording = recorder.finish();
    container.remove().await?;
    match outcome? {
        Some(status) if !status.success() => bail!(
            "the container failed ({status}) before its start was over; what it said is above, and nothing was kept"
        ),
        _ => Ok(recording),
    }
}

/// Takes the mounts away.
async fn unmount(mut mounted: MountedImage, place: &Place) -> anyhow::Result<()> {
    let container = place.0.join(CONTAINER);
    let unmounted = spawn_blocking(move || {
        container::unmount(&container)?;
        // What the container has held is let go of some time after its end.
        Ok(mounted.unmount(true)?)
    });
    unmounted.await?
}
