//! Tree → EROFS metadata image.
//!
//! The plan (`plan.rs`) says where everything goes; this module puts the bytes there. An image holds inodes,
//! directories, symbolic links, extended attributes and the few literal bytes of odd sparse files; all other content
//! stays in the plain layers, which are the image's extra devices. Nothing in it depends on time or place, so the same
//! tree gives the same bytes.

use zerocopy::IntoBytes;

use super::chunks::ADDRESSABLE_END;
use super::dirent;
use super::layout::{
    BLOCK_BITS, COMPAT_MTIME, ChunkIndex, DeviceEntry, ExtendedInode, FORMAT_EXTENDED, FORMAT_LAYOUT_SHIFT,
    FileType, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, LAYOUT_CHUNK_BASED, LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN, SLOT_LEN, SUPER_MAGIC, SUPER_OFFSET, SuperBlock,
};
use super::plan::{Body, DEVICE_TABLE_OFFSET, Plan, PlannedInode, listing};
use super::{BLOCK_SIZE, xattr};
use crate::tree::ExtentSource;
use crate::{DiffId, FormatError, NodeId, NodeKind, Tree};

/// One external device of an image: a plain layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlot {
    /// Identity of the plain layer; its hex form is the slot's tag.
    pub diff_id: DiffId,
    /// Length of the plain layer in bytes.
    pub plain_len: u64,
}

/// A finished image.
#[derive(Clone, Debug)]
pub struct WrittenImage {
    /// The bytes of the image.
    pub bytes: Vec<u8>,
    nids: Vec<Option<u64>>,
}

impl WrittenImage {
    /// EROFS node number that a node of the tree got, or `None` when no name reaches it.
    pub fn nid(&self, node: NodeId) -> Option<u64> {
        self.nids.get(node.0 as usize).copied().flatten()
    }
}

/// Writes `tree` as an image whose device *i* (from 1) is `devices[i - 1]`. The same tree gives the same bytes.
///
/// # Errors
/// [`FormatError`] naming the path of a node that does not fit the format: a name of an extended attribute with an
/// unknown prefix, an extent outside of its plain layer or beyond 2 TiB of it, a sparse file of too many pieces, a
/// directory with two names, and the like.
pub fn write_image(tree: &Tree, devices: &[DeviceSlot]) -> Result<WrittenImage, FormatError> {
    check_devices(devices)?;
    let plan = Plan::new(tree, devices)?;
    let len = usize::try_from(plan.len).map_err(|_| FormatError::Limit {
        what: "length of an EROFS image",
        value: plan.len,
        limit: usize::MAX as u64,
    })?;
    let mut image = ImageBytes(vec![0; len]);
    image.put_super_block(&plan, devices.len());
    image.put_devices(devices);
    for (index, inode) in plan.inodes.iter().enumerate() {
        image.put_inode(&plan, index, inode);
    }
    Ok(WrittenImage {
        bytes: image.0,
        nids: plan.nids,
    })
}

/// Most devices: behind more of them the root directory would lie beyond the 16-bit node id of the superblock.
const DEVICES_MAX: usize =
    (u16::MAX as usize * SLOT_LEN - DEVICE_TABLE_OFFSET) / size_of::<DeviceEntry>() - 1;

fn check_devices(devices: &[DeviceSlot]) -> Result<(), FormatError> {
    FormatError::check_limit(
        "number of EROFS devices",
        devices.len() as u64,
        DEVICES_MAX as u64,
    )?;
    for device in devices {
        FormatError::check_limit("length of a plain layer", device.plain_len, ADDRESSABLE_END)?;
    }
    Ok(())
}

/// Blocks for a length that [`check_devices`] or the plan has bounded.
fn block_count(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(BLOCK_SIZE)).expect("lengths are checked against 32-bit addresses")
}

/// The image while it is filled.
struct ImageBytes(Vec<u8>);

