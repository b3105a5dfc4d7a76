//! Which extended attributes of an entry reach the tree.
//!
//! containerd drops `trusted.*` from archives, ignores names that the file system does not take, and fails on what the
//! kernel calls invalid. The tree is not behind a file system that would refuse anything, so the kernel's rules are applied
//! here.

use super::entry::EntryKind;
use super::refusal::Refusal;
use crate::inode::Xattrs;
use crate::name::Printable;
use crate::{FormatError, Limits};

/// `XATTR_NAME_MAX` of the kernel.
const NAME_MAX: usize = 255;

/// `XATTR_SIZE_MAX` of the kernel is 65536; an EROFS entry holds one byte less.
const VALUE_MAX: usize = 65_535;

/// Version word at the begin of a POSIX ACL, then entries of 8 bytes.
const ACL_VERSION: [u8; 4] = 2_u32.to_le_bytes();
const ACL_ENTRY_LEN: usize = 8;

/// What becomes of one attribute.
enum Fate {
    Keep,
    Drop(&'static str),
    Refuse(&'static str),
}

/// Adds the attributes of an entry to those that its inode has; `warn` hears of each one that is left out.
pub(super) fn add(
    xattrs: &mut Xattrs,
    added: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    kind: EntryKind,
    limits: &Limits,
    mut warn: impl FnMut(String),
) -> Result<(), Refusal> {
    for (name, value) in added {
        match fate(&name, &value, kind) {
            Fate::Keep => {
                xattrs.insert(name, value);
            }
            Fate::Drop(reason) => warn(format!(
                "extended attribute {} left out: {reason}",
                Printable(&name)
            )),
            Fate::Refuse(reason) => {
                return Err(format!("extended attribute \"{}\" {reason}", Printable(&name)).into());
            }
        }
    }
    let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    FormatError::check_limit(
        "number of extended attributes",
        xattrs.len() as u64,
        limits.xattr_count as u64,
    )?;
    FormatError::check_limit(
        "bytes of extended attributes",
        bytes as u64,
        limits.xattr_bytes as u64,
    )?;
    Ok(())
}

fn fate(name: &[u8], value: &[u8], kind: EntryKind) -> Fate {
    if name.is_empty() || name.len() > NAME_MAX {
        return Fate::Refuse("does not have a name of 1 to 255 bytes");
    }
    if value.len() > VALUE_MAX {
        return Fate::Refuse("is longer than 65535 bytes");
    }
    let is_directory = kind == EntryKind::Directory;
    let is_regular = matches!(kind, EntryKind::Regular | EntryKind::GnuSparse);
    match name {
        b"user." | b"security." => Fate::Refuse("has a prefix but no name"),
        _ if name.starts_with(b"trusted.") => Fate::Drop("archives may not set trusted attributes"),
        _ if name.starts_with(b"security.") => Fate::Keep,
        _ if name.starts_with(b"user.") && (is_directory || is_regular) => Fate::Keep,
        _ if name.starts_with(b"user.") => Fate::Drop("only files and directories have user attributes"),
        b"system.posix_acl_access" if kind == EntryKind::Symlink => Fate::Drop("symbolic links have no ACL"),
        b"system.posix_acl_default" if !is_directory => Fate::Refuse("is on something else than a directory"),
        b"system.posix_acl_access" | b"system.posix_acl_default" => acl_fate(value),
        _ => Fate::Drop("file systems do not take this name"),
    }
}

/// To the kernel an ACL without entries is none at all.
fn acl_fate(value: &[u8]) -> Fate {
    match value.strip_prefix(&ACL_VERSION) {
        _ if value.is_empty() => Fate::Drop("the ACL is empty"),
        Some([]) => Fate::Drop("the ACL is empty"),
        Some(entries) if entries.len().is_multiple_of(ACL_ENTRY_LEN) => Fate::Keep,
        _ => Fate::Refuse("is not an ACL"),
    }
}
