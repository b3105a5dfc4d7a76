//! Plain layers and image trees as kernel mounts.
//!
//! The engine below answers one question, [`PlainSource::read`]; this crate shows the answers to the kernel in one of two
//! ways. The `erofs` front end serves each plain layer as one flat FUSE file ([`plain`]) and lets the kernel mount the
//! image tree over them ([`erofs_mount`]), so that the process sees nothing but block misses. The `fuse` front end serves
//! the image tree itself ([`trees`]).
//!
//! [`filesystem`] is what a session can ask of either, in plain Rust types; [`adapter`] translates fuser's calls into it
//! and decides nothing; [`session`] owns the connection. [`mounted_image`] holds everything that belongs to one mounted
//! image, [`guard`] undoes it when the process dies, [`mount_record`] lets another process find it, and [`mount_helper`] waits for the session on its behalf. [`page_reader`] fills the page cache of a mount ahead of
//! programs. [`takeover`] goes on with
//! a session whose process died, kept alive by a [`descriptor_store`].

pub mod adapter;
pub mod descriptor_store;
pub mod erofs_mount;
mod errno;
pub mod error;
pub mod filesystem;
pub mod guard;
mod image_tree;
mod kernel;
mod mount;
pub mod mount_helper;
pub mod mount_record;
pub mod mounted_image;
pub mod mountinfo;
mod node;
pub mod page_reader;
pub mod plain;
pub mod probe;
mod readahead;
pub mod session;
pub mod source;
pub mod takeover;
pub mod trees;

pub use descriptor_store::DescriptorStore;
pub use error::Error;
pub use guard::{Guard, run_guard};
pub use kernel::release_free_memory;
pub use mount_helper::{MountHelper, run_mount_helper};
pub use mount_record::{MountRecord, find_mount, request_unmount};
pub use mounted_image::{Front, MountRequest, MountedImage, complete_device};
pub use page_reader::{PageReader, run_page_reader};
pub use probe::{Support, probe};
pub use session::{Session, SessionOptions};
pub use source::{Layer, PlainSource};
pub use takeover::Descriptors;
