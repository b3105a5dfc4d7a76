//! EROFS metadata image → inodes, names, runs.
//!
//! [`Image::open`] checks the superblock and the device table; everything else is checked when it is read, because an
//! image of a hundred thousand inodes is opened for each mount and mostly not read. Every read is a bounds-checked look
//! into the bytes: [`Image::inode`], [`Image::lookup`] and [`Image::xattr`] allocate nothing. Hostile bytes give an
//! error, never a panic, and no call does more work than the length of the part it reads; only [`Image::to_tree`]
//! looks at the image as a whole.

use std::cmp::Ordering;

use zerocopy::FromBytes;

use super::chunks::{self, ChunkTable};
use super::dirent::DirBlock;
use super::layout::{
    BLOCK_BITS, BLOCK_DEVICE, BLOCK_LEN, CHAR_DEVICE, DIRECTORY, DeviceEntry, Dirent, ExtendedInode, FIFO,
    FILE_SIZE_MAX, FORMAT_EXTENDED, FORMAT_LAYOUT_MASK, FORMAT_LAYOUT_SHIFT, INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE, LAYOUT_CHUNK_BASED, LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, MODE_PERMISSIONS_MASK,
    MODE_TYPE_MASK, REGULAR, SLOT_LEN, SOCKET, SUPER_MAGIC, SUPER_OFFSET, SYMLINK, SYMLINK_MAX, SuperBlock,
    is_possible_time,
};
use super::{BLOCK_SIZE, xattr};
use crate::inode::{Attributes, Device, Timestamp, Xattrs};
use crate::{DiffId, Digest, FormatError, Limits, Tree};

/// A checked view of an image held in `B` (a vector, a memory map).
#[derive(Debug)]
pub struct Image<B> {
    bytes: B,
    root: u64,
    devices: Vec<(DiffId, u64)>,
    limits: Limits,
}

/// Kind of an inode, without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A character device; 0:0 is a whiteout in the tree of a layer.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Node id: its number in the image, and the inode number that the kernel shows.
    pub nid: u64,
    /// What it is.
    pub kind: InodeKind,
    /// Low 12 bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of content.
    pub mtime: Timestamp,
    /// Number of names; of a directory, 2 and the number of its subdirectories.
    pub nlink: u32,
    /// Length of the content in bytes: of a symbolic link its target, of a directory its blocks.
    pub size: u64,
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name; `.` and `..` are among the entries. Bytes of the image: not yet checked by [`crate::EntryName`].
    pub name: &'a [u8],
    /// Node id of what it names.
    pub nid: u64,
    /// Kind as [`super::layout::FileType::number`].
    pub file_type: u8,
}

/// Where a run of file bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunSource {
    /// Nowhere: zeros.
    Hole,
    /// In a plain layer.
    Plain {
        /// Position of the layer in [`Image::devices`], from 1.
        device: u16,
        /// Offset in the plain layer in bytes.
        plain_off: u64,
    },
    /// In the image.
    Image {
        /// Offset in [`Image::bytes`].
        image_off: u64,
    },
}

/// A run of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRun {
    /// Where the run begins in the file.
    pub file_off: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where its bytes are.
    pub source: RunSource,
}

