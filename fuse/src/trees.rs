//! Image trees as file systems: the `fuse` front end.
//!
//! Two namespaces show [`ImageTree`]s: [`OnlyTree`] has one as its root, [`TreeDirectory`] has many:
//!
//! ```text
//! /trees/<64 hex digits of the ChainID>/…
//! ```

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Bound, Range};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use nix::errno::Errno;
use sluice_format::{ChainId, Digest};

use crate::Error;
use crate::filesystem::{
    Answer, Attributes, DirEntry, Entry, Lifetime, Namespace, OpenMode, Statistics, dots, fixed_root,
};
use crate::node::{self, TreeNumber};

pub use crate::image_tree::{ImageTree, write_tree_file};

/// Name of the directory that holds the trees of a shared session.
const DIRECTORY: &str = "trees";

/// How the nids of a tree become node numbers.
#[derive(Clone, Copy, Debug)]
enum Numbering {
    /// The tree is alone in its session.
    Only { root_nid: u64 },
    /// One tree of many.
    Shared(TreeNumber),
}

impl Numbering {
    fn node(self, nid: u64) -> Result<u64, Errno> {
        match self {
            Self::Only { root_nid } => Ok(node::in_only_tree(nid, root_nid)),
            Self::Shared(tree) => tree.node(nid).ok_or(Errno::EOVERFLOW),
        }
    }
}

/// Operations of a namespace on one tree, with node numbers in the answers and nids in the questions.
#[derive(Debug)]
struct TreeView<'a> {
    tree: &'a ImageTree,
    numbering: Numbering,
}

impl TreeView<'_> {
    fn attributes(&self, nid: u64) -> Result<Attributes, Errno> {
        let inode = self.tree.inode(nid)?;
        Ok(Attributes {
            node: self.numbering.node(nid)?,
            kind: inode.kind,
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            nlink: inode.nlink,
            size: inode.size,
        })
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        let nid = self.tree.lookup(parent, name)?;
        let found = nid.map(|nid| self.attributes(nid)).transpose()?;
        let lifetime = Lifetime::Forever;
        Ok(Entry { found, lifetime })
    }

    fn read_dir(
        &self,
        nid: u64,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let mut failed = None;
        let fed = self.tree.read_dir(nid, cookie, &mut |next_cookie, entry| {
            let node = match self.numbering.node(entry.nid) {
                Ok(node) => node,
                Err(errno) => {
                    failed = Some(errno);
                    return false;
                }
            };
            each(DirEntry {
                name: entry.name,
                node,
                file_type: dt_of_erofs(entry.file_type),
                next_cookie,
                lifetime: Lifetime::Forever,
            })
        });
        fed?;
        failed.map_or(Ok(()), Err)
    }
}

/// `DT_` constant of an EROFS directory entry's file type (`include/linux/fs_types.h`, `FT_` constants).
fn dt_of_erofs(file_type: u8) -> u8 {
    match file_type {
        1 => libc::DT_REG,
        2 => libc::DT_DIR,
        3 => libc::DT_CHR,
        4 => libc::DT_BLK,
        5 => libc::DT_FIFO,
        6 => libc::DT_SOCK,
        7 => libc::DT_LNK,
        _ => libc::DT_UNKNOWN,
    }
}

/// A session whose root is one image tree.
#[derive(Debug)]
pub struct OnlyTree {
    tree: Arc<ImageTree>,
}

impl OnlyTree {
    /// Shows `tree` as the root.
    pub fn new(tree: Arc<ImageTree>) -> Self {
        Self { tree }
    }

    fn view(&self) -> TreeView<'_> {
        let root_nid = self.tree.root();
        TreeView {
            tree: &self.tree,
            numbering: Numbering::Only { root_nid },
        }
    }

    fn nid(&self, node: u64) -> Result<u64, Errno> {
        node::nid_in_only_tree(node, self.tree.root()).ok_or(Errno::ESTALE)
    }
}

impl Namespace for OnlyTree {
    fn open_mode(&self) -> OpenMode {
        OpenMode::Unasked
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        self.view().lookup(self.nid(parent)?, name)
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        self.view().attributes(self.nid(node)?)
    }

    fn read_dir(
        &self,
        node: u64,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        self.view().read_dir(self.nid(node)?, cookie, each)
    }

    fn read(&self, node: u64, file: Range<u64>) -> Result<Answer, Errno> {
        self.tree.read(self.nid(node)?, file)
    }

    fn read_link(&self, node: u64) -> Result<Vec<u8>, Errno> {
        self.tree.read_link(self.nid(node)?)
    }

    fn xattr(&self, node: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.tree.xattr(self.nid(node)?, name)
    }

    fn xattr_names(&self, node: u64) -> Result<Vec<u8>, Errno> {
        self.tree.xattr_names(self.nid(node)?)
    }

    fn statistics(&self) -> Statistics {
        let content_len = self.tree.content_len();
        Statistics { content_len }
    }
}

#[derive(Clone, Debug)]
struct SharedTree {
    chain_id: ChainId,
    tree: Arc<ImageTree>,
}

/// A session that shows any number of image trees.
#[derive(Debug, Default)]
pub struct TreeDirectory {
    trees: RwLock<BTreeMap<TreeNumber, SharedTree>>,
}

/// What a node number of a [`TreeDirectory`] means.
enum Place {
    Root,
    Trees,
    Tree(TreeNumber, Arc<ImageTree>, u64),
}

