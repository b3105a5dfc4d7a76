//! Promise: an image without indexes is mounted after each of its layers has come once; cuts are resumed; what is wrong is refused by name
//! and leaves nothing; a mount that is killed while it streams asks for the rest the next time, and for hardly a byte more.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sluice_tests::document::Layout;
use sluice_tests::images::{Compression, Entry, Image, ImageBuilder, Layer, LayoutWriter};
use sluice_tests::mounted::{FRONTS, Mounted, Mounting};
use sluice_tests::numbers::numbers;
use sluice_tests::registry::{Class, Countdown, CountingRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

const FILES: u64 = 8;
const FILE_LEN: u64 = 3 << 20;
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections that are cut, at each of two lengths.
const CUTS: usize = 4;
/// Layers are asked for in ranges of this length.
const RANGE_LEN: u64 = 4 << 20;
/// Mounts that are killed.
const KILLS: u64 = 40;
/// Files of a layer that is long enough to be killed in again and again: 45 MiB.
const LONG_FILES: u64 = 15;
/// Bytes per second of a connection: slow beside starting a process.
const SLOW: u64 = 2_000_000;

fn name(layer: u64, at: u64) -> String {
    format!("file-{layer}-{at}")
}

/// A file's bytes that no compression makes shorter.
fn noise(seed: u64) -> Vec<u8> {
    let mut next = numbers(seed + 1);
    (0..FILE_LEN / 4)
        .flat_map(|_| (next(1 << 32) as u32).to_le_bytes())
        .collect()
}

fn layer(number: u64) -> Layer {
    let files = (0..FILES).map(|at| Entry::generated(name(number, at), FILE_LEN, number * FILES + at));
    Layer::of(files)
}

/// Two layers of 24 MiB, an empty one, and a zstd one.
fn builder() -> ImageBuilder {
    ImageBuilder::new()
        .layers([layer(0), layer(1), Layer::new()])
        .layer(layer(2).compression(Compression::Zstd))
}

fn image(scratch: &Scratch) -> Result<Image> {
    builder().write(&scratch.join("source"), "s")
}

fn stored_len(image: &Image) -> u64 {
    image.layers.iter().map(|layer| layer.stored_len).sum()
}

/// Compares a file of each layer with what the tar has.
fn check(mounted: &Mounted) -> Result<()> {
    for (number, at) in [(0, 0), (0, 7), (1, 3), (2, 5)] {
        let plain = layer(number).plain()?;
        let mut archive = tar::Archive::new(&plain[..]);
        let mut entry = archive.entries()?.nth(at as usize).context("no entry")??;
        let mut expected = Vec::new();
        entry.read_to_end(&mut expected)?;
        let found = fs::read(mounted.directory.join(name(number, at)))?;
        ensure!(found == expected, "{} has wrong bytes", name(number, at));
    }
    Ok(())
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// `sluice mount`, which has to fail; gives what it printed.
fn refused(mounting: &Mounting) -> Result<String> {
    let mut mounted = mounting.start()?;
    let status = mounted.wait_end(Duration::from_secs(120))?;
    let printed = mounted.printed();
    ensure!(!status.success(), "it should have failed: {printed}");
    ensure!(!printed.contains("panicked"), "{printed}");
    mounted.assert_nothing_left()?;
    Ok(printed)
}

#[test]
fn privileged_a_streamed_image_comes_once_and_is_mounted_again_without_its_registry() -> Result<()> {
    let scratch = Scratch::new("stream-once")?;
    let image = image(&scratch)?;
    let mut registry = CountingRegistry::serve(&image.layout)?;
    for front in FRONTS {
        let cache = scratch.directory(&format!("cache-{front}"))?;
        let mounting = Mounting::new(&registry.reference("s"), front).cache(&cache);
        registry.traffic().clear();
        let mounted = mounting.mount()?;
        check(&mounted)?;
        mounted.unmount()?;
        let (moved, whole) = (registry.traffic().bytes(Class::Blob), stored_len(&image));
        ensure!(
            moved >= whole && moved < whole + 20_000,
            "{front}: {moved} of {whole}\n{}",
            registry.traffic().describe()
        );
        registry.vanish();
        let mounted = mounting.mount()?;
        check(&mounted)?;
        mounted.unmount()?;
        registry.come_back()?;
    }
    Ok(())
}

#[test]
fn privileged_an_image_with_some_indexes_streams_only_the_layers_without() -> Result<()> {
    let scratch = Scratch::new("stream-mixed")?;
    let directory = scratch.join("mixed");
    let source = ImageBuilder::new()
        .layer(layer(0))
        .write(&scratch.join("source"), "s")?;
    sluice::convert(&source.reference(), &directory, "c", &[])?;
    let layout = Layout::open(&directory);
    let converted = layout.image("c")?;
    let writer = LayoutWriter::open(&directory)?;
    let mut records = vec![source.layers[0].clone()];
    records[0].digest = converted.layer_digests()?.remove(0);
    records[0].stored_len = converted.stored_len()?;
    records[0].media_type = Compression::Zstd.media_type().to_owned();
    records.push(writer.put_layer(&layer(1))?);
    records.push(writer.put_layer(&layer(2))?);
    let lazy_len = records[0].stored_len;
    let mixed = ImageBuilder::new().write_with(&writer, records, "m")?;
    let registry = CountingRegistry::serve(&mixed.layout)?;
    for front in FRONTS {
        registry.traffic().clear();
        let mounted = Mounting::new(&registry.reference("m"), front).mount()?;
        let moved = registry.traffic().bytes(Class::Blob);
        let streamed = stored_len(&mixed) - lazy_len;
        ensure!(
            moved >= streamed && moved < streamed + lazy_len / 2,
            "{front}: {moved}, {streamed} streamed and {lazy_len} lazy\n{}",
            registry.traffic().describe()
        );
        check(&mounted)?;
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_cuts_at_any_byte_are_resumed_where_they_were() -> Result<()> {
    let scratch = Scratch::new("stream-cuts")?;
    let image = image(&scratch)?;
    let mut next = numbers(11);
    for _ in 0..4 {
        let cut = |bytes| Fault::CutAfter {
            bytes,
            times: Countdown::times(CUTS),
        };
        // Each at least so far that the transfer counts as getting on.
        let faults = (0..2).fold(FaultSet::none(), |faults, _| {
            faults.with(cut(70_000 + next(900_000)))
        });
        let registry = CountingRegistry::serve_with(&image.layout, faults)?;
        let mounted = Mounting::new(&registry.reference("s"), "erofs").mount()?;
        check(&mounted)?;
        mounted.unmount()?;
        // What was on its way when a connection broke may be lost; most of what came before is not asked for again.
        let starts = registry.traffic().requests();
        let in_the_middle = starts
            .iter()
            .filter_map(|request| request.range)
            .filter(|(first, _)| first % RANGE_LEN != 0);
        let resumed = in_the_middle.count();
        ensure!(
            resumed >= CUTS,
            "{resumed} of {} cuts were resumed\n{}",
            2 * CUTS,
            registry.traffic().describe()
        );
    }
    Ok(())
}

#[test]
fn privileged_wrong_bytes_are_refused_by_name_and_nothing_is_kept() -> Result<()> {
    let scratch = Scratch::new("stream-wrong")?;
    let source = scratch.join("source");
    let right = image(&scratch)?;
    let other = format!("sha256:{}", "5".repeat(64));
    let mut diff_ids: Vec<&str> = right.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    diff_ids[1] = &other;
    let wrong = builder()
        .config("/rootfs/diff_ids", json!(diff_ids))
        .write(&source, "w")?;
    let registry = CountingRegistry::serve(&wrong.layout)?;
    let cache = scratch.directory("cache")?;
    let printed = refused(&Mounting::new(&registry.reference("w"), "erofs").cache(&cache))?;
    ensure!(
        printed.contains(&wrong.layers[1].digest) && printed.contains(&other),
        "{printed}"
    );
    let layers = cache.join("layers/sha256");
    ensure!(!layers.join("5".repeat(64)).exists() && count(&cache.join("streams")) == 0);
    let hex = right.layers[1].diff_id.trim_start_matches("sha256:");
    ensure!(!layers.join(hex).exists(), "the layer under its true name");

    for offset in [1, 12_345, right.layers[0].stored_len - 1] {
        let digest = right.layers[0].digest.clone();
        registry.set_faults(FaultSet::none().with(Fault::FlippedByte { digest, offset }));
        let cache = scratch.directory(&format!("cache-{offset}"))?;
        let printed = refused(&Mounting::new(&registry.reference("s"), "erofs").cache(&cache))?;
        ensure!(
            printed.contains(&right.layers[0].digest) && printed.contains("another digest"),
            "{offset}: {printed}"
        );
        let hex = right.layers[0].diff_id.trim_start_matches("sha256:");
        ensure!(!cache.join("layers/sha256").join(hex).exists(), "{offset}");
        ensure!(count(&cache.join("streams")) == 0, "{offset}");
    }
    Ok(())
}

#[test]
fn privileged_a_registry_that_goes_and_a_cache_that_is_full_are_clear_errors() -> Result<()> {
    let scratch = Scratch::new("stream-gone")?;
    let image = image(&scratch)?;
    let faults = FaultSet::none().with(Fault::Throttled(400_000));
    let mut registry = CountingRegistry::serve_with(&image.layout, faults)?;
    let cache = scratch.directory("cache")?;
    let mounting = Mounting::new(&registry.reference("s"), "erofs").cache(&cache);
    let mut mounted = mounting.start()?;
    while registry.traffic().count(Class::Blob) < 3 {
        thread::sleep(Duration::from_millis(10));
    }
    registry.vanish();
    let status = mounted.wait_end(Duration::from_secs(180))?;
    let printed = mounted.printed();
    ensure!(
        !status.success() && printed.contains("cannot be streamed"),
        "{printed}"
    );
    ensure!(
        count(&cache.join("streams")) == 0,
        "nothing is left of unfinished layers"
    );
    registry.come_back()?;
    registry.set_faults(FaultSet::none());
    let mounted = mounting.mount()?;
    check(&mounted)?;
    mounted.unmount()?;

    let small = Mounting::new(&registry.reference("s"), "erofs").option("--cache-quota");
    // Those in gzip are lazy then; the one long frame in zstd cannot be.
    let printed = refused(&small.option("20000000"))?;
    ensure!(printed.contains("has no place for the layer"), "{printed}");
    Ok(())
}

#[test]
fn privileged_bytes_that_rot_in_the_cache_are_streamed_again_and_never_shown() -> Result<()> {
    let scratch = Scratch::new("stream-rot")?;
    let image = image(&scratch)?;
    let registry = CountingRegistry::serve(&image.layout)?;
    for front in FRONTS {
        let cache = scratch.directory(&format!("cache-{front}"))?;
        let mounting = Mounting::new(&registry.reference("s"), front).cache(&cache);
        mounting.mount()?.unmount()?;
        let hex = image.layers[0].diff_id.trim_start_matches("sha256:");
        let data = cache.join("layers/sha256").join(hex).join("data");
        let file = fs::File::options().write(true).open(data)?;
        for at in 0..FILES {
            file.write_all_at(b"rotten", at * FILE_LEN + 100_000)?;
        }
        registry.traffic().clear();
        let mounted = mounting.mount()?;
        check(&mounted).context(front)?;
        let (moved, layer) = (registry.traffic().bytes(Class::Blob), image.layers[0].stored_len);
        ensure!(
            moved > 0 && moved <= 2 * layer,
            "{front}: {moved} of a layer of {layer}"
        );
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_heavy_kill_9_in_mid_stream_shows_no_wrong_byte_and_leaks_nothing() -> Result<()> {
    let scratch = Scratch::new("stream-kill")?;
    let image = image(&scratch)?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let cache = scratch.directory("cache")?;
    let mut next = numbers(3);
    let mut interrupted = 0;
    for kill in 0..KILLS {
        // Every fifth begins with nothing, so that kills hit every moment of a first stream.
        if kill % 5 == 0 {
            fs::remove_dir_all(&cache)?;
            fs::create_dir(&cache)?;
        }
        let rate = [300_000, 1_000_000, 10_000_000][next(3) as usize];
        registry.set_faults(FaultSet::none().with(Fault::Throttled(rate)));
        let front = FRONTS[kill as usize % FRONTS.len()];
        let mounting = Mounting::new(&registry.reference("s"), front).cache(&cache);
        let mut mounted = mounting.start()?;
        thread::sleep(Duration::from_millis(20 + next(900)));
        if mounted.is_mounted()? {
            check(&mounted).with_context(|| format!("kill {kill}"))?;
        } else {
            interrupted += 1;
        }
        mounted.signal(Signal::SIGKILL)?;
        mounted.wait_end(PATIENCE)?;
        mounted.wait_nothing_left(PATIENCE)?;
    }
    ensure!(
        interrupted > KILLS / 4,
        "only {interrupted} were killed in mid-stream"
    );
    registry.set_faults(FaultSet::none());
    for front in FRONTS {
        let mounted = Mounting::new(&registry.reference("s"), front)
            .cache(&cache)
            .mount()?;
        check(&mounted)?;
        mounted.unmount()?;
    }
    ensure!(
        count(&cache.join("streams")) == 0 && count(&cache.join("partial")) == 0,
        "files of killed processes are left"
    );
    let layers = count(&cache.join("layers/sha256"));
    ensure!(layers == image.layers.len(), "{layers} layers");
    Ok(())
}

#[test]
fn privileged_heavy_kill_9_in_mid_stream_loses_no_more_than_the_unfinished_blocks() -> Result<()> {
    let scratch = Scratch::new("stream-killed")?;
    let long = |number: u64| {
        let file = |at| Entry::file(name(number, at), noise(number * 100 + at));
        Layer::of((0..LONG_FILES).map(file))
    };
    let layers = [long(5), long(6).compression(Compression::Zstd)];
    let image = ImageBuilder::new()
        .layers(layers.clone())
        .write(&scratch.join("source"), "k")?;
    let whole = stored_len(&image);
    let registry =
        CountingRegistry::serve_with(&image.layout, FaultSet::none().with(Fault::Throttled(SLOW)))?;
    let cache = scratch.directory("cache")?;
    let mounting = Mounting::new(&registry.reference("k"), "erofs").cache(&cache);
    let (mut next, mut kills) = (numbers(7), 0);
    loop {
        let target = registry.traffic().bytes(Class::Blob) + 8_000_000 + next(8_000_000);
        let mut mounted = mounting.start()?;
        while registry.traffic().bytes(Class::Blob) < target && !mounted.is_mounted()? {
            ensure!(mounted.is_running(), "it ended: {}", mounted.printed());
            thread::sleep(Duration::from_millis(5));
        }
        if mounted.is_mounted()? {
            break;
        }
        mounted.signal(Signal::SIGKILL)?;
        mounted.wait_end(PATIENCE)?;
        mounted.wait_nothing_left(PATIENCE)?;
        kills += 1;
        ensure!(kills < 50, "what was fetched is not kept");
        let kept = sluice::json([
            "cache",
            "--cache",
            cache.to_str().context("a path in UTF-8")?,
            "du",
        ])?;
        ensure!(kept["partial_blobs"].as_u64() > Some(0), "{kept}");
        ensure!(count(&cache.join("layers/sha256")) <= 2 && count(&cache.join("partial")) > 0);
    }
    ensure!(kills >= 4, "only {kills} were killed in mid-stream");
    let moved = registry.traffic().bytes(Class::Blob);
    ensure!(
        moved < whole * 13 / 10,
        "{kills} kills: {moved} of {whole}\n{}",
        registry.traffic().describe()
    );
    registry.set_faults(FaultSet::none());
    let mounted = mounting.mount()?;
    for (layer, number) in layers.iter().zip([5, 6]) {
        let plain = layer.plain()?;
        let mut archive = tar::Archive::new(&plain[..]);
        for (entry, at) in archive.entries()?.zip(0..LONG_FILES) {
            let mut expected = Vec::new();
            entry?.read_to_end(&mut expected)?;
            let found = fs::read(mounted.directory.join(name(number, at)))?;
            ensure!(found == expected, "{} has wrong bytes", name(number, at));
        }
    }
    mounted.unmount()?;
    ensure!(count(&cache.join("partial")) == 0 && count(&cache.join("streams")) == 0);
    Ok(())
}
