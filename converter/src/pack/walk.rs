//! A directory tree as a tar stream.
//!
//! Entries come in byte order of their names, a directory before its content, so that the same tree gives the same bytes.
//! The root itself has no entry: the root of an image belongs to nobody's layer. A second name of an inode becomes a hard
//! link with the same attributes. Files are read exactly to the length they had when they were opened; one that changes
//! meanwhile is an error that names it, never a file of mixed content. Holes of sparse files are read as zeros.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use sluice_storage::{Error, ErrorKind};
use tokio::sync::mpsc;

use super::xattrs;
use crate::tar_writer::{END_LEN, Entry, EntryKind, padding};

/// Length of the pieces of the tar stream, in bytes.
const PIECE_LEN: usize = 256 << 10;

/// What the walk saw.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) entries: u64,
    pub(super) warnings: Vec<String>,
}

/// Sends the tar of everything under `root`. Ends early without an error when nobody takes it. Blocks; runs on its own
/// thread. A failure is also sent, so that the stream never looks whole when it is not.
pub(super) fn walk(root: &Path, to: mpsc::Sender<Result<Bytes, Error>>) -> Walked {
    let mut walk = Walk {
        root,
        tar: Pieces {
            to,
            piece: Vec::with_capacity(PIECE_LEN),
        },
        seen: HashMap::new(),
        walked: Walked::default(),
    };
    match walk.run() {
        Ok(()) | Err(Stop::NobodyReads) => {}
        // Nobody reads when this fails, so nobody misses it.
        Err(Stop::Failed(error)) => drop(walk.tar.to.blocking_send(Err(error))),
    }
    walk.walked
}

/// Why a walk ended early.
enum Stop {
    NobodyReads,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The tar stream, gathered into pieces of equal length.
struct Pieces {
    to: mpsc::Sender<Result<Bytes, Error>>,
    piece: Vec<u8>,
}

impl Pieces {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        while !bytes.is_empty() {
            let part = bytes.len().min(PIECE_LEN - self.piece.len());
            self.piece.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            if self.piece.len() == PIECE_LEN {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_LEN));
        self.to
            .blocking_send(Ok(Bytes::from(piece)))
            .map_err(|_| Stop::NobodyReads)
    }
}

