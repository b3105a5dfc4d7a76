//! Arguments of `sluice cache`.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
    /// Directory of fetched bytes. Default: /var/cache/sluice for root, else ~/.cache/sluice.
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) cache: Option<PathBuf>,
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List images and layers: how much of them is here, when they were used, what is pinned.
    Ls,
    /// Say how much the cache takes and may take.
    Du,
    /// Remove what was used least lately. What is pinned, or open in another process, stays.
    Prune(PruneArgs),
    /// Keep an image or a layer from being removed.
    Pin {
        /// Name of an image as `cache ls` shows it, or DiffID of a layer.
        what: String,
    },
    /// Let an image or a layer be removed again.
    Unpin {
        /// Name of an image as `cache ls` shows it, or DiffID of a layer.
        what: String,
    },
    /// Verify every chunk that is here and remove damaged ones; the exit code tells whether there were any.
    Verify,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Bytes on the disk that may stay, such as 20GB. Default: 85 % of what the cache may take.
    #[arg(long, value_name = "SIZE", conflicts_with = "all")]
    pub(crate) keep: Option<ByteSize>,
    /// Remove everything.
    #[arg(long)]
    pub(crate) all: bool,
    /// Remove only what was last used longer ago than this, such as 12h or 7d; without --keep, all of it.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) older_than: Option<Duration>,
}

/// Reads "90s", "30m", "12h", "7d" or "2w".
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration such as 30m, 12h, 7d or 2w");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let digits = text.strip_suffix(unit).unwrap_or_default();
    let number = digits.parse::<u64>().ok();
    let total = number.and_then(|number| number.checked_mul(seconds));
    total.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_one_unit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "7", "d", "-1d", "1.5h", "1dd", "99999999999999999999w"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
