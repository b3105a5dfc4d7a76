//! Where everything goes in an image, decided before the first byte is written.
//!
//! Inodes follow the device table breadth first from the root, names in byte order, so the same tree always gives the
//! same node ids and a directory's children lie together. Behind the inodes come the blocks of directories, long
//! symbolic link targets and literal file content, in the order of their inodes. No 64-byte inode crosses a block
//! border; an inline tail shares one block with its inode and attributes, which every kernel accepts.

use super::chunks::ChunkPlan;
use super::dirent::{self, NewEntry};
use super::layout::{
    BLOCK_LEN, DeviceEntry, ExtendedInode, FileType, MODE_PERMISSIONS_MASK, NULL_ADDRESS, SLOT_LEN,
    SUPER_OFFSET, SYMLINK_MAX, SuperBlock, is_possible_time,
};
use super::{BLOCK_SIZE, DeviceSlot, OPAQUE_NAME, OPAQUE_VALUE, xattr};
use crate::inode::Device;
use crate::name::{EntryName, Printable};
use crate::tree::Directory;
use crate::{FormatError, Node, NodeId, NodeKind, Tree};

const INODE_LEN: usize = size_of::<ExtendedInode>();
/// Alignment of a chunk table in bytes.
const TABLE_ALIGN: u64 = 8;
/// Position of the device table in bytes.
pub(super) const DEVICE_TABLE_OFFSET: usize = SUPER_OFFSET + size_of::<SuperBlock>();

/// Content of an inode and its place.
#[derive(Debug)]
pub(super) enum Body {
    /// None: empty files, pipes, sockets.
    Empty,
    /// None, but a device number.
    Device(Device),
    /// `len` bytes, the last `inline` of them behind the inode, the others in blocks from byte `start` of the image.
    Flat { len: u64, inline: usize, start: u64 },
    /// Chunk entries behind the inode, literal content in blocks from byte `literal_start` of the image.
    Chunked { plan: ChunkPlan, literal_start: u64 },
}

impl Body {
    /// `len` bytes behind an inode whose attributes take `xattr_len`: inline if all fits into one block.
    fn flat(len: u64, inline: usize, xattr_len: usize) -> Self {
        let fits = INODE_LEN + xattr_len + inline <= BLOCK_LEN;
        Self::Flat {
            len,
            inline: if fits { inline } else { 0 },
            start: 0,
        }
    }
}

/// One inode and its place.
#[derive(Debug)]
pub(super) struct PlannedInode<'a> {
    pub(super) id: NodeId,
    pub(super) node: &'a Node,
    pub(super) nlink: u32,
    /// Position of the inode in bytes.
    pub(super) offset: u64,
    pub(super) xattrs: Vec<u8>,
    pub(super) body: Body,
    /// Position in [`Plan::inodes`] of the directory that named it first; the root is its own parent.
    pub(super) parent: usize,
    name: Option<&'a EntryName>,
}

/// The whole image.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    tree: &'a Tree,
    /// Inodes by position.
    pub(super) inodes: Vec<PlannedInode<'a>>,
    /// EROFS node id of each node of the tree that a name reaches.
    pub(super) nids: Vec<Option<u64>>,
    /// Length of the image in bytes, whole blocks.
    pub(super) len: u64,
}

impl<'a> Plan<'a> {
    pub(super) fn new(tree: &'a Tree, devices: &[DeviceSlot]) -> Result<Self, FormatError> {
        let mut inodes = reach(tree)?;
        let mut end = (DEVICE_TABLE_OFFSET + devices.len() * size_of::<DeviceEntry>()) as u64;
        for index in 0..inodes.len() {
            end = fit(&mut inodes, index, devices, end).map_err(|error| locate(error, &inodes, index))?;
        }
        let len = place_blocks(&mut inodes, end.next_multiple_of(BLOCK_SIZE));
        FormatError::check_limit(
            "number of blocks in an EROFS image",
            len / BLOCK_SIZE,
            NULL_ADDRESS.into(),
        )?;
        let mut nids = vec![None; tree.nodes().len()];
        for inode in &inodes {
            nids[inode.id.0 as usize] = Some(inode.offset / SLOT_LEN as u64);
        }
        Ok(Self {
            tree,
            inodes,
            nids,
            len,
        })
    }

