//! Trees for tests.

use std::ops::Range;

use sluice_format::inode::Attributes;
use sluice_format::tree::{Directory, Extent, ExtentSource, FileContent};
use sluice_format::{EntryName, Node, NodeId, NodeKind, Tree};

pub(crate) fn directory() -> NodeKind {
    NodeKind::Directory(Directory::default())
}

/// A file of extents: device, plain range, and offset in the file.
pub(crate) fn file(extents: &[(u16, Range<u64>, u64)]) -> NodeKind {
    let extents = extents.iter().map(|(device, plain, file_off)| Extent {
        file_off: *file_off,
        len: plain.end - plain.start,
        source: ExtentSource::Plain {
            device: *device,
            plain_off: plain.start,
        },
    });
    let extents: Vec<Extent> = extents.collect();
    let ends = extents.iter().map(|extent| extent.file_off + extent.len);
    NodeKind::Regular(FileContent {
        size: ends.max().unwrap_or(0),
        extents,
    })
}

pub(crate) fn put(tree: &mut Tree, parent: NodeId, name: &str, kind: NodeKind) -> NodeId {
    let attributes = Attributes::default_directory();
    let id = tree.add(Node { kind, attributes });
    link(tree, parent, name, id);
    id
}

pub(crate) fn link(tree: &mut Tree, parent: NodeId, name: &str, id: NodeId) {
    let name = EntryName::new(name.as_bytes()).unwrap();
    tree.directory_mut(parent).unwrap().entries.insert(name, id);
}
