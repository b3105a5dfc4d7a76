//! Promise: damaged bytes, wherever they are, give a clear error or the right data, never wrong data; a damaged cache heals.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use serde_json::Value;
use sluice_format::{LayerTree, Limits};
use sluice_storage::{
    Counters, Fetcher, Layout as StorageLayout, ManifestName, PlainLayer, Platform, Repository,
    load_lazy_image,
};
use sluice_tests::document::{self, Layout, array, text};
use sluice_tests::images::{Entry, Image, ImageBuilder, Layer, LayoutWriter};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::registry::{CountingRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;
use tokio::runtime::Runtime;

const TAG: &str = "c";

/// Everything that can be read of an image: tree and digest of the plain bytes of each layer.
type Everything = Vec<(LayerTree, String)>;

/// Reads a whole image the lazy way: by the index, chunk for chunk, no cache.
fn read_everything(directory: &Path, runtime: &Runtime) -> Result<Everything> {
    runtime.block_on(async {
        let repository: Arc<dyn Repository> = Arc::new(StorageLayout::open(directory)?);
        let platform: Platform = "linux/amd64".parse()?;
        let limits = Limits::default();
        let name = ManifestName::Tag(TAG.to_owned());
        let image = load_lazy_image(&repository, &name, &platform, &limits).await?;
        let fetcher = Fetcher::new(Arc::new(Counters::default()));
        let mut everything = Vec::new();
        for layer in &image.layers {
            let plain = PlainLayer::new(layer, None, &fetcher)
                .read(0..layer.plain_len)
                .await?;
            everything.push((layer.index.layer_tree(&limits)?, document::digest(&plain)));
        }
        Ok(everything)
    })
}

/// A converted image that is small enough for every byte to be damaged once, in two layers with files of all sorts.
fn small_converted(scratch: &Scratch) -> Result<PathBuf> {
    let first = Layer::of([
        Entry::directory("d", 0o755).xattr("user.a", b"b"),
        Entry::generated("d/large", 40_000, 1),
        Entry::symlink("d/link", "large"),
    ]);
    let second = Layer::of([
        Entry::file("d/small", b"small"),
        Entry::hard_link("d/too", "d/small"),
    ]);
    let image = ImageBuilder::new()
        .layers([first, second])
        .write(&scratch.join("source"), "s")?;
    let directory = scratch.join("converted");
    sluice::convert(&image.reference(), &directory, TAG, &["--chunk-size", "16K"])?;
    Ok(directory)
}

/// Files of a layout in a fixed order.
fn files_of(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![directory.join("index.json")];
    for entry in fs::read_dir(directory.join("blobs/sha256"))? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// Damages every byte of every file in turn, and reads everything each time. Gives how often an error was the answer.
fn damage_every_byte(directory: &Path) -> Result<usize> {
    let runtime = Runtime::new()?;
    let expected = read_everything(directory, &runtime)?;
    let mut errors = 0;
    for path in files_of(directory)? {
        let original = fs::read(&path)?;
        let file = File::options().write(true).open(&path)?;
        for (at, byte) in original.iter().enumerate() {
            for change in [0x01, 0x80] {
                file.write_all_at(&[byte ^ change], at as u64)?;
                match read_everything(directory, &runtime) {
                    Ok(found) => ensure!(
                        found == expected,
                        "{} byte {at} ^ {change:#x}: wrong data",
                        path.display()
                    ),
                    Err(_) => errors += 1,
                }
            }
            file.write_all_at(&[*byte], at as u64)?;
        }
        assert_eq!(fs::read(&path)?, original);
    }
    Ok(errors)
}

#[test]
fn no_damaged_byte_of_an_image_gives_wrong_data() -> Result<()> {
    let scratch = Scratch::new("flips")?;
    let directory = small_converted(&scratch)?;
    let bytes: u64 = files_of(&directory)?
        .iter()
        .map(|path| fs::metadata(path).map(|m| m.len()))
        .sum::<Result<_, _>>()?;
    let errors = damage_every_byte(&directory)?;
    // Only bytes that no reader needs may go unnoticed: the footers and frame headers that the annotation makes idle.
    ensure!(
        errors as u64 > bytes * 2 * 9 / 10,
        "only {errors} of {} damages were noticed",
        bytes * 2
    );
    Ok(())
}

/// The same image without the annotation that pins the indexes, so that they are found through the footers.
fn without_annotations(directory: &Path) -> Result<()> {
    let layout = Layout::open(directory);
    let mut manifest = layout.image(TAG)?.manifest;
    for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
        layer
            .as_object_mut()
            .context("a layer is no object")?
            .remove("annotations");
    }
    let writer = LayoutWriter::open(directory)?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let descriptor = writer.put_blob(media_type, manifest.to_string().as_bytes())?;
    fs::remove_file(layout.blob_path(text(&layout.tagged(TAG)?, "/digest")?)?)?;
    writer.tag(&descriptor, TAG)
}

#[test]
fn no_damaged_byte_of_an_image_without_annotations_gives_wrong_data() -> Result<()> {
    let scratch = Scratch::new("footers")?;
    let directory = small_converted(&scratch)?;
    without_annotations(&directory)?;
    damage_every_byte(&directory)?;
    Ok(())
}

#[test]
fn check_names_the_damaged_blob_whichever_byte_it_is() -> Result<()> {
    let scratch = Scratch::new("check")?;
    let directory = small_converted(&scratch)?;
    let reference = format!("oci:{}:{TAG}", directory.display());
    sluice::run(["check", &reference])?;
    for path in files_of(&directory)?
        .into_iter()
        .filter(|path| !path.ends_with("index.json"))
    {
        let original = fs::read(&path)?;
        let file = File::options().write(true).open(&path)?;
        for at in (0..original.len()).step_by(original.len() / 12 + 1) {
            file.write_all_at(&[original[at] ^ 0x10], at as u64)?;
            let said = sluice::refused(["check", &reference])
                .with_context(|| format!("{} at {at}", path.display()))?;
            let name = path.file_name().context("a blob has no name")?.to_string_lossy();
            ensure!(
                said.contains(&*name),
                "{} at {at} is not named: {said}",
                path.display()
            );
            file.write_all_at(&[original[at]], at as u64)?;
        }
    }
    sluice::run(["check", &reference]).map(|_| ())
}

#[test]
fn check_notices_a_missing_and_a_short_blob() -> Result<()> {
    let scratch = Scratch::new("missing")?;
    let directory = small_converted(&scratch)?;
    let reference = format!("oci:{}:{TAG}", directory.display());
    for path in files_of(&directory)?
        .into_iter()
        .filter(|path| !path.ends_with("index.json"))
    {
        let original = fs::read(&path)?;
        fs::write(&path, &original[..original.len() / 2])?;
        sluice::refused(["check", &reference]).with_context(|| format!("half of {}", path.display()))?;
        fs::remove_file(&path)?;
        sluice::refused(["check", &reference]).with_context(|| format!("no {}", path.display()))?;
        fs::write(&path, &original)?;
    }
    sluice::run(["check", &reference]).map(|_| ())
}

#[test]
fn check_notices_an_image_that_is_not_its_original() -> Result<()> {
    let scratch = Scratch::new("against")?;
    let image = |name: &str, content: &[u8]| {
        let layer = Layer::of([Entry::file("f", content)]);
        ImageBuilder::new().layer(layer).write(&scratch.join(name), "s")
    };
    let (one, other) = (image("one", b"one")?, image("other", b"two")?);
    let converted = sluice::convert(&one.reference(), &scratch.join("converted"), TAG, &[])?;
    sluice::run(["check", &converted, "--against", &one.reference()])?;
    sluice::refused(["check", &converted, "--against", &other.reference()])?;
    Ok(())
}

/// An index of one layer put under another: both blobs are whole, only the pinning is wrong.
#[test]
fn a_layer_with_the_index_of_another_layer_is_refused() -> Result<()> {
    let scratch = Scratch::new("swapped")?;
    let directory = small_converted(&scratch)?;
    let layout = Layout::open(&directory);
    let mut manifest = layout.image(TAG)?.manifest;
    let layers = manifest["layers"].as_array_mut().context("no layers")?;
    let annotations: Vec<Value> = layers.iter().map(|layer| layer["annotations"].clone()).collect();
    layers[0]["annotations"] = annotations[1].clone();
    let writer = LayoutWriter::open(&directory)?;
    let descriptor = writer.put_blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    )?;
    writer.tag(&descriptor, TAG)?;
    let runtime = Runtime::new()?;
    ensure!(read_everything(&directory, &runtime).is_err());
    let reference = format!("oci:{}:{TAG}", directory.display());
    sluice::refused(["check", &reference])?;
    sluice::refused(["ls", &reference])?;
    Ok(())
}

