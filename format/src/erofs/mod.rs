//! EROFS metadata images of trees.
pub mod reader;
pub mod writer;

pub use reader::{DirEntry, Image, Inode, InodeKind, MappedRun, RunSource};
pub use writer::{DeviceSlot, WrittenImage, write_image};

/// Block size of every image written here, in bytes: the unit in which tar data is aligned.
pub const BLOCK_SIZE: u64 = 512;
