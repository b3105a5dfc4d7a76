//! Cases that have a name.

use super::*;
use crate::erofs::testing::{directory, plain_file, put};
use crate::erofs::{BLOCK_SIZE, DeviceSlot, write_image};
use crate::inode::{Attributes, Device};
use crate::tree::{Directory, Extent, ExtentSource};
use crate::{DiffId, Digest, NodeId};

/// A layer of entries `(path, kind)`; each gets its position in the list as owner, directories on the way are made.
fn layer(entries: &[(&str, NodeKind)]) -> LayerTree {
    let mut tree = Tree::new();
    for (uid, (path, kind)) in (0..).zip(entries) {
        let mut parts: Vec<_> = path.split('/').skip(1).collect();
        let last = parts.pop().unwrap();
        let parent = parts
            .into_iter()
            .fold(NodeId::ROOT, |at, part| match tree.child(at, part.as_bytes()) {
                Some(child) => child,
                None => put(&mut tree, at, part, directory()),
            });
        let id = put(&mut tree, parent, last, kind.clone());
        tree.node_mut(id).attributes.uid = uid;
    }
    LayerTree {
        tree,
        deferred_links: vec![],
    }
}

fn opaque() -> NodeKind {
    NodeKind::Directory(Directory {
        opaque: true,
        ..Directory::default()
    })
}

fn implied() -> NodeKind {
    NodeKind::Directory(Directory {
        implied: true,
        ..Directory::default()
    })
}

fn file() -> NodeKind {
    plain_file(512, 512)
}

fn symlink(target: &str) -> NodeKind {
    NodeKind::Symlink(target.as_bytes().to_vec())
}

fn stack_error(layers: Vec<LayerTree>) -> String {
    merged(layers).unwrap_err().to_string()
}

#[test]
fn no_layer_gives_an_empty_root() {
    assert_eq!(merged(vec![]).unwrap(), Tree::new());
}

#[test]
fn a_whiteout_removes_a_file_and_a_whole_directory() {
    let lower = layer(&[("/a", file()), ("/d/e/f", file()), ("/d/g", file())]);
    let device = NodeKind::CharDevice(Device::default());
    let upper = layer(&[
        ("/a", NodeKind::Whiteout),
        ("/d/e", device),
        ("/none", NodeKind::Whiteout),
    ]);
    assert_eq!(listed(&merged(vec![lower, upper]).unwrap()), ["/d", "/d/g"]);
}

#[test]
fn a_name_comes_back_above_its_whiteout_without_old_children() {
    let lower = layer(&[("/d/old", file())]);
    let middle = layer(&[("/d", NodeKind::Whiteout)]);
    let upper = layer(&[("/d/new", file())]);
    assert_eq!(
        listed(&merged(vec![lower, middle, upper]).unwrap()),
        ["/d", "/d/new"]
    );
}

#[test]
fn an_opaque_directory_hides_what_is_below_it() {
    let lower = layer(&[("/d/old", file()), ("/d/e/old", file()), ("/kept", file())]);
    let upper = layer(&[("/d", opaque()), ("/d/e/new", file())]);
    let tree = merged(vec![lower, upper]).unwrap();
    assert_eq!(listed(&tree), ["/d", "/d/e", "/d/e/new", "/kept"]);
}

/// Overlayfs does not look at the mark on the root of a layer.
#[test]
fn an_opaque_root_hides_nothing() {
    let lower = layer(&[("/old", file())]);
    let mut upper = layer(&[("/new", file())]);
    upper.tree.directory_mut(NodeId::ROOT).unwrap().opaque = true;
    upper.tree.node_mut(NodeId::ROOT).attributes.uid = 7;
    let tree = merged(vec![lower, upper]).unwrap();
    assert_eq!(listed(&tree), ["/new", "/old"]);
    assert_eq!(
        tree.node(NodeId::ROOT).attributes,
        Attributes::default_directory()
    );
}

#[test]
fn a_directory_over_a_directory_takes_its_attributes_and_keeps_its_children() {
    let mut lower = layer(&[("/d", directory()), ("/d/a", file())]);
    let id = lower.tree.child(NodeId::ROOT, b"d").unwrap();
    lower
        .tree
        .node_mut(id)
        .attributes
        .xattrs
        .insert(b"user.lower".to_vec(), vec![]);
    let upper = layer(&[("/x", file()), ("/d", directory()), ("/d/b", file())]);
    let expected = upper
        .tree
        .node(upper.tree.child(NodeId::ROOT, b"d").unwrap())
        .attributes
        .clone();
    let tree = merged(vec![lower, upper]).unwrap();
    assert_eq!(listed(&tree), ["/d", "/d/a", "/d/b", "/x"]);
    assert_eq!(at(&tree, "/d").unwrap().attributes, expected);
}

