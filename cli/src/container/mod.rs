//! One container of a mounted image, run by runc for a short while, and nothing left of it afterwards.
//!
//! [`enclose`] gives this process a mount namespace of its own: what is mounted from then on is seen by nobody else and goes with
//! the last process in it. [`keeper`] sees to it that the container ends with this process, however that ends.

mod keeper;
mod spec;
mod user;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use tokio::process::{Child, ChildStdin, Command};

pub(crate) use self::keeper::{keep, keep_apart};
pub(crate) use self::spec::RunConfig;
use crate::wiring::THIS_PROGRAM;

/// Name of a bundle's description, which the OCI runtime spec gives.
const CONFIG: &str = "config.json";

/// Directories of a container: its root, and the tmpfs for what it writes.
const ROOT: &str = "root";
const MEMORY: &str = "memory";

/// What a container gets beside what its image says.
#[derive(Debug, Default)]
pub(crate) struct ContainerOptions {
    /// In place of the image's `Cmd`, unless it is empty.
    pub(crate) arguments: Vec<String>,
    /// Further variables of the environment, `NAME=VALUE`.
    pub(crate) env: Vec<String>,
    /// Whether it has the network of the host, or none.
    pub(crate) net_host: bool,
}

/// Takes this process into a mount namespace of its own. To be called before it has a second thread.
///
/// # Errors
/// Without root, or when the kernel refuses.
pub(crate) fn enclose() -> anyhow::Result<()> {
    ensure!(
        geteuid().is_root(),
        "this mounts the image and runs a container of it, which needs root"
    );
    private_mounts()
}

/// Takes the calling thread into a mount namespace of its own.
fn private_mounts() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("entering a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("keeping mounts from other processes")
}

/// A running container. [`Container::remove`] waits until nothing of it is left; dropping it does not wait.
#[derive(Debug)]
pub(crate) struct Container {
    keeper: Child,
    /// Standard input of the keeper: when it ends, nobody wants the container.
    wanted: Option<ChildStdin>,
}

impl Container {
    /// Runs the image that is mounted on `image`. Its output goes to standard error. `directory` is empty; mounts and runc's
    /// state are put there.
    ///
    /// # Errors
    /// When the config does not say what to run or as whom, or the kernel refuses a mount.
    pub(crate) fn start(
        image: &Path,
        config: &RunConfig,
        options: &ContainerOptions,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let root = overlay(image, directory)?;
        let bundle = directory.join(CONFIG);
        spec::spec(config, options, &root)?
            .save(&bundle)
            .with_context(|| format!("writing {}", bundle.display()))?;
        let mut keeper = Command::new(THIS_PROGRAM);
        keeper.arg(keeper::KEEPER).arg(directory);
        keeper.arg(format!("sluice-{}", std::process::id()));
        // Ctrl-C is for this process, which then removes the container.
        keeper
            .stdin(Stdio::piped())
            .stdout(std::io::stderr())
            .process_group(0);
        let mut keeper = keeper.spawn().context("starting the keeper of the container")?;
        Ok(Self {
            wanted: keeper.stdin.take(),
            keeper,
        })
    }

    /// Waits until the program of the container ends.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(crate) async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.keeper.wait().await.context("waiting for the container")
    }

    /// Kills what runs in it, and removes it.
    ///
    /// # Errors
    /// When it cannot be waited for. Why it could not be removed is told on standard error.
    pub(crate) async fn remove(mut self) -> anyhow::Result<()> {
        drop(self.wanted.take());
        self.wait().await?;
        Ok(())
    }
}

/// Takes the mounts below the directory of a container away that was removed.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn unmount(directory: &Path) -> anyhow::Result<()> {
    for name in [ROOT, MEMORY] {
        let target = directory.join(name);
        match umount2(&target, MntFlags::MNT_DETACH) {
            // It was never made.
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(errno) => return Err(errno).with_context(|| format!("unmounting {}", target.display())),
        }
    }
    Ok(())
}

/// A root directory that the container can write to.
fn overlay(image: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let [memory, root] = [MEMORY, ROOT].map(|name| directory.join(name));
    let [upper, work] = ["upper", "work"].map(|name| memory.join(name));
    let make = |path: &Path| fs::create_dir(path).with_context(|| format!("making {}", path.display()));
    let mounting = |what: &'static str, on: &Path| format!("mounting {what} on {}", on.display());
    make(&memory)?;
    make(&root)?;
    let (tmpfs, none, flags) = (Some("tmpfs"), None::<&str>, MsFlags::empty());
    mount(tmpfs, &memory, tmpfs, flags, none).with_context(|| mounting("tmpfs", &memory))?;
    make(&upper)?;
    make(&work)?;
    let places = [("lowerdir", image), ("upperdir", &upper), ("workdir", &work)];
    let option = |(name, path): (&str, &Path)| {
        let text = path.to_str().filter(|text| !text.contains([',', ':', '\\']));
        let refused = || {
            format!(
                "{} cannot be part of an overlay; choose another --run-dir",
                path.display()
            )
        };
        Ok(format!("{name}={}", text.with_context(refused)?))
    };
    let options: Vec<String> = places.into_iter().map(option).collect::<anyhow::Result<_>>()?;
    let (overlay, options) = (Some("overlay"), options.join(","));
    mount(overlay, &root, overlay, flags, Some(options.as_str()))
        .with_context(|| mounting("overlay", &root))?;
    Ok(root)
}
