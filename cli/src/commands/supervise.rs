//! `sluice supervise`, and the hidden `sluice supervised` that it starts.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::args::supervise::{SuperviseArgs, SupervisedArgs};
use crate::supervise::{self, Options};
use crate::wiring;

pub(super) fn run(args: SuperviseArgs) -> anyhow::Result<ExitCode> {
    let run_dir = args.run_dir.unwrap_or_else(wiring::default_run_dir);
    let options = Options {
        command: args.command,
        watchdog: args.watchdog,
        stop_timeout: args.stop_timeout,
    };
    let status = supervise::run(options, &run_dir)?;
    Ok(status.map_or(ExitCode::SUCCESS, wiring::exit_code))
}

pub(super) fn become_command(args: &SupervisedArgs) -> anyhow::Result<ExitCode> {
    let program = args.command.first().cloned().unwrap_or_default();
    Err(supervise::become_command(&args.command)).with_context(|| format!("starting {}", program.display()))
}