/// An inode with the places of its parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Located {
    pub(super) inode: Inode,
    layout: u16,
    union: u32,
    /// Offset in the image of the extended attributes.
    xattr_start: usize,
    /// Offset of what follows them: an inline tail or a chunk table.
    body_start: usize,
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Checks the superblock and the device table of an image. `limits` also bounds all later reads.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] when the bytes are no EROFS image or are cut, [`FormatError::Unsupported`] when it
    /// uses features that [`super::write_image`] does not.
    pub fn open(bytes: B, limits: &Limits) -> Result<Self, FormatError> {
        let all = bytes.as_ref();
        let super_block = read_at::<SuperBlock>(all, SUPER_OFFSET).ok_or_else(|| at_super("is cut"))?;
        check_super_block(super_block, all.len())?;
        let devices = read_devices(all, super_block, limits)?;
        let root = super_block.root_nid.get().into();
        let image = Self {
            bytes,
            root,
            devices,
            limits: limits.clone(),
        };
        if image.inode(root)?.kind == InodeKind::Directory {
            Ok(image)
        } else {
            Err(at_super("names a root that is no directory"))
        }
    }

    /// The bytes of the image.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Node id of the root directory.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// DiffID and length in bytes of each plain layer, the length rounded up to [`BLOCK_SIZE`].
    pub fn devices(&self) -> Vec<(DiffId, u64)> {
        self.devices.clone()
    }

    /// The inode at node id `nid`. Any other 64 bytes at a multiple of 32 that look like an inode are one.
    ///
    /// # Errors
    /// [`FormatError`] when there is no inode that [`super::write_image`] could have written.
    pub fn inode(&self, nid: u64) -> Result<Inode, FormatError> {
        self.locate(nid).map(|located| located.inode)
    }

    /// All extended attributes of an inode, overlayfs marks included.
    ///
    /// # Errors
    /// [`FormatError`] when there is no such inode, or its attributes are malformed or over the limits.
    pub fn xattrs(&self, nid: u64) -> Result<Xattrs, FormatError> {
        xattr::parse(self.xattr_area(&self.locate(nid)?), &self.limits).map_err(|error| at_nid(nid, error))
    }

    /// Value of one extended attribute.
    ///
    /// # Errors
    /// As [`Image::xattrs`].
    pub fn xattr(&self, nid: u64, name: &[u8]) -> Result<Option<&[u8]>, FormatError> {
        let located = self.locate(nid)?;
        let entries = xattr::entries(self.xattr_area(&located)).map_err(|reason| malformed(nid, reason))?;
        for entry in entries {
            let entry = entry.map_err(|reason| malformed(nid, reason))?;
            if entry.is_named(name) {
                return Ok(Some(entry.value));
            }
        }
        Ok(None)
    }

    /// Attributes of an inode, all extended attributes included.
    ///
    /// # Errors
    /// As [`Image::xattrs`].
    pub fn attributes(&self, nid: u64) -> Result<Attributes, FormatError> {
        let inode = self.inode(nid)?;
        Ok(Attributes {
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: self.xattrs(nid)?,
        })
    }

    /// Node id of `name` (also `.` or `..`) in directory `dir`, or `None` when there is no such name.
    ///
    /// # Errors
    /// [`FormatError`] when `dir` is no directory or a block on the way is malformed.
    pub fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>, FormatError> {
        let located = self.locate_directory(dir)?;
        let (mut low, mut high) = (0, located.inode.size.div_ceil(BLOCK_SIZE));
        let mut candidate = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.dir_block(&located, middle)?;
            match block
                .compare_first(name)
                .map_err(|reason| malformed(dir, reason))?
            {
                Ordering::Greater => high = middle,
                Ordering::Less | Ordering::Equal => {
                    candidate = Some(block);
                    low = middle + 1;
                }
            }
        }
        let found = candidate.map(|block| block.find(name)).transpose();
        let found = found.map_err(|reason| malformed(dir, reason))?.flatten();
        Ok(found.map(|dirent| dirent.nid.get()))
    }

    /// Hands the entries of directory `dir` to `each`, in byte order of their names, `.` and `..` included.
    ///
    /// `from` is 0 for the beginning, or any number that `each` was given before: each call gets the number from which
    /// reading goes on behind its entry. The numbers are never 0, grow, and stay valid for the life of the image, as
    /// the cookies of `readdir` must. `each` returns whether it wants more.
    ///
    /// # Errors
    /// [`FormatError`] when `dir` is no directory or a block is malformed; entries before it have been handed out.
    pub fn read_dir(
        &self,
        dir: u64,
        from: u64,
        each: &mut dyn FnMut(u64, DirEntry<'_>) -> bool,
    ) -> Result<(), FormatError> {
        let located = self.locate_directory(dir)?;
        let dirent_len = size_of::<Dirent>() as u64;
        let mut skip = (from % BLOCK_SIZE).div_ceil(dirent_len) as usize;
        for number in from / BLOCK_SIZE..located.inode.size.div_ceil(BLOCK_SIZE) {
            let block = self.dir_block(&located, number)?;
            for (index, dirent) in block.dirents().iter().enumerate().skip(skip) {
                let entry = DirEntry {
                    name: block.name(index).map_err(|reason| malformed(dir, reason))?,
                    nid: dirent.nid.get(),
                    file_type: dirent.file_type,
                };
                let next = number * BLOCK_SIZE + (index as u64 + 1) * dirent_len;
                if !each(next, entry) {
                    return Ok(());
                }
            }
            skip = 0;
        }
        Ok(())
    }

    /// Target of the symbolic link at `nid`.
    ///
    /// # Errors
    /// [`FormatError`] when it is no symbolic link or its target is malformed.
    pub fn read_link(&self, nid: u64) -> Result<&[u8], FormatError> {
        let located = self.locate(nid)?;
        let size = located.inode.size;
        if located.inode.kind != InodeKind::Symlink {
            return Err(malformed(nid, "is no symbolic link"));
        }
        let target = match located.layout {
            LAYOUT_FLAT_INLINE if size < BLOCK_SIZE => self.tail(&located),
            LAYOUT_FLAT_PLAIN => self.blocks(&located, 0, size),
            _ => None,
        };
        match target {
            Some(target) if (1..=SYMLINK_MAX).contains(&target.len()) && !target.contains(&0) => Ok(target),
            _ => Err(malformed(nid, "has a malformed symbolic link target")),
        }
    }

    /// Where `len` bytes from `off` on of the regular file at `nid` are: runs in order, without gaps, neighbours
    /// joined. They end with the file, so the answer is empty from its end on.
    ///
    /// # Errors
    /// [`FormatError`] when it is no regular file or its chunk table is malformed.
    pub fn map(&self, nid: u64, off: u64, len: u64) -> Result<Vec<MappedRun>, FormatError> {
        let located = self.locate(nid)?;
        if located.inode.kind != InodeKind::Regular {
            return Err(malformed(nid, "is no regular file"));
        }
        let mut runs = Vec::new();
        if let Some(table) = self.chunk_table(&located)? {
            let end = off.saturating_add(len);
            table
                .for_each_run(off, end, &mut |run| chunks::join(&mut runs, run))
                .map_err(|e| malformed(nid, e))?;
        }
        Ok(runs)
    }

    /// Reads the whole image back into a tree. The vector holds the node id of each node of the tree.
    ///
    /// Character devices 0:0 become whiteouts, overlayfs marks become [`crate::tree::Directory::opaque`].
    ///
    /// # Errors
    /// [`FormatError`] when anything that the root reaches is malformed or over the limits: unsorted or impossible
    /// names, a directory with two names, parts that overlap.
    pub fn to_tree(&self, limits: &Limits) -> Result<(Tree, Vec<u64>), FormatError> {
        super::to_tree::read_tree(self, limits)
    }

    pub(super) fn locate(&self, nid: u64) -> Result<Located, FormatError> {
        locate_inode(self.bytes(), nid).map_err(|reason| malformed(nid, reason))
    }

    fn locate_directory(&self, nid: u64) -> Result<Located, FormatError> {
        let located = self.locate(nid)?;
        if located.inode.kind == InodeKind::Directory {
            Ok(located)
        } else {
            Err(malformed(nid, "is no directory"))
        }
    }

    pub(super) fn xattr_area(&self, located: &Located) -> &[u8] {
        self.bytes()
            .get(located.xattr_start..located.body_start)
            .unwrap_or_default()
    }

    /// The chunk table of a regular file, `None` for an empty one.
    pub(super) fn chunk_table(&self, located: &Located) -> Result<Option<ChunkTable<'_>>, FormatError> {
        if located.layout != LAYOUT_CHUNK_BASED {
            return Ok(None);
        }
        let table = ChunkTable::parse(
            self.bytes(),
            located.body_start,
            located.union,
            located.inode.size,
            &self.devices,
        );
        table
            .map(Some)
            .map_err(|reason| malformed(located.inode.nid, reason))
    }

    /// Block `number` of a directory.
    fn dir_block(&self, located: &Located, number: u64) -> Result<DirBlock<'_>, FormatError> {
        let start = number * BLOCK_SIZE;
        let len = located.inode.size.saturating_sub(start).min(BLOCK_SIZE);
        let bytes = if located.layout == LAYOUT_FLAT_INLINE && len < BLOCK_SIZE {
            self.tail(located)
        } else {
            self.blocks(located, start, len)
        };
        bytes
            .ok_or("has directory blocks outside of the image")
            .and_then(DirBlock::parse)
            .map_err(|reason| malformed(located.inode.nid, reason))
    }

    /// Bytes of a flat inode that are in blocks.
    fn blocks(&self, located: &Located, start: u64, len: u64) -> Option<&[u8]> {
        let start = (u64::from(located.union) * BLOCK_SIZE).checked_add(start)?;
        let end = start.checked_add(len)?;
        self.bytes()
            .get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }

    /// Bytes of a flat inode behind its head; the kernel wants them in one block.
    fn tail(&self, located: &Located) -> Option<&[u8]> {
        let len = (located.inode.size % BLOCK_SIZE) as usize;
        let start = located.body_start;
        let whole = start % BLOCK_LEN + len <= BLOCK_LEN;
        self.bytes().get(start..start + len).filter(|_| whole)
    }
}

