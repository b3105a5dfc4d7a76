//! What the constructors of a library touch.
//!
//! When a loader has relocated a library it runs its constructors, all of them. Most register something: they call functions of the library, pass on where
//! others lie, and read strings. On x86-64 such instructions hold the distance to their target, so the targets can be told without decoding anything else: a call
//! (`E8`, distance) whose target is aligned as functions are, and a load of an address (`REX.W 8D`, relative to the instruction, distance). Source: Intel 64 and IA-32 Architectures Software
//! Developer's Manual, volume 2, CALL and LEA. The functions that they call can be looked into in the same way.
//!
//! Of 663 chunks of 256 KiB that this named in a start of a PyTorch program, 625 were read. It waited for 211 of them, and for 408 chunks in all. What the called functions
//! call in turn is less certain: 55 chunks more of the largest library, 25 of which were read.

use std::collections::BTreeSet;
use std::ops::Range;

use object::elf::{
    SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK, SHF_WRITE, SHT_DYNSYM, SHT_INIT_ARRAY, SHT_PROGBITS, SHT_RELA,
};
use object::read::elf::SectionHeader as _;

use super::Program;
use super::linkage::{Callee, Linkage, Links, STUB_LEN};

/// Bytes of addresses that are looked at: the largest library seen has 11 KB.
const MOST_ADDRESSES: u64 = 128 << 10;
/// Bytes of relocations that are looked at. Those of constructors come early: linkers sort them by place, and constructors precede other data.
const MOST_RELOCATIONS: u64 = 1 << 20;
/// Kind of the relocations that say where something of the program itself lies (`R_X86_64_RELATIVE`).
const RELATIVE: u64 = 8;
/// Bytes of code that are looked at: the largest library seen has 2 MB in its constructors.
const MOST_CODE: u64 = 8 << 20;
/// Where a constructor ends at the latest. Its length is not told.
const CONSTRUCTOR_LEN: u64 = 16 << 10;
/// Where any other function ends at the latest.
const FUNCTION_LEN: usize = 4096;
/// Compilers begin functions at multiples of this.
const FUNCTION_ALIGN: u64 = 16;
/// The last instructions of a function: a return, and a jump by a distance of four bytes.
const RETURN: u8 = 0xc3;
const JUMP: u8 = 0xe9;
/// How what compilers put between functions begins: instructions that do nothing, of any length, or trap.
const PADDING: [&[u8]; 7] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f],
    &[0x66, 0x0f, 0x1f],
    &[0x66, 0x2e],
    &[0x66, 0x66],
    &[0xcc],
];
/// Bytes of the longer one of the two instructions.
const INSTRUCTION_LEN: usize = 7;

/// Where the constructors of a program are told, and what their addresses mean.
#[derive(Clone, Debug)]
pub struct Constructors {
    addresses: Range<u64>,
    /// Where the addresses lie in memory.
    memory: Range<u64>,
    relocations: Range<u64>,
    linkage: Linkage,
    parts: Vec<Part>,
}

/// A place in a file that code refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it lies in the file.
    pub file_off: u64,
    /// Whether the code calls it; else it only takes its address.
    pub is_called: bool,
}

/// A section that is never written to.
#[derive(Clone, Debug)]
struct Part {
    /// Its addresses before it is moved anywhere.
    memory: Range<u64>,
    file_off: u64,
    is_code: bool,
}

impl Part {
    fn file(&self) -> Range<u64> {
        self.file_off..self.file_off.saturating_add(self.memory.end - self.memory.start)
    }

    fn file_off(&self, address: u64) -> u64 {
        self.file_off.saturating_add(address - self.memory.start)
    }
}

