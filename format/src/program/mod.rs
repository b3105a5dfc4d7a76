//! What a dynamic loader reads of an ELF program or library, told from its first bytes.
//!
//! A loader maps a library and touches its headers; then it walks the relocations from end to end with the data that they patch, and the symbol
//! tables in no order. Together these are most of what a start reads of a large library. The headers tell where the patched data lies, and the
//! section headers where the tables lie: whoever has seen those can fetch the rest before it is asked for. Then constructors run, and their code tells what
//! they touch ([`Constructors`]), also through stubs ([`Linkage`]). Before all that, a loader has to find the libraries ([`Needed`]).
//!
//! Everything here is a guess for fetching ahead. Of a file that only looks like ELF, or lies about itself, each of these parts costs at most [`MOST_BYTES`] fetched in
//! vain. Only 64-bit files are looked at. Source: System V ABI, chapters 4 and 5 (object files, program loading and dynamic linking), and the GNU extensions.

mod constructors;
mod libraries;
mod linkage;

use std::ops::Range;

use object::elf::{
    EM_X86_64, FileHeader64, PF_W, PF_X, PT_DYNAMIC, PT_GNU_EH_FRAME, PT_GNU_RELRO, PT_INTERP, PT_LOAD,
    SHF_ALLOC, SHT_DYNSYM, SHT_GNU_HASH, SHT_GNU_VERSYM, SHT_HASH, SHT_RELA, SHT_STRTAB, SectionHeader64,
    SectionType,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};
use object::{Endianness, pod};

pub use constructors::{Constructors, Target, function_at};
pub use libraries::{LibraryPlaces, Needed, library_name};
pub use linkage::{Linkage, Links};

/// The first bytes of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";
/// Bytes that one file may cause to be fetched ahead.
pub const MOST_BYTES: u64 = 64 << 20;

/// Program headers looked at; linkers write about ten.
const MOST_HEADERS: usize = 64;
/// Section headers looked at; linkers write about forty.
const MOST_SECTIONS: u16 = 512;
/// Bytes of writable data after the relocated part that a start touches for sure; the rest may be a table of any size.
const DATA_START: u64 = 256 << 10;
/// Sections that a loader reads.
const LOADER_TABLES: [SectionType; 6] = [
    SHT_DYNSYM,
    SHT_STRTAB,
    SHT_RELA,
    SHT_HASH,
    SHT_GNU_HASH,
    SHT_GNU_VERSYM,
];

/// Where the parts of a program lie in its file.
#[derive(Clone, Debug)]
pub struct Program {
    endian: Endianness,
    is_x86_64: bool,
    /// What the loader patches before it makes it read-only.
    patched: Option<Range<u64>>,
    /// Writable parts of the file.
    writable: Vec<Range<u64>>,
    /// Executable parts of the file.
    code: Vec<Range<u64>>,
    /// Parts that are neither: constants, and what the loader reads; not the tables for exceptions, which lie behind them.
    constants: Vec<Range<u64>>,
    /// Path of the loader.
    loader: Option<Box<[u8]>>,
    sections: Range<u64>,
}

impl Program {
    /// Reads the headers from the first bytes of a file. `None` for what is no dynamically linked 64-bit ELF file, or when `head` is
    /// too short for its headers.
    pub fn parse(head: &[u8]) -> Option<Self> {
        let header = FileHeader64::<Endianness>::parse(head).ok()?;
        let endian = header.endian().ok()?;
        let headers = header.program_headers(endian, head).ok()?;
        let mut program = Self {
            endian,
            is_x86_64: header.e_machine(endian) == EM_X86_64 && endian == Endianness::Little,
            patched: None,
            writable: Vec::new(),
            code: Vec::new(),
            constants: Vec::new(),
            loader: None,
            sections: section_headers(header, endian),
        };
        let (mut is_dynamic, mut exceptions) = (false, None);
        for header in headers.iter().take(MOST_HEADERS) {
            let offset = header.p_offset(endian);
            let file = offset..offset.checked_add(header.p_filesz(endian))?;
            match header.p_type(endian) {
                PT_LOAD if header.p_flags(endian).contains(PF_W) => program.writable.push(file),
                PT_LOAD if header.p_flags(endian).contains(PF_X) => program.code.push(file),
                PT_LOAD => program.constants.push(file),
                PT_GNU_RELRO => program.patched = Some(file),
                PT_DYNAMIC => is_dynamic = true,
                PT_GNU_EH_FRAME => exceptions = Some(file.start),
                PT_INTERP => program.loader = path_in(head, file),
                _ => {}
            }
        }
        for range in &mut program.constants {
            range.end = exceptions
                .filter(|start| range.contains(start))
                .unwrap_or(range.end);
        }
        is_dynamic.then_some(program)
    }

    /// Path of the program that loads it, which the kernel reads first. `None` for a library.
    pub fn loader(&self) -> Option<&[u8]> {
        self.loader.as_deref()
    }

    /// Where the section headers lie in the file, usually at its end. Empty in a file that was stripped of them.
    pub fn sections(&self) -> Range<u64> {
        self.sections.clone()
    }

    /// Ranges of the file that every start reads: what is patched, and where writable data begins.
    pub fn data_ranges(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        ranges.extend(self.patched.clone());
        for file in &self.writable {
            let patched = self.patched.as_ref().map(|range| range.end);
            let start = patched.filter(|end| file.contains(end)).unwrap_or(file.start);
            ranges.push(start..file.end.min(start.saturating_add(DATA_START)));
        }
        bounded(ranges)
    }

    /// Ranges of the file with code.
    pub fn code_ranges(&self) -> Vec<Range<u64>> {
        bounded(self.code.clone())
    }

    /// Ranges of the file with constants.
    pub fn constant_ranges(&self) -> Vec<Range<u64>> {
        bounded(self.constants.clone())
    }

