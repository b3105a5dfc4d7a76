//! Real images made from Debian packages, built once and kept.
//!
//! `images/build-debian.sh` does the work; the result is kept in `$SLUICE_TEST_IMAGES`, by default in
//! `target/test-images`, under a name that changes with the script.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};

use crate::document::{self, Layout};
use crate::{prerequisites, process, scratch, sluice};

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

/// One of the images as `sluice convert` makes it, converted once for a build of the binary.
///
/// # Errors
/// As [`layout`], and when it cannot be converted.
pub fn converted(tag: &str) -> Result<String> {
    let directory = layout()?
        .directory
        .with_file_name(format!("converted-{}", build_of_binary()?));
    fs::create_dir_all(&directory)?;
    remove_other_builds(&directory)?;
    let lock = fs::File::create(directory.join(format!("{tag}.lock")))?;
    // Tests are processes of their own: the first converts, the others wait for it.
    lock.lock()?;
    let (complete, layout) = (directory.join(format!("{tag}.complete")), directory.join(tag));
    if !complete.exists() {
        sluice::convert(&reference(tag)?, &layout, tag, &[])?;
        fs::write(complete, b"")?;
    }
    Ok(format!("oci:{}:{tag}", layout.display()))
}

/// Takes away what other builds of the binary converted: it would pile up with every change.
fn remove_other_builds(kept: &Path) -> Result<()> {
    let parent = kept
        .parent()
        .context("the directory of converted images has no parent")?;
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let is_conversion = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"converted-"));
        if is_conversion && path != kept {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Tells one build of the binary from another: its length and the time it was written.
fn build_of_binary() -> Result<String> {
    let metadata = fs::metadata(sluice::binary()?)?;
    let written = metadata.modified()?.duration_since(UNIX_EPOCH)?;
    Ok(format!("{}-{}", metadata.len(), written.as_millis()))
}

/// `oci:LAYOUT:TAG` of one of the images.
///
/// # Errors
/// As [`layout`].
pub fn reference(tag: &str) -> Result<String> {
    Ok(format!("oci:{}:{tag}", layout()?.directory.display()))
}
