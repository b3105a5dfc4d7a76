//! Trees for tests: short ways to build them by hand, and random ones over a small alphabet.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{DeviceSlot, Image, WrittenImage, write_image};
use crate::inode::{Attributes, Device, Timestamp, Xattrs};
use crate::tree::{Directory, Extent, ExtentSource, FileContent};
use crate::{DiffId, Digest, EntryName, FormatError, Limits, Node, NodeId, NodeKind, Tree};

/// Length of the plain layers of random trees.
pub(crate) const PLAIN_LEN: u64 = 1 << 20;

pub(crate) fn slot(plain_len: u64) -> DeviceSlot {
    DeviceSlot {
        diff_id: DiffId(Digest::of(b"layer")),
        plain_len,
    }
}

pub(crate) fn write(tree: &Tree) -> Result<WrittenImage, FormatError> {
    write_image(tree, &[slot(PLAIN_LEN)])
}

pub(crate) fn open(bytes: &[u8]) -> Image<&[u8]> {
    Image::open(bytes, &Limits::default()).unwrap()
}

pub(crate) fn name(text: &str) -> EntryName {
    EntryName::new(text.as_bytes()).unwrap()
}

pub(crate) fn directory() -> NodeKind {
    NodeKind::Directory(Directory::default())
}

pub(crate) fn whole_extent(size: u64, plain_off: u64) -> Vec<Extent> {
    vec![Extent {
        file_off: 0,
        len: size,
        source: ExtentSource::Plain { device: 1, plain_off },
    }]
}

pub(crate) fn plain_file(size: u64, plain_off: u64) -> NodeKind {
    NodeKind::Regular(FileContent {
        size,
        extents: whole_extent(size, plain_off),
    })
}

/// Adds a node with some attributes at `parent`/`name`.
pub(crate) fn put(tree: &mut Tree, parent: NodeId, text: &str, kind: NodeKind) -> NodeId {
    let mtime = Timestamp {
        secs: 1_700_000_000,
        nanos: 123_456_789,
    };
    let attributes = Attributes {
        permissions: 0o4640,
        uid: 1000,
        gid: 100_000,
        mtime,
        ..Attributes::default()
    };
    let id = tree.add(Node { kind, attributes });
    link(tree, parent, text, id);
    id
}

pub(crate) fn link(tree: &mut Tree, parent: NodeId, text: &str, id: NodeId) {
    tree.directory_mut(parent).unwrap().entries.insert(name(text), id);
}

/// Every path of a tree with its node, the root as the empty path.
pub(crate) fn paths(tree: &Tree) -> BTreeMap<Vec<u8>, NodeId> {
    let mut found = BTreeMap::from([(Vec::new(), NodeId::ROOT)]);
    let mut pending = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((path, id)) = pending.pop() {
        for (name, child) in tree.directory(id).iter().flat_map(|directory| &directory.entries) {
            let path = [&path[..], b"/", name.as_bytes()].concat();
            found.insert(path.clone(), *child);
            pending.push((path, *child));
        }
    }
    found
}

/// The tree as a reader gives it back: ids breadth first, neighbouring extents joined.
pub(crate) fn normalized(tree: &Tree) -> Tree {
    let mut result = Tree::new();
    let mut ids = BTreeMap::from([(NodeId::ROOT, NodeId::ROOT)]);
    *result.node_mut(NodeId::ROOT) = bare(tree.node(NodeId::ROOT));
    let mut queue = vec![NodeId::ROOT];
    let mut next = 0;
    while let Some(id) = queue.get(next).copied() {
        next += 1;
        for (name, child) in tree.directory(id).iter().flat_map(|directory| &directory.entries) {
            let target = *ids.entry(*child).or_insert_with(|| {
                queue.push(*child);
                result.add(bare(tree.node(*child)))
            });
            result
                .directory_mut(ids[&id])
                .unwrap()
                .entries
                .insert(name.clone(), target);
        }
    }
    result
}

/// A node without entries and with joined extents.
fn bare(node: &Node) -> Node {
    let mut node = node.clone();
    match &mut node.kind {
        NodeKind::Directory(directory) => directory.entries.clear(),
        NodeKind::Regular(content) => content.extents = joined(&content.extents),
        _ => {}
    }
    node
}

