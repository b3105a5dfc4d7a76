//! The error of everything that mounts.
//!
//! Failures of single file operations never get here: they become an errno in `errno` and a line in the log.

use std::io;
use std::path::{Path, PathBuf};

use sluice_format::FormatError;
use thiserror::Error;

/// Why something could not be mounted, unmounted or served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a named thing failed.
    #[error("{what}")]
    Io {
        /// The operation and its object.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a mount.
    #[error("mounting {fs_type} from {}{}", .origin.display(), messages_suffix(.messages))]
    Mount {
        /// File system type.
        fs_type: &'static str,
        /// The source of the mount: an image tree file, or a name for FUSE.
        origin: PathBuf,
        /// What the kernel wrote about it, oldest first.
        messages: Vec<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// An image tree that cannot be served.
    #[error("image tree {}", .path.display())]
    Tree {
        /// Its file.
        path: PathBuf,
        /// What is wrong with its bytes.
        #[source]
        source: FormatError,
    },
    /// An image tree file that must not be mapped into memory.
    #[error("image tree {} {reason}", .path.display())]
    TreeFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The layers given are not those the image tree was built from.
    #[error("image tree {} does not fit its layers: {reason}", .path.display())]
    Layers {
        /// The file of the image tree.
        path: PathBuf,
        /// The difference.
        reason: String,
    },
    /// Two different things that a session serves got one node number.
    #[error("{what} has the same node number as another one in this session")]
    Collision {
        /// The thing that was added last.
        what: String,
    },
    /// This kernel or host lacks something that the request needs.
    #[error("{0}")]
    Unsupported(String),
    /// Somebody still uses the mount.
    #[error("{} is busy: a process has a file or its working directory there; stop it or unmount lazily", .target.display())]
    Busy {
        /// Where it is mounted.
        target: PathBuf,
    },
    /// Nothing of ours is mounted there.
    #[error("{} is not a mount of sluice", .target.display())]
    NotMounted {
        /// The directory asked for.
        target: PathBuf,
    },
    /// A living process serves this directory already.
    #[error("{} is already mounted by process {pid}", .target.display())]
    AlreadyMounted {
        /// The directory asked for.
        target: PathBuf,
        /// The process that serves it.
        pid: u32,
    },
    /// The server did not clean up in time after its mount was gone.
    #[error("process {pid} still holds {} after {seconds} s", .record.display())]
    ServerStuck {
        /// The serving process.
        pid: u32,
        /// Its record.
        record: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A stored FUSE connection that has ended: its mount is gone, or it was aborted.
    #[error("the stored FUSE connection has ended")]
    Adopt,
    /// The guardian process is missing or broken.
    #[error("mount guard {reason}")]
    Guard {
        /// What happened.
        reason: String,
    },
}

impl Error {
    /// A failed call; `what` names operation and object.
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// A failed call on a path.
    pub(crate) fn path(doing: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::io(format!("{doing} {}", path.display()), source)
    }
}

fn messages_suffix(messages: &[String]) -> String {
    if messages.is_empty() {
        String::new()
    } else {
        format!(" (kernel: {})", messages.join("; "))
    }
}