pub(super) fn malformed(nid: u64, reason: impl ToString) -> FormatError {
    FormatError::malformed("EROFS", format!("inode {nid}"), reason)
}

/// `error` of a part of an inode, with the node id.
pub(super) fn at_nid(nid: u64, error: FormatError) -> FormatError {
    match error {
        FormatError::Malformed { reason, .. } => malformed(nid, reason),
        other => other,
    }
}

fn at_super(reason: &str) -> FormatError {
    FormatError::malformed("EROFS", "superblock", reason)
}

fn read_at<T>(bytes: &[u8], offset: usize) -> Option<&T>
where
    T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout + zerocopy::Unaligned,
{
    T::ref_from_prefix(bytes.get(offset..)?)
        .ok()
        .map(|(found, _)| found)
}

fn check_super_block(super_block: &SuperBlock, len: usize) -> Result<(), FormatError> {
    if super_block.magic.get() != SUPER_MAGIC {
        return Err(at_super("has no EROFS magic number"));
    }
    let unknown = super_block.incompat.get() & !(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE);
    if unknown != 0 {
        return Err(FormatError::Unsupported {
            format: "EROFS",
            reason: format!("feature bits {unknown:#x}"),
        });
    }
    let plain = super_block.block_bits == BLOCK_BITS
        && super_block.extension_slots == 0
        && super_block.dir_block_bits == 0
        && super_block.meta_address.get() == 0;
    if !plain {
        let reason = "block sizes or positions other than Sluice writes".to_owned();
        return Err(FormatError::Unsupported {
            format: "EROFS",
            reason,
        });
    }
    if u64::from(super_block.blocks.get()) * BLOCK_SIZE != len as u64 {
        return Err(at_super("gives another length than the image has"));
    }
    Ok(())
}

