//! Programs of this host that run in a container.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::{Entry, Layer};
use crate::process;

/// A layer with `/bin/sh` and the libraries that it loads.
///
/// # Errors
/// When this host has no dash.
pub fn shell() -> Result<Layer> {
    program("/bin/dash", "bin/sh")
}

/// A layer with a program of this host, at the path `name`, and the libraries that it loads.
///
/// # Errors
/// When there is no such program.
pub fn program(source: &str, name: &str) -> Result<Layer> {
    let loaded = process::run(Command::new("ldd").arg(source))?;
    let libraries = loaded
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut layer = Layer::of([Entry::file(name, fs::read(source)?).mode(0o755)]);
    for library in libraries {
        let name = library.trim_start_matches('/');
        layer = layer.entry(Entry::file(name, fs::read(library)?).mode(0o755));
    }
    Ok(layer)
}
