//! Containers of a real containerd, started with `ctr` and timed.

use std::path::Path;

use anyhow::Context as _;
use sluice_tests::containerd::Containerd;
use sluice_tests::process;

use super::command::{drop_caches_but, sluice};
use super::container::Running;

/// Programs that run for every container, beside the daemon.
pub const PROGRAMS: [&str; 3] = ["ctr", "containerd-shim-runc-v2", "runc"];

/// Drops the page cache, but for what runs for every container.
///
/// # Errors
/// When the kernel refuses, or a program is missing.
pub fn drop_page_cache() -> anyhow::Result<()> {
    let sluice = sluice()?;
    let programs: Vec<&Path> = PROGRAMS.iter().map(Path::new).chain([sluice.as_path()]).collect();
    drop_caches_but(&programs)
}

/// A container whose program is ready. Dropping it removes it.
#[derive(Debug)]
pub struct Started<'a> {
    containerd: &'a Containerd,
    id: String,
    ctr: Option<Running>,
    seconds: f64,
}

impl<'a> Started<'a> {
    /// Starts the entry point of an image that was pulled, and waits until it prints a line with `ready` or ends.
    ///
    /// # Errors
    /// When the container cannot be made, or ends with an error before it is ready.
    pub fn new(
        containerd: &'a Containerd,
        snapshotter: &str,
        reference: &str,
        ready: &str,
    ) -> anyhow::Result<Self> {
        // runc keeps the containers of every containerd on a host in one place.
        let id = format!("sluice-bench-{}", std::process::id());
        let arguments = ["run", "--rm", "--snapshotter", snapshotter, reference, &id];
        let ctr = Running::start(&mut containerd.ctr(arguments))?;
        let mut started = Self {
            containerd,
            id,
            ctr: Some(ctr),
            seconds: 0.0,
        };
        let ctr = started.ctr.as_mut().context("it was started just now")?;
        started.seconds = ctr.until_ready(ready)?;
        Ok(started)
    }

    /// Seconds from the start of `ctr` until the program was ready.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Kills the program and waits until the container is removed.
    ///
    /// # Errors
    /// When what it prints cannot be read.
    pub fn end(mut self) -> anyhow::Result<()> {
        let kill = ["tasks", "kill", "--signal", "SIGKILL", &self.id];
        // It fails when the program has ended by itself.
        process::output(&mut self.containerd.ctr(kill))?;
        self.ctr.take().map_or(Ok(()), Running::until_end)
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if self.ctr.take().is_none() {
            return;
        }
        // It failed, or was not ended in the proper way: what is there of it is not known.
        for remove in [&["tasks", "rm", "--force"][..], &["containers", "rm"]] {
            let arguments = remove.iter().copied().chain([self.id.as_str()]);
            let _ = process::output(&mut self.containerd.ctr(arguments));
        }
    }
}

/// Does ours and the peer's part of each round. Who begins changes from round to round: what runs first finds another machine than what runs last.
///
/// # Errors
/// The first failure of either.
pub fn in_turn<B>(
    bench: &mut B,
    rounds: usize,
    ours: impl Fn(&mut B) -> anyhow::Result<()>,
    peer: impl Fn(&mut B) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for round in 0..rounds {
        if round % 2 == 0 {
            ours(bench)?;
            peer(bench)?;
        } else {
            peer(bench)?;
            ours(bench)?;
        }
    }
    Ok(())
}
