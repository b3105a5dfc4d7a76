//! A tar file as a directory of byte ranges.
//!
//! The headers are read once, seeking over the data, so that opening a large archive takes a few reads; members are then
//! read in place. Nothing is extracted. Entries that have no data (links, directories, devices) are not followed by any,
//! whatever size their header claims, which is how Go's tar reader takes them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sluice_format::name::Printable;
use tar_core::EntryType;
use tar_core::parse::{ParseEvent, ParsedEntry, Parser};

use crate::Error;

/// Members that an image archive may have. `docker save` writes three per layer, an OCI layout one per blob.
const MEMBERS_MAX: usize = 1 << 17;

/// First read at a header, in bytes: one header, mostly.
const HEADER_READ_LEN: usize = 512;

/// Longest run of headers of one member that is read: tar-core bounds extension data to 1 MiB by itself.
const HEADER_READ_MAX: usize = 4 << 20;

/// Links followed from one member to another.
const LINKS_MAX: usize = 8;

#[derive(Clone, Debug)]
enum Member {
    Data(Range<u64>),
    /// Path from the root of the archive.
    Link(Vec<u8>),
}

/// An open tar and where its members are.
#[derive(Clone, Debug)]
pub(crate) struct TarFile {
    file: Arc<File>,
    members: BTreeMap<Vec<u8>, Member>,
}

impl TarFile {
    /// Reads all headers. Blocks on the disk.
    ///
    /// # Errors
    /// [`Error::Undecodable`] when the file is no tar, [`Error::Document`] when it has too many members.
    pub(crate) fn open(file: File) -> Result<Self, Error> {
        let undecodable = |source| Error::Undecodable {
            what: "tar archive",
            source,
        };
        let mut members = BTreeMap::new();
        let mut parser = Parser::with_defaults();
        let mut off = 0;
        let len = file
            .metadata()
            .map_err(|error| Error::io("cannot look at the archive", error))?
            .len();
        while let Some(found) = next_member(&file, &mut parser, &mut off).map_err(undecodable)? {
            let (path, member) = found;
            if let Member::Data(range) = &member
                && range.end > len
            {
                let reason = format!("member {} ends behind the end of the file", Printable(&path));
                return Err(Error::document("tar archive", reason));
            }
            members.insert(path, member);
            if members.len() > MEMBERS_MAX {
                return Err(Error::document(
                    "tar archive",
                    format!("has more than {MEMBERS_MAX} members"),
                ));
            }
        }
        Ok(Self {
            file: Arc::new(file),
            members,
        })
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Paths of members with data, and where the data is.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&[u8], &Range<u64>)> {
        self.members.iter().filter_map(|(path, member)| match member {
            Member::Data(range) => Some((&path[..], range)),
            Member::Link(_) => None,
        })
    }

    /// Where the data of the member at `path` is; links are followed.
    pub(crate) fn find(&self, path: &str) -> Option<Range<u64>> {
        let mut path = normalised(path.as_bytes());
        for _ in 0..LINKS_MAX {
            match self.members.get(&path)? {
                Member::Data(range) => return Some(range.clone()),
                Member::Link(target) => path = target.clone(),
            }
        }
        None
    }

