//! Archives that cannot be read in place.
//!
//! Members of an archive are read by offset. Standard input has no offsets, and neither has a compressed archive
//! (`docker save | gzip`); both are copied once, decompressed, into an unlinked temporary file. It lies in `TMPDIR`, else in
//! `/var/tmp`: `/tmp` is memory on many hosts, and images are large.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use sluice_storage::decompress::Compression;

use crate::Error;

/// Where large temporary files belong when `TMPDIR` does not say otherwise.
const LARGE_TEMPORARY_FILES: &str = "/var/tmp";

/// Opens the archive at `path`, or standard input for `None`, as a file that can be read at any offset. Blocks.
///
/// # Errors
/// [`Error::Io`] when it cannot be read or copied, [`Error::Undecodable`] for a broken compressed one.
pub(super) fn open(path: Option<&Path>) -> Result<File, Error> {
    let Some(path) = path else {
        return spool(Box::new(io::stdin()));
    };
    let what = || format!("cannot open {}", path.display());
    let mut file = File::open(path).map_err(|error| Error::io(what(), error))?;
    let is_file = file
        .metadata()
        .map_err(|error| Error::io(what(), error))?
        .is_file();
    if !is_file {
        return spool(Box::new(file));
    }
    let mut start = [0; Compression::MAGIC_LEN];
    let len = read_start(&mut file, &mut start).map_err(|error| Error::io(what(), error))?;
    file.rewind().map_err(|error| Error::io(what(), error))?;
    match Compression::of(&start[..len])? {
        Compression::Plain => Ok(file),
        Compression::Gzip | Compression::Zstd => spool(Box::new(file)),
    }
}

fn spool(mut from: Box<dyn Read>) -> Result<File, Error> {
    let mut start = [0; Compression::MAGIC_LEN];
    let len =
        read_start(&mut *from, &mut start).map_err(|error| Error::io("cannot read the archive", error))?;
    let compression = Compression::of(&start[..len])?;
    let whole = BufReader::new(io::Cursor::new(start[..len].to_vec()).chain(from));
    let mut plain = compression.decoder(whole)?;
    let directory = directory();
    let what = || {
        format!(
            "cannot copy the archive to a temporary file in {}",
            directory.display()
        )
    };
    let mut to = tempfile::tempfile_in(&directory).map_err(|error| Error::io(what(), error))?;
    io::copy(&mut plain, &mut to).map_err(|error| Error::io(what(), error))?;
    to.rewind().map_err(|error| Error::io(what(), error))?;
    Ok(to)
}

fn directory() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from(LARGE_TEMPORARY_FILES), PathBuf::from)
}

/// Fills `start` as far as there are bytes.
fn read_start(from: &mut dyn Read, start: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < start.len() {
        match from.read(&mut start[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
