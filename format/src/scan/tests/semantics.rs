//! What entries do to the tree.

use super::tar::{Tar, device, dir, file, gnu_long, hardlink, pax, symlink};
use super::{archive, bytes_of, find, layer, node, paths, refusal, scan_bytes};
use crate::inode::{Attributes, Timestamp, Xattrs};
use crate::{LayerTree, NodeKind};

/// `security.capability` as `setcap cap_net_bind_service=p` writes it.
const CAPABILITY: [u8; 20] = [0, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An ACL of one named user.
const ACL: [u8; 12] = [2, 0, 0, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0];

fn xattr(name: &str, value: &[u8]) -> Tar {
    pax(&[(&format!("SCHILY.xattr.{name}"), value)])
}

/// The names of the attributes that a path got.
fn names(layer: &LayerTree, path: &str) -> Vec<String> {
    let xattrs: &Xattrs = &node(layer, path).attributes.xattrs;
    xattrs
        .keys()
        .map(|name| name.escape_ascii().to_string())
        .collect()
}

fn directory<'a>(layer: &'a LayerTree, path: &str) -> &'a crate::tree::Directory {
    match &node(layer, path).kind {
        NodeKind::Directory(directory) => directory,
        other => panic!("{path} is {other:?}"),
    }
}

fn is_whiteout(layer: &LayerTree, path: &str) -> bool {
    node(layer, path).kind == NodeKind::Whiteout
}

fn deferred(layer: &LayerTree) -> Vec<(String, String)> {
    let join = |path: &[crate::EntryName]| path.iter().map(ToString::to_string).collect::<Vec<_>>().join("/");
    layer
        .deferred_links
        .iter()
        .map(|link| (join(&link.path), join(&link.target)))
        .collect()
}

#[test]
fn names_are_cleaned_before_anything_else() {
    let layer = layer([file("./a//b/../c", b""), file("/abs", b""), file("/../top", b"")]);
    assert_eq!(paths(&layer), ["/a", "/a/c", "/abs", "/top"]);
}

#[test]
fn names_above_the_root_are_refused() {
    for name in ["../e", "a/../../e", ".."] {
        let message = refusal([file(name, b"")]);
        assert!(
            message.contains("path traversal") && message.contains(name),
            "{message}"
        );
    }
    assert!(refusal([file("a", b""), hardlink("b", "../a")]).contains("path traversal"));
}

#[test]
fn names_that_no_directory_holds_are_refused_with_the_entry() {
    let long = "n".repeat(256);
    let message = refusal([gnu_long(b'L', &long), file("f", b"")]);
    assert!(message.contains("longer than 255 bytes"), "{message}");
}

#[test]
fn the_root_keeps_its_defaults() {
    for name in ["./", "/", ".", "", "a/.."] {
        let layer = layer([xattr("user.a", b"1"), dir(name).mode(0o700).uid(5)]);
        assert_eq!(
            layer.tree.nodes()[0].attributes,
            Attributes::default_directory(),
            "{name}"
        );
    }
}

#[test]
fn attributes_are_taken_as_they_are() {
    let layer = layer([
        file("f", b"").mode(0o104_755).uid(7).gid(8).mtime(9),
        dir("d").mode(0o1777),
    ]);
    let expected = Attributes {
        permissions: 0o4755,
        uid: 7,
        gid: 8,
        mtime: Timestamp { secs: 9, nanos: 0 },
        ..Attributes::default()
    };
    assert_eq!(node(&layer, "f").attributes, expected);
    assert_eq!(node(&layer, "d").attributes.permissions, 0o1777);
}

#[test]
fn missing_parents_are_implied_until_described() {
    let layer = layer([file("p/q/f", b""), dir("p").mode(0o700)]);
    assert!(!directory(&layer, "p").implied);
    assert!(directory(&layer, "p/q").implied);
    assert_eq!(node(&layer, "p").attributes.permissions, 0o700);
    assert_eq!(node(&layer, "p/q").attributes, Attributes::default_directory());
    assert_eq!(paths(&layer), ["/p", "/p/q", "/p/q/f"]);
}

#[test]
fn symbolic_links_on_the_way_stay_inside_the_layer() {
    let all = [
        dir("real"),
        symlink("absolute", "/real"),
        file("absolute/a", b""),
        symlink("outside", "../../../etc"),
        file("outside/b", b""),
        dir("x/y"),
        symlink("x/y/up", "../z"),
        file("x/y/up/c", b""),
        symlink("chain", "absolute"),
        file("chain/d", b""),
        symlink("slash", "/"),
        file("slash/e", b""),
        symlink("x/absolute", "/real"),
        file("x/absolute/f", b""),
    ];
    let layer = layer(all);
    for path in ["real/a", "etc/b", "x/z/c", "real/d", "e", "real/f"] {
        assert!(find(&layer.tree, path).is_some(), "{path} in {:?}", paths(&layer));
    }
    assert!(directory(&layer, "etc").implied && directory(&layer, "x/z").implied);
}

