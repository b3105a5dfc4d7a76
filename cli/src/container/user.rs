//! Who a container runs as: `USER[:GROUP]` of an image config, by number or by a name that the image knows.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use oci_spec::runtime::{User, UserBuilder};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// Longest file of names that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Most groups that a user is in beside its first one; the kernel takes 65536.
const GROUPS_MAX: usize = 1024;

/// The user that `text` names in the image whose root directory is `root`. No name is root.
///
/// # Errors
/// When the image does not know the name.
pub(super) fn find(text: &str, root: &Path) -> anyhow::Result<User> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let users = lines(root, "etc/passwd")?;
    let groups = lines(root, "etc/group")?;
    let known = users.iter().find_map(|line| Known::parse(line, user));
    let uid = match (user.parse(), &known) {
        _ if user.is_empty() => 0,
        (Ok(uid), _) => uid,
        (Err(_), Some(known)) => known.uid,
        (Err(_), None) => bail!("the image runs as {user}, and its /etc/passwd does not have that user"),
    };
    let gid = match group.filter(|group| !group.is_empty()) {
        None => known.as_ref().map_or(0, |known| known.gid),
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => groups
                .iter()
                .find_map(|line| group_number(line, |name, _| name == group))
                .with_context(|| {
                    format!("the image runs as group {group}, and its /etc/group does not have it")
                })?,
        },
    };
    let is_member = |members: &str| {
        let known = known.as_ref();
        known.is_some_and(|known| members.split(',').any(|member| member == known.name))
    };
    let further = groups
        .iter()
        .filter_map(|line| group_number(line, |_, members| is_member(members)))
        .filter(|further| *further != gid);
    Ok(UserBuilder::default()
        .uid(uid)
        .gid(gid)
        .additional_gids(further.take(GROUPS_MAX).collect::<Vec<_>>())
        .build()?)
}

/// A line of `/etc/passwd`.
#[derive(Debug)]
struct Known {
    name: String,
    uid: u32,
    gid: u32,
}

impl Known {
    /// What a line says, if it is about `user`, by name or by number. Broken lines are about nobody.
    fn parse(line: &str, user: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let wanted = match user {
            "" => uid == "0",
            _ => name == user || uid == user,
        };
        Some(Self {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
        })
        .filter(|_| wanted)
    }
}

/// Number of the group of a line of `/etc/group` whose name and members are wanted.
fn group_number(line: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<u32> {
    let mut fields = line.split(':');
    let (name, _, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    wanted(name, members).then(|| gid.parse().ok()).flatten()
}

/// Lines of a file of the image; links in it lead nowhere else. None when there is no such file.
fn lines(root: &Path, name: &str) -> anyhow::Result<Vec<String>> {
    let reading = || format!("reading /{name} of the image");
    let open = |directory| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat2(directory, name, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let root = match File::open(root) {
        Ok(root) => root,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(reading),
    };
    let file = match open(&root) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok(Vec::new());
        }
        Err(errno) => return Err(errno).with_context(reading),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX)
        .read_to_end(&mut bytes)
        .with_context(reading)?;
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\napp:x:1000:1001::/:\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        let group = "root:x:0:\nvideo:x:44:other,app\napp:x:1001:app\n";
        fs::write(root.path().join("etc/group"), group).unwrap();
        root
    }

    fn numbers(text: &str, root: &Path) -> Option<(u32, u32, Vec<u32>)> {
        let user = find(text, root).ok()?;
        Some((
            user.uid(),
            user.gid(),
            user.additional_gids().clone().unwrap_or_default(),
        ))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = image();
        for (text, expected) in [
            ("", (0, 0, vec![])),
            ("app", (1000, 1001, vec![44])),
            ("1000", (1000, 1001, vec![44])),
            ("app:video", (1000, 44, vec![1001])),
            ("app:7", (1000, 7, vec![44, 1001])),
            ("12:13", (12, 13, vec![])),
            ("12", (12, 0, vec![])),
        ] {
            assert_eq!(numbers(text, root.path()), Some(expected), "{text}");
        }
        for unknown in ["nobody", "app:nobody", "-1", "4294967296"] {
            assert_eq!(numbers(unknown, root.path()), None, "{unknown}");
        }
    }

    #[test]
    fn names_of_the_host_are_not_those_of_the_image() {
        let (root, host) = (tempfile::tempdir().unwrap(), image());
        assert_eq!(numbers("0", root.path()), Some((0, 0, vec![])));
        symlink(host.path().join("etc"), root.path().join("etc")).unwrap();
        assert_eq!(numbers("app", root.path()), None);
    }
}
