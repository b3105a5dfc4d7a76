//! Promise: one command watches a start of an image in a container, other hosts have what it read in time, and nothing is left of it however
//! it ends.

use std::fs;
use std::process::{Child, Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sluice_tests::document::{array, text};
use sluice_tests::images::{Entry, ImageBuilder, Layer, program, shell};
use sluice_tests::registry::DistributionRegistry;
use sluice_tests::scratch::Scratch;
use sluice_tests::{mountinfo, prerequisites, process, sluice};

/// How long an end may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Length of the files of the image.
const FILE_LEN: u64 = 900_000;

/// Reads one of two files, and then waits for work.
const SERVE: &str = "cat /data/wanted > /dev/null; echo serving; exec sleep 600";

/// An image with a shell that serves, and a host that has nothing of it.
struct Host {
    scratch: Scratch,
    /// The image as it is: gzip layers in a layout.
    original: String,
}

impl Host {
    fn new(name: &str) -> Result<Self> {
        prerequisites::root()?;
        prerequisites::fuse()?;
        prerequisites::command("runc", "runc")?;
        let scratch = Scratch::new(name)?;
        let users = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n";
        let data = Layer::of([
            Entry::file("etc/passwd", users),
            Entry::generated("data/other", FILE_LEN, 1),
            Entry::generated("data/wanted", FILE_LEN, 2),
        ]);
        let programs = [
            shell()?,
            program("/bin/cat", "bin/cat")?,
            program("/bin/sleep", "bin/sleep")?,
        ];
        let image = ImageBuilder::new()
            .layers(programs)
            .layer(data)
            .config("/config/Entrypoint", json!(["/bin/sh", "-c"]))
            .config("/config/Cmd", json!([SERVE]))
            .config("/config/User", json!("app"))
            .write(&scratch.join("source"), "t")?;
        let original = image.reference();
        Ok(Self { scratch, original })
    }

    fn path(&self, name: &str) -> String {
        self.scratch.join(name).display().to_string()
    }

    /// `sluice profile record`, with what it needs of the host below the directory of this test.
    fn record(&self, image: &str, options: &[&str]) -> Result<Command> {
        let mut command = sluice::command(["profile", "record", image, "--cache", &self.path("cache")])?;
        command.args(["--run-dir", &self.path("run")]).args(options);
        command.env(process::MARK, &*self.scratch);
        Ok(command)
    }

    /// Files that the profile of an image has demands in, as this host has it.
    fn demanded(&self, image: &str, cache: &str) -> Result<Vec<String>> {
        let shown = sluice::json(["profile", "show", image, "--cache", &self.path(cache)])?;
        let demands = array(&shown, "/demands")?;
        let files = demands
            .iter()
            .flat_map(|demand| array(demand, "/files").into_iter().flatten());
        Ok(files
            .filter_map(|file| file.as_str().map(str::to_owned))
            .collect())
    }

    /// Checks that the start read the programs and one file of two.
    fn ensure_start_known(&self, image: &str, cache: &str) -> Result<()> {
        let files = self.demanded(image, cache)?;
        let has = |name: &str| files.iter().any(|file| file.starts_with(name));
        ensure!(
            has("/bin/cat") && has("/bin/sleep") && has("/data/wanted"),
            "{files:?}"
        );
        ensure!(!has("/data/other"), "{files:?}");
        Ok(())
    }

    /// Neither process nor mount nor container nor file.
    fn ensure_nothing_left(&self, pid: u32) -> Result<()> {
        process::wait_until("the end of all processes", PATIENCE, || {
            process::marked(self.scratch.as_os_str()).is_empty()
        })?;
        let mounts = mountinfo::mounts()?;
        let left: Vec<_> = mounts
            .iter()
            .filter(|mount| mount.mountpoint.starts_with(&*self.scratch))
            .collect();
        ensure!(left.is_empty(), "mounts are left: {left:?}");
        let groups = control_groups(pid)?;
        ensure!(groups.is_empty(), "control groups are left: {groups}");
        Ok(())
    }

    fn ensure_run_directory_empty(&self) -> Result<()> {
        let left: Vec<_> = fs::read_dir(self.scratch.join("run"))?.flatten().collect();
        ensure!(left.is_empty(), "left in the run directory: {left:?}");
        Ok(())
    }

    /// A recording whose container serves.
    fn serving(&self) -> Result<Child> {
        let log = self.scratch.join("log");
        let child = process::spawn_logged(&mut self.record(&self.original, &[])?, &log)?;
        process::wait_until("the container", PATIENCE, || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("serving"))
        })?;
        // So their absence later means something.
        ensure!(
            !control_groups(child.id())?.is_empty(),
            "the container has no control group"
        );
        Ok(child)
    }
}

