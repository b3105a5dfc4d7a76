//! Promises of a merge: named cases here, a simple model to disagree with in `model`.

mod cases;
mod model;

use crate::erofs::testing::{name, paths};
use crate::tree::DeferredLink;
use crate::{EntryName, FormatError, LayerTree, Limits, Node, NodeKind, Tree};

fn merged(layers: Vec<LayerTree>) -> Result<Tree, FormatError> {
    super::merge(layers, &Limits::default())
}

/// The components of `/a/b`.
fn components(path: &str) -> Vec<EntryName> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(name)
        .collect()
}

fn deferred(path: &str, target: &str) -> DeferredLink {
    DeferredLink {
        path: components(path),
        target: components(target),
    }
}

/// Node at a path.
fn at<'a>(tree: &'a Tree, path: &str) -> Option<&'a Node> {
    paths(tree).get(path.as_bytes()).map(|id| tree.node(*id))
}

/// Paths of a tree but the root, as text.
fn listed(tree: &Tree) -> Vec<String> {
    let paths = paths(tree);
    paths
        .keys()
        .filter(|path| !path.is_empty())
        .map(|path| String::from_utf8(path.clone()).unwrap())
        .collect()
}

/// Whether a node may be in an image tree.
fn is_final(node: &Node) -> bool {
    match &node.kind {
        NodeKind::Directory(directory) => !directory.opaque && !directory.implied,
        NodeKind::Whiteout => false,
        _ => true,
    }
}
