//! A container without a container engine: an overlay over a mounted image, and its entry point in it.
//!
//! The writable layer is a tmpfs, `/proc` and `/dev` are the host's. The entry point runs as root in a process namespace of its own, so
//! that ending the first process ends all of them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

/// Directories of the host that programs expect.
const BOUND: [&str; 2] = ["proc", "dev"];

/// How often, and how long apart, an overlay is tried to be unmounted: killed processes are gone within milliseconds.
const UNMOUNT_TRIES: u32 = 200;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(10);

/// What an image runs: its entry point with its arguments, environment and working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    command: Vec<String>,
    environment: Vec<String>,
    directory: String,
}

impl EntryPoint {
    /// That of an image, for this machine's platform.
    ///
    /// # Errors
    /// When the image cannot be looked at or runs nothing.
    pub fn of(image: &str, plain_http: bool) -> anyhow::Result<Self> {
        let platform = sluice_storage::Platform::host().to_string();
        let mut inspect = Command::new(super::command::sluice()?);
        inspect.args(["inspect", "--json", "--platform", &platform]);
        if plain_http {
            inspect.arg("--plain-http");
        }
        let (text, _) = super::command::run(inspect.arg(image))?;
        let report: Value = serde_json::from_str(&text)?;
        let run = &report["manifests"][0]["run"];
        Self::parse(run).with_context(|| format!("{image} has no entry point"))
    }

    fn parse(run: &Value) -> Option<Self> {
        let texts = |name: &str| -> Vec<String> {
            let values = run[name].as_array().into_iter().flatten();
            values
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect()
        };
        let command = [texts("Entrypoint"), texts("Cmd")].concat();
        let directory = run["WorkingDir"]
            .as_str()
            .filter(|directory| !directory.is_empty());
        (!command.is_empty()).then(|| Self {
            command,
            environment: texts("Env"),
            directory: directory.unwrap_or("/").to_owned(),
        })
    }
}

/// An overlay over a mounted image, ready to run programs; unmounted when dropped.
#[derive(Debug)]
pub struct Container {
    root: PathBuf,
    /// Of our own, in the order of mounting.
    mounts: Vec<PathBuf>,
    /// Of the host, with all below them.
    bound: Vec<PathBuf>,
}

impl Container {
    /// One over `lower`, with its directories in `scratch`.
    ///
    /// # Errors
    /// When something cannot be mounted.
    pub fn new(lower: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let (writable, root) = (scratch.join("writable"), scratch.join("root"));
        let mut container = Self {
            root: root.clone(),
            mounts: Vec::new(),
            bound: Vec::new(),
        };
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        container.mount("tmpfs", &writable, None)?;
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        container.mount("overlay", &root, Some(&options))?;
        BOUND.iter().try_for_each(|name| container.bind(name))?;
        Ok(container)
    }

    fn mount(&mut self, fs_type: &str, target: &Path, options: Option<&str>) -> anyhow::Result<()> {
        fs::create_dir_all(target)?;
        mount(Some(fs_type), target, Some(fs_type), MsFlags::empty(), options)
            .with_context(|| format!("mounting {fs_type} on {}", target.display()))?;
        self.mounts.push(target.to_owned());
        Ok(())
    }

    /// Shows a directory of the host. Taking it away later does not reach the host's own.
    fn bind(&mut self, name: &str) -> anyhow::Result<()> {
        let (source, target) = (Path::new("/").join(name), self.root.join(name));
        fs::create_dir_all(&target)?;
        let none = None::<&str>;
        mount(
            Some(&source),
            &target,
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )
        .with_context(|| format!("binding {} to {}", source.display(), target.display()))?;
        self.bound.push(target.clone());
        mount(none, &target, none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        Ok(())
    }

    /// Runs the entry point until it prints a line with `ready` or ends; gives the seconds.
    ///
    /// # Errors
    /// When it cannot be started, or ends with an error before it is ready.
    pub fn run(&self, entry: &EntryPoint, ready: &str) -> anyhow::Result<f64> {
        let mut command = Command::new("unshare");
        command
            .args(["--fork", "--pid", "--kill-child", "--root"])
            .arg(&self.root)
            .args(["--wd", &entry.directory])
            .args(&entry.command)
            .env_clear();
        for variable in &entry.environment {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            command.env(name, value);
        }
        Running::start(&mut command)?.until_ready(ready)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for target in self.bound.iter().rev() {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
        self.mounts.iter().rev().for_each(|target| unmount(target));
    }
}

/// Unmounts what the last of the killed processes may still leave for a moment; gives up with a lazy one.
fn unmount(target: &Path) {
    for _ in 0..UNMOUNT_TRIES {
        match umount2(target, MntFlags::empty()) {
            Err(Errno::EBUSY) => thread::sleep(UNMOUNT_PAUSE),
            _ => return,
        }
    }
    let _ = umount2(target, MntFlags::MNT_DETACH);
}

/// A program that is waited for until it says that it is ready; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Kept open: a program that cannot print ends in another way than one that is ended.
    stdout: BufReader<ChildStdout>,
    began: Instant,
}

impl Running {
    /// Starts `command`.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let began = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("starting {command:?}"))?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        Ok(Self {
            child,
            stdout: BufReader::new(stdout),
            began,
        })
    }

    /// Waits for a line with `ready`, or for the end of the program. Gives the seconds since its start.
    ///
    /// # Errors
    /// When it ends with an error before.
    pub fn until_ready(&mut self, ready: &str) -> anyhow::Result<f64> {
        let mut line = Vec::new();
        while self.stdout.read_until(b'\n', &mut line)? > 0 {
            if String::from_utf8_lossy(&line).contains(ready) {
                return Ok(self.began.elapsed().as_secs_f64());
            }
            line.clear();
        }
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "the program ended with {status} before it was ready"
        );
        Ok(self.began.elapsed().as_secs_f64())
    }

    /// Waits until it ends by itself, in whatever way.
    ///
    /// # Errors
    /// When its output cannot be read.
    pub fn until_end(mut self) -> anyhow::Result<()> {
        std::io::copy(&mut self.stdout, &mut std::io::sink())?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_points_come_from_the_config() {
        let run =
            serde_json::json!({"Entrypoint": ["/bin/a"], "Cmd": ["b"], "Env": ["C=d"], "WorkingDir": ""});
        let entry = EntryPoint::parse(&run).expect("an entry point");
        assert_eq!(entry.command, ["/bin/a", "b"]);
        assert_eq!(
            (entry.environment, entry.directory),
            (vec!["C=d".to_owned()], "/".to_owned())
        );
        assert_eq!(EntryPoint::parse(&Value::Null), None);
    }

    #[test]
    fn a_program_is_ready_when_it_says_so_or_has_ended() -> anyhow::Result<()> {
        let shell = |script: &str| Running::start(Command::new("sh").args(["-c", script]));
        shell("echo one; echo it is READY now; sleep 1000")?.until_ready("READY")?;
        shell("echo one")?.until_ready("READY")?;
        assert!(shell("echo one; exit 3")?.until_ready("READY").is_err());
        Ok(())
    }
}
