//! Sparse files read the same in every encoding, whether their data is aligned or not.

use proptest::prelude::*;

use super::tar::{Tar, archive, file, noise, octal, pax};
use super::{CHUNK, bytes_of, node, paths, refusal, scan_bytes, scan_pieces};
use crate::tree::ExtentSource;
use crate::{Limits, NodeKind};

type Map<'a> = &'a [(u64, u64)];

/// Size of the file, its map and its stored data to the entries of a tar.
type Encode = fn(u64, Map<'_>, &[u8]) -> Vec<Tar>;

fn list(map: Map<'_>, separator: &str) -> String {
    let numbers: Vec<String> = map
        .iter()
        .flat_map(|(offset, len)| [offset.to_string(), len.to_string()])
        .collect();
    numbers.join(separator)
}

/// PAX 0.0: repeated records.
fn pax_0_0(size: u64, map: Map<'_>, data: &[u8]) -> Vec<Tar> {
    let numbers: Vec<[String; 2]> = map
        .iter()
        .map(|(offset, len)| [offset.to_string(), len.to_string()])
        .collect();
    let (size, count) = (size.to_string(), map.len().to_string());
    let mut records = vec![
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", count.as_bytes()),
    ];
    for [offset, len] in &numbers {
        records.extend([
            ("GNU.sparse.offset", offset.as_bytes()),
            ("GNU.sparse.numbytes", len.as_bytes()),
        ]);
    }
    vec![pax(&records), file("sp", data)]
}

/// PAX 0.1: one record with the map.
fn pax_0_1(size: u64, map: Map<'_>, data: &[u8]) -> Vec<Tar> {
    let (size, count, map) = (size.to_string(), map.len().to_string(), list(map, ","));
    let records = [
        ("GNU.sparse.name", &b"sp"[..]),
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", count.as_bytes()),
        ("GNU.sparse.map", map.as_bytes()),
    ];
    vec![pax(&records), file("GNUSparseFile.1/sp", data)]
}

/// PAX 1.0: the map in blocks before the data.
fn pax_1_0(size: u64, map: Map<'_>, data: &[u8]) -> Vec<Tar> {
    let size = size.to_string();
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sp"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    let mut text = format!("{}\n{}\n", map.len(), list(map, "\n")).into_bytes();
    text.resize(text.len().next_multiple_of(512), 0);
    text.extend_from_slice(data);
    vec![pax(&records), file("GNUSparseFile.1/sp", &text)]
}

/// Old GNU: 4 map entries in the header, then 21 in each block that follows it. Those blocks do not count as data.
fn gnu(size: u64, map: Map<'_>, data: &[u8]) -> Vec<Tar> {
    let field = |pairs: Map<'_>| -> Vec<u8> {
        pairs
            .iter()
            .flat_map(|(offset, len)| [octal(12, *offset), octal(12, *len)].concat())
            .collect()
    };
    let (first, rest) = map.split_at(map.len().min(4));
    let blocks: Vec<&[(u64, u64)]> = rest.chunks(21).collect();
    let mut behind = Vec::new();
    for (index, pairs) in blocks.iter().enumerate() {
        let mut block = field(pairs);
        block.resize(512, 0);
        block[504] = u8::from(index + 1 < blocks.len());
        behind.extend(block);
    }
    behind.extend_from_slice(data);
    let header = file("sp", &behind).flag(b'S').gnu().size(data.len() as u64);
    vec![
        header
            .raw(386, &field(first))
            .raw(482, &[u8::from(!blocks.is_empty())])
            .raw(483, &octal(12, size)),
    ]
}

const ENCODINGS: [(&str, Encode); 4] = [("0.0", pax_0_0), ("0.1", pax_0_1), ("1.0", pax_1_0), ("GNU", gnu)];

