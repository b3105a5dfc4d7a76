//! What two trees differ in, by path.
//!
//! Trees are compared by what a reader of them sees: names, kinds, attributes, content places and which names share an
//! inode; not by node ids, which depend on how a tree was built.

use std::collections::HashMap;

use sluice_format::name::Printable;
use sluice_format::tree::{Directory, Extent, ExtentSource};
use sluice_format::{EntryName, LayerTree, Node, NodeId, NodeKind, Tree};

/// Differences that are listed; the first ones tell the cause.
const LISTED_MAX: usize = 20;

/// Differences of two layer trees.
pub(super) fn layer_differences(expected: &LayerTree, found: &LayerTree) -> Vec<String> {
    let mut differences = differences(&expected.tree, &found.tree);
    if expected.deferred_links != found.deferred_links {
        differences.push("hard links to lower layers differ".to_owned());
    }
    differences
}

/// Differences of two trees, at most [`LISTED_MAX`].
pub(super) fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut comparison = Comparison {
        expected,
        found,
        same: HashMap::new(),
        differences: Vec::new(),
    };
    comparison.run();
    comparison.differences
}

struct Comparison<'a> {
    expected: &'a Tree,
    found: &'a Tree,
    /// Nodes that stand for each other, by the expected one.
    same: HashMap<NodeId, NodeId>,
    differences: Vec<String>,
}

impl Comparison<'_> {
    fn run(&mut self) {
        let mut pending = vec![(NodeId::ROOT, NodeId::ROOT, Vec::new())];
        // Each found node stands for one expected node only; a second one is a link that was lost or added.
        let mut taken = HashMap::new();
        while let Some((expected, found, path)) = pending.pop() {
            if self.differences.len() >= LISTED_MAX {
                return;
            }
            let first = *self.same.entry(expected).or_insert(found);
            let back = *taken.entry(found).or_insert(expected);
            if first != found || back != expected {
                self.report(&path, "shares its inode with other names");
                continue;
            }
            self.compare(&path, self.expected.node(expected), self.found.node(found));
            if let (Some(expected), Some(found)) =
                (self.expected.directory(expected), self.found.directory(found))
            {
                pending.extend(self.children(&path, expected, found));
            }
        }
    }

    fn report(&mut self, path: &[u8], what: &str) {
        let path = if path.is_empty() { &b"/"[..] } else { path };
        self.differences.push(format!("{}: {what}", Printable(path)));
    }

    fn compare(&mut self, path: &[u8], expected: &Node, found: &Node) {
        if expected.attributes != found.attributes {
            let what = format!(
                "attributes are {:?}, expected {:?}",
                found.attributes, expected.attributes
            );
            self.report(path, &what);
        }
        match (&expected.kind, &found.kind) {
            (NodeKind::Directory(a), NodeKind::Directory(b)) => self.compare_stacking(path, a, b),
            (NodeKind::Regular(a), NodeKind::Regular(b)) => {
                if a.size != b.size {
                    self.report(path, &format!("has {} bytes, expected {}", b.size, a.size));
                } else if joined(&a.extents) != joined(&b.extents) {
                    self.report(path, "its content lies elsewhere");
                }
            }
            (a, b) if a != b => {
                self.report(
                    path,
                    &format!("is a {}, expected a {}", kind_name(b), kind_name(a)),
                );
            }
            _ => {}
        }
    }

    fn compare_stacking(&mut self, path: &[u8], expected: &Directory, found: &Directory) {
        if (expected.opaque, expected.implied) != (found.opaque, found.implied) {
            self.report(path, "stacks differently on lower layers");
        }
    }

    /// Pairs of children; those that one side lacks are reported.
    fn children(
        &mut self,
        path: &[u8],
        expected: &Directory,
        found: &Directory,
    ) -> Vec<(NodeId, NodeId, Vec<u8>)> {
        let child_path = |name: &EntryName| [path, b"/", name.as_bytes()].concat();
        let mut pairs = Vec::new();
        for (name, child) in &expected.entries {
            match found.entries.get(name) {
                Some(other) => pairs.push((*child, *other, child_path(name))),
                None => self.report(&child_path(name), "is missing"),
            }
        }
        for name in found
            .entries
            .keys()
            .filter(|name| !expected.entries.contains_key(*name))
        {
            self.report(&child_path(name), "is not expected");
        }
        pairs
    }
}

