//! Blobs of both kinds, and what is wrong with others.

mod pins;

use std::io::Write as _;

use base64::Engine as _;
use serde_json::{Value, json};

use super::*;
use crate::compression::ChunkDecoder;
use crate::inode::Timestamp;
use crate::tree::{ExtentSource, FileContent};
use crate::{Digest, FormatError, LayerIndex, Limits, NodeId, NodeKind, Tree};

/// A blob in the making, with the entries of its TOC.
struct Maker {
    kind: TocKind,
    blob: Vec<u8>,
    entries: Vec<Value>,
}

struct Made {
    blob: Vec<u8>,
    json: Vec<u8>,
    stored: Range<usize>,
    location: TocLocation,
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, 3).unwrap()
}

fn skippable(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&0x184D_2A50_u32.to_le_bytes()[..], &len.to_le_bytes(), payload].concat()
}

fn estargz_footer(toc_off: usize) -> Vec<u8> {
    let field = format!("SG\x16\0{toc_off:016x}STARGZ");
    [
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0",
        field.as_bytes(),
        b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0",
    ]
    .concat()
}

impl Maker {
    fn new(kind: TocKind) -> Self {
        let mut maker = Self {
            kind,
            blob: Vec::new(),
            entries: Vec::new(),
        };
        // The header of the first entry lies before the first piece.
        maker.member(&[0; 512]);
        maker
    }

    fn member(&mut self, plain: &[u8]) -> usize {
        let off = self.blob.len();
        self.blob.extend(match self.kind {
            TocKind::Estargz | TocKind::EstargzApart => gzip(plain),
            TocKind::ZstdChunked => zstd(plain),
        });
        off
    }

    fn entry(&mut self, entry: Value) {
        self.entries.push(entry);
    }

    /// A file in pieces of `len` bytes, each with some of the bytes that follow it in the tar.
    fn file(&mut self, name: &str, content: &[u8], len: usize) {
        let mut entry = json!({ "name": name, "type": "reg", "size": content.len(), "mode": 0o644,
            "digest": Digest::of(content).to_string() });
        for (at, piece) in content.chunks(len).enumerate() {
            let mut tail = piece.to_vec();
            tail.extend([7; 700]);
            entry["offset"] = json!(self.member(&tail));
            entry["chunkOffset"] = json!(at * len);
            if piece.len() == len {
                entry["chunkSize"] = json!(len);
            }
            entry["chunkDigest"] = json!(Digest::of(piece).to_string());
            self.entry(entry);
            entry = json!({ "name": name, "type": "chunk" });
        }
    }

    fn finish(self) -> Made {
        let json = serde_json::to_vec(&json!({ "version": 1, "entries": self.entries })).unwrap();
        finish(self.kind, self.blob, json)
    }
}

/// The gzip member with a TOC.
fn estargz_toc(json: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(json.len() as u64);
    header.set_mode(0);
    archive
        .append_data(&mut header, "stargz.index.json", json)
        .unwrap();
    gzip(&archive.into_inner().unwrap())
}

