//! How a layer arrives changes nothing, and a damaged one never gets past as something else.

use proptest::prelude::*;

use super::tar::{Tar, archive, device, dir, file, gnu_long, hardlink, noise, octal, pax, symlink};
use super::{paths, scan_bytes, scan_pieces};
use crate::Limits;

const SMALLEST: u32 = crate::cut::CHUNK_SIZE_MIN;

/// One entry of every kind, around files of all sizes that matter to the cutter.
pub(super) fn everything() -> Vec<Tar> {
    let sparse_map = b"2\n3\n500\n600\n12\n";
    let mut sparse_data = sparse_map.to_vec();
    sparse_data.resize(512, 0);
    sparse_data.extend(noise(5, 512));
    let gnu_map = [octal(12, 512), octal(12, 512), octal(12, 2048), octal(12, 100)].concat();
    let mut entries = vec![
        dir("./"),
        dir("etc/"),
        file("etc/hosts", &noise(1, 200)),
        gnu_long(b'L', &"long/".repeat(60)),
        file("x", &noise(2, 9000)),
        pax(&[
            ("path", b"pax/name"),
            ("mtime", b"5.5"),
            ("SCHILY.xattr.user.a", b"1"),
        ]),
        file("x", &noise(3, 70_000)),
        hardlink("hard", "etc/hosts"),
        symlink("soft", "etc"),
        device(b'3', "null", 1, 3),
        file("fifo", b"").flag(b'6'),
        file("etc/.wh.old", b""),
        file("var/.wh..wh..opq", b""),
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"5000"),
        ]),
        file("x", &sparse_data),
        file("gnusparse", &noise(6, 612))
            .flag(b'S')
            .gnu()
            .raw(386, &gnu_map)
            .raw(483, &octal(12, 5000)),
        hardlink("lower", "below/this"),
        pax(&[("comment", b"x")]).flag(b'g'),
    ];
    for index in 0..40 {
        entries.push(file(
            &format!("small/{index}"),
            &noise(index + 10, usize::try_from(index * 37).unwrap()),
        ));
    }
    entries
}

#[test]
fn single_bytes_are_enough() {
    let plain = archive(everything());
    let (whole, ends) = scan_pieces(&plain, SMALLEST, &Limits::default(), &[]).unwrap();
    let (single, single_ends) = scan_pieces(&plain, SMALLEST, &Limits::default(), &[1]).unwrap();
    assert_eq!((whole.layer, whole.warnings), (single.layer, single.warnings));
    assert_eq!(ends, single_ends);
}

#[test]
fn every_prefix_is_refused_or_a_shorter_layer() {
    let plain = archive(everything().into_iter().take(20));
    let all = paths(&scan_bytes(&plain).unwrap().0.layer);
    let mut taken = 0;
    for len in 0..plain.len() {
        let finished = scan_pieces(&plain[..len], SMALLEST, &Limits::default(), &[]);
        if let Ok((scanned, ends)) = finished {
            taken += 1;
            let found = paths(&scanned.layer);
            assert!(found.iter().all(|path| all.contains(path)), "{len}");
            assert_eq!(ends.last().copied().unwrap_or(0), len as u64);
        }
    }
    assert!(
        taken > 20,
        "a layer may end after any entry, without padding or end marker"
    );
}

proptest! {
    #[test]
    fn any_split_gives_the_same_result(pieces in prop::collection::vec(1_usize..3000, 1..60)) {
        let plain = archive(everything());
        let (whole, ends) = scan_pieces(&plain, SMALLEST, &Limits::default(), &[]).unwrap();
        let (split, split_ends) = scan_pieces(&plain, SMALLEST, &Limits::default(), &pieces).unwrap();
        prop_assert_eq!(whole.layer, split.layer);
        prop_assert_eq!(ends, split_ends);
    }

    #[test]
    fn damaged_bytes_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), fix: bool) {
        let mut plain = archive(everything());
        for (index, byte) in damage {
            let at = index.index(plain.len());
            plain[at] = byte;
            if fix {
                let header = at - at % 512;
                let block = &mut plain[header..header + 512];
                block[148..156].copy_from_slice(b"        ");
                let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
                block[148..155].copy_from_slice(&octal(7, sum));
            }
        }
        if let Ok((scanned, ends)) = scan_pieces(&plain, SMALLEST, &Limits::default(), &[]) {
            prop_assert_eq!(ends.last().copied(), Some(scanned.plain_len));
        }
    }
}
