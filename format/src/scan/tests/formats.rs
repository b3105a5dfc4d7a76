//! Which bytes are a header, and what it says.

use super::tar::{END, Tar, archive, device, dir, file, gnu_long, hardlink, octal, pax, symlink};
use super::{bytes_of, layer, node, paths, refusal, scan_bytes, scan_pieces};
use crate::inode::{Device, Timestamp};
use crate::{Limits, NodeKind};

fn time(secs: u64, nanos: u32) -> Timestamp {
    Timestamp { secs, nanos }
}

#[test]
fn names_of_every_format_are_read() {
    let long = "n".repeat(180);
    let layer = layer([
        file("v7", b"").v7(),
        file("name", b"").raw(345, b"ustar/prefix"),
        file("name", b"").raw(345, b"star").raw(508, b"tar\0"),
        gnu_long(b'L', &format!("{long}/gnu")),
        file("short", b"").gnu(),
        pax(&[("path", "pax/\u{e9}".as_bytes())]),
        file("short", b""),
        file("go", b"").gnu().raw(345, b"old-go"),
    ]);
    let mut expected = vec![
        format!("/{long}"),
        format!("/{long}/gnu"),
        "/old-go".into(),
        "/old-go/go".into(),
        "/pax".into(),
        "/pax/\\xc3\\xa9".into(),
        "/star".into(),
        "/star/name".into(),
        "/ustar".into(),
        "/ustar/prefix".into(),
        "/ustar/prefix/name".into(),
        "/v7".into(),
    ];
    expected.sort();
    assert_eq!(paths(&layer), expected);
}

#[test]
fn a_star_prefix_ends_where_the_times_begin() {
    let star = file("f", b"")
        .raw(345, &[b'p'; 131])
        .raw(476, b"12345670123")
        .raw(508, b"tar\0");
    assert_eq!(paths(&layer([star]))[1], format!("/{}/f", "p".repeat(131)));
}

#[test]
fn gnu_long_names_win_over_pax_over_headers() {
    let all = [
        pax(&[("path", b"pax")]),
        gnu_long(b'L', "gnu"),
        file("plain", b""),
    ];
    assert_eq!(paths(&layer(all)), ["/gnu"]);
    let targets = [
        gnu_long(b'K', "gnu"),
        pax(&[("linkpath", b"pax")]),
        symlink("s", "plain"),
    ];
    assert_eq!(
        node(&layer(targets), "s").kind,
        NodeKind::Symlink(b"gnu".to_vec())
    );
}

#[test]
fn a_second_pax_header_replaces_the_first() {
    let layer = layer([
        pax(&[("path", b"one"), ("uid", b"5")]),
        pax(&[("gid", b"6")]),
        file("f", b""),
    ]);
    let attributes = &node(&layer, "f").attributes;
    assert_eq!((attributes.uid, attributes.gid), (0, 6));
}

#[test]
fn an_empty_pax_value_leaves_the_header_field() {
    assert_eq!(
        paths(&layer([pax(&[("path", b""), ("uid", b"")]), file("f", b"")])),
        ["/f"]
    );
}

#[test]
fn global_headers_do_not_apply_to_entries() {
    let global = |value: &[u8]| pax(&[("path", value), ("uid", b"5")]).flag(b'g');
    assert_eq!(paths(&layer([global(b"g"), file("f", b"")])), ["/f"]);
    let between = layer([pax(&[("uid", b"5")]), global(b"g"), file("f", b"")]);
    assert_eq!(
        node(&between, "f").attributes.uid,
        0,
        "as in Go, a global header ends what came before"
    );
}

