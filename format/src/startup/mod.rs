//! What the files of an image tell about the start of its program.
//!
//! The config of an image says what runs; its tree says where that lies, and where the libraries and modules lie that the files name in turn. So
//! what a start will read can be looked for before it begins, and all at once, where the start itself finds one name after the other.
//!
//! Everything here is a guess for fetching ahead: what is missing or ambiguous is left to the start.

mod command;
mod modules;
mod node;
mod python;

use std::collections::{HashMap, HashSet};

pub use command::Command;
pub use modules::{Module, ModuleForm};
pub use node::{manifest_names, script_names};
pub use python::{Import, bytecode_imports, source_names};

use crate::program::{LibraryPlaces, Program};
use crate::tree::{ExtentSource, FileContent, Tree};
use command::{Root, system_files};
use modules::Modules;

/// How interpreters of Python are named.
const PYTHON: &[u8] = b"python";

/// Where a file of an image lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FilePlace {
    /// Number of the layer, 1 for the lowest.
    pub device: u16,
    /// Offset of the first byte in its plain layer.
    pub plain_off: u64,
    /// Length in bytes.
    pub len: u64,
}

impl FilePlace {
    /// That of a file whose bytes lie in a row; files with holes are seldom, and none of those that matter here.
    pub fn of(content: &FileContent) -> Option<Self> {
        let [extent] = content.extents.as_slice() else {
            return None;
        };
        match extent.source {
            ExtentSource::Plain { device, plain_off } if extent.len == content.size => Some(Self {
                device,
                plain_off,
                len: extent.len,
            }),
            _ => None,
        }
    }
}

/// The files of an image that a start may come to.
#[derive(Debug)]
pub struct ImageFiles {
    libraries: LibraryPlaces,
    modules: Modules,
    programs: HashMap<Box<[u8]>, FilePlace>,
    first: Vec<FilePlace>,
}

impl ImageFiles {
    /// Those of an image tree, for a start of this command.
    pub fn of(tree: &Tree, command: &Command) -> Self {
        let (root, modules) = (Root::new(tree), Modules::of(tree));
        let mut files = Self {
            libraries: LibraryPlaces::of(tree),
            modules,
            programs: command.programs(&root),
            first: Vec::new(),
        };
        for word in command.words() {
            let named = files.named(command, &root, word);
            files.first.extend(named);
        }
        files.first.extend(system_files(&root));
        let mut known = HashSet::new();
        files.first.retain(|place| known.insert(*place));
        files
    }

    /// What a word of a command leads to.
    fn named(&self, command: &Command, root: &Root<'_>, word: &[u8]) -> Vec<FilePlace> {
        let by_path = command.named(root, word);
        if by_path.is_some() || word.contains(&b'/') {
            return by_path.into_iter().chain(self.first_modules(word)).collect();
        }
        let mut places = self.interpreter(word);
        if command.runs_python() {
            places.extend(self.modules.find(word).into_iter().map(|module| module.place));
        }
        places
    }

    /// What an interpreter of this path loads by itself.
    fn first_modules(&self, interpreter: &[u8]) -> Vec<FilePlace> {
        if !is_python(interpreter) {
            return Vec::new();
        }
        let modules = self.modules.first().into_iter();
        modules.map(|module| module.place).collect()
    }

    /// What a start of the command reads for sure, in order.
    pub fn first(&self) -> &[FilePlace] {
        &self.first
    }

    /// The one library of this name.
    pub fn library(&self, name: &[u8]) -> Option<FilePlace> {
        self.libraries.find(name)
    }

    /// The loader that a program names.
    pub fn loader(&self, program: &Program) -> Option<FilePlace> {
        self.library(last_part(program.loader()?))
    }

    /// What the start of an interpreter reads before it looks at a script, by the path of the interpreter.
    pub fn interpreter(&self, path: &[u8]) -> Vec<FilePlace> {
        let program = self.programs.get(last_part(path)).copied();
        program.into_iter().chain(self.first_modules(path)).collect()
    }

    /// The module whose source or compiled form begins there.
    pub fn module_at(&self, device: u16, plain_off: u64) -> Option<Module> {
        self.modules.at(device, plain_off)
    }

    /// The modules that a module leads to, by the content of its file.
    pub fn imports(&self, module: &Module, file: &[u8]) -> Vec<Module> {
        let modules = &self.modules;
        match module.form {
            ModuleForm::Source => modules.imported(module, &Import::any_of(source_names(file))),
            ModuleForm::Bytecode => modules.imported(module, &bytecode_imports(file)),
            ModuleForm::Script => modules.required(module, &script_names(file)),
            ModuleForm::Manifest => modules.exported(module, &manifest_names(file)),
            ModuleForm::Extension | ModuleForm::Data => Vec::new(),
        }
    }

    /// The modules that a script of Python imports which is none itself.
    pub fn script_imports(&self, file: &[u8]) -> Vec<Module> {
        let names = source_names(file);
        names
            .into_iter()
            .flat_map(|name| self.modules.find(name))
            .collect()
    }
}

/// The interpreter that the first line of a script names.
pub fn interpreter_of(script: &[u8]) -> Option<&[u8]> {
    let line = script.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let program = words.next()?;
    match last_part(program) {
        b"env" => words.find(|word| !word.starts_with(b"-")),
        _ => Some(program),
    }
}

/// Whether an interpreter is one of Python.
pub fn is_python(interpreter: &[u8]) -> bool {
    last_part(interpreter).starts_with(PYTHON)
}

/// What follows the last slash of a path.
pub(crate) fn last_part(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