fn kind_name(kind: &NodeKind) -> String {
    match kind {
        NodeKind::Directory(_) => "directory".to_owned(),
        NodeKind::Regular(_) => "regular file".to_owned(),
        NodeKind::Symlink(target) => format!("link to {}", Printable(target)),
        NodeKind::CharDevice(device) => format!("character device {}:{}", device.major, device.minor),
        NodeKind::BlockDevice(device) => format!("block device {}:{}", device.major, device.minor),
        NodeKind::Fifo => "fifo".to_owned(),
        NodeKind::Socket => "socket".to_owned(),
        NodeKind::Whiteout => "whiteout".to_owned(),
    }
}

/// The same extents with neighbours joined.
fn joined(extents: &[Extent]) -> Vec<Extent> {
    let mut whole: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match whole.last_mut() {
            Some(last) if follows(last, extent) => {
                last.len += extent.len;
                if let (ExtentSource::Literal(bytes), ExtentSource::Literal(more)) =
                    (&mut last.source, &extent.source)
                {
                    bytes.extend_from_slice(more);
                }
            }
            _ => whole.push(extent.clone()),
        }
    }
    whole
}

fn follows(last: &Extent, next: &Extent) -> bool {
    let touches = last.file_off + last.len == next.file_off;
    let continues = match (&last.source, &next.source) {
        (
            ExtentSource::Plain { device, plain_off },
            ExtentSource::Plain {
                device: next_device,
                plain_off: next_off,
            },
        ) => device == next_device && plain_off + last.len == *next_off,
        (ExtentSource::Literal(_), ExtentSource::Literal(_)) => true,
        _ => false,
    };
    touches && continues
}

#[cfg(test)]
mod tests {
    use sluice_format::inode::Attributes;

    use super::*;

    fn tree(build: impl Fn(&mut Tree) -> Vec<(&'static str, NodeId)>) -> Tree {
        let mut tree = Tree::new();
        let names = build(&mut tree);
        for (name, id) in names {
            let name = EntryName::new(name.as_bytes()).unwrap();
            tree.directory_mut(NodeId::ROOT).unwrap().entries.insert(name, id);
        }
        tree
    }

    fn node(kind: NodeKind) -> Node {
        Node {
            kind,
            attributes: Attributes::default(),
        }
    }

    #[test]
    fn order_of_nodes_is_no_difference() {
        let link = |target: &str| node(NodeKind::Symlink(target.as_bytes().to_vec()));
        let a = tree(|t| vec![("x", t.add(link("1"))), ("y", t.add(link("2")))]);
        let b = tree(|t| vec![("y", t.add(link("2"))), ("x", t.add(link("1")))]);
        assert!(differences(&a, &b).is_empty());
    }

    #[test]
    fn every_kind_of_difference_is_named_with_its_path() {
        let plain = tree(|t| {
            vec![
                ("x", t.add(node(NodeKind::Fifo))),
                ("y", t.add(node(NodeKind::Fifo))),
            ]
        });
        let linked = tree(|t| {
            let id = t.add(node(NodeKind::Fifo));
            vec![("x", id), ("y", id)]
        });
        for (a, b) in [(&plain, &linked), (&linked, &plain)] {
            assert!(differences(a, b)[0].contains("shares its inode"));
        }
        let lone = tree(|t| vec![("x", t.add(node(NodeKind::Socket)))]);
        let found = differences(&plain, &lone);
        assert!(found.contains(&"/y: is missing".to_owned()), "{found:?}");
        assert!(
            found.contains(&"/x: is a socket, expected a fifo".to_owned()),
            "{found:?}"
        );
        assert_eq!(differences(&lone, &plain)[0], "/y: is not expected");
    }

    #[test]
    fn split_extents_are_the_same_content() {
        let extent = |file_off, len, plain_off| Extent {
            file_off,
            len,
            source: ExtentSource::Plain { device: 1, plain_off },
        };
        assert_eq!(
            joined(&[extent(0, 512, 1024), extent(512, 512, 1536)]),
            [extent(0, 1024, 1024)]
        );
        assert_eq!(joined(&[extent(0, 512, 1024), extent(512, 512, 2048)]).len(), 2);
    }
}
