//! A running `sluice mount`.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::scratch::Scratch;
use crate::{mountinfo, prerequisites, process, sluice};

/// How long a mount may take to be ready: the tree of a large image has to be merged by an unoptimised binary.
const READY: Duration = Duration::from_secs(120);

/// How long ending may take.
const END: Duration = Duration::from_secs(20);

/// The front ends under test.
pub const FRONTS: [&str; 2] = ["erofs", "fuse"];

/// What to mount and how.
#[derive(Clone, Debug)]
pub struct Mounting {
    reference: String,
    front: String,
    cache: Option<PathBuf>,
    options: Vec<String>,
    variables: Vec<(String, PathBuf)>,
}

impl Mounting {
    /// The image called `reference`, through a front end.
    pub fn new(reference: &str, front: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            front: front.to_owned(),
            cache: None,
            options: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// With a cache directory that outlives the mount.
    #[must_use]
    pub fn cache(self, directory: &Path) -> Self {
        Self {
            cache: Some(directory.to_path_buf()),
            ..self
        }
    }

    /// With one more command line option.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// With a path in its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, path: PathBuf) -> Self {
        self.variables.push((name.to_owned(), path));
        self
    }

    /// Starts `sluice mount` without waiting for it to be ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<Mounted> {
        prerequisites::root()?;
        prerequisites::fuse()?;
        let scratch = Scratch::new("mount")?;
        let directory = scratch.directory("root")?;
        let run_directory = scratch.directory("run")?;
        let cache = match &self.cache {
            Some(cache) => cache.clone(),
            None => scratch.directory("cache")?,
        };
        let mut command = Command::new(sluice::binary()?);
        command.arg("mount").arg(&self.reference).arg(&directory);
        command.args(["--front", &self.front, "--json"]);
        command
            .arg("--cache")
            .arg(&cache)
            .arg("--run-dir")
            .arg(&run_directory);
        command.args(&self.options);
        command.envs(self.variables.iter().map(|(name, path)| (name, path)));
        if self.reference.starts_with("docker://") {
            command.arg("--plain-http");
        }
        // Inherited by every process that the mount starts, so that none can hide.
        command.env(process::MARK, &run_directory);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let (lines, printed) = (read_lines(child.stdout.take()), read_all(child.stderr.take()));
        Ok(Mounted {
            child,
            lines,
            printed: Some(printed),
            scratch,
            directory,
            run_directory,
            cache,
        })
    }

    /// Starts `sluice mount` and waits until the image is mounted.
    ///
    /// # Errors
    /// When it ends before, or takes too long; the message holds what it printed.
    pub fn mount(&self) -> Result<Mounted> {
        let mut mounted = self.start()?;
        mounted.wait_ready()?;
        Ok(mounted)
    }
}

/// Lines as they come, without holding up the writer.
fn read_lines(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let lines = from.into_iter().flat_map(|from| BufReader::new(from).lines());
        lines.map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

fn read_all(from: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A running `sluice mount`; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    child: Child,
    lines: Receiver<String>,
    printed: Option<JoinHandle<String>>,
    scratch: Scratch,
    /// Where the image is mounted.
    pub directory: PathBuf,
    /// Run directory of this mount.
    pub run_directory: PathBuf,
    /// Its cache.
    pub cache: PathBuf,
}

impl Mounted {
    /// Waits for the ready line.
    ///
    /// # Errors
    /// When the process ends before, or takes too long.
    pub fn wait_ready(&mut self) -> Result<()> {
        match self.lines.recv_timeout(READY) {
            Ok(line) => {
                serde_json::from_str::<serde_json::Value>(&line)
                    .with_context(|| format!("the ready line is not JSON: {line}"))?;
                ensure!(
                    self.is_mounted()?,
                    "ready, but nothing is mounted on {}",
                    self.directory.display()
                );
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => bail!("not ready within {READY:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!(
                    "sluice mount ended with {status} before it was ready: {}",
                    self.printed()
                )
            }
        }
    }

    /// Whether something is mounted on the directory.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn is_mounted(&self) -> Result<bool> {
        Ok(mountinfo::mounts()?
            .iter()
            .any(|mount| mount.mountpoint == self.directory))
    }

    /// Whether the process has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Process ID of `sluice mount`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to `sluice mount`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(&self.child, signal)
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// When it is still there after `patience`.
    pub fn wait_end(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("sluice mount is still running after {patience:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that the process printed to standard error. After its end.
    pub fn printed(&mut self) -> String {
        self.printed
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }

    /// Ends it with SIGTERM, checks that it ended well and left nothing behind.
    ///
    /// # Errors
    /// Saying what is left.
    pub fn unmount(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait_end(END)?;
        let printed = self.printed();
        ensure!(
            status.success(),
            "sluice mount ended with {status} after SIGTERM: {printed}"
        );
        self.assert_nothing_left()
    }

    /// Checks that no mount is left, no process, and nothing in the run directory.
    ///
    /// # Errors
    /// Saying what is left.
    pub fn assert_nothing_left(&self) -> Result<()> {
        mountinfo::assert_nothing_under(&self.scratch)?;
        let left = paths_below(&self.run_directory)?;
        ensure!(left.is_empty(), "left in the run directory: {left:?}");
        let left = process::marked(self.run_directory.as_os_str());
        ensure!(left.is_empty(), "processes left: {left:?}");
        Ok(())
    }

    /// Waits until nothing is left; for ends that others have to clean up after.
    ///
    /// # Errors
    /// Saying what is left after `patience`.
    pub fn wait_nothing_left(&self, patience: Duration) -> Result<()> {
        let gone = process::wait_until("nothing left", patience, || self.assert_nothing_left().is_ok());
        gone.or_else(|_| self.assert_nothing_left())
    }
}

/// Paths of everything below a directory.
fn paths_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        names.push(entry.path());
        if entry.file_type()?.is_dir() {
            names.extend(paths_below(&entry.path())?);
        }
    }
    Ok(names)
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            process::end(&mut self.child, END);
        }
    }
}
