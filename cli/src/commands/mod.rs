//! One file per command.

mod cache;
mod cat;
mod check;
mod convert;
mod doctor;
mod export;
mod index;
mod inspect;
mod install;
mod ls;
mod mount;
mod pack;
mod profile;
mod pull;
mod snapshotter;
mod supervise;
mod umount;

use std::process::ExitCode;

use crate::args::{Args, Command};
use crate::container;
use crate::wiring::Interrupted;

/// Exit code of a shell for a command that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Runs the command that was asked for.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let done = match args.command {
        Command::Convert(args) => convert::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Mount(args) => mount::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Supervise(args) => return supervise::run(args),
        Command::Supervised(args) => return supervise::become_command(&args),
        Command::Snapshotter(args) => snapshotter::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Install(args) => install::run(&args),
        Command::ContainerKeeper(args) if args.inner => return container::keep(&args.directory, &args.id),
        Command::ContainerKeeper(args) => return container::keep_apart(&args.directory, &args.id),
        Command::MountGuard => Ok(sluice_fuse::run_guard()?),
        Command::MountHelper => Ok(sluice_fuse::run_mount_helper()?),
        Command::PageReader => Ok(sluice_fuse::run_page_reader()?),
    };
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<Interrupted>() => Ok(ExitCode::from(INTERRUPTED)),
        Err(error) if is_told(&error) => Ok(ExitCode::FAILURE),
        Err(error) => Err(error),
    }
}

/// Whether what is wrong has been printed already.
fn is_told(error: &anyhow::Error) -> bool {
    error.is::<check::NotSound>()
        || error.is::<cache::Damaged>()
        || error.is::<doctor::NotLazy>()
        || error.is::<mount::NotMounted>()
}
