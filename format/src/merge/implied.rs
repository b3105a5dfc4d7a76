//! Attributes of directories that a tar only implied.
//!
//! When an entry lies in a directory that its own tar never described, containerd's unpack creates the directory with
//! the mode, owner, times and extended attributes of the directory at the same path in the lower layers. It follows
//! symbolic links on that path, confined to the root: with `/lib -> usr/lib` below, an entry `lib/x` makes a real
//! directory `lib` that looks like `usr/lib`. Without a lower directory the scan's default attributes stay.

use crate::inode::Attributes;
use crate::{FormatError, Limits, NodeId, NodeKind, Tree};

/// Most symbolic links on one path, as in the path resolution that containerd uses.
const LINKS_MAX: usize = 255;

/// Sets the attributes of all implied directories of `layer` by the directories of `lower`.
pub(super) fn settle(lower: &Tree, layer: &mut Tree, limits: &Limits) -> Result<(), FormatError> {
    let implied =
        |node: &crate::Node| matches!(&node.kind, NodeKind::Directory(directory) if directory.implied);
    if !layer.nodes().iter().any(implied) {
        return Ok(());
    }
    let mut places = Places::new(lower, limits);
    let mut settled: Vec<(NodeId, Attributes)> = Vec::new();
    let mut copied = 0;
    let mut pending = vec![(NodeId::ROOT, Places::ROOT, 0)];
    while let Some((id, place, depth)) = pending.pop() {
        FormatError::check_limit("depth of a directory", depth, limits.depth as u64)?;
        let Some(directory) = layer.directory(id) else {
            continue;
        };
        for (name, child) in &directory.entries {
            let Some(child_directory) = layer.directory(*child) else {
                continue;
            };
            let Some(found) = places.follow(place, name.as_bytes())? else {
                continue;
            };
            if child_directory.implied {
                let attributes = places.attributes(found);
                copied += attributes
                    .xattrs
                    .iter()
                    .map(|(name, value)| (name.len() + value.len()) as u64)
                    .sum::<u64>();
                settled.push((*child, attributes));
                FormatError::check_limit(
                    "length of copied extended attributes",
                    copied,
                    limits.literal_bytes,
                )?;
            }
            pending.push((*child, found, depth + 1));
        }
    }
    for (id, attributes) in settled {
        layer.node_mut(id).attributes = attributes;
    }
    Ok(())
}

/// Directories of the lower tree with the way by which they were reached, so that `..` can go back.
struct Places<'a> {
    lower: &'a Tree,
    /// Directory and position of its parent in this list.
    list: Vec<(NodeId, usize)>,
    /// Components that are followed: each costs a step, so that links to links cannot hold the merge up.
    steps: u64,
    steps_max: u64,
}

impl<'a> Places<'a> {
    /// Position of the root directory.
    const ROOT: usize = 0;

    fn new(lower: &'a Tree, limits: &Limits) -> Self {
        Self {
            lower,
            list: vec![(NodeId::ROOT, Self::ROOT)],
            steps: 0,
            steps_max: limits.entries,
        }
    }

    fn attributes(&self, place: usize) -> Attributes {
        self.lower.node(self.list[place].0).attributes.clone()
    }

    /// The directory that `name` leads to from `start`, if it leads to one.
    fn follow(&mut self, start: usize, name: &'a [u8]) -> Result<Option<usize>, FormatError> {
        let mut place = start;
        let mut links = 0;
        let mut rest = vec![name];
        while let Some(component) = rest.pop() {
            self.steps += 1;
            FormatError::check_limit(
                "number of steps through symbolic links",
                self.steps,
                self.steps_max,
            )?;
            let (id, parent) = self.list[place];
            match component {
                b"" | b"." => continue,
                b".." => {
                    place = parent;
                    continue;
                }
                _ => {}
            }
            let Some(child) = self.lower.child(id, component) else {
                return Ok(None);
            };
            match &self.lower.node(child).kind {
                NodeKind::Directory(_) => {
                    self.list.push((child, place));
                    place = self.list.len() - 1;
                }
                NodeKind::Symlink(target) if links < LINKS_MAX => {
                    links += 1;
                    if target.first() == Some(&b'/') {
                        place = Self::ROOT;
                    }
                    rest.extend(target.rsplit(|byte| *byte == b'/'));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(place))
    }
}
