//! Entries → tree of the layer, by the rules of containerd's unpack onto overlayfs.
//!
//! Entries apply in tar order. A later entry replaces an earlier one of the same name, except that a directory keeps its
//! children when a directory follows. `.wh.NAME` becomes a whiteout at `NAME`, `.wh..wh..opq` makes its directory opaque.
//! Directories that the tar only implies are created.
//!
//! containerd unpacks a base layer and the layers above by two different pieces of code that disagree on a name that is
//! both deleted and present in one layer. Here later entries win, as on a base layer; only a directory after its own
//! whiteout shows the lower directory's children again, as on upper layers, where the whiteout has become a plain entry
//! that the directory replaces. containerd fails where a tar implies a directory below a whiteout of the same layer; here
//! the directory is opaque, so that the deletion stays.
//!
//! A hard link whose target is not in the layer is kept as a [`DeferredLink`] for the merge; containerd refuses it.

use super::entry::{Entry, EntryKind};
use super::path::{DeferredPlaces, Walk, clean};
use super::refusal::Refusal;
use super::xattr;
use crate::inode::{Attributes, Device};
use crate::name::Printable;
use crate::tree::{DeferredLink, Directory, FileContent};
use crate::{EntryName, FormatError, LayerTree, Limits, Node, NodeId, NodeKind, Tree};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Bits of `st_mode` that an entry sets.
const PERMISSION_BITS: i64 = 0o7777;

/// Permissions of every symbolic link on Linux.
const SYMLINK_PERMISSIONS: u16 = 0o777;

/// Largest user or group; one more is "no change" to the kernel.
const ID_MAX: u64 = u32::MAX as u64 - 1;

/// Longest target of a symbolic link in bytes: the kernel's `PATH_MAX` without the final NUL.
const LINK_TARGET_MAX: u64 = 4095;

/// Attribute that a change of owner removes from a file.
const CAPABILITY: &[u8] = b"security.capability";

/// Warnings that are kept word for word; the rest is counted.
const WARNINGS_KEPT: usize = 32;

/// A hard link to a lower layer, by place.
#[derive(Clone, Debug)]
struct Deferred {
    place: (NodeId, EntryName),
    target: Vec<EntryName>,
}

/// The tree in the making.
#[derive(Clone, Debug)]
pub(crate) struct TreeBuilder {
    tree: Tree,
    limits: Limits,
    /// In tar order; `None` when a later entry took the place.
    deferred: Vec<Option<Deferred>>,
    deferred_places: DeferredPlaces,
    warnings: Vec<String>,
    warnings_left_out: u64,
}

