//! Which modules a Python file names.
//!
//! Compiled files are marshalled code objects; the names that the code of a module itself uses, functions left out, stand in one tuple of it, and two
//! instructions of that code tell which of them it imports. Where the numbers of these instructions are not known, every name may be one: that is twice the
//! modules, as half the standard library is named like somebody's function. In source, import statements are looked for line by line.
//!
//! Source: `Python/marshal.c` of CPython 3.8 to 3.14, the magic numbers in its `importlib`, and the `opcode` module of each version. A file that lies about
//! itself gives no names, or wrong ones.

use std::rc::Rc;

/// Bytes before the marshalled code: magic number, flags, time or hash, size.
const HEADER_LEN: usize = 16;
/// Behind the version in the magic number.
const MAGIC_END: &[u8] = b"\r\n";
/// Objects within objects; nested functions reach a dozen.
const MOST_DEPTH: usize = 100;
/// Set in the type of an object that later ones refer to.
const IS_REFERRED_TO: u8 = 0x80;
/// Names of one module that are looked at; the most seen is 1,000.
const MOST_NAMES: usize = 2048;

/// How code objects are laid out in a version of Python.
#[derive(Clone, Copy, Debug)]
struct CodeLayout {
    /// Numbers before the first object.
    numbers: usize,
    /// Objects behind the names and before the line number, and behind that.
    objects: [usize; 2],
}

impl CodeLayout {
    fn of(magic: u16) -> Option<Self> {
        match magic {
            3413..=3439 => Some(Self {
                numbers: 6,
                objects: [5, 1],
            }),
            3495..=3800 => Some(Self {
                numbers: 5,
                objects: [5, 2],
            }),
            _ => None,
        }
    }
}

/// The instructions that import.
#[derive(Clone, Copy, Debug)]
struct Instructions {
    import_name: u8,
    import_from: u8,
    extended_arg: u8,
}

impl Instructions {
    fn of(magic: u16) -> Option<Self> {
        let [import_name, import_from, extended_arg] = match magic {
            3413..=3531 => [108, 109, 144],
            3571 => [75, 74, 71],
            3627 => [73, 72, 69],
            _ => return None,
        };
        Some(Self {
            import_name,
            import_from,
            extended_arg,
        })
    }

    /// What code imports that has these names. Between instructions may be places for caches, which are zero in files.
    fn imports<'a>(self, code: &[u8], names: &[&'a [u8]]) -> Vec<Import<'a>> {
        let mut imports = Vec::new();
        let mut left = MOST_NAMES;
        let mut extension = 0;
        for unit in code.chunks_exact(2) {
            let argument = extension | usize::from(unit[1]);
            extension = 0;
            if unit[0] == self.extended_arg {
                extension = (argument << 8) & 0xffff_ff00;
                continue;
            }
            let is_import = [self.import_name, self.import_from].contains(&unit[0]);
            let Some(name) = names.get(argument).filter(|_| is_import && left > 0) else {
                continue;
            };
            left -= 1;
            if unit[0] == self.import_name {
                imports.push((*name, Vec::new()));
            } else if let Some((_, taken)) = imports.last_mut() {
                taken.push(*name);
            }
        }
        let import = |(module, names): (&'a [u8], Vec<&'a [u8]>)| Import {
            module,
            names: names.into(),
        };
        imports.into_iter().map(import).collect()
    }
}

/// One import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import<'a> {
    /// The module, from the packages around the importing one if it is there. Empty for these packages themselves.
    pub module: &'a [u8],
    /// What is taken out of it, if it is a package: modules, too.
    pub names: Rc<[&'a [u8]]>,
}

impl<'a> Import<'a> {
    /// The imports that use these names in any way.
    pub fn any_of(names: Vec<&'a [u8]>) -> Vec<Self> {
        let names: Rc<[&[u8]]> = names.into();
        let import = |module: &&'a [u8]| Self {
            module,
            names: names.clone(),
        };
        names.iter().map(import).collect()
    }
}

/// What the code of a compiled module imports. Nothing when the file is none that is understood.
pub fn bytecode_imports(file: &[u8]) -> Vec<Import<'_>> {
    imports_of_module(file).unwrap_or_default()
}

