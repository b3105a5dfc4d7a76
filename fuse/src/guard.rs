//! A guardian process: when the server is gone, for whatever reason, its mounts go too.
//!
//! The server starts the guardian before its first mount and names every record directory over a pipe before it mounts.
//! The pipe closes with the server, even when that is killed with SIGKILL; then the guardian cleans up every record that
//! still exists (see [`crate::mount_record`]) and exits. It is in a session of its own and blocks the signals by which
//! terminals and service managers end processes, so Ctrl-C reaches the server only.
//!
//! A service manager that kills the whole control group kills the guardian too. Then the next `sluice umount` or the
//! next mount finds the record of a dead server and cleans up.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::setsid;

use crate::{Error, mount_record};

/// What the guardian writes when it is ready to take over.
const READY: &[u8] = b"ready\n";

/// Ends each path on the pipe: the one byte that no path holds.
const END: u8 = 0;

/// Directories taken at most; a server that mounts more than this per process is broken.
const DIRECTORIES_MAX: usize = 1 << 16;

/// The guardian as its server sees it. Dropping it lets the guardian clean up and waits for it.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts `exe args…`, which must call [`run_guard`], and waits until it is ready.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started, [`Error::Guard`] when it ends at once.
    pub fn spawn<A: AsRef<OsStr>>(exe: &Path, args: &[A]) -> Result<Self, Error> {
        let failed = |e| Error::path("starting the mount guard", exe, e);
        // A working directory of its own pins no mount, but makes a relative path mean something else.
        let mut command = Command::new(std::path::absolute(exe).map_err(failed)?);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .current_dir("/");
        let mut child = command.spawn().map_err(failed)?;
        let pipe = child.stdin.take();
        let mut ready = vec![0; READY.len()];
        let answer = child
            .stdout
            .take()
            .map(|mut stdout| stdout.read_exact(&mut ready));
        let guard = Self { child, pipe };
        match answer {
            Some(Ok(())) if ready == READY => Ok(guard),
            _ => Err(Error::Guard {
                reason: "did not become ready".to_owned(),
            }),
        }
    }

    /// Names a record directory whose mount must not outlive this process. To be called before the mount is made.
    ///
    /// # Errors
    /// [`Error::Guard`] when the guardian is gone.
    pub fn watch(&mut self, directory: &Path) -> Result<(), Error> {
        let gone = |reason: String| Error::Guard { reason };
        let pipe = self
            .pipe
            .as_mut()
            .ok_or_else(|| gone("was dismissed".to_owned()))?;
        let mut message = directory.as_os_str().as_bytes().to_vec();
        message.push(END);
        pipe.write_all(&message)
            .map_err(|error| gone(format!("does not listen: {error}")))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "waiting for the mount guard");
        }
    }
}

/// The guardian's main: to be called first thing in the process that [`Guard::spawn`] starts, before it has a second
/// thread. Returns when everything is cleaned up.
///
/// # Errors
/// [`Error::Io`] when the pipe cannot be read or this process cannot leave its terminal.
pub fn run_guard() -> Result<(), Error> {
    detach_from_terminal().map_err(|e| Error::io("leaving the session of the server", e))?;
    let failed = |e| Error::io("talking to the server", e);
    let mut stdout = io::stdout();
    stdout
        .write_all(READY)
        .and_then(|()| stdout.flush())
        .map_err(failed)?;
    let directories = take_directories(io::stdin().lock()).map_err(failed)?;
    for directory in directories.iter().rev().filter(|directory| directory.exists()) {
        mount_record::clean_up(directory);
    }
    Ok(())
}

pub(crate) fn detach_from_terminal() -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    setsid()?;
    Ok(())
}

/// Reads paths until the server is gone. An unfinished one was never mounted on: the server died while writing it.
fn take_directories(input: impl Read) -> io::Result<Vec<PathBuf>> {
    let mut input = BufReader::new(input);
    let mut directories = Vec::new();
    loop {
        let mut path = Vec::new();
        input.read_until(END, &mut path)?;
        if path.pop() != Some(END) {
            return Ok(directories);
        }
        if directories.len() < DIRECTORIES_MAX {
            directories.push(PathBuf::from(OsString::from_vec(path)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finished_paths_count() {
        let directories = take_directories(&b"/run/a\0/run/b\nc\0/run/unfinished"[..]).unwrap();
        assert_eq!(directories, [Path::new("/run/a"), Path::new("/run/b\nc")]);
    }

    #[test]
    fn a_guardian_that_ends_at_once_is_an_error() {
        let guard = Guard::spawn(Path::new("/bin/true"), &[] as &[&str]);
        assert!(matches!(guard, Err(Error::Guard { .. })), "{guard:?}");
    }
}
