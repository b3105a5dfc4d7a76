//! The upper directory of an overlayfs mount as the entries of a layer.
//!
//! Overlay whiteouts and opaque directories become their OCI forms, several names of one inode become hard links, times
//! after a given one are set to it so that the same packages give the same layer.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::entry::{Content, Entry};

/// Attributes of overlayfs itself; they describe the mount, not the files.
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";

/// Writes the entries of `upper` to `out`, sorted by path, no time later than `latest`, without the closing blocks.
///
/// # Errors
/// When a file cannot be read, or what `out` gives.
pub fn write_upper(upper: &Path, latest: i64, out: &mut dyn Write) -> io::Result<()> {
    let mut walk = Walk {
        upper,
        latest,
        first_names: HashMap::new(),
        out,
    };
    walk.directory(Path::new(""))
}

struct Walk<'a> {
    upper: &'a Path,
    latest: i64,
    first_names: HashMap<(u64, u64), PathBuf>,
    out: &'a mut dyn Write,
}

impl Walk<'_> {
    fn directory(&mut self, relative: &Path) -> io::Result<()> {
        let mut names = fs::read_dir(self.upper.join(relative))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        names.iter().try_for_each(|name| self.file(&relative.join(name)))
    }

    fn file(&mut self, relative: &Path) -> io::Result<()> {
        let path = self.upper.join(relative);
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.file_type().is_socket() {
            return Ok(());
        }
        if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            return self.put(Entry::whiteout(&relative.to_string_lossy()));
        }
        let entry = self.entry(relative, &path, &metadata)?;
        self.put(entry)?;
        if metadata.is_dir() {
            if xattr::get(&path, "trusted.overlay.opaque")?.as_deref() == Some(b"y") {
                self.put(Entry::opaque(&relative.to_string_lossy()))?;
            }
            self.directory(relative)?;
        }
        Ok(())
    }

    fn put(&mut self, entry: Entry) -> io::Result<()> {
        entry.write(self.out)
    }

    fn entry(&mut self, relative: &Path, path: &Path, metadata: &Metadata) -> io::Result<Entry> {
        let name = relative.as_os_str().as_bytes();
        let kind = metadata.file_type();
        if !kind.is_dir() && metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.first_names.get(&inode) {
                return Ok(Entry::hard_link(name, first.as_os_str().as_bytes()));
            }
            self.first_names.insert(inode, relative.to_path_buf());
        }
        let device = (number(major(metadata.rdev())), number(minor(metadata.rdev())));
        let mut entry = match () {
            () if kind.is_dir() => Entry::directory(name, 0),
            () if kind.is_symlink() => Entry::symlink(name, fs::read_link(path)?.as_os_str().as_bytes()),
            () if kind.is_char_device() => Entry::char_device(name, device.0, device.1),
            () if kind.is_block_device() => Entry::block_device(name, device.0, device.1),
            () if kind.is_fifo() => Entry::fifo(name),
            () => Entry::file(name, b""),
        };
        if kind.is_file() {
            entry.content = Content::File {
                path: path.to_path_buf(),
                len: metadata.len(),
            };
        }
        entry.xattrs = xattrs(path)?;
        let (mtime, nanos) = (metadata.mtime(), number(metadata.mtime_nsec().unsigned_abs()));
        let (mtime, nanos) = if mtime >= self.latest {
            (self.latest, 0)
        } else {
            (mtime, nanos)
        };
        let owned = entry.owner(metadata.uid().into(), metadata.gid().into());
        Ok(owned.mode(metadata.mode() & 0o7777).mtime(mtime, nanos))
    }
}

fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in xattr::list(path)?.filter(|name| !name.as_bytes().starts_with(OVERLAY_PREFIX)) {
        let value = xattr::get(path, &name)?.unwrap_or_default();
        found.push((name.as_bytes().to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// A number that the kernel keeps in 32 bits.
fn number(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
