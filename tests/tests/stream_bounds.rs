//! Promise: streaming takes memory that does not grow with the layer, and a disk that has no place for a layer is no error where the layer can be
//! read by ranges.

use std::fs;
use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::images::{Compression, Entry, Image, ImageBuilder, Layer};
use sluice_tests::mounted::{Mounted, Mounting};
use sluice_tests::registry::{Class, CountingRegistry};
use sluice_tests::scratch::{Disk, Scratch};

/// What a process may take while it streams, whatever it streams.
const MEMORY_KIB: u64 = 250 << 10;
/// Files of a layer whose plain bytes alone are more than that.
const LARGE_FILES: u64 = 17;
const LARGE_FILE_LEN: u64 = 16 << 20;

/// Files of a layer that is half as long as the small disk.
const FILES: u64 = 8;
const FILE_LEN: u64 = 3 << 20;
/// The small disk.
const DISK_LEN: u64 = 56 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

fn layer(number: u64, files: u64, file_len: u64) -> Layer {
    let file = |at| Entry::generated(format!("file-{number}-{at}"), file_len, number * 100 + at);
    Layer::of((0..files).map(file))
}

/// Peak memory of a process so far.
fn peak_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.context("no VmHWM")?.trim().trim_end_matches(" kB");
    Ok(kib.parse()?)
}

#[test]
fn privileged_heavy_memory_does_not_grow_with_the_layers_that_are_streamed() -> Result<()> {
    let scratch = Scratch::new("stream-memory")?;
    let image = ImageBuilder::new()
        .layer(layer(0, LARGE_FILES, LARGE_FILE_LEN))
        .layer(layer(1, LARGE_FILES, LARGE_FILE_LEN).compression(Compression::Zstd))
        .write(&scratch.join("source"), "m")?;
    let shortest = image.layers.iter().map(|layer| layer.plain_len).min();
    ensure!(
        shortest > Some(MEMORY_KIB << 10),
        "a layer would fit into the memory"
    );
    let registry = CountingRegistry::serve(&image.layout)?;
    let mounted = Mounting::new(&registry.reference("m"), "erofs").mount()?;
    let peak = peak_kib(mounted.pid())?;
    ensure!(peak < MEMORY_KIB, "{peak} KiB at most");
    mounted.unmount()
}

/// Compares every file of the layers with what the tar has.
fn check(mounted: &Mounted, layers: &[Layer]) -> Result<()> {
    for (layer, number) in layers.iter().zip(0..) {
        let plain = layer.plain()?;
        let mut archive = tar::Archive::new(&plain[..]);
        for (entry, at) in archive.entries()?.zip(0..FILES) {
            let mut expected = Vec::new();
            entry?.read_to_end(&mut expected)?;
            let name = format!("file-{number}-{at}");
            ensure!(fs::read(mounted.directory.join(&name))? == expected, "{name}");
        }
    }
    Ok(())
}

fn image(scratch: &Scratch, layers: &[Layer]) -> Result<Image> {
    ImageBuilder::new()
        .layers(layers.to_vec())
        .write(&scratch.join("source"), "d")
}

#[test]
fn privileged_layers_that_a_full_disk_has_no_place_for_are_lazy() -> Result<()> {
    let scratch = Scratch::new("stream-full")?;
    let layers = [0, 1, 2].map(|number| layer(number, FILES, FILE_LEN));
    let image = image(&scratch, &layers)?;
    let registry = CountingRegistry::serve(&image.layout)?;
    // The bound is what the disk has, and then far beyond it, so that the disk itself says no.
    for quota in [None, Some("10GB")] {
        let disk = Disk::of_len("stream-disk", DISK_LEN)?;
        let cache = disk.directory.join("cache");
        let mut mounting = Mounting::new(&registry.reference("d"), "erofs").cache(&cache);
        if let Some(quota) = quota {
            mounting = mounting.option("--cache-quota").option(quota);
        }
        let mounted = mounting.mount().with_context(|| format!("quota {quota:?}"))?;
        registry.traffic().clear();
        check(&mounted, &layers).with_context(|| format!("quota {quota:?}"))?;
        let moved = registry.traffic().bytes(Class::Blob);
        ensure!(
            moved > image.layers[0].stored_len / 2,
            "{quota:?}: all of it fits: {moved}"
        );
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_a_full_disk_is_a_clear_error_for_a_layer_that_cannot_be_read_by_ranges() -> Result<()> {
    let scratch = Scratch::new("stream-full-frame")?;
    let layers = [layer(0, 3 * FILES, FILE_LEN).compression(Compression::Zstd)];
    let image = image(&scratch, &layers)?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let disk = Disk::of_len("stream-disk", DISK_LEN)?;
    let cache = disk.directory.join("cache");
    let mut mounted = Mounting::new(&registry.reference("d"), "erofs")
        .cache(&cache)
        .option("--cache-quota")
        .option("10GB")
        .start()?;
    let status = mounted.wait_end(PATIENCE)?;
    let printed = mounted.printed();
    ensure!(!status.success(), "it should have failed: {printed}");
    ensure!(
        printed.contains("cannot be streamed") && printed.contains("No space left"),
        "{printed}"
    );
    mounted.assert_nothing_left()?;
    for below in ["streams", "partial"] {
        let left = fs::read_dir(cache.join(below)).map_or(0, Iterator::count);
        ensure!(left == 0, "{left} files are left in {below}");
    }
    Ok(())
}
