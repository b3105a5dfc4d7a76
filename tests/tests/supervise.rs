//! Promise: readers do not notice that the process which serves them was killed or upgraded, and when everything is
//! stopped nothing is left.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_tests::scratch::{self, Scratch};
use sluice_tests::takeover::{
    HELD_FILE, HOLD_FILE, LOG_FILE, PATTERN_LEN, SLOW_LEN, TARGET, pattern, server,
};
use sluice_tests::{mountinfo, prerequisites, process, sluice};

/// How long a start, an end or a read may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the server is killed.
const KILLS: usize = 40;

/// How often the server is upgraded.
const UPGRADES: usize = 6;

/// Bytes that a reader compares at once.
const READ_LEN: u64 = 96 << 10;

/// Numbers without a pattern.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

/// A supervised server with its image mounted.
struct Supervised {
    scratch: Scratch,
    supervisor: Child,
}

impl Supervised {
    fn start(name: &str) -> Result<Self> {
        let supervised = Self::spawn(Scratch::new(name)?)?;
        process::wait_until("the mount of the image", PATIENCE, || {
            supervised.target().join("slow").exists()
        })?;
        Ok(supervised)
    }

    /// Starts the supervisor, and does not wait for the mount.
    fn spawn(scratch: Scratch) -> Result<Self> {
        prerequisites::root()?;
        prerequisites::fuse()?;
        scratch.directory(TARGET)?;
        let server = scratch::profile_directory()?.join("takeover-server");
        ensure!(
            server.is_file(),
            "{} is missing. Build it first: cargo build -p sluice-tests",
            server.display()
        );
        let mut command = Command::new(sluice::binary()?);
        command.arg("supervise").arg("--run-dir").arg(scratch.join("run"));
        command.arg("--").arg(server).arg(&*scratch);
        command.env(process::MARK, &*scratch);
        let supervisor = process::spawn_logged(&mut command, &scratch.join("log"))?;
        Ok(Self { scratch, supervisor })
    }

    fn target(&self) -> std::path::PathBuf {
        self.scratch.join(TARGET)
    }

    fn server(&self) -> Result<Pid> {
        server(&self.scratch).context("no server has started")
    }

    /// Waits for another server than `old`.
    fn successor(&self, old: Pid) -> Result<()> {
        process::wait_until("the start of a successor", PATIENCE, || {
            server(&self.scratch).is_some_and(|pid| pid != old)
        })
    }

    fn starts(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.scratch.join(LOG_FILE))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Stops everything and checks that nothing is left.
    fn end(mut self) -> Result<()> {
        umount2(&self.target(), MntFlags::empty()).context("unmounting the image")?;
        process::signal(&self.supervisor, Signal::SIGTERM)?;
        let supervisor = &mut self.supervisor;
        process::wait_until("the end of the supervisor", PATIENCE, || {
            matches!(supervisor.try_wait(), Ok(Some(_)))
        })?;
        let log = fs::read_to_string(self.scratch.join("log"))?;
        ensure!(self.supervisor.wait()?.success(), "the supervisor failed: {log}");
        let left = process::marked(self.scratch.as_os_str());
        ensure!(left.is_empty(), "processes are left: {left:?}");
        let mounts = mountinfo::mounts()?;
        let left: Vec<_> = mounts
            .iter()
            .filter(|mount| mount.mountpoint.starts_with(&*self.scratch))
            .collect();
        ensure!(left.is_empty(), "mounts are left: {left:?}");
        let left: Vec<_> = fs::read_dir(self.scratch.join("run"))?.collect();
        ensure!(left.is_empty(), "left in the run directory: {left:?}");
        Ok(())
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        process::end(&mut self.supervisor, Duration::from_secs(5));
    }
}

/// Forgets the pages of a file, so that it is asked for again.
fn drop_pages(file: &File) -> Result<()> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("dropping pages")
}

