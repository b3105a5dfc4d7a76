//! fuser's calls ↔ [`Namespace`], nothing else.
//!
//! Every call is one question to the namespace and one reply. Reads that are not in memory are answered by a task of the
//! runtime, so a FUSE thread is free again at once. A panic in an operation is caught: its reply object is dropped, which
//! sends `EIO`, and the session goes on.

use std::ffi::OsStr;
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use nix::errno::Errno;
use sluice_format::erofs::InodeKind;
use sluice_format::inode::Timestamp;
use tokio::runtime::Handle;

use crate::filesystem::{Answer, Attributes, DirEntry, Lifetime, Namespace, OpenMode};
use crate::page_reader::is_page_reader;

/// Longest request in bytes; `fs.fuse.max_pages_limit` caps requests at 1 MiB by default.
const MAX_REQUEST: u32 = 1 << 20;

/// Readahead requests in flight before the kernel holds further ones back. Each costs a task, not a thread.
const MAX_BACKGROUND: u16 = 128;

/// `st_blksize`: what programs take as their buffer size.
const PREFERRED_BUFFER: u32 = 4096;

/// Longest name, as `statfs` tells it.
const NAME_MAX: u32 = 255;

/// A [`Namespace`] in fuser's terms.
#[derive(Debug)]
pub struct Adapter {
    namespace: Arc<dyn Namespace>,
    runtime: Handle,
    leaving: Arc<AtomicBool>,
}

/// The reply to a read that waits. Dropped without an answer, it is one of `EIO`; unless the process is leaving, for then
/// a successor gets the request again.
struct PendingRead {
    reply: Option<ReplyData>,
    leaving: Arc<AtomicBool>,
}

impl PendingRead {
    fn answer(mut self, outcome: Result<Bytes, Errno>) {
        if let Some(reply) = self.reply.take() {
            match outcome {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => reply.error(reported(errno)),
            }
        }
    }
}

impl Drop for PendingRead {
    fn drop(&mut self) {
        let leaving = self.leaving.load(Ordering::SeqCst);
        if let Some(reply) = self.reply.take().filter(|_| leaving) {
            mem::forget(reply);
        }
    }
}

impl Adapter {
    /// Serves `namespace`; reads that have to wait do so on `runtime`.
    pub fn new(namespace: Arc<dyn Namespace>, runtime: Handle) -> Self {
        Self {
            namespace,
            runtime,
            leaving: Arc::default(),
        }
    }

    /// Set when the process ends while its session goes on: reads that are still waiting then stay unanswered.
    pub(crate) fn leaving(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.leaving)
    }

    fn capabilities(&self) -> InitFlags {
        let common = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_POSIX_ACL;
        match self.namespace.open_mode() {
            OpenMode::Direct => common,
            OpenMode::Unasked => {
                common | InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            }
        }
    }

    fn find(&self, parent: u64, name: &OsStr) -> Result<(FileAttr, Duration), Errno> {
        let entry = self.namespace.lookup(parent, name.as_bytes())?;
        let attributes = match (entry.found, entry.lifetime) {
            (Some(attributes), _) => file_attr(&attributes),
            // A node number of 0 lets the kernel remember that there is no such name; ENOENT would not.
            (None, Lifetime::Forever) => file_attr(&Attributes::fixed_directory(0)),
            (None, Lifetime::Brief) => return Err(Errno::ENOENT),
        };
        Ok((attributes, entry.lifetime.duration()))
    }

    fn start_read(&self, pid: u32, node: u64, offset: u64, size: u32, reply: ReplyData) {
        let range = offset..offset.saturating_add(size.into());
        let answer = if is_page_reader(pid) {
            self.namespace.read_ahead(node, range)
        } else {
            self.namespace.read(node, range)
        };
        match answer {
            Ok(Answer::Ready(bytes)) => reply.data(&bytes),
            Ok(Answer::Later(bytes)) => {
                let pending = PendingRead {
                    reply: Some(reply),
                    leaving: self.leaving(),
                };
                self.runtime.spawn(async move { pending.answer(bytes.await) });
            }
            Err(errno) => reply.error(reported(errno)),
        }
    }

    fn list(&self, node: u64, cookie: u64, mut reply: ReplyDirectory) {
        let fed = self.namespace.read_dir(node, cookie, &mut |entry| {
            let name = OsStr::from_bytes(entry.name);
            let full = reply.add(INodeNo(entry.node), entry.next_cookie, listed_type(&entry), name);
            !full
        });
        match fed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(reported(errno)),
        }
    }

    fn list_plus(&self, node: u64, cookie: u64, mut reply: ReplyDirectoryPlus) {
        let mut failed = None;
        let fed = self.namespace.read_dir(node, cookie, &mut |entry| {
            let attributes = match self.namespace.attributes(entry.node) {
                Ok(attributes) => file_attr(&attributes),
                Err(errno) => {
                    failed = Some(errno);
                    return false;
                }
            };
            let name = OsStr::from_bytes(entry.name);
            let full = reply.add(
                attributes.ino,
                entry.next_cookie,
                name,
                &entry.lifetime.duration(),
                &attributes,
                Generation(0),
            );
            !full
        });
        match failed.map_or(fed, Err) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(reported(errno)),
        }
    }
}

