//! EROFS metadata image → tree.
//!
//! Walks breadth first from the root, so nodes come in the order of their node ids. Unlike the single reads of
//! [`Image`], it checks how parts relate: names are sorted, a directory has one parent, `.` and `..` are right, file
//! types agree with inodes. In an honest image no two parts overlap, so all parts together are not longer than the
//! image; a walk that reads more than that is refused, which bounds its time and memory by the length of the image.

use std::collections::HashMap;

use super::chunks;
use super::layout::{DIRECTORY, ExtendedInode, FileType};
use super::reader::{DirEntry, Image, Inode, InodeKind, Located, MappedRun, RunSource, at_nid, malformed};
use super::{OPAQUE_NAME, OPAQUE_VALUE, xattr};
use crate::inode::{Attributes, Device};
use crate::tree::{Directory, Extent, ExtentSource, FileContent};
use crate::{EntryName, FormatError, Limits, Node, NodeId, NodeKind, Tree};

/// Reads all that the root of `image` reaches.
pub(super) fn read_tree<B: AsRef<[u8]>>(
    image: &Image<B>,
    limits: &Limits,
) -> Result<(Tree, Vec<u64>), FormatError> {
    let mut walk = Walk {
        image,
        limits,
        tree: Tree::new(),
        nids: Vec::new(),
        found: HashMap::new(),
        pending: Vec::new(),
        unread: image.bytes().len() as u64,
        literal_bytes: 0,
        entries: 0,
    };
    walk.take_root()?;
    let mut next = 0;
    while let Some(directory) = walk.pending.get(next).copied() {
        walk.take_directory(directory)?;
        next += 1;
    }
    Ok((walk.tree, walk.nids))
}

/// A directory whose entries are still to be read.
#[derive(Clone, Copy, Debug)]
struct Pending {
    nid: u64,
    id: NodeId,
    parent_nid: u64,
    depth: usize,
    path_len: usize,
}

struct Walk<'a, B> {
    image: &'a Image<B>,
    limits: &'a Limits,
    tree: Tree,
    nids: Vec<u64>,
    found: HashMap<u64, NodeId>,
    pending: Vec<Pending>,
    /// Bytes of the image that no part has claimed.
    unread: u64,
    literal_bytes: u64,
    entries: u64,
}

