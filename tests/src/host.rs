//! A host that runs containers on Sluice: `sluice snapshotter` and a private containerd that is told about it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::containerd::{Containerd, Proxy, Release};
use crate::scratch::Scratch;
use crate::{process, sluice};

/// The snapshotter's name in containerd's configuration.
pub const NAME: &str = "sluice";

/// How long the service may take to listen.
const START: Duration = Duration::from_secs(30);

/// How long the service may take to end.
const END: Duration = Duration::from_secs(20);

/// The host; everything on it ends when it is dropped.
#[derive(Debug)]
pub struct Host {
    service: Child,
    /// Its containerd.
    pub containerd: Containerd,
    // Removed last.
    scratch: Scratch,
}

impl Drop for Host {
    fn drop(&mut self) {
        process::end(&mut self.service, END);
    }
}

impl Host {
    /// Starts service and containerd with empty state; the service gets these options.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn start(release: Release, options: &[&str]) -> Result<Self> {
        let scratch = Scratch::new("host")?;
        let socket = scratch.join("p.sock");
        let mut command = sluice::command(["snapshotter"])?;
        command.arg("--root").arg(scratch.join("root"));
        command.arg("--socket").arg(&socket);
        command.arg("--cache").arg(scratch.directory("cache")?);
        let log = scratch.join("service.log");
        let service = process::spawn_logged(command.args(options), &log)?;
        process::wait_until("the snapshotter to listen", START, || {
            UnixStream::connect(&socket).is_ok()
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let proxy = Proxy {
            name: NAME,
            socket: &socket,
        };
        Ok(Self {
            service,
            containerd: Containerd::start_with(release, &[proxy])?,
            scratch,
        })
    }

    /// The cache of the service.
    pub fn cache(&self) -> PathBuf {
        self.scratch.join("cache")
    }

    /// What the service has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("service.log")).unwrap_or_default()
    }

    /// Runs a `sluice` command that takes containerd's socket; gives what it printed as JSON.
    ///
    /// # Errors
    /// When it ends with an error.
    pub fn sluice(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = sluice::command(arguments.iter().copied())?;
        command.arg("--containerd-address").arg(self.containerd.socket());
        let printed = process::run(command.arg("--json")).with_context(|| self.log())?;
        sluice::parse_json(&printed)
    }

    /// Runs `ctr`; gives what it printed.
    ///
    /// # Errors
    /// When it ends with an error.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        process::run(&mut self.containerd.ctr(arguments.iter().copied())).with_context(|| self.log())
    }
}
