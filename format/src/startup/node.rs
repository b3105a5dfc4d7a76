//! Which modules a file of JavaScript names, and where Node.js looks for them.
//!
//! A name that begins with a dot is a path from the file's own directory; any other is a package, in the `node_modules` of a directory above. What a package
//! stands for is told by its `package.json`, which Node.js reads as well. Calls are looked for as text, so that those in functions count too.
//!
//! Source: the sections on CommonJS and ECMAScript modules, and on packages, of the Node.js documentation.

use serde_json::Value;

use super::FilePlace;
use super::modules::{Module, ModuleForm, Modules};

/// Names of one file that are looked at.
const MOST_NAMES: usize = 1024;
/// Longest name, in bytes.
const LONGEST_NAME: usize = 512;
/// Conditions within conditions in the exports of a package.
const MOST_DEPTH: usize = 8;

/// What stands before the name of a module.
const BEFORE_NAMES: [&[u8]; 4] = [b"require(", b"import(", b" from", b"import"];
/// Directory of installed packages.
const PACKAGES: &[u8] = b"node_modules";
/// What tells about a package.
pub(super) const MANIFEST: &[u8] = b"package.json";
/// What a directory stands for whose manifest does not say.
const INDEX: &str = "index";
/// What may be left out at the end of a name.
const EXTENSIONS: [&str; 4] = ["", ".js", ".json", ".node"];
/// Conditions under which a package exports something to a start on a server.
const CONDITIONS: [&str; 5] = ["node", "require", "default", "import", "module"];

/// The form of a file by its name; `None` for what Node.js does not load.
pub(super) fn form_of(name: &[u8]) -> Option<ModuleForm> {
    match name.rsplit(|byte| *byte == b'.').next()? {
        _ if name == MANIFEST => Some(ModuleForm::Manifest),
        b"js" | b"cjs" | b"mjs" => Some(ModuleForm::Script),
        b"json" => Some(ModuleForm::Data),
        b"node" => Some(ModuleForm::Extension),
        _ => None,
    }
}

/// The names of modules in a file of JavaScript.
pub fn script_names(text: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        if !matches!(byte, b'r' | b'i' | b' ') {
            continue;
        }
        let rest = &text[at..];
        let after = BEFORE_NAMES.iter().find_map(|before| rest.strip_prefix(*before));
        names.extend(after.and_then(quoted));
        if names.len() == MOST_NAMES {
            break;
        }
    }
    names
}

/// The name that a text begins with, in quotes.
fn quoted(text: &[u8]) -> Option<&[u8]> {
    let text = text.trim_ascii_start();
    let quote = text.first().filter(|byte| matches!(byte, b'"' | b'\''))?;
    let text = &text[1..text.len().min(LONGEST_NAME)];
    let len = text.iter().position(|byte| byte == quote)?;
    Some(&text[..len]).filter(|name| !name.is_empty() && !name.contains(&b'\n'))
}

/// The file that a manifest names as what its package is, and as what it would be without exports.
pub fn manifest_names(manifest: &[u8]) -> Vec<String> {
    let Ok(Value::Object(manifest)) = serde_json::from_slice(manifest) else {
        return Vec::new();
    };
    let exports = manifest.get("exports");
    let whole = exports.map(|exports| exports.get(".").unwrap_or(exports));
    let exported = whole.and_then(|whole| exported(whole, 0));
    let main = manifest.get("main").and_then(Value::as_str);
    exported.into_iter().chain(main).map(str::to_owned).collect()
}

fn exported(value: &Value, depth: usize) -> Option<&str> {
    match value {
        Value::String(path) => Some(path),
        Value::Object(conditions) if depth < MOST_DEPTH => {
            let mut met = CONDITIONS
                .iter()
                .filter_map(|condition| conditions.get(*condition));
            met.find_map(|value| exported(value, depth + 1))
        }
        _ => None,
    }
}

impl Modules {
    /// The modules that these names stand for in a script.
    pub(super) fn required(&self, script: &Module, names: &[&[u8]]) -> Vec<Module> {
        let found = names
            .iter()
            .filter_map(|name| self.required_by(script.folder, name));
        let mut found: Vec<Module> = found.collect();
        found.dedup();
        found
    }

    /// What a package is.
    pub(super) fn exported(&self, manifest: &Module, names: &[String]) -> Vec<Module> {
        let named = names
            .iter()
            .find_map(|name| self.path_from(manifest.folder, name.as_bytes()));
        let index = || self.file_in(manifest.folder, INDEX.as_bytes());
        named.or_else(index).into_iter().collect()
    }

    fn required_by(&self, folder: usize, name: &[u8]) -> Option<Module> {
        if name.starts_with(b".") {
            return self.path_from(folder, name);
        }
        let mut above = Some(folder);
        while let Some(at) = above {
            let packages = self.folder(at).folders.get(PACKAGES);
            if let Some(found) = packages.and_then(|packages| self.path_from(*packages, name)) {
                return Some(found);
            }
            above = self.folder(at).parent;
        }
        None
    }

    /// What Node.js takes for a path from a directory.
    fn path_from(&self, folder: usize, path: &[u8]) -> Option<Module> {
        let mut parts: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        let last = parts.pop_if(|part| !matches!(*part, b"." | b".."));
        let mut at = folder;
        for part in parts {
            at = match part {
                b"." => at,
                b".." => self.folder(at).parent?,
                _ => *self.folder(at).folders.get(part)?,
            };
        }
        let directory = match last {
            None => at,
            Some(name) => match self.file_in(at, name) {
                Some(file) => return Some(file),
                None => *self.folder(at).folders.get(name)?,
            },
        };
        let manifest = self.script(directory, MANIFEST);
        manifest.or_else(|| self.file_in(directory, INDEX.as_bytes()))
    }

    fn file_in(&self, folder: usize, name: &[u8]) -> Option<Module> {
        EXTENSIONS
            .iter()
            .find_map(|extension| self.script(folder, &[name, extension.as_bytes()].concat()))
    }

    fn script(&self, folder: usize, name: &[u8]) -> Option<Module> {
        let place: FilePlace = *self.folder(folder).scripts.get(name)?;
        let form = form_of(name)?;
        Some(Module { place, form, folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_scripts_are_found() {
        let script = b"'use strict'\nconst a = require('express'), b=require( \"./lib/x\" );\nimport c from '../c.mjs';\n\
            import 'side-effect';\nexport * from \"all\";\nlazy(() => import('lazy'));\nrequire(variable); require('open\n);";
        let names: Vec<_> = script_names(script)
            .into_iter()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        let expected = ["express", "./lib/x", "../c.mjs", "side-effect", "all", "lazy"];
        assert_eq!(names, expected);
    }

    #[test]
    fn manifests_tell_what_a_package_is() {
        let names = |manifest: &str| manifest_names(manifest.as_bytes());
        assert_eq!(names(r#"{"main":"lib/a"}"#), ["lib/a"]);
        assert_eq!(names(r#"{"exports":"./b.js","main":"a"}"#), ["./b.js", "a"]);
        let nested =
            r#"{"exports":{".":{"browser":"./w.js","node":{"import":"./m.mjs","require":"./n.js"}}}}"#;
        assert_eq!(names(nested), ["./n.js"]);
        assert_eq!(names(r#"{"exports":{"default":"./d.js"}}"#), ["./d.js"]);
        for nothing in ["{}", "[]", "{", r#"{"main":1}"#] {
            assert!(names(nothing).is_empty());
        }
        let deep = [r#"{"exports":"#, &r#"{"node":"#.repeat(50), "1", &"}".repeat(51)].concat();
        assert!(names(&deep).is_empty());
    }
}
