//! Names in a tar → places in the tree of the layer.
//!
//! A name is first cleaned lexically, as containerd does with Go's `filepath.Clean`. Its directories are then walked in
//! the layer's own tree: a symbolic link on the way is followed as if the layer were the root of the file system, so an
//! absolute target begins again at the root and `..` never leaves it. What the layer does not have is only remembered;
//! the builder creates it when an entry really lands there. Lower layers are not looked at, as in containerd, which
//! unpacks every layer into an empty directory.

use std::collections::BTreeMap;

use super::refusal::Refusal;
use crate::name::Printable;
use crate::{EntryName, FormatError, Limits, NodeId, NodeKind, Tree};

/// Symbolic links that one path may pass, as in containerd.
const LINKS_MAX: usize = 255;

/// Hard links to lower layers by place: no tree node stands for them.
pub(super) type DeferredPlaces = BTreeMap<(NodeId, EntryName), usize>;

/// The components of a name after lexical cleaning; none for the root itself.
///
/// Refuses a relative name that climbs above the root. In an absolute name `..` stops at the root.
pub(super) fn clean<'a>(name: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, Refusal> {
    FormatError::check_limit("length of a path", name.len() as u64, limits.path_len as u64)?;
    let absolute = name.starts_with(b"/");
    let mut components = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if components.pop().is_some() || absolute => {}
            b".." => return Err("path traversal: the name climbs above the root of the layer".into()),
            name => components.push(name),
        }
    }
    Ok(components)
}

/// One directory on the way.
#[derive(Clone, Copy, Debug)]
struct Step<'a> {
    name: &'a [u8],
    /// `None` when the layer has no directory there, or only a whiteout.
    id: Option<NodeId>,
    /// Length of the path down to here.
    path_len: usize,
}

/// A directory that the layer has or could have.
#[derive(Clone, Debug, Default)]
pub(super) struct Walk<'a> {
    steps: Vec<Step<'a>>,
}

impl<'a> Walk<'a> {
    /// Walks `path` from the root.
    pub(super) fn new(
        tree: &'a Tree,
        deferred: &DeferredPlaces,
        path: &[&'a [u8]],
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        let mut walk = Self::default();
        let mut todo: Vec<&'a [u8]> = path.iter().rev().copied().collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match name {
                b"" | b"." => {}
                b".." => drop(walk.steps.pop()),
                name => {
                    if let Some(target) = walk.enter(tree, deferred, name)? {
                        links += 1;
                        if links > LINKS_MAX {
                            return Err("path passes too many symbolic links".into());
                        }
                        todo.extend(target.split(|byte| *byte == b'/').rev());
                    }
                    walk.check(&todo, limits)?;
                }
            }
        }
        Ok(walk)
    }

    /// Goes down to `name`; gives the target instead when it is a symbolic link.
    fn enter(
        &mut self,
        tree: &'a Tree,
        deferred: &DeferredPlaces,
        name: &'a [u8],
    ) -> Result<Option<&'a [u8]>, Refusal> {
        let parent = self.id();
        let child = parent.and_then(|parent| tree.child(parent, name));
        let id = match child.map(|id| (id, &tree.node(id).kind)) {
            None => {
                if let (Some(parent), false) = (parent, deferred.is_empty())
                    && deferred.contains_key(&(parent, EntryName::new(name)?))
                {
                    return Err(not_a_directory(name));
                }
                None
            }
            Some((id, NodeKind::Directory(_))) => Some(id),
            Some((_, NodeKind::Whiteout)) => None,
            Some((_, NodeKind::Symlink(target))) => {
                if target.starts_with(b"/") {
                    self.steps.clear();
                }
                return Ok(Some(target));
            }
            Some(_) => return Err(not_a_directory(name)),
        };
        let above = self.steps.last().map_or(0, |step| step.path_len);
        let path_len = above + 1 + name.len();
        self.steps.push(Step { name, id, path_len });
        Ok(None)
    }

    fn check(&self, todo: &[&[u8]], limits: &Limits) -> Result<(), FormatError> {
        let len = self.steps.last().map_or(0, |step| step.path_len);
        FormatError::check_limit(
            "depth of a directory",
            self.steps.len() as u64,
            limits.depth as u64,
        )?;
        FormatError::check_limit("length of a path", len as u64, limits.path_len as u64)?;
        FormatError::check_limit(
            "components of a path behind symbolic links",
            todo.len() as u64,
            limits.path_len as u64,
        )
    }

    /// The directory reached, if the layer has it.
    pub(super) fn id(&self) -> Option<NodeId> {
        match self.steps.last() {
            None => Some(NodeId::ROOT),
            Some(step) => step.id,
        }
    }

    /// Whether the way leads through `id`.
    pub(super) fn passes(&self, id: NodeId) -> bool {
        self.steps.iter().any(|step| step.id == Some(id))
    }

    /// The deepest directory that exists, and the names that are missing below it.
    pub(super) fn missing(&self) -> Result<(NodeId, Vec<EntryName>), Refusal> {
        let known = self.steps.iter().take_while(|step| step.id.is_some()).count();
        let deepest = self.steps[..known]
            .last()
            .and_then(|step| step.id)
            .unwrap_or(NodeId::ROOT);
        let missing = self.steps[known..].iter().map(|step| EntryName::new(step.name));
        Ok((deepest, missing.collect::<Result<_, _>>()?))
    }

    /// All names from the root.
    pub(super) fn names(&self) -> Result<Vec<EntryName>, Refusal> {
        let names = self.steps.iter().map(|step| EntryName::new(step.name));
        Ok(names.collect::<Result<_, _>>()?)
    }
}

fn not_a_directory(name: &[u8]) -> Refusal {
    format!("\"{}\" on its path is not a directory", Printable(name)).into()
}
