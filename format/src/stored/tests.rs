//! What the pass makes of a blob: every chunk alone gives its bytes, and what cannot be read by ranges says so.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::Digest;
use crate::compression::ChunkDecoder;

/// A tar of `len` bytes or a little more, with text, noise and a file that is larger than a chunk.
fn sample_tar(len: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut number = 1u32;
    let mut add = |name: String, len: usize, tar: &mut tar::Builder<Vec<u8>>| {
        let data: Vec<u8> = (0..len)
            .map(|at| {
                number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match at / 997 % 3 {
                    0 => b"words and words "[at % 16],
                    1 => (number >> 28) as u8,
                    _ => (number >> 24) as u8,
                }
            })
            .collect();
        let mut header = tar::Header::new_ustar();
        header.set_size(len as u64);
        header.set_mode(0o644);
        header.set_mtime(1000);
        tar.append_data(&mut header, name, &data[..]).unwrap();
    };
    add("large".into(), len / 3, &mut tar);
    for at in 0..100 {
        add(format!("some/dir{}/file{at}", at % 7), len / 150, &mut tar);
    }
    tar.into_inner().unwrap()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn pass(form: StoredForm, stored: &[u8], piece: usize) -> Result<StoredLayer, FormatError> {
    let mut pass = LayerPass::new(form, &Limits::default())?;
    for piece in stored.chunks(piece) {
        pass.push(piece)?;
    }
    pass.finish()
}

/// Indexes a blob, and reads the plain layer through the index alone, after it has travelled.
fn check(form: StoredForm, stored: &[u8], plain: &[u8]) -> LayerIndex {
    let layer = pass(form, stored, 100_000).unwrap();
    assert_eq!(layer.diff_id.0, Digest::of(plain));
    assert_eq!(layer.blob_digest.0, Digest::of(stored));
    assert_eq!(
        (layer.plain_len, layer.stored_len),
        (plain.len() as u64, stored.len() as u64)
    );
    let index = layer.index.unwrap();
    let bytes = index.encode().unwrap();
    let parsed = LayerIndex::parse(&bytes, &Limits::default()).unwrap();
    assert_eq!(parsed, index);
    let mut decoder = ChunkDecoder::new().unwrap();
    for (at, chunk) in parsed.chunks.chunks().iter().enumerate() {
        let range = chunk.stored_range();
        let stored = &stored[range.start as usize..range.end as usize];
        let range = chunk.plain_range();
        let got = decoder.decode(&parsed.chunks, at, stored).unwrap();
        assert!(
            got == plain[range.start as usize..range.end as usize],
            "chunk {at}"
        );
    }
    for piece in [1, 1000, usize::MAX] {
        let other = pass(form, stored, piece).unwrap().index.unwrap();
        assert!(other == index, "in pieces of {piece} the index is another one");
    }
    parsed
}

#[test]
fn gzip_layers_are_read_from_restart_points() {
    let plain = sample_tar(5 << 20);
    let index = check(StoredForm::Gzip, &gzip(&plain), &plain);
    let chunks = index.chunks.chunks();
    assert!((4..=6).contains(&chunks.len()), "{}", chunks.len());
    assert!(
        chunks[1..]
            .iter()
            .all(|chunk| matches!(chunk.codec, Codec::Deflate { .. }))
    );
    let overlaps = chunks
        .windows(2)
        .map(|pair| pair[0].stored_range().end - pair[1].stored_off);
    assert!(overlaps.clone().all(|overlap| overlap <= 1) && overlaps.sum::<u64>() > 0);
}

#[test]
fn gzip_members_need_no_window() {
    let plain = sample_tar(5 << 20);
    let stored: Vec<u8> = plain.chunks(RESTART_SPACING as usize).flat_map(gzip).collect();
    let index = check(StoredForm::Gzip, &stored, &plain);
    let chunks = index.chunks.chunks();
    assert!(chunks.iter().all(|chunk| chunk.codec == Codec::Gzip) && chunks.len() >= 4);
    assert!(index.chunks.windows().is_empty());
}

#[test]
fn zstd_frames_are_joined_to_chunks() {
    let plain = sample_tar(2 << 20);
    let mut stored = Vec::new();
    for (at, piece) in plain.chunks(50_000).enumerate() {
        if at % 3 == 0 {
            stored.extend_from_slice(&[0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        }
        stored.extend(zstd::bulk::compress(piece, 3).unwrap());
        if at % 5 == 0 {
            stored.extend(zstd::bulk::compress(b"", 3).unwrap());
        }
    }
    stored.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
    let index = check(StoredForm::Zstd, &stored, &plain);
    assert!((6..=9).contains(&index.chunks.chunks().len()));
}

#[test]
fn one_large_zstd_frame_cannot_be_read_by_ranges() {
    let plain = sample_tar(20 << 20);
    let stored = zstd::bulk::compress(&plain, 1).unwrap();
    let layer = pass(StoredForm::Zstd, &stored, 1 << 20).unwrap();
    assert_eq!(layer.diff_id.0, Digest::of(&plain));
    let refusal = layer.index.unwrap_err();
    assert!(matches!(refusal, FormatError::NoRestart { plain_off: 0, .. }));
    assert!(
        refusal.to_string().contains("cannot be read by ranges"),
        "{refusal}"
    );
    let small = sample_tar(1 << 20);
    check(
        StoredForm::Zstd,
        &zstd::bulk::compress(&small, 1).unwrap(),
        &small,
    );
}

#[test]
fn plain_tars_are_cut_like_converted_layers() {
    let plain = sample_tar(2 << 20);
    let index = check(StoredForm::Plain, &plain, &plain);
    assert!(index.chunks.chunks().len() > 7);
}

#[test]
fn empty_layers() {
    let plain = vec![0; 1024];
    check(StoredForm::Gzip, &gzip(&plain), &plain);
    check(StoredForm::Gzip, &gzip(b""), b"");
    check(
        StoredForm::Zstd,
        &zstd::bulk::compress(&plain, 3).unwrap(),
        &plain,
    );
    check(StoredForm::Plain, &plain, &plain);
}

#[test]
fn what_is_cut_short_or_no_layer_is_refused() {
    let plain = sample_tar(1 << 20);
    let (gz, zst) = (gzip(&plain), zstd::bulk::compress(&plain, 3).unwrap());
    assert!(pass(StoredForm::Gzip, &gz[..gz.len() - 1], 4096).is_err());
    assert!(pass(StoredForm::Zstd, &zst[..zst.len() - 1], 4096).is_err());
    assert!(pass(StoredForm::Plain, &plain[..plain.len() / 2], 4096).is_err());
    assert!(pass(StoredForm::Gzip, &gzip(&[7; 4096]), 4096).is_err());
    assert!(pass(StoredForm::Gzip, b"", 1).is_err());
}

#[test]
fn a_bomb_is_stopped_by_the_limit() {
    let limits = Limits {
        layer_plain_len: 1 << 20,
        ..Limits::default()
    };
    let bomb = gzip(&vec![0; 64 << 20]);
    let mut pass = LayerPass::new(StoredForm::Gzip, &limits).unwrap();
    let error = pass.push(&bomb).unwrap_err();
    assert!(matches!(error, FormatError::Limit { .. }), "{error}");
}

/// Whatever is wrong with an index, reading through it gives an error or the right bytes.
#[test]
fn wrong_restarts_never_give_wrong_bytes() {
    let plain = sample_tar(5 << 20);
    let stored = gzip(&plain);
    let index = pass(StoredForm::Gzip, &stored, 1 << 20).unwrap().index.unwrap();
    let limits = Limits::default();
    let table = |chunks, windows| ChunkTable::with_windows(chunks, windows, plain.len() as u64, &limits);
    let (chunks, windows) = (index.chunks.chunks().to_vec(), index.chunks.windows().to_vec());
    assert!(table(chunks.clone(), windows[1..].to_vec()).is_err());
    let mut exchanged = windows.clone();
    exchanged.swap(0, 1);
    let exchanged = table(chunks.clone(), exchanged).unwrap();
    let mut decoder = ChunkDecoder::new().unwrap();
    let mut read = |table: &ChunkTable, at: usize| {
        let range = table.chunks()[at].stored_range();
        decoder.decode(table, at, &stored[range.start as usize..range.end as usize])
    };
    assert!(read(&exchanged, 1).is_err() && read(&exchanged, 2).is_err());
    assert!(read(&exchanged, 0).is_ok());
    for wrong in 0..=8u8 {
        let mut chunks = chunks.clone();
        let Codec::Deflate { bits, window } = chunks[1].codec else {
            panic!("the second chunk begins between two blocks")
        };
        if wrong == bits {
            continue;
        }
        chunks[1].codec = Codec::Deflate { bits: wrong, window };
        if let Ok(table) = table(chunks, windows.clone()) {
            assert!(read(&table, 1).is_err(), "{wrong} bits");
        }
    }
    let mut out_of_order = chunks.clone();
    let second = out_of_order[1].codec;
    out_of_order[1].codec = out_of_order[2].codec;
    out_of_order[2].codec = second;
    assert!(table(out_of_order, windows.clone()).is_err());
}
