//! Promise: conversion keeps the image. Config bytes, image ID and DiffIDs stay, every other tool takes the result as an
//! ordinary image, and the same input always gives the same digests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::containerd::Containerd;
use sluice_tests::document::{self, ImageDocuments, Layout, array, text};
use sluice_tests::images::{Compression, Entry, Image, ImageBuilder, Layer, LayoutWriter, edge};
use sluice_tests::registry::{CountingRegistry, DistributionRegistry};
use sluice_tests::scratch::Scratch;
use sluice_tests::{debian, mountinfo, prerequisites, process, sluice};

const INDEX_ANNOTATION: &str = "containerd.io/snapshot/sluice.index";

fn layout_of(reference: &str) -> Result<(Layout, String)> {
    let rest = reference.strip_prefix("oci:").context("not a layout")?;
    let (directory, tag) = rest.rsplit_once(':').context("no tag")?;
    Ok((Layout::open(Path::new(directory)), tag.to_owned()))
}

fn documents(reference: &str) -> Result<ImageDocuments> {
    let (layout, tag) = layout_of(reference)?;
    layout.image(&tag)
}

/// A manifest without what conversion has to change: the stored form of the layers.
fn without_stored_form(manifest: &Value) -> Value {
    let mut manifest = manifest.clone();
    for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
        for changing in ["digest", "size", "mediaType", "annotations"] {
            layer.as_object_mut().map(|layer| layer.remove(changing));
        }
    }
    manifest
}

fn assert_same_image(source: &str, converted: &str) -> Result<()> {
    let (before, after) = (documents(source)?, documents(converted)?);
    assert_eq!(before.config_bytes, after.config_bytes, "config bytes");
    assert_eq!(before.image_id(), after.image_id());
    assert_eq!(
        without_stored_form(&before.manifest),
        without_stored_form(&after.manifest)
    );
    assert_eq!(before.diff_ids()?.len(), after.layer_digests()?.len());
    for layer in array(&after.manifest, "/layers")? {
        ensure!(
            layer["annotations"][INDEX_ANNOTATION].is_string(),
            "a layer without index: {layer}"
        );
        assert_eq!(
            text(layer, "/mediaType")?,
            "application/vnd.oci.image.layer.v1.tar+zstd"
        );
    }
    Ok(())
}

/// Runs `program` of a Debian package with these arguments.
fn run<'a>(program: &str, package: &str, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    process::run(Command::new(prerequisites::command(program, package)?).args(arguments))
}

fn small_image(scratch: &Scratch) -> Result<Image> {
    let first = Layer::of([
        Entry::directory("d", 0o755),
        Entry::generated("d/large", 3_000_000, 1),
    ]);
    let second = Layer::of((0..500).map(|at| Entry::generated(format!("d/{at}"), at * 50, at)));
    let third =
        Layer::of([Entry::whiteout("d/7"), Entry::file("d/8", b"new")]).compression(Compression::Zstd);
    ImageBuilder::new()
        .layers([first, second, third])
        .annotations(json!({"org.example.anything": "kept"}))
        .write(&scratch.join("source"), "small")
}

#[test]
fn config_image_id_and_diff_ids_stay() -> Result<()> {
    let scratch = Scratch::new("ids")?;
    for image in [small_image(&scratch)?, edge::write(&scratch.join("edge"))?] {
        let converted = sluice::convert(&image.reference(), &scratch.join("converted"), &image.tag, &[])?;
        assert_same_image(&image.reference(), &converted)?;
    }
    Ok(())
}

#[test]
fn privileged_a_real_image_stays_the_same_image() -> Result<()> {
    for tag in [debian::SMALL, debian::LARGE] {
        assert_same_image(&debian::reference(tag)?, &debian::converted(tag)?)?;
    }
    Ok(())
}

#[test]
fn every_plain_layer_comes_back_byte_for_byte_from_an_ordinary_zstd_decoder() -> Result<()> {
    let scratch = Scratch::new("plain")?;
    let image = edge::write(&scratch.join("source"))?;
    let converted = sluice::convert(&image.reference(), &scratch.join("converted"), "c", &[])?;
    let (layout, tag) = layout_of(&converted)?;
    let after = layout.image(&tag)?;
    for (digest, diff_id) in after.layer_digests()?.iter().zip(after.diff_ids()?) {
        // `zstd -d` in another process: a decoder that knows nothing of our index.
        let blob = layout.blob_path(digest)?;
        let zstd = prerequisites::command("zstd", "zstd")?;
        let output = process::output(Command::new(zstd).args(["-d", "-c", "-q"]).arg(blob))?;
        ensure!(output.status.success());
        assert_eq!(document::digest(&output.stdout), diff_id);
    }
    Ok(())
}

#[test]
fn privileged_containerd_without_sluice_runs_a_converted_image() -> Result<()> {
    let (layout, tag) = layout_of(&debian::converted(debian::SMALL)?)?;
    let registry = CountingRegistry::serve(&layout)?;
    let containerd = Containerd::start()?;
    let reference = format!("{}/test:{tag}", registry.address());
    containerd.pull(&reference)?;
    ensure!(containerd.run(&reference, "converted", &[])?.contains("READY"));
    Ok(())
}

