//! The `sluice` command.

mod args;
mod commands;
mod container;
mod containerd;
mod cri;
mod doctor;
mod engine;
mod files_by_place;
mod foresight;
mod idle;
mod install;
mod open_image;
mod output;
mod page_plan;
mod progress;
mod supervise;
mod wiring;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = args::Args::parse();
    output::start_logging(args.verbosity(), args.detaches());
    match commands::run(args) {
        Ok(code) => code,
        Err(error) => {
            output::report_error(&error);
            ExitCode::FAILURE
        }
    }
}
