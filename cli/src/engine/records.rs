//! What is mounted, on disk, for the next process of the service.
//!
//! ```text
//! <root>/mounted/lock          held by the process that the directory belongs to
//! <root>/mounted/<n>.json      one mounted tree
//! ```
//!
//! A record is written before its tree is mounted and removed when the kernel has let go of its file system, so whatever is
//! used has one, and a record may be of nothing. Records matter only while the FUSE session lives on which the trees lie:
//! they need not survive the host, and a process that makes a new session clears them away.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sluice_snapshotter::images::RemoteLayer;

/// Directory below the root of the service.
const DIRECTORY: &str = "mounted";
/// The file that is locked.
const LOCK: &str = "lock";
/// How names of records end.
const ENDING: &str = "json";
/// Longest record that is read, in bytes. A layer takes some hundreds.
const RECORD_MAX: u64 = 1 << 20;

/// A mounted tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeRecord {
    /// The directory it is mounted on.
    pub(super) target: PathBuf,
    /// Its layers, lowest first.
    pub(super) layers: Vec<RemoteLayer>,
    /// Device number of the FUSE session that it lies on.
    pub(super) session: u64,
    /// A directory that exists while the file system does; known from the moment when it is about to be unmounted.
    pub(super) leaving: Option<PathBuf>,
}

/// All records of a service.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    next: AtomicU64,
    // Locked as long as it is open.
    _lock: File,
}

/// A record on disk. It stays when this is dropped.
#[derive(Debug)]
pub(super) struct OwnRecord {
    path: PathBuf,
    pub(super) record: TreeRecord,
}

impl Records {
    /// Takes the directory below `root` for this process.
    ///
    /// # Errors
    /// When another process has it, or it cannot be made.
    pub(super) fn open(root: &Path) -> anyhow::Result<Self> {
        let directory = root.join(DIRECTORY);
        let mut private = DirBuilder::new();
        private
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let lock_path = directory.join(LOCK);
        let lock = File::create(&lock_path).with_context(|| format!("opening {}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            bail!("another process serves {}", root.display());
        }
        Ok(Self {
            directory,
            next: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// What earlier processes recorded. Whatever cannot be read is removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn load(&self) -> anyhow::Result<Vec<OwnRecord>> {
        let failed = || format!("reading {}", self.directory.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).with_context(failed)? {
            let path = entry.with_context(failed)?.path();
            if path.file_name().is_some_and(|name| name == LOCK) {
                continue;
            }
            if let Some(number) = number(&path) {
                self.next.fetch_max(number + 1, Ordering::Relaxed);
            }
            match read(&path) {
                Ok(record) => found.push(OwnRecord { path, record }),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the record of a mount is of no use");
                    remove(&path);
                }
            }
        }
        Ok(found)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn put(&self, record: TreeRecord) -> io::Result<OwnRecord> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(number.to_string()).with_extension(ENDING);
        write(&path, &record)?;
        Ok(OwnRecord { path, record })
    }
}

impl OwnRecord {
    /// Notes that the tree is about to be unmounted, and how to see whether its file system is still used.
    pub(super) fn leave(&mut self, file_system: Option<PathBuf>) {
        self.record.leaving = file_system;
        if let Err(error) = write(&self.path, &self.record) {
            tracing::warn!(path = %self.path.display(), %error, "the record of a mount was not renewed");
        }
    }

    /// Removes the record.
    pub(super) fn remove(self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "the record of a mount was left behind");
    }
}

fn number(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn read(path: &Path) -> anyhow::Result<TreeRecord> {
    anyhow::ensure!(fs::metadata(path)?.len() <= RECORD_MAX, "it is too long");
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// A process may be killed at any moment: a record is there as a whole or not at all.
fn write(path: &Path, record: &TreeRecord) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, serde_json::to_vec(record)?)?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test process.
    fn root(name: &str) -> PathBuf {
        let name = format!("sluice-records-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&root);
        root
    }

    fn record(target: &str) -> TreeRecord {
        TreeRecord {
            target: PathBuf::from(target),
            layers: Vec::new(),
            session: 7,
            leaving: None,
        }
    }

    #[test]
    fn the_next_process_finds_what_was_not_removed() {
        let root = root("next");
        let records = Records::open(&root).unwrap();
        records.put(record("/a")).unwrap().remove();
        let mut left = records.put(record("/b")).unwrap();
        left.leave(Some(PathBuf::from("/sys/fs/erofs/1")));
        drop((left, records));
        let records = Records::open(&root).unwrap();
        let found = records.load().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].record.target, Path::new("/b"));
        assert!(found[0].record.leaving.is_some());
        let later = records.put(record("/c")).unwrap();
        assert_ne!(later.path, found[0].path);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_second_process_is_refused() {
        let root = root("second");
        let _records = Records::open(&root).unwrap();
        let refused = Records::open(&root).unwrap_err().to_string();
        assert!(refused.contains(root.to_str().unwrap()), "{refused}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn damaged_and_unfinished_records_are_removed() {
        let root = root("damaged");
        let records = Records::open(&root).unwrap();
        let directory = root.join(DIRECTORY);
        fs::write(directory.join("0.json"), "{").unwrap();
        fs::write(directory.join("1.new"), "").unwrap();
        assert!(records.load().unwrap().is_empty());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(root).unwrap();
    }
}