impl Program {
    /// The constructors of a program, told by the bytes of its section headers. `None` when it has none, or is for another machine than x86-64.
    pub fn constructors(&self, sections: &[u8]) -> Option<Constructors> {
        let endian = self.endian;
        let mut found = Constructors {
            addresses: 0..0,
            memory: 0..0,
            relocations: 0..0,
            linkage: Linkage::default(),
            parts: Vec::new(),
        };
        for section in self.section_headers(sections).iter().filter(|_| self.is_x86_64) {
            let flags = section.sh_flags(endian);
            let (file_off, len) = (section.sh_offset(endian), section.sh_size(endian));
            if !flags.contains(SHF_ALLOC) || len == 0 {
                continue;
            }
            let start = section.sh_addr(endian);
            let memory = start..start.saturating_add(len);
            let file = file_off..file_off.saturating_add(len);
            match section.sh_type(endian) {
                SHT_INIT_ARRAY => {
                    found.addresses = file_off..file_off.saturating_add(len.min(MOST_ADDRESSES));
                    found.memory = memory;
                }
                // Those of stubs refer to the section with the addresses of what they lead to.
                SHT_RELA if flags.contains(SHF_INFO_LINK) => found.linkage.relocations = file,
                SHT_DYNSYM => found.linkage.symbols = file,
                SHT_RELA if found.relocations.is_empty() => {
                    found.relocations = file_off..file_off.saturating_add(len.min(MOST_RELOCATIONS));
                }
                SHT_PROGBITS if !flags.contains(SHF_WRITE) => {
                    let is_code = flags.contains(SHF_EXECINSTR);
                    if is_code && section.sh_entsize(endian) == STUB_LEN {
                        found.linkage.stubs.push(file);
                    }
                    found.parts.push(Part {
                        memory,
                        file_off,
                        is_code,
                    });
                }
                _ => {}
            }
        }
        (!found.addresses.is_empty()).then_some(found)
    }
}

impl Constructors {
    /// Where the addresses of the constructors lie in the file.
    pub fn addresses(&self) -> Range<u64> {
        self.addresses.clone()
    }

    /// Where relocations lie in the file that may tell the addresses.
    pub fn relocations(&self) -> Range<u64> {
        self.relocations.clone()
    }

    /// The bytes of the addresses in a file whose linker has left them to the relocations, told by the bytes of these.
    pub fn relocated(&self, relocations: &[u8]) -> Vec<u8> {
        let (relocations, _) = relocations.as_chunks::<24>();
        let addresses = relocations.iter().filter_map(|relocation| {
            let (words, _) = relocation.as_chunks::<8>();
            let [place, info, address] = [0, 1, 2].map(|word| u64::from_le_bytes(words[word]));
            let is_meant = info & u64::from(u32::MAX) == RELATIVE && self.memory.contains(&place);
            is_meant.then(|| address.to_le_bytes())
        });
        addresses.flatten().collect()
    }

    /// Where the program tells which functions lie behind stubs.
    pub fn linkage(&self) -> &Linkage {
        &self.linkage
    }

    /// Ranges of the file with the code of the constructors, ascending, told by the bytes of their addresses.
    pub fn code(&self, addresses: &[u8]) -> Vec<Range<u64>> {
        let (addresses, _) = addresses.as_chunks::<8>();
        let starts = addresses.iter().filter_map(|address| {
            let address = u64::from_le_bytes(*address);
            let part = self.part_at(address).filter(|part| part.is_code)?;
            Some((part.file_off(address), part.file().end))
        });
        let starts: BTreeSet<(u64, u64)> = starts.collect();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut left = MOST_CODE;
        for (start, part_end) in starts {
            let end = start.saturating_add(CONSTRUCTOR_LEN).min(part_end);
            let known_end = ranges.last().map_or(0, |range| range.end);
            let more = end.saturating_sub(known_end.max(start)).min(left);
            left -= more;
            match ranges.last_mut() {
                Some(last) if start <= last.end => last.end += more,
                _ if more > 0 => ranges.push(start..start + more),
                _ => {}
            }
        }
        ranges
    }

