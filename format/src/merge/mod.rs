//! Layer trees → image tree.
//!
//! The result is what overlayfs shows over the layers that containerd unpacked one by one. Layers are put on the tree
//! from the lowest to the highest: a whiteout removes a name; a directory over a directory takes its place and keeps its
//! children, unless it is opaque; everything else replaces what was there. Nodes are moved, not copied, out of the
//! layers. A node that loses its last name stays in the tree unnamed, because ids must not shift; [`crate::erofs::write_image`]
//! leaves it out.
//!
//! Two things look at the tree as it was before a layer: a hard link whose target is in a lower layer, and the
//! attributes of directories that a tar only implied (`implied.rs`). Both are looked up before anything of the layer is
//! put in place.

mod implied;
#[cfg(test)]
mod tests;

use crate::inode::Device;
use crate::name::Printable;
use crate::tree::{DeferredLink, Directory, ExtentSource};
use crate::{EntryName, FormatError, LayerTree, Limits, Node, NodeId, NodeKind, Tree};

/// Device that every layer tree calls its plain layer.
const LAYER_DEVICE: u16 = 1;

/// Stacks `layers`, lowest first; device *i* of the result is the plain layer of `layers[i - 1]`.
///
/// The result holds no whiteouts and no opaque or implied directories. Attributes of the layers' root directories and an
/// opaque mark on them are ignored, as containerd and overlayfs do.
///
/// # Errors
/// [`FormatError::Stack`] naming the layer that cannot be put on those below it, [`FormatError::Limit`] when there are
/// too many layers, or more nodes than one layer may have entries.
pub fn merge(layers: Vec<LayerTree>, limits: &Limits) -> Result<Tree, FormatError> {
    let bound = limits.layers.min(u16::MAX.into());
    FormatError::check_limit("number of layers", layers.len() as u64, bound as u64)?;
    let mut tree = Tree::new();
    for (device, mut layer) in (LAYER_DEVICE..).zip(layers) {
        let links = resolve_links(&tree, &layer.deferred_links, device, limits)?;
        implied::settle(&tree, &mut layer.tree, limits)?;
        let mut overlay = Overlay::new(&mut tree, layer.tree, device, limits);
        overlay.put_layer()?;
        for (link, target) in layer.deferred_links.iter().zip(links) {
            overlay.put_link(link, target)?;
        }
    }
    Ok(tree)
}

/// Target of each link in the tree below the layer.
fn resolve_links(
    tree: &Tree,
    links: &[DeferredLink],
    device: u16,
    limits: &Limits,
) -> Result<Vec<NodeId>, FormatError> {
    FormatError::check_limit(
        "number of deferred hard links",
        links.len() as u64,
        limits.deferred_links as u64,
    )?;
    let targets = links.iter().map(|link| {
        let found = link
            .target
            .iter()
            .try_fold(NodeId::ROOT, |at, name| tree.child(at, name.as_bytes()));
        let reason = match found {
            Some(id) if tree.directory(id).is_none() => return Ok(id),
            Some(_) => "is a directory",
            None => "is neither in this layer nor in a lower one",
        };
        let reason = format!(
            "target {} of the hard link {} {reason}",
            shown(&link.target),
            shown(&link.path)
        );
        Err(FormatError::Stack {
            layer: device.into(),
            reason,
        })
    });
    targets.collect()
}

/// A path for a message.
fn shown(path: &[EntryName]) -> String {
    let names: Vec<_> = path.iter().map(EntryName::as_bytes).collect();
    format!("\"/{}\"", Printable(&names.join(&b'/')))
}

/// Puts one layer on a tree.
struct Overlay<'a> {
    tree: &'a mut Tree,
    layer: Tree,
    /// Where nodes of the layer went.
    moved: Vec<Option<NodeId>>,
    /// Directories of the layer whose entries are still to be put, with their place in the tree and their depth.
    pending: Vec<(NodeId, NodeId, usize)>,
    device: u16,
    limits: &'a Limits,
}

impl<'a> Overlay<'a> {
    fn new(tree: &'a mut Tree, layer: Tree, device: u16, limits: &'a Limits) -> Self {
        Self {
            tree,
            moved: vec![None; layer.nodes().len()],
            layer,
            pending: vec![(NodeId::ROOT, NodeId::ROOT, 0)],
            device,
            limits,
        }
    }

