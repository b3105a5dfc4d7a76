//! Puts the concrete parts together: runtime, registries, sources, and the directories of this host.

use std::future::Future;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use nix::unistd::{Uid, geteuid};
use sluice_converter::Source;
use sluice_format::Limits;
use sluice_format::date::rfc3339;
use sluice_fuse::MountHelper;
use sluice_storage::registry::{RegistryClient, RegistryOptions};
use sluice_storage::{
    Cache, ImageName, Layout, LazyImage, ManifestName, Platform, Repository, WritableRepository,
    load_lazy_image_cached,
};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::CommonArgs;

/// How long unfinished uploads may take to be called off after an interrupt.
const INTERRUPT_GRACE: Duration = Duration::from_millis(500);

/// How long blocking work may hold up the end of the process.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Name of Sluice's directories below those of the system or the user.
const DIRECTORY: &str = "sluice";

/// Exit codes of a shell for commands that a signal ended begin here.
const SIGNALLED: i32 = 128;

/// The work was ended by a signal, not by a failure.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// This program, even after its file was replaced.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// Hidden command of the process that waits for mounts.
const MOUNT_HELPER: &str = "mount-helper";

/// Hidden command of the process that reads ahead of programs.
pub(crate) const PAGE_READER: &str = "page-reader";

/// Starts the process that waits for mounts on behalf of this one.
pub(crate) fn mount_helper() -> anyhow::Result<Arc<MountHelper>> {
    Ok(Arc::new(MountHelper::spawn(
        Path::new(THIS_PROGRAM),
        &[MOUNT_HELPER],
    )?))
}

/// The runtime of a command.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// Runs `work` to its end, or until a signal asks the process to end; then everything half-done is dropped, which
/// removes temporary files and calls off uploads.
pub(crate) fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut signals = EndSignals::new()?;
        let outcome = tokio::select! {
            result = work => return result,
            () = signals.recv() => Err(Interrupted.into()),
        };
        tokio::time::sleep(INTERRUPT_GRACE).await;
        outcome
    });
    runtime.shutdown_timeout(SHUTDOWN_WAIT);
    result
}

/// Ends as another process did.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| Some(SIGNALLED + status.signal()?))
        .and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The signals by which a terminal or a service manager asks a process to end.
#[derive(Debug)]
pub(crate) struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// From now on these signals no longer end the process by themselves.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// The client for all registries of a command.
pub(crate) fn registries(args: &CommonArgs) -> Arc<RegistryClient> {
    let mut options = RegistryOptions {
        plain_http: args.plain_http,
        auth_file: args.auth_file.clone(),
        ..RegistryOptions::default()
    };
    if let Some(hosts_dir) = &args.hosts_dir {
        options.hosts_dir.clone_from(hosts_dir);
    }
    RegistryClient::new(options)
}

/// The platform that was asked for, or this host's.
pub(crate) fn platform(text: Option<&str>) -> anyhow::Result<Platform> {
    match text {
        None => Ok(Platform::host()),
        Some(text) => Ok(text.parse()?),
    }
}

/// The platform that was asked for, or `None` for "all".
pub(crate) fn platforms(text: &str) -> anyhow::Result<Option<Platform>> {
    if text == "all" {
        Ok(None)
    } else {
        Ok(Some(text.parse()?))
    }
}

/// The time in the format of RFC 3339.
pub(crate) fn now() -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    rfc3339(since_epoch.as_ref().map_or(0, Duration::as_secs))
}

/// A converted image whose bytes can be read by ranges. What `cache` has of its documents is not asked for again.
pub(crate) async fn load_image(
    name: &ImageName,
    platform: &Platform,
    registries: &Arc<RegistryClient>,
    cache: &Arc<Cache>,
) -> anyhow::Result<LazyImage> {
    let (repository, manifest) = repository(name, registries).await?;
    Ok(load_lazy_image_cached(&repository, &manifest, platform, &Limits::default(), cache).await?)
}

/// Where an image is, for reading, and its name there.
pub(crate) async fn repository(
    name: &ImageName,
    registries: &Arc<RegistryClient>,
) -> anyhow::Result<(Arc<dyn Repository>, ManifestName)> {
    let source = Source::open(name, registries).await?;
    Ok((source.shared_repository().clone(), source.name().clone()))
}

/// Where an image is, for writing beside it, and its name there.
pub(crate) fn writable_repository(
    name: &ImageName,
    registries: &Arc<RegistryClient>,
) -> anyhow::Result<(Arc<dyn WritableRepository>, ManifestName)> {
    match name {
        ImageName::Registry(reference) => Ok((registries.repository(reference)?, reference.manifest_name())),
        ImageName::Layout { path, name } => {
            let layout = Layout::open(path)?;
            let manifest = layout.manifest_name(name.as_ref())?;
            Ok((Arc::new(layout), manifest))
        }
        ImageName::RemoteLayout { .. } => {
            bail!("{name} can only be read; name an image in docker:// or oci:")
        }
        ImageName::OciArchive { .. } | ImageName::DockerArchive { .. } => {
            bail!(
                "{name} is an archive, to which nothing can be added; give the image to docker:// or oci: first (sluice export)"
            )
        }
    }
}

/// Where run-time state lies unless the user says otherwise.
pub(crate) fn default_run_dir() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/run").join(DIRECTORY);
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) => PathBuf::from(dir).join(DIRECTORY),
        None => std::env::temp_dir().join(format!("{DIRECTORY}-{}", Uid::current())),
    }
}
