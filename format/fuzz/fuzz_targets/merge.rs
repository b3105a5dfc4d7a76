//! Stacks of layers: a merge of any layers gives a tree that survives as an image, or an error.
//!
//! The input is a list of four-byte steps that build layers over a small alphabet of names. Each layer goes through an
//! EROFS image of its own, as it does in a layer index.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::erofs::{DeviceSlot, Image, write_image};
use sluice_format::inode::{Attributes, Device};
use sluice_format::merge::merge;
use sluice_format::tree::{DeferredLink, Directory, Extent, ExtentSource, FileContent};
use sluice_format::{DiffId, Digest, EntryName, LayerTree, Limits, Node, NodeId, NodeKind, Tree};

/// Plain length of every layer.
const PLAIN_LEN: u64 = 1 << 20;
/// Names of a path; one byte of a step chooses up to three of them.
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"!"];

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        layers: 16,
        ..Limits::default()
    };
    let mut layers = vec![LayerTree::default()];
    for step in data.chunks_exact(4) {
        if step[0] == 0xff {
            layers.push(LayerTree::default());
        } else {
            take_step(layers.last_mut().expect("the list is never empty"), step);
        }
    }
    let devices: Vec<_> = (0..layers.len() as u64).map(device).collect();
    let layers: Vec<_> = layers
        .into_iter()
        .map(|layer| through_image(layer, &limits))
        .collect();
    let Ok(tree) = merge(layers, &limits) else { return };
    check_final(&tree, &devices, &limits);
});

fn device(number: u64) -> DeviceSlot {
    DeviceSlot {
        diff_id: DiffId(Digest::of(&number.to_le_bytes())),
        plain_len: PLAIN_LEN,
    }
}

fn path(byte: u8) -> Vec<EntryName> {
    let count = usize::from(byte >> 6).clamp(1, 3);
    let name = |part| NAMES[usize::from(byte >> (2 * part)) & 3];
    (0..count)
        .map(|part| EntryName::new(name(part)).expect("a plain name"))
        .collect()
}

/// `[kind, path, argument, argument]`.
fn take_step(layer: &mut LayerTree, step: &[u8]) {
    let path = path(step[1]);
    let Some((name, parents)) = path.split_last() else {
        return;
    };
    if step[0] % 10 == 9 {
        let target = self::path(step[2]);
        layer.deferred_links.push(DeferredLink { path, target });
        return;
    }
    let tree = &mut layer.tree;
    let mut parent = NodeId::ROOT;
    for part in parents {
        parent = match tree.child(parent, part.as_bytes()) {
            Some(child) => child,
            None => add(tree, parent, part, directory(0b10), 0),
        };
        if tree.directory(parent).is_none() {
            return;
        }
    }
    let kind = match step[0] % 10 {
        0 | 1 => directory(step[2]),
        2 => NodeKind::Regular(content(step[2], step[3])),
        3 => {
            NodeKind::Symlink([b"../a", &b"/b/c"[..], b"c", b"../../a/b"][usize::from(step[2]) % 4].to_vec())
        }
        4 => NodeKind::Whiteout,
        5 => NodeKind::CharDevice(Device {
            major: (step[2] % 2).into(),
            minor: 0,
        }),
        6 => NodeKind::Fifo,
        7 => NodeKind::BlockDevice(Device {
            major: 1,
            minor: step[2].into(),
        }),
        _ => {
            if let Some(id) = target(tree, step[2]) {
                insert(tree, parent, name, id);
            }
            return;
        }
    };
    add(tree, parent, name, kind, step[3].into());
}

fn directory(flags: u8) -> NodeKind {
    NodeKind::Directory(Directory {
        opaque: flags & 1 != 0,
        implied: flags & 2 != 0,
        ..Directory::default()
    })
}

/// Up to eight blocks; each bit of `blocks` chooses between plain layer and hole or literal.
fn content(blocks: u8, tail: u8) -> FileContent {
    let size = 8 * 512 - u64::from(tail);
    let extent = |block: u64| {
        let file_off = block * 512;
        let len = 512.min(size - file_off);
        let source = if blocks & (1 << block) != 0 {
            ExtentSource::Plain {
                device: 1,
                plain_off: file_off,
            }
        } else if tail % 2 == 0 {
            ExtentSource::Literal(vec![tail; len as usize])
        } else {
            return None;
        };
        Some(Extent {
            file_off,
            len,
            source,
        })
    };
    FileContent {
        size,
        extents: (0..8).filter_map(extent).collect(),
    }
}

/// A node of the layer that may have a second name.
fn target(tree: &Tree, choice: u8) -> Option<NodeId> {
    let id = NodeId(u32::from(choice) % tree.nodes().len() as u32);
    tree.directory(id).is_none().then_some(id)
}

fn add(tree: &mut Tree, parent: NodeId, name: &EntryName, kind: NodeKind, uid: u32) -> NodeId {
    let mut attributes = Attributes {
        uid,
        ..Attributes::default_directory()
    };
    if uid % 3 == 1 {
        attributes
            .xattrs
            .insert(b"user.a".to_vec(), vec![7; 2 * uid as usize]);
    }
    let id = tree.add(Node { kind, attributes });
    insert(tree, parent, name, id);
    id
}

fn insert(tree: &mut Tree, parent: NodeId, name: &EntryName, id: NodeId) {
    if let Some(directory) = tree.directory_mut(parent) {
        directory.entries.insert(name.clone(), id);
    }
}

/// The layer as it comes out of its image; only the image of a directory does not tell whether it was implied.
fn through_image(layer: LayerTree, limits: &Limits) -> LayerTree {
    let written =
        write_image(&layer.tree, &[device(0)]).expect("layers are built within the limits of the format");
    let image = Image::open(&written.bytes[..], limits).expect("written images open");
    let (mut tree, nids) = image.to_tree(limits).expect("written images can be read");
    for (index, node) in layer.tree.nodes().iter().enumerate() {
        let NodeKind::Directory(directory) = &node.kind else {
            continue;
        };
        let nid = written.nid(NodeId(index as u32));
        let read = nid.and_then(|nid| nids.iter().position(|other| *other == nid));
        if let Some(read) = read.and_then(|read| tree.directory_mut(NodeId(read as u32))) {
            assert_eq!(read.opaque, directory.opaque);
            read.implied = directory.implied;
        }
    }
    LayerTree {
        tree,
        deferred_links: layer.deferred_links,
    }
}

/// A merged tree holds nothing of layers, and survives as an image.
fn check_final(tree: &Tree, devices: &[DeviceSlot], limits: &Limits) {
    let first = write_image(tree, devices)
        .expect("merged trees fit the format")
        .bytes;
    let (read, _) = Image::open(&first[..], limits)
        .and_then(|image| image.to_tree(limits))
        .expect("written images can be read");
    for node in read.nodes() {
        match &node.kind {
            NodeKind::Directory(directory) => assert!(!directory.opaque && !directory.implied),
            kind => assert_ne!(*kind, NodeKind::Whiteout),
        }
    }
    let again = write_image(&read, devices).expect("read trees fit the format").bytes;
    // Not `assert_eq`: the images are too large to be printed.
    assert!(again == first);
}
