//! A helper process that has the kernel read parts of files of a mounted image into its page cache before programs ask for them.
//!
//! A program that maps a library asks the session for one window of a page fault after the other, and sleeps each time until
//! the server has been woken and has answered, though the bytes are here. What it is going to read is known when earlier
//! starts were recorded; then this process asks, and the program finds the pages.
//!
//! It is a process of its own for the reason that [`mount_helper`](crate::mount_helper) is one: who waits for a session cannot
//! be killed, and a server that waited for itself would not end. It works in a copy of the mount, so that the mount
//! is not busy because of it. Its reads tell nothing about the program, and the session knows them by their process.
//!
//! Standard input has one request after the other, little-endian:
//!
//! ```text
//! length of the path  u16
//! offset              u64
//! length of the range u64
//! path                relative to the root of the image
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

use crate::Error;
use crate::mount::path_of;

/// Bytes of a request before the path.
const HEAD_LEN: usize = 18;

/// How long the end of a page reader is waited for.
const END: Duration = Duration::from_secs(1);

/// Page readers of this process.
static RUNNING: RwLock<Vec<u32>> = RwLock::new(Vec::new());

/// Whether a request of this process ID comes from a page reader of this process.
pub(crate) fn is_page_reader(pid: u32) -> bool {
    let running = RUNNING.read().unwrap_or_else(PoisonError::into_inner);
    running.contains(&pid)
}

/// A running page reader. Dropping it ends it.
#[derive(Debug)]
pub struct PageReader {
    child: Child,
    requests: Option<ChildStdin>,
    // Dropped last.
    _listed: Listed,
}

/// A process in [`RUNNING`].
#[derive(Debug)]
struct Listed(u32);

impl Listed {
    fn new(pid: u32) -> Self {
        let mut running = RUNNING.write().unwrap_or_else(PoisonError::into_inner);
        running.push(pid);
        Self(pid)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut running = RUNNING.write().unwrap_or_else(PoisonError::into_inner);
        running.retain(|pid| *pid != self.0);
    }
}

impl PageReader {
    /// Starts `exe args…`, which must call [`run_page_reader`], for what is mounted on `target`. Must be called within a runtime.
    ///
    /// # Errors
    /// [`Error::Io`] when the mount cannot be copied or the process not be started.
    pub fn spawn<A: AsRef<OsStr>>(exe: &Path, args: &[A], target: &Path) -> Result<Self, Error> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copy =
            open_tree(CWD, target, flags).map_err(|e| Error::path("copying the mount on", target, e))?;
        let failed = |e| Error::path("starting the page reader", exe, e);
        let mut child = Command::new(exe)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .current_dir(path_of(copy.as_fd()))
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let ended = || failed(io::Error::other("it has ended"));
        Ok(Self {
            _listed: Listed::new(child.id().ok_or_else(ended)?),
            requests: child.stdin.take(),
            child,
        })
    }

    /// Has a range of each of these files read, in this order, without waiting for it. A path that is too long is passed over.
    ///
    /// # Errors
    /// When the process has ended.
    pub async fn read(&mut self, parts: impl IntoIterator<Item = (&Path, Range<u64>)>) -> io::Result<()> {
        let requests: Vec<u8> = parts
            .into_iter()
            .filter_map(|(path, range)| request(path, &range))
            .flatten()
            .collect();
        match &mut self.requests {
            Some(input) => input.write_all(&requests).await,
            None => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits until everything is read, as far as the host has it.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.requests = None;
        self.child.wait().await.map(|_| ())
    }

    /// Ends it, if it has not ended, and waits for that a moment: one that waits for the session goes when that answers or ends.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn end(mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.child.start_kill()?;
        match tokio::time::timeout(END, self.child.wait()).await {
            Ok(ended) => ended.map(|_| ()),
            Err(_) => Ok(()),
        }
    }
}

fn request(path: &Path, range: &Range<u64>) -> Option<Vec<u8>> {
    let path = path.as_os_str().as_bytes();
    let path_len = u16::try_from(path.len()).ok()?;
    let mut bytes = Vec::with_capacity(HEAD_LEN + path.len());
    bytes.extend_from_slice(&path_len.to_le_bytes());
    bytes.extend_from_slice(&range.start.to_le_bytes());
    bytes.extend_from_slice(&range.end.saturating_sub(range.start).to_le_bytes());
    bytes.extend_from_slice(path);
    Some(bytes)
}

/// The next request; `None` at the end.
fn next_request(requests: &mut impl Read) -> io::Result<Option<(PathBuf, u64, u64)>> {
    let (mut path_len, mut offset, mut len) = ([0; 2], [0; 8], [0; 8]);
    match requests.read_exact(&mut path_len) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    requests.read_exact(&mut offset)?;
    requests.read_exact(&mut len)?;
    let mut path = vec![0; u16::from_le_bytes(path_len).into()];
    requests.read_exact(&mut path)?;
    let path = PathBuf::from(OsStr::from_bytes(&path));
    Ok(Some((path, u64::from_le_bytes(offset), u64::from_le_bytes(len))))
}

/// The page reader's main, in the root of an image. Returns when the server wants no more or is gone.
///
/// # Errors
/// [`Error::Io`] when standard input cannot be read.
pub fn run_page_reader() -> Result<(), Error> {
    let failed = |e| Error::io("talking to the server", e);
    let mut requests = BufReader::new(io::stdin().lock());
    while let Some((path, offset, len)) = next_request(&mut requests).map_err(failed)? {
        // What is not read ahead is read when a program wants it.
        let _ = read_ahead(&path, offset, len);
    }
    Ok(())
}

fn read_ahead(path: &Path, offset: u64, len: u64) -> io::Result<()> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(openat2(CWD, path, flags, Mode::empty(), resolve)?);
    let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
    Ok(posix_fadvise(&file, signed(offset)?, signed(len)?, advice)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_were_written() {
        let first = request(Path::new("usr/lib/a.so"), &(4096..70_000)).unwrap();
        let second = request(Path::new(""), &(7..7)).unwrap();
        let bytes = [first, second].concat();
        let mut rest = &bytes[..];
        let mut next = || next_request(&mut rest).unwrap();
        assert_eq!(next(), Some(("usr/lib/a.so".into(), 4096, 65_904)));
        assert_eq!(next(), Some(("".into(), 7, 0)));
        assert_eq!(next(), None);
    }

    #[test]
    fn paths_that_are_too_long_and_requests_that_end_early_are_refused() {
        let long = "x".repeat(1 << 16);
        assert_eq!(request(Path::new(&long), &(0..1)), None);
        let whole = request(Path::new("a"), &(0..1)).unwrap();
        for len in 1..whole.len() {
            // One byte of a length may be all that came; then there is no request either.
            let read = next_request(&mut &whole[..len]);
            assert!(matches!(read, Err(_) | Ok(None)), "{len}");
        }
    }
}
