//! A private containerd to compare with: own root, state and socket, the overlayfs snapshotter and runc.
//!
//! Images come in by pulling from a registry of the tests over plain HTTP. containerd 1.6 of Debian 12 is the reference
//! for what unpacking a layer means. containerd 2 of Debian unstable, which `tests/setup.sh` unpacks beside the build, is
//! the other end of the versions that Sluice supports.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::scratch::Disk;
use crate::{erofs_tools, mountinfo, prerequisites, process, scratch};

/// How long the daemon may take to answer.
const START: Duration = Duration::from_secs(30);

/// How long it may take to end.
const END: Duration = Duration::from_secs(10);

/// Name of its configuration.
const CONFIG: &str = "config.toml";

/// Directory beside it with programs that it finds before those of the system.
const OWN_PROGRAMS: &str = "programs";

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 1.6, installed.
    One,
    /// 2.x, unpacked beside the build.
    Two,
}

impl Release {
    /// Its daemon.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn program(self) -> Result<PathBuf> {
        Ok(self.programs()?.join("containerd"))
    }

    /// The directory with its programs.
    fn programs(self) -> Result<PathBuf> {
        match self {
            Self::One => {
                let program = prerequisites::command("containerd", "containerd")?;
                Ok(program
                    .parent()
                    .context("containerd has no directory")?
                    .to_path_buf())
            }
            Self::Two => {
                let root = match env::var_os("SLUICE_CONTAINERD_2") {
                    Some(directory) => PathBuf::from(directory),
                    None => scratch::target_directory()?.join("containerd-2"),
                };
                let programs = root.join("usr/bin");
                ensure!(
                    programs.join("containerd").is_file(),
                    "{} has no containerd: run tests/setup.sh",
                    programs.display()
                );
                Ok(programs)
            }
        }
    }
}

/// A snapshotter that is a process of its own.
#[derive(Clone, Copy, Debug)]
pub struct Proxy<'a> {
    /// Its name in containerd.
    pub name: &'a str,
    /// Where it listens.
    pub socket: &'a Path,
}

/// A running containerd; ends and unmounts everything when dropped.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    ctr: PathBuf,
    disk: Disk,
}

impl Containerd {
    /// Starts the installed one with empty state.
    ///
    /// # Errors
    /// When it is not installed, not allowed, or does not come up.
    pub fn start() -> Result<Self> {
        Self::start_with(Release::One, &[])
    }