    /// The directory entry that calls node `id` by `name`.
    pub(super) fn entry<'n>(&self, name: &'n [u8], id: NodeId) -> NewEntry<'n> {
        NewEntry {
            name,
            nid: self.nids[id.0 as usize].expect("the plan reaches whatever a reached directory names"),
            file_type: FileType::of(&self.tree.node(id).kind).number,
        }
    }
}

/// Names of a directory with `.` and `..`, in byte order.
pub(super) fn listing(directory: &Directory, this: NodeId, parent: NodeId) -> Vec<(&[u8], NodeId)> {
    let mut names: Vec<(&[u8], NodeId)> = Vec::with_capacity(directory.entries.len() + 2);
    names.extend(directory.entries.iter().map(|(name, id)| (name.as_bytes(), *id)));
    for special in [(&b"."[..], this), (b"..", parent)] {
        names.insert(names.partition_point(|(name, _)| *name < special.0), special);
    }
    names
}

/// All nodes that a name reaches, breadth first, with their number of names.
fn reach(tree: &Tree) -> Result<Vec<PlannedInode<'_>>, FormatError> {
    let mut positions: Vec<Option<usize>> = vec![None; tree.nodes().len()];
    let mut inodes = vec![PlannedInode::new(tree, NodeId::ROOT, 0, None)];
    positions[0] = Some(0);
    let mut next = 0;
    while let Some(inode) = inodes.get(next) {
        if let NodeKind::Directory(directory) = &inode.node.kind {
            for (name, id) in &directory.entries {
                let is_directory = tree.directory(*id).is_some();
                inodes[next].nlink += u32::from(is_directory);
                match positions[id.0 as usize] {
                    None => {
                        positions[id.0 as usize] = Some(inodes.len());
                        inodes.push(PlannedInode::new(tree, *id, next, Some(name)));
                    }
                    Some(_) if is_directory => {
                        let place = Printable(&path_of(&inodes, next)).to_string();
                        let reason = format!("names the directory \"{name}\" that already has a name");
                        return Err(FormatError::malformed("EROFS", place, reason));
                    }
                    Some(position) => inodes[position].nlink += 1,
                }
            }
        }
        next += 1;
    }
    Ok(inodes)
}

impl<'a> PlannedInode<'a> {
    fn new(tree: &'a Tree, id: NodeId, parent: usize, name: Option<&'a EntryName>) -> Self {
        let node = tree.node(id);
        let is_directory = matches!(node.kind, NodeKind::Directory(_));
        Self {
            id,
            node,
            nlink: if is_directory { 2 } else { 1 },
            offset: 0,
            xattrs: Vec::new(),
            body: Body::Empty,
            parent,
            name,
        }
    }
}

