//! What a directory takes on disk.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::mounts::Usage;
use crate::{Error, blocking};

/// Unit of `st_blocks`, whatever the file system's block size is.
const BLOCK_LEN: u64 = 512;

/// Counts everything in `directory`, itself included, each hard-linked file once. Files that go away meanwhile are left
/// out: a container may be running in it.
pub(crate) async fn count(directory: PathBuf) -> Result<Usage, Error> {
    blocking::run("count a snapshot's files", move || {
        walk(&directory).map_err(|error| Error::internal(format!("directory {}", directory.display()), error))
    })
    .await
}

fn walk(top: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut add = |metadata: &Metadata| {
        let is_first =
            metadata.is_dir() || metadata.nlink() == 1 || linked.insert((metadata.dev(), metadata.ino()));
        if is_first {
            usage.bytes += metadata.blocks() * BLOCK_LEN;
            usage.inodes += 1;
        }
    };
    add(&fs::symlink_metadata(top)?);
    let mut directories = vec![top.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let Some(entries) = present(fs::read_dir(&directory))? else {
            continue;
        };
        for entry in entries {
            let Some(entry) = present(entry)? else { continue };
            let Some(metadata) = present(entry.metadata())? else {
                continue;
            };
            add(&metadata);
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(usage)
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_blocks_once_per_file_object() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("d")).unwrap();
        fs::write(scratch.path().join("d/a"), vec![1; 10_000]).unwrap();
        fs::hard_link(scratch.path().join("d/a"), scratch.path().join("b")).unwrap();
        std::os::unix::fs::symlink("a", scratch.path().join("c")).unwrap();
        let usage = walk(scratch.path()).unwrap();
        assert_eq!(usage.inodes, 4);
        let blocks = |path: &str| fs::symlink_metadata(scratch.path().join(path)).unwrap().blocks();
        let expected = (blocks("") + blocks("d") + blocks("d/a") + blocks("c")) * BLOCK_LEN;
        assert_eq!(usage.bytes, expected);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        assert!(walk(Path::new("/nonexistent/sluice")).is_err());
    }
}