#[test]
fn a_file_replaces_a_directory_and_a_directory_a_file() {
    let lower = layer(&[("/d/a", file()), ("/f", file())]);
    let upper = layer(&[("/d", symlink("f")), ("/f/b", file())]);
    let tree = merged(vec![lower, upper]).unwrap();
    assert_eq!(listed(&tree), ["/d", "/f", "/f/b"]);
    assert_eq!(at(&tree, "/d").unwrap().kind, symlink("f"));
}

#[test]
fn a_directory_over_a_symbolic_link_is_a_real_directory() {
    let lower = layer(&[("/lib", symlink("usr/lib")), ("/usr/lib/a", file())]);
    let upper = layer(&[("/lib/b", file())]);
    let tree = merged(vec![lower, upper]).unwrap();
    assert_eq!(
        listed(&tree),
        ["/lib", "/lib/b", "/usr", "/usr/lib", "/usr/lib/a"]
    );
}

fn uid(tree: &Tree, path: &str) -> u32 {
    at(tree, path).unwrap().attributes.uid
}

#[test]
fn an_implied_directory_looks_like_the_one_below() {
    let lower = layer(&[("/x", file()), ("/d", directory()), ("/d/e", directory())]);
    let upper = layer(&[("/d", implied()), ("/d/e", implied()), ("/d/e/f", file())]);
    let tree = merged(vec![lower, upper]).unwrap();
    assert_eq!(
        (uid(&tree, "/d"), uid(&tree, "/d/e"), uid(&tree, "/d/e/f")),
        (1, 2, 2)
    );
    assert!(tree.nodes().iter().all(is_final));
}

#[test]
fn an_implied_directory_over_a_link_looks_like_the_directory_the_link_leads_to() {
    let lower = layer(&[
        ("/x", file()),
        ("/usr/lib", directory()),
        ("/usr/lib/deep", directory()),
        ("/lib", symlink("//usr/./up")),
        ("/usr/up", symlink("../../usr/lib")),
        ("/loop", symlink("loop")),
        ("/none", symlink("missing")),
        ("/to-file", symlink("x")),
    ]);
    let upper = layer(&[
        ("/lib", implied()),
        ("/lib/deep", implied()),
        ("/lib/deep/f", file()),
        ("/loop", implied()),
        ("/none", implied()),
        ("/to-file", implied()),
    ]);
    let own: Vec<_> = ["/loop", "/none", "/to-file"]
        .map(|path| uid(&upper.tree, path))
        .into();
    let tree = merged(vec![lower, upper]).unwrap();
    assert_eq!((uid(&tree, "/lib"), uid(&tree, "/lib/deep")), (1, 2));
    assert_eq!(
        ["/loop", "/none", "/to-file"]
            .map(|path| uid(&tree, path))
            .to_vec(),
        own
    );
}

#[test]
fn an_implied_directory_over_a_file_keeps_the_defaults() {
    let lower = layer(&[("/x", file()), ("/f", file())]);
    let mut upper = layer(&[("/f", implied()), ("/f/g", file())]);
    let id = upper.tree.child(NodeId::ROOT, b"f").unwrap();
    upper.tree.node_mut(id).attributes = Attributes::default_directory();
    let tree = merged(vec![lower, upper]).unwrap();
    assert_eq!(
        at(&tree, "/f").unwrap().attributes,
        Attributes::default_directory()
    );
}

/// The attributes come from the tree below the layer, not from what the same layer puts in place.
#[test]
fn an_implied_directory_does_not_look_at_its_own_layer() {
    let lower = layer(&[
        ("/x", file()),
        ("/target", directory()),
        ("/link", symlink("target")),
    ]);
    let upper = layer(&[("/link", implied()), ("/target", NodeKind::Whiteout)]);
    assert_eq!(uid(&merged(vec![lower, upper]).unwrap(), "/link"), 1);
}

#[test]
fn a_deferred_link_shares_the_node_of_the_lower_layer() {
    let lower = layer(&[("/x", file()), ("/d/a", file())]);
    let mut upper = layer(&[
        ("/d", directory()),
        ("/e", directory()),
        ("/d/a", NodeKind::Whiteout),
    ]);
    upper.deferred_links = vec![
        deferred("/e/b", "/d/a"),
        deferred("/x", "/d/a"),
        deferred("/c", "/x"),
    ];
    let tree = merged(vec![lower, upper]).unwrap();
    let ids = paths(&tree);
    assert_eq!(listed(&tree), ["/c", "/d", "/e", "/e/b", "/x"]);
    assert_eq!(ids[&b"/e/b"[..]], ids[&b"/x"[..]]);
    assert_eq!((uid(&tree, "/x"), uid(&tree, "/c")), (1, 0));
}

#[test]
fn a_deferred_link_to_nothing_or_to_a_directory_is_an_error() {
    let lower = || layer(&[("/d/a", file()), ("/l", symlink("d"))]);
    let with_link = |target| {
        let mut upper = layer(&[("/e", directory())]);
        upper.deferred_links = vec![deferred("/e/b", target)];
        vec![lower(), upper]
    };
    let message = stack_error(with_link("/none"));
    let expected =
        r#"layer 2: target "/none" of the hard link "/e/b" is neither in this layer nor in a lower one"#;
    assert_eq!(message, expected);
    assert!(stack_error(with_link("/d")).contains("is a directory"));
    assert!(stack_error(with_link("/l/a")).contains("is neither"));
    assert!(merged(with_link("/l")).is_ok());
}

