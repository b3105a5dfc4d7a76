//! A host under test: registry, containerd, `sluice snapshotter` and who keeps it, and containers that work.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_tests::containerd::{Containerd, Proxy, Release};
use sluice_tests::document::Layout;
use sluice_tests::registry::CountingRegistry;
use sluice_tests::scratch::Scratch;
use sluice_tests::systemd::UserManager;
use sluice_tests::workload::{self, OUT, PROGRAM, Read, STOP};
use sluice_tests::{mountinfo, prerequisites, process, sluice};

/// The snapshotter's name in containerd's configuration.
const NAME: &str = "sluice";

/// How long a start, an end or a read may take before it counts as a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A cache for less than the image has, so that bytes are fetched until the end.
pub(crate) const SMALL_CACHE: &str = "24000000";

/// A cache for all that the image has.
pub(crate) const LARGE_CACHE: &str = "1000000000";

/// The unit's name for systemd, and what is installed.
const UNIT: &str = "sluice-snapshotter.service";
const UNIT_TEXT: &str = include_str!("../../../cli/src/service/sluice-snapshotter.service");

/// runc's state of the containers of containerd's default namespace, for every containerd on the host.
const RUNC: &str = "/run/containerd/runc/default";

/// From the moment when the process is told or made to end until there is another, in microseconds since 1970.
pub(crate) type Gap = (u64, u64);

/// Who keeps the session and starts the service again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    Supervisor,
    Systemd,
}

pub(crate) struct Host {
    keeper: Keeper,
    cache_quota: &'static str,
    supervisor: Option<Child>,
    systemd: Option<UserManager>,
    pub(crate) containerd: Option<Containerd>,
    pub(crate) registry: CountingRegistry,
    reference: String,
    pub(crate) directory: PathBuf,
    pub(crate) containers: Vec<String>,
    // Removed last.
    _source: Scratch,
    _scratch: Scratch,
}

/// Microseconds since 1970.
pub(crate) fn now() -> Result<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_micros())?)
}

/// Pseudo-random numbers below a bound.
pub(crate) fn dice(seed: &mut u64, bound: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*seed >> 33) % bound
}

