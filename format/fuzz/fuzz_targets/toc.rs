//! Tables of contents of other tools: footers, annotations, and a document over a blob. What is taken makes a tree and chunks within the blob, and
//! chunks decode to the bytes of their digests or to an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::compression::{ChunkDecoder, Codec};
use sluice_format::toc::{PinnedToc, Toc, TocKind, TocLocation, find_toc};
use sluice_format::{Digest, Limits};

fuzz_target!(|input: &[u8]| {
    let _ = find_toc(input, input.len() as u64);
    annotations(input);
    let [blob_len, rest @ ..] = input else { return };
    let (blob, json) = rest.split_at((usize::from(*blob_len) * 8).min(rest.len()));
    document(blob, json);
    estargz(rest);
});

fn annotations(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let digest = Digest::of(b"").to_string();
    let get = |name: &str| Some(if name.ends_with("position") { text } else { digest.as_str() });
    if let Ok(Some(pinned)) = PinnedToc::of_annotations(get)
        && let Ok(Some(location)) = pinned.location(1 << 40)
    {
        assert!(location.stored.end <= 1 << 40);
    }
    let _ = PinnedToc::of_annotations(|_| Some(text));
}

fn pinned(json: &[u8]) -> PinnedToc {
    let digest = Digest::of(json).to_string();
    let get = |name: &str| (name == "containerd.io/snapshot/stargz/toc.digest").then_some(digest.as_str());
    PinnedToc::of_annotations(get).unwrap().unwrap()
}

fn document(blob: &[u8], json: &[u8]) {
    let stored = raw_frame(json);
    let start = blob.len() as u64 + 8;
    let location = TocLocation {
        kind: TocKind::ZstdChunked,
        stored: start..start + stored.len() as u64,
        plain_len: Some(json.len() as u64),
    };
    let limits = Limits::default();
    let toc = Toc::open(&stored, location, &pinned(json), &limits).unwrap();
    let Ok(made) = toc.layer_index(&limits) else { return };
    made.index.layer_tree(&limits).unwrap();
    let mut decoder = ChunkDecoder::new().unwrap();
    for (at, chunk) in made.index.chunks.chunks().iter().enumerate().take(64) {
        if chunk.codec == Codec::Zeros {
            decoder.decode(&made.index.chunks, at, &[]).unwrap();
            continue;
        }
        let range = chunk.stored_off as usize..chunk.stored_range().end as usize;
        let stored = &blob[range];
        if chunk.plain_len < 1 << 20
            && let Ok(plain) = decoder.decode(&made.index.chunks, at, stored)
        {
            assert_eq!(Digest::of(&plain), chunk.digest.0);
        }
    }
}

/// The input as the stored TOC of eStargz, whose digest nobody can forge.
fn estargz(stored: &[u8]) {
    let location = TocLocation {
        kind: TocKind::Estargz,
        stored: 0..stored.len() as u64,
        plain_len: None,
    };
    let limits = Limits { toc_len: 1 << 20, ..Limits::default() };
    let _ = Toc::open(stored, location, &pinned(b""), &limits);
}

/// A zstd frame of raw blocks, so that the fuzzer's changes are changes of the document.
fn raw_frame(plain: &[u8]) -> Vec<u8> {
    const BLOCK_MAX: usize = 128 << 10;
    let mut frame = b"\x28\xb5\x2f\xfd\xa0".to_vec();
    frame.extend((plain.len() as u32).to_le_bytes());
    let mut blocks = plain.chunks(BLOCK_MAX).peekable();
    if blocks.peek().is_none() {
        frame.extend([1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let is_last = u32::from(blocks.peek().is_none());
        frame.extend(&((block.len() as u32) << 3 | is_last).to_le_bytes()[..3]);
        frame.extend(block);
    }
    frame
}
