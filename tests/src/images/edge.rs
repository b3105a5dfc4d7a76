//! The edge image: every rule of unpacking a layer, each in a directory named after it.
//!
//! A feature adds its entries to the layers in `Stack`; the tree comparison then says by path which rule is broken. Only
//! what containerd's overlayfs unpack accepts is here; what it refuses is in [`super::apart`].

use std::io::Read;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::entry::{Entry, Pattern};
use super::{Compression, Image, ImageBuilder, Layer, Sparse, SparseEncoding};

/// Directories of the edge image that no entry of the highest layer touching them describes: containerd gives them the
/// time of unpacking.
pub const IMPLIED_DIRECTORIES: [&str; 19] = [
    "duplicates/file-then-directory-implied",
    "implied-new",
    "implied-new/deep",
    "implied-over/odd",
    "implied-over/odd/below",
    "implied-over-symlink",
    "implied-over-symlink/link",
    "implied-over-whiteout",
    "implied-over-whiteout/gone",
    "opaque-implied",
    "opaque-implied/hidden",
    "symlinked-parents/lower-real",
    "whiteout",
    "whiteout/tree",
    "names/slashes",
    "implied-over",
    "links",
    "kinds-implied",
    "kinds-implied/was-file",
];

/// Regular files of the edge image that lost a name to a whiteout: overlayfs still counts it.
pub const LOST_A_NAME: [&str; 2] = ["links/first", "links/sub/third"];

/// The entries of the three layers, lowest first.
#[derive(Debug, Default)]
struct Stack {
    low: Vec<Entry>,
    middle: Vec<Entry>,
    high: Vec<Entry>,
}

/// Writes the edge image into the layout in `directory` under the tag `edge`.
///
/// # Errors
/// When it cannot be written.
pub fn write(directory: &Path) -> Result<Image> {
    let mut stack = Stack::default();
    stack.low.push(Entry::directory("./", 0o711));
    for feature in [
        whiteouts,
        opaque_directories,
        changing_kinds,
        hard_links,
        implied_directories,
        duplicates,
        long_names,
        odd_names,
        modes_and_devices,
        sparse_files,
        file_lengths,
        extended_attributes,
        times,
        owners,
        symlinked_parents,
        symlinks,
        odd_headers,
    ] {
        feature(&mut stack);
    }
    ImageBuilder::new()
        .layer(Layer::of(stack.low).compression(Compression::GzipMembers(100_000)))
        .layer(Layer::new())
        .layer(Layer::of(stack.middle).compression(Compression::Zstd))
        .layer(Layer::new().compression(Compression::None))
        .layer(Layer::new().closing_blocks(0))
        .layer(Layer::new().closing_blocks(0).compression(Compression::Zstd))
        .layer(Layer::of(stack.high).compression(Compression::None))
        .layer(Layer::of([Entry::file("last", b"x")]).compression(Compression::ZstdFrames(300)))
        .config("/config/Cmd", json!(["/none"]))
        .write(directory, "edge")
}

fn whiteouts(stack: &mut Stack) {
    stack.low.extend([
        Entry::directory("whiteout", 0o755),
        Entry::file("whiteout/gone", b"1"),
        Entry::file("whiteout/kept", b"2"),
        Entry::directory("whiteout/tree", 0o755),
        Entry::directory("whiteout/tree/gone", 0o755),
        Entry::file("whiteout/tree/gone/deep", b"3"),
        Entry::file("whiteout/comes-back", b"old"),
        Entry::directory("whiteout/tree-comes-back", 0o700),
        Entry::file("whiteout/tree-comes-back/old", b"old"),
    ]);
    stack.middle.extend([
        Entry::whiteout("whiteout/gone"),
        Entry::whiteout("whiteout/tree/gone"),
        Entry::whiteout("whiteout/comes-back"),
        Entry::whiteout("whiteout/tree-comes-back"),
        Entry::whiteout("whiteout/never-was"),
    ]);
    stack.high.extend([
        Entry::file("whiteout/comes-back", b"new"),
        Entry::directory("whiteout/tree-comes-back", 0o755),
        Entry::file("whiteout/tree-comes-back/new", b"new"),
    ]);
}

fn opaque_directories(stack: &mut Stack) {
    for name in ["opaque", "opaque-late", "opaque-implied", "opaque-implied/hidden"] {
        stack.low.push(Entry::directory(name, 0o750).owner(3, 4));
        stack.low.push(Entry::file(format!("{name}/old"), b"old"));
    }
    stack.middle.extend([
        Entry::directory("opaque", 0o755),
        Entry::opaque("opaque"),
        Entry::file("opaque/new", b"new"),
        Entry::directory("opaque-late", 0o755),
        Entry::file("opaque-late/new", b"new"),
        Entry::opaque("opaque-late"),
        Entry::opaque("opaque-implied/hidden"),
    ]);
    stack
        .high
        .push(Entry::file("opaque-implied/hidden/newest", b"newest"));
}

