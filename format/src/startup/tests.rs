use super::*;
use crate::inode::Attributes;
use crate::name::EntryName;
use crate::tree::{Directory, Extent, Node, NodeId, NodeKind};

/// Builds a tree in which every file lies elsewhere in layer 1.
#[derive(Default)]
struct Image {
    tree: Tree,
    files: Vec<String>,
}

impl Image {
    fn of(files: &[&str], links: &[(&str, &str)]) -> Self {
        let mut image = Self::default();
        for path in files {
            let source = ExtentSource::Plain {
                device: 1,
                plain_off: 512 * image.files.len() as u64,
            };
            let extent = Extent {
                file_off: 0,
                len: 100,
                source,
            };
            let content = FileContent {
                size: 100,
                extents: vec![extent],
            };
            image.add(path, NodeKind::Regular(content));
            image.files.push((*path).to_owned());
        }
        for (path, target) in links {
            image.add(path, NodeKind::Symlink(target.as_bytes().to_vec()));
        }
        image
    }

    fn add(&mut self, path: &str, kind: NodeKind) {
        let mut at = NodeId::ROOT;
        let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
        for part in directories.split('/').filter(|part| !part.is_empty()) {
            at = self.tree.child(at, part.as_bytes()).unwrap_or_else(|| {
                let directory = NodeKind::Directory(Directory::default());
                self.insert(at, part, directory)
            });
        }
        self.insert(at, name, kind);
    }

    fn insert(&mut self, parent: NodeId, name: &str, kind: NodeKind) -> NodeId {
        let attributes = Attributes::default();
        let id = self.tree.add(Node { kind, attributes });
        let name = EntryName::new(name.as_bytes()).expect("a name");
        let directory = self.tree.directory_mut(parent).expect("a directory");
        directory.entries.insert(name, id);
        id
    }

    fn path(&self, place: FilePlace) -> &str {
        &self.files[(place.plain_off / 512) as usize]
    }

    fn first(&self, arguments: &[&str], directory: &str) -> Vec<&str> {
        let path = ["/usr/local/bin", "/usr/bin", "/missing"];
        let files = ImageFiles::of(
            &self.tree,
            &Command::new(arguments.iter().copied(), path, directory),
        );
        files.first().iter().map(|place| self.path(*place)).collect()
    }

    /// What the file at a path leads to with this content.
    fn imports(&self, path: &str, content: &str) -> Vec<&str> {
        let files = ImageFiles::of(&self.tree, &Command::default());
        let at = self.files.iter().position(|file| file == path).expect("a file");
        let module = files.module_at(1, 512 * at as u64).expect("a module");
        let found = files.imports(&module, content.as_bytes()).into_iter();
        found.map(|module| self.path(module.place)).collect()
    }
}

#[test]
fn a_command_leads_to_its_files_through_links_and_the_path() {
    let files = [
        "usr/bin/tool-1",
        "usr/local/bin/other",
        "srv/app.sh",
        "etc/passwd",
        "usr/bin/sh",
    ];
    let links = [
        ("bin", "usr/bin"),
        ("usr/bin/tool", "../bin/./tool-1"),
        ("usr/bin/loop", "loop"),
        ("etc/ld.so.cache", "/etc/passwd"),
    ];
    let image = Image::of(&files, &links);
    assert_eq!(
        image.first(&["/bin/tool", "-x"], ""),
        ["usr/bin/tool-1", "etc/passwd"]
    );
    assert_eq!(
        image.first(&["tool", "app.sh"], "/srv"),
        ["usr/bin/tool-1", "srv/app.sh", "etc/passwd"]
    );
    let line = ["/bin/sh", "-c", "other --flag && loop ../../missing"];
    assert_eq!(
        image.first(&line, ""),
        ["usr/bin/sh", "usr/local/bin/other", "etc/passwd"]
    );
    assert_eq!(
        image.first(&["/usr/bin/loop", "/", "srv", ""], "/"),
        ["etc/passwd"]
    );
}

const PYTHON_FILES: [&str; 15] = [
    "usr/bin/python3.11",
    "app/main.py",
    "app/helper.py",
    "usr/lib/python3.11/os.py",
    "usr/lib/python3.11/__pycache__/os.cpython-311.pyc",
    "usr/lib/python3.11/__pycache__/os.cpython-311.opt-1.pyc",
    "usr/lib/python3.11/encodings/__init__.py",
    "usr/lib/python3.11/encodings/utf_8.py",
    "usr/lib/python3.11/doctest.py",
    "usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so",
    "opt/site-packages/big/__init__.py",
    "opt/site-packages/big/near.py",
    "opt/site-packages/big/part/__init__.py",
    "opt/site-packages/big/part/leaf.py",
    "opt/site-packages/flat.abi3.so",
];

