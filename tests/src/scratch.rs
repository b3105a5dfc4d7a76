//! Temporary directories on a real disk.
//!
//! overlayfs upper directories, file-backed EROFS and containerd's state do not work on tmpfs, and `/tmp` often is one.

use std::env;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::mountinfo;

/// A directory that is removed when dropped. What is still mounted under it is unmounted first.
#[derive(Debug)]
pub struct Scratch {
    directory: Option<TempDir>,
    path: PathBuf,
}

impl Scratch {
    /// A new directory whose name begins with `name`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let parent = match env::var_os("SLUICE_TEST_SCRATCH") {
            Some(parent) => PathBuf::from(parent),
            None => target_directory()?.join("test-scratch"),
        };
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let directory = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(&parent)?;
        let path = directory.path().canonicalize()?;
        Ok(Self {
            directory: Some(directory),
            path,
        })
    }

    /// A new directory inside.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        mountinfo::detach_all_under(&self.path);
        // A directory that cannot be removed is left for a look; the next `cargo clean` takes it away.
        drop(self.directory.take());
    }
}

/// The target directory of the running test: two above its executable, which is in `target/<profile>/deps`.
///
/// # Errors
/// When the executable does not lie as cargo puts it.
pub fn target_directory() -> Result<PathBuf> {
    let directory = profile_directory()?;
    let parent = directory
        .parent()
        .context("the profile directory has no parent")?;
    Ok(parent.to_path_buf())
}

/// `target/<profile>` of the running test, where cargo puts the binaries of the workspace.
///
/// # Errors
/// When the executable does not lie as cargo puts it.
pub fn profile_directory() -> Result<PathBuf> {
    let executable = env::current_exe()?;
    let mut directory = executable
        .parent()
        .context("the test executable has no directory")?;
    if directory.ends_with("deps") {
        directory = directory
            .parent()
            .context("target/<profile>/deps has no parent")?;
    }
    Ok(directory.to_path_buf())
}
