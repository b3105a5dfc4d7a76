//! The libraries that a program needs, and where an image has them.
//!
//! A loader learns of a library only when it has read which ones the program needs, and of the libraries that *that* needs when it has read the library: one
//! wait after the other. Their names stand in the program's dynamic section, and an image seldom has two libraries of one name; so all of them can be fetched at
//! once. Source: System V ABI, chapter 5 (dynamic linking, `DT_NEEDED`).

use std::collections::HashMap;
use std::ops::Range;

use object::elf::{DT_NEEDED, Dyn64, SHT_DYNAMIC};
use object::read::elf::SectionHeader as _;

use super::{Program, entries};
use crate::startup::{FilePlace, last_part};
use crate::tree::{NodeId, NodeKind, Tree};

/// Bytes of a dynamic section that are looked at: sixteen per entry, of which linkers write about thirty and one per library.
const MOST_DYNAMIC: u64 = 16 << 10;
/// Libraries that one program needs; the most seen is 40.
const MOST_NEEDED: usize = 256;
/// Longest name of a library, in bytes.
const NAME_MAX: u64 = 255;
/// How names of libraries begin, of the loader as well, and what they have in them.
const BEGINNINGS: [&[u8]; 2] = [b"lib", b"ld-"];
const EXTENSION: &[u8] = b".so";
/// Symbolic links from one library to the next at most.
const MOST_LINKS: usize = 8;

/// Where a program tells the names of the libraries that it needs.
#[derive(Clone, Debug)]
pub struct Needed {
    dynamic: Range<u64>,
    strings: Range<u64>,
}

impl Program {
    /// Where the needed libraries are told, by the bytes of the section headers. `None` in a file that does not say.
    pub fn needed(&self, sections: &[u8]) -> Option<Needed> {
        let sections = self.section_headers(sections);
        let file = |at: usize| {
            let section = sections.get(at)?;
            let offset = section.sh_offset(self.endian);
            Some(offset..offset.checked_add(section.sh_size(self.endian))?)
        };
        let is_dynamic = |at: &usize| sections[*at].sh_type(self.endian) == SHT_DYNAMIC;
        let at = (0..sections.len()).find(is_dynamic)?;
        let dynamic = file(at)?;
        let end = dynamic.end.min(dynamic.start.saturating_add(MOST_DYNAMIC));
        Some(Needed {
            dynamic: dynamic.start..end,
            strings: file(usize::try_from(sections[at].sh_link(self.endian)).ok()?)?,
        })
    }
}

impl Needed {
    /// Where the dynamic section lies in the file.
    pub fn dynamic(&self) -> Range<u64> {
        self.dynamic.clone()
    }

    /// Ranges of the file that each begin with the name of a library and a zero byte, told by the bytes of the dynamic section.
    pub fn names(&self, program: &Program, dynamic: &[u8]) -> Vec<Range<u64>> {
        let needed = entries::<Dyn64<object::Endianness>>(dynamic)
            .iter()
            .filter(|entry| entry.d_tag.get(program.endian) == DT_NEEDED);
        let range = |entry: &Dyn64<object::Endianness>| {
            let start = self.strings.start.checked_add(entry.d_val.get(program.endian))?;
            let end = start.checked_add(NAME_MAX + 1)?.min(self.strings.end);
            (start < end).then_some(start..end)
        };
        needed.filter_map(range).take(MOST_NEEDED).collect()
    }
}

/// The name that `bytes` begin with, if a zero byte ends it.
pub fn library_name(bytes: &[u8]) -> Option<&[u8]> {
    let len = bytes.iter().position(|byte| *byte == 0)?;
    bytes.get(..len).filter(|name| !name.is_empty())
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    File(FilePlace),
    /// Another name.
    Link(Box<[u8]>),
    /// Different things in different directories.
    Several,
}

/// The libraries of an image by their names, in whatever directory they are.
#[derive(Clone, Debug, Default)]
pub struct LibraryPlaces {
    names: HashMap<Box<[u8]>, Meaning>,
}

impl LibraryPlaces {
    /// The libraries of an image tree.
    pub fn of(tree: &Tree) -> Self {
        let mut names: HashMap<Box<[u8]>, Meaning> = HashMap::new();
        for (name, id) in tree_entries(tree).filter(|(name, _)| is_library(name)) {
            let meaning = match &tree.node(id).kind {
                NodeKind::Regular(content) => FilePlace::of(content).map(Meaning::File),
                // A link to the same name leads to another directory, where the name is met too.
                NodeKind::Symlink(target) => Some(last_part(target))
                    .filter(|target| *target != name)
                    .map(|target| Meaning::Link(target.into())),
                _ => None,
            };
            let Some(meaning) = meaning else { continue };
            let known = names.entry(name.into()).or_insert_with(|| meaning.clone());
            if *known != meaning {
                *known = Meaning::Several;
            }
        }
        Self { names }
    }

    /// The one library of this name; `None` when there is none, or there are several.
    pub fn find(&self, name: &[u8]) -> Option<FilePlace> {
        let mut name = name;
        for _ in 0..MOST_LINKS {
            match self.names.get(name)? {
                Meaning::File(place) => return Some(*place),
                Meaning::Link(target) => name = target,
                Meaning::Several => return None,
            }
        }
        None
    }
}

