//! The extended attributes of a file that belong into an image.
//!
//! Kept: `user.*`, `trusted.*`, `security.capability` and POSIX ACLs. Left out: what describes this host rather than the
//! file (SELinux and Smack labels, IMA and EVM signatures) and overlayfs' own marks.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::io::Errno;
use sluice_storage::Error;

/// First guess of a buffer, in bytes; larger lists and values are read again.
const BUFFER_LEN: usize = 4096;

/// The attributes of `path` itself, not of what a link leads to.
///
/// # Errors
/// What hinders reading them. A file system without attributes has none.
pub(super) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Error> {
    let failed = |error: Errno| {
        Error::io(
            format!("read extended attributes of {}", path.display()),
            error.into(),
        )
    };
    let names = match read_all(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut xattrs = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        if name.contains(&b'=') {
            let shown = name.escape_ascii();
            warnings.push(format!(
                "{}: a tar cannot hold the attribute {shown}",
                path.display()
            ));
            continue;
        }
        match read_all(|buffer| rustix::fs::lgetxattr(path, name, buffer)) {
            Ok(value) => drop(xattrs.insert(name.to_vec(), value)),
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(xattrs)
}

fn is_kept(name: &[u8]) -> bool {
    let trusted = name.starts_with(b"trusted.") && !name.starts_with(b"trusted.overlay.");
    let exact = [
        &b"security.capability"[..],
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    trusted || name.starts_with(b"user.") || exact.contains(&name)
}

/// Calls `read` with a buffer that is long enough.
fn read_all(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => buffer.resize(buffer.len() * 2, 0),
            Err(error) => return Err(error),
        }
    }
}
