//! A machine of its own: Debian 12 with a real systemd as its first process, and containerd. Nobody has done anything on it yet.
//!
//! It is a copy of a system that `images/build-machine.sh` installed, started in namespaces for processes, mounts, control
//! groups and the host name. Its network is that of the host, so a registry on a loopback address of a test is one there too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::scratch::Disk;
use crate::systemd::{ENTER, LEAVE};
use crate::{debian, document, prerequisites, process};

/// How long it may take to start.
const START: Duration = Duration::from_secs(60);

/// Where programs are, `cargo install` of root first.
const PATH: &str = "/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the directory `$0` the root and starts its first process. The kernel's settings, which belong to the host, can only be
/// read. Control groups are in the same hierarchies as on the host, whose controllers can be in one only.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$0" "$0"
cd "$0"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    for hierarchy in /sys/fs/cgroup/*; do
        name=${hierarchy##*/}
        if [ -L "$hierarchy" ] || [ ! -e "$hierarchy/cgroup.procs" ]; then continue; fi
        mkdir "sys/fs/cgroup/$name"
        case $name in
        unified) mount -t cgroup2 cgroup2 sys/fs/cgroup/unified ;;
        systemd) mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd ;;
        *) mount -t cgroup -o "$name" cgroup "sys/fs/cgroup/$name" ;;
        esac
    done
fi
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty fuse loop-control; do
    [ ! -e "/dev/$node" ] || cp -a "/dev/$node" dev
done
mkdir dev/pts dev/shm old
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
pivot_root . old
umount -l /old
exec env -i container=test /sbin/init --log-target=console --show-status=no
"#;

/// The machine; everything on it ends when dropped.
#[derive(Debug)]
pub struct Machine {
    outside: Child,
    /// Its first process, as the host numbers it.
    init: u32,
    /// Its control group.
    group: String,
    disk: Disk,
}

impl Machine {
    /// Starts one, and waits until it is up.
    ///
    /// # Errors
    /// When it cannot be installed or does not come up.
    pub fn start() -> Result<Self> {
        prerequisites::root()?;
        prerequisites::fuse()?;
        let disk = Disk::new("machine")?;
        let root = disk.directory.join("root");
        process::run(Command::new("cp").arg("-a").arg(installed()?).arg(&root))?;
        let group = format!("sluice-test-machine-{}", std::process::id());
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, &group]);
        command.args([
            "unshare",
            "--mount",
            "--pid",
            "--cgroup",
            "--uts",
            "--fork",
            "--kill-child",
        ]);
        command.args(["sh", "-c", BOOT]).arg(&root);
        let outside = process::spawn_logged(&mut command, &disk.directory.join("log"))?;
        let mut machine = Self {
            outside,
            init: 0,
            group,
            disk,
        };
        process::wait_until("start of the machine", START, || machine.is_up())
            .with_context(|| machine.log())?;
        Ok(machine)
    }

    fn is_up(&mut self) -> bool {
        let outside = self.outside.id();
        let children = fs::read_to_string(format!("/proc/{outside}/task/{outside}/children"));
        self.init = children.ok().and_then(|pid| pid.trim().parse().ok()).unwrap_or(0);
        // "degraded" is said with an error: then some unit failed.
        self.init != 0 && self.run("systemctl is-system-running").is_ok()
    }

    fn log(&self) -> String {
        let states = self.run("systemctl list-units --failed --no-pager");
        let log = fs::read_to_string(self.disk.directory.join("log"));
        format!("{states:?}\n{}", log.unwrap_or_default())
    }

    /// Where its files are on the host. What is mounted on the machine does not show there.
    pub fn root(&self) -> PathBuf {
        self.disk.directory.join("root")
    }

    /// Whether it has a control group in any hierarchy.
    fn has_groups(&self) -> bool {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        let mut hierarchies = hierarchies.map(|hierarchy| hierarchy.path());
        root.join(&self.group).exists() || hierarchies.any(|hierarchy| hierarchy.join(&self.group).exists())
    }

    /// Runs a line of shell on it as root; gives what it printed.
    ///
    /// # Errors
    /// When it ends with an error.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--root", "--wd"]);
        command.args(["env", "-i", "HOME=/root", "LC_ALL=C.UTF-8"]);
        command.arg(format!("PATH={PATH}")).args(["sh", "-ec", line]);
        process::run(&mut command)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process ends with it, and everything else with that.
        let _ = self.outside.kill();
        let _ = self.outside.wait();
        // A group goes away when its last process has.
        let _ = process::wait_until("end of the machine's processes", START, || {
            let _ = process::output(Command::new("sh").args(["-c", LEAVE, &self.group]));
            !self.has_groups()
        });
    }
}

/// The system to copy, installed now when it was not yet.
fn installed() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/build-machine.sh");
    let recipe = fs::read(&script).with_context(|| format!("cannot read {}", script.display()))?;
    let recipe = document::digest(&recipe).replace("sha256:", "");
    let directory = debian::images_directory()?.join(format!("machine-{}", &recipe[..12]));
    if !directory.join("complete").exists() {
        prerequisites::command("debootstrap", "debootstrap")?;
        process::run(Command::new(script).arg(&directory))?;
    }
    Ok(directory.join("root"))
}