/// Runs one operation. When it panics, its reply was dropped on the way, which has answered `EIO`.
fn guarded(operation: &'static str, run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!(operation, "a file operation panicked; it was answered with EIO");
    }
}

fn reported(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

fn system_time(time: Timestamp) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::new(time.secs, time.nanos))
        .unwrap_or(UNIX_EPOCH)
}

fn file_type(kind: InodeKind) -> FileType {
    match kind {
        InodeKind::Directory => FileType::Directory,
        InodeKind::Regular => FileType::RegularFile,
        InodeKind::Symlink => FileType::Symlink,
        InodeKind::CharDevice(_) => FileType::CharDevice,
        InodeKind::BlockDevice(_) => FileType::BlockDevice,
        InodeKind::Fifo => FileType::NamedPipe,
        InodeKind::Socket => FileType::Socket,
    }
}

fn listed_type(entry: &DirEntry<'_>) -> FileType {
    match entry.file_type {
        libc::DT_DIR => FileType::Directory,
        libc::DT_LNK => FileType::Symlink,
        libc::DT_CHR => FileType::CharDevice,
        libc::DT_BLK => FileType::BlockDevice,
        libc::DT_FIFO => FileType::NamedPipe,
        libc::DT_SOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let time = system_time(attributes.mtime);
    let rdev = match attributes.kind {
        InodeKind::CharDevice(device) | InodeKind::BlockDevice(device) => device.encode(),
        _ => 0,
    };
    FileAttr {
        ino: INodeNo(attributes.node),
        size: attributes.size,
        blocks: attributes.blocks(),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attributes.kind),
        perm: attributes.permissions,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev,
        blksize: PREFERRED_BUFFER,
        flags: 0,
    }
}

/// Answers a question for an attribute or a list of them: its length when `size` is 0, otherwise the bytes.
fn answer_xattr(answer: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match answer {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.error(fuser::Errno::ERANGE),
        },
        Err(errno) => reply.error(reported(errno)),
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Every capability is optional: a kernel without it is slower, not wrong.
        for capability in self.capabilities().iter() {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel's FUSE lacks a capability");
            }
        }
        // The setters refuse values outside the kernel's bounds and then keep their own, which are valid too.
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("lookup", || match self.find(parent.0, name) {
            Ok((attributes, lifetime)) => {
                let forever = Lifetime::Forever.duration();
                reply.entry_with_ttls(&forever, &lifetime, &attributes, Generation(0));
            }
            Err(errno) => reply.error(reported(errno)),
        });
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        guarded("getattr", || match self.namespace.attributes(node.0) {
            Ok(attributes) => reply.attr(&Lifetime::Forever.duration(), &file_attr(&attributes)),
            Err(errno) => reply.error(reported(errno)),
        });
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        guarded("readlink", || match self.namespace.read_link(node.0) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(reported(errno)),
        });
    }

    fn open(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.namespace.open_mode() {
            OpenMode::Direct => {
                reply.opened(
                    FileHandle(0),
                    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
                );
            }
            OpenMode::Unasked => reply.error(fuser::Errno::ENOSYS),
        }
    }

    fn opendir(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.namespace.open_mode() {
            OpenMode::Direct => reply.opened(FileHandle(0), FopenFlags::empty()),
            OpenMode::Unasked => reply.error(fuser::Errno::ENOSYS),
        }
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let pid = request.pid();
        guarded("read", || self.start_read(pid, node.0, offset, size, reply));
    }

    fn readdir(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        cookie: u64,
        reply: ReplyDirectory,
    ) {
        guarded("readdir", || self.list(node.0, cookie, reply));
    }

    fn readdirplus(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        guarded("readdirplus", || self.list_plus(node.0, cookie, reply));
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        guarded("statfs", || {
            let block = PREFERRED_BUFFER;
            let blocks = self.namespace.statistics().content_len.div_ceil(block.into());
            reply.statfs(blocks, 0, 0, 0, 0, block, NAME_MAX, block);
        });
    }

    fn getxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded("getxattr", || {
            answer_xattr(self.namespace.xattr(node.0, name.as_bytes()), size, reply);
        });
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", || {
            answer_xattr(self.namespace.xattr_names(node.0), size, reply)
        });
    }

    // fuser's defaults for the following log a warning per call; the kernel falls back by itself after ENOSYS.

    fn flush(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsync(&self, _request: &Request, _node: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _flags: fuser::IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_len: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }
}
