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
                "touches": [{"stored_len": 10, "chunk": 1}, {"stored_len": 15, "chunk": 2}]}"#,
        )?;
        let stats = Stats::read(&file)?;
        assert_eq!((stats.waits(), stats.working_set()), (2, 25));
        assert!((stats.wait_seconds() - 0.75).abs() < 1e-9);
        Ok(())
    }
}