impl Host {
    /// Everything runs, and the image is pulled.
    pub(crate) fn start(keeper: Keeper, release: Release, cache_quota: &'static str) -> Result<Self> {
        prerequisites::root()?;
        let source = Scratch::new("takeover-source")?;
        let image = workload::image()?.write(&source.join("source"), "load")?;
        let converted = source.join("converted");
        sluice::convert(&image.reference(), &converted, "c", &[])?;
        let registry = CountingRegistry::serve(&Layout::open(&converted))?;
        let scratch = Scratch::new("takeover")?;
        scratch.directory("out")?;
        let mut host = Self {
            keeper,
            cache_quota,
            supervisor: None,
            systemd: None,
            containerd: None,
            reference: format!("{}/test:c", registry.address()),
            registry,
            directory: scratch.to_path_buf(),
            containers: Vec::new(),
            _source: source,
            _scratch: scratch,
        };
        host.install()?;
        host.start_service()?;
        let socket = host.socket();
        let proxy = Proxy {
            name: NAME,
            socket: &socket,
        };
        host.containerd = Some(Containerd::start_with(release, &[proxy])?);
        host.pull()?;
        Ok(host)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("p.sock")
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.directory.join("out")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("service.log")).unwrap_or_default()
    }

    /// Puts another copy of the program in the place from which the service is started.
    pub(crate) fn install(&self) -> Result<()> {
        let new = self.directory.join("new");
        fs::copy(sluice::binary()?, &new)?;
        Ok(fs::rename(new, self.directory.join("sluice"))?)
    }

    /// The command line of the service.
    fn service(&self) -> Vec<String> {
        let place = |name: &str| self.directory.join(name).display().to_string();
        let mut words = vec![place("sluice"), "snapshotter".to_owned()];
        for (option, name) in [("--root", "root"), ("--socket", "p.sock"), ("--cache", "cache")] {
            words.extend([option.to_owned(), place(name)]);
        }
        words.extend(["--front", "erofs", "--cache-quota", self.cache_quota].map(str::to_owned));
        words
    }

    pub(crate) fn start_service(&mut self) -> Result<()> {
        match self.keeper {
            Keeper::Supervisor => {
                let mut command = Command::new(self.directory.join("sluice"));
                command
                    .arg("supervise")
                    .arg("--run-dir")
                    .arg(self.directory.join("run"));
                command.arg("--").args(self.service());
                command.env(process::MARK, &self.directory);
                let log = self.directory.join("service.log");
                self.supervisor = Some(process::spawn_logged(&mut command, &log)?);
            }
            Keeper::Systemd => {
                if self.systemd.is_none() {
                    let directory = self.directory.join("systemd");
                    self.systemd = Some(UserManager::start(&directory, UNIT, &self.unit())?);
                }
                self.systemd()?.systemctl(&["start", UNIT])?;
            }
        }
        self.wait_listening()
    }

    /// The unit that is installed, with the places of this test.
    fn unit(&self) -> String {
        let (log, directory) = (self.directory.join("service.log"), self.directory.display());
        let line = |line: &str| match line {
            "[Service]" => format!(
                "{line}\nEnvironment={}={directory}\nStandardError=append:{}\n",
                process::MARK,
                log.display()
            ),
            line if line.starts_with("ExecStart=") => format!("ExecStart={}\n", self.service().join(" ")),
            line => format!("{line}\n"),
        };
        UNIT_TEXT.lines().map(line).collect()
    }

    fn systemd(&self) -> Result<&UserManager> {
        self.systemd.as_ref().context("no systemd runs")
    }

    pub(crate) fn wait_listening(&self) -> Result<()> {
        process::wait_until("the snapshotter to listen", PATIENCE, || {
            UnixStream::connect(self.socket()).is_ok()
        })
        .with_context(|| self.log())
    }

    fn supervisor(&self) -> Result<&Child> {
        self.supervisor.as_ref().context("no supervisor runs")
    }

    /// The process that serves now, or is about to.
    fn server(&self) -> Result<Option<Pid>> {
        if self.keeper == Keeper::Systemd {
            let pid = self.systemd()?.property(UNIT, "MainPID")?.parse()?;
            return Ok((pid != 0).then(|| Pid::from_raw(pid)));
        }
        let pid = self.supervisor()?.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let first = children.split_ascii_whitespace().next();
        Ok(first.and_then(|pid| pid.parse().ok()).map(Pid::from_raw))
    }

    /// Waits for a process, another one than `old`.
    pub(crate) fn wait_server(&self, old: Option<Pid>) -> Result<Pid> {
        let mut found = None;
        process::wait_until("the start of the snapshotter", PATIENCE, || {
            found = self.server().ok().flatten().filter(|pid| Some(*pid) != old);
            found.is_some()
        })
        .with_context(|| self.log())?;
        found.context("no process")
    }

    fn containerd(&self) -> Result<&Containerd> {
        self.containerd.as_ref().context("no containerd runs")
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let output = process::run(&mut self.containerd()?.ctr(arguments.iter().copied()));
        output.with_context(|| self.log())
    }

    /// containerd waits a moment before it connects to a snapshotter again.
    pub(crate) fn wait_connected(&self) -> Result<()> {
        process::wait_until("containerd to find the snapshotter", PATIENCE, || {
            self.ctr(&["snapshots", "--snapshotter", NAME, "ls"]).is_ok()
        })
    }

    fn pull(&self) -> Result<()> {
        let socket = self.containerd()?.socket();
        let socket = socket.to_str().context("the socket's path is not UTF-8")?;
        let pulled = sluice::json(["pull", &self.reference, "--containerd-address", socket])?;
        ensure!(pulled["served"] == pulled["layers"], "{pulled}");
        Ok(())
    }

    /// Starts a container that works until it is told to stop.
    pub(crate) fn work(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let id = format!("sluice-takeover-{}-{name}", std::process::id());
        let mount = self.out_mount();
        let start = [
            "run",
            "-d",
            "--mount",
            &mount,
            "--snapshotter",
            NAME,
            &self.reference,
            &id,
            PROGRAM,
        ];
        self.ctr(&[&start[..], arguments].concat())?;
        self.containers.push(id);
        Ok(())
    }

    /// Has a container read the whole image.
    pub(crate) fn read_whole(&self) -> Result<()> {
        let id = format!("sluice-takeover-{}-whole", std::process::id());
        let mount = self.out_mount();
        let start = [
            "run",
            "--rm",
            "--mount",
            &mount,
            "--snapshotter",
            NAME,
            &self.reference,
            &id,
        ];
        self.ctr(&[&start[..], &[PROGRAM, "whole", "whole"]].concat())?;
        Ok(())
    }

    /// Where the containers find the directory in which they tell what they did.
    fn out_mount(&self) -> String {
        format!(
            "type=bind,src={},dst={OUT},options=rbind:rw",
            self.out().display()
        )
    }

    /// Two readers and a database.
    pub(crate) fn work_all(&mut self) -> Result<()> {
        self.work("reader-1", &["read", "reader-1", "1"])?;
        self.work("reader-2", &["read", "reader-2", "2"])?;
        self.work("database", &["write", "database"])?;
        process::wait_until("work of the containers", PATIENCE, || {
            self.out().join("database.acknowledged").exists()
                && self.reads().is_ok_and(|reads| reads.len() > 2)
        })
        .with_context(|| self.log())
    }

    pub(crate) fn reads(&self) -> Result<Vec<Read>> {
        let mut reads = workload::reads(&self.out(), "reader-1")?;
        reads.extend(workload::reads(&self.out(), "reader-2")?);
        Ok(reads)
    }

    pub(crate) fn acknowledged(&self) -> Result<u64> {
        let text = fs::read_to_string(self.out().join("database.acknowledged"))?;
        Ok(text.trim().parse()?)
    }

    /// No container has failed, and all run.
    pub(crate) fn ensure_at_work(&self) -> Result<()> {
        for entry in fs::read_dir(self.out())? {
            let path = entry?.path();
            let failed = path.extension().is_some_and(|extension| extension == "failed");
            ensure!(
                !failed,
                "{}: {}\n{}",
                path.display(),
                fs::read_to_string(&path)?,
                self.log()
            );
        }
        let tasks = self.ctr(&["tasks", "ls"])?;
        for id in &self.containers {
            let runs = |line: &str| line.contains(id.as_str()) && line.contains("RUNNING");
            ensure!(tasks.lines().any(runs), "{id} is lost:\n{tasks}\n{}", self.log());
        }
        Ok(())
    }

    /// Every container goes on: it does something after now.
    pub(crate) fn ensure_going_on(&self) -> Result<()> {
        let (since, records) = (now()?, self.acknowledged()?);
        for name in ["reader-1", "reader-2"] {
            process::wait_until("another read", PATIENCE, || {
                workload::reads(&self.out(), name)
                    .is_ok_and(|reads| reads.last().is_some_and(|read| read.began > since))
            })
            .with_context(|| format!("{name}\n{}", self.log()))?;
        }
        process::wait_until("another record of the database", PATIENCE, || {
            self.acknowledged()
                .is_ok_and(|acknowledged| acknowledged > records)
        })
        .with_context(|| self.log())?;
        self.ensure_at_work()
    }

    /// Has the containers verify everything and end, and removes them.
    pub(crate) fn finish(&mut self) -> Result<()> {
        File::create(self.out().join(STOP))?;
        for name in ["reader-1", "reader-2", "database"] {
            let done = self.out().join(name).with_extension("done");
            process::wait_until("the end of a container", PATIENCE, || {
                done.exists() || done.with_extension("failed").exists()
            })
            .with_context(|| format!("{name}\n{}", self.log()))?;
            ensure!(
                done.exists(),
                "{name}: {}\n{}",
                fs::read_to_string(done.with_extension("failed"))?,
                self.log()
            );
        }
        self.remove_containers()
    }

    pub(crate) fn remove_containers(&mut self) -> Result<()> {
        for id in std::mem::take(&mut self.containers) {
            self.ctr(&["tasks", "rm", "--force", &id])?;
            self.ctr(&["containers", "rm", &id])?;
        }
        Ok(())
    }

    /// Removes the image and ends the service; then nothing may be left.
    pub(crate) fn end(mut self) -> Result<()> {
        self.wait_connected()?;
        self.ctr(&["images", "rm", "--sync", &self.reference])?;
        let snapshots = self.directory.join("root/snapshots");
        let mounted = self.directory.join("root/mounted");
        process::wait_until("removal of everything", PATIENCE, || {
            let mounts = mountinfo::mounts_under(&self.directory);
            // A record goes when the kernel has ended its file system, which may be well after the mount is gone.
            fs::read_dir(&snapshots).map_or(0, Iterator::count) == 0
                && mounts.is_ok_and(|left| left.is_empty())
                && names(&mounted).is_ok_and(|records| records == ["lock"])
        })
        .with_context(|| format!("{:?}\n{}", mountinfo::mounts_under(&self.directory), self.log()))?;
        self.stop_service()?;
        let left = process::marked(self.directory.as_os_str());
        ensure!(left.is_empty(), "processes are left: {left:?}");
        mountinfo::assert_nothing_under(&self.directory)?;
        let records = names(&mounted)?;
        ensure!(records == ["lock"], "records are left: {records:?}");
        if self.keeper == Keeper::Supervisor {
            let left = names(&self.directory.join("run"))?;
            ensure!(left.is_empty(), "left in the run directory: {left:?}");
        }
        Ok(())
    }

    pub(crate) fn stop_service(&mut self) -> Result<()> {
        if self.keeper == Keeper::Systemd {
            self.systemd()?.systemctl(&["stop", UNIT])?;
            let result = self.systemd()?.property(UNIT, "Result")?;
            ensure!(
                result == "success",
                "the service failed: {result}\n{}",
                self.log()
            );
            return Ok(());
        }
        let mut supervisor = self.supervisor.take().context("no supervisor runs")?;
        process::signal(&supervisor, Signal::SIGTERM)?;
        process::wait_until("the end of the service", PATIENCE, || {
            matches!(supervisor.try_wait(), Ok(Some(_)))
        })?;
        ensure!(supervisor.wait()?.success(), "the service failed: {}", self.log());
        Ok(())
    }

    /// Has the supervisor replace the process by one of the program that is there now.
    pub(crate) fn upgrade(&self) -> Result<Gap> {
        let (old, began) = (self.server()?, now()?);
        match self.keeper {
            Keeper::Supervisor => process::signal(self.supervisor()?, Signal::SIGHUP)?,
            Keeper::Systemd => drop(self.systemd()?.systemctl(&["restart", UNIT])?),
        }
        self.wait_server(old)?;
        let gap = (began, now()?);
        self.wait_listening()?;
        Ok(gap)
    }

    /// Everything that the end of a host ends: processes, mounts, and what is not on disk.
    pub(crate) fn reboot(&mut self) -> Result<()> {
        for id in &self.containers {
            let shim = format!("-id {id} ");
            for pid in processes(|command| command.contains("containerd-shim") && command.contains(&shim))? {
                kill(pid, Signal::SIGKILL)?;
            }
            process::run(Command::new("runc").args(["--root", RUNC, "delete", "--force", id]))?;
        }
        let server = self.server()?;
        if let Some(mut supervisor) = self.supervisor.take() {
            supervisor.kill()?;
            supervisor.wait()?;
        }
        if let Some(server) = server {
            kill(server, Signal::SIGKILL)?;
        }
        process::wait_until("the end of all processes", PATIENCE, || {
            process::marked(self.directory.as_os_str()).is_empty()
        })?;
        mountinfo::detach_all_under(&self.directory);
        // It would be on a tmpfs.
        Ok(fs::remove_dir_all(self.directory.join("run"))?)
    }

    /// How often a process went on with the session of its predecessor, and how often one made a session.
    pub(crate) fn sessions(&self) -> (usize, usize) {
        let log = self.log();
        let count = |origin: &str| {
            let is_it = |line: &&str| line.contains("session of the layers is open") && line.contains(origin);
            log.lines().filter(is_it).count()
        };
        (count("Adopted"), count("Created"))
    }

    /// Half of the gaps held no read up for longer than this: one that was under way, or began in the gap.
    pub(crate) fn median_pause(&self, gaps: &[Gap]) -> Result<Duration> {
        let reads = self.reads()?;
        let held_up = |(begin, end): &Gap| {
            let meanwhile = reads
                .iter()
                .filter(|read| read.began <= *end && *begin < read.ended);
            let longest = meanwhile.map(|read| read.ended - read.began.max(*begin)).max();
            longest.unwrap_or_default()
        };
        let mut pauses: Vec<u64> = gaps.iter().map(held_up).collect();
        pauses.sort_unstable();
        let median = pauses.get(pauses.len() / 2).copied().unwrap_or_default();
        Ok(Duration::from_micros(median))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for id in std::mem::take(&mut self.containers) {
            let _ = self.ctr(&["tasks", "rm", "--force", &id]);
        }
        if let Some(supervisor) = &mut self.supervisor {
            process::end(supervisor, PATIENCE);
        }
    }
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Processes by their command lines, the arguments of which end with blanks.
fn processes(is_it: impl Fn(&str) -> bool) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that is gone has none.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if is_it(&String::from_utf8_lossy(&command).replace('\0', " ")) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}
