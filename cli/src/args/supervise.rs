//! Arguments of `sluice supervise`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;

#[derive(Debug, ClapArgs)]
pub(crate) struct SuperviseArgs {
    /// Abort the command when it gives no sign of life for this many seconds. Default: it needs to give none.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) watchdog: Option<Duration>,
    /// Seconds that the command may take to end before it is killed.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub(crate) stop_timeout: Duration,
    /// Directory of run-time state. Default: /run/sluice for root, else $XDG_RUNTIME_DIR/sluice.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SupervisedArgs {
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u64>().ok().filter(|seconds| *seconds > 0);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| format!("\"{text}\" is not a number of seconds from 1 on"))
}
