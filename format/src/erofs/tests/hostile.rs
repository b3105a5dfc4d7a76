//! Bytes of an attacker give errors: no panic, no loop, no memory beyond the limits.

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::erofs::layout::{ChunkIndex, Dirent, ExtendedInode, SLOT_LEN, SUPER_OFFSET, SuperBlock};
use crate::erofs::testing::*;
use crate::erofs::{Image, InodeKind};
use crate::{FormatError, Limits, NodeId, NodeKind, Tree};

/// Reads all there is to read.
fn read_everything(bytes: &[u8]) -> Result<(), FormatError> {
    let image = Image::open(bytes, &Limits::default())?;
    for nid in 0..(bytes.len() / SLOT_LEN) as u64 {
        let Ok(inode) = image.inode(nid) else { continue };
        _ = image.xattrs(nid);
        _ = image.xattr(nid, b"user.a");
        match inode.kind {
            InodeKind::Directory => {
                _ = image.lookup(nid, b"entry-7");
                _ = image.read_dir(nid, nid, &mut |_, _| true);
            }
            InodeKind::Regular => _ = image.map(nid, 100, 1 << 20),
            _ => _ = image.read_link(nid),
        }
    }
    image.to_tree(&Limits::default()).map(|_| ())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn changed_bytes_do_no_harm(
        tree in any_tree(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = write(&tree).unwrap().bytes;
        for (place, byte) in changes {
            let place = SUPER_OFFSET + place.index(bytes.len() - SUPER_OFFSET);
            bytes[place] = byte;
        }
        _ = read_everything(&bytes);
    }

    #[test]
    fn a_cut_image_is_refused(tree in any_tree(), end in any::<prop::sample::Index>()) {
        let bytes = write(&tree).unwrap().bytes;
        prop_assert!(Image::open(&bytes[..end.index(bytes.len())], &Limits::default()).is_err());
    }
}

/// An image of `tree` after `change`, which gets the bytes and a way from nodes to the offsets of their inodes.
fn changed(tree: &Tree, change: impl FnOnce(&mut [u8], &dyn Fn(NodeId) -> usize)) -> Vec<u8> {
    let written = write(tree).unwrap();
    let mut bytes = written.bytes.clone();
    change(&mut bytes, &|id| written.nid(id).unwrap() as usize * SLOT_LEN);
    bytes
}

fn tree_error(bytes: &[u8], limits: &Limits) -> String {
    open(bytes).to_tree(limits).unwrap_err().to_string()
}

fn change_at<T>(bytes: &mut [u8], offset: usize, change: impl FnOnce(&mut T))
where
    T: FromBytes + IntoBytes + zerocopy::KnownLayout + zerocopy::Immutable,
{
    let (mut value, _) = T::read_from_prefix(&bytes[offset..]).unwrap();
    change(&mut value);
    value.write_to_prefix(&mut bytes[offset..]).unwrap();
}

/// Offset of the entry at `index` of a directory whose blocks are all inline.
fn inline_dirent(inode: usize, index: usize) -> usize {
    inode + size_of::<ExtendedInode>() + index * size_of::<Dirent>()
}

#[test]
fn other_formats_and_features_are_named() {
    let bytes = write(&Tree::new()).unwrap().bytes;
    let open_error = |change: &dyn Fn(&mut SuperBlock)| {
        let mut bytes = bytes.clone();
        change_at(&mut bytes, SUPER_OFFSET, change);
        Image::open(&bytes[..], &Limits::default())
            .unwrap_err()
            .to_string()
    };
    assert!(open_error(&|sb| sb.magic = 7.into()).contains("magic"));
    let message = open_error(&|sb| sb.incompat = 0x5c.into());
    assert_eq!(message, "EROFS needs a newer Sluice: feature bits 0x50");
    assert!(open_error(&|sb| sb.block_bits = 12).contains("block sizes"));
    assert!(open_error(&|sb| sb.meta_address = 1.into()).contains("block sizes"));
    assert!(open_error(&|sb| sb.blocks = 1.into()).contains("another length"));
    assert!(open_error(&|sb| sb.root_nid = 0.into()).contains("inode 0"));
    assert!(open_error(&|sb| sb.extra_devices = 60_000.into()).contains("over the limit of 512"));
    assert!(open_error(&|sb| sb.device_table = 60_000.into()).contains("outside of the image"));
}

#[test]
fn a_directory_in_itself_is_refused() {
    let mut tree = Tree::new();
    let dir = put(&mut tree, NodeId::ROOT, "d", directory());
    put(&mut tree, dir, "e", directory());
    let bytes = changed(&tree, |bytes, at| {
        let up = (at(dir) / SLOT_LEN) as u64;
        change_at::<Dirent>(bytes, inline_dirent(at(dir), 2), |dirent| dirent.nid = up.into());
    });
    assert!(tree_error(&bytes, &Limits::default()).contains("directory with two names"));
}

#[test]
fn dot_dot_that_leads_elsewhere_is_refused() {
    let mut tree = Tree::new();
    let dir = put(&mut tree, NodeId::ROOT, "d", directory());
    let bytes = changed(&tree, |bytes, at| {
        let own = (at(dir) / SLOT_LEN) as u64;
        change_at::<Dirent>(bytes, inline_dirent(at(dir), 1), |dirent| dirent.nid = own.into());
    });
    assert!(tree_error(&bytes, &Limits::default()).contains("leads elsewhere"));
}

#[test]
fn names_out_of_order_are_refused() {
    let mut tree = Tree::new();
    put(&mut tree, NodeId::ROOT, "a", NodeKind::Fifo);
    put(&mut tree, NodeId::ROOT, "b", NodeKind::Fifo);
    let swapped = |from: &[u8; 2], to: &[u8; 2]| {
        changed(&tree, |bytes, at| {
            let names = inline_dirent(at(NodeId::ROOT), 4) + 3;
            assert_eq!(&bytes[names..names + 2], from);
            bytes[names..names + 2].copy_from_slice(to);
        })
    };
    assert!(tree_error(&swapped(b"ab", b"ba"), &Limits::default()).contains("not sorted"));
    assert!(tree_error(&swapped(b"ab", b"aa"), &Limits::default()).contains("not sorted"));
    assert!(tree_error(&swapped(b"ab", b"a/"), &Limits::default()).contains("sorted"));
    assert!(tree_error(&swapped(b"ab", b"//"), &Limits::default()).contains("slash"));
}

#[test]
fn an_entry_of_the_wrong_type_is_refused() {
    let mut tree = Tree::new();
    put(&mut tree, NodeId::ROOT, "a", NodeKind::Fifo);
    let bytes = changed(&tree, |bytes, at| {
        change_at::<Dirent>(bytes, inline_dirent(at(NodeId::ROOT), 2), |dirent| {
            dirent.file_type = 6
        });
    });
    assert!(tree_error(&bytes, &Limits::default()).contains("another type"));
}

#[test]
fn content_outside_of_its_device_is_refused() {
    let mut tree = Tree::new();
    let file = put(&mut tree, NodeId::ROOT, "f", plain_file(1024, PLAIN_LEN - 1024));
    for (device, address) in [(1, PLAIN_LEN / 512 - 1), (2, 0), (0, 1 << 20)] {
        let bytes = changed(&tree, |bytes, at| {
            change_at::<ChunkIndex>(bytes, at(file) + size_of::<ExtendedInode>(), |entry| {
                entry.device = device.into();
                entry.address = (address as u32).into();
            });
        });
        let message = tree_error(&bytes, &Limits::default());
        assert!(
            message.contains("outside of its device") || message.contains("unknown device"),
            "{message}"
        );
    }
}

/// Without the sum over all parts, inodes in every slot with a chunk table up to the end of the image would cost time
/// in the square of its length.
#[test]
fn parts_that_overlap_are_refused() {
    let mut tree = Tree::new();
    let ids: Vec<_> = (0..2000)
        .map(|n| put(&mut tree, NodeId::ROOT, &n.to_string(), plain_file(512, 0)))
        .collect();
    let bytes = changed(&tree, |bytes, at| {
        for id in &ids {
            let room = bytes.len() - at(*id) - 64;
            let hole = ChunkIndex {
                reserved: 0.into(),
                device: 0.into(),
                address: u32::MAX.into(),
            };
            hole.write_to_prefix(&mut bytes[at(*id) + 64..]).unwrap();
            change_at::<ExtendedInode>(bytes, at(*id), |inode| {
                inode.union = 0x20.into();
                inode.size = (room as u64 / 8 * 512).into();
            });
        }
    });
    let limits = Limits {
        sparse_segments: usize::MAX,
        ..Limits::default()
    };
    let message = tree_error(&bytes, &limits);
    assert!(
        message.contains("overlaps another part") || message.contains("device"),
        "{message}"
    );
}

#[test]
fn every_limit_holds() {
    let mut tree = Tree::new();
    let mut dir = NodeId::ROOT;
    for _ in 0..5 {
        dir = put(&mut tree, dir, "ten-bytes.", directory());
    }
    tree.node_mut(dir).attributes.xattrs = [
        (b"user.a".to_vec(), vec![1; 3000]),
        (b"user.b".to_vec(), vec![2; 10]),
    ]
    .into();
    let bytes = write(&tree).unwrap().bytes;
    let fits = Limits {
        entries: 5,
        depth: 5,
        path_len: 55,
        xattr_count: 2,
        xattr_bytes: 3022,
        ..Limits::default()
    };
    assert_eq!(open(&bytes).to_tree(&fits).unwrap().0, tree);
    for (limits, what) in [
        (
            Limits {
                entries: 4,
                ..fits.clone()
            },
            "number of entries",
        ),
        (
            Limits {
                depth: 4,
                ..fits.clone()
            },
            "depth of a directory",
        ),
        (
            Limits {
                path_len: 54,
                ..fits.clone()
            },
            "length of a path",
        ),
        (
            Limits {
                xattr_count: 1,
                ..fits.clone()
            },
            "number of extended attributes",
        ),
        (
            Limits {
                xattr_bytes: 3021,
                ..fits.clone()
            },
            "length of extended attributes",
        ),
    ] {
        let message = tree_error(&bytes, &limits);
        assert!(message.starts_with(what), "{message}");
    }
}
