//! The kernel's table of mounts, `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
//!
//! A mount is recognised by more than its path: the path may carry another mount by now, and the kernel gives mount ids
//! out again. [`MountEntry::same_mount`] compares id, path, device, type and source.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use tokio::sync::oneshot;

/// Where the table is.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// How long a watching thread sleeps at most, in milliseconds; also how long it may outlive its listener.
const RECHECK: u16 = 2000;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Number of the mount, given out again after it is gone.
    pub id: u64,
    /// Number of the mount below it.
    pub parent: u64,
    /// Device of the file system, `major:minor`.
    pub device: String,
    /// Where it is mounted.
    pub target: PathBuf,
    /// File system type, with a subtype after a dot.
    pub fs_type: String,
    /// What it was mounted from.
    pub source: PathBuf,
}

impl MountEntry {
    /// Whether both describe one and the same mount.
    pub fn same_mount(&self, other: &Self) -> bool {
        self == other
    }
}

/// All mounts of this process's mount namespace, in the kernel's order: a later mount on the same path lies on top.
///
/// # Errors
/// Whatever hinders reading the table.
pub fn read() -> io::Result<Vec<MountEntry>> {
    let mut text = Vec::new();
    File::open(MOUNTINFO)?.read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// The mount that a lookup of `target`, an absolute path without symbolic links, ends in.
///
/// # Errors
/// As [`read`].
pub fn topmost_at(target: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?.into_iter().rev().find(|entry| entry.target == target))
}

/// Whether this very mount is still there.
///
/// # Errors
/// As [`read`].
pub fn is_mounted(mount: &MountEntry) -> io::Result<bool> {
    Ok(read()?.iter().any(|entry| entry.same_mount(mount)))
}

/// Waits until this very mount is gone from the table. The waiting is done by a thread, which ends when the future is
/// dropped.
///
/// # Errors
/// As [`read`].
pub async fn wait_unmounted(mount: MountEntry) -> io::Result<()> {
    let (gone, told) = oneshot::channel();
    let watch = move || {
        let outcome = watch(&mount, &gone);
        // Nobody listens any more when the future was dropped.
        let _ = gone.send(outcome);
    };
    thread::Builder::new()
        .name("mount-watch".to_owned())
        .spawn(watch)?;
    told.await
        .unwrap_or_else(|_| Err(io::Error::other("the thread that watches the mount table died")))
}

/// Returns when the mount is gone or nobody listens any more. The kernel signals a change of the table as an exceptional
/// condition of its file; the table is read again after [`RECHECK`] at the latest.
fn watch<T>(mount: &MountEntry, listener: &oneshot::Sender<T>) -> io::Result<()> {
    let table = File::open(MOUNTINFO)?;
    while !listener.is_closed() && is_mounted(mount)? {
        let mut changed = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut changed, RECHECK) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = text(fields.next()?);
    let target = fields.nth(1)?;
    // Mount options and a varying number of optional fields end with a lone dash.
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    Some(MountEntry {
        id,
        parent,
        device,
        target: unescape(target),
        fs_type: text(fields.next()?),
        source: unescape(fields.next()?),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Undoes the octal escapes (`\040` for a blank) of path fields.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let escaped = after.get(..3).filter(|_| *first == b'\\').and_then(octal_byte);
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal_byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields_are_read() {
        let table =
            b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            43 27 0:39 / /var/m rw,relatime - erofs /x/img ro\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].target, Path::new("/mnt 2"));
        assert_eq!(entries[0].fs_type, "ext3");
        assert_eq!(entries[0].source, Path::new("/dev/root"));
        assert_eq!(entries[1].id, 43);
        assert_eq!(entries[1].device, "0:39");
    }

    #[test]
    fn broken_lines_are_skipped() {
        assert!(parse(b"\n1 2\nx y z / / rw - a b c\n").is_empty());
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\"), Path::new("a\\"));
        assert_eq!(unescape(b"a\\9zz"), Path::new("a\\9zz"));
        assert_eq!(unescape(b"\\134\\012"), Path::new("\\\n"));
    }

    #[test]
    fn the_root_of_this_process_is_found() {
        assert!(topmost_at(Path::new("/")).unwrap().is_some());
    }
}