#[test]
fn symbolic_link_loops_are_refused() {
    let message = refusal([symlink("l1", "l2"), symlink("l2", "l1"), file("l1/f", b"")]);
    assert!(
        message.contains("l1/f") && message.contains("too many symbolic links"),
        "{message}"
    );
    let message = refusal([symlink("l", "l/l/l/l"), file("l/f", b"")]);
    assert!(message.contains("too many symbolic links"), "{message}");
}

#[test]
fn a_path_passes_as_many_symbolic_links_as_in_containerd() {
    let chain = |links: usize| {
        let link = |index| symlink(&format!("l{index}"), &format!("l{}", index + 1));
        let all: Vec<Tar> = (0..links).map(link).chain([file("l0/f", b"")]).collect();
        super::scan(all)
    };
    assert!(find(&chain(255).unwrap().tree, "l255/f").is_some());
    assert!(
        chain(256)
            .unwrap_err()
            .to_string()
            .contains("too many symbolic links")
    );
}

#[test]
fn a_file_on_the_way_is_refused() {
    for other in [
        file("a", b""),
        file("a", b"").flag(b'6'),
        device(b'3', "a", 1, 3),
        hardlink("a", "lower"),
    ] {
        let message = refusal([other, file("a/b", b"")]);
        assert!(
            message.contains("\"a/b\"") && message.contains("not a directory"),
            "{message}"
        );
    }
}

#[test]
fn symbolic_links_have_all_permissions_and_a_possible_target() {
    assert_eq!(
        node(&layer([symlink("s", "t").mode(0o600)]), "s")
            .attributes
            .permissions,
        0o777
    );
    assert!(refusal([symlink("s", "")]).contains("no target"));
    let target = |len| [gnu_long(b'K', &"t".repeat(len)), symlink("s", "")];
    assert!(super::scan(target(4095)).is_ok());
    assert!(refusal(target(4096)).contains("over the limit of 4095"));
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let plain = archive([
        dir("a"),
        file("a/x", b"1"),
        file("a", b"2"),
        file("b", b"3"),
        dir("b"),
        file("b/y", b"4"),
    ]);
    let (scanned, _) = scan_bytes(&plain).unwrap();
    assert_eq!(paths(&scanned.layer), ["/a", "/b", "/b/y"]);
    assert_eq!(bytes_of(&plain, "a"), b"2");
}

#[test]
fn a_later_directory_keeps_children_and_adds_attributes() {
    let layer = layer([
        xattr("user.a", b"1"),
        dir("d").mode(0o700).uid(3),
        file("d/x", b""),
        file("d/.wh..wh..opq", b""),
        xattr("user.b", b"2"),
        dir("d").gid(4),
    ]);
    assert_eq!(paths(&layer), ["/d", "/d/x"]);
    let attributes = &node(&layer, "d").attributes;
    assert_eq!(
        (attributes.permissions, attributes.uid, attributes.gid),
        (0o755, 0, 4)
    );
    assert_eq!(names(&layer, "d"), ["user.a", "user.b"]);
    assert!(directory(&layer, "d").opaque);
}

#[test]
fn whiteouts_and_opaque_directories_are_found_by_name() {
    let layer = layer([
        file(".wh.gone", b"").uid(9),
        file("d/.wh.gone", b""),
        file("e/.wh..wh..opq", b""),
        file(".wh.odd", b"xx").flag(b'Z'),
        dir(".wh.dir/"),
    ]);
    assert_eq!(paths(&layer), ["/d", "/d/gone", "/dir", "/e", "/gone", "/odd"]);
    for path in ["gone", "d/gone", "odd", "dir"] {
        assert!(is_whiteout(&layer, path), "{path}");
        assert_eq!(
            node(&layer, path).attributes,
            Attributes::default(),
            "the same whiteout whatever the tar says"
        );
    }
    assert!(directory(&layer, "e").opaque && directory(&layer, "e").implied);
    assert!(!directory(&layer, "d").opaque);
}

#[test]
fn whiteouts_of_no_name_are_refused() {
    for name in [".wh.", ".wh..", "a/.wh..."] {
        assert!(refusal([file(name, b"")]).contains(name), "{name}");
    }
}