    /// Starts one with empty state and these snapshotters beside its own.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_with(release: Release, proxies: &[Proxy<'_>]) -> Result<Self> {
        let text = |scratch: &Path| configuration(scratch, &DISABLED, release, proxies);
        Self::start_configured(release, text, |_| Ok(()))
    }

    /// Starts one that serves CRI too, in a configuration that knows its own snapshotters only and that `change` may change;
    /// it is given the path of the file.
    ///
    /// # Errors
    /// As [`Containerd::start`], and those of `change`.
    pub fn start_changed(release: Release, change: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        Self::start_configured(release, cri_configuration, change)
    }

    /// Starts version 2 with its EROFS snapshotter, which has layers converted by a recent `mkfs.erofs`.
    ///
    /// # Errors
    /// As [`Containerd::start`], or when erofs-utils are missing.
    pub fn start_erofs() -> Result<Self> {
        let text = |scratch: &Path| {
            let differ =
                "[plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"erofs\", \"walking\"]\n";
            configuration(scratch, &DISABLED, Release::Two, &[]) + differ
        };
        Self::start_configured(Release::Two, text, |config| {
            erofs_tools::write_script("mkfs.erofs", &config.with_file_name(OWN_PROGRAMS))
        })
    }

    fn start_configured(
        release: Release,
        text: impl FnOnce(&Path) -> String,
        change: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        prerequisites::root()?;
        prerequisites::command("runc", "runc")?;
        let programs = release.programs()?;
        let disk = Disk::new("containerd")?;
        let scratch = disk.directory.as_path();
        let config = scratch.join(CONFIG);
        fs::write(&config, text(scratch))?;
        change(&config)?;
        let child = spawn(&programs, scratch)?;
        let ctr = programs.join("ctr");
        let containerd = Self { child, ctr, disk };
        containerd.wait_answering()?;
        Ok(containerd)
    }

    fn wait_answering(&self) -> Result<()> {
        let answers = || process::run(&mut self.ctr(["version"])).is_ok();
        process::wait_until("containerd to answer", START, answers).with_context(|| self.log())
    }

    /// Ends it and starts it again with the state that it has. Its containers go on meanwhile.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        process::end(&mut self.child, END);
        self.start_again()
    }

    /// Kills it as the end of the host would, takes its mounts away and what a host keeps in memory only, and starts it
    /// again. The processes of its containers are the caller's to kill.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn reboot(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let state = self.disk.directory.join("state");
        mountinfo::detach_all_under(&state);
        fs::remove_dir_all(&state)?;
        self.start_again()
    }

    fn start_again(&mut self) -> Result<()> {
        let programs = self.ctr.parent().context("ctr has no directory")?;
        self.child = spawn(programs, &self.disk.directory)?;
        self.wait_answering()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The socket it listens on.
    pub fn socket(&self) -> PathBuf {
        socket(&self.disk.directory)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.disk.directory.join("log")).unwrap_or_default()
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

    /// Has it collect garbage now: until then it keeps the snapshots of containers that were removed.
    ///
    /// # Errors
    /// When it refuses.
    pub fn collect_garbage(&self) -> Result<()> {
        process::run(&mut self.ctr(["leases", "create", "--id", "garbage"]))?;
        // The end of a lease waits for the collector.
        process::run(&mut self.ctr(["leases", "rm", "--sync", "garbage"]))?;
        Ok(())
    }

    /// Pulls and unpacks `HOST:PORT/NAME:TAG` over plain HTTP.
    ///
    /// # Errors
    /// When containerd refuses the image; the message holds what `ctr` printed.
    pub fn pull(&self, reference: &str) -> Result<()> {
        self.pull_into("overlayfs", reference)
    }

    /// As [`Containerd::pull`], with another snapshotter.
    ///
    /// # Errors
    /// As [`Containerd::pull`].
    pub fn pull_into(&self, snapshotter: &str, reference: &str) -> Result<()> {
        let arguments = [
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            snapshotter,
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
        self.run_on("overlayfs", reference, id, command)
    }

    /// As [`Containerd::run`], with another snapshotter.
    ///
    /// # Errors
    /// As [`Containerd::run`].
    pub fn run_on(&self, snapshotter: &str, reference: &str, id: &str, command: &[&str]) -> Result<String> {
        let mut ctr = self.ctr(["run", "--rm", "--snapshotter", snapshotter, reference, id]);
        process::run(ctr.args(command))
    }
}

/// Starts the daemon whose configuration is in `scratch`.
fn spawn(programs: &Path, scratch: &Path) -> Result<Child> {
    let mut command = Command::new(programs.join("containerd"));
    // It looks for its shim there.
    let first = [scratch.join(OWN_PROGRAMS), programs.to_owned()];
    let path = env::var_os("PATH").unwrap_or_default();
    let path = first.into_iter().chain(env::split_paths(&path));
    command
        .arg("--config")
        .arg(scratch.join(CONFIG))
        .env("PATH", env::join_paths(path)?);
    process::spawn_logged(&mut command, &scratch.join("log"))
}

fn socket(scratch: &Path) -> PathBuf {
    scratch.join("c.sock")
}

/// Makes a directory in the file system of the host.
const OPT: &str = "io.containerd.internal.v1.opt";

/// Plugins that write outside of the scratch directory, or need a network. Names that a release does not know do nothing.
const DISABLED: [&str; 6] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    OPT,
    "io.containerd.nri.v1.nri",
    "io.containerd.podsandbox.controller.v1.podsandbox",
];

/// containerd's configuration: everything private, and no plugin that writes elsewhere.
fn configuration(scratch: &Path, disabled: &[&str], release: Release, proxies: &[Proxy<'_>]) -> String {
    let mut text = basic_configuration(scratch, disabled);
    for Proxy { name, socket } in proxies {
        text += &format!(
            "[proxy_plugins.{name}]\ntype = \"snapshot\"\naddress = {:?}\n",
            socket.display().to_string()
        );
        if release == Release::Two {
            // Its transfer service tells a snapshotter what is pulled only if asked to.
            text +=
                &format!("[proxy_plugins.{name}.exports]\nenable_remote_snapshot_annotations = \"true\"\n");
        }
    }
    if release == Release::Two {
        // Its transfer service unpacks for the snapshotters listed here and for no other.
        for name in proxies.iter().map(|proxy| proxy.name).chain(["overlayfs"]) {
            text += &format!(
                "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                 platform = \"linux/amd64\"\nsnapshotter = {name:?}\n"
            );
        }
    }
    text
}

fn basic_configuration(scratch: &Path, disabled: &[&str]) -> String {
    let path = |name: &str| scratch.join(name).display().to_string();
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = {disabled:?}\n[grpc]\naddress = {:?}\n",
        path("root"),
        path("state"),
        socket(scratch).display().to_string()
    )
}

/// With the CRI plugin, which looks for networks, and listens, where nothing else does.
fn cri_configuration(scratch: &Path) -> String {
    let disabled = [OPT];
    let networks = scratch.join("networks").display().to_string();
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        "{}[{cri}]\nstream_server_port = \"0\"\n[{cri}.cni]\nconf_dir = {networks:?}\nbin_dir = {networks:?}\n\
         [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n",
        basic_configuration(scratch, &disabled)
    )
}

impl Drop for Containerd {
    fn drop(&mut self) {
        process::end(&mut self.child, END);
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
