//! The process that a container does not outlive.
//!
//! A container is no child of the process that wants it, and would go on when that is killed. So runc runs in a PID namespace
//! whose first process is the keeper: it waits for the end of the container, or for the end of its standard input, which is a pipe from
//! the process that wants the container. Then it has runc remove the container. When the keeper itself is killed, the kernel
//! kills the whole namespace.
//!
//! A PID namespace begins with a child, so there are two processes: the outer one makes the namespaces, starts the inner one, and
//! ends as that does.

use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context as _, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::private_mounts;
use crate::wiring::{THIS_PROGRAM, exit_code};

/// The OCI runtime.
const RUNC: &str = "runc";

/// Hidden command of the keeper.
pub(super) const KEEPER: &str = "container-keeper";

/// Option that tells the inner process from the outer one.
const INNER: &str = "--inner";

/// What the inner process waits for.
enum Event {
    /// The container has ended.
    Ended(io::Result<ExitStatus>),
    /// Nobody wants it any more.
    Unwanted,
}

/// The outer process: keeps the container `id` whose bundle is in `directory`.
///
/// # Errors
/// When namespaces cannot be made.
pub(crate) fn keep_apart(directory: &Path, id: &str) -> anyhow::Result<ExitCode> {
    unshare(CloneFlags::CLONE_NEWPID).context("entering a PID namespace")?;
    private_mounts()?;
    let mut inner = Command::new(THIS_PROGRAM);
    inner.args([KEEPER, INNER]).arg(directory).arg(id);
    let status = inner.status().context("starting the keeper of the container")?;
    Ok(exit_code(status))
}

/// The inner process: runs the container, and ends with it.
///
/// # Errors
/// When runc cannot be run, or cannot remove the container.
pub(crate) fn keep(directory: &Path, id: &str) -> anyhow::Result<ExitCode> {
    // runc asks for the processes of this namespace.
    let (proc, none) = (Some("proc"), None::<&str>);
    mount(proc, "/proc", proc, MsFlags::empty(), none).context("mounting /proc")?;
    let mut container = runc(directory, ["run", "--bundle"])
        .arg(directory)
        .arg(id)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("{RUNC} cannot be run; install it"))?;
    let (sender, events) = channel();
    watch_input(sender.clone());
    let waiting = thread::spawn(move || sender.send(Event::Ended(container.wait())));
    if let Ok(Event::Ended(status)) = events.recv() {
        return Ok(exit_code(status?));
    }
    remove(directory, id)?;
    // What it ended with interests nobody any more.
    let _ = waiting.join();
    Ok(ExitCode::SUCCESS)
}

fn watch_input(events: Sender<Event>) {
    thread::spawn(move || {
        let mut byte = [0];
        while matches!(io::stdin().read(&mut byte), Ok(1..)) {}
        events.send(Event::Unwanted)
    });
}

fn remove(directory: &Path, id: &str) -> anyhow::Result<()> {
    let output = runc(directory, ["delete", "--force"]).arg(id).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "removing the container: {}", said.trim());
    Ok(())
}

/// runc with its state beside the bundle.
fn runc<'a>(directory: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(RUNC);
    command.arg("--root").arg(directory.join(RUNC)).args(arguments);
    command
}