fn imports_of_module(file: &[u8]) -> Option<Vec<Import<'_>>> {
    let magic = u16::from_le_bytes(file.get(..2)?.try_into().ok()?);
    if file.get(2..4)? != MAGIC_END {
        return None;
    }
    let mut objects = Objects {
        rest: file.get(HEADER_LEN..)?,
        layout: CodeLayout::of(magic)?,
        referred: Vec::new(),
    };
    match (objects.next(0)?, Instructions::of(magic)) {
        (Object::Code { code, names }, Some(instructions)) => Some(instructions.imports(code, &names)),
        (Object::Code { names, .. }, None) => {
            Some(Import::any_of(names.iter().copied().take(MOST_NAMES).collect()))
        }
        _ => None,
    }
}

/// What matters of a marshalled object.
#[derive(Clone, Debug)]
enum Object<'a> {
    Text(&'a [u8]),
    /// The texts of a tuple.
    Tuple(Rc<[&'a [u8]]>),
    Bytes(&'a [u8]),
    /// Instructions, and the names that they use.
    Code {
        code: &'a [u8],
        names: Rc<[&'a [u8]]>,
    },
    /// Ends a dictionary.
    Null,
    Other,
}

#[derive(Debug)]
struct Objects<'a> {
    rest: &'a [u8],
    layout: CodeLayout,
    referred: Vec<Object<'a>>,
}

impl<'a> Objects<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<usize> {
        Some(usize::from(*self.take(1)?.first()?))
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.take(4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    }

    fn next(&mut self, depth: usize) -> Option<Object<'a>> {
        if depth > MOST_DEPTH {
            return None;
        }
        let first = *self.take(1)?.first()?;
        // An object has its number before those within it.
        let number = (first & IS_REFERRED_TO != 0).then(|| {
            self.referred.push(Object::Other);
            self.referred.len() - 1
        });
        let object = self.content(first & !IS_REFERRED_TO, depth + 1)?;
        if let Some(number) = number {
            self.referred[number] = object.clone();
        }
        Some(object)
    }

    fn content(&mut self, kind: u8, depth: usize) -> Option<Object<'a>> {
        let skipped = match kind {
            b'0' => return Some(Object::Null),
            b'N' | b'F' | b'T' | b'S' | b'.' => 0,
            b'i' => 4,
            b'I' | b'g' => 8,
            b'y' => 16,
            b'f' => self.byte()?,
            b'x' => {
                let real = self.byte()?;
                self.take(real)?;
                self.byte()?
            }
            // Digits of 15 bits; the sign is that of their number.
            b'l' => 2 * (self.number()? as u32 as i32).unsigned_abs() as usize,
            b's' => {
                let len = self.number()?;
                return Some(Object::Bytes(self.take(len)?));
            }
            b't' | b'u' | b'a' | b'A' => {
                let len = self.number()?;
                return Some(Object::Text(self.take(len)?));
            }
            b'z' | b'Z' => {
                let len = self.byte()?;
                return Some(Object::Text(self.take(len)?));
            }
            b'r' => {
                let number = self.number()?;
                return self.referred.get(number).cloned();
            }
            b'(' | b'[' | b'<' | b'>' => {
                let count = self.number()?;
                return self.several(count, depth);
            }
            b')' => {
                let count = self.byte()?;
                return self.several(count, depth);
            }
            b':' => return self.several(3, depth),
            b'{' => {
                while !matches!(self.next(depth)?, Object::Null) {
                    self.next(depth)?;
                }
                0
            }
            b'c' => return self.code(depth),
            _ => return None,
        };
        self.take(skipped)?;
        Some(Object::Other)
    }

    fn several(&mut self, count: usize, depth: usize) -> Option<Object<'a>> {
        let mut texts = Vec::new();
        for _ in 0..count {
            if let Object::Text(text) = self.next(depth)? {
                texts.push(text);
            }
        }
        Some(Object::Tuple(texts.into()))
    }

    fn code(&mut self, depth: usize) -> Option<Object<'a>> {
        self.take(4 * self.layout.numbers)?;
        let instructions = self.next(depth)?;
        // Constants.
        self.next(depth)?;
        let names = self.next(depth)?;
        let [before, behind] = self.layout.objects;
        self.several(before, depth)?;
        self.take(4)?;
        self.several(behind, depth)?;
        match (instructions, names) {
            (Object::Bytes(code), Object::Tuple(names)) => Some(Object::Code { code, names }),
            _ => Some(Object::Other),
        }
    }
}

