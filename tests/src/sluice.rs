//! The binary under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{process, scratch};

/// Where the `sluice` binary is: `$SLUICE_BINARY`, or beside the test in `target/<profile>`.
///
/// # Errors
/// When it was not built.
pub fn binary() -> Result<PathBuf> {
    let path = match env::var_os("SLUICE_BINARY") {
        Some(path) => PathBuf::from(path),
        None => scratch::profile_directory()?.join("sluice"),
    };
    ensure!(
        path.is_file(),
        "{} is missing. Build it first: cargo build -p sluice",
        path.display()
    );
    Ok(path)
}

/// `sluice` with these arguments.
///
/// # Errors
/// When it was not built.
pub fn command<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(arguments);
    Ok(command)
}

/// Runs `sluice` to its end, gives what it printed to standard output.
///
/// # Errors
/// When it ends with an error.
pub fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    process::run(&mut command(arguments)?)
}

/// Runs `sluice`, which has to refuse; gives all that it printed, after checking that it was an error message and not a
/// panic.
///
/// # Errors
/// When it succeeds or panics.
pub fn refused<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let text = process::run_refused(&mut command(arguments)?)?;
    ensure!(!text.contains("panicked at"), "sluice panicked: {text}");
    ensure!(
        text.contains("exit status"),
        "sluice was killed by a signal: {text}"
    );
    Ok(text)
}

/// Runs `sluice` with `--json`, gives the last JSON document that it printed.
///
/// # Errors
/// When it ends with an error or prints none.
pub fn json<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Value> {
    let text = process::run(command(arguments)?.arg("--json"))?;
    parse_json(&text)
}

/// The last JSON document of a command's output: the whole output, or its last line.
///
/// # Errors
/// When there is none.
pub fn parse_json(text: &str) -> Result<Value> {
    let last_line = || {
        text.lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
    };
    let parsed = serde_json::from_str(text).or_else(|_| serde_json::from_str(last_line()));
    parsed.map_err(|error| anyhow::anyhow!("not JSON ({error}): {text}"))
}

/// Converts `source` into the layout in `directory` under `tag`, gives the new reference.
///
/// # Errors
/// When `sluice convert` ends with an error.
pub fn convert(source: &str, directory: &Path, tag: &str, options: &[&str]) -> Result<String> {
    let target = format!("oci:{}:{tag}", directory.display());
    run(["convert", source, &target]
        .into_iter()
        .chain(options.iter().copied()))?;
    Ok(target)
}
