//! Where chunks of real archives end. The rules for single events are tested with the cutter.

use std::collections::BTreeSet;

use super::tar::{Tar, archive, dir, file, gnu_long, noise, pax};
use super::{CHUNK, pieces, scan_pieces};
use crate::Limits;
use crate::cut::{Cutter, name_hash};

fn cuts(plain: &[u8], chunk: u32) -> Vec<u64> {
    let (_, ends) = scan_pieces(plain, chunk, &Limits::default(), &[]).unwrap();
    let max_len = Cutter::new(chunk).unwrap().max_len();
    let mut start = 0;
    for end in &ends {
        assert!(*end > start && end - start <= max_len, "chunk {start}..{end}");
        start = *end;
    }
    assert_eq!(start, plain.len() as u64);
    ends
}

fn chunks(plain: &[u8], chunk: u32) -> Vec<&[u8]> {
    let mut start = 0;
    let ends = cuts(plain, chunk)
        .into_iter()
        .map(|end| usize::try_from(end).unwrap());
    ends.map(|end| &plain[std::mem::replace(&mut start, end)..end])
        .collect()
}

fn small_files(count: u64, seed: u64) -> Vec<Tar> {
    let entry = |index: u64| {
        let data = noise(seed + index, usize::try_from((index * 7919) % 9000).unwrap());
        file(&format!("usr/lib/python3/module{index:05}.py"), &data)
    };
    (0..count).map(entry).collect()
}

#[test]
fn a_large_file_gives_the_same_chunks_in_every_layer() {
    let data = noise(1, 1_000_000);
    let first = archive([dir("a"), file("a/large", &data)]);
    let path = "deep/".repeat(40);
    let second = [
        small_files(50, 9),
        vec![
            gnu_long(b'L', &path),
            dir("x"),
            pax(&[("mtime", b"1.5")]),
            file("other", &data),
            file("z", &noise(2, 300)),
        ],
    ];
    let second = archive(second.concat());
    let first: Vec<&[u8]> = chunks(&first, CHUNK);
    let second: BTreeSet<&[u8]> = chunks(&second, CHUNK).into_iter().collect();
    let chunks_of_data = data.len() / CHUNK as usize + 1;
    let found = first[1..=chunks_of_data].concat();
    let (found, padding) = found.split_at(data.len());
    assert!(found == data && padding.len() == data.len().next_multiple_of(512) - data.len());
    let found: Vec<bool> = first[1..=chunks_of_data]
        .iter()
        .map(|chunk| second.contains(*chunk))
        .collect();
    assert_eq!(found, [true; 16], "15 whole chunks and a rest");
}

#[test]
fn runs_of_small_files_find_common_cuts_again() {
    let shared = small_files(2000, 100);
    for (index, before) in [
        vec![],
        small_files(3, 7),
        small_files(41, 8),
        vec![file("one", &noise(3, 20_000))],
    ]
    .into_iter()
    .enumerate()
    {
        let first = archive(shared.clone());
        let second = archive([before, shared.clone()].concat());
        let first = chunks(&first, CHUNK);
        let second: BTreeSet<&[u8]> = chunks(&second, CHUNK).into_iter().collect();
        let equal = first.iter().filter(|chunk| second.contains(**chunk)).count();
        assert!(
            equal * 10 >= first.len() * 9,
            "prefix {index}: {equal} of {} chunks are equal",
            first.len()
        );
    }
}

#[test]
fn runs_are_about_a_chunk_long_whatever_the_size_of_their_files() {
    for len in [0, 300, 3000, 12_000] {
        let entries = (0..6000).map(|index| file(&format!("data/{index}/file"), &vec![1; len]));
        let plain = archive(entries);
        let average = plain.len() / cuts(&plain, CHUNK).len();
        let chunk = CHUNK as usize;
        assert!(
            average > chunk * 6 / 10 && average < chunk,
            "{average} bytes per chunk with files of {len}"
        );
    }
}

#[test]
fn extension_headers_longer_than_a_chunk_are_cut_anywhere() {
    let value = vec![b'v'; 300_000];
    let plain = archive([
        file("a", b"1"),
        pax(&[("comment", &value)]),
        file("b", &noise(4, 100_000)),
        file("c", b""),
    ]);
    assert!(cuts(&plain, CHUNK).len() >= 5);
}

#[test]
fn bytes_behind_the_archive_are_cut_by_length() {
    let mut plain = archive([file("a", b"1")]);
    plain.resize(plain.len() + 200_000, 0);
    let chunk = u64::from(CHUNK);
    assert_eq!(
        cuts(&plain, CHUNK),
        [chunk, 2 * chunk, 3 * chunk, plain.len() as u64]
    );
}

/// These cuts are in published layer indexes: equal files must go on giving equal chunks, so they never change.
#[test]
fn cuts_never_change() {
    assert_eq!(name_hash([&b""[..]]), 0xcbf2_9ce4_8422_2325);
    assert_eq!(name_hash([&b"foobar"[..]]), 0x8594_4171_f739_67e8);
    assert_eq!(
        name_hash([&b"usr"[..], b"bin", b"env"]),
        name_hash([&b"usr/bin/env"[..]])
    );
    let plain = archive(
        [
            pieces::everything(),
            small_files(60, 3),
            vec![file("big", &noise(9, 150_000))],
        ]
        .concat(),
    );
    for (chunk, expected) in [
        (16 << 10, &AT_16_KIB[..]),
        (32 << 10, &AT_32_KIB),
        (128 << 10, &AT_128_KIB),
    ] {
        assert_eq!(cuts(&plain, chunk), expected, "chunks of {chunk} bytes");
    }
}

const AT_16_KIB: [u64; 56] = [
    3584, 12800, 14336, 30720, 47104, 63488, 79872, 84480, 93696, 101888, 117760, 128512, 136704, 148992,
    162304, 176640, 192000, 193536, 202240, 210432, 222720, 235520, 244224, 252416, 265728, 274944, 280576,
    289792, 298496, 312832, 329216, 337920, 352256, 362496, 370688, 379392, 387584, 400896, 415744, 424960,
    433664, 448000, 457728, 464384, 473088, 473600, 489984, 506368, 522752, 539136, 555520, 571904, 588288,
    604672, 623616, 624640,
];
const AT_32_KIB: [u64; 27] = [
    14336, 47104, 84480, 101888, 125440, 148992, 169984, 193024, 210432, 235008, 252416, 280064, 298496,
    318464, 337920, 370176, 387584, 415232, 433664, 457728, 473600, 506368, 539136, 571904, 604672, 623616,
    624640,
];
const AT_128_KIB: [u64; 9] = [
    14336, 84480, 162304, 252416, 318464, 441344, 473600, 623616, 624640,
];
