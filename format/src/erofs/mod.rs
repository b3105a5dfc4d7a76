//! EROFS metadata images of trees.
//!
//! One image serves every front end: the kernel mounts it, with the plain layers as its extra devices, and the FUSE
//! front end reads the same bytes in place. [`layout`] holds the on-disk structures, [`write_image`] makes an image of
//! a [`crate::Tree`], [`Image`] reads one. The feature modules in between ([`chunks`], `dirent`, `xattr`) hold both
//! directions of one part of the format. Only the subset that the writer produces is read; anything else is refused.

pub mod chunks;
mod dirent;
pub mod layout;
mod plan;
pub mod reader;
mod to_tree;
pub mod writer;
mod xattr;

pub use reader::{DirEntry, Image, Inode, InodeKind, MappedRun, RunSource};
pub use writer::{DeviceSlot, WrittenImage, write_image};

/// Block size of every image written here, in bytes: the unit in which tar data is aligned.
pub const BLOCK_SIZE: u64 = 512;

/// Extended attribute by which overlayfs marks a directory that hides the directories below it.
const OPAQUE_NAME: &[u8] = b"trusted.overlay.opaque";
/// Value of [`OPAQUE_NAME`].
const OPAQUE_VALUE: &[u8] = b"y";

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
