//! On-disk structures of EROFS, as far as our images use them.
//!
//! Source: the EROFS on-disk format in the Linux kernel (`fs/erofs/erofs_fs.h`) and the format description at
//! <https://erofs.docs.kernel.org/en/latest/core_ondisk.html>. All numbers are little endian. Every structure is
//! unaligned plain bytes, so that a memory-mapped image is read in place.
//!
//! An address in EROFS counts blocks (512 bytes here) from the start of a device; a node id (*nid*) counts 32-byte slots
//! from the metadata start, which is byte 0 in our images: the inode of node id *n* is at byte `32 * n`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::NodeKind;
use crate::inode::Timestamp;

/// Position of the [`SuperBlock`] in an image, in bytes.
pub const SUPER_OFFSET: usize = 1024;
/// [`SuperBlock::magic`].
pub const SUPER_MAGIC: u32 = 0xE0F5_E1E2;
/// [`SuperBlock::block_bits`] of our images: 512 bytes, the unit in which a tar aligns file content.
pub const BLOCK_BITS: u8 = 9;
/// [`crate::erofs::BLOCK_SIZE`] as a length in memory.
pub const BLOCK_LEN: usize = 1 << BLOCK_BITS;
/// Bytes that one node id counts.
pub const SLOT_LEN: usize = 32;

/// Compatible feature: inodes carry the modification time, not the change time.
pub const COMPAT_MTIME: u32 = 0x2;
/// Incompatible feature: chunk-based files.
pub const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// Incompatible feature: a device table.
pub const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// Bit 0 of [`ExtendedInode::format`]: the inode has 64 bytes.
pub const FORMAT_EXTENDED: u16 = 1;
/// Position of the data layout in [`ExtendedInode::format`].
pub const FORMAT_LAYOUT_SHIFT: u16 = 1;
/// Width of the data layout in [`ExtendedInode::format`], as a mask.
pub const FORMAT_LAYOUT_MASK: u16 = 0x7;
/// Data layout: all bytes are in consecutive blocks.
pub const LAYOUT_FLAT_PLAIN: u16 = 0;
/// Data layout: whole blocks as in [`LAYOUT_FLAT_PLAIN`], the rest directly behind the inode.
pub const LAYOUT_FLAT_INLINE: u16 = 2;
/// Data layout: a table of [`ChunkIndex`] entries behind the inode.
pub const LAYOUT_CHUNK_BASED: u16 = 4;

/// Chunk format: entries are [`ChunkIndex`], not bare addresses.
pub const CHUNK_FORMAT_INDEXES: u16 = 0x20;
/// Chunk format: binary logarithm of the blocks in one EROFS chunk.
pub const CHUNK_FORMAT_BITS_MASK: u16 = 0x1f;
/// [`ChunkIndex::address`] of a chunk of zeros.
pub const NULL_ADDRESS: u32 = u32::MAX;