/// Reads and compares random ranges until told to end; notes when each read began and ended.
fn read_and_compare(
    target: &Path,
    seed: u64,
    end: &AtomicBool,
    reads: &Mutex<Vec<(Instant, Instant)>>,
) -> Result<()> {
    let file = File::open(target.join("pattern"))?;
    let mut dice = Dice(seed);
    while !end.load(Ordering::Relaxed) {
        let at = dice.below(PATTERN_LEN - READ_LEN);
        let mut bytes = vec![0; READ_LEN as usize];
        let began = Instant::now();
        file.read_exact_at(&mut bytes, at)
            .with_context(|| format!("reading at {at}"))?;
        let ended = Instant::now();
        ensure!(bytes == pattern(at..at + READ_LEN), "wrong bytes at {at}");
        reads
            .lock()
            .map_err(|_| anyhow::anyhow!("a reader panicked"))?
            .push((began, ended));
        drop_pages(&file)?;
    }
    Ok(())
}

/// Executes a program of the image, page faults and all, until told to end.
fn execute(target: &Path, end: &AtomicBool) -> Result<()> {
    while !end.load(Ordering::Relaxed) {
        let tool = target.join("tool");
        let status = Command::new(&tool)
            .status()
            .context("executing a program of the image")?;
        ensure!(status.success(), "a program of the image ended with {status}");
        drop_pages(&File::open(&tool)?)?;
    }
    Ok(())
}

/// Runs `disturb` while readers read; gives its result and when reads began and ended.
fn while_reading<T>(
    supervised: &Supervised,
    disturb: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<(Instant, Instant)>)> {
    let (end, reads) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let target = supervised.target();
    let outcome = thread::scope(|scope| {
        let (end, reads, target) = (&end, &reads, &target);
        let mut readers: Vec<_> = (1..=2)
            .map(|seed| scope.spawn(move || read_and_compare(target, seed, end, reads)))
            .collect();
        readers.push(scope.spawn(move || execute(target, end)));
        let disturbed = disturb();
        end.store(true, Ordering::Relaxed);
        for reader in readers {
            reader
                .join()
                .map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        }
        disturbed
    })?;
    let reads = reads
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a reader panicked"))?;
    Ok((outcome, reads))
}

/// Half of the disturbances held no reader up for longer than this.
fn median_pause(disturbed: &[Instant], reads: &[(Instant, Instant)]) -> Duration {
    let held_up = |at: &Instant| {
        let meanwhile = reads.iter().filter(|(began, ended)| began <= at && at < ended);
        let longest = meanwhile.map(|(_, ended)| *ended - *at).max();
        longest.unwrap_or_default()
    };
    let mut pauses: Vec<_> = disturbed.iter().map(held_up).collect();
    pauses.sort();
    pauses.get(pauses.len() / 2).copied().unwrap_or_default()
}

/// Reads the slow file while `disturb` runs. The first byte takes longer than the server lives.
fn slow_reader(supervised: &Supervised, at: u64, disturb: impl FnOnce() -> Result<()>) -> Result<()> {
    let file = File::open(supervised.target().join("slow"))?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut bytes = vec![0; 4096];
            file.read_exact_at(&mut bytes, at)
                .map(|()| bytes)
                .context("reading the slow file")
        });
        thread::sleep(Duration::from_millis(500));
        ensure!(!reader.is_finished(), "the slow file is not slow");
        disturb()?;
        process::wait_until("the answer of the successor", PATIENCE, || reader.is_finished())?;
        let bytes = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        ensure!(bytes == pattern(at..at + 4096), "wrong bytes of the slow file");
        Ok(())
    })
}

/// Every start but the first went on with the session of its predecessor.
fn ensure_adopted(starts: &[String], least: usize) -> Result<()> {
    let adopted = starts.iter().skip(1).filter(|start| *start == "adopted").count();
    ensure!(
        starts.first().is_some_and(|start| start == "created"),
        "{starts:?}"
    );
    ensure!(adopted + 1 == starts.len(), "a session was lost: {starts:?}");
    ensure!(adopted >= least, "only {adopted} of {least} were adopted");
    Ok(())
}