fn finish(kind: TocKind, mut blob: Vec<u8>, json: Vec<u8>) -> Made {
    let start = blob.len();
    let stored = match kind {
        TocKind::EstargzApart => {
            blob.extend(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0STARGZEXTERNALTOC");
            blob.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
            let end = blob.len();
            let location = find_toc(&blob, end as u64).unwrap().unwrap();
            assert_eq!(location.stored, start as u64..end as u64);
            // What follows the blob here is a blob of its own.
            blob.extend(estargz_toc(&json));
            let stored = end..blob.len();
            return Made {
                blob,
                json,
                stored,
                location,
            };
        }
        TocKind::Estargz => {
            blob.extend(estargz_toc(&json));
            let end = blob.len();
            blob.extend(estargz_footer(start));
            start..end
        }
        TocKind::ZstdChunked => {
            let toc = zstd(&json);
            blob.extend(skippable(&toc));
            let start = start + 8;
            let mut footer: Vec<u8> = [start, toc.len(), json.len(), 1]
                .iter()
                .flat_map(|number| (*number as u64).to_le_bytes())
                .collect();
            footer.extend(b"GnUlInUx");
            blob.extend(skippable(&footer));
            start..start + toc.len()
        }
    };
    let location = find_toc(&blob, blob.len() as u64).unwrap().unwrap();
    assert_eq!(location.stored, stored.start as u64..stored.end as u64);
    Made {
        blob,
        json,
        stored,
        location,
    }
}

impl Made {
    fn pinned(&self) -> PinnedToc {
        let digest = Digest::of(&self.json).to_string();
        let get =
            |name: &str| (name == "containerd.io/snapshot/stargz/toc.digest").then_some(digest.as_str());
        PinnedToc::of_annotations(get).unwrap().unwrap()
    }

    fn open(&self) -> Result<Toc, FormatError> {
        let stored = &self.blob[self.stored.clone()];
        Toc::open(stored, self.location.clone(), &self.pinned(), &Limits::default())
    }

    fn index(&self) -> Result<LayerIndex, FormatError> {
        Ok(self.open()?.layer_index(&Limits::default())?.index)
    }

    /// Every chunk decoded, one after the other.
    fn plain(&self, index: &LayerIndex) -> Result<Vec<u8>, FormatError> {
        let mut decoder = ChunkDecoder::new()?;
        let mut plain = Vec::new();
        for (at, chunk) in index.chunks.chunks().iter().enumerate() {
            let stored = chunk.stored_off as usize..chunk.stored_range().end as usize;
            plain.extend(decoder.decode(&index.chunks, at, &self.blob[stored])?);
        }
        Ok(plain)
    }
}

fn child<'t>(tree: &'t Tree, path: &str) -> &'t crate::Node {
    let find = |at, name: &str| {
        tree.child(at, name.as_bytes())
            .unwrap_or_else(|| panic!("no {path}"))
    };
    tree.node(path.split('/').fold(NodeId::ROOT, find))
}

fn content<'t>(tree: &'t Tree, path: &str) -> &'t FileContent {
    match &child(tree, path).kind {
        NodeKind::Regular(content) => content,
        other => panic!("{path} is {other:?}"),
    }
}

fn read(tree: &Tree, path: &str, plain: &[u8]) -> Vec<u8> {
    let content = content(tree, path);
    let mut bytes = vec![0; content.size as usize];
    for extent in &content.extents {
        let ExtentSource::Plain { plain_off, .. } = extent.source else {
            panic!("a literal");
        };
        let (to, from, len) = (extent.file_off as usize, plain_off as usize, extent.len as usize);
        bytes[to..to + len].copy_from_slice(&plain[from..from + len]);
    }
    bytes
}

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> (seed % 24)) as u8)
        .collect()
}

const KINDS: [TocKind; 3] = [TocKind::Estargz, TocKind::EstargzApart, TocKind::ZstdChunked];

#[test]
fn files_have_their_bytes_in_both_kinds() {
    for kind in KINDS {
        let mut maker = Maker::new(kind);
        maker.entry(json!({ "name": "usr/", "type": "dir", "mode": 0o755, "uid": 3 }));
        let (one, two) = (bytes(1000, 1), bytes(300_000, 2));
        maker.file("usr/one", &one, 1 << 20);
        maker.file("usr/two", &two, 100_000);
        maker.entry(json!({ "name": "empty", "type": "reg" }));
        maker.entry(json!({ "name": "usr/again", "type": "hardlink", "linkName": "usr/one", "mode": 0o600 }));
        let made = maker.finish();
        let index = made.index().unwrap();
        assert!(index.is_synthetic() && index.encode().is_err());
        let plain = made.plain(&index).unwrap();
        assert_eq!(plain.len() as u64, index.plain_len());
        let tree = index.layer_tree(&Limits::default()).unwrap().tree;
        assert_eq!(read(&tree, "usr/one", &plain), one);
        assert_eq!(read(&tree, "usr/two", &plain), two);
        assert_eq!(content(&tree, "empty").size, 0);
        assert_eq!(child(&tree, "usr/again").attributes.permissions, 0o600);
        assert_eq!(child(&tree, "usr").attributes.uid, 3);
        match kind {
            TocKind::Estargz => assert_eq!(read(&tree, "stargz.index.json", &plain), made.json),
            _ => assert!(tree.child(NodeId::ROOT, b"stargz.index.json").is_none()),
        }
    }
}

