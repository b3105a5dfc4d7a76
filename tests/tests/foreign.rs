//! Promise: images whose layers other tools made lazy, eStargz and zstd:chunked in every dialect, start lazily as they are; they look as
//! containerd unpacks them; the next start needs no registry; and a table of contents that lies shows nothing and costs no more than laziness.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::foreign::{APART_TAG, TAG, Writer};
use sluice_tests::images::{Entry, Image, ImageBuilder, Layer};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::registry::{Class, CountingRegistry};
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

const FILES: u64 = 12;
/// More than one piece of eStargz.
const FILE_LEN: u64 = 4_500_000;
const SMALL_FILES: u64 = 300;

fn name(layer: u64, at: u64) -> String {
    format!("file-{layer}-{at}")
}

fn small(at: u64) -> String {
    format!("small/{at}")
}

/// Two layers of large files, with small ones in the second.
fn image(scratch: &Scratch) -> Result<Image> {
    let large = |layer: u64| {
        (0..FILES).map(move |at| Entry::generated(name(layer, at), FILE_LEN, layer * FILES + at))
    };
    let few = (0..SMALL_FILES).map(|at| Entry::generated(small(at), 500 + at, 1000 + at));
    let directory = [Entry::directory("small", 0o755)];
    ImageBuilder::new()
        .layer(Layer::of(large(0)))
        .layer(Layer::of(large(1).chain(directory).chain(few)))
        .write(&scratch.join("source"), "s")
}

/// What the file `name` holds, from the image as it was before.
fn content(scratch: &Scratch, name: &str) -> Result<Vec<u8>> {
    let cached = scratch.join("plain").join(name.replace('/', "-"));
    Ok(fs::read(cached)?)
}

/// Keeps the contents of the files that are looked at.
fn keep_contents(scratch: &Scratch, image: &Image) -> Result<()> {
    let directory = scratch.directory("plain")?;
    let mounted = Mounting::new(&image.reference(), "fuse").mount()?;
    let names = (0..2).flat_map(|layer| (0..FILES).map(move |at| name(layer, at)));
    for name in names.chain((0..SMALL_FILES).map(small)) {
        fs::copy(
            mounted.directory.join(&name),
            directory.join(name.replace('/', "-")),
        )?;
    }
    mounted.unmount()
}