#[test]
fn a_start_of_python_reads_what_every_start_does_and_its_module() {
    let image = Image::of(&PYTHON_FILES, &[("usr/bin/python3", "python3.11")]);
    let encodings = [
        "usr/lib/python3.11/encodings/__init__.py",
        "usr/lib/python3.11/encodings/utf_8.py",
    ];
    let start = image.first(&["python3", "/app/main.py"], "/");
    assert_eq!(start[0], "usr/bin/python3.11");
    assert_eq!(start[1..3], encodings);
    assert_eq!(start[3..], ["app/main.py"]);
    let start = image.first(&["python3", "-m", "big.part.leaf:object"], "/");
    assert_eq!(start[1..3], encodings);
    let package = [
        "opt/site-packages/big/__init__.py",
        "opt/site-packages/big/part/__init__.py",
    ];
    assert_eq!(start[3..5], package);
    assert_eq!(start[5..], ["opt/site-packages/big/part/leaf.py"]);
}

#[test]
fn imports_lead_to_the_files_that_python_takes() {
    let image = Image::of(&PYTHON_FILES, &[]);
    let main = "import os, helper, flat, doctest, nothing.at.all\nfrom big import near\nimport _json\n";
    let expected = [
        "usr/lib/python3.11/__pycache__/os.cpython-311.pyc",
        "app/helper.py",
        "opt/site-packages/flat.abi3.so",
        "opt/site-packages/big/__init__.py",
        "opt/site-packages/big/near.py",
        "usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so",
    ];
    assert_eq!(image.imports("app/main.py", main), expected);
    let leaf = "from ..near import x\nfrom . import leaf\n";
    let expected = [
        "opt/site-packages/big/near.py",
        "opt/site-packages/big/part/leaf.py",
    ];
    assert_eq!(
        image.imports("opt/site-packages/big/part/leaf.py", leaf),
        expected
    );
    let files = ImageFiles::of(&image.tree, &Command::default());
    let script = files.script_imports(b"#!/usr/bin/python3\nimport big.part\n");
    assert_eq!(script.len(), 2);
}

#[test]
fn names_in_scripts_lead_to_the_files_that_node_takes() {
    let files = [
        "app/server.js",
        "app/lib/util.js",
        "app/lib/index.js",
        "app/node_modules/web/package.json",
        "app/node_modules/web/lib/web.js",
        "app/node_modules/web/index.js",
        "app/node_modules/@scope/x/index.js",
        "node_modules/above/package.json",
        "app/data.json",
        "app/addon.node",
    ];
    let image = Image::of(&files, &[]);
    let server = "require('./lib/util'); require('./lib'); require('./lib/../data'); require('web'); require('@scope/x');\
        require('above'); require('./addon'); require('web/lib/web.js'); require('fs'); require('../../..')";
    let expected = [
        "app/lib/util.js",
        "app/lib/index.js",
        "app/data.json",
        "app/node_modules/web/package.json",
        "app/node_modules/@scope/x/index.js",
        "node_modules/above/package.json",
        "app/addon.node",
        "app/node_modules/web/lib/web.js",
    ];
    assert_eq!(image.imports("app/server.js", server), expected);
    let manifest = "app/node_modules/web/package.json";
    assert_eq!(
        image.imports(manifest, r#"{"main":"./lib/web"}"#),
        ["app/node_modules/web/lib/web.js"]
    );
    assert_eq!(image.imports(manifest, "{}"), ["app/node_modules/web/index.js"]);
    assert!(
        image
            .imports("node_modules/above/package.json", r#"{"main":"gone"}"#)
            .is_empty()
    );
}

#[test]
fn the_first_line_of_a_script_names_its_interpreter() {
    let interpreter = |script: &'static str| interpreter_of(script.as_bytes());
    assert_eq!(
        interpreter("#!/usr/bin/python3 -u\nx"),
        Some(&b"/usr/bin/python3"[..])
    );
    assert_eq!(
        interpreter("#! /usr/bin/env -S node --flag\n"),
        Some(&b"node"[..])
    );
    for nothing in ["", "#!", "#!\n/bin/sh", "import os"] {
        assert_eq!(interpreter(nothing), None);
    }
    assert!(is_python(b"/usr/bin/python3.11") && !is_python(b"/usr/bin/perl"));
}
