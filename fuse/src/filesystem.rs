//! What a FUSE session can be asked, in plain Rust types.
//!
//! A [`Namespace`] is one read-only file system. Node numbers are computed from content (see `node`), never handed out,
//! so FORGET means nothing and generation is always 0. Every operation but `read` answers from memory; `read` may answer
//! with a future, which the adapter gives to the runtime so that no FUSE thread ever waits for the network.
//!
//! Whether files are opened is a property of the whole namespace, because the kernel remembers ENOSYS as the answer to
//! the first OPEN for the whole connection: flat layer files need an answered OPEN to get direct I/O (their bytes are
//! already cached one level higher, in the EROFS mount), files of a tree are three times cheaper to open without one.
//! That is why plain layers and image trees are never served by the same session.

use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use nix::errno::Errno;
use sluice_format::erofs::InodeKind;
use sluice_format::inode::Timestamp;

use crate::node;

/// Unit of `st_blocks`, in bytes.
const STAT_BLOCK: u64 = 512;

/// What `stat` shows of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Node number, also the inode number that users see.
    pub node: u64,
    /// What it is.
    pub kind: InodeKind,
    /// The low 12 bits of `st_mode`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change; also shown as the times of access and of status change.
    pub mtime: Timestamp,
    /// Number of names.
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
}

impl Attributes {
    /// Attributes of a directory that is in no image.
    pub(crate) fn fixed_directory(node: u64) -> Self {
        Self {
            node,
            kind: InodeKind::Directory,
            permissions: 0o555,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            nlink: 2,
            size: 0,
        }
    }

    /// `st_blocks`: what the file would occupy without its holes being counted out.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(STAT_BLOCK)
    }
}

/// How long the kernel may remember an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as it likes: content behind a node number never changes.
    Forever,
    /// A moment: names in a fixed directory come and go.
    Brief,
}

impl Lifetime {
    /// The same as a time. "Forever" is 136 years, the longest that fits the kernel's jiffies on every architecture.
    pub fn duration(self) -> Duration {
        match self {
            Self::Forever => Duration::from_secs(u32::MAX as u64),
            Self::Brief => Duration::from_secs(1),
        }
    }
}

/// Answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The node found; `None` says that there is no such name.
    pub found: Option<Attributes>,
    /// How long the kernel may believe the name, or its absence.
    pub lifetime: Lifetime,
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name; `.` and `..` are included.
    pub name: &'a [u8],
    /// Node number.
    pub node: u64,
    /// Kind of the node as a `DT_` constant of `readdir(3)`.
    pub file_type: u8,
    /// Where to go on after this entry.
    pub next_cookie: u64,
    /// How long the kernel may believe the name.
    pub lifetime: Lifetime,
}

/// Answer to a read.
pub enum Answer {
    /// The bytes are in memory.
    Ready(Bytes),
    /// The bytes will come.
    Later(BoxFuture<'static, Result<Bytes, Errno>>),
}

impl Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(bytes) => write!(f, "Ready({} bytes)", bytes.len()),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

/// How files of a namespace are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Every open is answered, and reads bypass the page cache of FUSE.
    Direct,
    /// Opens are never sent: the kernel is told once that there is no such operation.
    Unasked,
}

/// Figures of `statfs(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of all content, including what is not here yet.
    pub content_len: u64,
}

/// A read-only file system.
pub trait Namespace: Debug + Send + Sync + 'static {
    /// How files are opened, the same during the whole life.
    fn open_mode(&self) -> OpenMode;

    /// The child of directory `parent` called `name`.
    ///
    /// # Errors
    /// `ENOTDIR` and `ESTALE` for a wrong parent, `EIO` for a corrupt image.
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno>;

    /// Attributes of a node, which may be kept forever.
    ///
    /// # Errors
    /// `ESTALE` for a number without a node, `EIO` for a corrupt image.
    fn attributes(&self, node: u64) -> Result<Attributes, Errno>;

    /// Feeds `each` with the entries of a directory from `cookie` on (0 for the first) until it returns `false`.
    ///
    /// # Errors
    /// As [`Namespace::lookup`].
    fn read_dir(
        &self,
        node: u64,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno>;

    /// Bytes of a file. Shorter than asked only at the end of the file.
    ///
    /// # Errors
    /// `EISDIR` and `EINVAL` for what is no regular file, `ESTALE`, `EIO`.
    fn read(&self, node: u64, file: Range<u64>) -> Result<Answer, Errno>;

    /// The same for somebody who reads ahead of programs: it tells nothing about them.
    ///
    /// # Errors
    /// As [`Namespace::read`].
    fn read_ahead(&self, node: u64, file: Range<u64>) -> Result<Answer, Errno> {
        self.read(node, file)
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` for anything else.
    fn read_link(&self, _node: u64) -> Result<Vec<u8>, Errno> {
        Err(Errno::EINVAL)
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` when there is none of that name.
    fn xattr(&self, _node: u64, _name: &[u8]) -> Result<Vec<u8>, Errno> {
        Err(Errno::ENODATA)
    }

    /// Names of all extended attributes, each ended by a NUL byte.
    ///
    /// # Errors
    /// As [`Namespace::attributes`].
    fn xattr_names(&self, _node: u64) -> Result<Vec<u8>, Errno> {
        Ok(Vec::new())
    }

    /// Figures of the file system.
    fn statistics(&self) -> Statistics;
}

/// Feeds `each` with `.` and `..` of a fixed directory as far as `cookie` leaves them. Returns whether to go on with the
/// entries proper, whose cookies must be 2 and above.
pub(crate) fn dots(node: u64, parent: u64, cookie: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> bool {
    let dots = [(&b"."[..], node), (&b".."[..], parent)];
    for (at, (name, node)) in (0..)
        .zip(dots)
        .skip(usize::try_from(cookie).unwrap_or(usize::MAX))
    {
        let entry = DirEntry {
            name,
            node,
            file_type: libc::DT_DIR,
            next_cookie: at + 1,
            lifetime: Lifetime::Forever,
        };
        if !each(entry) {
            return false;
        }
    }
    true
}

/// Feeds `each` with the root of a shared session, which holds one directory called `name`.
pub(crate) fn fixed_root(name: &str, cookie: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) {
    if dots(node::ROOT, node::ROOT, cookie, each) && cookie <= 2 {
        each(DirEntry {
            name: name.as_bytes(),
            node: node::FIXED_DIRECTORY,
            file_type: libc::DT_DIR,
            next_cookie: 3,
            lifetime: Lifetime::Forever,
        });
    }
}
