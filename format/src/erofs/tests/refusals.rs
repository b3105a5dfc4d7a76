//! The writer refuses what the format cannot hold, and names the path.

use crate::erofs::testing::*;
use crate::erofs::write_image;
use crate::inode::Device;
use crate::tree::{Extent, ExtentSource, FileContent};
use crate::{NodeId, NodeKind, Tree};

/// The message for a tree with one node at `/d/f`.
fn refusal(kind: NodeKind, change: impl FnOnce(&mut Tree, NodeId)) -> String {
    let mut tree = Tree::new();
    let dir = put(&mut tree, NodeId::ROOT, "d", directory());
    let id = put(&mut tree, dir, "f", kind);
    change(&mut tree, id);
    write(&tree).unwrap_err().to_string()
}

fn refused_xattr(name: &[u8], len: usize) -> String {
    refusal(NodeKind::Fifo, |tree, id| {
        tree.node_mut(id)
            .attributes
            .xattrs
            .insert(name.to_vec(), vec![0; len]);
    })
}

fn refused_extents(size: u64, extents: &[(u64, u64, u64)]) -> String {
    let extent = |&(file_off, len, plain_off): &(u64, u64, u64)| Extent {
        file_off,
        len,
        source: ExtentSource::Plain { device: 1, plain_off },
    };
    let content = FileContent {
        size,
        extents: extents.iter().map(extent).collect(),
    };
    refusal(NodeKind::Regular(content), |_, _| {})
}

#[test]
fn extended_attributes_that_cannot_be_stored() {
    for name in [
        &b"lustre.x"[..],
        b"user.",
        b"system.posix_acl_accessx",
        b"user.a\0b",
        b"plain",
    ] {
        let message = refused_xattr(name, 1);
        assert!(
            message.starts_with("EROFS at /d/f: has the extended attribute \"")
                && message.contains("cannot store"),
            "{message}"
        );
    }
    assert!(refused_xattr(&[b"user."[..].to_vec(), vec![b'n'; 256]].concat(), 1).contains("255 bytes"));
    assert!(refused_xattr(b"user.a", 65536).contains("65535 bytes"));
    assert!(refused_xattr(b"trusted.overlay.opaque", 1).contains("opaque mark"));
    let five = refusal(NodeKind::Fifo, |tree, id| {
        let xattrs = &mut tree.node_mut(id).attributes.xattrs;
        (0..5).for_each(|n| _ = xattrs.insert(format!("user.{n}").into_bytes(), vec![0; 65535]));
    });
    assert!(five.contains("262148 bytes"), "{five}");
}

#[test]
fn extents_that_are_not_where_they_say() {
    for (extents, expected) in [
        (&[(0, 0, 0)][..], "are empty, overlap or leave"),
        (&[(0, 1024, 0), (512, 512, 0)], "are empty, overlap or leave"),
        (&[(0, 2048, 0)], "are empty, overlap or leave"),
        (&[(512, u64::MAX, 0)], "are empty, overlap or leave"),
        (&[(100, 512, 0)], "whole 512-byte blocks"),
        (&[(0, 100, 0)], "whole 512-byte blocks"),
        (&[(0, 512, 100)], "no multiple of 512"),
        (&[(0, 512, PLAIN_LEN)], "in a plain layer of 1048576 bytes"),
    ] {
        let message = refused_extents(1024, extents);
        assert!(
            message.starts_with("EROFS at /d/f: ") && message.contains(expected),
            "{message}"
        );
    }
    let source = ExtentSource::Plain {
        device: 2,
        plain_off: 0,
    };
    let extents = vec![Extent {
        file_off: 0,
        len: 512,
        source,
    }];
    let message = refusal(NodeKind::Regular(FileContent { size: 512, extents }), |_, _| {});
    assert!(message.contains("on device 2 of 1"), "{message}");
    let extents = vec![Extent {
        file_off: 0,
        len: 512,
        source: ExtentSource::Literal(vec![0; 511]),
    }];
    let message = refusal(NodeKind::Regular(FileContent { size: 512, extents }), |_, _| {});
    assert!(message.contains("not that of its bytes"), "{message}");
}

#[test]
fn plain_layers_beyond_the_reach_of_block_addresses() {
    const TIB: u64 = 1 << 40;
    let mut tree = Tree::new();
    put(&mut tree, NodeId::ROOT, "f", plain_file(512, 2 * TIB - 512));
    let message = write_image(&tree, &[slot(2 * TIB - 512)])
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("2199023255552, over the limit of 2199023255040"),
        "{message}"
    );
    assert!(write_image(&Tree::new(), &[slot(2 * TIB)]).is_err());
    assert!(write_image(&Tree::new(), &[slot(2 * TIB - 512)]).is_ok());
}

#[test]
fn sparse_files_of_too_many_chunks() {
    let message = refused_extents(1 << 40, &[(512, 512, 0)]);
    assert!(
        message.contains("number of chunk entries") && message.contains("4194304"),
        "{message}"
    );
}

#[test]
fn links_devices_and_times_that_no_kernel_takes() {
    for target in [vec![], vec![b'x'; 4096], b"a\0b".to_vec()] {
        assert!(refusal(NodeKind::Symlink(target), |_, _| {}).contains("symbolic link"));
    }
    let device = NodeKind::BlockDevice(Device {
        major: 4096,
        minor: 0,
    });
    assert!(refusal(device, |_, _| {}).contains("device number"));
    let message = refusal(NodeKind::Fifo, |tree, id| {
        tree.node_mut(id).attributes.mtime.nanos = 1_000_000_000
    });
    assert!(message.contains("impossible time"), "{message}");
    let message = refusal(NodeKind::Fifo, |tree, id| {
        tree.node_mut(id).attributes.mtime.secs = 1 << 63
    });
    assert!(message.contains("impossible time"), "{message}");
    let message = refusal(NodeKind::Fifo, |tree, id| {
        tree.node_mut(id).attributes.permissions = 0o10000
    });
    assert!(message.contains("permissions"), "{message}");
}

#[test]
fn directories_with_two_names() {
    let message = refusal(directory(), |tree, id| link(tree, NodeId::ROOT, "again", id));
    assert_eq!(
        message,
        "EROFS at /d: names the directory \"f\" that already has a name"
    );
    let message = refusal(directory(), |tree, id| link(tree, id, "loop", NodeId::ROOT));
    assert!(
        message.starts_with("EROFS at /d/f: names the directory \"loop\""),
        "{message}"
    );
}

#[test]
fn more_devices_than_the_superblock_can_reach_over() {
    let message = write_image(&Tree::new(), &vec![slot(0); 20_000])
        .unwrap_err()
        .to_string();
    assert!(message.contains("number of EROFS devices is 20000"), "{message}");
    assert!(write_image(&Tree::new(), &vec![slot(0); 16_000]).is_ok());
}
