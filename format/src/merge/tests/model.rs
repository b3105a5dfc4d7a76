//! A model to disagree with: an image as a map from paths to nodes, changed path by path.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::erofs::testing::{directory, open, slot};
use crate::erofs::{DeviceSlot, write_image};
use crate::inode::{Attributes, Device};
use crate::tree::{Directory, Extent, ExtentSource, FileContent};
use crate::{DiffId, Digest, NodeId};

/// What the model knows of a path. A node is told from all others by the owner that its builder gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Directory(Attributes),
    Other(NodeKind, Attributes),
}

type Model = BTreeMap<Vec<u8>, Seen>;

/// One random entry of a layer.
#[derive(Clone, Debug)]
enum Deed {
    Directory {
        opaque: bool,
        implied: bool,
    },
    File,
    Symlink(Vec<u8>),
    Whiteout,
    OverlayWhiteout,
    /// A second name of a file of the same layer.
    Link(prop::sample::Index),
    /// A link to a path in the layers below.
    Deferred(prop::sample::Index),
}

fn any_path() -> impl Strategy<Value = Vec<&'static str>> {
    vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4)
}

fn any_deed() -> impl Strategy<Value = Deed> {
    let up = prop_oneof![Just(""), Just("/"), Just("../"), Just("./../")];
    let target = (up, any_path()).prop_map(|(up, path)| format!("{up}{}", path.join("/")).into_bytes());
    prop_oneof![
        4 => any::<(bool, bool)>().prop_map(|(opaque, implied)| Deed::Directory { opaque, implied }),
        4 => Just(Deed::File),
        4 => target.prop_map(Deed::Symlink),
        2 => Just(Deed::Whiteout),
        1 => Just(Deed::OverlayWhiteout),
        1 => any::<prop::sample::Index>().prop_map(Deed::Link),
        2 => any::<prop::sample::Index>().prop_map(Deed::Deferred),
    ]
}

