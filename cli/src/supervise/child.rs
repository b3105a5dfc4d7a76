//! The supervised process.
//!
//! sd_listen_fds(3) wants to know the number of the process in its environment, which is not known before there is one.
//! So the supervisor starts its own program, which completes the environment and becomes the command ([`become_command`]).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use command_fds::CommandFdExt as _;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use super::store::Store;
use crate::wiring::THIS_PROGRAM;

/// Hidden command that becomes the supervised one.
const BECOME: &str = "supervised";

/// Variables that speak to one process only.
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
const WATCHDOG_PID: &str = "WATCHDOG_PID";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";

/// How a child is started.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) command: &'a [OsString],
    pub(super) notify_socket: &'a Path,
    pub(super) watchdog: Option<Duration>,
}

/// A started process.
#[derive(Debug)]
pub(super) struct Child {
    process: std::process::Child,
    handle: OwnedFd,
    pub(super) started: Instant,
    pub(super) last_sign: Instant,
    pub(super) ready: bool,
}

impl Child {
    pub(super) fn start(start: &Start<'_>, store: &Store) -> anyhow::Result<Self> {
        let mut command = Command::new(THIS_PROGRAM);
        command.arg(BECOME).arg("--").args(start.command);
        command.env("NOTIFY_SOCKET", start.notify_socket);
        for name in [LISTEN_FDS, LISTEN_FDNAMES, WATCHDOG_USEC] {
            command.env_remove(name);
        }
        if let Some(names) = store.names() {
            command.env(LISTEN_FDS, store.len().to_string());
            command.env(LISTEN_FDNAMES, names);
        }
        if let Some(watchdog) = start.watchdog {
            command.env(WATCHDOG_USEC, watchdog.as_micros().to_string());
        }
        command.fd_mappings(store.mappings()?)?;
        let process = command.spawn().context("starting the command")?;
        let pid = rustix::process::Pid::from_child(&process);
        let handle = pidfd_open(pid, PidfdFlags::empty()).context("watching the command")?;
        let now = Instant::now();
        Ok(Self {
            process,
            handle,
            started: now,
            last_sign: now,
            ready: false,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How it ended, when all its threads have: from then on it takes no more requests from its descriptors.
    pub(super) fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.process
            .try_wait()
            .context("looking whether the command has ended")
    }

    /// Sends a signal. A child that has just ended does not need it.
    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).unwrap_or_default();
        if pid > 0
            && let Err(error) = kill(Pid::from_raw(pid), signal)
        {
            tracing::debug!(%error, %signal, "the command did not get a signal");
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Puts the number of this process into the environment and becomes the command. Returns only an error.
pub(crate) fn become_command(command: &[OsString]) -> io::Error {
    let Some((program, arguments)) = command.split_first() else {
        return io::Error::from(io::ErrorKind::InvalidInput);
    };
    // Signals that the supervisor reads from a descriptor are blocked in it and in what it starts.
    if let Err(errno) = SigSet::empty().thread_set_mask() {
        return errno.into();
    }
    let pid = std::process::id().to_string();
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, of) in [(LISTEN_PID, LISTEN_FDS), (WATCHDOG_PID, WATCHDOG_USEC)] {
        if std::env::var_os(of).is_some() {
            command.env(name, OsStr::new(&pid));
        } else {
            command.env_remove(name);
        }
    }
    command.exec()
}
