//! Making and undoing mounts with the kernel's file-descriptor calls.
//!
//! `fsopen` → `fsconfig` → `fsmount` gives a [`DetachedMount`]: a working file system that no path leads to and that
//! vanishes with its descriptor. Only [`DetachedMount::attach`] makes it visible, so whatever goes wrong before leaves no
//! trace. An [`AttachedMount`] is undone by drop, and never undoes anything but itself: `umount(2)` takes a path, and
//! the path may carry somebody else's mount by then.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_set_flag, fsconfig_set_string, fsopen, move_mount,
};

use crate::mount_helper::{self, MountHelper};
use crate::mountinfo::{self, MountEntry};
use crate::{Error, kernel};

/// Longest message that a file system leaves in its context, in bytes.
const MESSAGE_MAX: usize = 4096;

/// Messages read at most; the kernel keeps eight.
const MESSAGES_MAX: usize = 16;

/// A mount to be made.
#[derive(Debug)]
pub(crate) struct NewMount<'a> {
    /// File system type.
    pub(crate) fs_type: &'static str,
    /// What the mount table shows as its source, or what the file system reads.
    pub(crate) source: &'a Path,
    /// Further options with a value, in order.
    pub(crate) strings: Vec<(&'static str, String)>,
    /// Further options without a value.
    pub(crate) flags: Vec<&'static str>,
    /// Properties of the mount itself.
    pub(crate) attributes: MountAttrFlags,
}

impl NewMount<'_> {
    /// Makes the mount without a place in the directory tree, through a helper if it may wait for a session of this process.
    ///
    /// # Errors
    /// [`Error::Mount`] with the kernel's own messages.
    pub(crate) fn create(&self, helper: Option<&MountHelper>) -> Result<DetachedMount, Error> {
        let refuse = |source: io::Error, messages| Error::Mount {
            fs_type: self.fs_type,
            origin: self.source.to_owned(),
            messages,
            source,
        };
        let log = KernelLog::from_now();
        let context =
            fsopen(self.fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| refuse(e.into(), vec![]))?;
        match self.complete(context.as_fd(), helper) {
            Ok(fd) => Ok(DetachedMount { fd }),
            Err(error) => {
                let mut messages = read_messages(context.as_fd());
                messages.extend(log.lines_about(self.fs_type));
                Err(refuse(error, messages))
            }
        }
    }

    fn complete(&self, context: BorrowedFd<'_>, helper: Option<&MountHelper>) -> io::Result<OwnedFd> {
        fsconfig_set_string(context, "source", self.source)?;
        for (key, value) in &self.strings {
            fsconfig_set_string(context, *key, value.as_str())?;
        }
        for flag in &self.flags {
            fsconfig_set_flag(context, *flag)?;
        }
        match helper {
            Some(helper) => helper.create(context, self.attributes),
            None => Ok(mount_helper::create_here(context, self.attributes)?),
        }
    }
}

/// Messages that the kernel left in a file system context: one per read, each with its level (`e`, `w`, `i`) in front.
fn read_messages(context: BorrowedFd<'_>) -> Vec<String> {
    let mut messages = Vec::new();
    let mut buffer = [0; MESSAGE_MAX];
    while messages.len() < MESSAGES_MAX {
        // ENODATA ends the list.
        let Ok(len) = rustix::io::read(context, &mut buffer) else {
            break;
        };
        let text = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default());
        let text = text.trim_end();
        messages.push(
            text.split_once(' ')
                .map_or(text, |(_, message)| message)
                .to_owned(),
        );
    }
    messages
}

/// The kernel's log from a moment on. EROFS tells most of its reasons there and not in the file system context.
struct KernelLog(Option<File>);

impl KernelLog {
    /// Remembers the end of the log. A log that cannot be read has no lines.
    fn from_now() -> Self {
        let options = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg");
        let at_end = |mut log: File| log.seek(SeekFrom::End(0)).is_ok().then_some(log);
        Self(options.ok().and_then(at_end))
    }

    /// Lines written since then that begin with the name of a file system. Other mounts may be among them.
    fn lines_about(self, fs_type: &str) -> Vec<String> {
        let Self(Some(mut log)) = self else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        let mut record = [0; MESSAGE_MAX];
        // One record per read; "would block" ends the log.
        while let Ok(len) = log.read(&mut record) {
            let text = String::from_utf8_lossy(record.get(..len).unwrap_or_default());
            // "priority,number,time,flags;text" and then lines with properties.
            let line = text
                .split_once(';')
                .map_or("", |(_, text)| text)
                .lines()
                .next()
                .unwrap_or_default();
            if line.starts_with(fs_type) && lines.len() < MESSAGES_MAX {
                lines.push(line.to_owned());
            }
            if len == 0 || lines.len() >= MESSAGES_MAX {
                break;
            }
        }
        lines
    }
}

/// A mount that only its descriptor leads to.
#[derive(Debug)]
pub(crate) struct DetachedMount {
    fd: OwnedFd,
}

