//! Names of modules: whatever a file holds, its names are parts of it, and not too many.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_format::startup::{Import, bytecode_imports, interpreter_of, manifest_names, script_names, source_names};

/// The magic numbers of CPython 3.8, 3.11, and one whose instructions are not known, and what stands behind them.
const HEADS: [&[u8]; 3] = [b"\x55\x0d\r\n", b"\xa7\x0d\r\n", b"\x10\x0e\r\n"];
const REST_OF_HEAD: [u8; 12] = [0; 12];

fuzz_target!(|input: &[u8]| {
    check_imports(input, &bytecode_imports(input));
    for head in HEADS {
        let file = [head, &REST_OF_HEAD, input].concat();
        check_imports(&file, &bytecode_imports(&file));
    }
    check(input, &source_names(input));
    check(input, &script_names(input));
    let _ = (interpreter_of(input), manifest_names(input));
});

fn check_imports(file: &[u8], imports: &[Import<'_>]) {
    let modules: Vec<_> = imports.iter().map(|import| import.module).collect();
    check(file, &modules);
    imports.iter().for_each(|import| check(file, &import.names));
}

fn check(file: &[u8], names: &[&[u8]]) {
    assert!(names.len() <= 2048);
    let range = file.as_ptr_range();
    assert!(names.iter().all(|name| range.start <= name.as_ptr() && name.as_ptr_range().end <= range.end));
}
