//! `oci-archive:` as a target.
//!
//! The members of a tar lie one behind the other, each with its length in front, while layers are written side by side and
//! their lengths are known last. So the image is written to a layout directory beside the archive first. Sealing streams
//! it into a temporary tar, removing every blob as soon as it has been appended, so that the image is on the disk hardly more
//! than once, and renames the tar at the end: an archive of that name is the old one or the whole new one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sluice_storage::Layout;
use tempfile::TempDir;

use crate::Error;
use crate::tar_writer::{END_LEN, Entry, EntryKind, padding};

/// An archive that is being written. Dropping it unsealed leaves nothing.
#[derive(Debug)]
pub(super) struct UnsealedArchive {
    path: PathBuf,
    layout_dir: TempDir,
}

impl UnsealedArchive {
    /// Makes an empty layout beside `path`. Blocks on the disk for a moment.
    pub(super) fn create(path: &Path) -> Result<(Self, Layout), Error> {
        let what = || format!("cannot create a temporary directory beside {}", path.display());
        let layout_dir = tempfile::Builder::new()
            .prefix(".sluice-")
            .tempdir_in(directory_of(path))
            .map_err(|error| Error::io(what(), error))?;
        let layout = Layout::create(layout_dir.path())?;
        let path = path.to_owned();
        Ok((Self { path, layout_dir }, layout))
    }

    /// Writes the archive. Blocks on the disk.
    pub(super) fn seal(self) -> Result<(), Error> {
        let what = || format!("cannot write {}", self.path.display());
        let tar = tempfile::Builder::new()
            .prefix(".sluice-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(directory_of(&self.path))
            .map_err(|error| Error::io(what(), error))?;
        write_archive(self.layout_dir.path(), tar.as_file()).map_err(|error| Error::io(what(), error))?;
        tar.persist(&self.path)
            .map_err(|error| Error::io(what(), error.error))?;
        Ok(())
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."))
}

fn write_archive(layout: &Path, to: &File) -> io::Result<()> {
    let mut tar = BufWriter::new(to);
    for name in ["oci-layout", "index.json"] {
        append(&mut tar, layout, name)?;
    }
    let mut blobs = Vec::new();
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        let name = entry?
            .file_name()
            .into_string()
            .map_err(|_| io::ErrorKind::InvalidData)?;
        blobs.push(format!("blobs/sha256/{name}"));
    }
    blobs.sort_unstable();
    for directory in ["blobs/", "blobs/sha256/"] {
        tar.write_all(&Entry::generated(directory, EntryKind::Directory, 0o755, 0).encode())?;
    }
    for blob in blobs {
        append(&mut tar, layout, &blob)?;
    }
    tar.write_all(&[0; END_LEN])?;
    tar.flush()?;
    drop(tar);
    to.sync_all()
}

/// Appends a file of the layout and removes it.
fn append(tar: &mut impl Write, layout: &Path, name: &str) -> io::Result<()> {
    let path = layout.join(name);
    let mut file = File::open(&path)?;
    let len = file.metadata()?.len();
    tar.write_all(&Entry::generated(name, EntryKind::Regular, 0o644, len).encode())?;
    let copied = io::copy(&mut file, tar)?;
    if copied != len {
        return Err(io::Error::other(format!("{name} changed while it was read")));
    }
    tar.write_all(&vec![0; padding(len)])?;
    fs::remove_file(path)
}