fn changing_kinds(stack: &mut Stack) {
    stack.low.extend([
        Entry::directory("kinds", 0o755),
        Entry::file("kinds/file-directory-file", b"1"),
        Entry::directory("kinds/directory-file-directory", 0o755),
        Entry::file("kinds/directory-file-directory/below", b"hidden for good"),
        Entry::directory("kinds/directory-symlink", 0o755),
        Entry::file("kinds/directory-symlink/below", b"hidden"),
        Entry::symlink("kinds/symlink-directory", "directory-symlink"),
        Entry::fifo("kinds/fifo-file"),
        Entry::directory("kinds-implied", 0o755),
        Entry::file("kinds-implied/was-file", b"file"),
    ]);
    stack.middle.extend([
        Entry::directory("kinds", 0o755),
        Entry::directory("kinds/file-directory-file", 0o755),
        Entry::file("kinds/file-directory-file/below", b"2"),
        Entry::file("kinds/directory-file-directory", b"2"),
        Entry::symlink("kinds/directory-symlink", "/etc"),
        Entry::directory("kinds/symlink-directory", 0o700),
        Entry::file("kinds/symlink-directory/below", b"in a directory"),
        Entry::file("kinds/fifo-file", b"file"),
        Entry::file("kinds-implied/was-file/below", b"now a directory"),
    ]);
    stack.high.extend([
        Entry::directory("kinds", 0o755),
        Entry::file("kinds/file-directory-file", b"3"),
        Entry::directory("kinds/directory-file-directory", 0o711),
        Entry::file("kinds/directory-file-directory/above", b"3"),
    ]);
}

fn hard_links(stack: &mut Stack) {
    stack.low.extend([
        Entry::directory("links", 0o755),
        Entry::file("links/first", b"linked")
            .owner(5, 6)
            .xattr("user.of", b"the inode"),
        Entry::hard_link("links/second", "links/first"),
        Entry::directory("links/sub", 0o755),
        Entry::hard_link("links/sub/third", "./links/first"),
        Entry::symlink("links/symbolic", "first"),
        Entry::hard_link("links/symbolic-too", "links/symbolic"),
        Entry::fifo("links/pipe"),
        Entry::hard_link("links/pipe-too", "/links/pipe"),
        Entry::file("links/replaced", b"old content"),
        Entry::hard_link("links/keeps-old", "links/replaced"),
        Entry::file("links/replaced", b"new content"),
        Entry::hard_link("links/claims-bytes", "links/replaced").claimed_len(11),
    ]);
    stack.high.push(Entry::whiteout("links/second"));
}

fn implied_directories(stack: &mut Stack) {
    let odd = Entry::directory("implied-over/odd", 0o3751)
        .owner(12, 34)
        .mtime(1_000_000_000, 5);
    stack.low.extend([
        Entry::file("implied-new/deep/file", b"nobody described my parents"),
        Entry::directory("implied-over", 0o755),
        odd.xattr("user.kept", b"yes").xattr("trusted.kept", b"too"),
        Entry::directory("implied-over/odd/below", 0o2700).owner(99, 98),
        Entry::directory("implied-over-symlink", 0o755),
        Entry::directory("implied-over-symlink/real", 0o2705).owner(21, 22),
        Entry::symlink("implied-over-symlink/link", "real"),
        Entry::directory("implied-over-whiteout", 0o755),
        Entry::directory("implied-over-whiteout/gone", 0o700).owner(31, 32),
        Entry::file("implied-over-whiteout/gone/old", b"old"),
    ]);
    stack.middle.extend([
        Entry::file("implied-over/odd/below/added", b"a"),
        Entry::file("implied-over-symlink/link/added", b"b"),
        Entry::whiteout("implied-over-whiteout/gone"),
    ]);
    stack.high.extend([
        Entry::file("implied-over/odd/below/added-later", b"c"),
        Entry::file("implied-over-whiteout/gone/new", b"new"),
    ]);
}

