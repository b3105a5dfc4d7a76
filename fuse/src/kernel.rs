//! The interfaces of the kernel and the C library that have no safe form.
//!
//! [`map_read_only`] maps a file; [`sysfs_name`] asks a file system for its name below `/sys/fs`; [`own_inherited`] and
//! [`replace_descriptor`] deal with descriptors by number; [`release_free_memory`] speaks to the allocator. Nothing else in this crate is unsafe.
#![expect(
    unsafe_code,
    reason = "mmap, an ioctl, descriptor numbers and malloc_trim without a safe wrapper; each call states why it is sound"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use memmap2::Mmap;
use nix::errno::Errno;

/// Longest name that `FS_IOC_GETFSSYSFSPATH` gives, in bytes (`include/uapi/linux/fs.h`, `struct fs_sysfs_path`).
const SYSFS_NAME_MAX: usize = 128;

#[repr(C)]
struct FsSysfsPath {
    len: u8,
    name: [u8; SYSFS_NAME_MAX],
}

nix::ioctl_read!(get_fs_sysfs_path, 0x15, 1, FsSysfsPath);

/// Maps a file that nobody changes. The caller has checked that it is read-only and belongs to this user or to root: a
/// file that is cut short under the map raises SIGBUS.
pub(crate) fn map_read_only(file: &File) -> io::Result<Mmap> {
    // SAFETY: the bytes of the map must not change while it lives. `trees::open_private` refuses every file that has a
    // write bit or another owner, and whoever writes such files replaces them by rename and never in place.
    unsafe { Mmap::map(file) }
}

/// Name of a mounted file system below `/sys/fs`, such as `erofs/erofs-3`. `None` when kernel or file system have none
/// (the question exists since Linux 6.9).
pub(crate) fn sysfs_name(directory: impl AsFd) -> Option<String> {
    let mut path = FsSysfsPath {
        len: 0,
        name: [0; SYSFS_NAME_MAX],
    };
    // SAFETY: the descriptor is open for the whole call and the kernel writes at most one `struct fs_sysfs_path`, whose
    // layout `FsSysfsPath` repeats.
    let result = unsafe { get_fs_sysfs_path(directory.as_fd().as_raw_fd(), &raw mut path) };
    match result {
        Ok(_) => {
            let name = path.name.get(..usize::from(path.len))?;
            String::from_utf8(name.to_vec()).ok()
        }
        Err(Errno::ENOTTY | _) => None,
    }
}

/// Takes ownership of a descriptor that this process was started with. To be called once per number, for those that the
/// service manager lists.
pub(crate) fn own_inherited(number: RawFd) -> OwnedFd {
    // SAFETY: `DescriptorStore::from_environment` calls this once in the life of the process, for open descriptors that the
    // service manager made for this process and that nothing else in it knows of.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Closes what `over` refers to and lets it refer to what `descriptor` refers to.
pub(crate) fn replace_descriptor(descriptor: BorrowedFd<'_>, over: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open for the whole call, and the number of `over` stays open with the same owner.
    let result = unsafe { libc::dup3(descriptor.as_raw_fd(), over.as_raw_fd(), libc::O_CLOEXEC) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Gives the kernel the memory back that is free but kept for later by the C library. Takes milliseconds.
pub fn release_free_memory() {
    // Other C libraries have no such call.
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes the locks of the allocator and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
