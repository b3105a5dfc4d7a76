//! How two mounted trees differ.
//!
//! Both trees are walked with `lstat`; names (as bytes), types, permissions, owners, times, link counts, extended
//! attributes of every namespace, symlink targets, device numbers, lengths, contents and the grouping of hard links are
//! compared. What may differ is listed in [`Exceptions`], nothing is left out silently: sizes of directories are the one
//! value that means nothing across file systems.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Differences that a message shows.
const SHOWN: usize = 20;

/// Bytes compared at once.
const PIECE: usize = 1 << 20;

/// What may differ between the two trees, and why.
#[derive(Clone, Debug, Default)]
pub struct Exceptions {
    /// Permissions, owner, time and extended attributes of the root: containerd ignores an entry for it and leaves the
    /// directory as it made it.
    pub root_attributes: bool,
    /// Times of these directories: containerd gives the time of unpacking to directories that no entry describes.
    pub times: BTreeSet<Vec<u8>>,
    /// Link counts of directories: overlayfs reports 1 for a merged one.
    pub directory_links: bool,
    /// Link counts of these files: overlayfs counts names that an upper layer hides.
    pub link_counts: BTreeSet<Vec<u8>>,
    /// Inode identity: whether two names are one file is not compared when the tree has no stable inode numbers.
    pub hard_link_groups: bool,
    /// Lengths, contents and extended attributes of these files: one side is known to lose them.
    pub lossy: BTreeSet<Vec<u8>>,
    /// Contents of files: they were compared with another tree already.
    pub contents: bool,
}

impl Exceptions {
    /// No difference at all may be.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whatever these files hold.
    pub fn lossy(names: &[&str]) -> Self {
        Self {
            lossy: names.iter().map(|name| name.as_bytes().to_vec()).collect(),
            ..Self::default()
        }
    }

    /// What overlayfs and containerd's unpack make inevitable, given the directories that no entry describes and the
    /// files that lost a name.
    pub fn of_containerd(implied_directories: &[&str], lost_a_name: &[&str]) -> Self {
        let paths = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self {
            root_attributes: true,
            times: paths(implied_directories),
            directory_links: true,
            link_counts: paths(lost_a_name),
            ..Self::default()
        }
    }
}

/// The differences of two trees.
#[derive(Debug, Default)]
pub struct Differences {
    count: usize,
    shown: Vec<String>,
    /// Entries that were compared.
    pub entries: usize,
    /// Bytes of regular files that were compared.
    pub content_bytes: u64,
}

impl Differences {
    fn add(&mut self, path: &[u8], what: impl fmt::Display) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(format!("{}: {what}", path.escape_ascii()));
        }
    }

    /// Whether there is no difference.
    pub fn is_none(&self) -> bool {
        self.count == 0
    }

    /// Checks that there is none.
    ///
    /// # Errors
    /// Listing the first ones.
    pub fn assert_none(&self) -> Result<()> {
        if self.is_none() {
            return Ok(());
        }
        bail!("{self}")
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} differences in {} entries", self.count, self.entries)?;
        self.shown.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// One file of a tree.