    /// What the code at `file_off` refers to, in the order in which it does; one place may be named often.
    pub fn targets(&self, file_off: u64, code: &[u8]) -> Vec<Target> {
        let Some(part) = self.parts.iter().find(|part| part.file().contains(&file_off)) else {
            return Vec::new();
        };
        let memory = part.memory.start.saturating_add(file_off - part.file_off);
        let instructions = code.windows(INSTRUCTION_LEN).enumerate();
        let targets = instructions.filter_map(|(at, instruction)| {
            let (address, is_called) = target(memory.checked_add(at as u64)?, instruction)?;
            let part = self.part_at(address)?;
            let is_meant = !is_called || part.is_code && address.is_multiple_of(FUNCTION_ALIGN);
            is_meant.then(|| Target {
                file_off: part.file_off(address),
                is_called,
            })
        });
        targets.collect()
    }

    /// The function that a call of a place in the file leads to; `None` for one of another program.
    pub fn function(&self, called: u64, links: &Links) -> Option<u64> {
        match links.callee(called) {
            Callee::Itself => Some(called),
            Callee::Behind(address) => {
                let part = self.part_at(address).filter(|part| part.is_code)?;
                Some(part.file_off(address))
            }
            Callee::Elsewhere => None,
        }
    }

    fn part_at(&self, address: u64) -> Option<&Part> {
        self.parts.iter().find(|part| part.memory.contains(&address))
    }
}

/// The function that begins with `code`, which begins at a place in the file and may go on behind it.
pub fn function_at(file_off: u64, code: &[u8]) -> &[u8] {
    let code = &code[..code.len().min(FUNCTION_LEN)];
    let ends = |at: usize| {
        let ends_here = code[at - 1] == RETURN || at >= 5 && code[at - 5] == JUMP;
        // Behind the last one comes padding, or the next function at once.
        let is_next = || file_off.saturating_add(at as u64).is_multiple_of(FUNCTION_ALIGN);
        let is_padding = || PADDING.iter().any(|padding| code[at..].starts_with(padding));
        ends_here && (is_next() || is_padding())
    };
    let len = (1..=code.len()).find(|at| ends(*at)).unwrap_or(code.len());
    &code[..len]
}

