//! Names of modules: whatever a file holds, its names are parts of it, and not too many.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::startup::{bytecode_names, interpreter_of, manifest_names, script_names, source_names};

/// The magic numbers of CPython 3.8 and 3.11, and what stands behind them.
const HEADS: [&[u8]; 2] = [b"\x55\x0d\r\n", b"\xa7\x0d\r\n"];
const REST_OF_HEAD: [u8; 12] = [0; 12];

fuzz_target!(|input: &[u8]| {
    check(input, &bytecode_names(input));
    for head in HEADS {
        let file = [head, &REST_OF_HEAD, input].concat();
        check(&file, &bytecode_names(&file));
    }
    check(input, &source_names(input));
    check(input, &script_names(input));
    let _ = (interpreter_of(input), manifest_names(input));
});

fn check(file: &[u8], names: &[&[u8]]) {
    assert!(names.len() <= 2048);
    let range = file.as_ptr_range();
    assert!(names.iter().all(|name| range.start <= name.as_ptr() && name.as_ptr_range().end <= range.end));
}
