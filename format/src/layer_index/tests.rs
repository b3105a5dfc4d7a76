use super::*;
use crate::compression::Codec;
use crate::inode::Attributes;
use crate::tree::{Directory, Extent, ExtentSource, FileContent};
use crate::{ChunkDigest, ChunkRef, EntryName, Node};

fn name(text: &str) -> EntryName {
    EntryName::new(text.as_bytes()).unwrap()
}

fn sample() -> (LayerIndex, LayerTree) {
    let mut layer = LayerTree::default();
    let content = FileContent {
        size: 700,
        extents: vec![Extent {
            file_off: 0,
            len: 700,
            source: ExtentSource::Plain {
                device: 1,
                plain_off: 512,
            },
        }],
    };
    let attributes = Attributes {
        permissions: 0o644,
        ..Attributes::default()
    };
    let file = layer.tree.add(Node {
        kind: NodeKind::Regular(content),
        attributes,
    });
    let mut etc = Directory {
        implied: true,
        ..Directory::default()
    };
    etc.entries.insert(name("hosts"), file);
    let etc = layer.tree.add(Node {
        kind: NodeKind::Directory(etc),
        attributes: Attributes::default_directory(),
    });
    layer
        .tree
        .directory_mut(crate::NodeId::ROOT)
        .unwrap()
        .entries
        .insert(name("etc"), etc);
    layer.deferred_links.push(DeferredLink {
        path: vec![name("etc"), name("link")],
        target: vec![name("bin")],
    });
    let chunk = |plain_off: u64, plain_len: u32, stored_off: u64| ChunkRef {
        plain_off,
        plain_len,
        stored_off,
        stored_len: 100,
        codec: Codec::Zstd,
        digest: ChunkDigest(Digest::of(&plain_off.to_le_bytes())),
    };
    let chunks = ChunkTable::new(
        vec![chunk(0, 512, 0), chunk(512, 1536, 100)],
        2048,
        &Limits::default(),
    )
    .unwrap();
    (
        LayerIndex::new(DiffId(Digest::of(b"layer")), chunks, &layer).unwrap(),
        layer,
    )
}

#[test]
fn an_index_round_trips_with_tree_and_stacking() {
    let (index, layer) = sample();
    let parsed = LayerIndex::parse(&index.encode().unwrap(), &Limits::default()).unwrap();
    assert_eq!(parsed, index);
    let tree = parsed.layer_tree(&Limits::default()).unwrap();
    assert_eq!(tree.deferred_links, layer.deferred_links);
    let etc = tree.tree.child(crate::NodeId::ROOT, b"etc").unwrap();
    assert!(tree.tree.directory(etc).unwrap().implied);
    assert!(!tree.tree.directory(crate::NodeId::ROOT).unwrap().implied);
}

#[test]
fn every_flipped_byte_is_refused_when_the_digest_is_pinned() {
    let bytes = sample().0.encode().unwrap();
    let digest = Digest::of(&bytes);
    assert!(LayerIndex::parse_verified(&bytes, &digest, &Limits::default()).is_ok());
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        assert!(
            LayerIndex::parse_verified(&flipped, &digest, &Limits::default()).is_err(),
            "byte {at}"
        );
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample().0.encode().unwrap();
    for len in 0..bytes.len() {
        assert!(
            LayerIndex::parse(&bytes[..len], &Limits::default()).is_err(),
            "{len} bytes"
        );
    }
}

#[test]
fn a_newer_version_or_an_unknown_incompatible_feature_is_named() {
    let bytes = sample().0.encode().unwrap();
    for at in [8, 16] {
        let mut newer = bytes.clone();
        newer[at] |= 0x80;
        let error = LayerIndex::parse(&newer, &Limits::default()).unwrap_err();
        assert!(matches!(error, FormatError::Unsupported { .. }), "{error}");
    }
    let mut compatible = bytes;
    compatible[12] |= 0x80;
    assert!(LayerIndex::parse(&compatible, &Limits::default()).is_ok());
}

