//! Layer indexes: what parses can be encoded again, read as a tree, and asked for any range.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::{LayerIndex, Limits};

fuzz_target!(|bytes: &[u8]| {
    // Small sections keep a run fast; the code path of a refused limit is reached all the same.
    let limits = Limits { section_len: 1 << 20, ..Limits::default() };
    let Ok(index) = LayerIndex::parse(bytes, &limits) else { return };
    let encoded = index.encode().expect("what was parsed fits the format");
    assert_eq!(LayerIndex::parse(&encoded, &limits).as_ref(), Ok(&index));
    let chunks = index.chunks.covering(0..index.plain_len());
    assert_eq!(chunks.len(), index.chunks.chunks().len());
    let _ = index.layer_tree(&limits);
});