type Recipe = Vec<(Vec<&'static str>, Deed)>;

fn any_recipes() -> impl Strategy<Value = Vec<Recipe>> {
    vec(vec((any_path(), any_deed()), 0..12), 0..6)
}

/// Builds one layer. `below` is the model of the layers under it, `uid` the next unused owner.
fn build(recipe: Recipe, below: &Model, uid: &mut u32) -> LayerTree {
    let mut layer = LayerTree::default();
    let mut files = Vec::new();
    for (path, deed) in recipe {
        let full = format!("/{}", path.join("/"));
        let in_the_way = |link: &DeferredLink| components(&full).starts_with(&link.path);
        if layer.deferred_links.iter().any(in_the_way) {
            continue;
        }
        let (last, parents) = path.split_last().unwrap();
        let parent = parents.iter().try_fold(NodeId::ROOT, |at, part| {
            let child = layer.tree.child(at, part.as_bytes());
            let child = child.unwrap_or_else(|| add(&mut layer.tree, at, part, made(false, true), uid));
            layer.tree.directory(child).map(|_| child)
        });
        let Some(parent) = parent.filter(|parent| layer.tree.child(*parent, last.as_bytes()).is_none())
        else {
            continue;
        };
        let kind = match deed {
            Deed::Directory { opaque, implied } => made(opaque, implied),
            Deed::File => {
                let source = ExtentSource::Plain {
                    device: 1,
                    plain_off: 512,
                };
                let extents = vec![Extent {
                    file_off: 0,
                    len: 512,
                    source,
                }];
                NodeKind::Regular(FileContent { size: 512, extents })
            }
            Deed::Symlink(target) => NodeKind::Symlink(target),
            Deed::Whiteout => NodeKind::Whiteout,
            Deed::OverlayWhiteout => NodeKind::CharDevice(Device::default()),
            Deed::Link(index) => {
                if !files.is_empty() {
                    layer
                        .tree
                        .directory_mut(parent)
                        .unwrap()
                        .entries
                        .insert(name(last), *index.get(&files));
                }
                continue;
            }
            Deed::Deferred(index) => {
                let targets: Vec<_> = below
                    .iter()
                    .filter(|(_, seen)| matches!(seen, Seen::Other(..)))
                    .collect();
                if !targets.is_empty() {
                    let target = std::str::from_utf8(index.get(&targets).0).unwrap();
                    layer.deferred_links.push(deferred(&full, target));
                }
                continue;
            }
        };
        let id = add(&mut layer.tree, parent, last, kind, uid);
        if matches!(layer.tree.node(id).kind, NodeKind::Regular(_)) {
            files.push(id);
        }
    }
    layer
}

fn made(opaque: bool, implied: bool) -> NodeKind {
    NodeKind::Directory(Directory {
        opaque,
        implied,
        ..Directory::default()
    })
}

fn add(tree: &mut Tree, parent: NodeId, text: &str, kind: NodeKind, uid: &mut u32) -> NodeId {
    *uid += 1;
    let attributes = Attributes {
        uid: *uid,
        ..Attributes::default_directory()
    };
    let id = tree.add(Node { kind, attributes });
    tree.directory_mut(parent).unwrap().entries.insert(name(text), id);
    id
}

/// Removes a path with all below it.
fn remove(model: &mut Model, path: &[u8]) {
    let inside = [path, b"/"].concat();
    model.retain(|other, _| other != path && !other.starts_with(&inside));
}

/// Follows a path through symbolic links of the model; the directory it leads to.
fn resolve(model: &Model, path: &[u8], links: usize) -> Option<Vec<u8>> {
    let mut place: Vec<u8> = Vec::new();
    let mut parts = path.split(|byte| *byte == b'/');
    while let Some(part) = parts.next() {
        match part {
            b"" | b"." => continue,
            b".." => {
                place.truncate(place.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            _ => {}
        }
        let next = [&place[..], b"/", part].concat();
        match model.get(&next)? {
            Seen::Directory(_) => place = next,
            Seen::Other(NodeKind::Symlink(target), _) if links < 255 => {
                let start = if target.starts_with(b"/") {
                    &[][..]
                } else {
                    &place[..]
                };
                let rest: Vec<_> = parts.collect();
                let path = [start, b"/", target, b"/", &rest.join(&b'/')].concat();
                return resolve(model, &path, links + 1);
            }
            Seen::Other(..) => return None,
        }
    }
    Some(place)
}

/// Puts a layer on the model.
fn stack(model: &mut Model, layer: &LayerTree, device: u16) {
    let below = model.clone();
    let root = Seen::Directory(Attributes::default_directory());
    for (path, id) in paths(&layer.tree) {
        let Node { kind, attributes } = layer.tree.node(id);
        match kind {
            _ if path.is_empty() => {}
            NodeKind::Directory(directory) => {
                if directory.opaque || !matches!(model.get(&path), Some(Seen::Directory(_))) {
                    remove(model, &path);
                }
                let lower = resolve(&below, &path, 0).filter(|_| directory.implied);
                let attributes = match lower.map(|lower| below.get(&lower).unwrap_or(&root).clone()) {
                    Some(Seen::Directory(lower)) => lower,
                    _ => attributes.clone(),
                };
                model.insert(path, Seen::Directory(attributes));
            }
            kind if *kind == NodeKind::Whiteout || *kind == NodeKind::CharDevice(Device::default()) => {
                remove(model, &path);
            }
            kind => {
                remove(model, &path);
                model.insert(path, Seen::Other(on_device(kind, device), attributes.clone()));
            }
        }
    }
    for link in &layer.deferred_links {
        let full = |names: &[EntryName]| {
            names
                .iter()
                .flat_map(|name| [b"/", name.as_bytes()].concat())
                .collect()
        };
        let (path, target): (Vec<u8>, Vec<u8>) = (full(&link.path), full(&link.target));
        remove(model, &path);
        model.insert(path, below[&target].clone());
    }
}

fn on_device(kind: &NodeKind, layer: u16) -> NodeKind {
    let mut kind = kind.clone();
    if let NodeKind::Regular(content) = &mut kind {
        for extent in &mut content.extents {
            if let ExtentSource::Plain { device, .. } = &mut extent.source {
                *device = layer;
            }
        }
    }
    kind
}

/// What the model would know of a tree.
fn seen(tree: &Tree) -> Model {
    let mut model: Model = paths(tree)
        .into_iter()
        .map(|(path, id)| {
            let Node { kind, attributes } = tree.node(id);
            let seen = match kind {
                NodeKind::Directory(_) => Seen::Directory(attributes.clone()),
                kind => Seen::Other(kind.clone(), attributes.clone()),
            };
            (path, seen)
        })
        .collect();
    model.remove(&[][..]);
    model
}

fn devices(count: usize) -> Vec<DeviceSlot> {
    (0..count)
        .map(|n| DeviceSlot {
            diff_id: DiffId(Digest::of(&n.to_le_bytes())),
            ..slot(1 << 20)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn a_merge_agrees_with_the_model(recipes in any_recipes()) {
        let mut model = Model::new();
        let mut layers = Vec::new();
        let mut uid = 0;
        for (device, recipe) in (1..).zip(recipes) {
            let layer = build(recipe, &model, &mut uid);
            stack(&mut model, &layer, device);
            layers.push(layer);
        }
        let count = layers.len();
        let tree = merged(layers).unwrap();
        prop_assert_eq!(seen(&tree), model);
        prop_assert!(paths(&tree).values().all(|id| is_final(tree.node(*id))));
        // Names of one file share a node: the owner tells which file it is.
        let mut ids = BTreeMap::new();
        for id in paths(&tree).into_values().filter(|id| tree.directory(*id).is_none()) {
            prop_assert_eq!(*ids.entry(tree.node(id).attributes.uid).or_insert(id), id);
        }
        let written = write_image(&tree, &devices(count)).unwrap();
        let (read, _) = open(&written.bytes).to_tree(&Limits::default()).unwrap();
        prop_assert_eq!(seen(&read), seen(&tree));
    }
}

#[test]
fn the_model_itself_follows_links() {
    let mut model = Model::new();
    let mut layer = LayerTree::default();
    let dir = add(&mut layer.tree, NodeId::ROOT, "d", directory(), &mut 0);
    add(&mut layer.tree, dir, "e", directory(), &mut 1);
    add(
        &mut layer.tree,
        dir,
        "l",
        NodeKind::Symlink(b"../../d".to_vec()),
        &mut 2,
    );
    stack(&mut model, &layer, 1);
    assert_eq!(resolve(&model, b"/d/l/e", 0).unwrap(), b"/d/e");
    assert_eq!(resolve(&model, b"/d/l/x", 0), None);
}