#[test]
fn sections_over_the_limit_are_refused_with_the_limit() {
    let bytes = sample().0.encode().unwrap();
    let limits = Limits {
        section_len: 16,
        ..Limits::default()
    };
    let error = LayerIndex::parse(&bytes, &limits).unwrap_err();
    assert!(matches!(error, FormatError::Limit { limit: 16, .. }), "{error}");
}

#[test]
fn a_footer_is_found_and_every_flipped_byte_of_it_is_harmless() {
    let index = sample().0.encode().unwrap();
    let (framed, location) = frame_index(&index, 1000).unwrap();
    let blob_len = 1000 + framed.len() as u64;
    let tail = &framed[framed.len() - FOOTER_LEN as usize..];
    assert_eq!(parse_footer(tail, blob_len).unwrap(), Some(location));
    let start = (location.stored_off - 1000) as usize;
    assert_eq!(&framed[start..start + location.stored_len as usize], &index[..]);
    for at in 0..tail.len() {
        let mut flipped = tail.to_vec();
        flipped[at] ^= 0x04;
        if let Ok(Some(found)) = parse_footer(&flipped, blob_len) {
            // A reserved byte changes nothing; any other change moves the index or its digest, which then does not match.
            let range = (found.stored_off as usize).wrapping_sub(1000)..;
            let bytes = framed
                .get(range)
                .and_then(|b| b.get(..found.stored_len as usize))
                .unwrap_or_default();
            assert!(
                found == location || Digest::of(bytes) != found.digest,
                "byte {at}"
            );
        }
    }
}

#[test]
fn framed_indexes_are_skipped_by_an_ordinary_zstd_decoder() {
    let mut blob = zstd::bulk::compress(b"plain bytes", 3).unwrap();
    let (framed, _) = frame_index(b"anything", blob.len() as u64).unwrap();
    blob.extend_from_slice(&framed);
    assert_eq!(zstd::stream::decode_all(&blob[..]).unwrap(), b"plain bytes");
}

#[test]
fn locations_have_one_spelling() {
    let location = IndexLocation {
        digest: Digest::of(b"x"),
        stored_off: 12,
        stored_len: 34,
    };
    let text = location.to_string();
    assert_eq!(text.parse::<IndexLocation>().unwrap(), location);
    let digest = location.digest;
    for bad in [
        "",
        "@",
        "12+34",
        &format!("{digest}@+12+34"),
        &format!("{digest}@12"),
        &format!("{digest}@-1+2"),
    ] {
        assert!(bad.parse::<IndexLocation>().is_err(), "{bad}");
    }
    assert!(location.check_within(45).is_err());
    assert!(location.check_within(46).is_ok());
}

#[test]
fn chunks_without_stored_bytes_are_taken_from_this_host_only() {
    let (index, layer) = sample();
    let streamed = |chunk: &ChunkRef| ChunkRef {
        stored_off: 0,
        stored_len: 1,
        codec: Codec::Streamed,
        ..*chunk
    };
    let chunks = index.chunks.chunks().iter().map(streamed).collect();
    let limits = Limits::default();
    let chunks = ChunkTable::new(chunks, index.plain_len(), &limits).unwrap();
    let local = LayerIndex::new(index.diff_id, chunks, &layer).unwrap();
    let bytes = local.encode().unwrap();
    assert_eq!(LayerIndex::parse_local(&bytes, &limits).unwrap(), local);
    let error = LayerIndex::parse(&bytes, &limits).unwrap_err();
    assert!(
        error.to_string().contains("no stored bytes of its own"),
        "{error}"
    );
    let plain = local.stored_plain(&limits).unwrap();
    assert!(!plain.is_streamed());
    assert_eq!(plain.chunks.chunks()[1].stored_range(), 512..2048);
}
