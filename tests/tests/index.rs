//! Promise: `sluice index` makes an image lazy without changing a byte of it; its indexes are found by whoever mounts it, and remembered;
//! a wrong index never shows a wrong byte; a layer that cannot be read by ranges is named.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_format::compression::Codec;
use sluice_format::{ChunkRef, ChunkTable, LayerIndex, Limits};
use sluice_tests::document::{Layout, array, text};
use sluice_tests::images::{Compression, Entry, Image, ImageBuilder, Layer, LayoutWriter};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::registry::{Class, CountingRegistry, DistributionRegistry};
use sluice_tests::scratch::Scratch;
use sluice_tests::{prerequisites, process, sluice};

const FILES: u64 = 12;
const FILE_LEN: u64 = 3 << 20;

fn name(layer: u64, at: u64) -> String {
    format!("file-{layer}-{at}")
}

fn layer(number: u64) -> Layer {
    let files = (0..FILES).map(|at| Entry::generated(name(number, at), FILE_LEN, number * FILES + at));
    Layer::of(files)
}

/// One layer of each kind that can be read by ranges, and an empty one.
fn image(scratch: &Scratch) -> Result<Image> {
    ImageBuilder::new()
        .layer(layer(0).compression(Compression::Gzip))
        .layer(layer(1).compression(Compression::GzipMembers(400_000)))
        .layer(layer(2).compression(Compression::ZstdFrames(100_000)))
        .layer(layer(3).compression(Compression::None))
        .layer(Layer::new())
        .write(&scratch.join("source"), "i")
}

/// What the tar has of a file.
fn content(number: u64, at: u64) -> Result<Vec<u8>> {
    let plain = layer(number).plain()?;
    let mut archive = tar::Archive::new(&plain[..]);
    let mut entry = archive.entries()?.nth(at as usize).context("no entry")??;
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    Ok(content)
}

fn stored_len(image: &Image) -> u64 {
    image.layers.iter().map(|layer| layer.stored_len).sum()
}

