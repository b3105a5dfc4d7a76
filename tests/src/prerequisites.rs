//! What a test needs from the machine.
//!
//! A missing prerequisite is an error that names the package to install. No test passes because something was absent.

use std::env;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;

/// Directories outside of many users' search paths that hold commands the tests need.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Where `command` is.
///
/// # Errors
/// When it is not installed; the message names the Debian `package` that has it.
pub fn command(command: &str, package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(command))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{command} is missing: apt-get install {package}, or run tests/setup.sh"))
}

/// Checks that the test runs as root.
///
/// # Errors
/// When it does not.
pub fn root() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "this test mounts file systems: run it as root"
    );
    Ok(())
}

/// Checks that FUSE file systems can be served.
///
/// # Errors
/// When `/dev/fuse` cannot be opened.
pub fn fuse() -> Result<()> {
    let device = Path::new("/dev/fuse");
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) => {
            bail!("/dev/fuse cannot be opened ({error}): modprobe fuse, or pass the device to this machine")
        }
    }
}
