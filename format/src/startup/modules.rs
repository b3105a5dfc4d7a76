//! Where the modules of an image lie that interpreters load.
//!
//! Python looks for a module in the directories of its path, and there for a package, an extension, then a file of source whose compiled form lies
//! in `__pycache__`. Which directories are on its path is told by their names: those of the standard library, of installed packages, and that of the script.
//! Source: the import system of the Python language reference. What Node.js looks for stands in [`super::node`].

use std::collections::{HashMap, HashSet};

use super::{FilePlace, Import, node};
use crate::tree::{NodeId, NodeKind, Tree};

/// Directories of an image that are looked at.
const MOST_FOLDERS: usize = 50_000;
/// Modules that are known.
const MOST_MODULES: usize = 100_000;
/// Directories on the path of an interpreter; one usually has four.
const MOST_ROOTS: usize = 32;

/// Packages from which one module may import; most do from fewer than ten.
const MOST_PACKAGES: usize = 64;

/// Directory of compiled modules, beside their source.
const COMPILED: &[u8] = b"__pycache__";
/// Module that a package itself is.
const PACKAGE: &[u8] = b"__init__";
/// Part of the name of a module that was compiled otherwise than usual.
const OPTIMISED: &[u8] = b".opt-";
/// Directories of installed packages.
const INSTALLED: [&[u8]; 3] = [b"site-packages", b"dist-packages", b"lib-dynload"];
/// How the directory of a standard library begins.
const STANDARD: &[u8] = b"python3";
/// What every start of an interpreter imports before the script, from files.
const FIRST: [&[u8]; 2] = [b"encodings", b"encodings.utf_8"];

/// What modules import only when somebody runs them by hand, to test them: it drags half the standard library along.
const FOR_DEVELOPERS: [&[u8]; 4] = [b"doctest", b"pdb", b"pydoc", b"unittest"];

/// In which form a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleForm {
    /// Text of Python.
    Source,
    /// A marshalled code object of Python.
    Bytecode,
    /// A shared library.
    Extension,
    /// Text of JavaScript.
    Script,
    /// What tells about a package of Node.js.
    Manifest,
    /// Data for JavaScript.
    Data,
}

impl ModuleForm {
    /// Whether files of this form name modules.
    fn names_others(self) -> bool {
        !matches!(self, Self::Extension | Self::Data)
    }
}

/// The form of a file by its name; `None` for what is no module.
fn form_of(name: &[u8]) -> Option<ModuleForm> {
    match name.rsplit(|byte| *byte == b'.').next()? {
        _ if name.windows(OPTIMISED.len()).any(|part| part == OPTIMISED) => None,
        b"py" => Some(ModuleForm::Source),
        b"pyc" => Some(ModuleForm::Bytecode),
        b"so" => Some(ModuleForm::Extension),
        _ => node::form_of(name),
    }
}

/// A module that was looked for and found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Module {
    /// Where its file lies.
    pub place: FilePlace,
    /// What its file is.
    pub form: ModuleForm,
    pub(super) folder: usize,
}

/// The files of one module by their form.
#[derive(Clone, Copy, Debug, Default)]
struct Forms {
    extension: Option<FilePlace>,
    bytecode: Option<FilePlace>,
    source: Option<FilePlace>,
}

/// A directory with what modules it has.
#[derive(Debug, Default)]
pub(super) struct Folder {
    pub(super) parent: Option<usize>,
    pub(super) folders: HashMap<Box<[u8]>, usize>,
    /// Of Python, by the name that is imported.
    modules: HashMap<Box<[u8]>, Forms>,
    /// Of JavaScript, by the name of the file.
    pub(super) scripts: HashMap<Box<[u8]>, FilePlace>,
}

impl Folder {
    fn add(&mut self, name: &[u8], place: FilePlace, form: ModuleForm) {
        if node::form_of(name).is_some() {
            self.scripts.insert(name.into(), place);
            return;
        }
        let stem = name.split(|byte| *byte == b'.').next().unwrap_or_default();
        let forms = self.modules.entry(stem.into()).or_default();
        match form {
            ModuleForm::Extension => forms.extension = Some(place),
            ModuleForm::Bytecode => forms.bytecode = Some(place),
            _ => forms.source = Some(place),
        }
    }
}

/// The modules of an image.
#[derive(Debug, Default)]
pub(super) struct Modules {
    folders: Vec<Folder>,
    roots: Vec<usize>,
    by_first_byte: HashMap<(u16, u64), Module>,
}

impl Modules {
    /// Those of an image tree.
    pub(super) fn of(tree: &Tree) -> Self {
        let mut modules = Self {
            folders: vec![Folder::default()],
            ..Self::default()
        };
        let mut left = vec![(NodeId::ROOT, 0)];
        let mut found = 0;
        while let Some((node, folder)) = left.pop() {
            let entries = tree
                .directory(node)
                .into_iter()
                .flat_map(|directory| &directory.entries);
            for (name, id) in entries {
                let name = name.as_bytes();
                match &tree.node(*id).kind {
                    NodeKind::Directory(_) if name == COMPILED => left.push((*id, folder)),
                    NodeKind::Directory(_) if modules.folders.len() < MOST_FOLDERS => {
                        left.push((*id, modules.add_folder(folder, name)));
                    }
                    NodeKind::Regular(content) if found < MOST_MODULES => {
                        let place = FilePlace::of(content);
                        found +=
                            usize::from(place.is_some_and(|place| modules.add_file(folder, name, place)));
                    }
                    _ => {}
                }
            }
        }
        if found == 0 {
            return Self::default();
        }
        modules
    }

