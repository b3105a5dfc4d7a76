//! Hostile EROFS images: every read gives an answer or an error, and what can be read as a tree can be written again.
//!
//! The input is an image without its first, always empty 1024 bytes. Magic number and length are put right, because
//! the fuzzer would spend its time on them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::erofs::layout::{BLOCK_LEN, SLOT_LEN, SUPER_MAGIC, SUPER_OFFSET};
use sluice_format::erofs::{DeviceSlot, Image, InodeKind, write_image};
use sluice_format::{Limits, NodeId, Tree};

/// Position of the field `blocks` in the superblock.
const BLOCKS_OFFSET: usize = 36;

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        literal_bytes: 1 << 20,
        sparse_segments: 1 << 10,
        ..Limits::default()
    };
    let Ok(image) = Image::open(complete(data), &limits) else {
        return;
    };
    for nid in 0..(image.bytes().len() / SLOT_LEN) as u64 {
        read_inode(&image, nid);
    }
    if let Ok((tree, nids)) = image.to_tree(&limits) {
        check_names(&image, &tree, &nids);
        check_rewrite(&image, &tree, &limits);
    }
});

/// Puts the empty start before `data` and completes the last block.
fn complete(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; SUPER_OFFSET];
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN).max(4 * BLOCK_LEN), 0);
    let blocks = (bytes.len() / BLOCK_LEN) as u32;
    let super_block = &mut bytes[SUPER_OFFSET..];
    super_block[..4].copy_from_slice(&SUPER_MAGIC.to_le_bytes());
    super_block[BLOCKS_OFFSET..BLOCKS_OFFSET + 4].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// All single reads of one inode.
fn read_inode(image: &Image<Vec<u8>>, nid: u64) {
    let Ok(inode) = image.inode(nid) else { return };
    let single = image.xattr(nid, b"user.a");
    if let Ok(all) = image.xattrs(nid) {
        assert_eq!(single.ok().flatten(), all.get(&b"user.a"[..]).map(Vec::as_slice));
    }
    match inode.kind {
        InodeKind::Directory => {
            let mut last = 0;
            let _ = image.read_dir(nid, 0, &mut |next, _| {
                assert!(next > last);
                last = next;
                true
            });
            let _ = image.lookup(nid, b"a");
        }
        InodeKind::Regular => {
            if let Ok(runs) = image.map(nid, 100, 1 << 20) {
                let len: u64 = runs.iter().map(|run| run.len).sum();
                assert_eq!(len, inode.size.saturating_sub(100).min(1 << 20));
            }
        }
        InodeKind::Symlink => _ = image.read_link(nid),
        _ => {}
    }
}

/// In a checked tree, every name is found by a lookup.
fn check_names(image: &Image<Vec<u8>>, tree: &Tree, nids: &[u64]) {
    for (index, nid) in nids.iter().enumerate() {
        let Some(directory) = tree.directory(NodeId(index as u32)) else {
            continue;
        };
        for (name, child) in &directory.entries {
            assert_eq!(
                image.lookup(*nid, name.as_bytes()),
                Ok(Some(nids[child.0 as usize]))
            );
        }
    }
}

/// A checked tree survives writing and reading.
fn check_rewrite(image: &Image<Vec<u8>>, tree: &Tree, limits: &Limits) {
    let slot = |(diff_id, plain_len)| DeviceSlot { diff_id, plain_len };
    let devices: Vec<_> = image.devices().into_iter().map(slot).collect();
    // A chunk table that is denser than its runs need may be refused when it is made anew.
    let Ok(written) = write_image(tree, &devices) else {
        return;
    };
    let again = Image::open(&written.bytes[..], limits).expect("written images open");
    let (read, _) = again.to_tree(limits).expect("written images can be read");
    // Not `assert_eq`: the trees are too large to be printed.
    assert!(read == *tree);
}
