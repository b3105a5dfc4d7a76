//! Changes of a directory, applied the same way to a mounted snapshot and to a flat directory to compare with.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// One change; paths are relative.
#[derive(Clone, Debug)]
pub enum Change {
    /// Writes a file with these bytes and this mode.
    File(String, String, u32),
    /// Makes a directory with this mode.
    Directory(String, u32),
    /// Removes a file, or a directory with everything in it.
    Remove(String),
    /// Changes owner and group.
    Owner(String, u32, u32),
    /// Gives something another name.
    Rename(String, String),
    /// Gives a file one more name.
    Link(String, String),
}

/// Shorthand for [`Change::File`].
pub fn file(path: &str, content: &str, mode: u32) -> Change {
    Change::File(path.to_owned(), content.to_owned(), mode)
}

/// Shorthand for [`Change::Directory`].
pub fn directory(path: &str, mode: u32) -> Change {
    Change::Directory(path.to_owned(), mode)
}

/// Shorthand for [`Change::Remove`].
pub fn remove(path: &str) -> Change {
    Change::Remove(path.to_owned())
}

/// Shorthand for [`Change::Owner`].
pub fn owner(path: &str, user: u32, group: u32) -> Change {
    Change::Owner(path.to_owned(), user, group)
}

/// Shorthand for [`Change::Rename`].
pub fn rename(from: &str, to: &str) -> Change {
    Change::Rename(from.to_owned(), to.to_owned())
}

/// Shorthand for [`Change::Link`].
pub fn link(from: &str, to: &str) -> Change {
    Change::Link(from.to_owned(), to.to_owned())
}

/// Applies changes under `top`, in their order.
///
/// # Errors
/// Naming the change that failed.
pub fn apply(top: &Path, changes: &[Change]) -> Result<()> {
    changes
        .iter()
        .try_for_each(|change| one(top, change).with_context(|| format!("{change:?}")))
}

fn one(top: &Path, change: &Change) -> Result<()> {
    match change {
        Change::File(path, content, mode) => {
            fs::write(top.join(path), content)?;
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(*mode))?;
        }
        Change::Directory(path, mode) => {
            fs::create_dir(top.join(path))?;
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(*mode))?;
        }
        Change::Remove(path) => {
            let path = top.join(path);
            if fs::symlink_metadata(&path)?.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Change::Owner(path, user, group) => lchown(top.join(path), Some(*user), Some(*group))?,
        Change::Rename(from, to) => fs::rename(top.join(from), top.join(to))?,
        Change::Link(from, to) => fs::hard_link(top.join(from), top.join(to))?,
    }
    Ok(())
}

/// What a tree shows of one entry. Times are left out: nobody sets them here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    mode: u32,
    owner: (u32, u32),
    content: Vec<u8>,
}

/// Every entry under `top`, by path, the root included.
///
/// # Errors
/// When it cannot be read.
pub fn listing(top: &Path) -> Result<BTreeMap<PathBuf, Seen>> {
    let mut seen = BTreeMap::new();
    let mut paths = vec![PathBuf::new()];
    while let Some(path) = paths.pop() {
        let full = top.join(&path);
        let metadata = fs::symlink_metadata(&full)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&full)? {
                paths.push(path.join(entry?.file_name()));
            }
        }
        let content = if metadata.is_file() {
            fs::read(&full)?
        } else {
            Vec::new()
        };
        let entry = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            content,
        };
        seen.insert(path, entry);
    }
    Ok(seen)
}

/// Checks that two trees show the same.
///
/// # Errors
/// Naming the first difference.
pub fn assert_same(expected: &Path, actual: &Path) -> Result<()> {
    let (expected, actual) = (listing(expected)?, listing(actual)?);
    for path in expected.keys().chain(actual.keys()) {
        let (wanted, found) = (expected.get(path), actual.get(path));
        ensure!(
            wanted == found,
            "{}: {found:?} instead of {wanted:?}",
            path.display()
        );
    }
    Ok(())
}