#[test]
fn numbers_are_octal_or_base_256() {
    let mut size = [0; 12];
    (size[0], size[11]) = (0x80, 3);
    let uid = [0x80, 0, 0, 0, 0x7f, 0, 0, 1];
    let layer = layer([
        file("spaces", b"abc")
            .raw(124, b"         3 \0")
            .raw(100, b" 0644 \0\0"),
        file("binary", b"abc").raw(124, &size).raw(108, &uid),
        file("full", b"").raw(108, b"00000017").raw(136, &[0; 12]),
    ]);
    assert_eq!(node(&layer, "binary").attributes.uid, 0x7f00_0001);
    assert_eq!(node(&layer, "full").attributes.uid, 0o17);
    assert_eq!(node(&layer, "full").attributes.mtime, time(0, 0));
    for path in ["spaces", "binary"] {
        assert!(
            matches!(&node(&layer, path).kind, NodeKind::Regular(content) if content.size == 3),
            "{path}"
        );
    }
}

#[test]
fn fields_that_are_no_numbers_are_refused() {
    assert!(refusal([file("f", b"").raw(100, b"99")]).contains("mode is not a number"));
    assert!(refusal([file("f", b"").raw(124, &[0xff; 12])]).contains("size is negative"));
    assert!(refusal([file("f", b"").raw(124, &[0x81; 12])]).contains("size is not a number"));
    let beyond_64_bits = [0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(refusal([file("f", b"").raw(124, &beyond_64_bits)]).contains("size is not a number"));
    let star = file("f", b"").raw(508, b"tar\0");
    assert!(refusal([star.raw(476, b"x")]).contains("a time is not a number"));
    assert!(refusal([pax(&[("mtime", b"5.x")]), file("f", b"")]).contains("mtime"));
    assert!(refusal([pax(&[("atime", b"x")]), file("f", b"")]).contains("atime"));
    assert!(refusal([pax(&[("ctime", b"x")]), file("f", b"")]).contains("ctime"));
    assert!(refusal([pax(&[("size", b"-1")]), file("f", b"")]).contains("size is negative"));
}

#[test]
fn broken_pax_records_are_refused() {
    for data in [
        &b"9 path=zz\n"[..],
        b"path=zz\n",
        b"99 path=zz\n",
        b"10 path=zzz",
        b"6 path\n",
        b"4 =\n",
        b"x a=b\n",
    ] {
        assert!(
            refusal([file("x", data).flag(b'x'), file("f", b"")]).contains("PAX record"),
            "{data:?}"
        );
    }
    assert!(refusal([pax(&[("path", b"a\0b")]), file("f", b"")]).contains("PAX record"));
    assert!(refusal([file("x", b"zz").flag(b'g'), file("f", b"")]).contains("PAX record"));
}

#[test]
fn times_keep_nanoseconds_and_stay_in_range() {
    let cases: [(&[u8], Timestamp); 8] = [
        (b"1234567890.123456789123", time(1_234_567_890, 123_456_789)),
        (b"5.5", time(5, 500_000_000)),
        (b"5.", time(5, 0)),
        (b"7", time(7, 0)),
        (b"-5.5", time(0, 0)),
        (b"-0.5", time(0, 0)),
        (b"9223372036.854775807", time(9_223_372_036, 854_775_807)),
        (b"9223372036.854775808", time(0, 0)),
    ];
    for (text, expected) in cases {
        let layer = layer([pax(&[("mtime", text)]), file("f", b"")]);
        assert_eq!(
            node(&layer, "f").attributes.mtime,
            expected,
            "{}",
            text.escape_ascii()
        );
    }
}

#[test]
fn a_wrong_checksum_is_refused_and_a_signed_one_taken() {
    let good = file("f", b"").bytes();
    let mut bad = good.clone();
    bad[0] ^= 1;
    assert!(scan_bytes(&bad).unwrap_err().to_string().contains("checksum"));
    let mut signed = file("\u{e9}", b"").bytes();
    let sum: i64 = (0..512)
        .map(|at| {
            if (148..156).contains(&at) {
                32
            } else {
                i64::from(signed[at].cast_signed())
            }
        })
        .sum();
    signed[148..155].copy_from_slice(&octal(7, sum.unsigned_abs()));
    assert!(scan_bytes(&signed).is_ok());
}

#[test]
fn entries_without_data_hide_nothing_whatever_their_size_says() {
    let all = [
        file("a", b"data"),
        hardlink("hard", "a").size(4),
        symlink("soft", "a").size(600),
        dir("dir").size(1024),
        device(b'3', "char", 1, 3).size(1),
        device(b'4', "block", 8, 1).size(1),
        file("fifo", b"").flag(b'6').size(1),
        pax(&[("size", b"512")]),
        symlink("pax", "a"),
        file("old/", b"").flag(0).v7().size(512),
        file("z", b""),
    ];
    let expected = [
        "/a", "/block", "/char", "/dir", "/fifo", "/hard", "/old", "/pax", "/soft", "/z",
    ];
    assert_eq!(paths(&layer(all)), expected);
}

#[test]
fn a_pax_size_replaces_the_header_size() {
    let plain = archive([pax(&[("size", b"3")]), file("f", b"abc").size(0), file("z", b"1")]);
    assert_eq!(bytes_of(&plain, "f"), b"abc");
    assert_eq!(bytes_of(&plain, "z"), b"1");
}

#[test]
fn a_trailing_slash_makes_a_directory_only_with_the_v7_type() {
    let layer = layer([
        file("old/", b"").flag(0).v7(),
        file("new/", b"abc"),
        file("nul", b"abc").flag(0),
    ]);
    assert!(matches!(node(&layer, "old").kind, NodeKind::Directory(_)));
    assert!(matches!(&node(&layer, "new").kind, NodeKind::Regular(content) if content.size == 3));
    assert!(matches!(&node(&layer, "nul").kind, NodeKind::Regular(content) if content.size == 3));
}

#[test]
fn types_that_containerd_refuses_are_refused_by_name_and_flag() {
    for flag in *b"7VMDZ" {
        let message = refusal([file("some/name", b"").flag(flag)]);
        assert!(
            message.contains("\"some/name\"") && message.contains(&format!("'{}'", char::from(flag))),
            "{message}"
        );
    }
    assert_eq!(
        paths(&layer([file("./", b"abc").flag(b'Z'), file("f", b"")])),
        ["/f"],
        "the root is skipped first"
    );
}

#[test]
fn devices_and_fifos_keep_their_numbers() {
    let layer = layer([
        device(b'3', "c", 1, 3).mode(0o666),
        device(b'4', "b", 259, 70_000),
        file("p", b"").flag(b'6'),
    ]);
    assert_eq!(
        node(&layer, "c").kind,
        NodeKind::CharDevice(Device { major: 1, minor: 3 })
    );
    assert_eq!(node(&layer, "c").attributes.permissions, 0o666);
    assert_eq!(
        node(&layer, "b").kind,
        NodeKind::BlockDevice(Device {
            major: 259,
            minor: 70_000
        })
    );
    assert_eq!(node(&layer, "p").kind, NodeKind::Fifo);
    assert!(refusal([device(b'3', "c", 4096, 0)]).contains("device major is 4096, over the limit of 4095"));
    assert!(refusal([device(b'3', "c", 0, 0x10_0000)]).contains("device minor"));
}

#[test]
fn every_end_that_go_takes_is_taken() {
    let entry = file("f", b"x").bytes();
    let with = |end: &[u8]| [&entry[..], end].concat();
    let zeros = [0; 512];
    let pending = pax(&[("path", b"g")]).bytes();
    let ends: [Vec<u8>; 7] = [
        with(&END),
        with(&zeros),
        with(b""),
        entry[..513].to_vec(),
        entry[..1000].to_vec(),
        with(&pending),
        with(&[&END[..], b"junk"].concat()),
    ];
    for plain in ends {
        let (scanned, cuts) = scan_bytes(&plain).unwrap();
        assert_eq!(paths(&scanned.layer), ["/f"]);
        assert_eq!(scanned.plain_len, plain.len() as u64);
        assert_eq!(cuts, [plain.len() as u64]);
    }
    let (empty, cuts) = scan_bytes(b"").unwrap();
    assert_eq!(
        (paths(&empty.layer).len(), empty.plain_len, cuts.len()),
        (0, 0, 0)
    );
}

#[test]
fn a_layer_cut_off_inside_an_entry_is_refused() {
    let data = file("f", &[7; 600]).bytes();
    let pending = pax(&[("path", b"g")]).bytes();
    for cut in [
        &data[..300],
        &data[..512],
        &data[..1000],
        &pending[..100],
        &pending[..514],
        &[0; 600][..],
        &[0; 1000],
    ] {
        let message = scan_bytes(cut).unwrap_err().to_string();
        assert!(message.contains("cut off"), "{} bytes: {message}", cut.len());
    }
    let message = scan_bytes(&[&[0; 512][..], &data].concat())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("byte 512") && message.contains("zero block"),
        "{message}"
    );
}