/// Control groups of the container that process `pid` has made.
fn control_groups(pid: u32) -> Result<String> {
    let name = format!("sluice-{pid}");
    process::run(Command::new("find").args(["/sys/fs/cgroup", "-name", &name]))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn privileged_a_recorded_start_is_known_on_every_host() -> Result<()> {
    let host = Host::new("record")?;
    let registry = DistributionRegistry::start()?;
    let image = registry.reference("team/app:v1");
    sluice::run(["convert", &host.original, &image])?;
    let output = process::run(&mut host.record(&image, &["--push", "--json"])?)?;
    let documents: Vec<_> = output.lines().map(sluice::parse_json).collect::<Result<_>>()?;
    let [recorded, pushed] = &documents[..] else {
        anyhow::bail!("{output}")
    };
    assert_eq!(text(recorded, "/ended")?, "until it was quiet");
    ensure!(recorded["plain_len"].as_u64() >= Some(FILE_LEN), "{recorded}");
    ensure!(pushed["artifact_digest"].is_string(), "{pushed}");
    host.ensure_start_known(&image, "cache")?;
    sluice::run(["profile", "pull", &image, "--cache", &host.path("there")])?;
    host.ensure_start_known(&image, "there")?;
    host.ensure_run_directory_empty()
}

#[test]
fn privileged_an_image_that_is_on_the_host_whole_is_recorded() -> Result<()> {
    let host = Host::new("record-whole")?;
    let mut command = host.record(&host.original, &[])?;
    let printed = process::run(&mut command)?;
    ensure!(printed.contains("1 start,"), "{printed}");
    host.ensure_start_known(&host.original, "cache")?;
    let printed = process::run(&mut command)?;
    ensure!(printed.contains("2 starts,"), "{printed}");
    host.ensure_start_known(&host.original, "cache")?;
    host.ensure_run_directory_empty()
}

#[test]
fn privileged_the_container_is_what_the_image_and_its_user_say() -> Result<()> {
    let host = Host::new("record-options")?;
    let script = "echo $GREETING; cat /proc/self/status /proc/net/dev";
    let arguments = ["--env", "GREETING=hello", "--", script];
    let output = process::output(&mut host.record(&host.original, &arguments)?)?;
    let text = said(&output);
    ensure!(output.status.success(), "{text}");
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    ensure!(lines.contains(&"hello"), "{text}");
    ensure!(
        lines.contains(&"Uid:\t1000\t1000\t1000\t1000") && lines.contains(&"Gid:\t1001\t1001\t1001\t1001"),
        "{text}"
    );
    let interfaces: Vec<_> = lines
        .iter()
        .filter(|line| line.contains(": ") && !line.contains('\t'))
        .collect();
    ensure!(interfaces.iter().all(|line| line.starts_with("lo:")), "{text}");
    ensure!(String::from_utf8_lossy(&output.stdout).contains("until it ended"));
    host.ensure_run_directory_empty()
}

#[test]
fn privileged_a_start_that_fails_is_told_and_not_kept() -> Result<()> {
    let host = Host::new("record-failing")?;
    let refused = process::run_refused(&mut host.record(&host.original, &["--", "echo woe; exit 3"])?)?;
    ensure!(
        refused.contains("woe") && refused.contains("exit status: 3"),
        "{refused}"
    );
    let listed = sluice::run(["profile", "ls", "--cache", &host.path("cache")])?;
    ensure!(listed.is_empty(), "{listed}");
    host.ensure_run_directory_empty()
}

#[test]
fn privileged_an_interrupted_recording_leaves_nothing() -> Result<()> {
    let host = Host::new("record-interrupted")?;
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 130)] {
        let mut child = host.serving()?;
        process::signal(&child, signal)?;
        process::wait_until("the end of the recording", PATIENCE, || {
            matches!(child.try_wait(), Ok(Some(_)))
        })?;
        assert_eq!(child.wait()?.code(), Some(code));
        host.ensure_nothing_left(child.id())?;
        host.ensure_run_directory_empty()?;
        fs::remove_file(host.scratch.join("log"))?;
    }
    Ok(())
}

#[test]
fn privileged_a_killed_recording_leaves_no_container() -> Result<()> {
    let host = Host::new("record-killed")?;
    let mut child = host.serving()?;
    child.kill().context("killing the recording")?;
    child.wait()?;
    host.ensure_nothing_left(child.id())?;
    process::run(&mut host.record(&host.original, &["--", "cat /data/wanted > /dev/null"])?)?;
    host.ensure_run_directory_empty()
}
