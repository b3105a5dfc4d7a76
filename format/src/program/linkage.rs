//! Which functions calls of a program end in.
//!
//! Functions that a library exports are called through stubs, also by the library itself: short jumps in a procedure linkage table, whose goals the loader
//! fills in. The stubs lie in the order of the relocations that tell the loader to, each of which names a symbol, and that tells where the function lies unless
//! another library has it. Source: System V ABI, AMD64 Architecture Processor Supplement, section 5.2 (procedure linkage table), and chapter 4 (symbol table, relocation).
//!
//! Of PyTorch's largest library this leads to 11 chunks of 256 KiB that its constructors name in no other way, and 7 of them were read.

use std::ops::Range;

use object::Endianness;
use object::elf::{Rela64, Sym64};

use super::entries;

/// Bytes of relocations and of symbols that are looked at; the largest library seen has 0.8 MB and 2.1 MB.
const MOST_TABLE: u64 = 8 << 20;
/// Bytes of a stub.
pub(super) const STUB_LEN: u64 = 16;

/// Where a program tells what its stubs lead to.
#[derive(Clone, Debug, Default)]
pub struct Linkage {
    /// Tables of stubs, in the file.
    pub(super) stubs: Vec<Range<u64>>,
    pub(super) relocations: Range<u64>,
    pub(super) symbols: Range<u64>,
}

/// The addresses of functions behind stubs.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// Tables of stubs in the file, without what precedes the first stub.
    stubs: Vec<Range<u64>>,
    /// By the number of the stub; 0 for a function of another program.
    addresses: Vec<u64>,
}

/// What a call leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callee {
    /// What it names.
    Itself,
    /// The function at an address.
    Behind(u64),
    /// A function of another program.
    Elsewhere,
}

impl Linkage {
    /// Where the relocations of the stubs lie in the file.
    pub fn relocations(&self) -> Range<u64> {
        bounded(&self.relocations)
    }

    /// Where the symbols lie in the file that those name.
    pub fn symbols(&self) -> Range<u64> {
        bounded(&self.symbols)
    }

    /// What the stubs lead to, told by the bytes of [`Self::relocations`] and of [`Self::symbols`].
    pub fn links(&self, relocations: &[u8], symbols: &[u8]) -> Links {
        let relocations = entries::<Rela64<Endianness>>(relocations);
        let symbols = entries::<Sym64<Endianness>>(symbols);
        let endian = Endianness::Little;
        let address = |relocation: &Rela64<Endianness>| {
            let symbol = symbols.get(relocation.r_sym(endian, false) as usize);
            symbol.map_or(0, |symbol| symbol.st_value.get(endian))
        };
        let addresses: Vec<u64> = relocations.iter().map(address).collect();
        // A table may begin with a stub for the loader itself.
        let stubs_len = addresses.len() as u64 * STUB_LEN;
        let stubs = self.stubs.iter().filter_map(|file| {
            let first = (file.end - file.start).checked_sub(stubs_len)?;
            (first <= STUB_LEN).then_some(file.start + first..file.end)
        });
        Links {
            stubs: stubs.collect(),
            addresses,
        }
    }
}

impl Links {
    /// What a call of a place in the file leads to.
    pub(super) fn callee(&self, file_off: u64) -> Callee {
        let Some(stubs) = self.stubs.iter().find(|stubs| stubs.contains(&file_off)) else {
            return Callee::Itself;
        };
        let stub = ((file_off - stubs.start) / STUB_LEN) as usize;
        match self.addresses.get(stub) {
            Some(0) | None => Callee::Elsewhere,
            Some(address) => Callee::Behind(*address),
        }
    }
}

fn bounded(table: &Range<u64>) -> Range<u64> {
    table.start..table.end.min(table.start.saturating_add(MOST_TABLE))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Program;
    use super::super::sample::{read, slice};
    use super::*;

    fn word(bytes: &[u8], at: u64) -> u64 {
        let at = at as usize;
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Every stub is a jump through an address, and the relocation of that address names the symbol: told without the order that they lie in.
    #[test]
    fn stubs_of_a_real_library_lead_where_their_jumps_do() {
        let path = Path::new("/usr/lib/x86_64-linux-gnu/libstdc++.so.6");
        if !path.exists() {
            return;
        }
        let bytes = read(path);
        let program = Program::parse(&bytes[..4096]).expect("a program");
        let constructors = program
            .constructors(slice(&bytes, program.sections()))
            .expect("it has constructors");
        let linkage = constructors.linkage();
        let (relocations, symbols) = (linkage.relocations(), linkage.symbols());
        let links = linkage.links(slice(&bytes, relocations.clone()), slice(&bytes, symbols.clone()));
        let behind = |slot: u64| {
            let mut entries = relocations.clone().step_by(24);
            let entry = entries
                .find(|entry| word(&bytes, *entry) == slot)
                .expect("it is relocated");
            let symbol = word(&bytes, entry + 8) >> 32;
            word(&bytes, symbols.start + symbol * 24 + 8)
        };
        let (mut own, mut elsewhere) = (0, 0);
        for stub in links.stubs.iter().flat_map(|stubs| stubs.clone().step_by(16)) {
            // FF 25: a jump to the address that lies at a distance from the next instruction. Code of this library is not moved in its file.
            let jump = stub as usize..stub as usize + 2;
            assert_eq!(bytes[jump], [0xff, 0x25]);
            let distance = word(&bytes, stub + 2) as u32;
            match behind(stub + 6 + u64::from(distance)) {
                0 => {
                    elsewhere += 1;
                    assert_eq!(links.callee(stub), Callee::Elsewhere);
                }
                address => {
                    own += 1;
                    assert_eq!(links.callee(stub), Callee::Behind(address));
                    assert_eq!(constructors.function(stub, &links), Some(address));
                }
            }
        }
        assert!(own > 100 && elsewhere > 50, "{own} {elsewhere}");
        assert_eq!(links.callee(0), Callee::Itself);
        assert_eq!(constructors.function(0x10, &links), Some(0x10));
    }

    #[test]
    fn tables_that_do_not_fit_each_other_lead_nowhere() {
        let linkage = Linkage {
            stubs: vec![0x100..0x120, 0x200..0x400],
            relocations: 0..u64::MAX,
            symbols: 10..20,
        };
        assert_eq!(linkage.relocations(), 0..MOST_TABLE);
        assert_eq!(linkage.symbols(), 10..20);
        // One relocation, whose symbol is missing.
        let links = linkage.links(&[1; 24], &[0; 24]);
        assert_eq!(links.stubs.first(), Some(&(0x110..0x120)));
        assert_eq!(links.stubs.len(), 1);
        assert_eq!(links.callee(0x118), Callee::Elsewhere);
        assert_eq!(links.callee(0x208), Callee::Itself);
        assert_eq!(Linkage::default().links(b"", b"").callee(0), Callee::Itself);
    }
}