fn duplicates(stack: &mut Stack) {
    stack.low.extend([
        Entry::directory("duplicates", 0o700),
        Entry::file("duplicates/file", b"first, longer").owner(1, 1),
        Entry::file("duplicates/file", b"second").mode(0o600),
        Entry::directory("duplicates/directory", 0o700).xattr("user.first", b"1"),
        Entry::file("duplicates/directory/kept", b"kept"),
        Entry::directory("duplicates/directory", 0o750)
            .owner(2, 3)
            .mtime(1_234_567_890, 0),
        Entry::file("duplicates/file-then-directory", b"file"),
        Entry::directory("duplicates/file-then-directory", 0o755),
        Entry::directory("duplicates/directory-then-file", 0o755),
        Entry::file("duplicates/directory-then-file/lost", b"lost"),
        Entry::file("duplicates/directory-then-file", b"file"),
        Entry::symlink("duplicates/symlink-then-file", "file"),
        Entry::file("duplicates/symlink-then-file", b"not through the link"),
        Entry::directory("duplicates/file-then-directory-implied", 0o755),
        Entry::whiteout("duplicates/whiteout-then-file"),
        Entry::file("duplicates/whiteout-then-file", b"stays"),
        Entry::directory("duplicates", 0o755),
    ]);
    stack
        .middle
        .push(Entry::file("duplicates/file-then-directory-implied/x", b"x"));
    stack.middle.push(Entry::directory("duplicates", 0o755));
}

fn long_names(stack: &mut Stack) {
    let part = |byte: u8, len: usize| String::from_utf8_lossy(&vec![byte; len]).into_owned();
    let deep = format!("names/{}/{}", part(b'a', 200), part(b'b', 200));
    let splittable = format!("names/{}/{}", part(b'u', 90), part(b'v', 90));
    stack.low.extend([
        Entry::directory("names", 0o755),
        Entry::directory(format!("names/{}", part(b'a', 200)), 0o755),
        Entry::directory(&deep, 0o755),
        Entry::file(format!("{deep}/{}", part(b'p', 255)), b"PAX"),
        Entry::file(format!("{deep}/{}", part(b'g', 255)), b"GNU").gnu(),
        Entry::symlink(format!("{deep}/pax-link"), part(b't', 900)),
        Entry::symlink(format!("{deep}/gnu-link"), part(b't', 900)).gnu(),
        Entry::hard_link(format!("{deep}/pax-hard"), format!("{deep}/{}", part(b'p', 255))),
        Entry::hard_link(format!("{deep}/gnu-hard"), format!("{deep}/{}", part(b'g', 255))).gnu(),
        Entry::directory(format!("names/{}", part(b'u', 90)), 0o755),
        Entry::file(&splittable, b"prefix and name").ustar(),
        Entry::file(format!("names/{}", part(b'x', 94)), b"exactly 100 bytes, no NUL"),
    ]);
}

fn odd_names(stack: &mut Stack) {
    stack.low.extend([
        Entry::file(b"names/caf\xe9", b"Latin-1"),
        Entry::file(b"names/\xff\xfe\x80", b"no encoding"),
        Entry::file("names/na\u{ef}ve-\u{4f60}\u{597d}", b"UTF-8"),
        Entry::file("names/with\nnewline\ttab \\ \"quotes\" ", b"all one name"),
        Entry::file("names/.whatever", b"not a whiteout"),
        Entry::file("./names/dotted", b"leading dot"),
        Entry::file("names//slashes/.//two", b"cleaned"),
        Entry::directory("names/trailing/", 0o755),
    ]);
}

fn modes_and_devices(stack: &mut Stack) {
    stack.low.extend([
        Entry::directory("modes", 0o755),
        Entry::file("modes/set-user-id", b"x")
            .mode(0o4755)
            .owner(1000, 1000),
        Entry::file("modes/set-group-id", b"x")
            .mode(0o2755)
            .owner(1000, 1000),
        Entry::directory("modes/sticky", 0o1777),
        Entry::file("modes/none", b"x").mode(0),
        Entry::file("modes/all", b"x").mode(0o7777),
        Entry::char_device("modes/null", 1, 3),
        Entry::char_device("modes/large", 511, 70_000)
            .owner(1, 5)
            .mode(0o666),
        Entry::block_device("modes/disk", 8, 1),
        Entry::fifo("modes/pipe").mode(0o622).owner(9, 9),
    ]);
}