/// The address that an instruction refers to, and whether it calls it.
fn target(address: u64, instruction: &[u8]) -> Option<(u64, bool)> {
    let (distance, len, is_call) = match *instruction {
        [0xe8, a, b, c, d, ..] => ([a, b, c, d], 5, true),
        // The register may be any of sixteen; the mode is "relative to the next instruction".
        [0x48 | 0x4c, 0x8d, mode, a, b, c, d, ..] if mode & 0xc7 == 0x05 => ([a, b, c, d], 7, false),
        _ => return None,
    };
    let next = address.checked_add(len)?;
    let target = next.checked_add_signed(i32::from_le_bytes(distance).into())?;
    Some((target, is_call))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::sample::{OWN, read, slice};
    use super::*;

    /// The constructors of a program and where their code lies.
    fn found(bytes: &[u8]) -> (Constructors, Vec<Range<u64>>) {
        let program = Program::parse(&bytes[..4096]).expect("a program");
        let sections = slice(bytes, program.sections());
        let constructors = program.constructors(sections).expect("it has constructors");
        let mut code = constructors.code(slice(bytes, constructors.addresses()));
        if code.is_empty() {
            let relocations = slice(bytes, constructors.relocations());
            code = constructors.code(&constructors.relocated(relocations));
        }
        (constructors, code)
    }

    /// This test has a constructor of Rust's library, libstdc++ has one for its streams; one linker leaves the addresses to the relocations.
    #[test]
    fn constructors_of_real_programs_are_found_with_what_they_call() {
        let library = Path::new("/usr/lib/x86_64-linux-gnu/libstdc++.so.6");
        let own = Path::new(OWN);
        let programs = [own, library].into_iter().filter(|path| path.exists());
        for bytes in programs.map(read) {
            let (constructors, code) = found(&bytes);
            assert!(!code.is_empty());
            assert!(code.is_sorted_by(|one, next| one.end < next.start));
            let targets: Vec<Target> = code
                .iter()
                .flat_map(|range| constructors.targets(range.start, slice(&bytes, range.clone())))
                .collect();
            assert!(targets.iter().any(|target| target.is_called));
            let len = bytes.len() as u64;
            assert!(code.iter().all(|range| range.end <= len));
            assert!(targets.iter().all(|target| target.file_off < len));
        }
    }

    /// Code at 0x1000 in memory and 0x400 in the file, read-only data at 0x9000 and 0x2000.
    fn sample() -> Constructors {
        let part = |memory, file_off, is_code| Part {
            memory,
            file_off,
            is_code,
        };
        Constructors {
            addresses: 0x3000..0x3018,
            memory: 0xa000..0xa018,
            relocations: 0..0,
            linkage: Linkage::default(),
            parts: vec![
                part(0x1000..0x8000, 0x400, true),
                part(0x9000..0x9800, 0x2000, false),
            ],
        }
    }

    #[test]
    fn targets_are_told_by_calls_and_by_loads_of_addresses() {
        let mut code = vec![0x90; 64];
        // At 0x1100: a call of 0x1200, one of 0x1201, which begins no function, and one that leads out of the code.
        code[..5].copy_from_slice(&[0xe8, 0xfb, 0, 0, 0]);
        code[8..13].copy_from_slice(&[0xe8, 0xf4, 0, 0, 0]);
        code[16..21].copy_from_slice(&[0xe8, 0, 0, 0, 0x70]);
        // At 0x1120: the address of 0x9004, and of something that is written to.
        code[32..39].copy_from_slice(&[0x48, 0x8d, 0x35, 0xdd, 0x7e, 0, 0]);
        code[40..47].copy_from_slice(&[0x4c, 0x8d, 0x3d, 0, 0xf0, 0, 0]);
        let target = |file_off, is_called| Target { file_off, is_called };
        assert_eq!(
            sample().targets(0x500, &code),
            [target(0x600, true), target(0x2004, false)]
        );
        assert!(sample().targets(0x9_0000, &code).is_empty());
        assert!(sample().targets(0x500, &code[..6]).is_empty());
    }

    #[test]
    fn a_function_ends_where_the_next_begins_or_padding_does() {
        let body = |code: &[u8]| {
            let code = [code, &[0x55; 40]].concat();
            function_at(0x1000, &code).len()
        };
        // mov rbx, rax holds the byte of a return.
        assert_eq!(body(&[0x48, 0x89, 0xc3, 0x31, 0xc0, 0xc3, 0x66, 0x90]), 6);
        assert_eq!(body(&[0xe9, 1, 2, 3, 4, 0x0f, 0x1f]), 5);
        assert_eq!(body(&[&[0x90; 15][..], &[0xc3]].concat()), 16);
        assert_eq!(body(&[0xc3, 0x48]), 42);
        assert!(function_at(0x1000, b"").is_empty());
        assert_eq!(function_at(0, &[0x55; 2 * FUNCTION_LEN]).len(), FUNCTION_LEN);
        assert_eq!(function_at(u64::MAX, &[0xc3]).len(), 1);
    }

    #[test]
    fn constructors_that_lie_close_are_one_range_and_addresses_of_data_none() {
        let addresses = |list: &[u64]| -> Vec<u8> { list.iter().flat_map(|one| one.to_le_bytes()).collect() };
        let near = addresses(&[0x1100, 0x1040, 0x9000, 0, 0xffff_ffff_ffff]);
        // Both end with the code that they lie in.
        let only = |range: Range<u64>| Vec::from_iter([range]);
        assert_eq!(sample().code(&near), only(0x440..0x4500));
        assert_eq!(sample().code(&addresses(&[0x7ff0])), only(0x73f0..0x7400));
        assert!(sample().code(b"short").is_empty());
    }

    #[test]
    fn relocations_tell_what_a_linker_left_out() {
        let mut relocations = Vec::new();
        for (place, kind, address) in [
            (0x9fff, 8, 1),
            (0xa000, 8, 0x1100),
            (0xa008, 1, 2),
            (0xa010, 8, 0x1200u64),
        ] {
            for word in [place, kind, address] {
                relocations.extend_from_slice(&u64::to_le_bytes(word));
            }
        }
        let found = sample().relocated(&relocations);
        assert_eq!(found, [0x1100u64.to_le_bytes(), 0x1200u64.to_le_bytes()].concat());
    }
}
