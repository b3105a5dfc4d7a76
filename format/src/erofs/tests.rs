//! Promises of the EROFS writer and reader together.

use super::*;
use crate::inode::{Attributes, Device, Timestamp};
use crate::tree::{Directory, Extent, ExtentSource, FileContent};
use crate::{DiffId, Digest, EntryName, Limits, Node, NodeId, NodeKind, Tree};

fn device(len: u64) -> DeviceSlot {
    DeviceSlot {
        diff_id: DiffId(Digest::of(b"layer")),
        plain_len: len,
    }
}

fn attributes(permissions: u16) -> Attributes {
    let mtime = Timestamp {
        secs: 1_700_000_000,
        nanos: 123_456_789,
    };
    Attributes {
        permissions,
        uid: 1000,
        gid: 100_000,
        mtime,
        ..Attributes::default()
    }
}

fn put(tree: &mut Tree, parent: NodeId, name: &str, kind: NodeKind) -> NodeId {
    let id = tree.add(Node {
        kind,
        attributes: attributes(0o640),
    });
    link(tree, parent, name, id);
    id
}

fn link(tree: &mut Tree, parent: NodeId, name: &str, id: NodeId) {
    let name = EntryName::new(name.as_bytes()).unwrap();
    tree.directory_mut(parent).unwrap().entries.insert(name, id);
}

fn directory() -> NodeKind {
    NodeKind::Directory(Directory::default())
}

fn plain(size: u64, plain_off: u64) -> NodeKind {
    let source = ExtentSource::Plain { device: 1, plain_off };
    NodeKind::Regular(FileContent {
        size,
        extents: vec![Extent {
            file_off: 0,
            len: size,
            source,
        }],
    })
}

/// Every kind of node, in breadth-first order of names, so that reading gives the same node ids.
fn sample() -> Tree {
    let mut tree = Tree::new();
    let root = NodeId::ROOT;
    put(
        &mut tree,
        root,
        "!before-dot",
        NodeKind::Regular(FileContent::default()),
    );
    put(&mut tree, root, ".-between-dots", NodeKind::Fifo);
    put(
        &mut tree,
        root,
        "block",
        NodeKind::BlockDevice(Device { major: 8, minor: 300 }),
    );
    put(
        &mut tree,
        root,
        "char",
        NodeKind::CharDevice(Device { major: 1, minor: 3 }),
    );
    let dir = put(&mut tree, root, "dir", directory());
    tree.node_mut(dir).attributes.xattrs = [
        (b"user.a".to_vec(), b"b".to_vec()),
        (b"security.capability".to_vec(), vec![1; 20]),
        (b"system.posix_acl_default".to_vec(), vec![2; 28]),
    ]
    .into();
    let file = put(&mut tree, root, "file", plain(100_000, 1024));
    put(&mut tree, root, "link", NodeKind::Symlink(b"dir/hard".to_vec()));
    put(&mut tree, root, "long-link", NodeKind::Symlink(vec![b'x'; 4095]));
    put(&mut tree, root, "sock", NodeKind::Socket);
    put(&mut tree, root, "whiteout", NodeKind::Whiteout);
    link(&mut tree, dir, "hard", file);
    let opaque = Directory {
        opaque: true,
        ..Directory::default()
    };
    put(&mut tree, dir, "opaque", NodeKind::Directory(opaque));
    let extents = vec![
        Extent {
            file_off: 4096,
            len: 512,
            source: ExtentSource::Plain {
                device: 1,
                plain_off: 512,
            },
        },
        Extent {
            file_off: 8192,
            len: 700,
            source: ExtentSource::Literal(vec![7; 700]),
        },
    ];
    put(
        &mut tree,
        dir,
        "sparse",
        NodeKind::Regular(FileContent { size: 8892, extents }),
    );
    tree
}

#[test]
fn a_tree_survives_writing_and_reading() {
    let tree = sample();
    let written = write_image(&tree, &[device(200_000)]).unwrap();
    let image = Image::open(&written.bytes[..], &Limits::default()).unwrap();
    let (read, nids) = image.to_tree(&Limits::default()).unwrap();
    assert_eq!(read, tree);
    for (index, nid) in nids.iter().enumerate() {
        assert_eq!(written.nid(NodeId(index as u32)), Some(*nid));
    }
}
