//! What is mounted by whom: one small file per mounted image, for `sluice umount` and for the guard.
//!
//! ```text
//! <run_dir>/<pid>-<n>/mount.json       the record, JSON, locked with flock(2) while its server lives
//! ```
//!
//! The record exists before the mount and goes after it, so whatever dies in between leaves a record to clean up by. The
//! lock, not the process id, tells whether the server lives: ids are given out again, locks are not. A mount is only
//! undone when the mount table shows the file system type and the source that the record names.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::mount::unmount_exactly;
use crate::mountinfo::{self, MountEntry};
use crate::{Error, Front, session};

/// Name of a record in its directory.
const RECORD: &str = "mount.json";

/// Name of a record that is being written.
const UNFINISHED: &str = "mount.json.new";

/// Longest record that is read, in bytes; two paths and an image name are far shorter.
const RECORD_MAX: u64 = 64 << 10;

/// How long a server may take to clean up after its mount is gone.
const SERVER_WAIT: Duration = Duration::from_secs(10);

/// How long the lock of a dying process is waited for: the kernel closes its files one after the other.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Pause between two looks at something another process does.
const POLL: Duration = Duration::from_millis(10);

/// One mounted image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Where it is mounted; absolute, without symbolic links.
    pub target: PathBuf,
    /// How it is shown.
    pub front: Front,
    /// The process that serves it.
    pub pid: u32,
    /// The image, as its user named it.
    pub image: String,
    /// File system type in the mount table.
    pub fs_type: String,
    /// Source in the mount table.
    pub source: PathBuf,
}

impl MountRecord {
    fn describes(&self, entry: &MountEntry) -> bool {
        entry.target == self.target && entry.fs_type == self.fs_type && entry.source == self.source
    }

    /// The mount of this record, when it is the topmost one on its target.
    fn mount(&self) -> Result<Option<MountEntry>, Error> {
        let entry =
            mountinfo::topmost_at(&self.target).map_err(|e| Error::io("reading the mount table", e))?;
        Ok(entry.filter(|entry| self.describes(entry)))
    }
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundMount {
    /// What it says.
    pub record: MountRecord,
    /// Its directory.
    pub directory: PathBuf,
    /// Whether the server lives.
    pub alive: bool,
}

/// The record of a mount that this process serves. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct OwnRecord {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl OwnRecord {
    /// Writes a record. `announce` is told its directory before anything is there.
    ///
    /// # Errors
    /// [`Error::AlreadyMounted`] when a living process has a record for the same target; errors of `announce`.
    pub(crate) fn create(
        run_dir: &Path,
        record: &MountRecord,
        announce: &mut dyn FnMut(&Path) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::path("writing a mount record in", run_dir, e);
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .map_err(failed)?;
        // The guardian has another working directory.
        let run_dir = &fs::canonicalize(run_dir).map_err(failed)?;
        // Two processes that ask for the same target must not both find it free.
        let _exclusive = lock_wait(File::open(run_dir).map_err(failed)?, LOCK_WAIT).map_err(failed)?;
        clean_up_dead(run_dir)?;
        if let Some(found) = find_mount(run_dir, &record.target)?.filter(|found| found.alive) {
            return Err(Error::AlreadyMounted {
                target: record.target.clone(),
                pid: found.record.pid,
            });
        }
        let directory = free_directory(run_dir, record.pid);
        announce(&directory)?;
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        let lock = write_record(&directory, record)
            .inspect_err(|_| remove(&directory))
            .map_err(failed)?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }
}

impl Drop for OwnRecord {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Undoes what dead servers left. Called with the lock of the run directory, so a directory without a record is not one
/// that is just being written.
fn clean_up_dead(run_dir: &Path) -> Result<(), Error> {
    for directory in directories(run_dir)? {
        let alive = load(&directory).is_some_and(|(_, file)| is_locked(file));
        if !alive {
            tracing::info!(directory = %directory.display(), "cleaning up after a dead server");
            clean_up(&directory);
        }
    }
    Ok(())
}

/// A name that nothing has. It stays free: names are only taken with the lock of the run directory.
fn free_directory(run_dir: &Path, pid: u32) -> PathBuf {
    let mut number = 0_u32;
    loop {
        let directory = run_dir.join(format!("{pid}-{number}"));
        if fs::symlink_metadata(&directory).is_err() {
            return directory;
        }
        number += 1;
    }
}

/// Writes a record and locks it. The lock belongs to the file, so it is held before anyone can find the record.
fn write_record(directory: &Path, record: &MountRecord) -> io::Result<Flock<File>> {
    let aside = directory.join(UNFINISHED);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    lock.write_all(&serde_json::to_vec(record)?)?;
    fs::rename(&aside, directory.join(RECORD))?;
    Ok(lock)
}

/// Removes a record and its directory. Never descends: a directory with anything else in it stays.
fn remove(directory: &Path) {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(directory = %directory.display(), %error, "a mount record was left behind");
        }
        _ => {}
    };
    gone(fs::remove_file(directory.join(UNFINISHED)));
    gone(fs::remove_file(directory.join(RECORD)));
    gone(fs::remove_dir(directory));
}

