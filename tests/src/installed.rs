//! A host on which `sluice install` was run: containerd, and `sluice snapshotter` with the image service.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::containerd::{Containerd, Release};
use crate::scratch::Scratch;
use crate::{process, sluice};

/// How long the service may take to listen.
const START: Duration = Duration::from_secs(30);
/// How long the service may take to end.
const END: Duration = Duration::from_secs(20);

/// A running `sluice snapshotter`; ended when dropped.
#[derive(Debug)]
pub struct Service {
    child: Child,
}

impl Service {
    /// Starts it as [`Service::start`] does, in front of the image service of a containerd that listens, or not, on a socket.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn start_with_images(scratch: &Path, containerd: &Path, options: &[&str]) -> Result<Self> {
        let containerd = containerd.to_str().context("the socket's path is not UTF-8")?;
        Self::start(scratch, &[&["--cri-proxy", containerd], options].concat())
    }

    /// Starts it with its state in `scratch` and without credentials of its own.
    ///
    /// # Errors
    /// When it does not come up; the message holds its log.
    pub fn start(scratch: &Path, options: &[&str]) -> Result<Self> {
        let mut command = sluice::command(["snapshotter"])?;
        for (option, path) in [
            ("--root", scratch.join("root")),
            ("--cache", scratch.join("cache")),
            ("--socket", socket(scratch)),
            // Credentials of whoever runs the tests do not count.
            ("--auth-file", scratch.join("no-credentials.json")),
        ] {
            command.arg(option).arg(path);
        }
        let log = log_path(scratch);
        let child = process::spawn_logged(command.args(options), &log)?;
        let service = Self { child };
        process::wait_until("the snapshotter to listen", START, || {
            UnixStream::connect(socket(scratch)).is_ok()
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(service)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// The socket of a service with its state in `scratch`.
pub fn socket(scratch: &Path) -> PathBuf {
    scratch.join("p.sock")
}

/// Where a service with its state in `scratch` logs.
fn log_path(scratch: &Path) -> PathBuf {
    scratch.join("service.log")
}

/// What a service with its state in `scratch` has logged.
///
/// # Errors
/// When the log cannot be read.
pub fn log(scratch: &Path) -> Result<String> {
    Ok(fs::read_to_string(log_path(scratch))?)
}

impl Drop for Service {
    fn drop(&mut self) {
        process::end(&mut self.child, END);
    }
}

/// The host. Its parts end in this order.
#[derive(Debug)]
pub struct Host {
    /// containerd, which was told of the service.
    pub containerd: Containerd,
    /// containerd's configuration.
    pub config: PathBuf,
    /// The service, while it runs.
    pub service: Option<Service>,
    /// The service's files.
    pub scratch: Scratch,
}

impl Host {
    /// Runs `sluice install`, the service and containerd, with further options of the first two.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn start(release: Release, install: &[&str], service: &[&str]) -> Result<Self> {
        Self::start_with(release, install, service, |_| Ok(()))
    }

    /// As [`Host::start`]; `change` may change containerd's configuration after the installation.
    ///
    /// # Errors
    /// As [`Host::start`], and those of `change`.
    pub fn start_with(
        release: Release,
        install: &[&str],
        service: &[&str],
        change: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let scratch = Scratch::new("installed")?;
        let (mut started, mut path) = (None, PathBuf::new());
        let containerd = Containerd::start_changed(release, |config| {
            let mut command = sluice::command(["install", "--no-unit"])?;
            for (option, value) in [
                ("--containerd", release.program()?),
                ("--containerd-config", config.to_path_buf()),
                ("--socket", socket(&scratch)),
                ("--cache", scratch.join("cache")),
            ] {
                command.arg(option).arg(value);
            }
            process::run(command.args(install))?;
            change(config)?;
            path = config.to_path_buf();
            started = Some(Service::start_with_images(
                &scratch,
                &config.with_file_name("c.sock"),
                service,
            )?);
            Ok(())
        })?;
        Ok(Self {
            containerd,
            config: path,
            service: started,
            scratch,
        })
    }

    /// The socket of the service.
    pub fn socket(&self) -> PathBuf {
        socket(&self.scratch)
    }

    /// What the service has logged.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        log(&self.scratch)
    }
}
