//! Mounts that a snapshotter describes.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_bind_recursive, mount_remount, move_mount,
};
use sluice_snapshotter::proto::types::Mount;

/// A mounted snapshot; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    /// Where it is mounted.
    pub directory: PathBuf,
}

impl Mounted {
    /// Mounts `mounts`, which has to be one, on a new directory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(mounts: &[Mount], directory: PathBuf) -> Result<Self> {
        let [mount] = mounts else {
            bail!("one mount expected: {mounts:?}")
        };
        fs::create_dir_all(&directory)?;
        match mount.r#type.as_str() {
            "bind" => bind(mount, &directory),
            "overlay" => overlay(mount, &directory),
            other => bail!("mount of type {other}"),
        }
        .with_context(|| format!("cannot mount {mount:?}"))?;
        Ok(Self { directory })
    }

    /// Unmounts it, which has to succeed.
    ///
    /// # Errors
    /// When somebody uses it.
    pub fn unmount(self) -> Result<()> {
        umount2(&self.directory, MntFlags::empty())
            .with_context(|| format!("cannot unmount {}", self.directory.display()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing is mounted any more after `unmount`.
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

fn bind(mount: &Mount, directory: &Path) -> Result<()> {
    mount_bind_recursive(&mount.source, directory)?;
    let has = |name: &str| mount.options.iter().any(|option| option == name);
    ensure!(
        has("rbind") && (has("ro") != has("rw")),
        "options of a bind mount"
    );
    if has("ro") {
        mount_remount(directory, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}

/// Lower directories are given one by one: mount(2) takes one page of options, which 128 layers exceed.
fn overlay(mount: &Mount, directory: &Path) -> Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in &mount.options {
        match option.split_once('=') {
            None => fsconfig_set_flag(&context, option.as_str())?,
            Some(("lowerdir", lowers)) => {
                for lower in lowers.split(':') {
                    fsconfig_set_string(&context, "lowerdir+", CString::new(lower)?)?;
                }
            }
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
        }
    }
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(
        &mounted,
        "",
        CWD,
        directory,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}
