//! Calls that wait for a file system which this very process serves.
//!
//! A process that is killed while one of its threads waits for an answer of its own FUSE session would never end: the threads that could answer are gone, and
//! the session ends with the last descriptor of `/dev/fuse`, which the waiting thread keeps open. A mount of EROFS over the session waits so for a moment, and a killed process
//! was seen to stay for good in `request_wait_answer`. So the call is made on a thread that has descriptors of its own, and these are not among them.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::close;

/// The device behind every session.
const DEVICE: &str = "/dev/fuse";

/// Makes a call on a thread without descriptors of sessions. The result must hold no descriptor. Where there can be no such thread it is made on this one.
pub(crate) fn wait_for<T: Send>(call: impl Fn() -> T + Sync) -> T {
    let apart = || {
        if let Err(error) = let_go() {
            tracing::debug!(%error, "a mount is made with descriptors of its own session open");
        }
        call()
    };
    let made = thread::scope(|scope| {
        let thread = thread::Builder::new().name("sluice-mount".to_owned());
        thread.spawn_scoped(scope, apart).ok()?.join().ok()
    });
    made.unwrap_or_else(&call)
}

/// Gives the calling thread descriptors of its own and closes those of sessions among them.
fn let_go() -> io::Result<()> {
    unshare(CloneFlags::CLONE_FILES)?;
    let is_session = |path: &Path| fs::read_link(path).is_ok_and(|target| target == Path::new(DEVICE));
    let entries = fs::read_dir("/proc/thread-self/fd")?.collect::<io::Result<Vec<_>>>()?;
    let paths = entries
        .iter()
        .map(fs::DirEntry::path)
        .filter(|path| is_session(path));
    let numbers = paths.filter_map(|path| path.file_name()?.to_str()?.parse::<RawFd>().ok());
    for number in numbers {
        close(number)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> usize {
        let entries = fs::read_dir("/proc/thread-self/fd").unwrap().flatten();
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.filter(|target| target == Path::new(DEVICE)).count()
    }

    #[test]
    fn fuse_a_call_has_no_descriptor_of_a_session_and_others_keep_theirs() {
        let device = fs::File::options().read(true).write(true).open(DEVICE).unwrap();
        let before = sessions();
        assert!(before >= 1);
        assert_eq!(wait_for(sessions), 0);
        assert_eq!(sessions(), before);
        drop(device);
    }
}