fn read_devices(
    bytes: &[u8],
    super_block: &SuperBlock,
    limits: &Limits,
) -> Result<Vec<(DiffId, u64)>, FormatError> {
    let count = usize::from(super_block.extra_devices.get());
    FormatError::check_limit("number of EROFS devices", count as u64, limits.layers as u64)?;
    let start = usize::from(super_block.device_table.get()) * size_of::<DeviceEntry>();
    let entries = (0..count).map(|index| {
        let entry = read_at::<DeviceEntry>(bytes, start + index * size_of::<DeviceEntry>())
            .ok_or_else(|| at_super("has a device table outside of the image"))?;
        let tag =
            std::str::from_utf8(&entry.tag).map_err(|_| at_super("has a device whose tag is no digest"))?;
        Ok((
            DiffId(Digest::from_hex(tag)?),
            u64::from(entry.blocks.get()) * BLOCK_SIZE,
        ))
    });
    entries.collect()
}

fn locate_inode(bytes: &[u8], nid: u64) -> Result<Located, &'static str> {
    const OUTSIDE: &str = "is outside of the image";
    let offset = usize::try_from(nid)
        .ok()
        .and_then(|nid| nid.checked_mul(SLOT_LEN))
        .ok_or(OUTSIDE)?;
    let raw = read_at::<ExtendedInode>(bytes, offset).ok_or(OUTSIDE)?;
    let format = raw.format.get();
    if format & FORMAT_EXTENDED == 0 || format >> FORMAT_LAYOUT_SHIFT > FORMAT_LAYOUT_MASK {
        return Err("is not an extended inode");
    }
    let layout = format >> FORMAT_LAYOUT_SHIFT;
    let inode = read_inode(raw, nid)?;
    check_layout(&inode, layout)?;
    let xattr_start = offset + size_of::<ExtendedInode>();
    let body_start = xattr_start + xattr::area_len(raw.xattr_count.get());
    if body_start > bytes.len() {
        return Err("has extended attributes outside of the image");
    }
    Ok(Located {
        inode,
        layout,
        union: raw.union.get(),
        xattr_start,
        body_start,
    })
}