const FILES: u64 = 12;
const FILE_LEN: u64 = 300_000;

fn image_of_files(scratch: &Scratch) -> Result<(Image, String)> {
    let files = (0..FILES).map(|at| Entry::generated(format!("file-{at:02}"), FILE_LEN, at));
    let image = ImageBuilder::new()
        .layer(Layer::of(files))
        .write(&scratch.join("source"), "files")?;
    let converted = sluice::convert(
        &image.reference(),
        &scratch.join("converted"),
        TAG,
        &["--chunk-size", "64K"],
    )?;
    Ok((image, converted))
}

/// Content of every file of a mount; `None` for one that cannot be read.
fn contents(directory: &Path) -> BTreeMap<u64, Option<Vec<u8>>> {
    let read = |at: u64| match fs::read(directory.join(format!("file-{at:02}"))) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::EIO as i32), "{error}");
            None
        }
    };
    (0..FILES).map(|at| (at, read(at))).collect()
}

#[test]
fn privileged_damage_on_the_way_is_an_error_for_that_file_and_not_kept() -> Result<()> {
    let scratch = Scratch::new("wire")?;
    let (_, converted) = image_of_files(&scratch)?;
    let layout = Layout::open(&scratch.join("converted"));
    let layer = layout.image(TAG)?.layer_digests()?.remove(0);
    let reference = Mounting::new(&converted, "erofs").mount()?;
    let expected = contents(&reference.directory);
    reference.unmount()?;
    let registry = CountingRegistry::serve(&layout)?;
    for front in FRONTS {
        let mounted = Mounting::new(&registry.reference(TAG), front).mount()?;
        registry.set_faults(FaultSet::none().with(Fault::FlippedByte {
            digest: layer.clone(),
            offset: 5000,
        }));
        let damaged = contents(&mounted.directory);
        let lost = damaged.values().filter(|content| content.is_none()).count();
        ensure!((1..=2).contains(&lost), "{front}: {lost} files cannot be read");
        for (at, content) in &damaged {
            ensure!(
                content.is_none() || *content == expected[at],
                "{front}: file {at} has wrong bytes"
            );
        }
        registry.set_faults(FaultSet::none());
        ensure!(
            contents(&mounted.directory) == expected,
            "{front}: damage was kept"
        );
        mounted.unmount()?;
    }
    Ok(())
}