#[test]
fn the_later_of_whiteout_and_entry_wins() {
    assert!(is_whiteout(&layer([file("a", b"1"), file(".wh.a", b"")]), "a"));
    assert!(matches!(
        node(&layer([file(".wh.a", b""), file("a", b"1")]), "a").kind,
        NodeKind::Regular(_)
    ));
    assert!(is_whiteout(
        &layer([dir("a"), file("a/x", b""), file(".wh.a", b"")]),
        "a"
    ));
}

#[test]
fn a_directory_after_its_own_whiteout_merges_with_the_lower_one() {
    assert!(!directory(&layer([file(".wh.a", b""), dir("a")]), "a").opaque);
}

#[test]
fn a_directory_implied_below_a_whiteout_hides_the_lower_one() {
    let layer = layer([file(".wh.a", b""), file("a/f", b"")]);
    assert!(directory(&layer, "a").opaque && directory(&layer, "a").implied);
}

#[test]
fn device_zero_is_a_whiteout() {
    let layer = layer([device(b'3', "c", 0, 0).uid(5), device(b'4', "b", 0, 0)]);
    assert!(is_whiteout(&layer, "c"));
    assert_eq!(
        node(&layer, "c").attributes,
        Attributes::default(),
        "like every other whiteout"
    );
    assert!(
        matches!(node(&layer, "b").kind, NodeKind::BlockDevice(_)),
        "a block device is none"
    );
}

#[test]
fn attributes_of_the_kernel_name_spaces_are_kept() {
    let layer = layer([
        pax(&[
            ("SCHILY.xattr.user.a", b"1\0\n2"),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.security.capability", &CAPABILITY),
            ("SCHILY.xattr.system.posix_acl_access", &ACL),
            ("LIBARCHIVE.xattr.user.b", b"MQ=="),
        ]),
        file("f", b""),
        xattr("system.posix_acl_default", &ACL),
        dir("d"),
    ]);
    let expected = [
        "security.capability",
        "system.posix_acl_access",
        "user.a",
        "user.empty",
    ];
    assert_eq!(names(&layer, "f"), expected);
    assert_eq!(node(&layer, "f").attributes.xattrs[&b"user.a"[..]], b"1\0\n2");
    assert_eq!(names(&layer, "d"), ["system.posix_acl_default"]);
}

#[test]
fn attributes_that_containerd_leaves_out_are_left_out_with_a_warning() {
    let cases = [
        ("trusted.overlay.opaque", dir("x")),
        ("trusted.overlay.redirect", dir("x")),
        ("trusted.other", file("x", b"")),
        ("user.x", symlink("x", "t")),
        ("user.x", device(b'3', "x", 1, 3)),
        ("foo.x", file("x", b"")),
        ("system.nfs4_acl", file("x", b"")),
        ("system.posix_acl_access", symlink("x", "t")),
    ];
    for (name, entry) in cases {
        let (scanned, _) = scan_bytes(&archive([xattr(name, b"y"), entry])).unwrap();
        assert!(names(&scanned.layer, "x").is_empty(), "{name}");
        assert_eq!(scanned.warnings.len(), 1);
        assert!(
            scanned.warnings[0].starts_with("x: ") && scanned.warnings[0].contains(name),
            "{:?}",
            scanned.warnings
        );
        if let NodeKind::Directory(directory) = &node(&scanned.layer, "x").kind {
            assert!(!directory.opaque, "only a marker file makes a directory opaque");
        }
    }
}

#[test]
fn an_empty_acl_is_none() {
    for value in [&b""[..], &ACL[..4]] {
        let layer = layer([xattr("system.posix_acl_access", value), file("f", b"")]);
        assert!(names(&layer, "f").is_empty());
    }
}

#[test]
fn warnings_are_counted_once_there_are_many() {
    let many = (0..40).flat_map(|index| [xattr("trusted.x", b"1"), file(&format!("f{index}"), b"")]);
    let (scanned, _) = scan_bytes(&archive(many)).unwrap();
    assert_eq!(scanned.warnings.len(), 33);
    assert_eq!(scanned.warnings[32], "and 8 more");
}

#[test]
fn attributes_that_the_kernel_calls_invalid_are_refused() {
    let long = format!("user.{}", "n".repeat(251));
    let big = vec![1; 65_536];
    let cases: [(&str, &[u8], Tar); 7] = [
        ("user.", b"1", file("f", b"")),
        ("security.", b"1", file("f", b"")),
        ("", b"1", file("f", b"")),
        (&long, b"1", file("f", b"")),
        ("user.big", &big, file("f", b"")),
        ("system.posix_acl_default", &ACL, file("f", b"")),
        ("system.posix_acl_access", b"zz", file("f", b"")),
    ];
    for (name, value, entry) in cases {
        let message = refusal([xattr(name, value), entry]);
        assert!(
            message.contains("\"f\"") && message.contains(&format!("attribute \"{name}\"")),
            "{message}"
        );
    }
}