#[test]
fn privileged_readers_do_not_notice_kills() -> Result<()> {
    let supervised = Supervised::start("kills")?;
    let (kills, reads) = while_reading(&supervised, || {
        let (mut dice, mut kills) = (Dice(7), Vec::new());
        for _ in 0..KILLS {
            thread::sleep(Duration::from_millis(dice.below(500)));
            let pid = supervised.server()?;
            kills.push(Instant::now());
            kill(pid, Signal::SIGKILL).context("killing the server")?;
            supervised.successor(pid)?;
        }
        // Nobody may be waiting for ever after the last one.
        thread::sleep(Duration::from_secs(1));
        Ok(kills)
    })?;
    println!(
        "{} reads during {KILLS} kills, median pause {:?}",
        reads.len(),
        median_pause(&kills, &reads)
    );
    ensure_adopted(&supervised.starts()?, KILLS / 2)?;
    slow_reader(&supervised, 0, || {
        Ok(kill(supervised.server()?, Signal::SIGKILL)?)
    })?;
    supervised.end()
}

#[test]
fn privileged_a_server_that_is_killed_while_it_mounts_has_a_successor() -> Result<()> {
    let scratch = Scratch::new("killed-mounting")?;
    let hold = scratch.join(HOLD_FILE);
    fs::write(&hold, "")?;
    let supervised = Supervised::spawn(scratch)?;
    // The kernel has asked for a layer, and nobody is going to answer.
    process::wait_until("a question of the kernel", PATIENCE, || {
        supervised.scratch.join(HELD_FILE).exists()
    })?;
    fs::remove_file(&hold)?;
    let pid = supervised.server()?;
    kill(pid, Signal::SIGKILL).context("killing the server")?;
    supervised.successor(pid)?;
    process::wait_until("the mount of the image", PATIENCE, || {
        supervised.target().join("pattern").exists()
    })?;
    let ((), reads) = while_reading(&supervised, || {
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    ensure!(!reads.is_empty(), "nothing was read");
    ensure_adopted(&supervised.starts()?, 1)?;
    supervised.end()
}

#[test]
fn privileged_readers_do_not_notice_upgrades() -> Result<()> {
    let supervised = Supervised::start("upgrades")?;
    let (upgrades, reads) = while_reading(&supervised, || {
        let mut upgrades = Vec::new();
        for at in 0..UPGRADES {
            let pid = supervised.server()?;
            upgrades.push(Instant::now());
            let signal = [Signal::SIGHUP, Signal::SIGUSR2][at % 2];
            process::signal(&supervised.supervisor, signal)?;
            supervised.successor(pid)?;
            thread::sleep(Duration::from_millis(300));
        }
        Ok(upgrades)
    })?;
    println!(
        "{} reads during {UPGRADES} upgrades, median pause {:?}",
        reads.len(),
        median_pause(&upgrades, &reads)
    );
    ensure_adopted(&supervised.starts()?, UPGRADES)?;
    slow_reader(&supervised, SLOW_LEN / 2, || {
        process::signal(&supervised.supervisor, Signal::SIGHUP)
    })?;
    supervised.end()
}

#[test]
fn a_command_that_ends_by_itself_ends_the_supervisor() -> Result<()> {
    let scratch = Scratch::new("supervise-end")?;
    let run_dir = scratch.join("run");
    let mut command = Command::new(sluice::binary()?);
    command.arg("supervise").arg("--run-dir").arg(&run_dir);
    process::run(command.args(["--", "/bin/true"]))?;
    ensure!(fs::read_dir(&run_dir)?.count() == 0, "the socket was left behind");
    Ok(())
}

#[test]
fn a_silent_command_is_aborted_and_started_again() -> Result<()> {
    let scratch = Scratch::new("supervise-watchdog")?;
    let starts = scratch.join("starts");
    let script = format!(
        "echo start >> {0}; [ $(wc -l < {0}) -ge 2 ] && exit 0; [ -n \"$WATCHDOG_USEC\" ] && exec sleep 600",
        starts.display()
    );
    let mut command = Command::new(sluice::binary()?);
    command.arg("supervise").arg("--run-dir").arg(scratch.join("run"));
    process::run(command.args(["--watchdog", "1", "--", "/bin/sh", "-c", &script]))?;
    ensure!(fs::read_to_string(&starts)?.lines().count() == 2, "{starts:?}");
    Ok(())
}
