//! A recent erofs-utils, independent judges of our EROFS images.
//!
//! Debian 12 has version 1.5, which knows neither 512-byte blocks with chunk-based files nor device tables well enough.
//! `tests/setup.sh` unpacks the version of Debian unstable with all libraries it needs into a directory of its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, iter};

use anyhow::{Result, ensure};

use crate::scratch;

/// `fsck.erofs`, `dump.erofs` or `mkfs.erofs` of the recent version, run with the libraries it came with.
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

/// Writes an executable script of the name of a tool of the recent version into `directory`, for programs that look for it by name.
///
/// # Errors
/// When `tests/setup.sh` was not run, or nothing can be written there.
pub fn write_script(tool: &str, directory: &Path) -> Result<()> {
    let command = command(tool)?;
    let words = iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("{word:?}")).collect();
    fs::create_dir_all(directory)?;
    let script = directory.join(tool);
    fs::write(&script, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")))?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    Ok(())
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
