//! An image mounted by `sluice mount`, for as long as a value lives.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running `sluice mount`; dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    child: Child,
    dir: PathBuf,
    seconds: f64,
    /// Kept open, since the process prints a last line at its end.
    _stdout: BufReader<ChildStdout>,
}

impl Mounted {
    /// Mounts `image` on `dir` and waits until it is ready.
    ///
    /// # Errors
    /// When the mount does not become ready.
    pub fn new(image: &str, dir: &Path, front: &str, cache: &Path, run_dir: &Path) -> anyhow::Result<Self> {
        Self::with_options(
            image,
            dir,
            [
                "--front".as_ref(),
                front.as_ref(),
                "--cache".as_ref(),
                cache.as_os_str(),
                "--run-dir".as_ref(),
                run_dir.as_os_str(),
            ],
        )
    }

    /// The same with any options of `sluice mount`.
    ///
    /// # Errors
    /// When the mount does not become ready.
    pub fn with_options<'a>(
        image: &str,
        dir: &Path,
        options: impl IntoIterator<Item = &'a OsStr>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut command = Command::new(super::command::sluice()?);
        command
            .args(["mount", "--json"])
            .args(options)
            .arg(image)
            .arg(dir);
        let began = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().context("standard output is piped")?);
        stdout.read_line(&mut line)?;
        let mounted = Self {
            child,
            dir: dir.to_owned(),
            seconds: began.elapsed().as_secs_f64(),
            _stdout: stdout,
        };
        anyhow::ensure!(!line.is_empty(), "sluice mount ended before the mount was ready");
        Ok(mounted)
    }

    /// Where the image is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Process that serves the mount.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// User and system seconds that the process has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        super::daemons::cpu_seconds(self.pid())
    }

    /// Seconds from the start of the process until the mount was ready.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        // The process may have ended by itself; then there is nothing to signal.
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
