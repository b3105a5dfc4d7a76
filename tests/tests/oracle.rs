//! Promise: what Sluice calls EROFS is EROFS. The checker of a recent erofs-utils, written by the file system's authors,
//! accepts every image tree and layer tree, and extracts from it and the plain layers what the kernel shows.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use sluice_format::Limits;
use sluice_storage::{Layout as StorageLayout, ManifestName, Platform, Repository, load_lazy_image};
use sluice_tests::document::Layout;
use sluice_tests::images::{Image, edge, large};
use sluice_tests::mounted::Mounting;
use sluice_tests::scratch::Scratch;
use sluice_tests::tree_compare::{Exceptions, compare};
use sluice_tests::{debian, erofs_tools, prerequisites, process, scratch, sluice};

/// The plain layers of a converted image as files, made by `zstd -d`.
fn plain_layers(layout: &Layout, tag: &str, into: &Path) -> Result<Vec<PathBuf>> {
    let zstd = prerequisites::command("zstd", "zstd")?;
    let mut files = Vec::new();
    for (at, digest) in layout.image(tag)?.layer_digests()?.iter().enumerate() {
        let path = into.join(format!("plain-{at}"));
        let mut command = Command::new(&zstd);
        command
            .args(["-d", "-c", "-q"])
            .arg(layout.blob_path(digest)?)
            .stdout(Stdio::from(File::create(&path)?));
        let status = command.status()?;
        ensure!(status.success(), "{command:?}: {status}");
        // A device is a whole number of blocks.
        let file = File::options().write(true).open(&path)?;
        file.set_len(file.metadata()?.len().next_multiple_of(512))?;
        files.push(path);
    }
    Ok(files)
}

/// `fsck.erofs` of an image with its devices.
fn fsck(image: &Path, devices: &[PathBuf]) -> Result<Command> {
    let mut command = erofs_tools::command("fsck.erofs")?;
    for device in devices {
        command.arg(format!("--device={}", device.display()));
    }
    command.arg(image);
    Ok(command)
}

/// Files of the edge image that `fsck.erofs --extract` of version 1.9 writes otherwise than it reads them: it leaves out
/// holes at the end and attributes without a value, and loses capabilities when it sets the owner.
const EXTRACTED_OTHERWISE: [&str; 11] = [
    "sparse/pax-0.0-hole-at-both-ends",
    "sparse/pax-0.0-many",
    "sparse/pax-0.0-no-data",
    "sparse/pax-0.1-hole-at-both-ends",
    "sparse/pax-0.1-many",
    "sparse/pax-0.1-no-data",
    "sparse/pax-1.0-hole-at-both-ends",
    "sparse/pax-1.0-many",
    "sparse/pax-1.0-no-data",
    "xattrs/binary",
    "xattrs/capability",
];

/// Checks a tree, extracts it, and compares the result with what the kernel shows of it.
fn assert_tree_is_accepted(layout: &Layout, tag: &str, exceptions: &Exceptions) -> Result<()> {
    let scratch = Scratch::new("oracle")?;
    let devices = plain_layers(layout, tag, &scratch)?;
    let reference = format!("oci:{}:{tag}", layout.directory.display());
    let mounted = Mounting::new(&reference, "erofs").mount()?;
    let trees = fs::read_dir(mounted.cache.join("image-trees/sha256"))?;
    let trees = trees.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let [tree] = trees.as_slice() else {
        anyhow::bail!("not one image tree: {trees:?}");
    };
    process::run(&mut fsck(tree, &devices)?)?;
    process::run(erofs_tools::command("dump.erofs")?.arg("-s").arg(tree))?;
    let disk = scratch::Disk::new("extracted")?;
    let extracted = disk.directory.join("tree");
    let flag = format!("--extract={}", extracted.display());
    process::run(fsck(tree, &devices)?.args(["--xattrs", "--preserve"]).arg(flag))?;
    let differences = compare(&extracted, &mounted.directory, exceptions)?;
    mounted.unmount()?;
    differences.assert_none()
}

fn convert(image: &Image, scratch: &Scratch) -> Result<Layout> {
    sluice::convert(&image.reference(), &scratch.join("converted"), "c", &[])?;
    Ok(Layout::open(&scratch.join("converted")))
}

#[test]
fn privileged_the_edge_image_passes_the_checker_of_erofs() -> Result<()> {
    let scratch = Scratch::new("edge")?;
    let layout = convert(&edge::write(&scratch.join("source"))?, &scratch)?;
    assert_tree_is_accepted(&layout, "c", &Exceptions::lossy(&EXTRACTED_OTHERWISE))
}

#[test]
fn privileged_sixty_layers_pass_the_checker_of_erofs() -> Result<()> {
    let scratch = Scratch::new("layers")?;
    let layout = convert(&large::many_layers(&scratch.join("source"), 60)?, &scratch)?;
    assert_tree_is_accepted(&layout, "c", &Exceptions::none())
}

#[test]
fn privileged_a_real_image_passes_the_checker_of_erofs() -> Result<()> {
    let converted = debian::converted(debian::SMALL)?;
    let (directory, tag) = converted["oci:".len()..].rsplit_once(':').context("no tag")?;
    assert_tree_is_accepted(&Layout::open(Path::new(directory)), tag, &Exceptions::none())
}

#[test]
fn the_tree_of_every_single_layer_passes_the_checker_of_erofs() -> Result<()> {
    let scratch = Scratch::new("layer-trees")?;
    let layout = convert(&edge::write(&scratch.join("source"))?, &scratch)?;
    let devices = plain_layers(&layout, "c", &scratch)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let repository: Arc<dyn Repository> = Arc::new(StorageLayout::open(&layout.directory)?);
    let platform: Platform = "linux/amd64".parse()?;
    let (name, limits) = (ManifestName::Tag("c".to_owned()), Limits::default());
    let image = runtime.block_on(load_lazy_image(&repository, &name, &platform, &limits))?;
    for (at, (layer, device)) in image.layers.iter().zip(&devices).enumerate() {
        let path = scratch.join(format!("tree-{at}"));
        fs::write(&path, layer.index.tree_image())?;
        process::run(&mut fsck(&path, std::slice::from_ref(device))?)
            .with_context(|| format!("layer {at}"))?;
    }
    Ok(())
}
