//! Real images made from Debian packages, built once and kept.
//!
//! `images/build-debian.sh` does the work; the result is kept in `$SLUICE_TEST_IMAGES`, by default in
//! `target/test-images`, under a name that changes with the script.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::document::{self, Layout};
use crate::{prerequisites, process, scratch};

/// Base, python and a small application: three layers, about 200 MB plain.
pub const SMALL: &str = "small";

/// Base, python, node, java, compilers and the application: six layers, more than 1 GB plain.
pub const LARGE: &str = "large";

/// Path of the file that a container of either image prints `READY` from.
pub const APPLICATION: &str = "app/main.py";

/// The layout with both images, built now when it was not yet.
///
/// # Errors
/// When it cannot be built; the message holds what the script printed.
pub fn layout() -> Result<Layout> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/build-debian.sh");
    let recipe = fs::read(&script).with_context(|| format!("cannot read {}", script.display()))?;
    let recipe = document::digest(&recipe).replace("sha256:", "");
    let directory = images_directory()?.join(format!("debian-{}", &recipe[..12]));
    if !directory.join("complete").exists() {
        prerequisites::root()?;
        prerequisites::command("debootstrap", "debootstrap")?;
        process::run(Command::new(script).arg(&directory).arg(upper_to_image()?))?;
    }
    Ok(Layout::open(&directory.join("layout")))
}

/// Where images that take long to build are kept.
///
/// # Errors
/// When the target directory is not known.
pub fn images_directory() -> Result<PathBuf> {
    match env::var_os("SLUICE_TEST_IMAGES") {
        Some(directory) => Ok(PathBuf::from(directory)),
        None => Ok(scratch::target_directory()?.join("test-images")),
    }
}

fn upper_to_image() -> Result<PathBuf> {
    let path = scratch::profile_directory()?.join("upper-to-image");
    anyhow::ensure!(
        path.is_file(),
        "{} is missing: cargo build -p sluice-tests --bins",
        path.display()
    );
    Ok(path)
}

/// `oci:LAYOUT:TAG` of one of the images.
///
/// # Errors
/// As [`layout`].
pub fn reference(tag: &str) -> Result<String> {
    Ok(format!("oci:{}:{tag}", layout()?.directory.display()))
}
