//! Promise: mounting moves almost nothing, in a number of round trips that does not grow with the image, and a read
//! moves the chunks it touches and no more.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer, large};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::registry::{Class, CountingRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::{debian, sluice};

/// Long enough that requests sent together overlap even on a busy machine.
const LATENCY: Duration = Duration::from_millis(150);

fn slow_registry(converted: &str) -> Result<(CountingRegistry, String)> {
    let rest = converted.strip_prefix("oci:").context("not a layout")?;
    let (directory, tag) = rest.rsplit_once(':').context("no tag")?;
    let faults = FaultSet::none().with(Fault::Latency(LATENCY));
    let registry = CountingRegistry::serve_with(&Layout::open(Path::new(directory)), faults)?;
    let reference = registry.reference(tag);
    Ok((registry, reference))
}

#[test]
fn privileged_mounting_a_gigabyte_image_moves_less_than_one_percent() -> Result<()> {
    let converted = debian::converted(debian::LARGE)?;
    let (registry, reference) = slow_registry(&converted)?;
    let (directory, tag) = converted["oci:".len()..].rsplit_once(':').context("no tag")?;
    let whole = Layout::open(Path::new(directory)).image(tag)?.stored_len()?;
    for front in FRONTS {
        registry.traffic().clear();
        let mounted = Mounting::new(&reference, front).mount()?;
        let moved = registry.traffic().total_bytes();
        ensure!(
            moved * 100 < whole,
            "{front}: {moved} of {whole} bytes\n{}",
            registry.traffic().describe()
        );
        // The image is whole although it is not here: a file of every kind of layer.
        ensure!(mounted.directory.join(debian::APPLICATION).is_file(), "{front}");
        ensure!(
            fs::read(mounted.directory.join("etc/debian_version"))?.starts_with(b"12"),
            "{front}"
        );
        mounted.unmount()?;
    }
    Ok(())
}

fn round_trips_to_mount(layers: u64, front: &str) -> Result<(usize, String)> {
    let scratch = Scratch::new("round-trips")?;
    let image = large::many_layers(&scratch.join("source"), layers)?;
    let converted = sluice::convert(&image.reference(), &scratch.join("converted"), "c", &[])?;
    let (registry, reference) = slow_registry(&converted)?;
    let mounted = Mounting::new(&reference, front).mount()?;
    let found = (registry.traffic().round_trips(), registry.traffic().describe());
    mounted.unmount()?;
    Ok(found)
}

#[test]
fn privileged_sixty_layers_mount_in_as_many_round_trips_as_three() -> Result<()> {
    for front in FRONTS {
        let (few, few_requests) = round_trips_to_mount(3, front)?;
        let (many, many_requests) = round_trips_to_mount(60, front)?;
        ensure!(
            few == many,
            "{front}: {few} and {many} round trips\n{few_requests}\n---\n{many_requests}"
        );
        // Manifest, then the config beside all layer indexes; one more for a server that wants a ping or a token first.
        ensure!(few <= 3, "{front}: {few} round trips\n{few_requests}");
    }
    Ok(())
}

const FILES: u64 = 60;
const FILE_LEN: u64 = 2 << 20;

/// An image of files that are compressed ten times, each many chunks long.
fn image_of_files(scratch: &Scratch) -> Result<String> {
    let files = (0..FILES).map(|at| Entry::generated(format!("file-{at:02}"), FILE_LEN, at));
    let image = ImageBuilder::new()
        .layer(Layer::of(files))
        .write(&scratch.join("source"), "files")?;
    sluice::convert(
        &image.reference(),
        &scratch.join("converted"),
        "c",
        &["--chunk-size", "128K"],
    )
}

#[test]
fn privileged_reading_one_file_moves_only_its_chunks() -> Result<()> {
    let scratch = Scratch::new("one-file")?;
    let (registry, reference) = slow_registry(&image_of_files(&scratch)?)?;
    for front in FRONTS {
        let mounted = Mounting::new(&reference, front).mount()?;
        registry.traffic().clear();
        assert_eq!(fs::metadata(mounted.directory.join("file-30"))?.len(), FILE_LEN);
        assert_eq!(fs::read_dir(&mounted.directory)?.count() as u64, FILES);
        assert_eq!(
            registry.traffic().total_bytes(),
            0,
            "{front}: looking moves nothing"
        );

        let mut bytes = Vec::new();
        File::open(mounted.directory.join("file-30"))?.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, FILE_LEN);
        let moved = registry.traffic().bytes(Class::Blob);
        // A sixteenth of the plain length is what eight random bytes in 128 leave of it.
        let stored = FILE_LEN / 16;
        ensure!(
            (stored / 2..stored * 3).contains(&moved),
            "{front}: {moved} bytes for a file of about {stored} stored bytes\n{}",
            registry.traffic().describe()
        );
        registry.traffic().clear();
        assert_eq!(fs::read(mounted.directory.join("file-30"))?, bytes);
        assert_eq!(
            registry.traffic().total_bytes(),
            0,
            "{front}: the second read moves nothing"
        );
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_a_small_read_in_a_large_file_moves_a_few_chunks() -> Result<()> {
    let scratch = Scratch::new("small-read")?;
    let (registry, reference) = slow_registry(&image_of_files(&scratch)?)?;
    for front in FRONTS {
        let mounted = Mounting::new(&reference, front).mount()?;
        registry.traffic().clear();
        let mut bytes = [0; 100];
        File::open(mounted.directory.join("file-20"))?.read_exact_at(&mut bytes, 1_000_000)?;
        let moved = registry.traffic().bytes(Class::Blob);
        let chunk = (128 << 10) / 16;
        ensure!(
            moved <= 4 * chunk * 2,
            "{front}: {moved} bytes\n{}",
            registry.traffic().describe()
        );
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_what_was_read_once_is_not_fetched_again_by_the_next_mount() -> Result<()> {
    let scratch = Scratch::new("again")?;
    let (registry, reference) = slow_registry(&image_of_files(&scratch)?)?;
    let cache = scratch.directory("cache")?;
    for front in FRONTS {
        let first = Mounting::new(&reference, front).cache(&cache).mount()?;
        let bytes = fs::read(first.directory.join("file-10"))?;
        first.unmount()?;
        let second = Mounting::new(&reference, front).cache(&cache).mount()?;
        // Mounting resolves the tag and loads the indexes again; reading needs nothing more.
        registry.traffic().clear();
        assert_eq!(fs::read(second.directory.join("file-10"))?, bytes);
        assert_eq!(
            registry.traffic().requests().len(),
            0,
            "{front}:\n{}",
            registry.traffic().describe()
        );
        second.unmount()?;
    }
    Ok(())
}