    fn put_layer(&mut self) -> Result<(), FormatError> {
        self.moved[0] = Some(NodeId::ROOT);
        while let Some((from, into, depth)) = self.pending.pop() {
            FormatError::check_limit("depth of a directory", depth as u64, self.limits.depth as u64)?;
            let directory = self
                .layer
                .directory_mut(from)
                .map(std::mem::take)
                .unwrap_or_default();
            for (name, id) in directory.entries {
                self.put(into, name, id, depth)?;
            }
        }
        Ok(())
    }

    /// Puts node `id` of the layer as `name` into directory `parent` of the tree.
    fn put(&mut self, parent: NodeId, name: EntryName, id: NodeId, depth: usize) -> Result<(), FormatError> {
        if is_whiteout(&self.layer.node(id).kind) {
            self.entries(parent).entries.remove(name.as_bytes());
            return Ok(());
        }
        let target = match (self.moved[id.0 as usize], self.layer.directory(id)) {
            (Some(_), Some(_)) => return Err(self.refuse(format!("directory \"{name}\" has two names"))),
            (Some(target), None) => target,
            (None, Some(directory)) => {
                let below = if directory.opaque {
                    None
                } else {
                    self.tree.child(parent, name.as_bytes())
                };
                let target = self.move_directory(id, below)?;
                self.pending.push((id, target, depth + 1));
                target
            }
            (None, None) => self.move_node(id)?,
        };
        self.moved[id.0 as usize] = Some(target);
        self.entries(parent).entries.insert(name, target);
        Ok(())
    }

    /// Gives the attributes of a directory of the layer to the directory `below` it, or to a new one.
    fn move_directory(&mut self, id: NodeId, below: Option<NodeId>) -> Result<NodeId, FormatError> {
        let attributes = std::mem::take(&mut self.layer.node_mut(id).attributes);
        match below.filter(|below| self.tree.directory(*below).is_some()) {
            Some(below) => {
                self.tree.node_mut(below).attributes = attributes;
                Ok(below)
            }
            None => self.add(Node {
                kind: NodeKind::Directory(Directory::default()),
                attributes,
            }),
        }
    }

    fn move_node(&mut self, id: NodeId) -> Result<NodeId, FormatError> {
        let place = self.layer.node_mut(id);
        let mut node = Node {
            kind: std::mem::replace(&mut place.kind, NodeKind::Fifo),
            attributes: std::mem::take(&mut place.attributes),
        };
        if let NodeKind::Regular(content) = &mut node.kind {
            for extent in &mut content.extents {
                if let ExtentSource::Plain { device, .. } = &mut extent.source {
                    if *device != LAYER_DEVICE {
                        return Err(self.refuse(format!("has content on device {device}, but only device 1")));
                    }
                    *device = self.device;
                }
            }
        }
        self.add(node)
    }

    fn add(&mut self, node: Node) -> Result<NodeId, FormatError> {
        let count = self.tree.nodes().len() as u64 + 1;
        FormatError::check_limit("number of nodes in an image", count, self.limits.entries)?;
        Ok(self.tree.add(node))
    }

    /// Puts a hard link to a node of a lower layer in its place.
    fn put_link(&mut self, link: &DeferredLink, target: NodeId) -> Result<(), FormatError> {
        let parent = link.path.split_last().and_then(|(name, parents)| {
            let parent = parents
                .iter()
                .try_fold(NodeId::ROOT, |at, name| self.tree.child(at, name.as_bytes()))?;
            Some((name.clone(), self.tree.directory_mut(parent)?))
        });
        match parent {
            Some((name, parent)) => {
                parent.entries.insert(name, target);
                Ok(())
            }
            None => Err(self.refuse(format!(
                "there is no directory for the hard link {}",
                shown(&link.path)
            ))),
        }
    }

    /// The directory at `id`, which every caller got from a directory.
    fn entries(&mut self, id: NodeId) -> &mut Directory {
        self.tree
            .directory_mut(id)
            .expect("only directories are put onto the pending list")
    }

    fn refuse(&self, reason: String) -> FormatError {
        FormatError::Stack {
            layer: self.device.into(),
            reason,
        }
    }
}

/// Whether overlayfs takes a node for a whiteout.
fn is_whiteout(kind: &NodeKind) -> bool {
    match kind {
        NodeKind::Whiteout => true,
        NodeKind::CharDevice(device) => *device == Device::default(),
        _ => false,
    }
}
