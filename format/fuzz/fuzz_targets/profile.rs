//! Start-up profiles: the document behind a right checksum, which a mutation alone never finds; what parses encodes and parses
//! again to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::{Digest, Hasher, Limits, Profile};

/// Where the checksum lies; it covers the bytes before it and behind it.
const CHECKSUM: std::ops::Range<usize> = 64..96;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { profile_demands: 10_000, ..Limits::default() };
    let _ = Profile::parse(bytes, &limits);
    let mut document = bytes.to_vec();
    if document.len() >= CHECKSUM.end {
        let mut hasher = Hasher::new();
        hasher.update(&document[..CHECKSUM.start]);
        hasher.update(&document[CHECKSUM.end..]);
        let checksum: Digest = hasher.finish();
        document[CHECKSUM].copy_from_slice(checksum.as_bytes());
    }
    let Ok(profile) = Profile::parse(&document, &limits) else { return };
    let encoded = profile.encode().expect("zstd has memory");
    assert_eq!(Profile::parse(&encoded, &limits).as_ref(), Ok(&profile));
});
