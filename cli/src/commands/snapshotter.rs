//! `sluice snapshotter`: the service that containerd asks for snapshots.
//!
//! Order at the start: cache, engine (which goes on with the mounts of an earlier process), records (trees of containers that
//! are not mounted are mounted again), metrics, socket, and only then "ready" to the service manager, so whoever is started
//! after this service finds everything mounted. At the end: no new requests, trees that no snapshot uses are unmounted, and
//! what is mounted is left to the next process if the service manager keeps the session. If nobody does, every tree is
//! unmounted. Containers that run then keep the file systems that they hold, but reading bytes that are not on this host
//! fails until they are started anew.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use nix::unistd::geteuid;
use sd_notify::NotifyState;
use sluice_fuse::DescriptorStore;
use sluice_snapshotter::{Options, Snapshotter, serve_with, socket};
use sluice_storage::registry::RegistryClient;
use sluice_storage::{Cache, CacheOptions, Counters, Fetcher, ReadPolicy};
use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::args::SnapshotterArgs;
use crate::cri::ImageServiceProxy;
use crate::engine::{Engine, EngineOptions, Fill};
use crate::idle;
use crate::wiring::{self, EndSignals};

/// Media type of the metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long blocking work may hold up the end of the process.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

pub(super) fn run(args: &SnapshotterArgs) -> anyhow::Result<()> {
    ensure!(
        geteuid().is_root(),
        "the snapshotter mounts images, which needs root"
    );
    // Before any thread: descriptors are taken by number.
    let store = DescriptorStore::from_environment()?;
    let runtime = wiring::runtime()?;
    let mut left = false;
    let result = runtime.block_on(run_engine(args, store, &mut left));
    if left {
        // Readers wait for the successor.
        runtime.shutdown_background();
    } else {
        runtime.shutdown_timeout(SHUTDOWN_WAIT);
    }
    result
}

/// Serves until told to end. `left` tells whether a successor goes on with what is mounted.
async fn run_engine(args: &SnapshotterArgs, store: DescriptorStore, left: &mut bool) -> anyhow::Result<()> {
    let signals = EndSignals::new()?;
    let counters = Arc::new(Counters::default());
    let registries = wiring::registries(&args.common);
    let prepared = registries.clone();
    tokio::spawn(async move { prepared.prepare().await });
    let others = image_service(args, &registries)?;
    let engine = open_engine(args, registries, &counters, store).await?;
    let result = serve_until_ended(args, signals, engine.clone(), others, counters).await;
    *left = engine.leave().await;
    result
}

async fn serve_until_ended(
    args: &SnapshotterArgs,
    mut signals: EndSignals,
    engine: Arc<Engine>,
    others: Routes,
    counters: Arc<Counters>,
) -> anyhow::Result<()> {
    let options = Options {
        mount_options: args.mount_option.clone(),
        ..Options::default()
    };
    let snapshotter = Snapshotter::open(&args.root, engine, options).await?;
    if let Some(address) = &args.metrics {
        serve_metrics(address, counters).await?;
    }
    let listener = socket::bind(&args.socket).await?;
    tracing::info!(socket = %args.socket.display(), root = %args.root.display(), "serving snapshots");
    tell(&[NotifyState::Ready]);
    let watchdog = tokio::spawn(feed_watchdog());
    let idle = tokio::spawn(idle::give_memory_back());
    let shutdown = async move {
        signals.recv().await;
        tell(&[NotifyState::Stopping]);
    };
    let served = serve_with(listener, snapshotter.clone(), others, shutdown).await;
    snapshotter.close().await;
    watchdog.abort();
    idle.abort();
    served.context("serving snapshots")
}

/// The image service, if it is wanted.
fn image_service(args: &SnapshotterArgs, registries: &Arc<RegistryClient>) -> anyhow::Result<Routes> {
    let Some(containerd) = &args.cri_proxy else {
        return Ok(Routes::default());
    };
    Ok(Routes::new(ImageServiceProxy::new(
        containerd,
        registries.clone(),
    )?))
}

async fn open_engine(
    args: &SnapshotterArgs,
    registries: Arc<RegistryClient>,
    counters: &Arc<Counters>,
    store: DescriptorStore,
) -> anyhow::Result<Arc<Engine>> {
    let cache_dir = args.cache.clone().map_or_else(Cache::default_dir, Ok)?;
    let cache_options = CacheOptions {
        quota: args.cache_quota.map(|quota| quota.as_u64()),
        ..CacheOptions::default()
    };
    let options = EngineOptions {
        cache: Cache::open_with(cache_dir, cache_options)?,
        fetcher: Fetcher::new(counters.clone()),
        registries,
        policy: ReadPolicy {
            on_failure: args.on_failure,
            deadline: Some(Duration::from_secs(args.read_deadline)),
        },
        front: args.front.into(),
        uses_profiles: !args.no_profile,
        fill: args.fill.then(|| Fill {
            rate: args.fill_rate.map(|rate| rate.as_u64()),
        }),
        layer_mode: args.layers,
        root: args.root.clone(),
        mount_helper: wiring::mount_helper()?,
    };
    Engine::open(options, store).await
}

/// Tells the service manager, if there is one. That it cannot be told hinders nothing.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Shows the service manager, if it wants to see it, that the runtime still turns.
async fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut beat = tokio::time::interval(limit / 2);
    loop {
        beat.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

async fn serve_metrics(address: &str, counters: Arc<Counters>) -> anyhow::Result<()> {
    let metrics = move || {
        let text = counters.openmetrics();
        async move { ([(CONTENT_TYPE, OPENMETRICS)], text) }
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"));
    if address.starts_with('/') {
        let listener = socket::bind(Path::new(address)).await?;
        tokio::spawn(async move { axum::serve(listener, router).await });
    } else {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("listening on {address} for metrics"))?;
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
    Ok(())
}
