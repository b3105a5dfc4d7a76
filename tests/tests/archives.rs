//! Promise: an image in an archive is mounted where it lies: lazily when it has layer indexes, else after its layers were streamed.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use sluice_tests::document::text;
use sluice_tests::images::{Compression, Entry, Image, ImageBuilder, Layer};
use sluice_tests::mounted::Mounting;
use sluice_tests::scratch::Scratch;
use sluice_tests::{prerequisites, process, sluice};

const FILE_LEN: u64 = 3 << 20;

fn image(scratch: &Scratch) -> Result<Image> {
    let large = |seed| Entry::generated(format!("large-{seed}"), FILE_LEN, seed);
    ImageBuilder::new()
        .layer(Layer::of([Entry::file("small", b"one\n"), large(1)]))
        .layer(Layer::of([large(2)]).compression(Compression::GzipMembers(400_000)))
        .layer(Layer::of([Entry::file("small", b"two\n")]).compression(Compression::None))
        .write(&scratch.join("source"), "i")
}

/// Copies an image with a program that knows nothing of Sluice.
fn copy(from: &str, to: &str) -> Result<()> {
    let mut command = Command::new(prerequisites::command("skopeo", "skopeo")?);
    process::run(command.args(["copy", "--insecure-policy", from, to])).map(drop)
}

fn assert_mounts(reference: &str, image: &Image) -> Result<()> {
    let expected = Mounting::new(&image.reference(), "fuse").mount()?;
    let mounted = Mounting::new(reference, "fuse").mount()?;
    for name in ["small", "large-1", "large-2"] {
        let (found, wanted) = (mounted.directory.join(name), expected.directory.join(name));
        ensure!(fs::read(found)? == fs::read(wanted)?, "{reference}: {name}");
    }
    mounted.unmount()?;
    expected.unmount()
}

#[test]
fn privileged_images_in_archives_are_mounted() -> Result<()> {
    let scratch = Scratch::new("archives")?;
    let image = image(&scratch)?;
    let at = |name: &str| scratch.join(name).display().to_string();
    let oci = format!("oci-archive:{}", at("oci.tar"));
    copy(&image.reference(), &oci)?;
    assert_mounts(&oci, &image)?;
    let docker = format!("docker-archive:{}", at("docker.tar"));
    copy(&image.reference(), &format!("{docker}:host/name:tag"))?;
    assert_mounts(&docker, &image)?;
    // Compressed as a whole it is copied once, and then as good.
    process::run(Command::new("gzip").arg(at("docker.tar")))?;
    assert_mounts(&format!("{docker}.gz"), &image)?;
    let converted = format!("oci-archive:{}:c", at("converted.tar"));
    sluice::run(["convert", &image.reference(), &converted])?;
    assert_mounts(&converted, &image)
}

#[test]
fn an_archive_takes_no_indexes_and_says_what_to_do() -> Result<()> {
    let scratch = Scratch::new("archives-index")?;
    let image = image(&scratch)?;
    let archive = format!("oci-archive:{}:a", scratch.join("a.tar").display());
    sluice::run(["export", &image.reference(), &archive])?;
    let said = sluice::refused(["index", &archive])?;
    ensure!(said.contains("sluice export"), "{said}");
    // Every source of a conversion gives the same image.
    let converted = |source: &str, name: &str| -> Result<String> {
        let target = format!("oci:{}:c", scratch.join(name).display());
        let report = sluice::json(["convert", source, &target])?;
        Ok(text(&report, "/digest")?.to_owned())
    };
    ensure!(converted(&archive, "one")? == converted(&image.reference(), "two")?);
    Ok(())
}