#[test]
fn hard_links_share_the_inode_and_describe_it_anew() {
    let layer = layer([
        pax(&[
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.security.capability", &CAPABILITY),
        ]),
        file("a", b"data").mode(0o600).uid(1),
        xattr("user.b", b"2"),
        hardlink("d/b", "./a").mode(0o755).uid(2).gid(3).mtime(77),
    ]);
    assert_eq!(find(&layer.tree, "a"), find(&layer.tree, "d/b"));
    let attributes = &node(&layer, "a").attributes;
    assert_eq!(
        (
            attributes.permissions,
            attributes.uid,
            attributes.gid,
            attributes.mtime.secs
        ),
        (0o755, 2, 3, 77)
    );
    assert_eq!(
        names(&layer, "a"),
        ["user.a", "user.b"],
        "a change of owner drops the capability"
    );
    assert!(layer.deferred_links.is_empty());
}

#[test]
fn a_hard_link_can_set_the_capability_again() {
    let set = || xattr("security.capability", &CAPABILITY);
    let layer = layer([set(), file("a", b""), set(), hardlink("b", "a")]);
    assert_eq!(names(&layer, "a"), ["security.capability"]);
}

#[test]
fn hard_links_follow_links_on_the_way_but_not_at_the_end() {
    let layer = layer([
        file("d/f", b"1"),
        symlink("s", "/d"),
        hardlink("through", "s/f"),
        hardlink("absolute", "/d/f"),
        hardlink("link", "s").mode(0o600).uid(4),
    ]);
    let file = find(&layer.tree, "d/f");
    assert_eq!(
        (find(&layer.tree, "through"), find(&layer.tree, "absolute")),
        (file, file)
    );
    assert_eq!(find(&layer.tree, "link"), find(&layer.tree, "s"));
    assert_eq!(
        (
            node(&layer, "s").attributes.permissions,
            node(&layer, "s").attributes.uid
        ),
        (0o777, 4)
    );
}

#[test]
fn hard_links_to_directories_and_to_themselves_are_refused() {
    for target in ["d", "/", ""] {
        let message = refusal([dir("d"), hardlink("b", target)]);
        assert!(
            message.contains("\"b\"") && message.contains("directory"),
            "{message}"
        );
    }
    assert!(
        refusal([file("b", b""), hardlink("b", "./b")])
            .contains("\"b\": hard link to \"./b\" is the link itself")
    );
    assert!(refusal([hardlink("b", "b")]).contains("the link itself"));
    assert!(refusal([file("d/x", b""), hardlink("d", "d/x")]).contains("below the link"));
    assert!(refusal([file("a", b""), hardlink("b", "a/x")]).contains("not a directory"));
}

#[test]
fn hard_links_to_lower_layers_are_deferred() {
    let layer = layer([
        symlink("s", "/usr/lib"),
        hardlink("new/a", "s/../bin/./tool"),
        file(".wh.gone", b""),
        hardlink("b", "gone"),
        hardlink("c", "new/a"),
    ]);
    let expected = [("new/a", "bin/tool"), ("b", "gone"), ("c", "bin/tool")];
    assert_eq!(
        deferred(&layer),
        expected.map(|(path, target)| (path.to_owned(), target.to_owned()))
    );
    assert!(directory(&layer, "new").implied);
    assert!(is_whiteout(&layer, "gone"));
    assert_eq!(find(&layer.tree, "usr"), None, "a target is not created");
}

#[test]
fn a_deferred_target_passes_symbolic_links_of_the_layer() {
    let layer = layer([symlink("s", "/usr/lib"), hardlink("a", "s/x/tool")]);
    assert_eq!(deferred(&layer), [("a".to_owned(), "usr/lib/x/tool".to_owned())]);
}

#[test]
fn a_deferred_link_gives_way_to_later_entries() {
    let link = || hardlink("d/a", "lower");
    for later in [
        file("d/a", b""),
        dir("d/a"),
        file("d/.wh.a", b""),
        file("d", b""),
        file(".wh.d", b""),
    ] {
        let layer = layer([link(), later.clone()]);
        assert_eq!(deferred(&layer), [], "{later:?}");
    }
    assert_eq!(
        deferred(&layer([link(), hardlink("d/a", "other")])),
        [("d/a".to_owned(), "other".to_owned())]
    );
    let replaced = layer([file("d/a", b""), link()]);
    assert_eq!(
        (deferred(&replaced).len(), find(&replaced.tree, "d/a")),
        (1, None),
        "and takes the place of earlier ones"
    );
    assert_eq!(
        deferred(&layer([link(), dir("d")])).len(),
        1,
        "a directory keeps what it holds"
    );
}
