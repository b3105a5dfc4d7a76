//! The kernel's readahead of one mount, `/sys/class/bdi/<name>/read_ahead_kb`.
//!
//! The window decides how much more than the touched pages is fetched: small while a layer is incomplete, large when its
//! bytes are local. FUSE cannot ask for more than 128 KiB when it connects, so this file is the only way up.

use std::fs;
use std::io;
use std::path::Path;

/// Where the kernel lists the backing devices of mounts.
const BACKING_DEVICES: &str = "/sys/class/bdi";

/// Sets the window of a backing device (`0:39` for FUSE, `erofs-3` for EROFS) in KiB.
///
/// # Errors
/// Whatever hinders the write; users other than root may not.
pub(crate) fn set(backing_device: &str, kib: u32) -> io::Result<()> {
    let file = Path::new(BACKING_DEVICES)
        .join(backing_device)
        .join("read_ahead_kb");
    fs::write(file, kib.to_string())
}