impl TreeBuilder {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            tree: Tree::new(),
            limits,
            deferred: Vec::new(),
            deferred_places: DeferredPlaces::new(),
            warnings: Vec::new(),
            warnings_left_out: 0,
        }
    }

    /// A node to fill in.
    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.tree.node_mut(id)
    }

    /// Applies one entry. `content` is what a regular file gets; the id is that of such a file.
    pub(crate) fn apply(&mut self, entry: Entry, content: FileContent) -> Result<Option<NodeId>, Refusal> {
        let path = clean(&entry.name, &self.limits)?;
        // containerd leaves the root directory as it is, whatever the entry says.
        let Some((last, parents)) = path.split_last() else {
            return Ok(None);
        };
        if *last == OPAQUE_NAME {
            self.set_opaque(parents)?;
        } else if let Some(hidden) = last.strip_prefix(WHITEOUT_PREFIX) {
            let name = EntryName::new(hidden)?;
            let parent = self.parent(parents)?;
            self.put(parent, name, NodeKind::Whiteout, Attributes::default())?;
        } else {
            let name = EntryName::new(last)?;
            let parent = self.parent(parents)?;
            return self.apply_file(parent, name, entry, content);
        }
        Ok(None)
    }

    fn apply_file(
        &mut self,
        parent: NodeId,
        name: EntryName,
        entry: Entry,
        content: FileContent,
    ) -> Result<Option<NodeId>, Refusal> {
        let kind = match entry.kind {
            EntryKind::HardLink => return self.link(parent, name, entry).map(|()| None),
            EntryKind::Directory => return self.directory(parent, name, entry).map(|()| None),
            EntryKind::Regular | EntryKind::GnuSparse => NodeKind::Regular(content),
            EntryKind::Symlink => NodeKind::Symlink(symlink_target(&entry.link)?),
            EntryKind::CharDevice => char_device(device(&entry)?),
            EntryKind::BlockDevice => NodeKind::BlockDevice(device(&entry)?),
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::Other(flag) => {
                return Err(format!("type flag '{}' is not supported", flag.escape_ascii()).into());
            }
        };
        let mut attributes = Attributes::default();
        if kind != NodeKind::Whiteout {
            self.set_attributes(&mut attributes, entry)?;
        }
        if matches!(kind, NodeKind::Symlink(_)) {
            attributes.permissions = SYMLINK_PERMISSIONS;
        }
        self.put(parent, name, kind, attributes).map(Some)
    }

    /// Sets owner, permissions and time, and adds extended attributes.
    fn set_attributes(&mut self, attributes: &mut Attributes, entry: Entry) -> Result<(), Refusal> {
        attributes.permissions = u16::try_from(entry.mode & PERMISSION_BITS).unwrap_or_default();
        attributes.uid = id("uid", entry.uid)?;
        attributes.gid = id("gid", entry.gid)?;
        attributes.mtime = entry.mtime;
        let Self {
            limits,
            warnings,
            warnings_left_out,
            ..
        } = self;
        xattr::add(
            &mut attributes.xattrs,
            entry.xattrs,
            entry.kind,
            limits,
            |warning| {
                if warnings.len() < WARNINGS_KEPT {
                    warnings.push(format!("{}: {warning}", Printable(&entry.name)));
                } else {
                    *warnings_left_out += 1;
                }
            },
        )
    }

    fn directory(&mut self, parent: NodeId, name: EntryName, entry: Entry) -> Result<(), Refusal> {
        let existing = self.tree.child(parent, name.as_bytes());
        let existing = existing.filter(|id| self.tree.directory(*id).is_some());
        let mut attributes = match existing {
            Some(id) => std::mem::take(&mut self.tree.node_mut(id).attributes),
            None => Attributes::default(),
        };
        self.set_attributes(&mut attributes, entry)?;
        let Some(id) = existing else {
            self.put(
                parent,
                name,
                NodeKind::Directory(Directory::default()),
                attributes,
            )?;
            return Ok(());
        };
        self.tree.node_mut(id).attributes = attributes;
        if let Some(directory) = self.tree.directory_mut(id) {
            directory.implied = false;
        }
        Ok(())
    }

    fn link(&mut self, parent: NodeId, name: EntryName, mut entry: Entry) -> Result<(), Refusal> {
        let link = std::mem::take(&mut entry.link);
        let target = clean(&link, &self.limits)?;
        let about = |reason: &str| Refusal::from(format!("hard link to \"{}\" {reason}", Printable(&link)));
        let Some((last, above)) = target.split_last() else {
            return Err(about("would link a directory"));
        };
        let walk = Walk::new(&self.tree, &self.deferred_places, above, &self.limits)?;
        let own = self.tree.child(parent, name.as_bytes());
        if walk.id() == Some(parent) && *last == name.as_bytes() {
            return Err(about("is the link itself"));
        }
        if own.is_some_and(|own| walk.passes(own)) {
            return Err(about("leads below the link itself"));
        }
        let found = walk.id().and_then(|directory| self.tree.child(directory, last));
        match found.map(|id| (id, &self.tree.node(id).kind)) {
            Some((_, NodeKind::Directory(_))) => Err(about("would link a directory")),
            None | Some((_, NodeKind::Whiteout)) => {
                let last = EntryName::new(last)?;
                let directory = walk.id();
                let names = walk.names()?;
                self.defer(parent, name, directory, names, last)
            }
            Some((id, _)) => {
                self.relabel(id, entry)?;
                self.name(parent, name, id)
            }
        }
    }

    /// What containerd does to the inode after linking it: the link's header describes the shared inode anew.
    fn relabel(&mut self, id: NodeId, mut entry: Entry) -> Result<(), Refusal> {
        let node = self.tree.node_mut(id);
        let mut attributes = std::mem::take(&mut node.attributes);
        let is_symlink = matches!(node.kind, NodeKind::Symlink(_));
        entry.kind = match node.kind {
            NodeKind::Symlink(_) => EntryKind::Symlink,
            NodeKind::Regular(_) => EntryKind::Regular,
            _ => EntryKind::Fifo,
        };
        attributes.xattrs.remove(CAPABILITY);
        self.set_attributes(&mut attributes, entry)?;
        if is_symlink {
            attributes.permissions = SYMLINK_PERMISSIONS;
        }
        self.tree.node_mut(id).attributes = attributes;
        Ok(())
    }

    /// Notes a link whose target the layer does not have. A link to a link of that kind gets the first one's target.
    fn defer(
        &mut self,
        parent: NodeId,
        name: EntryName,
        target_directory: Option<NodeId>,
        mut target: Vec<EntryName>,
        last: EntryName,
    ) -> Result<(), Refusal> {
        let shared = target_directory.and_then(|id| self.deferred_places.get(&(id, last.clone())));
        let shared = shared.and_then(|index| self.deferred.get(*index)?.as_ref());
        if let Some(shared) = shared {
            target.clone_from(&shared.target);
        } else {
            target.push(last);
        }
        let (count, limit) = (self.deferred.len() + 1, self.limits.deferred_links);
        FormatError::check_limit("number of hard links to lower layers", count as u64, limit as u64)?;
        if let Some(directory) = self.tree.directory_mut(parent) {
            directory.entries.remove(&name);
        }
        self.vacate(parent, &name);
        self.deferred_places
            .insert((parent, name.clone()), self.deferred.len());
        self.deferred.push(Some(Deferred {
            place: (parent, name),
            target,
        }));
        Ok(())
    }

    /// The directory that cleaned names lead to, created as far as it is missing.
    fn parent(&mut self, path: &[&[u8]]) -> Result<NodeId, Refusal> {
        let walk = Walk::new(&self.tree, &self.deferred_places, path, &self.limits)?;
        let (mut id, missing) = walk.missing()?;
        for name in missing {
            let hides_lower = self.tree.child(id, name.as_bytes()).is_some();
            let directory = Directory {
                implied: true,
                opaque: hides_lower,
                ..Directory::default()
            };
            id = self.put(
                id,
                name,
                NodeKind::Directory(directory),
                Attributes::default_directory(),
            )?;
        }
        Ok(id)
    }

    fn set_opaque(&mut self, path: &[&[u8]]) -> Result<(), Refusal> {
        let id = self.parent(path)?;
        if let Some(directory) = self.tree.directory_mut(id) {
            directory.opaque = true;
        }
        Ok(())
    }

    /// Adds a node and gives it a name.
    fn put(
        &mut self,
        parent: NodeId,
        name: EntryName,
        kind: NodeKind,
        attributes: Attributes,
    ) -> Result<NodeId, Refusal> {
        let nodes = self.tree.nodes().len() as u64;
        FormatError::check_limit("number of entries", nodes, self.limits.entries)?;
        let id = self.tree.add(Node { kind, attributes });
        self.name(parent, name, id)?;
        Ok(id)
    }

    fn name(&mut self, parent: NodeId, name: EntryName, id: NodeId) -> Result<(), Refusal> {
        self.vacate(parent, &name);
        let directory = self
            .tree
            .directory_mut(parent)
            .ok_or("parent is not a directory")?;
        directory.entries.insert(name, id);
        Ok(())
    }

    /// Forgets a deferred link whose place a later entry takes.
    fn vacate(&mut self, parent: NodeId, name: &EntryName) {
        if self.deferred_places.is_empty() {
            return;
        }
        let index = self.deferred_places.remove(&(parent, name.clone()));
        if let Some(deferred) = index.and_then(|index| self.deferred.get_mut(index)) {
            *deferred = None;
        }
    }

    /// The finished tree and the warnings.
    pub(crate) fn finish(mut self) -> (LayerTree, Vec<String>) {
        if self.warnings_left_out > 0 {
            self.warnings.push(format!("and {} more", self.warnings_left_out));
        }
        let deferred_links = deferred_links(&self.tree, self.deferred);
        (
            LayerTree {
                tree: self.tree,
                deferred_links,
            },
            self.warnings,
        )
    }
}