impl ImageBytes {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).expect("the plan lies within the vector");
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn put_super_block(&mut self, plan: &Plan<'_>, devices: usize) {
        let root = plan.nids[0].and_then(|nid| u16::try_from(nid).ok());
        let table = DEVICE_TABLE_OFFSET / size_of::<DeviceEntry>();
        let device_feature = if devices == 0 { 0 } else { INCOMPAT_DEVICE_TABLE };
        let super_block = SuperBlock {
            magic: SUPER_MAGIC.into(),
            checksum: 0.into(),
            compat: COMPAT_MTIME.into(),
            block_bits: BLOCK_BITS,
            extension_slots: 0,
            root_nid: root.expect("DEVICES_MAX keeps the root within reach").into(),
            inodes: (plan.inodes.len() as u64).into(),
            build_secs: 0.into(),
            build_nanos: 0.into(),
            blocks: block_count(plan.len).into(),
            meta_address: 0.into(),
            xattr_address: 0.into(),
            uuid: [0; 16],
            volume_name: [0; 16],
            incompat: (INCOMPAT_CHUNKED_FILE | device_feature).into(),
            compression: 0.into(),
            extra_devices: u16::try_from(devices).expect("DEVICES_MAX has 16 bits").into(),
            device_table: u16::try_from(table)
                .expect("the table begins in the first blocks")
                .into(),
            dir_block_bits: 0,
            unused: [0; 37],
        };
        self.put(SUPER_OFFSET as u64, super_block.as_bytes());
    }

    fn put_devices(&mut self, devices: &[DeviceSlot]) {
        for (index, device) in devices.iter().enumerate() {
            let mut tag = [0; 64];
            tag.copy_from_slice(device.diff_id.0.to_hex().as_bytes());
            let entry = DeviceEntry {
                tag,
                blocks: block_count(device.plain_len).into(),
                mapped_address: 0.into(),
                reserved: [0; 56],
            };
            self.put(
                (DEVICE_TABLE_OFFSET + index * size_of::<DeviceEntry>()) as u64,
                entry.as_bytes(),
            );
        }
    }

    fn put_inode(&mut self, plan: &Plan<'_>, index: usize, inode: &PlannedInode<'_>) {
        let head = inode_head(index, inode);
        self.put(inode.offset, head.as_bytes());
        let behind = inode.offset + head.as_bytes().len() as u64;
        self.put(behind, &inode.xattrs);
        let behind = behind + inode.xattrs.len() as u64;
        match &inode.body {
            Body::Empty | Body::Device(_) => {}
            Body::Flat { len, inline, start } => {
                let content = flat_content(plan, inode);
                debug_assert_eq!(content.len() as u64, *len);
                let (blocks, tail) = content.split_at(content.len() - inline);
                self.put(*start, blocks);
                self.put(behind, tail);
            }
            Body::Chunked { .. } => self.put_chunks(inode, behind),
        }
    }

    fn put_chunks(&mut self, inode: &PlannedInode<'_>, behind: u64) {
        let (Body::Chunked { plan, literal_start }, NodeKind::Regular(content)) =
            (&inode.body, &inode.node.kind)
        else {
            return;
        };
        let mut at = behind.next_multiple_of(size_of::<ChunkIndex>() as u64);
        for entry in plan.table(*literal_start) {
            self.put(at, entry.as_bytes());
            at += size_of::<ChunkIndex>() as u64;
        }
        let mut at = *literal_start;
        for extent in &content.extents {
            if let ExtentSource::Literal(bytes) = &extent.source {
                self.put(at, bytes);
                at += (bytes.len() as u64).next_multiple_of(BLOCK_SIZE);
            }
        }
    }
}

fn inode_head(index: usize, inode: &PlannedInode<'_>) -> ExtendedInode {
    let attributes = &inode.node.attributes;
    let (layout, size, union) = match &inode.body {
        Body::Empty => (LAYOUT_FLAT_PLAIN, 0, 0),
        Body::Device(device) => (LAYOUT_FLAT_PLAIN, 0, device.encode()),
        Body::Flat {
            len,
            inline: 0,
            start,
        } => (LAYOUT_FLAT_PLAIN, *len, block_count(*start)),
        Body::Flat { len, start, .. } => (LAYOUT_FLAT_INLINE, *len, block_count(*start)),
        Body::Chunked { plan, .. } => (LAYOUT_CHUNK_BASED, plan.size, plan.format().into()),
    };
    ExtendedInode {
        format: (FORMAT_EXTENDED | layout << FORMAT_LAYOUT_SHIFT).into(),
        xattr_count: xattr::area_count(inode.xattrs.len()).into(),
        mode: (FileType::of(&inode.node.kind).mode | attributes.permissions).into(),
        reserved: 0.into(),
        size: size.into(),
        union: union.into(),
        ino: u32::try_from(index + 1).unwrap_or(u32::MAX).into(),
        uid: attributes.uid.into(),
        gid: attributes.gid.into(),
        mtime_secs: attributes.mtime.secs.into(),
        mtime_nanos: attributes.mtime.nanos.into(),
        nlink: inode.nlink.into(),
        unused: [0; 16],
    }
}

/// Bytes of a directory or a symbolic link.
fn flat_content(plan: &Plan<'_>, inode: &PlannedInode<'_>) -> Vec<u8> {
    match &inode.node.kind {
        NodeKind::Directory(directory) => {
            let parent = plan.inodes[inode.parent].id;
            let mut content = Vec::new();
            let names = listing(directory, inode.id, parent);
            let entries: Vec<_> = names.into_iter().map(|(name, id)| plan.entry(name, id)).collect();
            dirent::encode(&entries, &mut content);
            content
        }
        NodeKind::Symlink(target) => target.clone(),
        _ => Vec::new(),
    }
}
