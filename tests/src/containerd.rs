//! A private containerd to compare with: own root, state and socket, the overlayfs snapshotter and runc.
//!
//! Images come in by pulling from a registry of the tests over plain HTTP. containerd 1.6 of Debian 12 is the reference
//! for what unpacking a layer means.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::scratch::Disk;
use crate::{mountinfo, prerequisites, process};

/// How long the daemon may take to answer.
const START: Duration = Duration::from_secs(30);

/// A running containerd; ends and unmounts everything when dropped.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    ctr: PathBuf,
    disk: Disk,
}

impl Containerd {
    /// Starts one with empty state.
    ///
    /// # Errors
    /// When it is not installed, not allowed, or does not come up.
    pub fn start() -> Result<Self> {
        prerequisites::root()?;
        let program = prerequisites::command("containerd", "containerd")?;
        let ctr = prerequisites::command("ctr", "containerd")?;
        prerequisites::command("runc", "runc")?;
        let disk = Disk::new("containerd")?;
        let scratch = disk.directory.as_path();
        let config = scratch.join("config.toml");
        fs::write(&config, configuration(scratch))?;
        let log = scratch.join("log");
        let child = process::spawn_logged(Command::new(program).arg("--config").arg(config), &log)?;
        let containerd = Self { child, ctr, disk };
        let answers = || process::run(&mut containerd.ctr(["version"])).is_ok();
        process::wait_until("containerd to answer", START, answers)
            .with_context(|| fs::read_to_string(log).unwrap_or_default())?;
        Ok(containerd)
    }

    /// `ctr` with these arguments.
    pub fn ctr<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.ctr);
        command
            .arg("--address")
            .arg(socket(&self.disk.directory))
            .args(arguments);
        command
    }

    /// Pulls and unpacks `HOST:PORT/NAME:TAG` over plain HTTP.
    ///
    /// # Errors
    /// When containerd refuses the image; the message holds what `ctr` printed.
    pub fn pull(&self, reference: &str) -> Result<()> {
        let arguments = [
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            "overlayfs",
            reference,
        ];
        process::run(&mut self.ctr(arguments)).map(|_| ())
    }

    /// Mounts a read-only view of a pulled image.
    ///
    /// # Errors
    /// When containerd or the kernel refuses.
    pub fn view(&self, reference: &str, name: &str) -> Result<View<'_>> {
        let directory = self.disk.directory.join("views").join(name);
        fs::create_dir_all(&directory)?;
        let target = directory.to_str().context("the scratch directory is not UTF-8")?;
        process::run(&mut self.ctr(["images", "mount", "--snapshotter", "overlayfs", reference, target]))?;
        Ok(View {
            containerd: self,
            directory,
        })
    }

    /// Runs a command in a container of a pulled image, with runc and without a network; gives what it printed.
    ///
    /// # Errors
    /// When the container cannot be made or its process ends with an error.
    pub fn run(&self, reference: &str, id: &str, command: &[&str]) -> Result<String> {
        let mut ctr = self.ctr(["run", "--rm", "--snapshotter", "overlayfs", reference, id]);
        process::run(ctr.args(command))
    }
}

fn socket(scratch: &Path) -> PathBuf {
    scratch.join("c.sock")
}

/// containerd's configuration: everything private, and no plugin that writes elsewhere.
fn configuration(scratch: &Path) -> String {
    let path = |name: &str| scratch.join(name).display().to_string();
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {:?}\n",
        path("root"),
        path("state"),
        socket(scratch).display().to_string()
    )
}

impl Drop for Containerd {
    fn drop(&mut self) {
        process::end(&mut self.child, Duration::from_secs(10));
        mountinfo::detach_all_under(&self.disk.directory);
    }
}

/// A mounted read-only view of an image; unmounted when dropped.
#[derive(Debug)]
pub struct View<'a> {
    containerd: &'a Containerd,
    /// Where it is mounted.
    pub directory: PathBuf,
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Some(target) = self.directory.to_str() {
            let _ = process::run(&mut self.containerd.ctr(["images", "unmount", "--rm", target]));
        }
        mountinfo::detach_all_under(&self.directory);
    }
}