/// Deferred links with full paths. A link in a directory that was replaced later has none and is dropped.
fn deferred_links(tree: &Tree, deferred: Vec<Option<Deferred>>) -> Vec<DeferredLink> {
    if deferred.is_empty() {
        return Vec::new();
    }
    let above = parents(tree);
    let full_path = |(mut id, name): (NodeId, EntryName)| {
        let mut path = vec![name];
        while id != NodeId::ROOT {
            let (parent, name) = above.get(id.0 as usize)?.as_ref()?;
            path.push((*name).clone());
            id = *parent;
        }
        path.reverse();
        Some(path)
    };
    let finish = |link: Deferred| {
        Some(DeferredLink {
            path: full_path(link.place)?,
            target: link.target,
        })
    };
    deferred.into_iter().flatten().filter_map(finish).collect()
}

/// Parent and name of every directory below the root that can still be reached.
fn parents(tree: &Tree) -> Vec<Option<(NodeId, &EntryName)>> {
    let mut above = vec![None; tree.nodes().len()];
    let mut todo = vec![NodeId::ROOT];
    while let Some(parent) = todo.pop() {
        for (name, id) in tree
            .directory(parent)
            .iter()
            .flat_map(|directory| &directory.entries)
        {
            if tree.directory(*id).is_some() {
                todo.push(*id);
                if let Some(slot) = above.get_mut(id.0 as usize) {
                    *slot = Some((parent, name));
                }
            }
        }
    }
    above
}

