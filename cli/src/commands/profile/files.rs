//! Which files of an image lie in a plain range of a layer.

use std::collections::BTreeMap;
use std::ops::Range;

use sluice_format::name::Printable;
use sluice_format::tree::ExtentSource;
use sluice_format::{NodeId, NodeKind, Tree};

/// Files shown per range.
const SHOWN_MAX: usize = 3;

/// The files of an image tree by where their bytes lie.
#[derive(Debug)]
pub(super) struct FilesByPlace {
    /// By device; sorted by range.
    extents: BTreeMap<u16, Vec<(Range<u64>, usize)>>,
    paths: Vec<String>,
}

impl FilesByPlace {
    /// The files of an image tree; of several names of one file the first counts.
    pub(super) fn new(tree: &Tree) -> Self {
        let mut files = Self {
            extents: BTreeMap::new(),
            paths: Vec::new(),
        };
        let mut seen = vec![false; tree.nodes().len()];
        let mut open = vec![(NodeId::ROOT, String::new())];
        while let Some((id, path)) = open.pop() {
            if std::mem::replace(&mut seen[id.0 as usize], true) {
                continue;
            }
            if let Some(directory) = tree.directory(id) {
                let child = |name| format!("{path}/{}", Printable(name));
                let children = directory.entries.iter().rev();
                open.extend(children.map(|(name, id)| (*id, child(name.as_bytes()))));
            }
            files.add(&tree.node(id).kind, path);
        }
        for extents in files.extents.values_mut() {
            extents.sort_by_key(|(plain, _)| (plain.start, plain.end));
        }
        files
    }

    fn add(&mut self, kind: &NodeKind, path: String) {
        let NodeKind::Regular(content) = kind else { return };
        let at = self.paths.len();
        self.paths.push(path);
        for extent in &content.extents {
            if let ExtentSource::Plain { device, plain_off } = extent.source {
                let plain = plain_off..plain_off.saturating_add(extent.len);
                self.extents.entry(device).or_default().push((plain, at));
            }
        }
    }

    /// Paths of the files in `plain` of the layer behind `device`, in the order in which they lie there.
    pub(super) fn within(&self, device: u16, plain: &Range<u64>) -> Vec<&str> {
        let extents = self.extents.get(&device).map_or(&[][..], Vec::as_slice);
        let first = extents.partition_point(|(extent, _)| extent.end <= plain.start);
        let mut paths: Vec<&str> = extents[first..]
            .iter()
            .take_while(|(extent, _)| extent.start < plain.end)
            .map(|(_, at)| self.paths[*at].as_str())
            .collect();
        paths.dedup();
        paths
    }
}

/// A few names for people.
pub(super) fn shortened(paths: &[&str]) -> String {
    let mut text = paths[..paths.len().min(SHOWN_MAX)].join(" ");
    if paths.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more", paths.len() - SHOWN_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use sluice_format::inode::Attributes;
    use sluice_format::tree::{Directory, Extent, FileContent};
    use sluice_format::{EntryName, Node};

    use super::*;

    fn file(extents: &[(u16, Range<u64>)]) -> NodeKind {
        let mut size = 0;
        let extents = extents.iter().map(|(device, plain)| {
            let len = plain.end - plain.start;
            let source = ExtentSource::Plain {
                device: *device,
                plain_off: plain.start,
            };
            size += len;
            Extent {
                file_off: size - len,
                len,
                source,
            }
        });
        let extents = extents.collect();
        NodeKind::Regular(FileContent { size, extents })
    }

    fn put(tree: &mut Tree, parent: NodeId, name: &str, kind: NodeKind) -> NodeId {
        let id = tree.add(Node {
            kind,
            attributes: Attributes::default(),
        });
        link(tree, parent, name, id);
        id
    }

    fn link(tree: &mut Tree, parent: NodeId, name: &str, id: NodeId) {
        let name = EntryName::new(name.as_bytes()).unwrap();
        tree.directory_mut(parent).unwrap().entries.insert(name, id);
    }

    #[test]
    fn files_are_found_by_device_and_range() {
        let mut tree = Tree::new();
        let bin = put(
            &mut tree,
            NodeId::ROOT,
            "bin",
            NodeKind::Directory(Directory::default()),
        );
        let shell = put(&mut tree, bin, "sh", file(&[(1, 512..1000), (1, 2048..4096)]));
        put(&mut tree, bin, "ls", file(&[(1, 1024..2048)]));
        put(&mut tree, NodeId::ROOT, "top\n", file(&[(2, 0..5000)]));
        link(&mut tree, NodeId::ROOT, "zsh", shell);
        let files = FilesByPlace::new(&tree);
        assert_eq!(files.within(1, &(0..5000)), ["/bin/sh", "/bin/ls", "/bin/sh"]);
        assert_eq!(files.within(1, &(1000..1025)), ["/bin/ls"]);
        assert!(files.within(1, &(1000..1024)).is_empty());
        assert_eq!(files.within(2, &(4999..5000)), ["/top\\n"]);
        assert!(files.within(3, &(0..5000)).is_empty());
        assert_eq!(shortened(&["a", "b", "c", "d", "e"]), "a b c and 2 more");
        assert_eq!(shortened(&[]), "");
    }
}
