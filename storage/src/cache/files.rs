//! Opening the files of a layer.
//!
//! `data`, `cuts` and `present` belong together: one *generation*. A flock on the directory is held while they are opened, replaced
//! or removed, so that nobody opens half of one and half of another. A generation for other cuts is replaced; who uses
//! the old one goes on with it, out of reach: until a layer is complete nothing ties the digests in a chunk table to the DiffID,
//! so tables must not share bytes. Only a sealed generation in use stays, since the kernel may be about to open it by name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::NamedTempFile;

use super::cuts::Cuts;
use super::disk::{DiskFile, Observer};
use super::layer::{CUTS_FILE, DATA_FILE, PRESENCE_FILE, STAMPS_FILE};
use super::locks::{Hold, Lock, try_set};
use super::presence::{Header, Presence, SEALED};
use super::whole::WHOLE_FILE;

/// Everything that may be in the directory of a layer.
const FILES: [&str; 5] = [PRESENCE_FILE, CUTS_FILE, STAMPS_FILE, WHOLE_FILE, DATA_FILE];

/// The open files of one generation.
#[derive(Debug)]
pub(super) struct OpenFiles {
    pub(super) data: DiskFile,
    pub(super) presence: Presence,
    pub(super) writable: bool,
}

impl OpenFiles {
    /// Opens the generation for these cuts, or begins one.
    pub(super) fn open(dir: &Path, cuts: &Cuts, observer: &Observer) -> io::Result<Self> {
        let _locked = lock_dir(dir)?;
        let presence_path = dir.join(PRESENCE_FILE);
        let data_path = dir.join(DATA_FILE);
        let found = Presence::open(&presence_path, cuts.len(), &cuts.digest(), true, observer)?;
        let (data, presence) = match found {
            Some(presence) => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false);
                let data = DiskFile::new(options.open(&data_path)?, &data_path, observer);
                keep_cuts(dir, cuts)?;
                (data, presence)
            }
            None => {
                refuse_sealed_in_use(&presence_path)?;
                let data = begin(dir, DATA_FILE, &[])?;
                let data = DiskFile::created(data, &data_path, observer);
                begin(dir, CUTS_FILE, &cuts.encode())?;
                remove_if_there(&dir.join(STAMPS_FILE))?;
                remove_if_there(&dir.join(WHOLE_FILE))?;
                let presence = Presence::begin(&presence_path, cuts.len(), &cuts.digest(), observer)?;
                (data, presence)
            }
        };
        presence.join_users()?;
        if data.file().metadata()?.len() != cuts.plain_len() {
            data.file().set_len(cuts.plain_len())?;
        }
        Ok(Self {
            data,
            presence,
            writable: true,
        })
    }

    /// Puts a file that holds every plain byte in place as the data of a new generation for these cuts, with no bit set. The file is given back
    /// when there is a generation for these cuts, which is left as it is.
    pub(super) fn install(
        dir: &Path,
        cuts: &Cuts,
        data: NamedTempFile,
        observer: &Observer,
    ) -> io::Result<Result<Self, NamedTempFile>> {
        let _locked = lock_dir(dir)?;
        let presence_path = dir.join(PRESENCE_FILE);
        let data_path = dir.join(DATA_FILE);
        if Presence::open(&presence_path, cuts.len(), &cuts.digest(), true, observer)?.is_some() {
            return Ok(Err(data));
        }
        refuse_sealed_in_use(&presence_path)?;
        // Without its bits the old generation means nothing any more, whatever of it is still there.
        remove_if_there(&presence_path)?;
        let data = data.persist(&data_path).map_err(|error| error.error)?;
        let data = DiskFile::created(data, &data_path, observer);
        begin(dir, CUTS_FILE, &cuts.encode())?;
        remove_if_there(&dir.join(STAMPS_FILE))?;
        remove_if_there(&dir.join(WHOLE_FILE))?;
        let presence = Presence::begin(&presence_path, cuts.len(), &cuts.digest(), observer)?;
        presence.join_users()?;
        Ok(Ok(Self {
            data,
            presence,
            writable: true,
        }))
    }

    /// Opens the generation for these cuts where nothing can be written; one for other cuts is an error.
    pub(super) fn open_read_only(dir: &Path, cuts: &Cuts, observer: &Observer) -> io::Result<Self> {
        let data_path = dir.join(DATA_FILE);
        let data = DiskFile::new(File::open(&data_path)?, &data_path, observer);
        let presence_path = dir.join(PRESENCE_FILE);
        let found = Presence::open(&presence_path, cuts.len(), &cuts.digest(), false, observer)?;
        let presence = found.ok_or_else(|| io::Error::other("belongs to other cuts"))?;
        presence.join_users()?;
        Ok(Self {
            data,
            presence,
            writable: false,
        })
    }
}

/// The header of the generation in a directory, if there is one.
pub(super) fn header(dir: &Path) -> io::Result<Option<Header>> {
    match File::open(dir.join(PRESENCE_FILE)) {
        Ok(file) => Header::read(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a layer that no process has open, files first; whether it is gone.
pub(super) fn remove(dir: &Path) -> io::Result<bool> {
    let locked = File::open(dir)?;
    if locked.try_lock().is_err() {
        return Ok(false);
    }
    if is_in_use(&dir.join(PRESENCE_FILE))? {
        return Ok(false);
    }
    // The bits go first: data without them is never taken for a chunk.
    for name in FILES {
        remove_if_there(&dir.join(name))?;
    }
    // Temporary files of a process that died while it made them.
    for entry in std::fs::read_dir(dir)?.flatten() {
        std::fs::remove_file(entry.path())?;
    }
    std::fs::remove_dir(dir)?;
    Ok(true)
}

/// Creates the directory if need be, and locks it. The lock is released when the result is dropped.
fn lock_dir(dir: &Path) -> io::Result<File> {
    loop {
        std::fs::create_dir_all(dir)?;
        let locked = File::open(dir)?;
        locked.lock()?;
        // Another process may have removed the directory before the lock was had.
        let same = |there: std::fs::Metadata| there.ino() == locked.metadata().map_or(0, |own| own.ino());
        if std::fs::metadata(dir).is_ok_and(same) {
            return Ok(locked);
        }
    }
}

/// Whether another process has the generation of this file open.
fn is_in_use(presence: &Path) -> io::Result<bool> {
    match OpenOptions::new().read(true).write(true).open(presence) {
        Ok(file) => Ok(!try_set(&file, Lock::Use, Hold::Alone)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn refuse_sealed_in_use(presence: &Path) -> io::Result<()> {
    let sealed = match File::open(presence) {
        Ok(file) => Header::read(&file)?.is_some_and(|header| header.marks & SEALED != 0),
        Err(_) => false,
    };
    if sealed && is_in_use(presence)? {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the layer is mounted as a file with other chunk borders",
        ));
    }
    Ok(())
}

/// Puts a file in place under a name.
pub(super) fn begin(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<File> {
    let prefix = format!(".{name}-");
    let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(dir)?;
    io::Write::write_all(&mut file, bytes)?;
    file.persist(dir.join(name)).map_err(|error| error.error)
}

/// Writes the file `cuts` anew if it is not whole.
fn keep_cuts(dir: &Path, cuts: &Cuts) -> io::Result<()> {
    let bytes = cuts.encode();
    match std::fs::read(dir.join(CUTS_FILE)) {
        Ok(found) if found == bytes => Ok(()),
        _ => begin(dir, CUTS_FILE, &bytes).map(drop),
    }
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
