//! Temporary directories on a real disk.
//!
//! overlayfs upper directories, file-backed EROFS and containerd's state do not work on tmpfs, and `/tmp` often is one.

use std::env;
use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{mountinfo, prerequisites, process};

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

/// Length of a [`Disk`]; its file is sparse.
const DISK_LEN: u64 = 64 << 30;

/// A file system of its own in a sparse file, for trees of many files: it goes away as one file, while removing a hundred
/// thousand files takes minutes where the disk discards every freed block at once.
#[derive(Debug)]
pub struct Disk {
    /// Where it is mounted.
    pub directory: PathBuf,
    // Unmounts and removes when dropped.
    _scratch: Scratch,
}

impl Disk {
    /// A new empty ext4.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn new(name: &str) -> Result<Self> {
        Self::of_len(name, DISK_LEN)
    }

    /// A new empty ext4 of so many bytes.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn of_len(name: &str, len: u64) -> Result<Self> {
        prerequisites::root()?;
        let scratch = Scratch::new(name)?;
        let file = scratch.join("disk");
        File::create(&file)?.set_len(len)?;
        let directory = scratch.directory("mounted")?;
        let mkfs = prerequisites::command("mkfs.ext4", "e2fsprogs")?;
        // Nobody needs this file system after a crash.
        let features = ["-q", "-O", "^has_journal", "-E", "lazy_itable_init=1"];
        process::run(Command::new(mkfs).args(features).arg(&file))?;
        let mount = prerequisites::command("mount", "mount")?;
        process::run(
            Command::new(mount)
                .args(["-o", "loop"])
                .arg(&file)
                .arg(&directory),
        )?;
        without_second_page_cache(&directory)?;
        Ok(Self {
            directory,
            _scratch: scratch,
        })
    }
}

/// Has what is written to the file system reach the disk as it does from one on a partition. Otherwise the page cache of its file holds everything once more, and the flush of one
/// file in it waits for all of them.
fn without_second_page_cache(directory: &Path) -> Result<()> {
    let findmnt = prerequisites::command("findmnt", "util-linux")?;
    let device = process::run(Command::new(findmnt).args(["-no", "SOURCE"]).arg(directory))?;
    let losetup = prerequisites::command("losetup", "mount")?;
    // Where the disk below cannot do that, the file system is as good, only slower.
    let _ = process::run(Command::new(losetup).arg("--direct-io=on").arg(device.trim()));
    Ok(())
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
