//! What an image runs, and which of its files that names.

use std::collections::HashMap;

use super::{FilePlace, PYTHON, last_part};
use crate::tree::{NodeId, NodeKind, Tree};

/// Words of a command line that are looked at.
const MOST_WORDS: usize = 64;
/// Directories that programs are looked for in.
const MOST_DIRECTORIES: usize = 32;
/// Programs that are known by name.
const MOST_PROGRAMS: usize = 20_000;
/// Symbolic links on one path; the kernel follows forty.
const MOST_LINKS: usize = 40;

/// What the C library reads in nearly every start, beside the program: the places of libraries, the time zone, character sets, and users.
const SYSTEM_FILES: [&str; 8] = [
    "/etc/ld.so.cache",
    "/usr/lib/locale/C.utf8/LC_CTYPE",
    "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    "/usr/lib/aarch64-linux-gnu/gconv/gconv-modules.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
];

/// What an image runs, as its config says.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Words of the command line.
    words: Vec<Box<[u8]>>,
    /// Where programs are looked for.
    path: Vec<String>,
    /// Where relative paths begin.
    directory: String,
}

impl Command {
    /// The command line `arguments` with its working directory, and the directories that programs are looked for in. A word may be a line for a shell.
    pub fn new<'a>(
        arguments: impl IntoIterator<Item = &'a str>,
        path: impl IntoIterator<Item = &'a str>,
        directory: &str,
    ) -> Self {
        let words = arguments.into_iter().flat_map(str::split_whitespace);
        Self {
            words: words
                .map(|word| word.as_bytes().into())
                .take(MOST_WORDS)
                .collect(),
            path: path
                .into_iter()
                .map(str::to_owned)
                .take(MOST_DIRECTORIES)
                .collect(),
            directory: directory.to_owned(),
        }
    }

    /// The words of the command line; of `module:object`, the module.
    pub(super) fn words(&self) -> impl Iterator<Item = &[u8]> {
        let module = |word: &'_ [u8]| word.iter().position(|byte| *byte == b':').unwrap_or(word.len());
        self.words.iter().map(move |word| &word[..module(word)])
    }

    pub(super) fn runs_python(&self) -> bool {
        let mut words = self.words.iter();
        words.any(|word| last_part(word).starts_with(PYTHON))
    }

    /// The programs that are found by name.
    pub(super) fn programs(&self, root: &Root<'_>) -> HashMap<Box<[u8]>, FilePlace> {
        let mut programs = HashMap::new();
        for directory in &self.path {
            let Some(at) = root.find(directory.as_bytes()) else {
                continue;
            };
            let names = root
                .tree
                .directory(at)
                .into_iter()
                .flat_map(|at| at.entries.keys());
            let left = MOST_PROGRAMS.saturating_sub(programs.len());
            for name in names.map(|name| name.as_bytes()).take(left) {
                let path = [directory.as_bytes(), b"/", name].concat();
                if !programs.contains_key(name)
                    && let Some(place) = root.file(&path)
                {
                    programs.insert(name.into(), place);
                }
            }
        }
        programs
    }

    /// The file that a word names by its path.
    pub(super) fn named(&self, root: &Root<'_>, word: &[u8]) -> Option<FilePlace> {
        match word.first()? {
            b'-' => None,
            b'/' => root.file(word),
            _ => root.file(&[self.directory.as_bytes(), b"/", word].concat()),
        }
    }
}

/// What every start reads, whatever it runs.
pub(super) fn system_files(root: &Root<'_>) -> Vec<FilePlace> {
    let files = SYSTEM_FILES.iter().filter_map(|path| root.file(path.as_bytes()));
    files.collect()
}

/// Looks for paths in a tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root<'a> {
    tree: &'a Tree,
}

impl<'a> Root<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self { tree }
    }

    /// The file that a path leads to.
    fn file(&self, path: &[u8]) -> Option<FilePlace> {
        match &self.tree.node(self.find(path)?).kind {
            NodeKind::Regular(content) => FilePlace::of(content),
            _ => None,
        }
    }

    /// The node that a path leads to from the root, symbolic links followed.
    fn find(&self, path: &[u8]) -> Option<NodeId> {
        let mut links = 0;
        // The directories down to where it is, and the names that are left, the next one last.
        let mut at = vec![NodeId::ROOT];
        let mut left: Vec<&[u8]> = path.rsplit(|byte| *byte == b'/').collect();
        while let Some(name) = left.pop() {
            match name {
                b"" | b"." => {}
                b".." => at.truncate((at.len() - 1).max(1)),
                _ => {
                    let child = self.tree.child(*at.last()?, name)?;
                    match &self.tree.node(child).kind {
                        NodeKind::Symlink(target) => {
                            links += 1;
                            if links > MOST_LINKS {
                                return None;
                            }
                            if target.starts_with(b"/") {
                                at.truncate(1);
                            }
                            left.extend(target.rsplit(|byte| *byte == b'/'));
                        }
                        _ => at.push(child),
                    }
                }
            }
        }
        at.last().copied()
    }
}