    /// All bytes of a small member. Blocks on the disk.
    ///
    /// # Errors
    /// [`Error::Document`] when there is no such member or it is longer than `max_len`.
    pub(crate) fn read(&self, path: &str, max_len: u64) -> Result<Vec<u8>, Error> {
        let refuse = |reason: String| Error::document("image archive", reason);
        let range = self
            .find(path)
            .ok_or_else(|| refuse(format!("has no member {path}")))?;
        let len = range.end - range.start;
        if len > max_len {
            return Err(refuse(format!(
                "member {path} has {len} bytes, over the limit of {max_len}"
            )));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let read = self.file.read_exact_at(&mut bytes, range.start);
        read.map_err(|error| Error::io(format!("cannot read {path} in the archive"), error))?;
        Ok(bytes)
    }
}

/// The member whose headers begin at `off`, which is moved to the next. `None` at the end of the archive.
fn next_member(file: &File, parser: &mut Parser, off: &mut u64) -> io::Result<Option<(Vec<u8>, Member)>> {
    let mut wanted = HEADER_READ_LEN;
    loop {
        let bytes = read_up_to(file, *off, wanted)?;
        if bytes.is_empty() {
            // An archive without its end marker, which every tar reader accepts.
            return Ok(None);
        }
        let event = parser.parse(&bytes);
        match event.map_err(|error| io::Error::other(format!("header at offset {off}: {error}")))? {
            ParseEvent::NeedData { min_bytes } => {
                if bytes.len() < wanted || min_bytes > HEADER_READ_MAX {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                wanted = min_bytes.max(wanted + 1);
            }
            ParseEvent::Entry { consumed, entry } | ParseEvent::SparseEntry { consumed, entry, .. } => {
                *off += consumed as u64;
                let (path, member, data_len) = member_of(&entry, *off);
                *off = off.saturating_add(data_len.next_multiple_of(512));
                return Ok(Some((path, member)));
            }
            ParseEvent::GlobalExtensions { consumed, .. } => {
                *off += consumed as u64;
                wanted = HEADER_READ_LEN;
            }
            ParseEvent::End { .. } => return Ok(None),
        }
    }
}

fn member_of(entry: &ParsedEntry<'_>, data_off: u64) -> (Vec<u8>, Member, u64) {
    let path = normalised(&entry.path);
    let target = entry.link_target.as_deref().unwrap_or_default();
    match entry.entry_type {
        EntryType::Symlink => {
            let parent = match target {
                [b'/', ..] => 0,
                _ => path.iter().rposition(|byte| *byte == b'/').unwrap_or(0),
            };
            let target = normalised(&[&path[..parent], target].join(&b'/'));
            (path, Member::Link(target), 0)
        }
        EntryType::Link => (path, Member::Link(normalised(target)), 0),
        EntryType::Directory | EntryType::Char | EntryType::Block | EntryType::Fifo => {
            (path, Member::Data(data_off..data_off), 0)
        }
        _ => {
            let end = data_off.saturating_add(entry.size);
            (path, Member::Data(data_off..end), entry.size)
        }
    }
}

/// A path without `.`, `..`, doubled or leading slashes. `..` above the root stays at the root.
fn normalised(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn read_up_to(file: &File, off: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], off + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::tar_writer::{Entry, EntryKind, padding};

    fn tar_with(entries: &[(Entry, &[u8])]) -> TarFile {
        let mut file = tempfile::tempfile().unwrap();
        for (entry, data) in entries {
            file.write_all(&entry.encode()).unwrap();
            file.write_all(data).unwrap();
            file.write_all(&vec![0; padding(entry.size)]).unwrap();
        }
        TarFile::open(file).unwrap()
    }

    #[test]
    fn members_are_found_through_links_and_odd_names() {
        let file = |path: &str, data: &'static [u8]| {
            (
                Entry::generated(path, EntryKind::Regular, 0o644, data.len() as u64),
                data,
            )
        };
        let mut link = Entry::generated("b/layer.tar", EntryKind::Symlink, 0o777, 0);
        link.link = b"../a/layer.tar".to_vec();
        let mut turn = Entry::generated("x", EntryKind::Symlink, 0o777, 0);
        turn.link = b"x".to_vec();
        let long = format!("{}/y", "z".repeat(200));
        let tar = tar_with(&[
            file("./a/layer.tar", b"layer"),
            (link, b""),
            (turn, b""),
            file(&long, b"long"),
        ]);
        assert_eq!(tar.read("b/layer.tar", 10).unwrap(), b"layer");
        assert_eq!(tar.read("/a/./layer.tar", 10).unwrap(), b"layer");
        assert_eq!(tar.read(&long, 10).unwrap(), b"long");
        assert!(tar.find("x").is_none());
        assert!(tar.read("a/layer.tar", 4).is_err());
    }

    #[test]
    fn a_cut_archive_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&Entry::generated("a", EntryKind::Regular, 0o644, 5000).encode())
            .unwrap();
        file.write_all(&[1; 100]).unwrap();
        assert!(TarFile::open(file).is_err());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 700]).unwrap();
        assert!(TarFile::open(file).is_err());
    }
}
