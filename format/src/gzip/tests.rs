//! Every restart point gives the right bytes, and a wrong stream gives none.

use std::io::{Read as _, Write as _};

use flate2::write::GzEncoder;
use flate2::{Compress, Compression, FlushCompress, GzBuilder};
use proptest::prelude::*;

use super::*;
use crate::Limits;

/// A restart point with what it needs.
#[derive(Clone, Debug)]
struct Kept {
    point: RestartPoint,
    window: SparseWindow,
}

#[derive(Debug, Default)]
struct Decoded {
    plain: Vec<u8>,
    points: Vec<Kept>,
}

/// Decodes in pieces of the given lengths, over and over, and keeps every restart point.
fn decode(stored: &[u8], pieces: &[usize]) -> Result<Decoded, FormatErrorText> {
    let mut decoder = GzipDecoder::new();
    let mut decoded = Decoded::default();
    let mut lens = pieces.iter().cycle();
    let mut at = 0;
    while at < stored.len() {
        let end = (at + lens.next().unwrap()).min(stored.len());
        while at < end {
            let step = decoder.step(&stored[at..end]).map_err(|e| e.to_string())?;
            at += step.used;
            decoded.plain.extend_from_slice(step.plain);
            if let Some(point) = step.point {
                assert_eq!(
                    (point.stored_off, point.plain_off),
                    (at as u64, decoded.plain.len() as u64)
                );
                let mut window = SparseWindow::default();
                if let Some(bits) = point.bits {
                    let mut trace = WindowTrace::new(bits, stored[at - 1], decoder.window());
                    trace.push(&stored[at..]);
                    window = trace.finish();
                }
                decoded.points.push(Kept { point, window });
            }
        }
    }
    decoder.finish().map_err(|e| e.to_string())?;
    Ok(decoded)
}

type FormatErrorText = String;

fn span(stored: &[u8], from: &Kept, stored_end: u64, plain_len: usize) -> Result<Vec<u8>, &'static str> {
    let stored_off = from.point.stored_off as usize;
    let (start, shared) = match from.point.bits {
        None => (SpanStart::Member, 0),
        Some(bits) => {
            let window = &from.window;
            (SpanStart::Block { bits, window }, usize::from(bits > 0))
        }
    };
    decode_span(
        start,
        &stored[stored_off - shared..stored_end as usize],
        plain_len,
    )
}

/// From every restart point to the next one, and from some to the end.
fn check_restarts(stored: &[u8], plain: &[u8], pieces: &[usize]) -> Decoded {
    let decoded = decode(stored, pieces).unwrap();
    assert!(decoded.plain == plain, "the stream itself is decoded wrongly");
    for (at, from) in decoded.points.iter().enumerate() {
        let begin = from.point.plain_off as usize;
        let next = decoded.points.get(at + 1).map(|next| next.point);
        let (end, stored_end) = next.map_or((plain.len(), stored.len() as u64), |next| {
            (next.plain_off as usize, next.stored_off)
        });
        let got = span(stored, from, stored_end, end - begin);
        assert!(
            got.as_deref() == Ok(&plain[begin..end]),
            "from {:?} to the next point: {:?}",
            from.point,
            got.err()
        );
        if at % 7 == 0 {
            let got = span(stored, from, stored.len() as u64, plain.len() - begin);
            assert!(
                got.as_deref() == Ok(&plain[begin..]),
                "from {:?} to the end",
                from.point
            );
        }
    }
    decoded
}

/// Text that repeats itself over short and long distances.
fn text(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize
    };
    let mut out = Vec::with_capacity(len + 300);
    while out.len() < len {
        match next() % 4 {
            0 => out.extend((0..next() % 50).map(|_| next() as u8)),
            1 => out.extend_from_slice(b"a phrase that comes again and again, "),
            _ if out.len() > 40_000 => {
                let from = out.len() - 1 - next() % 40_000;
                let copied = out[from..(from + 3 + next() % 250).min(out.len())].to_vec();
                out.extend(copied);
            }
            _ => out.extend_from_slice(b"filler "),
        }
    }
    out.truncate(len);
    out
}

