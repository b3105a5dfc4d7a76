//! Hostile tars: a layer is refused or gives a tree that holds together, chunks that cover it, and an image.
//!
//! The first byte of the input chooses how the rest, the plain layer, is cut into pieces, and whether checksums are put
//! right, because the fuzzer would spend its time on them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::cut::{CHUNK_SIZE_MIN, Cutter};
use sluice_format::erofs::{BLOCK_SIZE, DeviceSlot, Image, write_image};
use sluice_format::scan::{LayerScanner, ScannedLayer};
use sluice_format::tree::{ExtentSource, FileContent};
use sluice_format::{DiffId, Digest, Limits, NodeKind, Tree};

/// Length of a header block and, in it, the fields that the fuzzer is helped with.
const BLOCK_LEN: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;

/// Bit of the first byte that asks for right checksums; the other bits choose the pieces.
const FIX_CHECKSUMS: u8 = 1;

fuzz_target!(|data: &[u8]| {
    let Some((control, plain)) = data.split_first() else {
        return;
    };
    let mut plain = plain.to_vec();
    if control & FIX_CHECKSUMS != 0 {
        plain.chunks_exact_mut(BLOCK_LEN).for_each(fix_checksum);
    }
    let limits = Limits {
        literal_bytes: 1 << 20,
        sparse_segments: 1 << 10,
        ..Limits::default()
    };
    let whole = scan(&plain, usize::MAX, &limits);
    let pieces = scan(&plain, usize::from(control >> 1) * 7 + 1, &limits);
    match (whole, pieces) {
        (Ok((layer, ends)), Ok((same_layer, same_ends))) => {
            assert_eq!((&layer.layer, &ends), (&same_layer.layer, &same_ends));
            assert_eq!(layer.plain_len, plain.len() as u64);
            check_ends(&ends, layer.plain_len);
            check_tree(&layer.layer.tree, layer.plain_len, &limits);
        }
        (Err(_), Err(_)) => {}
        (whole, pieces) => panic!("{whole:?} in one piece, {pieces:?} in many"),
    }
});

fn fix_checksum(block: &mut [u8]) {
    if block[MAGIC] == *b"ustar" {
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn scan(
    plain: &[u8],
    piece: usize,
    limits: &Limits,
) -> Result<(ScannedLayer, Vec<u64>), sluice_format::FormatError> {
    let mut scanner = LayerScanner::new(CHUNK_SIZE_MIN, limits.clone())?;
    let mut ends = Vec::new();
    for piece in plain.chunks(piece) {
        scanner.push(piece, &mut ends)?;
    }
    Ok((scanner.finish(&mut ends)?, ends))
}

/// Chunks cover the layer, none is empty and none too long.
fn check_ends(ends: &[u64], plain_len: u64) {
    let max_len = Cutter::new(CHUNK_SIZE_MIN).expect("a good size").max_len();
    let mut start = 0;
    for end in ends {
        assert!(*end > start && end - start <= max_len);
        start = *end;
    }
    assert_eq!(start, plain_len);
}

/// Files lie inside the layer, and the tree can be written and read again.
fn check_tree(tree: &Tree, plain_len: u64, limits: &Limits) {
    for node in tree.nodes() {
        if let NodeKind::Regular(content) = &node.kind {
            check_content(content, plain_len);
        }
    }
    let slot = DeviceSlot {
        diff_id: DiffId(Digest::of(b"a layer")),
        plain_len,
    };
    if let Ok(image) = write_image(tree, &[slot]) {
        let image = Image::open(image.bytes, limits).expect("what was written can be opened");
        image.to_tree(limits).expect("what was written can be read");
    }
}

fn check_content(content: &FileContent, plain_len: u64) {
    let mut last_end = 0;
    for extent in &content.extents {
        let end = extent.file_off + extent.len;
        assert!(extent.len > 0 && extent.file_off >= last_end && end <= content.size);
        assert!(extent.file_off % BLOCK_SIZE == 0);
        assert!(extent.len % BLOCK_SIZE == 0 || end == content.size);
        last_end = end;
        match &extent.source {
            ExtentSource::Plain { device, plain_off } => {
                assert!(*device == 1 && plain_off % BLOCK_SIZE == 0 && plain_off + extent.len <= plain_len);
            }
            ExtentSource::Literal(bytes) => assert_eq!(bytes.len() as u64, extent.len),
        }
    }
}