/// Superblock, 128 bytes at byte 1024.
///
/// | offset | length | field |
/// |---|---|---|
/// | 0 | 4 | magic |
/// | 4 | 4 | checksum (unused: the image is named by its SHA-256) |
/// | 8 | 4 | compatible features |
/// | 12 | 1 | binary logarithm of the block size |
/// | 13 | 1 | 16-byte slots that extend this structure |
/// | 14 | 2 | node id of the root directory |
/// | 16 | 8 | number of inodes |
/// | 24 | 8 | build time, seconds (compact inodes only) |
/// | 32 | 4 | build time, nanoseconds |
/// | 36 | 4 | blocks in this image |
/// | 40 | 4 | address at which node ids begin |
/// | 44 | 4 | address of shared extended attributes |
/// | 48 | 16 | UUID |
/// | 64 | 16 | volume name |
/// | 80 | 4 | incompatible features |
/// | 84 | 2 | compression algorithms |
/// | 86 | 2 | number of extra devices |
/// | 88 | 2 | position of the device table in units of 128 bytes |
/// | 90 | 1 | directory block size, binary logarithm relative to the block size |
/// | 91 | 37 | fields of features that are not used here |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    /// [`SUPER_MAGIC`].
    pub magic: U32,
    /// Zero.
    pub checksum: U32,
    /// Bits that a reader may ignore.
    pub compat: U32,
    /// [`BLOCK_BITS`].
    pub block_bits: u8,
    /// Zero.
    pub extension_slots: u8,
    /// Node id of the root directory.
    pub root_nid: U16,
    /// Number of inodes.
    pub inodes: U64,
    /// Zero: only compact inodes need it.
    pub build_secs: U64,
    /// Zero.
    pub build_nanos: U32,
    /// Blocks in this image.
    pub blocks: U32,
    /// Zero: node ids count from the start of the image.
    pub meta_address: U32,
    /// Zero: no attributes are shared.
    pub xattr_address: U32,
    /// Zero.
    pub uuid: [u8; 16],
    /// Zero.
    pub volume_name: [u8; 16],
    /// Bits that a reader must know.
    pub incompat: U32,
    /// Zero.
    pub compression: U16,
    /// Entries of the device table.
    pub extra_devices: U16,
    /// Position of the device table in units of [`DeviceEntry`].
    pub device_table: U16,
    /// Zero: directory blocks have the block size.
    pub dir_block_bits: u8,
    /// Zero.
    pub unused: [u8; 37],
}

/// Entry of the device table, 128 bytes.
///
/// | offset | length | field |
/// |---|---|---|
/// | 0 | 64 | tag: 64 lower-case hex digits of the DiffID |
/// | 64 | 4 | blocks of the device |
/// | 68 | 4 | address in a flat address space (unused) |
/// | 72 | 56 | reserved |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceEntry {
    /// Hex digits of the DiffID.
    pub tag: [u8; 64],
    /// Length in blocks, the last one possibly incomplete.
    pub blocks: U32,
    /// Zero.
    pub mapped_address: U32,
    /// Zero.
    pub reserved: [u8; 56],
}

/// Inode in the extended form, 64 bytes.
///
/// | offset | length | field |
/// |---|---|---|
/// | 0 | 2 | format: bit 0 extended, bits 1 to 3 data layout |
/// | 2 | 2 | extended attribute area: 0 or (length - 12) / 4 + 1 |
/// | 4 | 2 | mode |
/// | 6 | 2 | reserved |
/// | 8 | 8 | size |
/// | 16 | 4 | by kind: address of the blocks, chunk format, or device number |
/// | 20 | 4 | inode number for 32-bit `stat` |
/// | 24 | 4 | owner |
/// | 28 | 4 | group |
/// | 32 | 8 | modification time, seconds |
/// | 40 | 4 | modification time, nanoseconds |
/// | 44 | 4 | number of names |
/// | 48 | 16 | reserved |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedInode {
    /// Version and data layout.
    pub format: U16,
    /// Length code of the extended attributes.
    pub xattr_count: U16,
    /// Type and permissions.
    pub mode: U16,
    /// Zero.
    pub reserved: U16,
    /// Length of the content in bytes.
    pub size: U64,
    /// Address, chunk format or device number.
    pub union: U32,
    /// Running number from 1; the kernel shows the node id instead.
    pub ino: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Seconds since the epoch.
    pub mtime_secs: U64,
    /// Nanoseconds within the second.
    pub mtime_nanos: U32,
    /// Number of names.
    pub nlink: U32,
    /// Zero.
    pub unused: [u8; 16],
}

/// Directory entry, 12 bytes. A directory block begins with its entries; their names follow in the same order.
///
/// | offset | length | field |
/// |---|---|---|
/// | 0 | 8 | node id |
/// | 8 | 2 | where the name begins in the block; in the first entry also 12 times the number of entries |
/// | 10 | 1 | file type |
/// | 11 | 1 | reserved |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Dirent {
    /// Node id.
    pub nid: U64,
    /// Begin of the name in the block.
    pub name_off: U16,
    /// One of the `FILE_TYPE` numbers.
    pub file_type: u8,
    /// Zero.
    pub reserved: u8,
}

