//! Single reads agree with the tree that was written.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::erofs::testing::*;
use crate::erofs::{DirEntry, Image, InodeKind, RunSource};
use crate::tree::{ExtentSource, FileContent};
use crate::{Node, NodeId, NodeKind, Tree};

type Entry = (u64, Vec<u8>, u64);

/// Entries from `from` on: cookie, name, node id; at most `count`.
fn entries(image: &Image<&[u8]>, dir: u64, from: u64, count: usize) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut each = |next, entry: DirEntry<'_>| {
        found.push((next, entry.name.to_vec(), entry.nid));
        found.len() < count
    };
    image.read_dir(dir, from, &mut each).unwrap();
    found
}

fn directories(tree: &Tree) -> Vec<NodeId> {
    paths(tree)
        .into_values()
        .filter(|id| tree.directory(*id).is_some())
        .collect()
}

/// What each byte of a file is: plain offset, literal byte or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Byte {
    Zero,
    Plain(u64),
    Literal(u8),
}

fn bytes_of_tree(content: &FileContent) -> Vec<Byte> {
    let mut bytes = vec![Byte::Zero; content.size as usize];
    for extent in &content.extents {
        for index in 0..extent.len as usize {
            bytes[extent.file_off as usize + index] = match &extent.source {
                ExtentSource::Plain { plain_off, .. } => Byte::Plain(plain_off + index as u64),
                ExtentSource::Literal(literal) => Byte::Literal(literal[index]),
            };
        }
    }
    bytes
}

fn bytes_of_image(image: &Image<&[u8]>, nid: u64, off: u64, len: u64) -> Vec<Byte> {
    let mut bytes = Vec::new();
    for run in image.map(nid, off, len).unwrap() {
        assert_eq!(run.file_off, off + bytes.len() as u64);
        bytes.extend((0..run.len).map(|index| match run.source {
            RunSource::Hole => Byte::Zero,
            RunSource::Plain { device, plain_off } => {
                assert_eq!(device, 1);
                Byte::Plain(plain_off + index)
            }
            RunSource::Image { image_off } => Byte::Literal(image.bytes()[(image_off + index) as usize]),
        }));
    }
    bytes
}

fn regular_files(tree: &Tree) -> impl Iterator<Item = (NodeId, &FileContent)> {
    paths(tree)
        .into_values()
        .filter_map(|id| match &tree.node(id).kind {
            NodeKind::Regular(content) => Some((id, content)),
            _ => None,
        })
}

