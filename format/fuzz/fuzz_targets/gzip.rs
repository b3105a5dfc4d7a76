//! gzip streams: what decodes, decodes alike from every restart point; spans decode to the length asked for or to an error, whatever they are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::gzip::{GzipDecoder, RestartPoint, SpanStart, SparseWindow, WindowTrace, decode_span};

/// Plain bytes after which a run ends: a bomb decodes to a thousand times its length.
const PLAIN_MAX: usize = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let [piece_len, stored @ ..] = input else { return };
    restart(stored, usize::from(*piece_len) + 1);
    let window = SparseWindow::default();
    for start in [SpanStart::Member, SpanStart::Block { bits: *piece_len, window: &window }] {
        if let Ok(plain) = decode_span(start, stored, 1000) {
            assert_eq!(plain.len(), 1000);
        }
    }
});

fn restart(stored: &[u8], piece_len: usize) {
    let mut decoder = GzipDecoder::new();
    let (mut plain, mut points) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < stored.len() && plain.len() < PLAIN_MAX {
        let end = (at + piece_len).min(stored.len());
        let Ok(step) = decoder.step(&stored[at..end]) else { return };
        at += step.used;
        plain.extend_from_slice(step.plain);
        if let Some(point) = step.point {
            points.push((point, window(&decoder, point, stored)));
        }
    }
    for (point, window) in points.iter().rev().take(20) {
        let begin = point.plain_off as usize;
        let shared = usize::from(point.bits > Some(0));
        let start = match point.bits {
            None => SpanStart::Member,
            Some(bits) => SpanStart::Block { bits, window },
        };
        let span = &stored[point.stored_off as usize - shared..];
        let decoded = decode_span(start, span, plain.len() - begin);
        // A span without bytes may end before it begins.
        assert!(plain.len() == begin || decoded.as_deref() == Ok(&plain[begin..]));
    }
}

fn window(decoder: &GzipDecoder, point: RestartPoint, stored: &[u8]) -> SparseWindow {
    let Some(bits) = point.bits else { return SparseWindow::default() };
    let off = point.stored_off as usize;
    let mut trace = WindowTrace::new(bits, stored[off - 1], decoder.window());
    trace.push(&stored[off..]);
    trace.finish()
}