/// Head of the extended attributes of an inode, 12 bytes.
///
/// | offset | length | field |
/// |---|---|---|
/// | 0 | 4 | name filter (unused) |
/// | 4 | 1 | number of shared attributes (none) |
/// | 5 | 7 | reserved |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrHeader {
    /// Zero.
    pub name_filter: U32,
    /// Zero.
    pub shared_count: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// Head of one extended attribute, 4 bytes; the rest of the name and the value follow, padded to 4 bytes.
///
/// | offset | length | field |
/// |---|---|---|
/// | 0 | 1 | length of the name without its prefix |
/// | 1 | 1 | number of the prefix |
/// | 2 | 2 | length of the value |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrEntry {
    /// Length of the name without its prefix.
    pub name_len: u8,
    /// Number of the prefix.
    pub prefix: u8,
    /// Length of the value.
    pub value_len: U16,
}

/// Where one EROFS chunk of a file is, 8 bytes. Not to be mixed up with the chunks of a plain layer.
///
/// | offset | length | field |
/// |---|---|---|
/// | 0 | 2 | reserved |
/// | 2 | 2 | device: 0 this image, otherwise an entry of the device table counted from 1 |
/// | 4 | 4 | address on that device, or [`NULL_ADDRESS`] |
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkIndex {
    /// Zero.
    pub reserved: U16,
    /// Device number.
    pub device: U16,
    /// Address in blocks.
    pub address: U32,
}

/// `st_mode` type bits of an inode and the number that a directory entry repeats for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType {
    /// `S_IFMT` part of the mode.
    pub mode: u16,
    /// Number in a directory entry.
    pub number: u8,
}

/// Type bits of a mode.
pub const MODE_TYPE_MASK: u16 = 0o170_000;
/// Permission bits of a mode.
pub const MODE_PERMISSIONS_MASK: u16 = 0o7777;

/// Regular file.
pub const REGULAR: FileType = FileType {
    mode: 0o100_000,
    number: 1,
};
/// Directory.
pub const DIRECTORY: FileType = FileType {
    mode: 0o040_000,
    number: 2,
};
/// Character device.
pub const CHAR_DEVICE: FileType = FileType {
    mode: 0o020_000,
    number: 3,
};
/// Block device.
pub const BLOCK_DEVICE: FileType = FileType {
    mode: 0o060_000,
    number: 4,
};
/// Named pipe.
pub const FIFO: FileType = FileType {
    mode: 0o010_000,
    number: 5,
};
/// Socket.
pub const SOCKET: FileType = FileType {
    mode: 0o140_000,
    number: 6,
};
/// Symbolic link.
pub const SYMLINK: FileType = FileType {
    mode: 0o120_000,
    number: 7,
};

impl FileType {
    /// Type that stores a node of this kind; a whiteout is a character device.
    pub fn of(kind: &NodeKind) -> Self {
        match kind {
            NodeKind::Directory(_) => DIRECTORY,
            NodeKind::Regular(_) => REGULAR,
            NodeKind::Symlink(_) => SYMLINK,
            NodeKind::CharDevice(_) | NodeKind::Whiteout => CHAR_DEVICE,
            NodeKind::BlockDevice(_) => BLOCK_DEVICE,
            NodeKind::Fifo => FIFO,
            NodeKind::Socket => SOCKET,
        }
    }
}

/// Longest target of a symbolic link in bytes: the kernel reads it into one page with a final NUL.
pub const SYMLINK_MAX: usize = 4095;
/// Largest file: the kernel's `loff_t` is signed.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// Whether the kernel can show a time: it has signed 64-bit seconds and less than a second of nanoseconds.
pub fn is_possible_time(time: Timestamp) -> bool {
    time.secs <= i64::MAX as u64 && time.nanos < NANOS_PER_SECOND
}

const _: () = {
    assert!(size_of::<SuperBlock>() == 128);
    assert!(size_of::<DeviceEntry>() == 128);
    assert!(size_of::<ExtendedInode>() == 64);
    assert!(size_of::<Dirent>() == 12);
    assert!(size_of::<XattrHeader>() == 12);
    assert!(size_of::<XattrEntry>() == 4);
    assert!(size_of::<ChunkIndex>() == 8);
};