/// Files with holes in one encoding, each with a name for its shape: data in whole blocks or not, holes at the ends.
pub(super) fn sparse_shapes(encoding: SparseEncoding) -> Vec<(&'static str, Sparse)> {
    let bytes = |seed: u64, len: usize| {
        let mut bytes = vec![0; len];
        // Reading from an endless pattern cannot end early.
        let _ = Pattern::new(seed).read(&mut bytes);
        bytes
    };
    let whole_blocks = vec![
        (0, bytes(1, 1024)),
        (8192, bytes(2, 512)),
        (1 << 20, bytes(3, 4096)),
    ];
    let odd_offsets = vec![
        (100, bytes(7, 1000)),
        (5001, bytes(8, 3)),
        (70_000, bytes(9, 20_000)),
    ];
    let many = (0..200).map(|at| (at * 8192, bytes(at, 512))).collect();
    let shapes = [
        ("whole-blocks", whole_blocks, (1 << 20) + 4096),
        ("hole-at-both-ends", vec![(4096, bytes(4, 512))], 100_000),
        ("odd-tail", vec![(0, bytes(5, 512)), (2048, bytes(6, 700))], 2748),
        ("odd-offsets", odd_offsets, 90_001),
        ("no-data", vec![(65_536, Vec::new())], 65_536),
        ("many", many, 200 * 8192),
    ];
    let sparse = |(name, segments, real_len)| {
        let sparse = Sparse {
            encoding,
            segments,
            real_len,
        };
        (name, sparse)
    };
    shapes.into_iter().map(sparse).collect()
}

fn sparse_files(stack: &mut Stack) {
    stack.low.push(Entry::directory("sparse", 0o755));
    for (encoding, name) in SparseEncoding::PAX {
        for (shape, sparse) in sparse_shapes(encoding) {
            stack
                .low
                .push(Entry::sparse(format!("sparse/{name}-{shape}"), sparse));
        }
    }
}

fn file_lengths(stack: &mut Stack) {
    stack.low.push(Entry::directory("lengths", 0o755));
    for len in [
        0,
        1,
        511,
        512,
        513,
        4095,
        4096,
        4097,
        131_071,
        131_072,
        131_073,
        1 << 20,
        (1 << 20) + 1,
        5_000_000,
    ] {
        stack
            .low
            .push(Entry::generated(format!("lengths/{len}"), len, len));
    }
    for at in 0..300 {
        stack
            .middle
            .push(Entry::generated(format!("lengths/small-{at:03}"), at * 37, at));
    }
    stack.high.push(Entry::directory("lengths", 0o755));
}

/// `cap_net_raw=ep` as the kernel keeps it: revision 2 with the effective flag, then permitted and inheritable words.
const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// `u::rwx,u:1000:rw-,g::r-x,m::rwx,o::r--` in the kernel's form: version 2, then tag, permissions and ID of each entry.
fn access_control_list() -> Vec<u8> {
    let none = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (1, 7, none),
        (2, 6, 1000),
        (4, 5, none),
        (0x10, 7, none),
        (0x20, 4, none),
    ];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn extended_attributes(stack: &mut Stack) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    stack.low.extend([
        Entry::directory("xattrs", 0o755)
            .xattr("user.on", b"a directory")
            .xattr("trusted.on", b"too"),
        Entry::file("xattrs/capability", b"x")
            .mode(0o755)
            .xattr("security.capability", CAP_NET_RAW),
        Entry::file("xattrs/acl", b"x")
            .mode(0o774)
            .xattr("system.posix_acl_access", access_control_list()),
        Entry::directory("xattrs/acl-default", 0o755)
            .xattr("system.posix_acl_default", access_control_list()),
        Entry::file("xattrs/binary", b"x")
            .xattr("user.binary", &all_bytes)
            .xattr("user.empty", b""),
        Entry::file("xattrs/large", b"x").xattr("user.large", vec![b'v'; 3000]),
        Entry::symlink("xattrs/symlink", "capability").xattr("trusted.on", b"a symlink"),
        Entry::fifo("xattrs/pipe").xattr("trusted.on", b"a pipe"),
        Entry::file("xattrs/replaced", b"x").xattr("user.old", b"old"),
    ]);
    for at in 0..20 {
        // Several inodes with the same attributes, which an EROFS image may share.
        stack
            .low
            .push(Entry::file(format!("xattrs/shared-{at}"), b"x").xattr("user.shared", b"the same value"));
    }
    let many = Entry::file("xattrs/many", b"x");
    stack.low.push((0..40).fold(many, |entry, at| {
        entry.xattr(&format!("user.number.{at}"), format!("{at}"))
    }));
    stack.middle.extend([
        Entry::directory("xattrs", 0o755).xattr("user.above", b"replaces those below"),
        Entry::file("xattrs/replaced", b"x").xattr("user.new", b"new"),
    ]);
}

