//! Footers and the text form of index locations.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::IndexLocation;
use sluice_format::layer_index::{FOOTER_LEN, parse_footer};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(location)) = parse_footer(bytes, u64::MAX) {
        assert!(location.check_within(u64::MAX - FOOTER_LEN).is_ok());
        assert_eq!(location.to_string().parse(), Ok(location));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(location) = text.parse::<IndexLocation>()
    {
        assert_eq!(location.to_string().parse(), Ok(location));
    }
});