/// The names in the import statements of source, functions left out.
pub fn source_names(text: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    // Indentation of the function that the line may be in.
    let mut function = None;
    let mut in_list = false;
    for line in text.split(|byte| *byte == b'\n') {
        let code = line.trim_ascii_start();
        if in_list {
            in_list = !code.contains(&b')');
            names.extend(words(code));
            continue;
        }
        let indentation = line.len() - code.len();
        if code.is_empty() || code.starts_with(b"#") || function.is_some_and(|outer| indentation > outer) {
            continue;
        }
        let is_function = code.starts_with(b"def ") || code.starts_with(b"async def ");
        function = is_function.then_some(indentation);
        if code.starts_with(b"import ") || code.starts_with(b"from ") {
            in_list = code.contains(&b'(') && !code.contains(&b')');
            names.extend(words(code));
        }
        if names.len() >= MOST_NAMES {
            break;
        }
    }
    names.truncate(MOST_NAMES);
    names
}

/// Names with dots in them, up to a comment. Words of the language are no modules.
fn words(code: &[u8]) -> impl Iterator<Item = &[u8]> {
    let code = code.split(|byte| *byte == b'#').next().unwrap_or_default();
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.') || !byte.is_ascii();
    let words = code.split(move |byte| !is_name(byte));
    words
        .map(|word| word.trim_ascii_start())
        .map(|word| {
            let dots = word.iter().take_while(|byte| **byte == b'.').count();
            &word[dots..]
        })
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> Vec<u8> {
        [&[b'Z', name.len() as u8], name.as_bytes()].concat()
    }

    fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        [&[b')', items.len() as u8][..], &items.concat()].concat()
    }

    fn number(value: u32) -> Vec<u8> {
        value.to_le_bytes().to_vec()
    }

    fn code(layout: CodeLayout, instructions: &[u8], constants: &[Vec<u8>], names: &[Vec<u8>]) -> Vec<u8> {
        let CodeLayout {
            numbers,
            objects: [_, behind],
        } = layout;
        let mut code = vec![b'c' | IS_REFERRED_TO];
        code.extend(number(0).repeat(numbers));
        code.extend([&[b's'][..], &number(instructions.len() as u32), instructions].concat());
        code.extend(tuple(constants));
        code.extend(tuple(names));
        code.extend(tuple(&[]).repeat(3));
        code.extend(text("file").iter().chain(&text("<module>")));
        code.extend(number(1));
        code.extend([&[b's'][..], &number(0)].concat().repeat(behind));
        code
    }

    fn file(magic: u16, code: &[u8]) -> Vec<u8> {
        let head = [&magic.to_le_bytes()[..], MAGIC_END, &[0; 12]].concat();
        [&head, code].concat()
    }

    #[test]
    fn names_of_the_module_itself_are_told() {
        for (magic, import, from) in [
            (3413, 108, 109),
            (3439, 108, 109),
            (3495, 108, 109),
            (3571, 75, 74),
            (3627, 73, 72),
        ] {
            let layout = CodeLayout::of(magic).unwrap();
            let function = code(layout, &[import, 0], &[], &[text("lazily")]);
            let shared = [vec![b'Z' | IS_REFERRED_TO, 2], b"os".to_vec()].concat();
            let constants = [
                function,
                shared,
                [&[b'i'][..], &number(7)].concat(),
                [&[b'l'][..], &(-2_i32).to_le_bytes(), &[1, 2, 3, 4]].concat(),
                [&[b'{'][..], &text("key"), b"N", b"0"].concat(),
                b"y0123456789abcdef".to_vec(),
                b"N".to_vec(),
            ];
            // The module is number 0, the function 1, the text 2.
            let names = [
                text("a.b"),
                [&[b'r'][..], &number(2)].concat(),
                text("c"),
                text("used"),
            ];
            // Load a name; import one, from it a second and, behind a cache, a third; import a third.
            let instructions = [1, 3, import, 0, from, 1, 0, 0, from, 2, import, 2];
            let file = file(magic, &code(layout, &instructions, &constants, &names));
            let imports = [
                Import {
                    module: b"a.b",
                    names: [&b"os"[..], b"c"].into(),
                },
                Import {
                    module: b"c",
                    names: [].into(),
                },
            ];
            assert_eq!(bytecode_imports(&file), imports);
            for len in 0..file.len() - 1 {
                assert!(bytecode_imports(&file[..len]).is_empty());
            }
        }
    }

    #[test]
    fn names_beyond_the_first_256_are_told_too() {
        let layout = CodeLayout::of(3495).unwrap();
        let names: Vec<_> = (0..300).map(|at| text(&format!("m{at}"))).collect();
        let names = [&[b'('][..], &number(300), &names.concat()].concat();
        let instructions = [144, 1, 108, 2, 108, 2, 144, 255, 108, 255];
        // The tuple of the names in place of a short one.
        let short = code(layout, &instructions, &[], &[text("x")]);
        let at = short.windows(2).position(|part| part == [b')', 1]).unwrap();
        let long = [&short[..at], &names, &short[at + 2 + text("x").len()..]].concat();
        let file = file(3495, &long);
        let modules: Vec<_> = bytecode_imports(&file)
            .iter()
            .map(|import| import.module)
            .collect();
        assert_eq!(modules, [&b"m258"[..], b"m2"]);
    }

    #[test]
    fn every_name_counts_where_instructions_are_not_known() {
        let layout = CodeLayout::of(3600).unwrap();
        let file = file(3600, &code(layout, &[108, 0], &[], &[text("a"), text("b")]));
        let imports = bytecode_imports(&file);
        let modules: Vec<_> = imports.iter().map(|import| import.module).collect();
        assert_eq!(modules, [b"a", b"b"]);
        assert!(imports.iter().all(|import| *import.names == [b"a", b"b"]));
    }

    #[test]
    fn what_is_no_module_has_no_names() {
        let module = code(CodeLayout::of(3495).unwrap(), &[108, 0], &[], &[text("os")]);
        assert!(bytecode_imports(&file(2000, &module)).is_empty());
        assert!(bytecode_imports(&file(3495, b"N")).is_empty());
        assert!(bytecode_imports(&file(3495, &[b'('; 5000])).is_empty());
        let endless = [&[b')', 1][..]; 1000].concat();
        assert!(bytecode_imports(&file(3495, &endless)).is_empty());
        let many = [&[b'('][..], &number(u32::MAX), b"N"].concat();
        assert!(bytecode_imports(&file(3495, &many)).is_empty());
    }

    #[test]
    fn import_statements_of_source_are_found() {
        let source = b"#!/usr/bin/python3\n\"\"\"import nothing\"\"\"\nimport os, json.decoder as d # and\n\
            from . import (near,\n  nearer)\ntry:\n    from ..far.away import it\nexcept ImportError:\n    pass\n\
            def f():\n    import lazily\n\nclass C:\n    import within\nfromage = 1\n";
        let names: Vec<_> = source_names(source)
            .into_iter()
            .filter(|name| ![&b"import"[..], b"from", b"as"].contains(name))
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        let expected = [
            "os",
            "json.decoder",
            "d",
            "near",
            "nearer",
            "far.away",
            "it",
            "within",
        ];
        assert_eq!(names, expected);
    }

    /// What CPython 3.11 made of the file `source` beside it.
    const COMPILED: &[u8] = include_bytes!("../../fuzz/corpus/startup/compiled");

    #[test]
    fn a_module_that_python_compiled_tells_what_it_imports() {
        let imports = bytecode_imports(COMPILED);
        let told: Vec<(&[u8], &[&[u8]])> = imports
            .iter()
            .map(|import| (import.module, &*import.names))
            .collect();
        // What the function imports is not among them.
        let expected: [(&[u8], &[&[u8]]); 4] = [
            (b"os", &[]),
            (b"json.decoder", &[b"decoder"]),
            (b"", &[b"near", b"nearer"]),
            (b"far", &[b"thing"]),
        ];
        assert_eq!(told, expected);
    }
}
