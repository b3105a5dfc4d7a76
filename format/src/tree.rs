//! File trees in memory: what a tar scan builds, what EROFS writing and reading convert, and what merging stacks.
//!
//! Nodes live in one vector and are named by [`NodeId`]; a directory maps names to ids, so a hard link is two names
//! with one id. Content is never held here: a regular file says where its bytes lie in a plain layer ([`Extent`]).
//! Only bytes that no aligned block of the plain layer holds (parts of odd sparse files) are kept as literals.

use std::collections::BTreeMap;

use crate::inode::{Attributes, Device};
use crate::name::EntryName;

/// Position of a node in its [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The root directory of every tree.
    pub const ROOT: Self = Self(0);
}

/// One file object with its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Owner, permissions, time, extended attributes.
    pub attributes: Attributes,
}

/// The kinds of file objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    Regular(FileContent),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// "This name is deleted": in overlayfs form a character device 0:0. Only in layer trees.
    Whiteout,
}

/// Names of a directory, and how it stacks on lower layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Children by name, in byte order.
    pub entries: BTreeMap<EntryName, NodeId>,
    /// Hides all children of the same directory in lower layers. In overlayfs form the extended attribute
    /// `trusted.overlay.opaque=y`, which is never in [`Attributes::xattrs`]. Only in layer trees.
    pub opaque: bool,
    /// The tar never described this directory, it only lies on a path: in a merge the lower directory's attributes win.
    /// Only in layer trees.
    pub implied: bool,
}

/// Size of a regular file and where its bytes are. Bytes that no extent covers are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileContent {
    /// Length of the file in bytes.
    pub size: u64,
    /// Sorted by `file_off`, not overlapping, none empty, all within `size`.
    pub extents: Vec<Extent>,
}

/// A run of bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the run begins in the file. A multiple of [`crate::erofs::BLOCK_SIZE`].
    pub file_off: u64,
    /// Length in bytes. A multiple of the block size unless the run ends the file.
    pub len: u64,
    /// Where its bytes are.
    pub source: ExtentSource,
}

/// Where the bytes of an [`Extent`] are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentSource {
    /// In a plain layer.
    Plain {
        /// Device number of the layer: 1 in a layer tree; its position from the bottom, from 1, in an image tree.
        device: u16,
        /// Offset in the plain layer, a multiple of [`crate::erofs::BLOCK_SIZE`].
        plain_off: u64,
    },
    /// Here, because they are aligned nowhere in the plain layer.
    Literal(Vec<u8>),
}

/// A tree of nodes. The node at [`NodeId::ROOT`] is always a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// An empty root directory with [`Attributes::default_directory`].
    pub fn new() -> Self {
        let kind = NodeKind::Directory(Directory::default());
        Self {
            nodes: vec![Node {
                kind,
                attributes: Attributes::default_directory(),
            }],
        }
    }

    /// Adds a node that no directory names yet.
    ///
    /// # Panics
    /// After 2^32 nodes; [`crate::Limits::entries`] keeps every builder far below that.
    pub fn add(&mut self, node: Node) -> NodeId {
        let id = u32::try_from(self.nodes.len()).expect("trees are limited to far fewer than 2^32 nodes");
        self.nodes.push(node);
        NodeId(id)
    }

    /// The node of an id that this tree gave out.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The node of an id that this tree gave out, to change it.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// All nodes ever added, in order of their ids; some may have lost their last name.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The directory at `id`, or `None` when it is another kind of node.
    pub fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The directory at `id`, to change it.
    pub fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.node_mut(id).kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The child of directory `parent` called `name`.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory(parent)?.entries.get(name).copied()
    }
}

/// A hard link whose target is in a lower layer, so that only a merge can resolve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeferredLink {
    /// Components of the new name, from the root.
    pub path: Vec<EntryName>,
    /// Components of the target, from the root.
    pub target: Vec<EntryName>,
}

/// The tree of one layer with what only a merge can finish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerTree {
    /// Entries of the layer; device 1 is its plain layer.
    pub tree: Tree,
    /// Hard links to lower layers, in tar order.
    pub deferred_links: Vec<DeferredLink>,
}
