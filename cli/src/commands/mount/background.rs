//! `sluice mount --detach`: the command returns when the image is mounted, and a second process serves on.
//!
//! The command starts itself once more and waits for one line, which says that the image is mounted. Until then the two are one to whoever
//! looks: the second has the terminal for its messages, and an end of either is an end of the other. With that line the second leaves the session of the
//! terminal and closes what it inherited, so that nobody who waits for the end of the command's output waits for the mount.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getppid, setsid};

use crate::args::MountArgs;
use crate::commands::INTERRUPTED;
use crate::wiring::Interrupted;

/// Tells the second process that it is one, by the process ID of the first.
const PARENT_VARIABLE: &str = "SLUICE_MOUNT_PARENT";

/// What receives messages that nobody asked to keep.
const NOWHERE: &str = "/dev/null";

/// The process that was to serve has ended, and said why.
#[derive(Debug, thiserror::Error)]
#[error("the image was not mounted")]
pub(in crate::commands) struct NotMounted;

/// Starts the process that serves, and waits until it has mounted the image.
///
/// # Errors
/// When it cannot be started, and [`NotMounted`].
pub(super) fn start() -> anyhow::Result<()> {
    let exe = env::current_exe().context("finding the path of this program")?;
    let mut server = Command::new(exe)
        .args(env::args_os().skip(1))
        .env(PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the process that serves the mount")?;
    let mut ready = String::new();
    if let Some(answer) = server.stdout.take() {
        BufReader::new(answer)
            .read_line(&mut ready)
            .context("waiting until the image is mounted")?;
    }
    if ready.is_empty() {
        let status = server.wait().context("waiting for the process that serves")?;
        return match status.code() {
            Some(code) if code == i32::from(INTERRUPTED) => Err(Interrupted.into()),
            _ => Err(NotMounted.into()),
        };
    }
    Ok(io::stdout().write_all(ready.as_bytes())?)
}

/// The second process: where its messages go.
#[derive(Debug)]
pub(super) struct Background {
    log: File,
}

impl Background {
    /// Of this process, if it was started by [`start`].
    ///
    /// # Errors
    /// When that command has ended already, or the log file cannot be written.
    pub(super) fn of_this_process(args: &MountArgs) -> anyhow::Result<Option<Self>> {
        let Ok(parent) = env::var(PARENT_VARIABLE) else {
            return Ok(None);
        };
        set_pdeathsig(Signal::SIGTERM)?;
        // Asked only now: a parent that has ended before sends no signal.
        ensure!(
            parent == getppid().to_string(),
            "the command that was to mount the image has ended"
        );
        let file = args.log_file.as_deref().unwrap_or(Path::new(NOWHERE));
        let mut append = OpenOptions::new();
        let log = append.append(true).create(true).open(file);
        let log = log.with_context(|| format!("opening {}", file.display()))?;
        Ok(Some(Self { log }))
    }

    /// Runs `start`, whose processes write their messages to the log: they do not end before the mount.
    pub(super) fn start_aside<T>(&self, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let terminal = io::stderr().as_fd().try_clone_to_owned()?;
        dup2_stderr(&self.log)?;
        let started = start();
        dup2_stderr(&terminal)?;
        started
    }

    /// Runs `tell`, which prints that the image is mounted, and goes on alone.
    ///
    /// # Errors
    /// When nobody waits for that any more.
    pub(super) fn leave(&self, tell: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        setsid().context("leaving the session of the terminal")?;
        set_pdeathsig(None)?;
        tell()?;
        dup2_stdin(File::open(NOWHERE)?)?;
        dup2_stdout(&self.log)?;
        dup2_stderr(&self.log)?;
        Ok(())
    }
}
