//! Promise: the cache can be looked into, pruned, pinned and verified while mounts run, and what it has needs no registry.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::registry::CountingRegistry;
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

const FILES: u64 = 4;
const FILE_LEN: u64 = 600_000;

struct Bench {
    scratch: Scratch,
    layout: PathBuf,
    cache: PathBuf,
}

impl Bench {
    fn new() -> Result<Self> {
        let scratch = Scratch::new("cache-command")?;
        let files = (0..FILES).map(|at| Entry::generated(format!("file-{at}"), FILE_LEN, at));
        let image = ImageBuilder::new()
            .layer(Layer::of(files))
            .write(&scratch.join("source"), "files")?;
        let layout = scratch.join("converted");
        sluice::convert(&image.reference(), &layout, "c", &[])?;
        let cache = scratch.directory("cache")?;
        Ok(Self {
            scratch,
            layout,
            cache,
        })
    }

    fn registry(&self) -> Result<CountingRegistry> {
        CountingRegistry::serve(&Layout::open(&self.layout))
    }

    fn arguments<'a>(&'a self, words: &[&'a str]) -> Result<Vec<&'a str>> {
        let cache = self.cache.to_str().context("a path in UTF-8")?;
        Ok([&["cache", "--cache", cache], words].concat())
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        sluice::json(self.arguments(words)?)
    }

    /// The file with the plain bytes of the only layer.
    fn data(&self) -> Result<PathBuf> {
        let layers = fs::read_dir(self.cache.join("layers/sha256"))?;
        let layer = layers.last().context("no layer is cached")??;
        Ok(layer.path().join("data"))
    }
}

fn cached(listed: &Value) -> Result<u64> {
    listed["layers"][0]["cached_bytes"]
        .as_u64()
        .with_context(|| format!("no layer in {listed}"))
}

/// Reads a file of the mount, gives its bytes.
fn read(directory: &Path, at: u64) -> Result<Vec<u8>> {
    let bytes = fs::read(directory.join(format!("file-{at}")))?;
    ensure!(bytes.len() as u64 == FILE_LEN, "{} bytes", bytes.len());
    Ok(bytes)
}

#[test]
fn privileged_a_pinned_image_starts_without_its_registry() -> Result<()> {
    for front in FRONTS {
        let bench = Bench::new()?;
        let registry = bench.registry()?;
        let reference = registry.reference("c");
        let mounted = Mounting::new(&reference, front).cache(&bench.cache).mount()?;
        let expected = read(&mounted.directory, 1)?;
        bench.json(&["prune", "--all"])?;
        ensure!(
            read(&mounted.directory, 1)? == expected,
            "{front}: read after a prune"
        );
        ensure!(read(&mounted.directory, 2)?.len() as u64 == FILE_LEN);
        let pinned = bench.json(&["pin", &reference])?;
        ensure!(pinned["pinned"] == true, "{pinned}");
        mounted.unmount()?;
        drop(registry);
        bench.json(&["prune", "--all"])?;
        let listed = bench.json(&["ls"])?;
        ensure!(cached(&listed)? >= 2 * FILE_LEN, "{front}: {listed}");
        ensure!(listed["images"][0]["name"] == reference.as_str(), "{listed}");
        let mounted = Mounting::new(&reference, front).cache(&bench.cache).mount()?;
        ensure!(
            read(&mounted.directory, 1)? == expected,
            "{front}: without the registry"
        );
        mounted.unmount()?;
        bench.json(&["unpin", &reference])?;
        bench.json(&["prune", "--all"])?;
        let listed = bench.json(&["ls"])?;
        let nothing = Some(&Vec::new());
        ensure!(
            listed["layers"].as_array() == nothing && listed["images"].as_array() == nothing,
            "{listed}"
        );
        drop(bench.scratch);
    }
    Ok(())
}

#[test]
fn privileged_a_check_removes_damage_and_says_so() -> Result<()> {
    let bench = Bench::new()?;
    let registry = bench.registry()?;
    let reference = registry.reference("c");
    let mounting = Mounting::new(&reference, "fuse").cache(&bench.cache);
    let mounted = mounting.mount()?;
    let expected = read(&mounted.directory, 0)?;
    mounted.unmount()?;
    let checked = bench.json(&["verify"])?;
    ensure!(checked["bad_chunks"] == 0, "{checked}");
    let before = cached(&bench.json(&["ls"])?)?;
    let data = File::options().read(true).write(true).open(bench.data()?)?;
    let mut byte = [0];
    // Within the first file, behind its tar header.
    data.read_exact_at(&mut byte, 2000)?;
    data.write_all_at(&[byte[0] ^ 1], 2000)?;
    sluice::refused(bench.arguments(&["verify"])?)?;
    ensure!(
        cached(&bench.json(&["ls"])?)? < before,
        "the damaged chunk is gone"
    );
    let mounted = mounting.mount()?;
    ensure!(read(&mounted.directory, 0)? == expected, "fetched again");
    mounted.unmount()?;
    bench.json(&["verify"])?;
    Ok(())
}

#[test]
fn what_the_cache_does_not_have_is_named() -> Result<()> {
    let bench = Bench::new()?;
    let text = sluice::refused(bench.arguments(&["pin", "docker://registry.test/x:y"])?)?;
    ensure!(text.contains("docker://registry.test/x:y"), "{text}");
    let missing = bench.scratch.join("nowhere");
    let missing = missing.to_str().context("a path in UTF-8")?;
    let text = sluice::refused(["cache", "ls", "--cache", missing])?;
    ensure!(text.contains(missing), "{text}");
    Ok(())
}