impl TreeDirectory {
    /// A directory without trees.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows a tree. One that is shown already stays as it is.
    ///
    /// # Errors
    /// [`Error::Collision`] when another tree has the same number, which takes 2^-32 bad luck per pair.
    pub fn insert(&self, chain_id: ChainId, tree: Arc<ImageTree>) -> Result<(), Error> {
        let mut trees = self
            .trees
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let number = TreeNumber::of(&chain_id.0);
        let shown = trees.entry(number).or_insert(SharedTree { chain_id, tree });
        if shown.chain_id == chain_id {
            Ok(())
        } else {
            let what = format!("image tree {chain_id}");
            Err(Error::Collision { what })
        }
    }

    /// Stops showing a tree.
    pub fn remove(&self, chain_id: ChainId) {
        let mut trees = self
            .trees
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        trees.remove(&TreeNumber::of(&chain_id.0));
    }

    /// Path of a tree below the root of the session.
    pub fn path_of(chain_id: ChainId) -> String {
        format!("{DIRECTORY}/{}", chain_id.0.to_hex())
    }

    // A panic cannot leave the map half changed, so a poisoned lock is as good as any.
    fn trees(&self) -> RwLockReadGuard<'_, BTreeMap<TreeNumber, SharedTree>> {
        self.trees.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn place(&self, node: u64) -> Result<Place, Errno> {
        match node {
            node::ROOT => Ok(Place::Root),
            node::FIXED_DIRECTORY => Ok(Place::Trees),
            _ => {
                let (number, nid) = TreeNumber::split(node).ok_or(Errno::ESTALE)?;
                let shown = self.trees().get(&number).cloned().ok_or(Errno::ESTALE)?;
                Ok(Place::Tree(number, shown.tree, nid))
            }
        }
    }

    /// The tree and nid of a node that must be in a tree.
    fn in_tree(&self, node: u64, otherwise: Errno) -> Result<(Arc<ImageTree>, u64), Errno> {
        match self.place(node)? {
            Place::Tree(_, tree, nid) => Ok((tree, nid)),
            Place::Root | Place::Trees => Err(otherwise),
        }
    }

    fn lookup_tree(&self, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        let digest = std::str::from_utf8(name)
            .ok()
            .and_then(|hex| Digest::from_hex(hex).ok());
        let Some(digest) = digest else { return Ok(None) };
        let number = TreeNumber::of(&digest);
        let shown = self
            .trees()
            .get(&number)
            .filter(|shown| shown.chain_id.0 == digest)
            .cloned();
        let root = shown.map(|shown| view(&shown.tree, number).attributes(shown.tree.root()));
        root.transpose()
    }

    fn read_trees(&self, cookie: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<(), Errno> {
        if !dots(node::FIXED_DIRECTORY, node::ROOT, cookie, each) {
            return Ok(());
        }
        // Three above the number that was fed last: cookies do not move when other trees come and go.
        let from = cookie
            .checked_sub(3)
            .map_or(Bound::Unbounded, |last| Bound::Excluded(TreeNumber::new(last)));
        for (number, shown) in self.trees().range((from, Bound::Unbounded)) {
            let hex = shown.chain_id.0.to_hex();
            let entry = DirEntry {
                name: hex.as_bytes(),
                node: number.node(shown.tree.root()).ok_or(Errno::EOVERFLOW)?,
                file_type: libc::DT_DIR,
                next_cookie: number.value() + 3,
                lifetime: Lifetime::Brief,
            };
            if !each(entry) {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn view(tree: &ImageTree, number: TreeNumber) -> TreeView<'_> {
    TreeView {
        tree,
        numbering: Numbering::Shared(number),
    }
}

impl Namespace for TreeDirectory {
    fn open_mode(&self) -> OpenMode {
        OpenMode::Unasked
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        let found = match self.place(parent)? {
            Place::Tree(number, tree, nid) => return view(&tree, number).lookup(nid, name),
            Place::Trees => self.lookup_tree(name)?,
            Place::Root if name == DIRECTORY.as_bytes() => {
                Some(Attributes::fixed_directory(node::FIXED_DIRECTORY))
            }
            Place::Root => None,
        };
        let lifetime = Lifetime::Brief;
        Ok(Entry { found, lifetime })
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        match self.place(node)? {
            Place::Tree(number, tree, nid) => view(&tree, number).attributes(nid),
            Place::Root | Place::Trees => Ok(Attributes::fixed_directory(node)),
        }
    }

    fn read_dir(
        &self,
        node: u64,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        match self.place(node)? {
            Place::Tree(number, tree, nid) => view(&tree, number).read_dir(nid, cookie, each),
            Place::Trees => self.read_trees(cookie, each),
            Place::Root => {
                fixed_root(DIRECTORY, cookie, each);
                Ok(())
            }
        }
    }

    fn read(&self, node: u64, file: Range<u64>) -> Result<Answer, Errno> {
        let (tree, nid) = self.in_tree(node, Errno::EISDIR)?;
        tree.read(nid, file)
    }

    fn read_link(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let (tree, nid) = self.in_tree(node, Errno::EINVAL)?;
        tree.read_link(nid)
    }

    fn xattr(&self, node: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let (tree, nid) = self.in_tree(node, Errno::ENODATA)?;
        tree.xattr(nid, name)
    }

    fn xattr_names(&self, node: u64) -> Result<Vec<u8>, Errno> {
        match self.place(node)? {
            Place::Tree(_, tree, nid) => tree.xattr_names(nid),
            Place::Root | Place::Trees => Ok(Vec::new()),
        }
    }

    fn statistics(&self) -> Statistics {
        let content_len = self.trees().values().map(|shown| shown.tree.content_len()).sum();
        Statistics { content_len }
    }
}
