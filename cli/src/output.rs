//! What the command prints: results on standard output, everything else on standard error.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Environment variable with a log filter.
const LOG_VARIABLE: &str = "SLUICE_LOG";

/// Sends log lines to standard error: warnings, or more with `-v` or `SLUICE_LOG`; without colours when they go elsewhere later.
pub(crate) fn start_logging(verbose: u8, goes_elsewhere: bool) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .with_env_var(LOG_VARIABLE)
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !goes_elsewhere)
        .with_target(false)
        .init();
}

/// Prints an error with its chain of causes in one line. A cause whose text its effect repeats is left out.
pub(crate) fn report_error(error: &anyhow::Error) {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    // Standard error may be closed; there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "sluice: {line}");
}

/// Prints a line of text.
pub(crate) fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// Prints a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string(value)?)
}

/// Bytes for people: "1.8 GB".
pub(crate) fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).display().si().to_string()
}