fn id(what: &'static str, value: i64) -> Result<u32, Refusal> {
    let value = u64::try_from(value).map_err(|_| Refusal::from(format!("{what} is negative")))?;
    FormatError::check_limit(what, value, ID_MAX)?;
    Ok(u32::try_from(value).unwrap_or_default())
}

fn symlink_target(target: &[u8]) -> Result<Vec<u8>, Refusal> {
    if target.is_empty() {
        return Err("symbolic link has no target".into());
    }
    FormatError::check_limit(
        "length of a symbolic link's target",
        target.len() as u64,
        LINK_TARGET_MAX,
    )?;
    Ok(target.to_vec())
}

fn device(entry: &Entry) -> Result<Device, Refusal> {
    let number = |what, value: i64, max: u32| {
        let value = u64::try_from(value).map_err(|_| Refusal::from(format!("{what} is negative")))?;
        FormatError::check_limit(what, value, u64::from(max))?;
        Ok::<u32, Refusal>(u32::try_from(value).unwrap_or_default())
    };
    Ok(Device {
        major: number("device major", entry.major, Device::MAX.major)?,
        minor: number("device minor", entry.minor, Device::MAX.minor)?,
    })
}

/// The overlay file system reads device 0:0 as a whiteout, wherever it comes from.
fn char_device(device: Device) -> NodeKind {
    if device == Device::default() {
        NodeKind::Whiteout
    } else {
        NodeKind::CharDevice(device)
    }
}