impl From<OwnedFd> for DetachedMount {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for DetachedMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl DetachedMount {
    /// A path by which this process and its helpers, and the kernel on their behalf, reach the root of the mount.
    pub(crate) fn path(&self) -> PathBuf {
        path_of(self.fd.as_fd())
    }

    /// Opens a file or directory in the mount.
    pub(crate) fn open(&self, path: impl AsRef<OsStr>, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.fd, path.as_ref(), flags, Mode::empty())?)
    }

    /// Name of the file system below `/sys/fs`, when it has one.
    pub(crate) fn sysfs_name(&self) -> Option<String> {
        let root = self.open(".", OFlags::DIRECTORY).ok()?;
        kernel::sysfs_name(&root)
    }

    /// Puts the mount on a directory, over whatever is there.
    pub(crate) fn attach(self, target: &Path) -> Result<AttachedMount, Error> {
        let target = fs::canonicalize(target).map_err(|e| Error::path("finding mount target", target, e))?;
        let id = mount_id(self.fd.as_fd())?;
        move_mount(
            &self.fd,
            "",
            CWD,
            &target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|e| Error::path("attaching a mount to", &target, e))?;
        // From here on the mount is visible: an error must undo it.
        let mounts = mountinfo::read().map_err(|e| Error::io("reading the mount table", e));
        let entry = mounts.map(|mounts| mounts.into_iter().find(|entry| entry.id == id));
        match entry {
            Ok(Some(entry)) => Ok(AttachedMount { entry: Some(entry) }),
            Ok(None) => Err(Error::NotMounted { target }),
            Err(error) => {
                let _ = umount2(&target, MntFlags::MNT_DETACH);
                Err(error)
            }
        }
    }
}

/// A path by which this process and its helpers reach what a descriptor refers to.
pub(crate) fn path_of(descriptor: BorrowedFd<'_>) -> PathBuf {
    // The number of this process as this procfs counts: it may belong to another PID namespace.
    let process = fs::read_link("/proc/self").unwrap_or_else(|_| PathBuf::from("self"));
    let number = descriptor.as_raw_fd().to_string();
    Path::new("/proc").join(process).join("fd").join(number)
}

/// How a mount went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unmounted {
    /// By this call.
    Now,
    /// It was gone before.
    Before,
}

/// A mount in the directory tree. Dropping it unmounts it, lazily when it is busy.
#[derive(Debug)]
pub(crate) struct AttachedMount {
    /// `None` after it was undone.
    entry: Option<MountEntry>,
}

impl From<MountEntry> for AttachedMount {
    /// Somebody else's mount, to be undone by this process from now on.
    fn from(entry: MountEntry) -> Self {
        Self { entry: Some(entry) }
    }
}

impl AttachedMount {
    /// Its line in the mount table.
    pub(crate) fn entry(&self) -> Option<&MountEntry> {
        self.entry.as_ref()
    }

    /// Unmounts, unless somebody else has done it. With `lazy` the path is free at once and the mount goes on for those
    /// who use it.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody uses it or has mounted something over it; it stays then.
    pub(crate) fn unmount(&mut self, lazy: bool) -> Result<Unmounted, Error> {
        let Some(entry) = &self.entry else {
            return Ok(Unmounted::Before);
        };
        let outcome = unmount_exactly(entry, lazy)?;
        self.entry = None;
        Ok(outcome)
    }
}

impl Drop for AttachedMount {
    fn drop(&mut self) {
        let Some(entry) = self.entry.clone() else { return };
        let target = entry.target.display();
        match self.unmount(false) {
            Ok(_) => {}
            Err(Error::Busy { .. }) => match self.unmount(true) {
                Ok(_) => {
                    tracing::warn!(%target, "a mount was busy; it is detached and ends with its last user")
                }
                Err(error) => tracing::warn!(%target, %error, "a mount was left behind"),
            },
            Err(error) => tracing::warn!(%target, %error, "a mount was left behind"),
        }
    }
}

/// Unmounts this very mount.
pub(crate) fn unmount_exactly(entry: &MountEntry, lazy: bool) -> Result<Unmounted, Error> {
    let mounts = mountinfo::read().map_err(|e| Error::io("reading the mount table", e))?;
    if !mounts.iter().any(|mount| mount.same_mount(entry)) {
        return Ok(Unmounted::Before);
    }
    let busy = || Error::Busy {
        target: entry.target.clone(),
    };
    let topmost = mounts.iter().rev().find(|mount| mount.target == entry.target);
    if !topmost.is_some_and(|topmost| topmost.same_mount(entry)) {
        return Err(busy());
    }
    let flags = if lazy {
        MntFlags::MNT_DETACH
    } else {
        MntFlags::empty()
    };
    match umount2(&entry.target, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(Unmounted::Now),
        Err(Errno::EBUSY) => Err(busy()),
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(Unmounted::Before),
        Err(errno) => Err(Error::path("unmounting", &entry.target, errno)),
    }
}

fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Error> {
    let path = PathBuf::from(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd()));
    let text = fs::read_to_string(&path).map_err(|e| Error::path("reading", &path, e))?;
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| Error::Unsupported("the kernel does not tell mount ids in /proc/self/fdinfo".to_owned()))
}