/// Chooses form and position of one inode; the first free byte is `end`, and behind it afterwards.
fn fit(
    inodes: &mut [PlannedInode<'_>],
    index: usize,
    devices: &[DeviceSlot],
    end: u64,
) -> Result<u64, FormatError> {
    let parent = inodes[inodes[index].parent].id;
    let inode = &mut inodes[index];
    inode.xattrs = encode_xattrs(inode.node)?;
    inode.body = choose_body(inode, parent, devices)?;
    let head = INODE_LEN + inode.xattrs.len();
    let (inline, table_len) = match &inode.body {
        Body::Flat { inline, .. } => (*inline, 0),
        Body::Chunked { plan, .. } => (0, plan.table_len()),
        Body::Empty | Body::Device(_) => (0, 0),
    };
    inode.offset = uncut(end, if inline == 0 { INODE_LEN } else { head + inline });
    let behind = inode.offset + (head + inline) as u64;
    Ok(if table_len == 0 {
        behind
    } else {
        behind.next_multiple_of(TABLE_ALIGN) + table_len
    })
}

/// First slot from `end` on at which `len` bytes lie in one block.
fn uncut(end: u64, len: usize) -> u64 {
    let slot = end.next_multiple_of(SLOT_LEN as u64);
    if slot % BLOCK_SIZE + len as u64 > BLOCK_SIZE {
        slot.next_multiple_of(BLOCK_SIZE)
    } else {
        slot
    }
}

fn encode_xattrs(node: &Node) -> Result<Vec<u8>, FormatError> {
    let attributes = &node.attributes;
    if attributes.xattrs.contains_key(OPAQUE_NAME) {
        return Err(refused("has the opaque mark as an ordinary extended attribute"));
    }
    let opaque = matches!(&node.kind, NodeKind::Directory(directory) if directory.opaque);
    xattr::encode(&attributes.xattrs, opaque.then_some((OPAQUE_NAME, OPAQUE_VALUE))).map_err(refused)
}

fn choose_body(
    inode: &PlannedInode<'_>,
    parent: NodeId,
    devices: &[DeviceSlot],
) -> Result<Body, FormatError> {
    let attributes = &inode.node.attributes;
    if attributes.permissions & !MODE_PERMISSIONS_MASK != 0 || !is_possible_time(attributes.mtime) {
        return Err(refused("has impossible permissions or an impossible time"));
    }
    let xattr_len = inode.xattrs.len();
    Ok(match &inode.node.kind {
        NodeKind::Directory(directory) => {
            let names = listing(directory, inode.id, parent);
            let len = dirent::directory_len(names.iter().map(|(name, _)| *name));
            Body::flat(len, (len % BLOCK_SIZE) as usize, xattr_len)
        }
        NodeKind::Regular(content) if content.size == 0 => Body::Empty,
        NodeKind::Regular(content) => Body::Chunked {
            plan: ChunkPlan::new(content, devices)?,
            literal_start: 0,
        },
        NodeKind::Symlink(target) => {
            check_target(target)?;
            let len = target.len();
            // In one piece, so that a reader can borrow it.
            Body::flat(len as u64, if len < BLOCK_LEN { len } else { 0 }, xattr_len)
        }
        NodeKind::CharDevice(device) | NodeKind::BlockDevice(device) => {
            if device.major > Device::MAX.major || device.minor > Device::MAX.minor {
                return Err(refused("has a device number over 4095:1048575"));
            }
            Body::Device(*device)
        }
        NodeKind::Whiteout => Body::Device(Device::default()),
        NodeKind::Fifo | NodeKind::Socket => Body::Empty,
    })
}

fn check_target(target: &[u8]) -> Result<(), FormatError> {
    FormatError::check_limit(
        "length of a symbolic link",
        target.len() as u64,
        SYMLINK_MAX as u64,
    )?;
    if target.is_empty() || target.contains(&0) {
        return Err(refused(
            "is a symbolic link with an empty target or one that holds a NUL byte",
        ));
    }
    Ok(())
}

/// Gives blocks to everything that needs them, from byte `start` on; returns the end.
fn place_blocks(inodes: &mut [PlannedInode<'_>], start: u64) -> u64 {
    let mut end = start;
    for inode in inodes {
        match &mut inode.body {
            Body::Flat { len, inline, start } => {
                *start = end;
                end += (*len - *inline as u64).next_multiple_of(BLOCK_SIZE);
            }
            Body::Chunked { plan, literal_start } => {
                *literal_start = end;
                end += plan.literal_len;
            }
            Body::Empty | Body::Device(_) => {}
        }
    }
    end
}

fn refused(reason: impl ToString) -> FormatError {
    FormatError::malformed("EROFS", "inode", reason)
}

/// `error` with the path of the inode it is about.
fn locate(error: FormatError, inodes: &[PlannedInode<'_>], index: usize) -> FormatError {
    let place = Printable(&path_of(inodes, index)).to_string();
    match error {
        FormatError::Malformed { format, reason, .. } => FormatError::Malformed {
            format,
            place,
            reason,
        },
        other => FormatError::malformed("EROFS", place, other),
    }
}

/// First path of an inode.
fn path_of(inodes: &[PlannedInode<'_>], mut index: usize) -> Vec<u8> {
    let mut names = Vec::new();
    while let Some(name) = inodes[index].name {
        names.push(name.as_bytes());
        index = inodes[index].parent;
    }
    names.push(b"");
    names.reverse();
    if names.len() == 1 {
        b"/".to_vec()
    } else {
        names.join(&b'/')
    }
}