/// Takes the lock of a file, trying again until `patience` is over.
fn lock_wait(file: File, patience: Duration) -> io::Result<Flock<File>> {
    let end = Instant::now() + patience;
    let mut file = file;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, Errno::EWOULDBLOCK)) if Instant::now() < end => file = unlocked,
            Err((_, errno)) => return Err(errno.into()),
        }
        thread::sleep(POLL);
    }
}

/// Reads the record in a directory; `None` when there is none or it is no record of ours.
fn load(directory: &Path) -> Option<(MountRecord, File)> {
    let file = File::open(directory.join(RECORD)).ok()?;
    let record = serde_json::from_reader(io::Read::take(&file, RECORD_MAX)).ok()?;
    Some((record, file))
}

fn is_locked(file: File) -> bool {
    matches!(
        Flock::lock(file, FlockArg::LockExclusiveNonblock),
        Err((_, Errno::EWOULDBLOCK))
    )
}

/// All mounted images with a record.
///
/// # Errors
/// [`Error::Io`] when the directory of records cannot be read. A missing one has no records.
pub fn list_mounts(run_dir: &Path) -> Result<Vec<FoundMount>, Error> {
    let found = directories(run_dir)?.into_iter().filter_map(|directory| {
        let (record, file) = load(&directory)?;
        let alive = is_locked(file);
        Some(FoundMount {
            record,
            directory,
            alive,
        })
    });
    Ok(found.collect())
}

/// The directories of records. Sockets of services, and directories of other commands, lie beside them.
fn directories(run_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let is_record = |name: &str| {
        let numbers = name.split_once('-');
        numbers.is_some_and(|(pid, number)| pid.parse::<u32>().is_ok() && number.parse::<u32>().is_ok())
    };
    match fs::read_dir(run_dir) {
        Ok(entries) => {
            let entries = entries.flatten();
            let records = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_record));
            Ok(records.map(|entry| entry.path()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::path("reading", run_dir, error)),
    }
}

/// The mounted image at `target`; one with a living server first.
///
/// # Errors
/// As [`list_mounts`].
pub fn find_mount(run_dir: &Path, target: &Path) -> Result<Option<FoundMount>, Error> {
    let target = resolve(target)?;
    let mut found = list_mounts(run_dir)?;
    found.retain(|found| found.record.target == target);
    found.sort_by_key(|found| !found.alive);
    Ok(found.into_iter().next())
}

/// The absolute path of a mount target without touching the target itself: its server may be dead or stuck.
fn resolve(target: &Path) -> Result<PathBuf, Error> {
    let failed = |e| Error::path("finding", target, e);
    let target_abs = std::path::absolute(target).map_err(failed)?;
    let resolved = match (target_abs.parent(), target_abs.file_name()) {
        (Some(parent), Some(name)) => fs::canonicalize(parent).map_err(failed)?.join(name),
        _ => target_abs,
    };
    let mounted = mountinfo::topmost_at(&resolved).map_err(|e| Error::io("reading the mount table", e))?;
    match mounted {
        Some(_) => Ok(resolved),
        None => fs::canonicalize(&resolved).or(Ok(resolved)),
    }
}

/// Unmounts the image at `target` and waits until its server has cleaned up; cleans up itself when the server is dead.
/// With `lazy` the target is free at once even if somebody uses it.
///
/// # Errors
/// [`Error::NotMounted`] when nothing of ours is there, [`Error::Busy`] when somebody uses it, [`Error::ServerStuck`]
/// when the server does not clean up.
pub fn request_unmount(run_dir: &Path, target: &Path, lazy: bool) -> Result<(), Error> {
    let target = resolve(target)?;
    let Some(found) = find_mount(run_dir, &target)? else {
        return unmount_without_record(&target, lazy);
    };
    if let Some(mount) = found.record.mount()? {
        // Nobody answers for the mount of a dead server, so waiting for its users would be in vain.
        unmount(&mount, lazy || !found.alive)?;
    }
    if found.alive {
        wait_removed(&found)
    } else {
        clean_up(&found.directory);
        Ok(())
    }
}

fn unmount_without_record(target: &Path, lazy: bool) -> Result<(), Error> {
    let mount = mountinfo::topmost_at(target).map_err(|e| Error::io("reading the mount table", e))?;
    let ours =
        mount.filter(|entry| entry.fs_type == session::FS_TYPE && entry.source == Path::new(session::SOURCE));
    match ours {
        Some(mount) => unmount(&mount, lazy),
        None => Err(Error::NotMounted {
            target: target.to_owned(),
        }),
    }
}

fn unmount(mount: &MountEntry, lazy: bool) -> Result<(), Error> {
    match unmount_exactly(mount, lazy) {
        Ok(_) => Ok(()),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            session::unmount_with_helper(&mount.target, lazy)
        }
        Err(error) => Err(error),
    }
}