struct Walk<'a> {
    root: &'a Path,
    tar: Pieces,
    /// First path of each inode that has several names.
    seen: HashMap<(u64, u64), Vec<u8>>,
    walked: Walked,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        // Paths still to be visited, the next one last.
        let mut pending = self.children(Path::new(""))?;
        while let Some(path) = pending.pop() {
            if self.visit(&path)? {
                pending.extend(self.children(&path)?);
            }
        }
        self.tar.write(&[0; END_LEN])?;
        self.tar.flush()
    }

    /// Paths in a directory, in reverse byte order.
    fn children(&self, directory: &Path) -> Result<Vec<PathBuf>, Error> {
        let full = self.root.join(directory);
        let read = |error| Error::io(format!("read directory {}", full.display()), error);
        let mut names: Vec<OsString> = fs::read_dir(&full)
            .map_err(read)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()
            .map_err(read)?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names.into_iter().map(|name| directory.join(name)).collect())
    }

    /// Writes one entry; whether it is a directory.
    fn visit(&mut self, path: &Path) -> Result<bool, Stop> {
        let full = self.root.join(path);
        let metadata = fs::symlink_metadata(&full)
            .map_err(|error| Error::io(format!("look at {}", full.display()), error))?;
        refuse_whiteout_name(path)?;
        let Some(kind) = kind_of(&metadata) else {
            self.walked
                .warnings
                .push(format!("{} is a socket and was left out", path.display()));
            return Ok(false);
        };
        let mut entry = self.entry(path, &full, kind, &metadata)?;
        if kind != EntryKind::Directory && metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.seen.get(&inode) {
                entry.kind = EntryKind::HardLink;
                entry.link = first.clone();
                entry.size = 0;
            } else {
                self.seen.insert(inode, entry.path.clone());
            }
        }
        self.walked.entries += 1;
        match entry.kind {
            EntryKind::Regular => self.write_file(&full, &metadata, &mut entry)?,
            _ => self.tar.write(&entry.encode())?,
        }
        Ok(kind == EntryKind::Directory)
    }

    fn entry(
        &mut self,
        path: &Path,
        full: &Path,
        kind: EntryKind,
        metadata: &Metadata,
    ) -> Result<Entry, Error> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == EntryKind::Directory {
            name.push(b'/');
        }
        let link = match kind {
            EntryKind::Symlink => fs::read_link(full)
                .map_err(|error| Error::io(format!("read link {}", full.display()), error))?
                .into_os_string()
                .into_vec(),
            _ => Vec::new(),
        };
        let device = metadata.rdev();
        Ok(Entry {
            path: name,
            kind,
            permissions: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime_secs: metadata.mtime(),
            // The kernel keeps nanoseconds within a second.
            mtime_nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            size: if kind == EntryKind::Regular {
                metadata.len()
            } else {
                0
            },
            link,
            device: (rustix::fs::major(device), rustix::fs::minor(device)),
            xattrs: xattrs::read(full, &mut self.walked.warnings)?,
        })
    }

    fn write_file(&mut self, full: &Path, before: &Metadata, entry: &mut Entry) -> Result<(), Stop> {
        let read = |error| Error::io(format!("read {}", full.display()), error);
        let mut file = open_file(full).map_err(read)?;
        let opened = file.metadata().map_err(read)?;
        if !same_state(before, &opened) {
            return Err(changed(full).into());
        }
        entry.size = opened.len();
        self.tar.write(&entry.encode())?;
        let mut rest = opened.len();
        let mut piece = vec![0; PIECE_LEN];
        while rest > 0 {
            let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(PIECE_LEN);
            match file.read(&mut piece[..wanted]) {
                Ok(0) => return Err(changed(full).into()),
                Ok(len) => {
                    self.tar.write(&piece[..len])?;
                    rest -= len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read(error).into()),
            }
        }
        if !same_state(&opened, &file.metadata().map_err(read)?) {
            return Err(changed(full).into());
        }
        self.tar.write(&vec![0; padding(opened.len())])
    }
}

fn kind_of(metadata: &Metadata) -> Option<EntryKind> {
    let file_type = metadata.file_type();
    Some(match file_type {
        _ if file_type.is_dir() => EntryKind::Directory,
        _ if file_type.is_file() => EntryKind::Regular,
        _ if file_type.is_symlink() => EntryKind::Symlink,
        _ if file_type.is_char_device() => EntryKind::CharDevice,
        _ if file_type.is_block_device() => EntryKind::BlockDevice,
        _ if file_type.is_fifo() => EntryKind::Fifo,
        _ => return None,
    })
}

/// Opens what was a regular file a moment ago. Neither a link nor a fifo put in its place is followed or waited for.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn same_state(a: &Metadata, b: &Metadata) -> bool {
    let state = |m: &Metadata| {
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        (m.dev(), m.ino(), m.mode(), m.len(), times)
    };
    state(a) == state(b)
}

fn changed(path: &Path) -> Error {
    let message = format!(
        "{} changed while it was read; pack a directory that nobody writes to",
        path.display()
    );
    Error::new(ErrorKind::InvalidInput, message)
}

/// A name with this prefix would delete a file instead of being one.
fn refuse_whiteout_name(path: &Path) -> Result<(), Error> {
    let is_whiteout = path
        .file_name()
        .is_some_and(|name| name.as_bytes().starts_with(b".wh."));
    if is_whiteout {
        let message = format!(
            "{} cannot be in an image: the prefix .wh. marks deletions",
            path.display()
        );
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(())
}