    /// Ranges of the file with relocations and symbols, told by the bytes of the section headers.
    pub fn table_ranges(&self, sections: &[u8]) -> Vec<Range<u64>> {
        let sections = self.section_headers(sections);
        let tables = sections.iter().filter(|section| {
            // Without the flag it is for debuggers.
            let is_loaded = section.sh_flags(self.endian).contains(SHF_ALLOC);
            is_loaded && LOADER_TABLES.contains(&section.sh_type(self.endian))
        });
        let ranges = tables.map(|section| {
            let offset = section.sh_offset(self.endian);
            offset..offset.saturating_add(section.sh_size(self.endian))
        });
        bounded(ranges.collect())
    }

    fn section_headers<'a>(&self, bytes: &'a [u8]) -> &'a [SectionHeader64<Endianness>] {
        entries(bytes)
    }
}

/// The whole entries of a table.
fn entries<T: pod::Pod>(bytes: &[u8]) -> &[T] {
    let whole = bytes.len() / size_of::<T>();
    pod::slice_from_bytes(bytes, whole).map_or(&[], |(entries, _)| entries)
}

/// A path that ends with a zero byte.
fn path_in(head: &[u8], file: Range<u64>) -> Option<Box<[u8]>> {
    let range = usize::try_from(file.start).ok()?..usize::try_from(file.end).ok()?;
    let path = head.get(range)?.split(|byte| *byte == 0).next()?;
    Some(path.into())
}

fn section_headers(header: &FileHeader64<Endianness>, endian: Endianness) -> Range<u64> {
    let entry = size_of::<SectionHeader64<Endianness>>();
    let count = header.e_shnum(endian).min(MOST_SECTIONS);
    let len = u64::from(count) * entry as u64;
    let start = header.e_shoff(endian);
    let is_usual = usize::from(header.e_shentsize(endian)) == entry;
    let end = start.checked_add(len).filter(|_| is_usual && start > 0);
    start..end.unwrap_or(start)
}

/// Drops what is empty and cuts off what is too much.
fn bounded(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut left = MOST_BYTES;
    let cut = ranges.into_iter().filter(|range| !range.is_empty()).map(|range| {
        let len = (range.end - range.start).min(left);
        left -= len;
        range.start..range.start + len
    });
    cut.filter(|range| !range.is_empty()).collect()
}

/// Real programs for tests.
#[cfg(test)]
mod sample {
    use std::ops::Range;
    use std::path::Path;

    /// This test.
    pub(super) const OWN: &str = "/proc/self/exe";

    #[expect(clippy::disallowed_methods, reason = "real programs lie outside")]
    pub(super) fn read(path: impl AsRef<Path>) -> Vec<u8> {
        std::fs::read(path).unwrap()
    }

    pub(super) fn slice(bytes: &[u8], range: Range<u64>) -> &[u8] {
        &bytes[range.start as usize..range.end as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::sample::{OWN, read, slice};
    use super::*;

    #[test]
    fn the_tables_of_a_real_program_are_found() {
        let bytes = read(OWN);
        let program = Program::parse(&bytes[..4096]).expect("this test is a program");
        let sections = program.sections();
        let tables = program.table_ranges(slice(&bytes, sections));
        let data = program.data_ranges();
        assert!(tables.len() >= 4 && !data.is_empty(), "{tables:?} {data:?}");
        // The symbol names of a program that links with libc are among them.
        let names = tables.iter().any(|range| {
            slice(&bytes, range.clone())
                .windows(9)
                .any(|at| at == b"libc.so.6")
        });
        assert!(names);
        assert!(!program.code_ranges().is_empty());
        let constants = program.constant_ranges();
        // What is said above, put together so that it is only there once.
        let constant = [&b"this test "[..], b"is a program"].concat();
        let at = bytes
            .windows(constant.len())
            .position(|part| part == constant)
            .expect("it is there") as u64;
        assert!(
            constants.iter().any(|range| range.contains(&at)),
            "{constants:?} {at}"
        );
        let len: u64 = constants.iter().map(|range| range.end - range.start).sum();
        assert!(
            len < bytes.len() as u64 / 2,
            "neither code nor tables for debuggers"
        );
        let loader = String::from_utf8_lossy(program.loader().expect("it is linked")).into_owned();
        assert!(loader.starts_with("/lib") && loader.contains("/ld-"), "{loader}");
        let inside = |range: &Range<u64>| range.end <= bytes.len() as u64;
        assert!(tables.iter().chain(&data).all(inside), "{tables:?} {data:?}");
    }

    #[test]
    fn other_files_and_short_heads_are_no_programs() {
        let bytes = read(OWN);
        for head in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &bytes[..100], &[0xff; 4096]] {
            assert!(Program::parse(head).is_none());
        }
    }

    #[test]
    fn lies_cost_no_more_than_the_bound() {
        let bytes = read(OWN);
        let total = |ranges: Vec<Range<u64>>| ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        let mut head = bytes[..4096].to_vec();
        for at in (0..head.len()).step_by(3) {
            head[at] = head[at].wrapping_add(0x7f);
            if let Some(program) = Program::parse(&head) {
                assert!(total(program.data_ranges()) <= MOST_BYTES);
                assert!(total(program.code_ranges()) <= MOST_BYTES);
                assert!(total(program.constant_ranges()) <= MOST_BYTES);
                assert!(total(program.table_ranges(&bytes[..8000])) <= MOST_BYTES);
            }
            head[at] = bytes[at];
        }
        let program = Program::parse(&bytes[..4096]).expect("a program");
        assert!(total(program.table_ranges(&[0xff; 100_000])) <= MOST_BYTES);
        assert!(program.table_ranges(b"short").is_empty());
    }
}
