//! The files of snapshots on disk.
//!
//! ```text
//! <root>/snapshots.redb        the records
//! <root>/snapshots/<id>/fs     a snapshot's own files: what is bound, or the upper directory
//! <root>/snapshots/<id>/work   overlayfs's scratch directory; for active snapshots
//! <root>/snapshots/tree-…/fs   where an image tree is mounted
//! ```
//!
//! A directory is made before its record and removed after it, so a crash leaves directories without records and never the
//! other way round. IDs are never used twice in the life of a process, and at the start they go on above every ID in use.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::images::TREE_PREFIX;
use crate::{Error, ErrorKind, blocking};

/// The root and everything beside `fs` and `work`: for root alone.
const PRIVATE: u32 = 0o700;
/// `fs`, the root directory of a container on top of nothing.
const FILES: u32 = 0o755;
/// `work`. overlayfs makes its own directory in it.
const WORK: u32 = 0o711;

/// Characters that mean something in overlayfs's options.
const RESERVED: [char; 4] = [':', ',', '\\', '"'];

/// Where everything lies.
#[derive(Debug)]
pub(crate) struct Directories {
    root: PathBuf,
    snapshots: PathBuf,
    next_id: AtomicU64,
}

/// Directories that were there at the start.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// IDs of snapshots, with or without a record.
    pub(crate) ids: Vec<u64>,
    /// Names of trees, mounted or not.
    pub(crate) trees: Vec<String>,
}

impl Directories {
    /// Makes what is missing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when the path cannot stand in mount options.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let failed = |error| Error::internal(format!("directory {}", root.display()), error);
        private_directories(root).map_err(failed)?;
        let root = root.canonicalize().map_err(failed)?;
        let text = root.to_str().unwrap_or(":");
        if text.contains(RESERVED) {
            let message = format!(
                "root directory {} cannot be used: colons, commas, backslashes, quotes and bytes that are not UTF-8 \
                 cannot stand in overlay mount options",
                root.display()
            );
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let snapshots = root.join("snapshots");
        private_directories(&snapshots)
            .map_err(|error| Error::internal(format!("directory {}", snapshots.display()), error))?;
        Ok(Self {
            root,
            snapshots,
            next_id: AtomicU64::new(1),
        })
    }

    /// The file of the records.
    pub(crate) fn records(&self) -> PathBuf {
        self.root.join("snapshots.redb")
    }

    /// A snapshot's own files.
    pub(crate) fn files(&self, id: u64) -> PathBuf {
        self.snapshots.join(id.to_string()).join("fs")
    }

    /// overlayfs's scratch directory of a snapshot.
    pub(crate) fn work(&self, id: u64) -> PathBuf {
        self.snapshots.join(id.to_string()).join("work")
    }

    /// Where the tree called `name` is mounted.
    pub(crate) fn tree(&self, name: &str) -> PathBuf {
        self.snapshots.join(name).join("fs")
    }

    /// An ID that no snapshot has or had.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// What is on disk. From now on, IDs are above all of these and above `recorded`.
    pub(crate) fn scan(&self, recorded: u64) -> Result<Found, Error> {
        let failed = |error| Error::internal(format!("directory {}", self.snapshots.display()), error);
        let mut found = Found::default();
        for entry in fs::read_dir(&self.snapshots).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(TREE_PREFIX) {
                found.trees.push(name.to_owned());
            } else if let Ok(id) = name.parse() {
                found.ids.push(id);
            } else {
                tracing::warn!(name, "left alone: not a snapshot's directory");
            }
        }
        let last = found.ids.iter().copied().max().unwrap_or(0).max(recorded);
        self.next_id.fetch_max(last.saturating_add(1), Ordering::Relaxed);
        Ok(found)
    }

    /// Makes the directories of a snapshot; its files belong to `owner`, or to the owner of the directory `like`.
    pub(crate) async fn create(&self, id: u64, new: NewDirectory) -> Result<(), Error> {
        let top = self.snapshots.join(id.to_string());
        let made = blocking::run("make a snapshot's directory", {
            let top = top.clone();
            move || {
                make(&top, &new)
                    .map_err(|error| Error::internal(format!("directory {}", top.display()), error))
            }
        });
        let made = made.await;
        if made.is_err() {
            self.remove_or_warn(id).await;
        }
        made
    }

    /// Removes a snapshot's directories with all files. Success when there are none.
    pub(crate) async fn remove(&self, id: u64) -> Result<(), Error> {
        let top = self.snapshots.join(id.to_string());
        blocking::run(
            "remove a snapshot's directory",
            move || match fs::remove_dir_all(&top) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::internal(format!("cannot remove {}", top.display()), error))
                }
                _ => Ok(()),
            },
        )
        .await
    }

    /// As [`Directories::remove`]; what cannot be removed is collected at the next start.
    pub(crate) async fn remove_or_warn(&self, id: u64) {
        if let Err(error) = self.remove(id).await {
            tracing::warn!(error = %crate::error::Chain(&error), "a directory stays until the next start");
        }
    }

    /// Makes the directory that the tree called `name` is mounted on.
    pub(crate) fn create_tree(&self, name: &str) -> Result<PathBuf, Error> {
        let target = self.tree(name);
        private_directories(&target)
            .map_err(|error| Error::internal(format!("directory {}", target.display()), error))?;
        Ok(target)
    }

    /// Removes it when nothing is mounted there any more. Never removes files.
    pub(crate) fn remove_tree(&self, name: &str) -> Result<(), Error> {
        let target = self.tree(name);
        for directory in [&target, &self.snapshots.join(name)] {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let message = format!("cannot remove {}", directory.display());
                    return Err(Error::internal(message, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a new directory is like.
#[derive(Debug)]
pub(crate) struct NewDirectory {
    /// Whether overlayfs will write to it.
    pub(crate) with_work: bool,
    /// User and group that own its files.
    pub(crate) owner: Option<(u32, u32)>,
    /// Otherwise they are those of this directory: the root of what lies below.
    pub(crate) like: Option<PathBuf>,
}

fn make(top: &Path, new: &NewDirectory) -> io::Result<()> {
    DirBuilder::new().mode(PRIVATE).create(top)?;
    let files = top.join("fs");
    make_with_mode(&files, FILES)?;
    if new.with_work {
        make_with_mode(&top.join("work"), WORK)?;
    }
    let below = new.like.as_ref().map(fs::metadata).transpose()?;
    let owner = new.owner.or(below.map(|below| (below.uid(), below.gid())));
    owner.map_or(Ok(()), |(user, group)| lchown(&files, Some(user), Some(group)))
}

/// The mode as given, whatever the process's umask is.
fn make_with_mode(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

fn private_directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(path)
}