proptest! {
    #[test]
    fn every_name_is_found_and_no_other(tree in any_tree()) {
        let written = write(&tree).unwrap();
        let image = open(&written.bytes);
        for id in directories(&tree) {
            let nid = written.nid(id).unwrap();
            for (name, child) in &tree.directory(id).unwrap().entries {
                prop_assert_eq!(image.lookup(nid, name.as_bytes()).unwrap(), written.nid(*child));
                let longer = [name.as_bytes(), b"~"].concat();
                prop_assert_eq!(image.lookup(nid, &longer).unwrap(), None);
                let shorter = &name.as_bytes()[..name.as_bytes().len() - 1];
                let expected = match shorter {
                    b"." | b".." => continue,
                    _ => tree.child(id, shorter).and_then(|child| written.nid(child)),
                };
                prop_assert_eq!(image.lookup(nid, shorter).unwrap(), expected);
            }
            prop_assert_eq!(image.lookup(nid, b".").unwrap(), Some(nid));
        }
    }

    #[test]
    fn reading_a_directory_goes_on_from_any_cookie(tree in any_tree(), count in 1usize..5) {
        let written = write(&tree).unwrap();
        let image = open(&written.bytes);
        for id in directories(&tree) {
            let nid = written.nid(id).unwrap();
            let whole = entries(&image, nid, 0, usize::MAX);
            let names: BTreeMap<_, _> = whole.iter().map(|(_, name, nid)| (name.clone(), *nid)).collect();
            prop_assert_eq!(names.len(), tree.directory(id).unwrap().entries.len() + 2);
            let mut pieces: Vec<Entry> = Vec::new();
            loop {
                let from = pieces.last().map_or(0, |last| last.0);
                let more = entries(&image, nid, from, count);
                prop_assert!(more.iter().all(|entry| entry.0 > from));
                if more.is_empty() {
                    break;
                }
                pieces.extend(more);
            }
            prop_assert_eq!(whole, pieces);
        }
    }

    #[test]
    fn a_file_maps_to_the_bytes_of_its_extents(tree in any_tree(), off in 0u64..4000, len in 0u64..4000) {
        let written = write(&tree).unwrap();
        let image = open(&written.bytes);
        for (id, content) in regular_files(&tree) {
            let nid = written.nid(id).unwrap();
            let expected = bytes_of_tree(content);
            prop_assert_eq!(&bytes_of_image(&image, nid, 0, u64::MAX), &expected);
            let part: Vec<_> = expected.into_iter().skip(off as usize).take(len as usize).collect();
            prop_assert_eq!(bytes_of_image(&image, nid, off, len), part);
        }
    }

    #[test]
    fn attributes_and_targets_are_those_of_the_tree(tree in any_tree()) {
        let written = write(&tree).unwrap();
        let image = open(&written.bytes);
        for id in paths(&tree).into_values() {
            let nid = written.nid(id).unwrap();
            let Node { kind, attributes } = tree.node(id);
            let mut read = image.attributes(nid).unwrap();
            for (name, value) in &read.xattrs {
                prop_assert_eq!(image.xattr(nid, name).unwrap(), Some(&value[..]));
            }
            prop_assert_eq!(image.xattr(nid, b"user.none").unwrap(), None);
            prop_assert_eq!(image.xattr(nid, b"user.").unwrap(), None);
            if matches!(kind, NodeKind::Directory(directory) if directory.opaque) {
                prop_assert_eq!(read.xattrs.remove(&b"trusted.overlay.opaque"[..]), Some(b"y".to_vec()));
            }
            prop_assert_eq!(&read, attributes);
            if let NodeKind::Symlink(target) = kind {
                prop_assert_eq!(image.read_link(nid).unwrap(), &target[..]);
            }
        }
    }
}

#[test]
fn a_run_in_the_plain_layer_is_one_answer() {
    let mut tree = Tree::new();
    let id = put(&mut tree, NodeId::ROOT, "f", plain_file(PLAIN_LEN - 512, 512));
    let written = write(&tree).unwrap();
    let image = open(&written.bytes);
    let runs = image.map(written.nid(id).unwrap(), 1000, 300_000).unwrap();
    assert_eq!(runs.len(), 1);
    assert_eq!(
        runs[0].source,
        RunSource::Plain {
            device: 1,
            plain_off: 1512
        }
    );
    assert_eq!((runs[0].file_off, runs[0].len), (1000, 300_000));
}

#[test]
fn mapping_ends_with_the_file() {
    let mut tree = Tree::new();
    let id = put(&mut tree, NodeId::ROOT, "f", plain_file(700, 0));
    let written = write(&tree).unwrap();
    let image = open(&written.bytes);
    let nid = written.nid(id).unwrap();
    assert_eq!(image.map(nid, 600, u64::MAX).unwrap()[0].len, 100);
    assert!(image.map(nid, 700, 1).unwrap().is_empty());
    assert!(image.map(nid, u64::MAX, u64::MAX).unwrap().is_empty());
}

#[test]
fn reads_of_the_wrong_kind_are_errors() {
    let mut tree = Tree::new();
    let file = put(&mut tree, NodeId::ROOT, "f", plain_file(700, 0));
    let written = write(&tree).unwrap();
    let image = open(&written.bytes);
    let (root, file) = (image.root(), written.nid(file).unwrap());
    assert_eq!(image.inode(root).unwrap().kind, InodeKind::Directory);
    assert!(image.lookup(file, b"x").is_err());
    assert!(image.read_dir(file, 0, &mut |_, _| true).is_err());
    assert!(image.read_link(file).is_err());
    assert!(image.read_link(root).is_err());
    assert!(image.map(root, 0, 1).is_err());
    assert!(image.inode(u64::MAX).is_err());
}

#[test]
fn the_device_table_names_the_plain_layers() {
    let slots = [slot(0), slot(513), slot(1 << 30)];
    let written = crate::erofs::write_image(&Tree::new(), &slots).unwrap();
    let expected = slots.map(|slot| (slot.diff_id, slot.plain_len.next_multiple_of(512)));
    assert_eq!(open(&written.bytes).devices(), expected);
}
