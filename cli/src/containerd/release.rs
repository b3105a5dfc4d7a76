//! Which containerd is installed: its release decides which settings exist.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};

/// The oldest release that Sluice works with.
const OLDEST: Release = Release { major: 1, minor: 6 };

/// A release of containerd, as far as settings depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Release {
    /// Asks a program for its version.
    ///
    /// # Errors
    /// When it cannot be run, or is older than 1.6.
    pub(crate) fn of_program(program: &Path) -> anyhow::Result<Self> {
        let output = Command::new(program).arg("--version").output();
        let output = output.with_context(|| {
            format!(
                "cannot run {} to learn the version of containerd; name it with --containerd, or the version with --containerd-version",
                program.display()
            )
        })?;
        ensure!(
            output.status.success(),
            "{} --version ended with {}",
            program.display(),
            output.status
        );
        let text = String::from_utf8_lossy(&output.stdout);
        Self::from_version_line(&text)
            .with_context(|| format!("{} --version printed \"{}\"", program.display(), text.trim()))
    }

    /// From `containerd <module> <version> <revision>`.
    fn from_version_line(line: &str) -> anyhow::Result<Self> {
        let version = line.split_ascii_whitespace().nth(2);
        version.context("there is no version in it")?.parse()
    }

    /// The transfer service unpacks images, and a proxy plugin can export that it wants labels.
    pub(crate) fn has_transfer_service(self) -> bool {
        self.major >= 2
    }

    /// The version of the configuration format to begin a new file with.
    pub(crate) fn config_version(self) -> i64 {
        if self.major >= 2 { 3 } else { 2 }
    }
}

impl FromStr for Release {
    type Err = anyhow::Error;

    /// Reads "1.6.20~ds1", "v2.1.9" or "2.3.0-beta.1".
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let numbers = text.strip_prefix('v').unwrap_or(text);
        let mut parts = numbers.split(|c: char| !c.is_ascii_digit());
        let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
        let (Some(major), Some(minor)) = (number(), number()) else {
            bail!("\"{text}\" is not a version such as 1.7.20");
        };
        let release = Self { major, minor };
        ensure!(
            release >= OLDEST,
            "containerd {text} is too old: Sluice works with {OLDEST} and newer"
        );
        Ok(release)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_understood() {
        let lines = [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
                1,
                6,
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown ",
                2,
                1,
            ),
            ("containerd containerd.io v2.2.0-rc.1 0123", 2, 2),
        ];
        for (line, major, minor) in lines {
            assert_eq!(
                Release::from_version_line(line).unwrap(),
                Release { major, minor }
            );
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "two", "1", "1.x", "1.5.9", "0.9"] {
            assert!(bad.parse::<Release>().is_err(), "{bad}");
        }
        assert!(Release::from_version_line("containerd").is_err());
    }
}