fn read_inode(raw: &ExtendedInode, nid: u64) -> Result<Inode, &'static str> {
    let mode = raw.mode.get();
    let device = Device::decode(raw.union.get());
    let kind = match mode & MODE_TYPE_MASK {
        mode if mode == DIRECTORY.mode => InodeKind::Directory,
        mode if mode == REGULAR.mode => InodeKind::Regular,
        mode if mode == SYMLINK.mode => InodeKind::Symlink,
        mode if mode == CHAR_DEVICE.mode => InodeKind::CharDevice(device),
        mode if mode == BLOCK_DEVICE.mode => InodeKind::BlockDevice(device),
        mode if mode == FIFO.mode => InodeKind::Fifo,
        mode if mode == SOCKET.mode => InodeKind::Socket,
        _ => return Err("has an unknown type"),
    };
    let mtime = Timestamp {
        secs: raw.mtime_secs.get(),
        nanos: raw.mtime_nanos.get(),
    };
    if !is_possible_time(mtime) || raw.size.get() > FILE_SIZE_MAX {
        return Err("has an impossible time or size");
    }
    Ok(Inode {
        nid,
        kind,
        permissions: mode & MODE_PERMISSIONS_MASK,
        uid: raw.uid.get(),
        gid: raw.gid.get(),
        mtime,
        nlink: raw.nlink.get(),
        size: raw.size.get(),
    })
}

/// Whether the writer uses `layout` for such an inode.
fn check_layout(inode: &Inode, layout: u16) -> Result<(), &'static str> {
    let fits = match (inode.kind, layout) {
        (InodeKind::Directory | InodeKind::Symlink, LAYOUT_FLAT_PLAIN) => inode.size > 0,
        (InodeKind::Directory | InodeKind::Symlink, LAYOUT_FLAT_INLINE) => {
            !inode.size.is_multiple_of(BLOCK_SIZE)
        }
        (InodeKind::Regular, LAYOUT_CHUNK_BASED) => inode.size > 0,
        (InodeKind::Directory | InodeKind::Symlink, _) => false,
        (_, layout) => layout == LAYOUT_FLAT_PLAIN && inode.size == 0,
    };
    if fits {
        Ok(())
    } else {
        Err("has a data layout that its kind never has")
    }
}