#[derive(Debug)]
struct Seen {
    metadata: Metadata,
    target: Option<OsString>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// Files by path below the root; the root is the empty path.
type Listing = BTreeMap<Vec<u8>, Seen>;

/// Compares the tree at `actual` with the one at `expected`.
///
/// # Errors
/// When one of them cannot be read.
pub fn compare(expected: &Path, actual: &Path, exceptions: &Exceptions) -> Result<Differences> {
    let (left, right) = (list(expected)?, list(actual)?);
    let mut differences = Differences {
        entries: left.len(),
        ..Differences::default()
    };
    for (path, seen) in &left {
        match right.get(path) {
            None => differences.add(path, "is missing"),
            Some(other) => compare_attributes(path, seen, other, exceptions, &mut differences),
        }
    }
    for path in right.keys().filter(|path| !left.contains_key(*path)) {
        differences.add(path, "should not be there");
    }
    if !exceptions.hard_link_groups {
        compare_groups(&left, &right, &mut differences);
    }
    compare_contents(expected, actual, &left, &right, exceptions, &mut differences)?;
    Ok(differences)
}

fn list(root: &Path) -> Result<Listing> {
    let mut listing = Listing::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let seen = see(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        if seen.metadata.is_dir() {
            let entries = fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
            for entry in entries {
                pending.push(relative.join(entry?.file_name()));
            }
        }
        listing.insert(relative.into_os_string().into_vec(), seen);
    }
    Ok(listing)
}

fn see(path: &Path) -> Result<Seen> {
    let metadata = fs::symlink_metadata(path)?;
    let target = metadata.is_symlink().then(|| fs::read_link(path)).transpose()?;
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(path).context("cannot list extended attributes")? {
        let value = xattr::get(path, &name).with_context(|| format!("cannot read {}", name.display()))?;
        xattrs.insert(
            name,
            value.context("an extended attribute is listed but missing")?,
        );
    }
    Ok(Seen {
        metadata,
        target: target.map(PathBuf::into_os_string),
        xattrs,
    })
}

fn compare_attributes(
    path: &[u8],
    left: &Seen,
    right: &Seen,
    but: &Exceptions,
    differences: &mut Differences,
) {
    let (a, b) = (&left.metadata, &right.metadata);
    let mut differ = |what: &str, a: &dyn fmt::Display, b: &dyn fmt::Display| {
        let (a, b) = (a.to_string(), b.to_string());
        if a != b {
            differences.add(path, format_args!("{what} is {b}, expected {a}"));
        }
    };
    differ("type", &kind(a), &kind(b));
    if kind(a) != kind(b) {
        return;
    }
    if !(path.is_empty() && but.root_attributes) {
        differ(
            "mode",
            &format_args!("{:o}", a.mode()),
            &format_args!("{:o}", b.mode()),
        );
        differ(
            "owner",
            &format_args!("{}:{}", a.uid(), a.gid()),
            &format_args!("{}:{}", b.uid(), b.gid()),
        );
        if !but.lossy.contains(path) {
            differ("extended attributes", &show(&left.xattrs), &show(&right.xattrs));
        }
        if !but.times.contains(path) {
            let time = |of: &Metadata| format!("{}.{:09}", of.mtime(), of.mtime_nsec());
            differ("mtime", &time(a), &time(b));
        }
    }
    let links_may_differ = if a.is_dir() {
        but.directory_links
    } else {
        but.link_counts.contains(path)
    };
    if !links_may_differ {
        differ("link count", &a.nlink(), &b.nlink());
    }
    if !a.is_dir() && !but.lossy.contains(path) {
        differ("length", &a.len(), &b.len());
    }
    if a.file_type().is_char_device() || a.file_type().is_block_device() {
        differ("device number", &a.rdev(), &b.rdev());
    }
    let target = |seen: &Seen| {
        seen.target
            .as_deref()
            .map(OsStr::as_bytes)
            .unwrap_or_default()
            .escape_ascii()
            .to_string()
    };
    differ("target", &target(left), &target(right));
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () if kind.is_fifo() => "fifo",
        () => "socket",
    }
}

fn show(xattrs: &BTreeMap<OsString, Vec<u8>>) -> String {
    let mut text = String::from("[");
    for (name, value) in xattrs {
        let _ = write!(text, " {}=\"{}\"", name.display(), value.escape_ascii());
    }
    text + " ]"
}

/// The sets of names that are one file, for files with more than one name in the tree.
fn groups(listing: &Listing) -> BTreeSet<Vec<&[u8]>> {
    let mut by_inode: BTreeMap<(u64, u64), Vec<&[u8]>> = BTreeMap::new();
    for (path, seen) in listing.iter().filter(|(_, seen)| !seen.metadata.is_dir()) {
        by_inode
            .entry((seen.metadata.dev(), seen.metadata.ino()))
            .or_default()
            .push(path);
    }
    by_inode.into_values().filter(|names| names.len() > 1).collect()
}

fn compare_groups(left: &Listing, right: &Listing, differences: &mut Differences) {
    let (left, right) = (groups(left), groups(right));
    let show = |names: &[&[u8]]| {
        names
            .iter()
            .map(|name| name.escape_ascii().to_string())
            .collect::<Vec<_>>()
            .join(" = ")
    };
    for names in left.difference(&right) {
        differences.add(
            names[0],
            format_args!("names are no longer one file: {}", show(names)),
        );
    }
    for names in right.difference(&left) {
        differences.add(
            names[0],
            format_args!("names should not be one file: {}", show(names)),
        );
    }
}