fn times(stack: &mut Stack) {
    let far = 5_000_000_000;
    stack.low.extend([
        Entry::directory("times", 0o755).mtime(1_111_111_111, 222_222_222),
        Entry::file("times/nanoseconds", b"x").mtime(1_600_000_000, 123_456_789),
        Entry::symlink("times/symlink", "nanoseconds").mtime(1_600_000_000, 987_654_321),
        Entry::directory("times/directory", 0o755).mtime(1_500_000_000, 1),
        Entry::file("times/directory/later", b"x").mtime(1_600_000_000, 0),
        Entry::file("times/epoch", b"x").mtime(0, 0),
        Entry::file("times/negative-base256", b"x").mtime(-1000, 0).gnu(),
        Entry::file("times/negative-pax", b"x").mtime(-1000, 500_000_000),
        Entry::file("times/far", b"x").mtime(far, 1),
        Entry::file("times/far-gnu", b"x").mtime(far, 0).gnu(),
        Entry::char_device("times/device", 1, 5).mtime(1_600_000_001, 5),
    ]);
}

fn owners(stack: &mut Stack) {
    stack.low.push(Entry::directory("owners", 0o755));
    for id in [
        1,
        65_535,
        65_536,
        2_097_151,
        2_097_152,
        3_000_000,
        4_294_967_294_u64,
    ] {
        stack.low.extend([
            Entry::file(format!("owners/pax-{id}"), b"x").owner(id, id - 1),
            Entry::file(format!("owners/gnu-{id}"), b"x")
                .owner(id, id - 1)
                .gnu(),
        ]);
    }
    stack
        .low
        .push(Entry::directory("owners/directory", 0o755).owner(70_000, 80_000));
    stack
        .low
        .push(Entry::symlink("owners/symlink", "directory").owner(70_000, 80_000));
}

fn symlinked_parents(stack: &mut Stack) {
    stack.low.extend([
        Entry::directory("symlinked-parents", 0o755),
        Entry::directory("symlinked-parents/real", 0o755),
        Entry::symlink("symlinked-parents/relative", "real"),
        Entry::symlink("symlinked-parents/absolute", "/symlinked-parents/real"),
        Entry::symlink(
            "symlinked-parents/escaping",
            "../../../../../symlinked-parents/real",
        ),
        Entry::symlink("symlinked-parents/chain", "relative"),
        Entry::file("symlinked-parents/relative/one", b"1"),
        Entry::file("symlinked-parents/absolute/two", b"2"),
        Entry::file("symlinked-parents/escaping/three", b"3"),
        Entry::file("symlinked-parents/chain/four", b"4"),
        Entry::hard_link("symlinked-parents/chain/five", "symlinked-parents/relative/one"),
        Entry::directory("symlinked-parents/real", 0o711).mtime(1_400_000_000, 0),
        Entry::directory("symlinked-parents/lower-real", 0o750).owner(41, 42),
    ]);
    stack.middle.extend([
        Entry::directory("symlinked-parents", 0o755),
        Entry::symlink("symlinked-parents/to-lower", "lower-real"),
        Entry::file(
            "symlinked-parents/to-lower/added",
            b"through a link to a lower directory",
        ),
        Entry::directory("symlinked-parents", 0o755),
    ]);
}

fn symlinks(stack: &mut Stack) {
    stack.low.extend([
        Entry::directory("symlinks", 0o755),
        Entry::symlink("symlinks/dangling", "nowhere/at/all"),
        Entry::symlink("symlinks/absolute", "/etc/passwd"),
        Entry::symlink("symlinks/escaping", "../../../../../../etc/shadow"),
        Entry::symlink("symlinks/itself", "itself"),
        Entry::symlink("symlinks/long", "x".repeat(4000)),
        Entry::symlink(b"symlinks/bytes", b"\xff\x01 \n"),
    ]);
}

fn odd_headers(stack: &mut Stack) {
    stack.low.extend([
        Entry::file(
            "pax_global_header",
            b"52 comment=0123456789012345678901234567890123456789\n",
        )
        .kind(b'g'),
        Entry::directory("headers", 0o755),
        Entry::file("headers/old-style-file", b"type flag NUL").kind(0),
        Entry::file("headers/old-style-directory/", b"")
            .mode(0o755)
            .kind(0),
        Entry::file("headers/old-style-directory/below", b"x"),
        Entry::directory("headers/directory-with-length", 0o755).claimed_len(512),
        Entry::symlink("headers/symlink-with-length", "old-style-file").claimed_len(14),
        Entry::file("headers/unknown-records", b"x")
            .record("VENDOR.unknown", b"ignored")
            .record("comment", b"too"),
        Entry::file("headers/size-in-record", b"twelve bytes")
            .claimed_len(12)
            .record("size", b"12"),
    ]);
}