fn lazily(writer: Writer) -> Result<()> {
    let scratch = Scratch::new("foreign")?;
    let source = image(&scratch)?;
    keep_contents(&scratch, &source)?;
    let layout = writer.write(&source, &scratch.join("foreign"))?;
    let whole = layout.image(TAG)?.stored_len()?;
    let registry = CountingRegistry::serve(&layout)?;
    let reference = registry.reference(TAG);
    for front in FRONTS {
        let cache = scratch.directory(&format!("cache-{front}"))?;
        registry.traffic().clear();
        let mounted = Mounting::new(&reference, front).cache(&cache).mount()?;
        let moved = registry.traffic().total_bytes();
        ensure!(
            moved * 10 < whole,
            "{writer:?}, {front}: mounting moved {moved} of {whole} bytes\n{}",
            registry.traffic().describe()
        );
        let read = [name(0, 3), name(1, 7), small(0), small(7), small(SMALL_FILES - 1)];
        for name in &read {
            let found = fs::read(mounted.directory.join(name))?;
            ensure!(
                found == content(&scratch, name)?,
                "{writer:?}, {front}: wrong bytes in {name}"
            );
        }
        let moved = registry.traffic().bytes(Class::Blob);
        ensure!(
            moved * 2 < whole,
            "{writer:?}, {front}: reading moved {moved} of {whole} bytes\n{}",
            registry.traffic().describe()
        );
        mounted.unmount()?;
        registry.traffic().clear();
        let again = Mounting::new(&reference, front).cache(&cache).mount()?;
        for name in &read {
            ensure!(fs::read(again.directory.join(name))? == content(&scratch, name)?);
        }
        ensure!(
            registry.traffic().count(Class::Blob) == 0,
            "{writer:?}, {front}: the second time\n{}",
            registry.traffic().describe()
        );
        again.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_estargz_starts_lazily() -> Result<()> {
    lazily(Writer::Estargz)
}

#[test]
fn privileged_estargz_with_files_in_common_members_starts_lazily() -> Result<()> {
    lazily(Writer::EstargzShared)
}

#[test]
fn privileged_estargz_starts_lazily_with_its_tables_of_contents_in_another_image() -> Result<()> {
    lazily(Writer::EstargzApart)
}

#[test]
fn privileged_estargz_is_streamed_when_the_image_with_its_tables_of_contents_is_missing() -> Result<()> {
    let scratch = Scratch::new("foreign")?;
    let source = image(&scratch)?;
    keep_contents(&scratch, &source)?;
    let layout = Writer::EstargzApart.write(&source, &scratch.join("foreign"))?;
    let index = layout.directory.join("index.json");
    let mut parsed: serde_json::Value = serde_json::from_slice(&fs::read(&index)?)?;
    let manifests = parsed["manifests"].as_array_mut().context("no manifests")?;
    let name = "org.opencontainers.image.ref.name";
    manifests.retain(|manifest| manifest["annotations"][name] != APART_TAG);
    ensure!(manifests.len() == 1, "{manifests:?}");
    fs::write(&index, parsed.to_string())?;
    let mounted = Mounting::new(&format!("oci:{}:{TAG}", layout.directory.display()), "fuse").mount()?;
    for read in [small(7), self::name(1, 7)] {
        ensure!(
            fs::read(mounted.directory.join(&read))? == content(&scratch, &read)?,
            "{read}"
        );
    }
    mounted.unmount()
}

#[test]
fn privileged_zstd_chunked_of_stargz_starts_lazily() -> Result<()> {
    lazily(Writer::StargzZstd)
}

#[test]
fn privileged_zstd_chunked_of_skopeo_starts_lazily() -> Result<()> {
    lazily(Writer::Skopeo)
}

#[test]
fn privileged_zstd_chunked_of_a_recent_skopeo_starts_lazily() -> Result<()> {
    lazily(Writer::RecentSkopeo)
}

#[test]
fn privileged_a_second_mount_needs_no_registry() -> Result<()> {
    let scratch = Scratch::new("foreign-offline")?;
    let source = image(&scratch)?;
    keep_contents(&scratch, &source)?;
    let layout = Writer::Skopeo.write(&source, &scratch.join("foreign"))?;
    let registry = CountingRegistry::serve(&layout)?;
    let (reference, cache) = (registry.reference(TAG), scratch.directory("cache")?);
    let mounted = Mounting::new(&reference, "fuse").cache(&cache).mount()?;
    let read = fs::read(mounted.directory.join(name(0, 3)))?;
    ensure!(read == content(&scratch, &name(0, 3))?);
    mounted.unmount()?;
    drop(registry);
    let offline = Mounting::new(&reference, "fuse").cache(&cache).mount()?;
    ensure!(fs::read(offline.directory.join(name(0, 3)))? == read);
    offline.unmount()
}

#[test]
fn foreign_images_can_be_looked_into() -> Result<()> {
    let scratch = Scratch::new("foreign-look")?;
    let file = Entry::file("etc/greeting", b"hello\n");
    let source = ImageBuilder::new()
        .layer(Layer::of([file]))
        .write(&scratch.join("source"), "s")?;
    let layout = Writer::Skopeo.write(&source, &scratch.join("foreign"))?;
    let reference = format!("oci:{}:{TAG}", layout.directory.display());
    let listed = sluice::run(["ls", &reference, "/etc"])?;
    ensure!(listed.contains("/etc/greeting"), "{listed}");
    ensure!(sluice::run(["cat", &reference, "/etc/greeting"])? == "hello\n");
    Ok(())
}