fn compare_contents(
    expected: &Path,
    actual: &Path,
    left: &Listing,
    right: &Listing,
    but: &Exceptions,
    differences: &mut Differences,
) -> Result<()> {
    if but.contents {
        return Ok(());
    }
    let mut compared = BTreeSet::new();
    let is_file = |listing: &Listing, path: &[u8]| {
        let seen = listing.get(path).filter(|_| !but.lossy.contains(path));
        seen.is_some_and(|seen| seen.metadata.is_file())
    };
    for (path, seen) in left {
        if !is_file(left, path)
            || !is_file(right, path)
            || !compared.insert((seen.metadata.dev(), seen.metadata.ino()))
        {
            continue;
        }
        let relative = Path::new(OsStr::from_bytes(path));
        let (a, b) = (expected.join(relative), actual.join(relative));
        differences.content_bytes += seen.metadata.len();
        match first_difference(&a, &b) {
            Ok(None) => {}
            Ok(Some(offset)) => differences.add(path, format_args!("content differs from offset {offset}")),
            Err(error) => differences.add(path, format_args!("cannot be read: {error:#}")),
        }
    }
    Ok(())
}

/// Offset in the file of the first byte that differs.
fn first_difference(a: &Path, b: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (mut a_file, mut b_file) = (open(a)?, open(b)?);
    let (mut a_piece, mut b_piece) = (vec![0; PIECE], vec![0; PIECE]);
    let mut offset = 0;
    loop {
        let n =
            read_full(&mut a_file, &mut a_piece).with_context(|| format!("{} at {offset}", a.display()))?;
        let m =
            read_full(&mut b_file, &mut b_piece).with_context(|| format!("{} at {offset}", b.display()))?;
        if a_piece[..n] != b_piece[..m] {
            let same = a_piece[..n]
                .iter()
                .zip(&b_piece[..m])
                .take_while(|(a, b)| a == b)
                .count();
            return Ok(Some(offset + same as u64));
        }
        if n == 0 {
            return Ok(None);
        }
        offset += n as u64;
    }
}

fn read_full(file: &mut File, into: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read(&mut into[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn two_trees() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        for root in [&a, &b] {
            fs::create_dir_all(root.join("d")).unwrap();
            fs::write(root.join("d/file"), b"same").unwrap();
            fs::hard_link(root.join("d/file"), root.join("d/link")).unwrap();
            symlink("file", root.join("d/symlink")).unwrap();
        }
        for path in ["", "d", "d/file", "d/symlink"] {
            let time = fs::symlink_metadata(a.join(path)).unwrap().modified().unwrap();
            let status = std::process::Command::new("touch")
                .args([
                    "-h",
                    "-d",
                    &format!(
                        "@{}",
                        time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
                    ),
                ])
                .args([a.join(path), b.join(path)])
                .status();
            assert!(status.unwrap().success());
        }
        (directory, a, b)
    }

    #[test]
    fn equal_trees_have_no_difference() {
        let (_directory, a, b) = two_trees();
        let differences = compare(&a, &b, &Exceptions::none()).unwrap();
        assert!(differences.assert_none().is_ok(), "{differences}");
        assert_eq!((differences.entries, differences.content_bytes), (5, 4));
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        type Change = (&'static str, fn(&Path));
        let changes: [Change; 6] = [
            ("content differs", |root| {
                fs::write(root.join("d/file"), b"sane").unwrap()
            }),
            ("should not be there", |root| {
                fs::write(root.join("d/more"), b"").unwrap()
            }),
            ("is missing", |root| {
                fs::remove_file(root.join("d/symlink")).unwrap()
            }),
            ("one file", |root| {
                fs::remove_file(root.join("d/link")).unwrap();
                fs::copy(root.join("d/file"), root.join("d/link")).unwrap();
            }),
            ("extended attributes", |root| {
                xattr::set(root.join("d"), "user.x", b"1").unwrap()
            }),
            ("type is directory", |root| {
                fs::remove_file(root.join("d/symlink")).unwrap();
                fs::create_dir(root.join("d/symlink")).unwrap();
            }),
        ];
        for (expected, change) in changes {
            let (_directory, a, b) = two_trees();
            change(&b);
            let text = compare(&a, &b, &Exceptions::none()).unwrap().to_string();
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
}
