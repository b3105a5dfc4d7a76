//! ELF hints: whatever a file says of itself, the ranges are whole, and no more than the bound. The input is the head of a file and, behind
//! it, what stands where it says that its section headers are.

#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use sluice_format::program::{MAGIC, MOST_BYTES, Program, function_at, library_name};

fuzz_target!(|input: &[u8]| {
    let [cut, rest @ ..] = input else { return };
    let (head, sections) = rest.split_at(rest.len() * usize::from(*cut) / 255);
    let _ = Program::parse(head);
    // A reader shows a program by its magic number; the rest is what a mutation should spend its time on.
    let head = [MAGIC, head].concat();
    let Some(program) = Program::parse(&head) else { return };
    let place = program.sections();
    assert!(place.start <= place.end);
    check(&program.data_ranges());
    check(&program.code_ranges());
    let _ = program.loader();
    check(&program.table_ranges(sections));
    check(&program.table_ranges(&head));
    for sections in [sections, &head] {
        if let Some(needed) = program.needed(sections) {
            assert!(needed.dynamic().start <= needed.dynamic().end);
            check(&needed.names(&program, sections));
            let _ = library_name(sections);
        }
        let Some(constructors) = program.constructors(sections) else {
            continue;
        };
        let place = constructors.addresses();
        assert!(place.start <= place.end);
        let code = constructors.code(&constructors.relocated(sections));
        check(&code);
        let code = constructors.code(sections);
        check(&code);
        assert!(code.is_sorted_by(|one, next| one.end < next.start));
        let linkage = constructors.linkage();
        assert!(linkage.relocations().start <= linkage.relocations().end);
        assert!(linkage.symbols().start <= linkage.symbols().end);
        let links = linkage.links(sections, &head);
        for range in code {
            assert!(function_at(range.start, sections).len() <= sections.len());
            let targets = constructors.targets(range.start, sections);
            assert!(targets.len() < sections.len());
            for target in targets {
                let _ = constructors.function(target.file_off, &links);
            }
        }
    }
});

fn check(ranges: &[Range<u64>]) {
    assert!(ranges.iter().all(|range| range.start < range.end));
    let fetched: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    assert!(fetched <= MOST_BYTES);
}