fn joined(extents: &[Extent]) -> Vec<Extent> {
    let mut result: Vec<Extent> = Vec::new();
    for extent in extents {
        if let Some(last) = result
            .last_mut()
            .filter(|last| last.file_off + last.len == extent.file_off)
        {
            let grown = last.len;
            match (&mut last.source, &extent.source) {
                (
                    ExtentSource::Plain { device, plain_off },
                    ExtentSource::Plain {
                        device: next_device,
                        plain_off: next,
                    },
                ) if device == next_device && *plain_off + grown == *next => {
                    last.len += extent.len;
                    continue;
                }
                (ExtentSource::Literal(bytes), ExtentSource::Literal(more)) => {
                    bytes.extend_from_slice(more);
                    last.len += extent.len;
                    continue;
                }
                _ => {}
            }
        }
        result.push(extent.clone());
    }
    result
}

/// What a piece of a random file is made of.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Hole,
    /// In the plain layer from this block on.
    Plain(u64),
    /// In the plain layer behind the piece before, if that was in it.
    Next,
    Literal(u8),
}

fn any_piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        Just(Piece::Hole),
        (0u64..1024).prop_map(Piece::Plain),
        Just(Piece::Next),
        any::<u8>().prop_map(Piece::Literal)
    ]
}

/// Files of up to six pieces; the last block may be incomplete.
fn any_content() -> impl Strategy<Value = FileContent> {
    (vec((any_piece(), 1u64..9), 0..7), 0u64..512).prop_map(|(pieces, cut)| {
        let blocks: u64 = pieces.iter().map(|(_, blocks)| blocks).sum();
        let size = (blocks * 512).saturating_sub(cut);
        let mut extents = Vec::new();
        let (mut file_off, mut behind) = (0, 0);
        for (piece, blocks) in pieces {
            let len = (blocks * 512).min(size - file_off);
            let plain_off = match piece {
                Piece::Plain(block) => block * 512,
                _ => behind,
            };
            let source = match piece {
                Piece::Hole => None,
                Piece::Plain(_) | Piece::Next => Some(ExtentSource::Plain { device: 1, plain_off }),
                Piece::Literal(byte) => Some(ExtentSource::Literal(vec![byte; len as usize])),
            };
            extents.extend(source.map(|source| Extent {
                file_off,
                len,
                source,
            }));
            behind = plain_off + blocks * 512;
            file_off += len;
        }
        FileContent { size, extents }
    })
}

fn any_target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(1usize), 300usize..700, Just(4095)].prop_map(|len| vec![b't'; len])
}

/// Kinds that are no directory.
fn any_leaf() -> impl Strategy<Value = NodeKind> {
    prop_oneof![
        4 => any_content().prop_map(NodeKind::Regular),
        2 => any_target().prop_map(NodeKind::Symlink),
        1 => (1u32..4096, 0u32..=0xf_ffff).prop_map(|(major, minor)| NodeKind::CharDevice(Device { major, minor })),
        1 => (0u32..4096, 0u32..=0xf_ffff).prop_map(|(major, minor)| NodeKind::BlockDevice(Device { major, minor })),
        1 => Just(NodeKind::Fifo),
        1 => Just(NodeKind::Socket),
        1 => Just(NodeKind::Whiteout),
    ]
}

fn any_xattrs() -> impl Strategy<Value = Xattrs> {
    let names = prop_oneof![
        Just(&b"user.a"[..]),
        Just(&b"user.b"[..]),
        Just(&b"trusted.t"[..]),
        Just(&b"security.capability"[..]),
        Just(&b"system.posix_acl_access"[..]),
        Just(&b"system.posix_acl_default"[..]),
    ];
    let value = (any::<u8>(), prop_oneof![0usize..40, 400usize..600]).prop_map(|(byte, len)| vec![byte; len]);
    proptest::collection::btree_map(names.prop_map(<[u8]>::to_vec), value, 0..4)
}

