//! Image trees mounted by the kernel's EROFS, straight from files ("file-backed", Linux 6.12 and later).
//!
//! The image tree file is the source; every plain layer is a `device=`, in the order of the image's device table: a flat
//! file of a [`crate::plain`] session, or a local file that holds the whole layer. mount(8) is never used: it would put
//! loop devices in between. The image tree file must lie on a file system with a page cache that the kernel can read
//! asynchronously (ext4, xfs, btrfs); tmpfs cannot back it.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use crate::mount::{AttachedMount, DetachedMount, NewMount, Unmounted, path_of};
use crate::mount_helper::MountHelper;
use crate::mountinfo::{self, MountEntry};
use crate::session::set_readahead;
use crate::{Error, kernel, readahead};

/// File system type.
pub const FS_TYPE: &str = "erofs";

/// Where the kernel lists EROFS file systems.
const SYSFS: &str = "/sys/fs/erofs";

/// Longest option value that fsconfig(2) takes, in bytes.
const OPTION_MAX: usize = 255;

/// An EROFS mount. Dropping it unmounts it, lazily when it is busy.
#[derive(Debug)]
pub struct ErofsMount {
    mount: AttachedMount,
    backing_device: Option<String>,
}

impl ErofsMount {
    /// Mounts an image tree file on a directory. A process that serves one of the devices itself needs a helper, or it may not
    /// end when it is killed meanwhile.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the kernel or the file system of `tree_file` cannot do it, [`Error::Mount`] with the
    /// kernel's messages when it refuses the image or a device.
    pub fn mount(
        tree_file: &Path,
        devices: &[PathBuf],
        target: &Path,
        read_ahead_kib: Option<u32>,
        helper: Option<&MountHelper>,
    ) -> Result<Self, Error> {
        let detached = create(tree_file, devices, helper)?;
        let backing_device = backing_device(&detached);
        if let (Some(device), Some(kib)) = (&backing_device, read_ahead_kib) {
            set_readahead(device, kib);
        }
        let mount = detached.attach(target)?;
        Ok(Self {
            mount,
            backing_device,
        })
    }

    /// The EROFS mount that another process has made on a directory, and that belongs to this one from now on. `None` when
    /// something else or nothing is mounted there.
    ///
    /// # Errors
    /// [`Error::Io`] when the mount table or the mounted directory cannot be read.
    pub fn find(target: &Path) -> Result<Option<Self>, Error> {
        let entry = mountinfo::topmost_at(target).map_err(|e| Error::io("reading the mount table", e))?;
        let Some(entry) = entry.filter(|entry| entry.fs_type == FS_TYPE) else {
            return Ok(None);
        };
        let root = std::fs::File::open(target).map_err(|e| Error::path("opening", target, e))?;
        Ok(Some(Self {
            mount: entry.into(),
            backing_device: kernel::sysfs_name(&root).and_then(last_part),
        }))
    }

    /// Its line in the mount table; `None` after unmounting.
    pub fn entry(&self) -> Option<&MountEntry> {
        self.mount.entry()
    }

    /// A directory that exists as long as the file system does, which is as long as anybody uses it: a lazily unmounted one,
    /// or one that an overlay lies on, outlives its place in the directory tree. `None` before Linux 6.9.
    pub fn sysfs_directory(&self) -> Option<PathBuf> {
        let name = self.backing_device.as_deref()?;
        Some(Path::new(SYSFS).join(name))
    }

    /// Sets the readahead window in KiB, for instance when all layers are complete.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the kernel does not tell the name of the backing device (before Linux 6.9).
    pub fn set_readahead(&self, kib: u32) -> Result<(), Error> {
        let unknown =
            || Error::Unsupported("the kernel does not tell the backing device of an EROFS mount".to_owned());
        let device = self.backing_device.as_deref().ok_or_else(unknown)?;
        readahead::set(device, kib)
            .map_err(|e| Error::io(format!("setting the readahead window of {device}"), e))
    }

    /// Unmounts.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody uses it; it stays then, unless `lazy`.
    pub fn unmount(&mut self, lazy: bool) -> Result<(), Error> {
        match self.mount.unmount(lazy)? {
            Unmounted::Now | Unmounted::Before => Ok(()),
        }
    }
}

/// Makes the mount without a place in the directory tree.
pub(crate) fn create(
    tree_file: &Path,
    devices: &[PathBuf],
    helper: Option<&MountHelper>,
) -> Result<DetachedMount, Error> {
    // Options are too short for some paths. A descriptor gives any file a short one.
    let mut held = Vec::new();
    let mut short = |path: &Path| -> Result<String, Error> {
        match path.to_str() {
            Some(text) if text.len() <= OPTION_MAX => Ok(text.to_owned()),
            _ => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let fd = rustix::fs::open(path, flags, Mode::empty());
                let fd = fd.map_err(|e| Error::path("opening", path, e))?;
                let short = path_of(fd.as_fd()).display().to_string();
                held.push(fd);
                Ok(short)
            }
        }
    };
    let source = PathBuf::from(short(tree_file)?);
    let devices = devices.iter().map(|device| Ok(("device", short(device)?)));
    let mount = NewMount {
        fs_type: FS_TYPE,
        source: &source,
        strings: devices.collect::<Result<_, Error>>()?,
        flags: vec!["ro"],
        attributes: MountAttrFlags::MOUNT_ATTR_RDONLY,
    };
    mount.create(helper).map_err(|error| explain(error, tree_file))
}

/// Turns the errnos that mean "cannot be done here" into words.
fn explain(error: Error, tree_file: &Path) -> Error {
    let Error::Mount { source, .. } = &error else {
        return error;
    };
    let tree_file = tree_file.display();
    let errno = source.raw_os_error().map(Errno::from_raw);
    match errno {
        Some(Errno::ENOTBLK) => Error::Unsupported(format!(
            "the kernel cannot mount {tree_file} as a file: it needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, \
            and a directory on ext4, xfs or btrfs (not tmpfs)"
        )),
        Some(Errno::ENODEV) => Error::Unsupported("the kernel has no EROFS (CONFIG_EROFS_FS)".to_owned()),
        Some(Errno::EPERM) => Error::Unsupported("mounting EROFS needs root".to_owned()),
        _ => error,
    }
}

/// Name of the mount's backing device below `/sys/class/bdi`: the last part of its name below `/sys/fs`.
fn backing_device(mount: &DetachedMount) -> Option<String> {
    mount.sysfs_name().and_then(last_part)
}

fn last_part(sysfs_name: String) -> Option<String> {
    Some(sysfs_name.rsplit('/').next()?.to_owned())
}

/// Reads the whole of a small file of a mount that has no place.
pub(crate) fn read_file(mount: &DetachedMount, path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(mount.open(path, OFlags::empty())?);
    io::Read::read_to_end(&mut file, &mut bytes)?;
    Ok(bytes)
}
