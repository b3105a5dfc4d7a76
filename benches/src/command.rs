//! Commands and what they cost.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// What a finished command cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Wall-clock seconds.
    pub wall: f64,
    /// User and system seconds of the command and its children.
    pub cpu: f64,
    /// Largest resident set of the command itself in bytes, without its children.
    pub peak_rss: u64,
}

impl Usage {
    /// Share of all cores that was busy.
    pub fn busy(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.cpu / self.wall / cores as f64
    }
}

/// How often the resident set is read. The kernel keeps the high-water mark, so only what grows in the last interval can be missed.
const RSS_INTERVAL: Duration = Duration::from_millis(20);

/// Runs a command to its end, with its standard output returned.
///
/// # Errors
/// When it cannot be started or ends unsuccessfully.
pub fn run(command: &mut Command) -> anyhow::Result<(String, Usage)> {
    let name = format!("{command:?}");
    let output = tempfile::tempfile()?;
    let mut reader = output.try_clone()?;
    let (before, start) = (children_cpu()?, Instant::now());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output)
        .spawn()
        .with_context(|| name.clone())?;
    let (success, peak_rss) = wait(&mut child)?;
    let usage = Usage {
        wall: start.elapsed().as_secs_f64(),
        cpu: children_cpu()? - before,
        peak_rss,
    };
    ensure!(success, "{name} ended unsuccessfully");
    let mut text = String::new();
    std::io::Seek::rewind(&mut reader)?;
    std::io::Read::read_to_string(&mut reader, &mut text)?;
    Ok((text, usage))
}

fn wait(child: &mut Child) -> anyhow::Result<(bool, u64)> {
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Ok(status) = std::fs::read_to_string(&status_file) {
            peak = peak.max(high_water_mark(&status));
        }
        if let Some(status) = child.try_wait()? {
            return Ok((status.success(), peak));
        }
        std::thread::sleep(RSS_INTERVAL);
    }
}

pub(crate) fn high_water_mark(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn children_cpu() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The `sluice` binary that was built beside this program.
///
/// # Errors
/// When it is not there.
pub fn sluice() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here.parent().map(|dir| dir.join("sluice")).unwrap_or_default();
    ensure!(
        path.exists(),
        "{} is missing: build it with `cargo build --release -p sluice`",
        path.display()
    );
    Ok(path)
}

/// Whether a command is on the path.
pub fn exists(name: &str) -> bool {
    find(Path::new(name)).is_some()
}

/// The file of a command, which may be given with its directory.
pub fn find(name: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Drops clean page cache, directory and inode caches; needs root.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_caches() -> anyhow::Result<()> {
    nix::unistd::sync();
    std::fs::write(Path::new("/proc/sys/vm/drop_caches"), "3").context("dropping caches needs root")
}

/// [`drop_caches`], but with these programs in the page cache afterwards, since hosts that run containers have them there.
///
/// # Errors
/// When the kernel refuses, or a program is not on the path.
pub fn drop_caches_but(programs: &[&Path]) -> anyhow::Result<()> {
    drop_caches()?;
    for program in programs {
        let path = find(program).with_context(|| format!("{} is not on the path", program.display()))?;
        std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())?;
    }
    Ok(())
}