pub(crate) fn any_attributes() -> impl Strategy<Value = Attributes> {
    let xattrs = prop_oneof![3 => Just(Xattrs::new()), 1 => any_xattrs()];
    (
        0u16..=0o7777,
        any::<u32>(),
        any::<u32>(),
        0..=i64::MAX as u64,
        0u32..1_000_000_000,
        xattrs,
    )
        .prop_map(|(permissions, uid, gid, secs, nanos, xattrs)| Attributes {
            permissions,
            uid,
            gid,
            mtime: Timestamp { secs, nanos },
            xattrs,
        })
}

/// Names around `.` and `..` in byte order, short and long.
fn any_name() -> impl Strategy<Value = EntryName> {
    let long = |byte: u8| EntryName::new(&[byte; 255]).unwrap();
    prop_oneof![
        3 => (0u8..5).prop_map(|n| EntryName::new(&[b'a' + n]).unwrap()),
        1 => prop_oneof![Just("!"), Just(".-"), Just("..a"), Just("-"), Just(".a")].prop_map(name),
        1 => (0u16..400).prop_map(|n| name(&format!("entry-{n}"))),
        1 => prop_oneof![Just(long(b'l')), Just(long(0xff)), Just(long(b'!'))],
    ]
}

/// A step in building a tree.
#[derive(Clone, Debug)]
enum Step {
    Put(NodeKind, Attributes),
    /// A second name of some file put before.
    Link(prop::sample::Index),
    /// A directory of so many entries.
    Fill(u16),
}

fn any_step() -> impl Strategy<Value = (Vec<EntryName>, Step)> {
    let directory = any::<bool>().prop_map(|opaque| {
        NodeKind::Directory(Directory {
            opaque,
            ..Directory::default()
        })
    });
    let kind = prop_oneof![1 => directory, 4 => any_leaf()];
    let step = prop_oneof![
        12 => (kind, any_attributes()).prop_map(|(kind, attributes)| Step::Put(kind, attributes)),
        3 => any::<prop::sample::Index>().prop_map(Step::Link),
        1 => (0u16..200).prop_map(Step::Fill),
    ];
    (vec(any_name(), 1..4), step)
}

/// Trees of one layer over few names, so that hard links, deep and wide directories are common.
pub(crate) fn any_tree() -> impl Strategy<Value = Tree> {
    (vec(any_step(), 0..25), any_attributes()).prop_map(|(steps, attributes)| {
        let mut tree = Tree::new();
        tree.node_mut(NodeId::ROOT).attributes = attributes;
        let mut files = Vec::new();
        for (path, step) in steps {
            take_step(&mut tree, &mut files, &path, step);
        }
        tree
    })
}

fn take_step(tree: &mut Tree, files: &mut Vec<NodeId>, path: &[EntryName], step: Step) {
    let (last, parents) = path.split_last().unwrap();
    let Some(parent) = make_directories(tree, parents) else {
        return;
    };
    if tree.child(parent, last.as_bytes()).is_some() {
        return;
    }
    let id = match step {
        Step::Put(kind, attributes) => {
            let id = tree.add(Node { kind, attributes });
            if tree.directory(id).is_none() {
                files.push(id);
            }
            id
        }
        Step::Link(target) if !files.is_empty() => *target.get(files),
        Step::Link(..) => return,
        Step::Fill(count) => {
            let id = tree.add(Node {
                kind: directory(),
                attributes: Attributes::default_directory(),
            });
            (0..count).for_each(|n| _ = put(tree, id, &format!("entry-{n}"), NodeKind::Fifo));
            id
        }
    };
    tree.directory_mut(parent)
        .unwrap()
        .entries
        .insert(last.clone(), id);
}

/// The directory at `path`, made where missing; `None` when something else is in the way.
fn make_directories(tree: &mut Tree, path: &[EntryName]) -> Option<NodeId> {
    path.iter().try_fold(NodeId::ROOT, |at, name| {
        let child = tree.child(at, name.as_bytes()).unwrap_or_else(|| {
            let id = tree.add(Node {
                kind: directory(),
                attributes: Attributes::default_directory(),
            });
            tree.directory_mut(at).unwrap().entries.insert(name.clone(), id);
            id
        });
        tree.directory(child).map(|_| child)
    })
}