#[test]
fn every_limit_is_named_when_it_is_passed() {
    let long = "n".repeat(60);
    let value: &[u8] = &[0; 50];
    let two_xattrs = pax(&[("SCHILY.xattr.user.a", value), ("SCHILY.xattr.user.b", value)]);
    let cases: [(Limits, Vec<Tar>, &str); 9] = [
        (
            Limits {
                entries: 1,
                ..Limits::default()
            },
            vec![file("a", b""), file("b", b"")],
            "number of entries",
        ),
        (
            Limits {
                entries: 2,
                ..Limits::default()
            },
            vec![file("a/b/c/d", b"")],
            "number of entries",
        ),
        (
            Limits {
                path_len: 50,
                ..Limits::default()
            },
            vec![file(&long, b"")],
            "length of a path",
        ),
        (
            Limits {
                depth: 2,
                ..Limits::default()
            },
            vec![file("a/b/c/f", b"")],
            "depth of a directory",
        ),
        (
            Limits {
                xattr_bytes: 99,
                ..Limits::default()
            },
            vec![two_xattrs.clone(), file("a", b"")],
            "bytes of extended attributes",
        ),
        (
            Limits {
                xattr_count: 1,
                ..Limits::default()
            },
            vec![two_xattrs.clone(), file("a", b"")],
            "number of extended attributes",
        ),
        (
            Limits {
                tar_extension_bytes: 20,
                ..Limits::default()
            },
            vec![two_xattrs],
            "bytes of an extension header",
        ),
        (
            Limits {
                deferred_links: 1,
                ..Limits::default()
            },
            vec![hardlink("a", "x"), hardlink("b", "x")],
            "number of hard links to lower layers",
        ),
        (
            Limits {
                layer_plain_len: 4096,
                ..Limits::default()
            },
            vec![file("a", b"").size(5000)],
            "plain length of the layer",
        ),
    ];
    for (limits, entries, what) in cases {
        let error = scan_pieces(&archive(entries), super::CHUNK, &limits, &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(what) && error.contains("over the limit of"),
            "{what}: {error}"
        );
    }
    let few = Limits {
        chunks: 1,
        ..Limits::default()
    };
    let error = scan_pieces(&archive([file("a", &[1; 200_000])]), super::CHUNK, &few, &[]).unwrap_err();
    assert!(error.to_string().starts_with("number of chunks"), "{error}");
}

#[test]
fn owners_that_the_kernel_would_change_are_refused() {
    assert_eq!(
        node(&layer([pax(&[("uid", b"4294967294")]), file("f", b"")]), "f")
            .attributes
            .uid,
        u32::MAX - 1
    );
    assert!(
        refusal([pax(&[("uid", b"4294967295")]), file("f", b"")])
            .contains("uid is 4294967295, over the limit")
    );
    assert!(refusal([pax(&[("gid", b"-1")]), file("f", b"")]).contains("gid is negative"));
}