impl<B: AsRef<[u8]>> Walk<'_, B> {
    fn take_root(&mut self) -> Result<(), FormatError> {
        let nid = self.image.root();
        let node = self.read_node(&self.image.locate(nid)?)?;
        *self.tree.node_mut(NodeId::ROOT) = node;
        self.nids.push(nid);
        self.found.insert(nid, NodeId::ROOT);
        self.pending.push(Pending {
            nid,
            id: NodeId::ROOT,
            parent_nid: nid,
            depth: 0,
            path_len: 0,
        });
        Ok(())
    }

    fn take_directory(&mut self, directory: Pending) -> Result<(), FormatError> {
        let mut last: Vec<u8> = Vec::new();
        let mut dots = 0;
        let mut outcome = Ok(());
        let image = self.image;
        image.read_dir(directory.nid, 0, &mut |_, entry| {
            outcome = self.take_entry(directory, &last, entry, &mut dots);
            last.clear();
            last.extend_from_slice(entry.name);
            outcome.is_ok()
        })?;
        outcome?;
        if dots == 2 {
            Ok(())
        } else {
            Err(malformed(directory.nid, "is a directory without \".\" or \"..\""))
        }
    }

    fn take_entry(
        &mut self,
        directory: Pending,
        last: &[u8],
        entry: DirEntry<'_>,
        dots: &mut usize,
    ) -> Result<(), FormatError> {
        if entry.name <= last {
            return Err(malformed(
                directory.nid,
                "is a directory whose names are not sorted",
            ));
        }
        let expected = match entry.name {
            b"." => directory.nid,
            b".." => directory.parent_nid,
            _ => return self.take_child(directory, entry),
        };
        *dots += 1;
        if entry.nid == expected && entry.file_type == DIRECTORY.number {
            Ok(())
        } else {
            Err(malformed(
                directory.nid,
                "has a \".\" or \"..\" that leads elsewhere",
            ))
        }
    }

    fn take_child(&mut self, directory: Pending, entry: DirEntry<'_>) -> Result<(), FormatError> {
        let name = EntryName::new(entry.name)?;
        self.entries += 1;
        FormatError::check_limit("number of entries", self.entries, self.limits.entries)?;
        let path_len = directory.path_len + 1 + entry.name.len();
        FormatError::check_limit("length of a path", path_len as u64, self.limits.path_len as u64)?;
        let id = match self.found.get(&entry.nid) {
            Some(id) if self.tree.directory(*id).is_some() => {
                return Err(malformed(entry.nid, "is a directory with two names"));
            }
            Some(id) => *id,
            None => self.take_node(directory, entry.nid, path_len)?,
        };
        if FileType::of(&self.tree.node(id).kind).number != entry.file_type {
            return Err(malformed(
                entry.nid,
                "is of another type than its directory entry says",
            ));
        }
        if let Some(parent) = self.tree.directory_mut(directory.id) {
            parent.entries.insert(name, id);
        }
        Ok(())
    }

    fn take_node(&mut self, directory: Pending, nid: u64, path_len: usize) -> Result<NodeId, FormatError> {
        let located = self.image.locate(nid)?;
        let node = self.read_node(&located)?;
        let id = self.tree.add(node);
        self.nids.push(nid);
        self.found.insert(nid, id);
        if located.inode.kind == InodeKind::Directory {
            let depth = directory.depth + 1;
            FormatError::check_limit("depth of a directory", depth as u64, self.limits.depth as u64)?;
            self.pending.push(Pending {
                nid,
                id,
                parent_nid: directory.nid,
                depth,
                path_len,
            });
        }
        Ok(id)
    }

    /// Counts bytes that a part takes from the image.
    fn claim(&mut self, nid: u64, len: u64) -> Result<(), FormatError> {
        self.unread = self
            .unread
            .checked_sub(len)
            .ok_or_else(|| malformed(nid, "overlaps another part"))?;
        Ok(())
    }

    fn read_node(&mut self, located: &Located) -> Result<Node, FormatError> {
        let inode = &located.inode;
        let area = self.image.xattr_area(located);
        self.claim(inode.nid, (size_of::<ExtendedInode>() + area.len()) as u64)?;
        let xattrs = xattr::parse(area, self.limits).map_err(|error| at_nid(inode.nid, error))?;
        let mut attributes = Attributes {
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs,
        };
        let kind = match inode.kind {
            InodeKind::Directory => {
                self.claim(inode.nid, inode.size)?;
                let opaque = take_opaque(&mut attributes);
                NodeKind::Directory(Directory {
                    opaque,
                    ..Directory::default()
                })
            }
            InodeKind::Regular => NodeKind::Regular(self.read_content(located)?),
            InodeKind::Symlink => {
                self.claim(inode.nid, inode.size)?;
                NodeKind::Symlink(self.image.read_link(inode.nid)?.to_vec())
            }
            InodeKind::CharDevice(device) if device == Device::default() => NodeKind::Whiteout,
            InodeKind::CharDevice(device) => NodeKind::CharDevice(device),
            InodeKind::BlockDevice(device) => NodeKind::BlockDevice(device),
            InodeKind::Fifo => NodeKind::Fifo,
            InodeKind::Socket => NodeKind::Socket,
        };
        if attributes.xattrs.contains_key(OPAQUE_NAME) {
            return Err(malformed(
                inode.nid,
                "has an opaque mark that overlayfs does not know",
            ));
        }
        Ok(Node { kind, attributes })
    }

    fn read_content(&mut self, located: &Located) -> Result<FileContent, FormatError> {
        let Inode { nid, size, .. } = located.inode;
        let mut runs: Vec<MappedRun> = Vec::new();
        if let Some(table) = self.image.chunk_table(located)? {
            self.claim(nid, table.table_len())?;
            let limit = self.limits.sparse_segments;
            table
                .for_each_run(0, size, &mut |run| {
                    if runs.len() <= limit {
                        chunks::join(&mut runs, run);
                    }
                })
                .map_err(|reason| malformed(nid, reason))?;
            FormatError::check_limit("number of pieces of a file", runs.len() as u64, limit as u64)?;
        }
        let mut extents = Vec::new();
        for run in runs {
            if let Some(source) = self.read_run(nid, run)? {
                let MappedRun { file_off, len, .. } = run;
                push_extent(
                    &mut extents,
                    Extent {
                        file_off,
                        len,
                        source,
                    },
                );
            }
        }
        Ok(FileContent { size, extents })
    }

    /// Where a run that is no hole is; bytes in the image are copied.
    fn read_run(&mut self, nid: u64, run: MappedRun) -> Result<Option<ExtentSource>, FormatError> {
        Ok(match run.source {
            RunSource::Hole => None,
            RunSource::Plain { device, plain_off } => Some(ExtentSource::Plain { device, plain_off }),
            RunSource::Image { image_off } => {
                self.claim(nid, run.len)?;
                self.literal_bytes += run.len;
                FormatError::check_limit("literal bytes", self.literal_bytes, self.limits.literal_bytes)?;
                let end = image_off + run.len;
                let bytes = self.image.bytes().get(image_off as usize..end as usize);
                Some(ExtentSource::Literal(bytes.unwrap_or_default().to_vec()))
            }
        })
    }
}

/// Appends an extent; literals that touch become one, wherever in the image their blocks are.
fn push_extent(extents: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = extents.last_mut()
        && last.file_off + last.len == next.file_off
        && let (ExtentSource::Literal(bytes), ExtentSource::Literal(more)) = (&mut last.source, &next.source)
    {
        bytes.extend_from_slice(more);
        last.len += next.len;
        return;
    }
    extents.push(next);
}

/// Takes the overlayfs mark of an opaque directory out of its attributes.
fn take_opaque(attributes: &mut Attributes) -> bool {
    let marked = attributes
        .xattrs
        .get(OPAQUE_NAME)
        .is_some_and(|value| value == OPAQUE_VALUE);
    if marked {
        attributes.xattrs.remove(OPAQUE_NAME);
    }
    marked
}
