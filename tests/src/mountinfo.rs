//! What is mounted.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The directory mounted on.
    pub mountpoint: PathBuf,
    /// The file system type.
    pub fs_type: String,
    /// Mount options, then options of the file system.
    pub options: String,
}

/// Everything mounted in this mount namespace, in the order of mounting.
///
/// # Errors
/// When the kernel's table cannot be read or has another form.
pub fn mounts() -> Result<Vec<Mount>> {
    let table = fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| parse(line).with_context(|| format!("mountinfo line {}", line.escape_ascii())))
        .collect()
}

fn parse(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |at: usize| {
        fields
            .get(at)
            .map(|field| String::from_utf8_lossy(field).into_owned())
    };
    Some(Mount {
        mountpoint: PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.get(4)?))),
        fs_type: text(separator + 1)?,
        options: format!("{},{}", text(5)?, text(separator + 3)?),
    })
}

/// Undoes the kernel's octal escapes for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(value.unwrap_or(*first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    plain
}

/// Mounts on `directory` or below it, in the order of mounting.
///
/// # Errors
/// As [`mounts`].
pub fn mounts_under(directory: &Path) -> Result<Vec<Mount>> {
    let mut mounts = mounts()?;
    mounts.retain(|mount| mount.mountpoint.starts_with(directory));
    Ok(mounts)
}

/// Checks that nothing is mounted on `directory` or below it.
///
/// # Errors
/// Naming what is.
pub fn assert_nothing_under(directory: &Path) -> Result<()> {
    let left = mounts_under(directory)?;
    ensure!(
        left.is_empty(),
        "still mounted under {}: {left:#?}",
        directory.display()
    );
    Ok(())
}

/// Takes away every mount on `directory` or below it, busy ones too. For cleaning up after a failed test.
pub fn detach_all_under(directory: &Path) {
    let mounts = mounts_under(directory).unwrap_or_default();
    for mount in mounts.iter().rev() {
        let _ = umount2(&mount.mountpoint, MntFlags::MNT_DETACH);
    }
}