fn wait_removed(found: &FoundMount) -> Result<(), Error> {
    let end = Instant::now() + SERVER_WAIT;
    while found.directory.exists() {
        if Instant::now() >= end {
            return Err(Error::ServerStuck {
                pid: found.record.pid,
                record: found.directory.clone(),
                seconds: SERVER_WAIT.as_secs(),
            });
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Undoes what a dead server left: its mount, lazily, and its record. Does nothing while the server lives.
pub(crate) fn clean_up(directory: &Path) {
    let Some((record, file)) = load(directory) else {
        remove(directory);
        return;
    };
    if let Err(error) = lock_wait(file, LOCK_WAIT) {
        tracing::warn!(directory = %directory.display(), %error, "a mount record is still locked by its server");
        return;
    }
    match record.mount() {
        Ok(Some(mount)) => {
            if let Err(error) = unmount(&mount, true) {
                let target = record.target.display();
                tracing::warn!(%target, %error, "the mount of a dead server was left behind");
                return;
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "looking for the mount of a dead server"),
    }
    remove(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(target: &Path) -> MountRecord {
        MountRecord {
            target: target.to_owned(),
            front: Front::Fuse,
            pid: std::process::id(),
            image: "example.org/app:1".to_owned(),
            fs_type: session::FS_TYPE.to_owned(),
            source: session::SOURCE.into(),
        }
    }

    fn create(run_dir: &Path, target: &Path) -> Result<OwnRecord, Error> {
        OwnRecord::create(run_dir, &record(target), &mut |_| Ok(()))
    }

    #[test]
    fn a_record_lives_as_long_as_its_owner() {
        let run = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let target = fs::canonicalize(target.path()).unwrap();
        let own = create(run.path(), &target).unwrap();
        let found = find_mount(run.path(), &target).unwrap().unwrap();
        assert!(found.alive);
        assert_eq!(found.record, record(&target));
        drop(own);
        assert_eq!(find_mount(run.path(), &target).unwrap(), None);
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_others_have_in_the_directory_is_let_alone() {
        let run = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let others = ["supervise-7", "record-7", "7", "7-a"].map(|name| run.path().join(name));
        for other in &others {
            fs::create_dir(other).unwrap();
        }
        fs::write(run.path().join("snapshotter.sock"), "").unwrap();
        let own = create(run.path(), &fs::canonicalize(target.path()).unwrap()).unwrap();
        assert_eq!(list_mounts(run.path()).unwrap().len(), 1);
        drop(own);
        assert!(others.iter().all(|other| other.is_dir()));
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), others.len() + 1);
    }

    #[test]
    fn a_target_is_taken_once() {
        let run = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let target = fs::canonicalize(target.path()).unwrap();
        let _own = create(run.path(), &target).unwrap();
        let again = create(run.path(), &target);
        assert!(matches!(again, Err(Error::AlreadyMounted { .. })), "{again:?}");
    }

    #[test]
    fn the_record_of_a_dead_server_is_found_and_cleaned_up() {
        let run = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let target = fs::canonicalize(target.path()).unwrap();
        let directory = run.path().join("1-0");
        fs::create_dir(&directory).unwrap();
        drop(write_record(&directory, &record(&target)).unwrap());
        assert!(!find_mount(run.path(), &target).unwrap().unwrap().alive);
        request_unmount(run.path(), &target, false).unwrap();
        assert!(!directory.exists());
    }

    #[test]
    fn what_dead_servers_left_goes_with_the_next_mount() {
        let run = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let target = fs::canonicalize(target.path()).unwrap();
        let dead = [
            run.path().join("1-0"),
            run.path().join("1-1"),
            run.path().join("1-2"),
        ];
        for directory in &dead {
            fs::create_dir(directory).unwrap();
        }
        drop(write_record(&dead[0], &record(&target)).unwrap());
        fs::write(dead[1].join(UNFINISHED), "{").unwrap();
        let other = target.join("other");
        fs::create_dir(&other).unwrap();
        let _living = create(run.path(), &other).unwrap();
        assert!(dead.iter().all(|directory| !directory.exists()));
        let _own = create(run.path(), &target).unwrap();
        assert_eq!(list_mounts(run.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_directory_that_is_no_mount_of_ours_is_refused() {
        let run = tempfile::tempdir().unwrap();
        let result = request_unmount(run.path(), Path::new("/proc"), false);
        assert!(matches!(result, Err(Error::NotMounted { .. })), "{result:?}");
    }

    #[test]
    fn the_record_of_a_living_server_is_not_cleaned_up_from_outside() {
        let run = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let target = fs::canonicalize(target.path()).unwrap();
        let own = create(run.path(), &target).unwrap();
        let (_, file) = load(&own.directory).unwrap();
        assert!(lock_wait(file, Duration::from_millis(50)).is_err());
    }
}
