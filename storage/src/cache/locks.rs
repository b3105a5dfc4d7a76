//! Locks between processes that share a cache directory.
//!
//! A layer has two, as open-file-description locks on bytes of its file `present`: *use*, shared by every process that has
//! the layer open and taken alone by one that removes chunks, and *bits*, held while bits change. They are taken and
//! converted atomically (a flock that is converted can be lost), the kernel drops them when a process dies, and they exclude two
//! opens of the file in one process like two processes.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Which lock; the byte that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    Use = 0,
    Bits = 1,
}

/// How it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Shared,
    Alone,
    Not,
}

/// Takes, converts or releases a lock and waits for it.
pub(super) fn set(file: &File, lock: Lock, hold: Hold) -> io::Result<()> {
    let request = request(lock, hold);
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLKW(&request)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The same without waiting; whether it was had. What was held before stays when it was not.
pub(super) fn try_set(file: &File, lock: Lock, hold: Hold) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&request(lock, hold))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn request(lock: Lock, hold: Hold) -> libc::flock {
    let kind = match hold {
        Hold::Shared => libc::F_RDLCK,
        Hold::Alone => libc::F_WRLCK,
        Hold::Not => libc::F_UNLCK,
    };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: lock as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}

/// A lock that is held until it is dropped, then as `after` says.
#[derive(Debug)]
pub(super) struct Held<'a> {
    file: &'a File,
    lock: Lock,
    after: Hold,
}

impl<'a> Held<'a> {
    /// Takes a lock and waits for it; drop releases it.
    pub(super) fn wait(file: &'a File, lock: Lock) -> io::Result<Self> {
        set(file, lock, Hold::Alone)?;
        let after = Hold::Not;
        Ok(Self { file, lock, after })
    }

    /// Takes a lock that is held shared alone, if nobody else has it; drop makes it shared again.
    pub(super) fn try_alone(file: &'a File, lock: Lock) -> io::Result<Option<Self>> {
        let after = Hold::Shared;
        let had = try_set(file, lock, Hold::Alone)?;
        Ok(had.then_some(Self { file, lock, after }))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = set(self.file, self.lock, self.after) {
            tracing::warn!(%error, lock = ?self.lock, "a lock of the cache could not be released");
        }
    }
}
