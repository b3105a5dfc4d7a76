//! The link to the registry: what it can carry at best, and what its network device received.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;

/// Options that say how the registry is reached. How the link is shaped is not this program's business.
#[derive(Clone, Debug, clap::Args)]
pub struct LinkArgs {
    /// Network device whose received bytes are counted.
    #[arg(long, value_name = "DEV")]
    device: Option<String>,
    /// Rate of the link in megabits per second.
    #[arg(long, value_name = "M")]
    link_mbit: Option<f64>,
    /// Round trip of the link in milliseconds.
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    rtt_ms: f64,
    /// Speak HTTP without TLS to the registry.
    #[arg(long)]
    plain_http: bool,
}

impl LinkArgs {
    /// Seconds that the link needs for `bytes`; `None` when its rate is not known.
    pub fn seconds_for(&self, bytes: f64) -> Option<f64> {
        self.rate().map(|rate| bytes / rate)
    }

    /// Bytes per second, when known.
    pub fn rate(&self) -> Option<f64> {
        self.link_mbit.map(|mbit| mbit * 1e6 / 8.0)
    }

    /// Seconds of a round trip.
    pub fn round_trip(&self) -> f64 {
        self.rtt_ms / 1e3
    }

    /// Whether TLS is not spoken.
    pub fn plain_http(&self) -> bool {
        self.plain_http
    }

    /// Counts what the device receives from now on.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn meter(&self) -> anyhow::Result<Meter> {
        let file = self
            .device
            .as_ref()
            .map(|device| PathBuf::from(format!("/sys/class/net/{device}/statistics/rx_bytes")));
        let mut meter = Meter { file, began: 0 };
        meter.began = meter.received()?.unwrap_or(0);
        Ok(meter)
    }
}

/// Received bytes of a network device, headers of IP and TCP included.
#[derive(Debug)]
pub struct Meter {
    file: Option<PathBuf>,
    began: u64,
}

impl Meter {
    /// Bytes since the meter began; `None` without a device.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn received(&self) -> anyhow::Result<Option<u64>> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Ok(Some(text.trim().parse::<u64>()?.saturating_sub(self.began)))
    }
}