    fn add_folder(&mut self, parent: usize, name: &[u8]) -> usize {
        let at = self.folders.len();
        self.folders.push(Folder {
            parent: Some(parent),
            ..Folder::default()
        });
        self.folders[parent].folders.insert(name.into(), at);
        let is_root = INSTALLED.contains(&name) || name.starts_with(STANDARD);
        if is_root && self.roots.len() < MOST_ROOTS {
            self.roots.push(at);
        }
        at
    }

    pub(super) fn folder(&self, at: usize) -> &Folder {
        &self.folders[at]
    }

    /// Whether the file is a module.
    fn add_file(&mut self, folder: usize, name: &[u8], place: FilePlace) -> bool {
        let Some(form) = form_of(name) else {
            return false;
        };
        self.folders[folder].add(name, place, form);
        if form.names_others() {
            let first_byte = (place.device, place.plain_off);
            self.by_first_byte
                .insert(first_byte, Module { place, form, folder });
        }
        true
    }

    /// The module whose source or compiled form begins there.
    pub(super) fn at(&self, device: u16, plain_off: u64) -> Option<Module> {
        self.by_first_byte.get(&(device, plain_off)).copied()
    }

    /// What an interpreter imports by itself.
    pub(super) fn first(&self) -> Vec<Module> {
        FIRST.into_iter().flat_map(|name| self.find(name)).collect()
    }

    /// A module by its name, from nowhere in particular.
    pub(super) fn find(&self, name: &[u8]) -> Vec<Module> {
        let mut found = Vec::new();
        self.find_on_path(name, &self.roots, &mut found);
        found
    }

    /// The modules that `importer` imports, packages on the way included.
    pub(super) fn imported(&self, importer: &Module, imports: &[Import<'_>]) -> Vec<Module> {
        let mut found = Vec::new();
        let mut packages_left = MOST_PACKAGES;
        let near = [Some(importer.folder), self.folders[importer.folder].parent];
        let mut path = vec![self.top_of(importer.folder)];
        path.extend(&self.roots);
        for Import { module, names } in imports {
            if FOR_DEVELOPERS.contains(module) {
                continue;
            }
            let mut packages: Vec<usize> = Vec::new();
            if module.is_empty() {
                packages.extend(near.into_iter().flatten());
            } else {
                packages.extend(self.find_on_path(module, &path, &mut found));
                for folder in near.into_iter().flatten() {
                    packages.extend(self.find_in(folder, module, &mut found));
                }
            }
            packages.sort_unstable();
            packages.dedup();
            // `from package import name`.
            packages.truncate(packages_left);
            packages_left -= packages.len();
            for (package, name) in packages
                .iter()
                .flat_map(|package| names.iter().map(move |name| (*package, name)))
            {
                self.find_in(package, name, &mut found);
            }
        }
        let mut known = HashSet::new();
        found.retain(|module| known.insert(*module));
        found
    }

    /// The directory that the outermost package around a folder lies in.
    fn top_of(&self, folder: usize) -> usize {
        let mut at = folder;
        while let Some(parent) = self.folders[at].parent.filter(|_| self.is_package(at)) {
            at = parent;
        }
        at
    }

    fn is_package(&self, folder: usize) -> bool {
        self.folders[folder].modules.contains_key(PACKAGE)
    }

    /// Looks for a name in the first directory that has how it begins; gives its directory when it is a package.
    fn find_on_path(&self, name: &[u8], path: &[usize], found: &mut Vec<Module>) -> Option<usize> {
        let known = found.len();
        path.iter().find_map(|folder| {
            let package = self.find_in(*folder, name, found);
            (found.len() > known).then_some(package)
        })?
    }

    fn find_in(&self, folder: usize, name: &[u8], found: &mut Vec<Module>) -> Option<usize> {
        let mut at = folder;
        for part in name.split(|byte| *byte == b'.') {
            let folder = &self.folders[at];
            let package = folder.folders.get(part).copied();
            match package {
                Some(package) if self.is_package(package) => {
                    found.extend(self.best(package, PACKAGE));
                    at = package;
                }
                _ => {
                    found.extend(self.best(at, part));
                    at = package.filter(|_| !folder.modules.contains_key(part))?;
                }
            }
        }
        Some(at)
    }

    /// The file that an interpreter would take.
    fn best(&self, folder: usize, name: &[u8]) -> Option<Module> {
        let forms = self.folders[folder].modules.get(name)?;
        let all = [
            (forms.extension, ModuleForm::Extension),
            (forms.bytecode, ModuleForm::Bytecode),
            (forms.source, ModuleForm::Source),
        ];
        all.into_iter().find_map(|(place, form)| {
            Some(Module {
                place: place?,
                form,
                folder,
            })
        })
    }
}