#[test]
fn privileged_an_indexed_image_is_lazy_and_unchanged() -> Result<()> {
    let scratch = Scratch::new("index")?;
    let image = image(&scratch)?;
    let before = image.layout.top(&image.tag)?;
    let report = sluice::json(["index", &image.reference()])?;
    assert_eq!(image.layout.top(&image.tag)?, before, "the image stays as it is");
    assert_eq!(text(&report, "/manifest_digest")?, before.0);
    assert_eq!(array(&report, "/layers")?.len(), 5);
    let whole = stored_len(&image);
    let registry = CountingRegistry::serve(&image.layout)?;
    for front in FRONTS {
        registry.traffic().clear();
        let mounted = Mounting::new(&registry.reference(&image.tag), front).mount()?;
        let moved = registry.traffic().total_bytes();
        ensure!(
            moved * 20 < whole,
            "{front}: mounting moved {moved} of {whole} bytes\n{}",
            registry.traffic().describe()
        );
        registry.traffic().clear();
        for number in 0..4 {
            let found = fs::read(mounted.directory.join(name(number, 7)))?;
            ensure!(
                found == content(number, 7)?,
                "{front}: wrong bytes in layer {number}"
            );
        }
        let moved = registry.traffic().bytes(Class::Blob);
        ensure!(
            moved * 2 < whole,
            "{front}: reading 4 of {} files moved {moved} of {whole} bytes",
            4 * FILES
        );
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_indexes_in_a_registry_are_found_and_remembered() -> Result<()> {
    let scratch = Scratch::new("index-registry")?;
    let source = image(&scratch)?;
    let registry = DistributionRegistry::start()?;
    let reference = registry.reference("team/app:v1");
    let mut copy = std::process::Command::new(prerequisites::command("skopeo", "skopeo")?);
    copy.args([
        "copy",
        "--insecure-policy",
        "--dest-tls-verify=false",
        "--preserve-digests",
    ]);
    process::run(copy.args([source.reference(), reference.clone()]))?;
    let digest = source.layout.top(&source.tag)?.0;
    let report = sluice::json(["index", &reference])?;
    assert_eq!(text(&report, "/manifest_digest")?, digest);
    // Once more gives one more artifact at most, and the same indexes.
    let again = sluice::json(["index", &reference])?;
    assert_eq!(again["layers"], report["layers"]);
    let cache = scratch.directory("cache")?;
    let mounted = Mounting::new(&reference, "fuse").cache(&cache).mount()?;
    let read = fs::read(mounted.directory.join(name(0, 3)))?;
    ensure!(read == content(0, 3)?, "wrong bytes");
    mounted.unmount()?;
    // What is fetched now would fail: the registry is gone.
    drop(registry);
    let offline = Mounting::new(&reference, "fuse").cache(&cache).mount()?;
    ensure!(
        fs::read(offline.directory.join(name(0, 3)))? == read,
        "wrong bytes offline"
    );
    offline.unmount()
}

#[test]
fn indexes_can_be_written_elsewhere() -> Result<()> {
    let scratch = Scratch::new("index-output")?;
    let image = image(&scratch)?;
    let index_before = image.layout.index()?;
    let output = format!("oci:{}", scratch.join("indexes").display());
    let report = sluice::json(["index", &image.reference(), "--output", &output])?;
    assert_eq!(image.layout.index()?, index_before, "the source stays as it is");
    let digest = text(&report, "/manifest_digest")?;
    let attached = Layout::open(&scratch.join("indexes")).referrers(digest)?;
    assert_eq!(attached.len(), 1);
    assert_eq!(text(&attached[0], "/digest")?, text(&report, "/artifact_digest")?);
    Ok(())
}

#[test]
fn privileged_a_layer_in_one_piece_is_named_and_streamed() -> Result<()> {
    let scratch = Scratch::new("index-piece")?;
    let image = ImageBuilder::new()
        .layer(layer(0))
        .layer(layer(1).compression(Compression::Zstd))
        .write(&scratch.join("source"), "p")?;
    let printed = sluice::run(["index", &image.reference()])?;
    ensure!(
        printed.contains("cannot be read by ranges") && printed.contains(&image.layers[1].digest),
        "{printed}"
    );
    let report = sluice::json(["index", &image.reference()])?;
    ensure!(report["layers"][0]["refusal"].is_null() && report["layers"][1]["refusal"].is_string());
    let registry = CountingRegistry::serve(&image.layout)?;
    let mounted = Mounting::new(&registry.reference(&image.tag), "fuse").mount()?;
    let moved = registry.traffic().total_bytes();
    let piece = image.layers[1].stored_len;
    ensure!(
        (piece..piece + image.layers[0].stored_len / 4).contains(&moved),
        "{moved} bytes for a layer of {piece} bytes that is streamed"
    );
    ensure!(fs::read(mounted.directory.join(name(1, 2)))? == content(1, 2)?);
    ensure!(fs::read(mounted.directory.join(name(0, 2)))? == content(0, 2)?);
    mounted.unmount()
}

/// The layout's artifact with indexes, with the document for the first layer changed by `change`, is put in place of the right one.
fn forge(image: &Image, report: &Value, change: impl FnOnce(LayerIndex) -> Result<LayerIndex>) -> Result<()> {
    let layout = &image.layout;
    let artifact = text(report, "/artifact_digest")?;
    let mut manifest: Value = serde_json::from_slice(&layout.blob(artifact)?)?;
    let document = text(&manifest, "/layers/0/digest")?.to_owned();
    let index = LayerIndex::parse(&layout.blob(&document)?, &Limits::default())?;
    let forged = change(index)?.encode()?;
    let writer = LayoutWriter::open(&layout.directory)?;
    let put = writer.put_blob("application/vnd.sluice.index.layer.v1", &forged)?;
    for field in ["digest", "size"] {
        manifest["layers"][0][field] = put[field].clone();
    }
    let put = writer.put_blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    )?;
    let mut listed = layout.index()?;
    for entry in listed["manifests"].as_array_mut().context("no list")? {
        if entry["digest"] == artifact {
            entry["digest"] = put["digest"].clone();
            entry["size"] = put["size"].clone();
        }
    }
    fs::write(layout.directory.join("index.json"), listed.to_string())?;
    Ok(())
}

/// The index with its chunks changed, and its windows in reverse order if asked for.
fn with_chunks(
    index: &LayerIndex,
    reverse_windows: bool,
    change: impl FnOnce(&mut Vec<ChunkRef>),
) -> Result<LayerIndex> {
    let mut chunks = index.chunks.chunks().to_vec();
    change(&mut chunks);
    let mut kept = index.chunks.windows().to_vec();
    if reverse_windows {
        kept.reverse();
    }
    let chunks = ChunkTable::with_windows(chunks, kept, index.plain_len(), &Limits::default())?;
    let mut changed = index.clone();
    changed.chunks = chunks.into();
    Ok(changed)
}

/// Files of the first layer are right or give an error.
fn assert_no_wrong_byte(directory: &Path, what: &str) -> Result<usize> {
    let mut failed = 0;
    for at in 0..FILES {
        match fs::read(directory.join(name(0, at))) {
            Ok(found) => ensure!(found == content(0, at)?, "{what}: wrong bytes in file {at}"),
            Err(error) => {
                ensure!(error.kind() != ErrorKind::NotFound, "{what}: {error}");
                failed += 1;
            }
        }
    }
    Ok(failed)
}

#[test]
fn privileged_a_forged_index_never_shows_a_wrong_byte() -> Result<()> {
    type Change = fn(LayerIndex) -> Result<LayerIndex>;
    let forgeries: [(&str, Change); 3] = [
        ("windows of other places", |index| {
            with_chunks(&index, true, |_| {})
        }),
        ("other bits", |index| {
            with_chunks(&index, false, |chunks| {
                for chunk in chunks {
                    if let Codec::Deflate { bits, .. } = &mut chunk.codec {
                        *bits = (*bits + 1) % 8;
                    }
                }
            })
        }),
        ("stored ranges of other chunks", |index| {
            with_chunks(&index, false, |chunks| {
                let first = chunks[1];
                chunks[1].stored_off = chunks[2].stored_off;
                chunks[1].stored_len = chunks[2].stored_len;
                chunks[2].stored_off = first.stored_off;
                chunks[2].stored_len = first.stored_len;
            })
        }),
    ];
    for (what, change) in forgeries {
        let scratch = Scratch::new("index-forged")?;
        let image = image(&scratch)?;
        let report = sluice::json(["index", &image.reference()])?;
        forge(&image, &report, change)?;
        let mounted = Mounting::new(&image.reference(), "fuse").mount()?;
        let failed = assert_no_wrong_byte(&mounted.directory, what)?;
        ensure!(
            failed > 0,
            "{what}: the forgery was not used, so nothing was tested"
        );
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_an_index_of_another_layer_is_not_used() -> Result<()> {
    let scratch = Scratch::new("index-other")?;
    let image = image(&scratch)?;
    let report = sluice::json(["index", &image.reference()])?;
    let artifact: Value = serde_json::from_slice(&image.layout.blob(text(&report, "/artifact_digest")?)?)?;
    let second = image.layout.blob(text(&artifact, "/layers/1/digest")?)?;
    forge(&image, &report, |_| {
        Ok(LayerIndex::parse(&second, &Limits::default())?)
    })?;
    let mounted = Mounting::new(&image.reference(), "fuse").mount()?;
    assert_eq!(assert_no_wrong_byte(&mounted.directory, "another layer")?, 0);
    mounted.unmount()
}
