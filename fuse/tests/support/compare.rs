//! Compares two file trees in everything a program can see except inode numbers, blocks and times of access.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Asserts that `found` shows the same tree as `expected`. Returns the number of entries compared.
pub(crate) fn assert_same_tree(expected: &Path, found: &Path) -> usize {
    assert_same_node(expected, found);
    if !fs::symlink_metadata(expected).unwrap().is_dir() {
        return 1;
    }
    let (names, found_names) = (names(expected), names(found));
    assert_eq!(names, found_names, "names in {}", found.display());
    let children = names
        .keys()
        .map(|name| assert_same_tree(&expected.join(name), &found.join(name)));
    1 + children.sum::<usize>()
}

/// Names of a directory with the type that the listing itself tells.
fn names(directory: &Path) -> BTreeMap<OsString, fs::FileType> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let mut names = BTreeMap::new();
    for entry in entries {
        let twice = names.insert(entry.file_name(), entry.file_type().unwrap());
        assert_eq!(
            twice,
            None,
            "{:?} is listed twice in {}",
            entry.file_name(),
            directory.display()
        );
    }
    names
}

fn assert_same_node(expected: &Path, found: &Path) {
    let (left, right) = (
        fs::symlink_metadata(expected).unwrap(),
        fs::symlink_metadata(found).unwrap(),
    );
    let shown = found.display();
    assert_eq!(visible(&left), visible(&right), "attributes of {shown}");
    assert_eq!(xattrs(expected), xattrs(found), "extended attributes of {shown}");
    if left.is_symlink() {
        assert_eq!(
            fs::read_link(expected).unwrap(),
            fs::read_link(found).unwrap(),
            "target of {shown}"
        );
    } else if left.is_file() {
        assert!(
            fs::read(expected).unwrap() == fs::read(found).unwrap(),
            "content of {shown}"
        );
    }
}

fn visible(metadata: &Metadata) -> (u32, u32, u32, u64, i64, i64, u64, u64) {
    let size = if metadata.is_dir() { 0 } else { metadata.size() };
    let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
    let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
    (
        mode,
        uid,
        gid,
        size,
        seconds,
        nanos,
        metadata.nlink(),
        metadata.rdev(),
    )
}

/// Extended attributes of a node, symbolic links not followed.
pub(crate) fn xattrs(path: &Path) -> BTreeMap<CString, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut found = BTreeMap::new();
    for name in names.map(|name| CString::new(name).unwrap()) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
        found.insert(name, value[..len].to_vec());
    }
    found
}
