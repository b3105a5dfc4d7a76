//! What `sluice mount --stats FILE` says of a mount.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// The parts of the file that benchmarks look at.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Stats {
    /// Ranges asked for.
    pub requests: u64,
    /// Stored bytes fetched as chunks.
    pub stored_bytes: u64,
    /// Plain bytes that they became.
    pub plain_bytes: u64,
    waits: Vec<Wait>,
    touches: Vec<Touch>,
}

#[derive(Clone, Debug, Deserialize)]
struct Wait {
    wait_ms: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Touch {
    at_ms: f64,
    stored_len: u64,
}

impl Stats {
    /// Reads the file of a mount that has ended.
    ///
    /// # Errors
    /// When it is not there or has another form.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("in {}", file.display()))
    }

    /// Reads that waited for the network.
    pub fn waits(&self) -> usize {
        self.waits.len()
    }

    /// Seconds that readers waited, added up over readers.
    pub fn wait_seconds(&self) -> f64 {
        // Not `sum`, which is -0 for no wait at all.
        self.waits.iter().fold(0.0, |sum, wait| sum + wait.wait_ms) / 1e3
    }

    /// Compressed working set: stored bytes of all chunks that readers touched.
    pub fn working_set(&self) -> u64 {
        self.touches.iter().map(|touch| touch.stored_len).sum()
    }
}

impl Stats {
    /// Least seconds of a start that runs for `run` seconds with everything in memory, makes these demands on its way, and goes on after each when all bytes
    /// demanded so far have come over a link of `rate` bytes per second. The mount took `took` seconds from the first demand to the end.
    pub fn seconds_in_order(&self, took: f64, run: f64, rate: f64) -> f64 {
        let first = self.touches.first().map_or(0.0, |touch| touch.at_ms);
        let mut bytes = 0.0;
        let ends = self.touches.iter().map(|touch| {
            bytes += touch.stored_len as f64;
            let passed = ((touch.at_ms - first) / 1e3 / took).clamp(0.0, 1.0);
            bytes / rate + run * (1.0 - passed)
        });
        ends.fold(run, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::Stats;

    #[test]
    fn sums_are_over_waits_and_touches() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("stats");
        std::fs::write(
            &file,
            r#"{"requests": 2, "stored_bytes": 30, "plain_bytes": 90, "left_out": 0,
                "waits": [{"wait_ms": 500.0, "layer": 0}, {"wait_ms": 250.0, "layer": 1}],
                "touches": [{"at_ms": 100.0, "stored_len": 10}, {"at_ms": 1100.0, "stored_len": 15}]}"#,
        )?;
        let stats = Stats::read(&file)?;
        assert_eq!((stats.waits(), stats.working_set()), (2, 25));
        assert!((stats.wait_seconds() - 0.75).abs() < 1e-9);
        let near = |found: f64, expected: f64| (found - expected).abs() < 1e-9;
        // Ten bytes take a second, and everything is to be run then; the rest comes while it runs.
        assert!(near(stats.seconds_in_order(2.0, 4.0, 10.0), 5.0));
        // The last bytes take 25 seconds, and half of the run is left then.
        assert!(near(stats.seconds_in_order(2.0, 4.0, 1.0), 27.0));
        Ok(())
    }
}