/// Scans the file in all encodings and compares it with what the map says; gives the largest number of literal bytes.
fn check(size: u64, map: Map<'_>) -> usize {
    let stored: u64 = map.iter().map(|(_, len)| len).sum();
    let data = noise(size, usize::try_from(stored).unwrap());
    let mut expected = vec![0; usize::try_from(size).unwrap()];
    let mut rest = &data[..];
    for (offset, len) in map {
        let (segment, behind) = rest.split_at(usize::try_from(*len).unwrap());
        expected[usize::try_from(*offset).unwrap()..][..segment.len()].copy_from_slice(segment);
        rest = behind;
    }
    let mut most = 0;
    for (name, encode) in ENCODINGS {
        let mut entries = encode(size, map, &data);
        entries.push(file("z", b"after"));
        let plain = archive(entries);
        assert!(
            bytes_of(&plain, "sp") == expected,
            "{name}: {size} bytes, {map:?}"
        );
        assert_eq!(bytes_of(&plain, "z"), b"after", "{name}");
        let (scanned, _) = scan_bytes(&plain).unwrap();
        assert_eq!(paths(&scanned.layer), ["/sp", "/z"], "{name}");
        most = most.max(literal_bytes(&plain));
    }
    most
}

fn literal_bytes(plain: &[u8]) -> usize {
    let (scanned, _) = scan_bytes(plain).unwrap();
    let NodeKind::Regular(content) = &node(&scanned.layer, "sp").kind else {
        panic!()
    };
    let literals = content.extents.iter().map(|extent| match &extent.source {
        ExtentSource::Literal(bytes) => bytes.len(),
        ExtentSource::Plain { .. } => 0,
    });
    literals.sum()
}

#[test]
fn aligned_sparse_files_are_mapped_in_place() {
    assert_eq!(check(5000, &[(512, 512), (2048, 1024)]), 0);
    assert_eq!(
        check(1 << 20, &[(0, 4096), (8192, 512), (8704, 512), (1_048_064, 512)]),
        0
    );
    assert_eq!(
        check(5000, &[(512, 512), (4608, 392)]),
        0,
        "the last block of a file may be part of one"
    );
}

#[test]
fn holes_alone_take_nothing() {
    assert_eq!(check(5000, &[(5000, 0)]), 0);
    assert_eq!(check(0, &[(0, 0)]), 0);
}

#[test]
fn unaligned_sparse_files_are_composed() {
    assert_eq!(check(5000, &[(512, 100)]), 512);
    assert_eq!(check(5000, &[(3, 500), (600, 12), (3000, 100)]), 512 * 4);
    assert_eq!(check(5000, &[(100, 700), (4000, 1000)]), 1024 + 1416);
    assert_eq!(check(700, &[(1, 1), (699, 1)]), 700);
    assert_eq!(check(5000, &[(0, 100), (512, 1024)]), 512 + 1024);
    assert!(check(10_000, &[(0, 10), (20, 10), (40, 3000), (3100, 5000)]) > 8000);
}

#[test]
fn blocks_that_are_aligned_by_chance_are_mapped_in_place() {
    assert_eq!(
        check(5000, &[(0, 100), (612, 1436)]),
        1024,
        "of 1536 bytes stored, 1024 are whole blocks"
    );
}

#[test]
fn many_segments_pass_every_encoding() {
    let map: Vec<(u64, u64)> = (0..60).map(|index| (index * 1024, 512)).collect();
    assert_eq!(check(61_440, &map), 0);
}