#[test]
fn all_kinds_of_entries_are_those_of_a_tar() {
    let mut maker = Maker::new(TocKind::ZstdChunked);
    let capability = base64::engine::general_purpose::STANDARD.encode(b"\x01\0\0\x02");
    maker.entry(
        json!({ "name": "f", "type": "reg", "mode": 0o104_755, "modtime": "2024-02-29T23:59:59.25Z",
        "xattrs": { "security.capability": capability } }),
    );
    maker.entry(json!({ "name": "s", "type": "symlink", "linkName": "f" }));
    maker.entry(json!({ "name": "c", "type": "char", "devMajor": 5, "devMinor": 1 }));
    maker.entry(json!({ "name": "b", "type": "block", "devMajor": 8, "xattrs": null, "modtime": "0001-01-01T00:00:00Z" }));
    maker.entry(json!({ "name": "p", "type": "fifo" }));
    maker.entry(json!({ "name": "d/.wh.gone", "type": "reg", "size": 0 }));
    maker.entry(json!({ "name": "d/.wh..wh..opq", "type": "reg" }));
    let made = maker.finish();
    let tree = made.index().unwrap().layer_tree(&Limits::default()).unwrap().tree;
    let file = &child(&tree, "f").attributes;
    assert_eq!(file.permissions, 0o4755);
    assert_eq!(
        file.mtime,
        Timestamp {
            secs: 1_709_251_199,
            nanos: 250_000_000
        }
    );
    assert_eq!(file.xattrs[&b"security.capability"[..]], b"\x01\0\0\x02");
    assert_eq!(child(&tree, "s").kind, NodeKind::Symlink(b"f".to_vec()));
    assert!(matches!(child(&tree, "c").kind, NodeKind::CharDevice(device) if device.major == 5));
    assert!(matches!(child(&tree, "b").kind, NodeKind::BlockDevice(_)));
    assert_eq!(child(&tree, "b").attributes.mtime, Timestamp::default());
    assert_eq!(child(&tree, "p").kind, NodeKind::Fifo);
    assert_eq!(child(&tree, "d/gone").kind, NodeKind::Whiteout);
    assert!(matches!(&child(&tree, "d").kind, NodeKind::Directory(directory) if directory.opaque));
}

#[test]
fn small_files_share_a_member() {
    for kind in KINDS {
        let mut maker = Maker::new(kind);
        let files: Vec<Vec<u8>> = (0..5).map(|at| bytes(900 + at, at as u32)).collect();
        let mut member = Vec::new();
        let mut entries = Vec::new();
        for (at, file) in files.iter().enumerate() {
            entries.push(json!({ "name": format!("f{at}"), "type": "reg", "size": file.len(), "offset": maker.blob.len(),
                "innerOffset": member.len(), "digest": Digest::of(file).to_string() }));
            member.extend(file);
            member.extend([0; 512]);
        }
        maker.member(&member);
        entries.into_iter().for_each(|entry| maker.entry(entry));
        let made = maker.finish();
        let index = made.index().unwrap();
        let plain = made.plain(&index).unwrap();
        let tree = index.layer_tree(&Limits::default()).unwrap().tree;
        for (at, file) in files.iter().enumerate() {
            assert_eq!(read(&tree, &format!("f{at}"), &plain), *file);
        }
    }
}

#[test]
fn long_zeros_are_holes() {
    let mut maker = Maker::new(TocKind::ZstdChunked);
    let (head, tail) = (bytes(700, 1), bytes(100, 2));
    let zeros = 300_000;
    let size = head.len() + zeros + tail.len();
    let off = maker.member(&head);
    maker.entry(
        json!({ "name": "f", "type": "reg", "size": size, "offset": off, "chunkSize": head.len(),
        "chunkDigest": Digest::of(&head).to_string() }),
    );
    maker.entry(json!({ "name": "f", "type": "chunk", "offset": 1, "chunkOffset": head.len(), "chunkSize": zeros, "chunkType": "zeros" }));
    let off = maker.member(&tail);
    maker.entry(json!({ "name": "f", "type": "chunk", "offset": off, "chunkOffset": head.len() + zeros, "chunkSize": tail.len(),
        "chunkDigest": Digest::of(&tail).to_string() }));
    maker.entry(
        json!({ "name": "z", "type": "reg", "size": 1 << 30, "chunkSize": 1 << 30, "chunkType": "zeros" }),
    );
    let made = maker.finish();
    let index = made.index().unwrap();
    let plain = made.plain(&index).unwrap();
    assert!(plain.len() < 150_000, "{}", plain.len());
    let tree = index.layer_tree(&Limits::default()).unwrap().tree;
    let expected = [&head[..], &vec![0; zeros], &tail].concat();
    assert_eq!(read(&tree, "f", &plain), expected);
    assert_eq!(content(&tree, "z").extents, []);
}