fn gzip(plain: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// One member whose deflate stream is flushed to a byte boundary every `every` bytes, as parallel compressors do.
fn flushed(plain: &[u8], every: usize, flush: FlushCompress) -> Vec<u8> {
    let mut stored = gzip(b"", 6)[..10].to_vec();
    let mut deflate = Compress::new(Compression::new(6), false);
    for piece in plain.chunks(every) {
        let mut out = Vec::with_capacity(piece.len() * 2 + 1000);
        deflate.compress_vec(piece, &mut out, flush).unwrap();
        stored.extend_from_slice(&out);
    }
    let mut out = Vec::with_capacity(1000);
    deflate
        .compress_vec(b"", &mut out, FlushCompress::Finish)
        .unwrap();
    stored.extend_from_slice(&out);
    stored.extend_from_slice(&crc32fast::hash(plain).to_le_bytes());
    stored.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    stored
}

#[test]
fn every_level_can_be_restarted_everywhere() {
    let plain = text(700_000, 1);
    for level in 0..=9 {
        let decoded = check_restarts(&gzip(&plain, level), &plain, &[1 << 16]);
        assert!(
            decoded.points.len() > 1,
            "level {level}: {:?}",
            decoded.points.len()
        );
    }
}

#[test]
fn streams_flushed_to_byte_boundaries_can_be_restarted() {
    let plain = text(500_000, 2);
    for flush in [FlushCompress::Sync, FlushCompress::Full] {
        let decoded = check_restarts(&flushed(&plain, 128 << 10, flush), &plain, &[10_000]);
        assert!(decoded.points.iter().any(|kept| kept.point.bits == Some(0)));
        assert!(decoded.points.iter().any(|kept| kept.point.bits > Some(0)));
    }
}

#[test]
fn members_are_one_stream() {
    let plain = text(90_000, 3);
    let mut stored = Vec::new();
    for (at, piece) in plain.chunks(7_001).enumerate() {
        stored.extend(gzip(piece, (at % 10) as u32));
        stored.extend(gzip(b"", 6));
    }
    let decoded = check_restarts(&stored, &plain, &[977]);
    let members = decoded.points.iter().filter(|kept| kept.point.bits.is_none());
    assert_eq!(members.count(), 2 * plain.chunks(7_001).len());
}

#[test]
fn tiny_streams() {
    for plain in [&b""[..], b"a", b"fixed codes suit short texts"] {
        for level in [0, 1, 9] {
            check_restarts(&gzip(plain, level), plain, &[1]);
        }
    }
}

#[test]
fn every_header_field_is_skipped() {
    let builder = GzBuilder::new()
        .filename("a name")
        .comment("a comment")
        .extra(vec![0; 1000])
        .mtime(7);
    let mut encoder = builder.write(Vec::new(), Compression::new(6));
    encoder.write_all(b"plain").unwrap();
    let stored = encoder.finish().unwrap();
    check_restarts(&stored, b"plain", &[3]);
    // The same with a checksum of the header.
    let header_len = 10 + 2 + 1000 + "a name".len() + 1 + "a comment".len() + 1;
    let mut with_crc = stored.clone();
    with_crc[3] |= 2;
    let crc = crc32fast::hash(&with_crc[..header_len]) as u16;
    with_crc.splice(header_len..header_len, crc.to_le_bytes());
    check_restarts(&with_crc, b"plain", &[3]);
    with_crc[header_len] ^= 1;
    assert!(
        decode(&with_crc, &[100])
            .unwrap_err()
            .contains("another checksum")
    );
}

#[test]
fn windows_hold_what_is_copied_and_little_else() {
    let plain = text(400_000, 4);
    let stored = gzip(&plain, 6);
    let decoded = decode(&stored, &[1 << 16]).unwrap();
    let kept: Vec<_> = decoded
        .points
        .iter()
        .filter(|kept| kept.point.bits.is_some())
        .collect();
    assert!(kept.iter().all(|kept| kept.window.kept_len() <= WINDOW_LEN));
    // Each byte that is taken away from a window must be missed, or it need not have been kept.
    let sample = kept[kept.len() / 2];
    let begin = sample.point.plain_off as usize;
    let mut emptied = sample.clone();
    emptied.window = SparseWindow::default();
    let got = span(&stored, &emptied, stored.len() as u64, WINDOW_LEN).unwrap();
    let differing = got.iter().zip(&plain[begin..]).filter(|(a, b)| a != b).count();
    assert!(sample.window.kept_len() > 0 && differing > 0);
    let incompressible: Vec<u8> = (0..300_000u32)
        .flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_be_bytes())
        .collect();
    let stored = gzip(&incompressible, 0);
    let decoded = decode(&stored, &[1 << 16]).unwrap();
    assert!(decoded.points.iter().all(|kept| kept.window.kept_len() == 0));
}

#[test]
fn broken_streams_are_refused() {
    let plain = text(50_000, 5);
    let stored = gzip(&plain, 6);
    let refused = |bytes: &[u8]| decode(bytes, &[4096]).unwrap_err();
    assert!(refused(b"").contains("cut short"));
    for len in [
        1,
        5,
        10,
        11,
        100,
        stored.len() - 9,
        stored.len() - 8,
        stored.len() - 1,
    ] {
        assert!(refused(&stored[..len]).contains("cut short"), "{len}");
    }
    let changed = |from_end: usize| {
        let mut bytes = stored.clone();
        let at = bytes.len() - from_end;
        bytes[at] ^= 1;
        bytes
    };
    assert!(refused(&changed(8)).contains("another checksum"));
    assert!(refused(&changed(4)).contains("another length"));
    let mut trailing = stored.clone();
    trailing.push(0);
    assert!(refused(&trailing).contains("not the header"));
    let mut reserved = stored.clone();
    reserved[3] |= 0x80;
    assert!(refused(&reserved).contains("reserved flags"));
}

