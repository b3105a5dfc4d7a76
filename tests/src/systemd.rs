//! A real systemd, for one test alone.
//!
//! It runs as the manager of a user, which needs no boot of its own: a process of the test in namespaces for mounts and
//! processes, and in a control group, so that nothing of it is seen outside or stays. The test is started again inside
//! ([`enter`]), and starts the manager there.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{prerequisites, process};

/// The manager.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Set to the name of the test inside.
const INSIDE: &str = "SLUICE_TEST_INSIDE";

/// How long the manager may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Puts itself into a control group `$0` of each hierarchy and becomes `$@`.
pub(crate) const ENTER: &str = r#"
for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
    hierarchy=${procs%/cgroup.procs}
    [ -f "$procs" ] && [ ! -e "$hierarchy/cgroup.type" ] || continue
    mkdir "$hierarchy/$0"
    for limit in cpuset.cpus cpuset.mems; do
        [ -f "$hierarchy/cgroup.controllers" ] || [ ! -f "$hierarchy/$limit" ] ||
            cat "$hierarchy/$limit" >"$hierarchy/$0/$limit"
    done
    echo $$ >"$hierarchy/$0/cgroup.procs"
done
exec "$@"
"#;

/// Removes the control groups `$0`.
pub(crate) const LEAVE: &str = r#"
for group in "/sys/fs/cgroup/$0" /sys/fs/cgroup/*/"$0"; do
    [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} +
done
"#;

/// Runs the test `name` of this executable again, where [`UserManager::start`] works, and gives what it printed. `None` when
/// this is the run inside.
///
/// # Errors
/// When something is missing, or the test fails inside.
pub fn enter(name: &str) -> Result<Option<String>> {
    if env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return Ok(None);
    }
    prerequisites::root()?;
    prerequisites::command("systemctl", "systemd")?;
    prerequisites::command("unshare", "util-linux")?;
    let group = format!("sluice-test-{}", std::process::id());
    let mut command = Command::new("sh");
    command.args(["-c", ENTER, &group]);
    command.args([
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command.arg(env::current_exe()?);
    command.args(["--exact", name, "--nocapture"]).env(INSIDE, name);
    let outcome = process::run(&mut command);
    process::run(Command::new("sh").args(["-c", LEAVE, &group]))?;
    outcome.map(Some)
}

/// A running manager; ends with everything that it started when dropped.
#[derive(Debug)]
pub struct UserManager {
    child: Child,
    directory: PathBuf,
}

impl UserManager {
    /// Starts one that knows the unit `name`, with its state in `directory`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(directory: &Path, name: &str, unit: &str) -> Result<Self> {
        // What tells whether the host runs systemd; this mount namespace is ours alone.
        let booted = Path::new("/run/systemd");
        fs::create_dir_all(booted)?;
        process::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(booted))?;
        fs::create_dir(booted.join("system"))?;
        let units = directory.join("config/systemd/user");
        fs::create_dir_all(&units)?;
        fs::create_dir_all(directory.join("run"))?;
        fs::write(units.join(name), unit)?;
        let mut command = Command::new(SYSTEMD);
        command
            .args(["--user", "--unit=basic.target", "--log-target=console"])
            .env("XDG_CONFIG_HOME", directory.join("config"))
            .env("XDG_RUNTIME_DIR", directory.join("run"));
        let child = process::spawn_logged(&mut command, &directory.join("log"))?;
        let manager = Self {
            child,
            directory: directory.to_owned(),
        };
        process::wait_until("systemd to answer", PATIENCE, || {
            manager.systemctl(&["show", "--property=Version"]).is_ok()
        })
        .with_context(|| fs::read_to_string(directory.join("log")).unwrap_or_default())?;
        Ok(manager)
    }

    /// `systemctl` with these arguments; gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(arguments);
        process::run(command.env("XDG_RUNTIME_DIR", self.directory.join("run")))
    }

    /// A property of a unit.
    ///
    /// # Errors
    /// When the manager does not answer.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let printed = self.systemctl(&["show", "--value", "--property", name, unit])?;
        ensure!(!printed.trim().is_empty(), "{unit} has no {name}");
        Ok(printed.trim().to_owned())
    }
}

impl Drop for UserManager {
    fn drop(&mut self) {
        // It stops everything first.
        process::end(&mut self.child, PATIENCE);
    }
}