#[test]
fn a_wrong_byte_in_a_piece_is_never_shown() {
    for kind in KINDS {
        let mut maker = Maker::new(kind);
        maker.file("f", &bytes(3000, 3), 1000);
        let mut made = maker.finish();
        let index = made.index().unwrap();
        let right = made.plain(&index).unwrap();
        for at in 0..made.stored.start {
            made.blob[at] ^= 0x10;
            if let Ok(plain) = made.plain(&index) {
                assert_eq!(plain, right);
            }
            made.blob[at] ^= 0x10;
        }
    }
}

fn refused(entries: Value) -> String {
    let json = serde_json::to_vec(&json!({ "version": 1, "entries": entries })).unwrap();
    refused_json(json)
}

fn refused_json(json: Vec<u8>) -> String {
    let made = finish(TocKind::ZstdChunked, vec![0; 4096], json);
    made.index().unwrap_err().to_string()
}

#[test]
fn lying_tables_are_refused_by_name() {
    let digest = Digest::of(b"").to_string();
    let file = |more: Value| {
        let mut entry = json!({ "name": "f", "type": "reg", "size": 1000, "offset": 1, "digest": digest });
        entry
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        entry
    };
    let chunk = |more: Value| {
        let mut entry = file(more);
        entry["type"] = json!("chunk");
        entry
    };
    for (entries, reason) in [
        (
            json!([{ "name": "../f", "type": "reg" }]),
            "climbs above the root",
        ),
        (
            json!([{ "name": "a/../../f", "type": "reg" }]),
            "climbs above the root",
        ),
        (
            json!([{ "name": "f", "type": "door" }]),
            "type \"door\" is not known",
        ),
        (json!([{ "type": "reg", "name": "a\u{fffd}" }]), "not UTF-8"),
        (json!([file(json!({ "offset": 5000 }))]), "behind the data"),
        (json!([file(json!({ "offset": u64::MAX }))]), "behind the data"),
        (json!([file(json!({ "size": u64::MAX }))]), "size of all files"),
        (json!([file(json!({ "size": 1_u64 << 39 }))]), "decoded length"),
        (
            json!([file(json!({ "innerOffset": u64::MAX }))]),
            "decoded length",
        ),
        (json!([file(json!({ "offset": -1 }))]), "JSON"),
        (json!([file(json!({ "digest": "md5:0" }))]), "not a sha256 digest"),
        (json!([file(json!({ "digest": "" }))]), "has no digest"),
        (json!([file(json!({ "chunkType": "random" }))]), "not known"),
        (json!([file(json!({ "chunkSize": 10 }))]), "no digest"),
        (
            json!([file(json!({ "chunkSize": 10, "chunkDigest": digest }))]),
            "end at byte 10 of 1000",
        ),
        (
            json!([file(json!({ "chunkSize": 2000 }))]),
            "2000 bytes begins 1000 bytes before the end",
        ),
        (json!([file(json!({ "chunkOffset": 7 }))]), "first piece"),
        (json!([chunk(json!({}))]), "belongs to no file"),
        (
            json!([file(json!({})), chunk(json!({ "chunkOffset": 1000 }))]),
            "0 bytes begins 0 bytes",
        ),
        (
            json!([
                file(json!({ "chunkSize": 10, "chunkDigest": digest })),
                chunk(json!({ "chunkOffset": 11 }))
            ]),
            "byte 11",
        ),
        (
            json!([
                file(json!({ "chunkSize": 10, "chunkDigest": digest })),
                chunk(json!({ "name": "g", "chunkOffset": 10 }))
            ]),
            "no file",
        ),
        (json!([file(json!({})), file(json!({ "name": "g" }))]), "overlap"),
        (
            json!([file(json!({})), file(json!({ "name": "g", "innerOffset": 999 }))]),
            "overlap",
        ),
        (
            json!([{ "name": "l", "type": "hardlink", "linkName": "../../etc/passwd" }]),
            "climbs above the root",
        ),
        (
            json!([{ "name": "l", "type": "hardlink", "linkName": "l" }]),
            "is the link itself",
        ),
        (json!([{ "name": "f", "type": "reg", "uid": u32::MAX }]), "uid"),
        (
            json!([{ "name": "f", "type": "reg", "modtime": "yesterday" }]),
            "not a time",
        ),
        (
            json!([{ "name": "f", "type": "reg", "xattrs": { "user.a": "?" } }]),
            "not base64",
        ),
        (
            json!([{ "name": "f", "type": "reg" }, { "name": "f/g", "type": "reg" }]),
            "not a directory",
        ),
    ] {
        let shown = entries.to_string();
        let refusal = refused(entries);
        assert!(refusal.contains(reason), "{shown}: {refusal}");
    }
}