#[test]
fn maps_that_contradict_themselves_are_refused() {
    let data = [1; 612];
    let cases: [(u64, Map<'_>, &str); 5] = [
        (5000, &[(512, 512)], "exactly the stored data"),
        (5000, &[(512, 700)], "exactly the stored data"),
        (5000, &[(2048, 512), (0, 100)], "not in order"),
        (5000, &[(0, 512), (500, 100)], "not in order"),
        (600, &[(0, 612)], "beyond the end"),
    ];
    for (size, map, reason) in cases {
        for (name, encode) in ENCODINGS {
            let message = refusal(encode(size, map, &data));
            assert!(
                message.contains("\"sp\"") && message.contains(reason),
                "{name} {map:?}: {message}"
            );
        }
    }
    assert!(refusal(pax_0_1(600, &[(u64::MAX / 2, u64::MAX / 2)], &data)).contains("beyond the end"));
}

#[test]
fn broken_map_encodings_are_refused() {
    let records = |count: &'static [u8], map: &'static [u8]| {
        let sparse = pax(&[
            ("GNU.sparse.numblocks", count),
            ("GNU.sparse.map", map),
            ("GNU.sparse.size", b"600"),
        ]);
        refusal([sparse, file("sp", &[1; 100])])
    };
    assert!(records(b"2", b"0,100").contains("announced number"));
    assert!(records(b"", b"0,100").contains("announced number"));
    assert!(records(b"1", b"0,x").contains("something else than numbers"));
    assert!(records(b"1", b"-1,5").contains("something else than numbers"));
    let swapped = [
        ("GNU.sparse.numblocks", &b"1"[..]),
        ("GNU.sparse.numbytes", b"100"),
        ("GNU.sparse.offset", b"0"),
    ];
    assert!(refusal([pax(&swapped), file("sp", &[1; 100])]).contains("PAX record"));
    let version = [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0")];
    for (text, reason) in [
        ("x\n", "numbers"),
        ("1\n0\n", "cut off"),
        ("-1\n", "numbers"),
        ("1\n0\ny\n", "numbers"),
    ] {
        let mut text = text.as_bytes().to_vec();
        text.resize(512, b' ');
        let message = refusal([pax(&version), file("sp", &text)]);
        assert!(message.contains(reason), "{message}");
    }
    assert!(
        refusal([pax(&version), file("sp", b"0\n")]).contains("cut off"),
        "a map is whole blocks"
    );
    assert!(refusal([pax(&version), file("sp", b"").flag(b'5')]).contains("only a regular file"));
    assert!(refusal([file("sp", b"").flag(b'S')]).contains("no GNU header"));
    assert!(refusal([file("sp", b"").flag(b'S').gnu().raw(483, b"x")]).contains("not a number"));
}

#[test]
fn unknown_sparse_versions_are_ordinary_files() {
    let plain = archive([
        pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]),
        file("f", b"abc"),
    ]);
    assert_eq!(bytes_of(&plain, "f"), b"abc");
}

#[test]
fn sparse_files_are_bounded() {
    let map: Vec<(u64, u64)> = (0..30).map(|index| (index * 1024, 1)).collect();
    for (name, encode) in ENCODINGS {
        let plain = archive(encode(1 << 20, &map, &[7; 30]));
        let scan = |limits| {
            scan_pieces(&plain, CHUNK, &limits, &[])
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            scan(Limits {
                literal_bytes: 30 * 512,
                ..Limits::default()
            }),
            Ok(()),
            "{name}"
        );
        let error = scan(Limits {
            literal_bytes: 30 * 512 - 1,
            ..Limits::default()
        })
        .unwrap_err();
        assert!(
            error.starts_with("bytes of unaligned sparse files is 15360, over"),
            "{name}: {error}"
        );
        let error = scan(Limits {
            sparse_segments: 29,
            ..Limits::default()
        })
        .unwrap_err();
        assert!(
            error.starts_with("number of sparse segments is 30, over the limit of 29"),
            "{name}: {error}"
        );
        let error = scan(Limits {
            layer_plain_len: 100_000,
            ..Limits::default()
        })
        .unwrap_err();
        assert!(error.starts_with("size of a sparse file"), "{name}: {error}");
    }
    let endless = [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0")];
    let limits = Limits {
        sparse_segments: 10,
        ..Limits::default()
    };
    let plain = archive([pax(&endless), file("f", &[b'0'; 4096])]);
    assert!(
        scan_pieces(&plain, CHUNK, &limits, &[])
            .unwrap_err()
            .to_string()
            .contains("overlong")
    );
}

proptest! {
    #[test]
    fn any_map_reads_the_same_in_every_encoding(
        gaps in prop::collection::vec((0_u64..1500, 0_u64..2500), 1..30),
        aligned: bool,
        tail in 0_u64..2000,
    ) {
        let unit = |len: u64| if aligned { len.next_multiple_of(512) } else { len };
        let mut map = Vec::new();
        let mut end = 0;
        for (gap, len) in gaps {
            map.push((end + unit(gap), unit(len)));
            end += unit(gap) + unit(len);
        }
        let literals = check(end + tail, &map);
        prop_assert!(!aligned || literals == 0);
    }
}