#[test]
fn a_deferred_link_needs_a_directory_to_be_in() {
    let lower = layer(&[("/a", file())]);
    let mut upper = layer(&[("/f", file())]);
    upper.deferred_links = vec![deferred("/f/b", "/a")];
    assert_eq!(
        stack_error(vec![lower, upper]),
        r#"layer 2: there is no directory for the hard link "/f/b""#
    );
}

#[test]
fn content_moves_to_the_device_of_its_layer() {
    let tree = merged(vec![layer(&[("/a", file())]), layer(&[("/b", file())])]).unwrap();
    for (path, expected) in [("/a", 1), ("/b", 2)] {
        let NodeKind::Regular(content) = &at(&tree, path).unwrap().kind else {
            panic!("{path} is a file")
        };
        let source = ExtentSource::Plain {
            device: expected,
            plain_off: BLOCK_SIZE,
        };
        assert_eq!(
            content.extents,
            [Extent {
                file_off: 0,
                len: BLOCK_SIZE,
                source
            }]
        );
    }
}

#[test]
fn content_on_a_second_device_of_a_layer_is_refused() {
    let mut bad = layer(&[("/a", file())]);
    let id = bad.tree.child(NodeId::ROOT, b"a").unwrap();
    let NodeKind::Regular(content) = &mut bad.tree.node_mut(id).kind else {
        panic!("a file")
    };
    content.extents[0].source = ExtentSource::Plain {
        device: 2,
        plain_off: 0,
    };
    assert!(stack_error(vec![bad]).starts_with("layer 1: "));
}

#[test]
fn hard_links_within_a_layer_stay_one_node() {
    let mut upper = layer(&[("/a", file()), ("/d", directory())]);
    let id = upper.tree.child(NodeId::ROOT, b"a").unwrap();
    let dir = upper.tree.child(NodeId::ROOT, b"d").unwrap();
    upper
        .tree
        .directory_mut(dir)
        .unwrap()
        .entries
        .insert(name("b"), id);
    let tree = merged(vec![layer(&[("/a", file())]), upper]).unwrap();
    assert_eq!(paths(&tree)[&b"/a"[..]], paths(&tree)[&b"/d/b"[..]]);
}

#[test]
fn sixty_layers_stack_into_an_image() {
    let layers: Vec<_> = (0..60)
        .map(|n| {
            let own = format!("/layer-{n}/file");
            let gone = format!("/layer-{}", n - 10);
            let link = format!("/link-{n}");
            let mut layer = layer(&[(&own, file()), ("/shared", file()), (&gone, NodeKind::Whiteout)]);
            if n > 0 {
                layer.deferred_links = vec![deferred(&link, "/shared")];
            }
            layer
        })
        .collect();
    let tree = merged(layers).unwrap();
    assert_eq!(listed(&tree).len(), 10 * 2 + 1 + 59);
    let device = |n: u8| DeviceSlot {
        diff_id: DiffId(Digest::of(&[n])),
        plain_len: 1 << 20,
    };
    assert!(write_image(&tree, &(0..60).map(device).collect::<Vec<_>>()).is_ok());
}

#[test]
fn every_limit_holds() {
    let stack = || vec![layer(&[("/a/b", file())]), layer(&[("/a/c", file())])];
    let fits = Limits {
        layers: 2,
        entries: 4,
        depth: 1,
        ..Limits::default()
    };
    assert!(super::super::merge(stack(), &fits).is_ok());
    for (limits, what) in [
        (
            Limits {
                layers: 1,
                ..fits.clone()
            },
            "number of layers",
        ),
        (
            Limits {
                entries: 3,
                ..fits.clone()
            },
            "number of nodes",
        ),
        (
            Limits {
                depth: 0,
                ..fits.clone()
            },
            "depth",
        ),
    ] {
        let message = super::super::merge(stack(), &limits).unwrap_err().to_string();
        assert!(message.starts_with(what), "{message}");
    }
}

/// Each of many implied directories may lead through long chains of links.
#[test]
fn chains_of_links_are_bounded_over_a_whole_layer() {
    let names: Vec<_> = (0..200)
        .map(|n| (format!("/l{n}"), symlink(&format!("l{}", n + 1))))
        .collect();
    let entries: Vec<_> = names
        .iter()
        .map(|(name, kind)| (name.as_str(), kind.clone()))
        .collect();
    let above: Vec<_> = names.iter().map(|(name, _)| (name.as_str(), implied())).collect();
    let limits = Limits {
        entries: 1000,
        ..Limits::default()
    };
    let message = super::super::merge(vec![layer(&entries), layer(&above)], &limits)
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("number of steps"), "{message}");
}