#[test]
fn a_member_that_copies_from_the_one_before_is_refused() {
    // The second half of a stream as a member of its own: it copies from a first half that is not part of it.
    let plain = text(200_000, 6);
    let stored = flushed(&plain, 100_000, FlushCompress::Sync);
    let decoded = decode(&stored, &[1 << 16]).unwrap();
    let half = decoded
        .points
        .iter()
        .find(|kept| kept.point.bits == Some(0) && kept.point.plain_off == 100_000)
        .unwrap();
    assert!(half.window.kept_len() > 0);
    let mut forged = gzip(&plain[..100_000], 6);
    forged.extend_from_slice(&gzip(b"", 6)[..10]);
    forged.extend_from_slice(&stored[half.point.stored_off as usize..stored.len() - 8]);
    forged.extend_from_slice(&crc32fast::hash(&plain[100_000..]).to_le_bytes());
    forged.extend_from_slice(&100_000u32.to_le_bytes());
    assert!(decode(&forged, &[1 << 16]).unwrap_err().contains("broken"));
}

#[test]
fn a_span_is_never_longer_than_asked() {
    let bomb = gzip(&vec![0; 4 << 20], 9);
    let plain = decode_span(SpanStart::Member, &bomb, 1000).unwrap();
    assert_eq!(plain, vec![0; 1000]);
    assert!(decode_span(SpanStart::Member, &bomb, (4 << 20) + 1).is_err());
    assert!(decode_span(SpanStart::Member, &bomb[..20], 4 << 20).is_err());
    let window = &SparseWindow::default();
    assert!(decode_span(SpanStart::Block { bits: 8, window }, &bomb, 10).is_err());
    assert!(decode_span(SpanStart::Block { bits: 3, window }, &[], 10).is_err());
}

#[test]
fn windows_round_trip() {
    let stored = gzip(&text(400_000, 7), 4);
    let windows: Vec<_> = decode(&stored, &[1 << 16])
        .unwrap()
        .points
        .into_iter()
        .map(|kept| kept.window)
        .collect();
    let bytes = encode_windows(&windows);
    let limits = Limits::default();
    assert_eq!(parse_windows(&bytes, &limits).unwrap(), windows);
    for len in 0..bytes.len().min(300) {
        assert!(parse_windows(&bytes[..len], &limits).is_err());
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(parse_windows(&longer, &limits).is_err());
}

#[test]
fn hostile_windows_are_refused() {
    let limits = Limits::default();
    let section = |count: u64, numbers: &[u16], bytes: usize| {
        let mut out = count.to_le_bytes().to_vec();
        numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        out.resize(out.len() + bytes, 7);
        out
    };
    let refused = |bytes: Vec<u8>| parse_windows(&bytes, &limits).unwrap_err().to_string();
    assert!(refused(section(u64::MAX, &[], 0)).contains("limit"));
    assert!(refused(section(1 << 20, &[], 100)).contains("cut short"));
    // One window with one run: counts, gaps, lengths.
    assert!(parse_windows(&section(1, &[1, 0, 4], 4), &limits).is_ok());
    assert!(refused(section(1, &[1, 0, 0], 0)).contains("empty"));
    assert!(refused(section(1, &[1, 32_767, 2], 2)).contains("behind its window"));
    assert!(refused(section(1, &[1, 65_535, 65_535], 65_535)).contains("behind its window"));
    assert!(refused(section(1, &[2, 0, 0, 4, 4], 8)).contains("without a gap"));
    assert!(refused(section(1, &[65_535, 0, 4], 4)).contains("cut short"));
}

fn piece_lens() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![1usize..20, 1usize..100_000], 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// However a stream was made and however it is cut into pieces, it and its restart points are the same.
    #[test]
    fn any_stream_in_any_pieces(
        len in 0usize..300_000,
        seed: u32,
        level in 0u32..=9,
        members in 1usize..4,
        flush_every in proptest::option::of(1000usize..100_000),
        pieces in piece_lens(),
    ) {
        let plain = text(len, seed);
        let mut stored = Vec::new();
        for part in plain.chunks((len / members).max(1)) {
            stored.extend(match flush_every {
                Some(every) => flushed(part, every, FlushCompress::Sync),
                None => gzip(part, level),
            });
        }
        if plain.is_empty() {
            stored = gzip(b"", level);
        }
        let decoded = check_restarts(&stored, &plain, &pieces);
        let whole = decode(&stored, &[usize::MAX / 2]).unwrap();
        let points = |decoded: &Decoded| decoded.points.iter().map(|kept| kept.point).collect::<Vec<_>>();
        prop_assert_eq!(points(&decoded), points(&whole));
    }

    /// A changed byte is refused, or changes nothing: then another decoder gives the same bytes too.
    #[test]
    fn damage_never_gives_other_bytes(seed: u32, at: prop::sample::Index, flip in 1u8.., pieces in piece_lens()) {
        let plain = text(20_000, seed);
        let mut stored = gzip(&plain, 6);
        let at = at.index(stored.len());
        stored[at] ^= flip;
        if let Ok(decoded) = decode(&stored, &pieces) {
            prop_assert_eq!(&decoded.plain, &plain);
            let mut other = Vec::new();
            flate2::read::MultiGzDecoder::new(&stored[..]).read_to_end(&mut other).unwrap();
            prop_assert_eq!(other, plain);
        }
    }
}