/// Every regular file below a directory.
fn regular_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => files.extend(regular_files(&entry.path())?),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files.sort();
    Ok(files)
}

/// Ways to ruin a file.
type Ruin = (&'static str, fn(&[u8]) -> Vec<u8>);
const RUINS: [Ruin; 5] = [
    ("every 1000th byte changed", |bytes| {
        let changed = |(at, byte): (usize, &u8)| if at % 1000 == 7 { byte ^ 0x20 } else { *byte };
        bytes.iter().enumerate().map(changed).collect()
    }),
    ("zeros", |bytes| vec![0; bytes.len()]),
    ("ones", |bytes| vec![0xff; bytes.len()]),
    ("cut in half", |bytes| bytes[..bytes.len() / 2].to_vec()),
    ("empty", |_| Vec::new()),
];

#[test]
fn privileged_a_ruined_cache_heals() -> Result<()> {
    let scratch = Scratch::new("heal")?;
    let (_, converted) = image_of_files(&scratch)?;
    for front in FRONTS {
        let cache = scratch.directory(&format!("cache-{front}"))?;
        let filled = Mounting::new(&converted, front).cache(&cache).mount()?;
        let expected = contents(&filled.directory);
        filled.unmount()?;
        for path in regular_files(&cache)? {
            for (what, ruin) in RUINS {
                let good = fs::read(&path)?;
                fs::write(&path, ruin(&good))?;
                let case = || format!("{front}: {what}: {}", path.display());
                let mounted = Mounting::new(&converted, front)
                    .cache(&cache)
                    .mount()
                    .with_context(case)?;
                ensure!(
                    contents(&mounted.directory) == expected,
                    "{}: wrong or missing data",
                    case()
                );
                mounted.unmount().with_context(case)?;
            }
        }
    }
    Ok(())
}

#[test]
fn privileged_a_cache_that_is_removed_or_read_only_changes_nothing_for_readers() -> Result<()> {
    let scratch = Scratch::new("no-cache")?;
    let (_, converted) = image_of_files(&scratch)?;
    for front in FRONTS {
        let mounted = Mounting::new(&converted, front).mount()?;
        let first = fs::read(mounted.directory.join("file-00"))?;
        fs::remove_dir_all(&mounted.cache)?;
        assert_eq!(fs::read(mounted.directory.join("file-00"))?, first, "{front}");
        let all = contents(&mounted.directory);
        ensure!(
            all.values().all(Option::is_some),
            "{front}: a file cannot be read without a cache"
        );
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn a_document_that_does_not_match_its_descriptor_is_refused() -> Result<()> {
    let scratch = Scratch::new("documents")?;
    let directory = small_converted(&scratch)?;
    let registry = CountingRegistry::serve(&Layout::open(&directory))?;
    let documents = Layout::open(&directory).image(TAG)?;
    let config = text(&documents.manifest, "/config/digest")?.to_owned();
    ensure!(array(&documents.manifest, "/layers")?.len() == 2);
    // A tag leads to whatever the registry says; from a digest on, everything is pinned.
    let by_digest = format!(
        "docker://{}/test@{}",
        registry.address(),
        documents.manifest_digest
    );
    for digest in [documents.manifest_digest, config] {
        let offset = 60;
        let digest_of = digest.clone();
        registry.set_faults(FaultSet::none().with(Fault::FlippedByte { digest, offset }));
        for command in ["inspect", "ls", "check"] {
            let said = sluice::refused([command, &by_digest, "--plain-http"])?;
            ensure!(
                said.contains("corrupt") || said.contains("digest"),
                "{command} {digest_of}: {said}"
            );
        }
    }
    Ok(())
}
