//! A shell that runs in a container.

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
    let loaded = process::run(Command::new("ldd").arg("/bin/dash"))?;
    let libraries = loaded
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut layer = Layer::of([Entry::file("bin/sh", fs::read("/bin/dash")?).mode(0o755)]);
    for library in libraries {
        let name = library.trim_start_matches('/');
        layer = layer.entry(Entry::file(name, fs::read(library)?).mode(0o755));
    }
    Ok(layer)
}
