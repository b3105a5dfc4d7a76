//! What the daemons of a host cost: processor time and memory of a process and what it has waited for.

use std::fs;

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};

/// Fields of `/proc/PID/stat` after the name of the program, of which the first is the third of proc(5): user and system time of the
/// process, and of its children that have ended.
const TIMES: std::ops::Range<usize> = 11..15;

/// Processor seconds of a process and of its children that have ended.
///
/// # Errors
/// When there is no such process.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("of process {pid}"))?;
    let ticks = ticks(&text).with_context(|| format!("/proc/{pid}/stat has another form: {text}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the length of a clock tick is not known")?;
    Ok(ticks as f64 / per_second as f64)
}

fn ticks(stat: &str) -> Option<u64> {
    // The name may hold anything, spaces and parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let times = fields.get(TIMES)?.iter();
    times.map(|time| time.parse::<u64>().ok()).sum()
}

/// The largest resident memory that a process has had, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn peak_memory(pid: u32) -> anyhow::Result<u64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("of process {pid}"))?;
    Ok(super::command::high_water_mark(&text))
}

#[cfg(test)]
mod tests {
    use super::{cpu_seconds, peak_memory, ticks};

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "17 (a ) b) S 1 1 1 0 -1 4194560 9 8 7 6 100 20 3 4 20 0 1 0 55";
        assert_eq!(ticks(stat), Some(127));
        assert_eq!(ticks("17 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_memory() -> anyhow::Result<()> {
        assert!(peak_memory(std::process::id())? > 100_000);
        assert!(cpu_seconds(std::process::id())? >= 0.0);
        Ok(())
    }
}