/// All entries of the directories that are there. A merged tree also has nodes that upper layers have hidden.
fn tree_entries(tree: &Tree) -> impl Iterator<Item = (&[u8], NodeId)> {
    let mut left = vec![NodeId::ROOT];
    let directories = std::iter::from_fn(move || {
        let directory = tree.directory(left.pop()?)?;
        let is_directory = |id: &NodeId| tree.directory(*id).is_some();
        left.extend(directory.entries.values().copied().filter(is_directory));
        Some(&directory.entries)
    });
    directories.flatten().map(|(name, id)| (name.as_bytes(), *id))
}

fn is_library(name: &[u8]) -> bool {
    let begins = BEGINNINGS.iter().any(|beginning| name.starts_with(beginning));
    begins && name.windows(EXTENSION.len()).any(|part| part == EXTENSION)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{OWN, read, slice};
    use super::*;
    use crate::inode::Attributes;
    use crate::name::EntryName;
    use crate::tree::{Directory, Extent, ExtentSource, FileContent, Node};

    #[test]
    fn a_real_program_tells_what_it_needs() {
        let bytes = read(OWN);
        let program = Program::parse(&bytes[..4096]).expect("this test is a program");
        let needed = program
            .needed(slice(&bytes, program.sections()))
            .expect("it is linked");
        let names = needed.names(&program, slice(&bytes, needed.dynamic()));
        let names: Vec<_> = names
            .into_iter()
            .filter_map(|range| library_name(slice(&bytes, range)))
            .collect();
        assert!(names.contains(&&b"libc.so.6"[..]), "{names:?}");
    }

    #[test]
    fn lies_lead_nowhere() {
        let bytes = read(OWN);
        let program = Program::parse(&bytes[..4096]).expect("this test is a program");
        assert!(program.needed(b"short").is_none());
        let needed = Needed {
            dynamic: 0..16,
            strings: 100..200,
        };
        let entry = |tag: u64, value: u64| [tag.to_ne_bytes(), value.to_ne_bytes()].concat();
        let needed_at = |value| needed.names(&program, &entry(1, value));
        assert_eq!(needed_at(40).first(), Some(&(140..200)));
        assert!(needed_at(100).is_empty() && needed_at(u64::MAX).is_empty());
        assert!(needed.names(&program, &entry(2, 40)).is_empty());
        assert_eq!(
            needed.names(&program, &entry(1, 40).repeat(1000)).len(),
            MOST_NEEDED
        );
        assert_eq!(library_name(b"libc.so.6\0more"), Some(&b"libc.so.6"[..]));
        assert_eq!((library_name(b"\0"), library_name(b"endless")), (None, None));
    }

    fn add(tree: &mut Tree, parent: NodeId, name: &[u8], kind: NodeKind) -> NodeId {
        let attributes = Attributes::default();
        let id = tree.add(Node { kind, attributes });
        let name = EntryName::new(name).unwrap();
        let directory = tree.directory_mut(parent).expect("a directory");
        directory.entries.insert(name, id);
        id
    }

    fn file(device: u16, plain_off: u64) -> NodeKind {
        let source = ExtentSource::Plain { device, plain_off };
        let (file_off, len) = (0, 512);
        NodeKind::Regular(FileContent {
            size: len,
            extents: vec![Extent {
                file_off,
                len,
                source,
            }],
        })
    }

    #[test]
    fn libraries_are_found_by_unambiguous_names() {
        let mut tree = Tree::new();
        let usr = add(
            &mut tree,
            NodeId::ROOT,
            b"usr",
            NodeKind::Directory(Directory::default()),
        );
        let link = |target: &[u8]| NodeKind::Symlink(target.to_vec());
        add(&mut tree, usr, b"liba.so.1.2", file(1, 512));
        add(&mut tree, usr, b"liba.so.1", link(b"liba.so.1.2"));
        add(&mut tree, NodeId::ROOT, b"liba.so.1", link(b"/usr/liba.so.1"));
        add(&mut tree, usr, b"libb.so", file(2, 0));
        add(&mut tree, NodeId::ROOT, b"libb.so", file(2, 1024));
        add(&mut tree, usr, b"libloop.so", link(b"libpool.so"));
        add(&mut tree, usr, b"libpool.so", link(b"libloop.so"));
        add(&mut tree, usr, b"notes.so", file(1, 0));
        let hidden = tree.add(Node {
            kind: NodeKind::Directory(Directory::default()),
            attributes: Attributes::default(),
        });
        add(&mut tree, hidden, b"liba.so.1.2", file(3, 512));
        let places = LibraryPlaces::of(&tree);
        let expected = FilePlace {
            device: 1,
            plain_off: 512,
            len: 512,
        };
        assert_eq!(places.find(b"liba.so.1"), Some(expected));
        assert_eq!(places.find(b"liba.so.1.2"), Some(expected));
        for nowhere in [&b"libb.so"[..], b"libloop.so", b"notes.so", b"libc.so.6"] {
            assert_eq!(places.find(nowhere), None);
        }
    }
}