#[test]
fn documents_of_another_form_are_refused() {
    for (json, reason) in [
        (r#"{"entries":[]}"#, "no version"),
        (r#"{"version":2,"entries":[]}"#, "version 2"),
        (r#"{"version":1,"entries":[],"entries":[]}"#, "two lists"),
        (r#"{"version":1,"entries":{}}"#, "JSON"),
        (r#"[]"#, "JSON"),
        (r#"{"version":1} x"#, "JSON"),
        ("", "JSON"),
    ] {
        let refusal = refused_json(json.as_bytes().to_vec());
        assert!(refusal.contains(reason), "{json}: {refusal}");
    }
    let deep = format!("{{\"version\":1,\"x\":{}", "[".repeat(100_000));
    assert!(refused_json(deep.into_bytes()).contains("JSON"));
    let empty = finish(
        TocKind::ZstdChunked,
        vec![0; 10],
        br#"{"version":1,"entries":null,"more":[1]}"#.to_vec(),
    );
    assert_eq!(empty.index().unwrap().plain_len(), 0);
}

#[test]
fn a_later_entry_takes_the_place_of_an_earlier_one() {
    let mut maker = Maker::new(TocKind::ZstdChunked);
    maker.file("f", &bytes(600, 1), 1 << 20);
    maker.file("f", &bytes(900, 5), 1 << 20);
    let made = maker.finish();
    let index = made.index().unwrap();
    let tree = index.layer_tree(&Limits::default()).unwrap().tree;
    assert_eq!(read(&tree, "f", &made.plain(&index).unwrap()), bytes(900, 5));
}

#[test]
fn counts_are_bounded_while_the_document_is_read() {
    let limits = Limits {
        entries: 10,
        ..Limits::default()
    };
    let entries: Vec<Value> = (0..11)
        .map(|at| json!({ "name": at.to_string(), "type": "dir" }))
        .collect();
    let json = serde_json::to_vec(&json!({ "version": 1, "entries": entries })).unwrap();
    let made = finish(TocKind::ZstdChunked, Vec::new(), json);
    let refusal = made.open().unwrap().layer_index(&limits).unwrap_err();
    assert!(
        matches!(refusal, FormatError::Limit { value: 11, .. }),
        "{refusal}"
    );
    let xattrs: serde_json::Map<String, Value> = (0..2000).map(|at| (at.to_string(), json!(""))).collect();
    assert!(refused(json!([{ "name": "f", "type": "reg", "xattrs": xattrs }])).contains("1024"));
}

#[test]
fn a_table_is_not_decoded_beyond_its_bounds() {
    for kind in KINDS {
        let json = [&br#"{"version":1,"entries":[]}"#[..], &vec![b' '; 1 << 20]].concat();
        let made = finish(kind, vec![0; 10], json);
        let limits = Limits {
            toc_len: 1000,
            ..Limits::default()
        };
        let open = |limits| {
            Toc::open(
                &made.blob[made.stored.clone()],
                made.location.clone(),
                &made.pinned(),
                &limits,
            )
        };
        assert!(matches!(open(limits).unwrap_err(), FormatError::Limit { .. }));
        let limits = Limits {
            toc_stored_len: 10,
            ..Limits::default()
        };
        assert!(matches!(open(limits).unwrap_err(), FormatError::Limit { .. }));
        assert!(open(Limits::default()).is_ok());
        let short = TocLocation {
            plain_len: Some(30),
            ..made.location.clone()
        };
        let opened = Toc::open(
            &made.blob[made.stored.clone()],
            short,
            &made.pinned(),
            &Limits::default(),
        );
        assert_eq!(opened.is_err(), kind == TocKind::ZstdChunked);
    }
}