#[test]
fn privileged_skopeo_and_umoci_take_a_converted_image() -> Result<()> {
    let scratch = Scratch::new("skopeo")?;
    let converted = debian::converted(debian::SMALL)?;
    let at = |name: &str| scratch.join(name).display().to_string();
    // skopeo decompresses every layer and compares it with its DiffID.
    let decompressed = format!("dir:{}", at("decompressed"));
    let flags = ["copy", "--insecure-policy", "--dest-decompress"];
    run(
        "skopeo",
        "skopeo",
        flags
            .into_iter()
            .chain([converted.as_str(), decompressed.as_str()]),
    )?;
    // umoci 0.4 knows no zstd, so it gets the same layers as gzip.
    let gzip = format!("oci:{}:gzip", at("gzip"));
    run(
        "skopeo",
        "skopeo",
        ["copy", "--insecure-policy", decompressed.as_str(), gzip.as_str()],
    )?;
    assert_eq!(documents(&gzip)?.diff_ids()?, documents(&converted)?.diff_ids()?);
    let (image, bundle) = (format!("{}:gzip", at("gzip")), at("bundle"));
    run(
        "umoci",
        "umoci",
        ["unpack", "--image", image.as_str(), bundle.as_str()],
    )?;
    ensure!(scratch.join("bundle/rootfs").join(debian::APPLICATION).is_file());
    Ok(())
}

#[test]
fn privileged_podman_loads_and_runs_a_converted_image() -> Result<()> {
    let scratch = Scratch::new("podman")?;
    prerequisites::root()?;
    let archive = scratch.join("image.tar").display().to_string();
    let target = format!("oci-archive:{archive}:example.org/converted:latest");
    let converted = debian::converted(debian::SMALL)?;
    run(
        "skopeo",
        "skopeo",
        ["copy", "--insecure-policy", converted.as_str(), target.as_str()],
    )?;
    // podman takes no longer path than 50 bytes here, and a checkout may lie deep.
    let short = tempfile::Builder::new().prefix("sl-").tempdir_in("/run")?;
    let (root, run_root) = (
        scratch.join("root").display().to_string(),
        short.path().display().to_string(),
    );
    let place = [
        "--root",
        &root,
        "--runroot",
        &run_root,
        "--storage-driver",
        "overlay",
    ];
    let quiet = ["--cgroup-manager", "cgroupfs", "--events-backend", "file"];
    let podman = |arguments: &[&str]| {
        run(
            "podman",
            "podman",
            place.iter().chain(&quiet).chain(arguments).copied(),
        )
    };
    podman(&["load", "--quiet", "--input", &archive])?;
    // The limits that podman raises by default may be above what this machine allows.
    let limits = [
        "--network",
        "host",
        "--ulimit",
        "nofile=1000:1000",
        "--ulimit",
        "nproc=1000:1000",
    ];
    let container = ["run", "--rm"]
        .iter()
        .chain(&limits)
        .chain(&["example.org/converted:latest"])
        .copied();
    let printed = podman(&container.collect::<Vec<_>>())?;
    mountinfo::detach_all_under(&scratch);
    mountinfo::detach_all_under(short.path());
    ensure!(printed.contains("READY"), "{printed}");
    Ok(())
}

#[test]
fn the_same_input_gives_the_same_digests_whatever_the_path() -> Result<()> {
    let scratch = Scratch::new("stable")?;
    let image = small_image(&scratch)?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let archive = format!("oci-archive:{}:small", scratch.join("a.tar").display());
    run(
        "skopeo",
        "skopeo",
        [
            "copy",
            "--insecure-policy",
            image.reference().as_str(),
            archive.as_str(),
        ],
    )?;
    let in_registry = registry.reference("small");
    let sources = [image.reference(), in_registry, archive];
    let options: [&[&str]; 5] = [&[], &["--jobs", "1"], &["--jobs", "2"], &["--jobs", "4"], &[]];
    let mut digests = Vec::new();
    for (at, source) in sources.iter().enumerate() {
        for (variant, options) in options.iter().enumerate() {
            let converted = sluice::convert(source, &scratch.join(format!("{at}-{variant}")), "c", options)?;
            digests.push(documents(&converted)?.manifest_digest);
        }
    }
    ensure!(digests.iter().all(|digest| *digest == digests[0]), "{digests:#?}");
    Ok(())
}

#[test]
fn converting_a_converted_image_changes_nothing() -> Result<()> {
    let scratch = Scratch::new("twice")?;
    let image = small_image(&scratch)?;
    let once = sluice::convert(&image.reference(), &scratch.join("once"), "c", &[])?;
    let twice = sluice::convert(&once, &scratch.join("twice"), "c", &[])?;
    assert_eq!(
        documents(&once)?.manifest_digest,
        documents(&twice)?.manifest_digest
    );
    Ok(())
}

