//! Which files of an image lie in a plain range of a layer.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sluice_format::tree::{Extent, ExtentSource};
use sluice_format::{EntryName, NodeId, NodeKind, Tree};

/// The files of an image tree by where their bytes lie.
#[derive(Debug, Default)]
pub(crate) struct FilesByPlace {
    /// By device; sorted by range.
    extents: BTreeMap<u16, Vec<FileExtent>>,
    paths: Vec<PathBuf>,
}

#[derive(Debug)]
struct FileExtent {
    plain: Range<u64>,
    /// Where this extent and all before it have ended: files may share bytes, and then a later extent may end earlier.
    reach: u64,
    file_off: u64,
    file: usize,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePart {
    /// Number of the file, for [`FilesByPlace::path`].
    pub(crate) file: usize,
    /// Its bytes, within the file.
    pub(crate) range: Range<u64>,
}

impl FilesByPlace {
    /// The files of an image tree that have bytes in a range of a device of which `is_wanted` says so.
    pub(crate) fn new(tree: &Tree, is_wanted: impl Fn(u16, &Range<u64>) -> bool) -> Self {
        let mut files = Self::default();
        let mut seen = vec![false; tree.nodes().len()];
        let mut directories = vec![(NodeId::ROOT, PathBuf::new())];
        while let Some((id, path)) = directories.pop() {
            let entries = tree
                .directory(id)
                .into_iter()
                .flat_map(|directory| &directory.entries);
            for (name, child) in entries {
                match &tree.node(*child).kind {
                    NodeKind::Directory(_) => directories.push((*child, below(&path, name))),
                    NodeKind::Regular(content) => {
                        let is_new = !std::mem::replace(&mut seen[child.0 as usize], true);
                        if is_new && files.add(&content.extents, &is_wanted) {
                            files.paths.push(below(&path, name));
                        }
                    }
                    _ => {}
                }
            }
        }
        for extents in files.extents.values_mut() {
            extents.sort_unstable_by_key(|extent| (extent.plain.start, extent.plain.end));
            let mut reach = 0;
            for extent in extents {
                reach = extent.plain.end.max(reach);
                extent.reach = reach;
            }
        }
        files
    }

    /// Whether any of the extents of the next file is wanted.
    fn add(&mut self, extents: &[Extent], is_wanted: impl Fn(u16, &Range<u64>) -> bool) -> bool {
        let file = self.paths.len();
        let mut found = false;
        for extent in extents {
            let ExtentSource::Plain { device, plain_off } = extent.source else {
                continue;
            };
            let plain = plain_off..plain_off.saturating_add(extent.len);
            if is_wanted(device, &plain) {
                found = true;
                self.extents.entry(device).or_default().push(FileExtent {
                    reach: plain.end,
                    plain,
                    file_off: extent.file_off,
                    file,
                });
            }
        }
        found
    }

    /// The path of a file below the root; one of them, if it has several.
    pub(crate) fn path(&self, file: usize) -> &Path {
        &self.paths[file]
    }

    /// Parts of files in `plain` of the layer behind `device`, in the order in which they lie there.
    pub(crate) fn within(&self, device: u16, plain: &Range<u64>) -> impl Iterator<Item = FilePart> {
        let extents = self.extents.get(&device).map_or(&[][..], Vec::as_slice);
        let first = extents.partition_point(|extent| extent.reach <= plain.start);
        let (start, end) = (plain.start, plain.end);
        extents[first..]
            .iter()
            .take_while(move |extent| extent.plain.start < end)
            .filter(move |extent| extent.plain.end > start)
            .map(|extent| extent.part(plain))
    }
}

impl FileExtent {
    fn part(&self, wanted: &Range<u64>) -> FilePart {
        let start = wanted.start.max(self.plain.start) - self.plain.start;
        let end = wanted.end.min(self.plain.end) - self.plain.start;
        FilePart {
            file: self.file,
            range: self.file_off + start..self.file_off + end,
        }
    }
}

fn below(directory: &Path, name: &EntryName) -> PathBuf {
    directory.join(OsStr::from_bytes(name.as_bytes()))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests {
    use super::testing::{directory, file, link, put};
    use super::*;

    #[test]
    fn parts_of_files_are_found_by_device_and_range() {
        let mut tree = Tree::new();
        let bin = put(&mut tree, NodeId::ROOT, "bin", directory());
        let shell = put(
            &mut tree,
            bin,
            "sh",
            file(&[(1, 512..1000, 0), (1, 2048..4096, 488)]),
        );
        put(&mut tree, bin, "ls", file(&[(1, 1024..2048, 0)]));
        put(&mut tree, NodeId::ROOT, "top", file(&[(2, 0..5000, 0)]));
        link(&mut tree, bin, "zsh", shell);
        let files = FilesByPlace::new(&tree, |device, plain| device < 3 && plain.start < 2048);
        let found = |device, plain: Range<u64>| -> Vec<(String, Range<u64>)> {
            let parts = files.within(device, &plain);
            let named = parts.map(|part| (files.path(part.file).display().to_string(), part.range));
            named.collect()
        };
        assert_eq!(
            found(1, 600..5000),
            [("bin/sh".into(), 88..488), ("bin/ls".into(), 0..1024)]
        );
        assert_eq!(found(1, 1000..1025), [("bin/ls".into(), 0..1)]);
        assert_eq!(found(1, 1000..1024), []);
        assert_eq!(found(2, 4999..5000), [("top".into(), 4999..5000)]);
        assert_eq!(found(3, 0..5000), []);
    }

    #[test]
    fn files_that_share_bytes_are_found_where_they_lie() {
        let mut tree = Tree::new();
        put(&mut tree, NodeId::ROOT, "long", file(&[(1, 0..1000, 0)]));
        put(&mut tree, NodeId::ROOT, "short", file(&[(1, 10..20, 0)]));
        let files = FilesByPlace::new(&tree, |_, _| true);
        let parts: Vec<FilePart> = files.within(1, &(500..600)).collect();
        assert_eq!(
            parts,
            [FilePart {
                file: 0,
                range: 500..600
            }]
        );
        assert_eq!(files.within(1, &(15..16)).count(), 2);
    }
}
