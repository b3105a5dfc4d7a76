//! A recent erofs-utils, independent judges of our EROFS images.
//!
//! Debian 12 has version 1.5, which knows neither 512-byte blocks with chunk-based files nor device tables well enough.
//! `tests/setup.sh` unpacks the version of Debian unstable with all libraries it needs into a directory of its own.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::scratch;

/// `fsck.erofs` or `dump.erofs` of the recent version, run with the libraries it came with.
///
/// # Errors
/// When `tests/setup.sh` was not run.
pub fn command(tool: &str) -> Result<Command> {
    let root = root()?;
    let program = root.join("usr/bin").join(tool);
    ensure!(
        program.is_file(),
        "{} is missing: run tests/setup.sh",
        program.display()
    );
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path));
    let mut command = Command::new(loader(&root));
    command
        .arg("--library-path")
        .arg(env::join_paths(libraries)?)
        .arg(program);
    Ok(command)
}

fn loader(root: &Path) -> PathBuf {
    root.join("usr/lib64/ld-linux-x86-64.so.2")
}

/// `$SLUICE_EROFS_UTILS`, by default `target/erofs-utils`.
fn root() -> Result<PathBuf> {
    match env::var_os("SLUICE_EROFS_UTILS") {
        Some(directory) => Ok(PathBuf::from(directory)),
        None => Ok(scratch::target_directory()?.join("erofs-utils")),
    }
}