#[test]
fn a_converted_image_survives_a_push_to_a_real_registry() -> Result<()> {
    let scratch = Scratch::new("push")?;
    let image = small_image(&scratch)?;
    let registry = DistributionRegistry::start()?;
    let (gzip, converted) = (registry.reference("in:gzip"), registry.reference("out:sluice"));
    let flags = ["copy", "--insecure-policy", "--dest-tls-verify=false"];
    run(
        "skopeo",
        "skopeo",
        flags
            .into_iter()
            .chain([image.reference().as_str(), gzip.as_str()]),
    )?;
    sluice::run(["convert", &gzip, &converted, "--plain-http"])?;
    let local = sluice::convert(&image.reference(), &scratch.join("local"), "c", &[])?;
    let back = sluice::convert(&converted, &scratch.join("back"), "c", &["--plain-http"])?;
    assert_eq!(
        documents(&back)?.manifest_digest,
        documents(&local)?.manifest_digest
    );
    sluice::run([
        "check",
        &converted,
        "--against",
        &image.reference(),
        "--plain-http",
    ])?;
    Ok(())
}

#[test]
fn an_image_index_is_kept_whole() -> Result<()> {
    let scratch = Scratch::new("platforms")?;
    let writer = LayoutWriter::open(&scratch.join("source"))?;
    let shared = Layer::of([Entry::generated("shared", 1_000_000, 9)]);
    let image = |architecture: &str, own: &[u8]| {
        let builder = ImageBuilder::new()
            .layer(shared.clone())
            .layer(Layer::of([Entry::file("own", own)]));
        builder
            .config("/architecture", architecture.into())
            .write_untagged(&writer)
    };
    let (amd64, _) = image("amd64", b"1")?;
    let (arm64, _) = image("arm64", b"2")?;
    let attestation = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": writer.put_blob("application/vnd.oci.image.config.v1+json", b"{\"architecture\":\"unknown\",\"os\":\"unknown\"}")?,
        "layers": [writer.put_blob("application/vnd.in-toto+json", b"{\"a\": \"statement\"}")?],
    });
    let mut attestation = writer.put_blob(
        "application/vnd.oci.image.manifest.v1+json",
        attestation.to_string().as_bytes(),
    )?;
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let manifests = [
        (amd64, "linux", "amd64"),
        (arm64, "linux", "arm64"),
        (attestation.clone(), "unknown", "unknown"),
    ];
    let source = writer.put_index("all", &manifests)?;

    let converted = sluice::convert(&source.reference(), &scratch.join("converted"), "all", &[])?;
    let (layout, tag) = layout_of(&converted)?;
    let (before, after): (Value, Value) = (
        serde_json::from_slice(&source.layout.top("all")?.1)?,
        serde_json::from_slice(&layout.top(&tag)?.1)?,
    );
    assert_eq!(before["annotations"], after["annotations"]);
    let (before, after) = (array(&before, "/manifests")?, array(&after, "/manifests")?);
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(after).take(2) {
        assert_eq!(before["platform"], after["platform"]);
        let (old, new) = (
            source.layout.image_by_digest(text(before, "/digest")?)?,
            layout.image_by_digest(text(after, "/digest")?)?,
        );
        assert_eq!(old.config_bytes, new.config_bytes);
        assert_eq!(after["size"], new.manifest_bytes.len());
    }
    assert_eq!(
        before[2], after[2],
        "an attestation is no image and stays as it is"
    );
    layout.blob(text(&attestation, "/digest")?)?;

    let one = sluice::convert(
        &source.reference(),
        &scratch.join("one"),
        "arm",
        &["--platform", "linux/arm64"],
    )?;
    assert_eq!(text(&documents(&one)?.config, "/architecture")?, "arm64");
    Ok(())
}

#[test]
fn a_packed_directory_is_an_image_that_other_tools_read() -> Result<()> {
    let scratch = Scratch::new("pack")?;
    let directory = scratch.directory("tree/etc")?;
    std::fs::write(directory.join("greeting"), b"hello")?;
    let tree = scratch.join("tree").display().to_string();
    for format in ["sluice", "gzip", "tar"] {
        let target = format!("oci:{}:p", scratch.join(format).display());
        let options = ["--format", format, "--entrypoint", "/bin/greet", "--env", "A=b"];
        sluice::run(
            ["pack", tree.as_str(), target.as_str()]
                .into_iter()
                .chain(options),
        )?;
        let packed = documents(&target)?;
        assert_eq!(packed.config["config"]["Entrypoint"], json!(["/bin/greet"]));
        ensure!(array(&packed.config, "/config/Env")?.contains(&json!("A=b")));
        let decompressed = format!("dir:{}", scratch.join(format!("{format}-dir")).display());
        run(
            "skopeo",
            "skopeo",
            [
                "copy",
                "--insecure-policy",
                "--dest-decompress",
                &target,
                &decompressed,
            ],
        )?;
    }
    let target = format!("oci:{}:p", scratch.join("sluice").display());
    assert_eq!(sluice::run(["cat", target.as_str(), "/etc/greeting"])?, "hello");
    Ok(())
}
