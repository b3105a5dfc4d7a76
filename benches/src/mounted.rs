//! An image mounted by `sluice mount`, for as long as a value lives.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running `sluice mount`; dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    child: Child,
    dir: PathBuf,
    /// Kept open, since the process prints a last line at its end.
    _stdout: BufReader<ChildStdout>,
}

impl Mounted {
    /// Mounts `image` on `dir` and waits until it is ready.
    ///
    /// # Errors
    /// When the mount does not become ready.
    pub fn new(image: &str, dir: &Path, front: &str, cache: &Path, run_dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut child = Command::new(super::command::sluice()?)
            .args(["mount", "--json", "--front", front, image])
            .arg(dir)
            .arg("--cache")
            .arg(cache)
            .arg("--run-dir")
            .arg(run_dir)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().context("standard output is piped")?);
        stdout.read_line(&mut line)?;
        let mounted = Self {
            child,
            dir: dir.to_owned(),
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
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        // The process may have ended by itself; then there is nothing to signal.
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
