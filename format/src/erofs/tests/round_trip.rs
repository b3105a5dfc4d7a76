//! A tree survives writing and reading, and the same tree always gives the same bytes.

use proptest::prelude::*;

use crate::erofs::layout::{BLOCK_LEN, ExtendedInode, SLOT_LEN};
use crate::erofs::testing::*;
use crate::erofs::write_image;
use crate::inode::Device;
use crate::tree::{Directory, Extent, ExtentSource, FileContent};
use crate::{Digest, Limits, NodeId, NodeKind, Tree};

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
    let file = put(&mut tree, root, "file", plain_file(100_000, 1024));
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
fn every_kind_of_node_survives() {
    let tree = sample();
    let written = write(&tree).unwrap();
    let (read, nids) = open(&written.bytes).to_tree(&Limits::default()).unwrap();
    assert_eq!(read, tree);
    for (index, nid) in (0..).zip(nids) {
        assert_eq!(written.nid(NodeId(index)), Some(nid));
    }
}

/// The bytes are part of the format: image trees are named by what they were made from, not by their own digest.
#[test]
fn the_bytes_of_an_image_never_change() {
    let digest = Digest::of(&write(&sample()).unwrap().bytes);
    assert_eq!(
        digest.to_hex(),
        "91fc90f28b4adcfa7649ab917d06cfdc2afdb7dd659f539f4af8af1f1293cecd"
    );
}

#[test]
fn nodes_without_a_name_are_left_out() {
    let mut tree = Tree::new();
    let lost = put(&mut tree, NodeId::ROOT, "lost", NodeKind::Fifo);
    put(&mut tree, NodeId::ROOT, "kept", NodeKind::Socket);
    tree.directory_mut(NodeId::ROOT)
        .unwrap()
        .entries
        .remove(&b"lost"[..]);
    let written = write(&tree).unwrap();
    assert_eq!(written.nid(lost), None);
    let (read, _) = open(&written.bytes).to_tree(&Limits::default()).unwrap();
    assert_eq!(read.nodes().len(), 2);
}

#[test]
fn a_file_in_one_run_is_one_chunk_whatever_its_size() {
    const GIB: u64 = 1 << 30;
    let images = [513, 5 * GIB + 1, 900 * GIB].map(|size| {
        let mut tree = Tree::new();
        put(&mut tree, NodeId::ROOT, "file", plain_file(size, 512));
        write_image(&tree, &[slot(1 << 40)]).unwrap().bytes.len()
    });
    assert_eq!(images, [images[0]; 3]);
}

#[test]
fn a_file_without_data_takes_one_chunk_entry() {
    let mut tree = Tree::new();
    let hole = FileContent {
        size: 1 << 40,
        extents: vec![],
    };
    put(&mut tree, NodeId::ROOT, "hole", NodeKind::Regular(hole));
    let written = write(&tree).unwrap();
    assert!(written.bytes.len() < 4096, "{}", written.bytes.len());
    let (read, _) = open(&written.bytes).to_tree(&Limits::default()).unwrap();
    assert_eq!(read, tree);
}

#[test]
fn the_borders_of_a_sparse_file_choose_its_chunk_size() {
    const MIB: u64 = 1 << 20;
    let source = ExtentSource::Plain {
        device: 1,
        plain_off: 0,
    };
    let sparse = |border| {
        let extents = vec![Extent {
            file_off: border,
            len: 512,
            source: source.clone(),
        }];
        let mut tree = Tree::new();
        put(
            &mut tree,
            NodeId::ROOT,
            "f",
            NodeKind::Regular(FileContent {
                size: border + 512,
                extents,
            }),
        );
        write(&tree).unwrap().bytes.len() as u64
    };
    assert!(sparse(512 * MIB) < 4096);
    assert!(sparse(512 * MIB + 64 * 1024) > 8 * 512 * 16);
}

proptest! {
    #[test]
    fn any_tree_survives(tree in any_tree()) {
        let written = write(&tree).unwrap();
        let (read, nids) = open(&written.bytes).to_tree(&Limits::default()).unwrap();
        prop_assert_eq!(&read, &normalized(&tree));
        for id in paths(&tree).values() {
            prop_assert!(nids.contains(&written.nid(*id).unwrap()));
        }
    }

    #[test]
    fn equal_trees_give_equal_bytes(tree in any_tree()) {
        let first = write(&tree).unwrap().bytes;
        prop_assert_eq!(&first, &write(&tree).unwrap().bytes);
        prop_assert_eq!(&first, &write(&normalized(&tree)).unwrap().bytes);
    }

    #[test]
    fn no_inode_crosses_a_block(tree in any_tree()) {
        let written = write(&tree).unwrap();
        for id in paths(&tree).values() {
            let offset = written.nid(*id).unwrap() as usize * SLOT_LEN;
            prop_assert!(offset % BLOCK_LEN + size_of::<ExtendedInode>() <= BLOCK_LEN);
        }
    }

    #[test]
    fn link_counts_are_those_of_the_names(tree in any_tree()) {
        let written = write(&tree).unwrap();
        let image = open(&written.bytes);
        let paths = paths(&tree);
        for id in paths.values() {
            let expected = match tree.directory(*id) {
                Some(directory) => 2 + directory.entries.values().filter(|id| tree.directory(**id).is_some()).count(),
                None => paths.values().filter(|other| *other == id).count(),
            };
            prop_assert_eq!(image.inode(written.nid(*id).unwrap()).unwrap().nlink as usize, expected);
        }
    }
}
