//! Promise: `sluice export` gives back the image that a lazily started one came from, every blob with its digest, to layouts, registries and
//! containerd; what is wrong is refused and left nowhere; without the registry the cache gives what it has, or says what it lacks.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::containerd::{Containerd, Release};
use sluice_tests::document::{Layout, array, text};
use sluice_tests::host::{Host, NAME};
use sluice_tests::images::{Compression, Entry, Image, ImageBuilder, Layer, LayoutWriter, shell};
use sluice_tests::mounted::Mounting;
use sluice_tests::registry::{Class, Countdown, CountingRegistry, DistributionRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::{process, sluice};

const FILE_LEN: u64 = 9 << 20;

/// How long a fill may take.
const FILLED: Duration = Duration::from_secs(120);

fn files(seed: u64) -> Layer {
    Layer::of([
        Entry::file(format!("small-{seed}"), format!("{seed}\n")),
        Entry::generated(format!("large-{seed}"), FILE_LEN, seed),
    ])
}

/// An image with layers of two kinds, converted.
fn converted(scratch: &Scratch) -> Result<Layout> {
    let image = ImageBuilder::new()
        .layers([
            shell()?,
            files(1),
            files(2).compression(Compression::Zstd),
            Layer::new(),
        ])
        .write(&scratch.join("source"), "i")?;
    let directory = scratch.join("converted");
    sluice::convert(&image.reference(), &directory, "c", &[])?;
    Ok(Layout::open(&directory))
}

/// All bytes of an image, by digest: the manifests that its name leads to and what they name.
fn blobs(layout: &Layout, tag: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let (digest, top) = layout.top(tag)?;
    let document: Value = serde_json::from_slice(&top)?;
    let mut found = vec![(digest.clone(), top)];
    let images = match document["manifests"].as_array() {
        None => vec![digest],
        Some(entries) => entries
            .iter()
            .map(|entry| Ok(text(entry, "/digest")?.to_owned()))
            .collect::<Result<_>>()?,
    };
    for digest in images {
        let image = layout.image_by_digest(&digest)?;
        for layer in image.layer_digests()? {
            found.push((layer.clone(), layout.blob(&layer)?));
        }
        found.push((image.image_id(), image.config_bytes));
        found.push((digest, image.manifest_bytes));
    }
    Ok(found)
}

fn count(report: &Value, origin: &str) -> Result<usize> {
    let blobs = array(report, "/blobs")?.iter();
    Ok(blobs.filter(|blob| blob["origin"] == origin).count())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// `sluice export` on a host whose cache is `cache`.
fn export(cache: &Path, arguments: &[&str]) -> Result<Value> {
    let cache = ["--cache", path(cache)?];
    sluice::json(
        ["export"]
            .into_iter()
            .chain(arguments.iter().copied())
            .chain(cache),
    )
}

/// What it says when it refuses.
fn refusal(cache: &Path, arguments: &[&str]) -> Result<String> {
    let cache = ["--cache", path(cache)?];
    sluice::refused(
        ["export"]
            .into_iter()
            .chain(arguments.iter().copied())
            .chain(cache),
    )
}

#[test]
fn privileged_a_mounted_image_is_exported_byte_by_byte() -> Result<()> {
    let scratch = Scratch::new("export")?;
    let layout = converted(&scratch)?;
    let registry = CountingRegistry::serve(&layout)?;
    let cache = scratch.directory("cache")?;
    let mounted = Mounting::new(&registry.reference("c"), "fuse")
        .cache(&cache)
        .mount()?;
    ensure!(fs::read_to_string(mounted.directory.join("small-1"))? == "1\n");
    let target = format!("oci:{}:back", scratch.join("out").display());
    let arguments = [&*registry.reference("c"), &target];
    let report = export(&cache, &arguments)?;
    mounted.unmount()?;
    ensure!(blobs(&Layout::open(&scratch.join("out")), "back")? == blobs(&layout, "c")?);
    ensure!(text(&report, "/digest")? == layout.top("c")?.0);
    ensure!(count(&report, "present")? == 0, "{report}");

    registry.traffic().clear();
    let again = export(&cache, &arguments)?;
    ensure!(
        count(&again, "present")? == array(&again, "/blobs")?.len(),
        "{again}"
    );
    let moved = registry.traffic().bytes(Class::Blob);
    ensure!(moved == 0, "what is there was fetched: {moved} bytes");
    Ok(())
}

#[test]
fn all_platforms_or_one() -> Result<()> {
    let scratch = Scratch::new("export-platforms")?;
    let cache = scratch.directory("cache")?;
    let directory = scratch.join("source");
    let writer = LayoutWriter::open(&directory)?;
    let one = |seed| -> Result<Value> {
        let image = ImageBuilder::new().layers([files(7), files(seed)]);
        Ok(image.write_untagged(&writer)?.0)
    };
    let (amd64, arm64) = (one(1)?, one(2)?);
    let image = writer.put_index(
        "i",
        &[
            (amd64.clone(), "linux", "amd64"),
            (arm64.clone(), "linux", "arm64"),
        ],
    )?;
    let target = |name: &str| format!("oci:{}:t", scratch.join(name).display());
    let open = |name: &str| Layout::open(&scratch.join(name));
    let report = export(&cache, &[&image.reference(), &target("all")])?;
    ensure!(blobs(&open("all"), "t")? == blobs(&image.layout, "i")?);
    // The layer that they share is moved once.
    ensure!(array(&report, "/blobs")?.len() == 3 + 2, "{report}");

    let archive = scratch.join("one.tar");
    let to_archive = format!("oci-archive:{}:t", archive.display());
    for target in [target("one"), to_archive.clone()] {
        export(
            &cache,
            &[&image.reference(), &target, "--platform", "linux/amd64"],
        )?;
    }
    ensure!(open("one").top("t")?.0 == text(&amd64, "/digest")?);
    ensure!(open("one").image("t")?.layer_digests()?.len() == 2);
    // An archive is read back by the same means.
    export(&cache, &[&to_archive, &target("back")])?;
    ensure!(blobs(&open("back"), "t")? == blobs(&open("one"), "t")?);
    Ok(())
}

#[test]
fn an_image_is_pushed_as_it_is() -> Result<()> {
    let scratch = Scratch::new("export-push")?;
    let cache = scratch.directory("cache")?;
    let layout = converted(&scratch)?;
    let source = CountingRegistry::serve(&layout)?;
    let registry = DistributionRegistry::start()?;
    let pushed = registry.reference("team/app:v1");
    export(&cache, &[&source.reference("c"), &pushed])?;
    let target = format!("oci:{}:t", scratch.join("out").display());
    export(&cache, &[&pushed, &target])?;
    ensure!(blobs(&Layout::open(&scratch.join("out")), "t")? == blobs(&layout, "c")?);
    // Another repository of the same registry takes the blobs over.
    let report = export(&cache, &[&pushed, &registry.reference("other/app:v1")])?;
    ensure!(count(&report, "source")? <= 1, "{report}");
    Ok(())
}

#[test]
fn privileged_containerd_gets_what_a_pull_left_out() -> Result<()> {
    let scratch = Scratch::new("export-containerd")?;
    let layout = converted(&scratch)?;
    let registry = CountingRegistry::serve(&layout)?;
    let host = Host::start(Release::One, &[])?;
    let name = format!("{}/test:c", registry.address());
    host.sluice(&["pull", &name])?;
    let archive = scratch.join("image.tar");
    let exporting = ["images", "export", path(&archive)?, &name];
    ensure!(
        host.ctr(&exporting).is_err(),
        "the layers were in containerd already"
    );

    let cache = host.cache();
    let arguments = [
        "export",
        &registry.reference("c"),
        "containerd",
        "--cache",
        path(&cache)?,
    ];
    let report = host.sluice(&arguments)?;
    ensure!(text(&report, "/digest")? == layout.top("c")?.0);
    ensure!(count(&report, "source")? == 4, "{report}");
    host.ctr(&exporting)?;
    let kept = host.sluice(&arguments)?;
    ensure!(count(&kept, "source")? == 0, "{kept}");

    // Nothing of it is garbage.
    host.ctr(&["leases", "create", "--id", "x"])?;
    host.ctr(&["leases", "rm", "--sync", "x"])?;
    let other = DistributionRegistry::start()?;
    let pushed = format!("{}/app:v1", other.address());
    host.ctr(&["images", "push", "--plain-http", &pushed, &name])?;
    let back = format!("oci:{}:t", scratch.join("back").display());
    export(&cache, &[&other.reference("app:v1"), &back])?;
    ensure!(blobs(&Layout::open(&scratch.join("back")), "t")? == blobs(&layout, "c")?);

    // Elsewhere nobody knows Sluice.
    let elsewhere = Containerd::start()?;
    process::run(&mut elsewhere.ctr(["images", "import", path(&archive)?]))?;
    let id = format!("sluice-{}-export", std::process::id());
    let script = "read a </small-2 && echo $a";
    let printed = elsewhere.run(&name, &id, &["/bin/sh", "-c", script])?;
    ensure!(printed == "2\n", "{printed}");
    Ok(())
}

#[test]
fn privileged_containerd_gets_the_image_that_it_has_although_the_tag_moved() -> Result<()> {
    let scratch = Scratch::new("export-moved")?;
    let layout = converted(&scratch)?;
    let registry = CountingRegistry::serve(&layout)?;
    let host = Host::start(Release::One, &[])?;
    let name = format!("{}/test:c", registry.address());
    host.sluice(&["pull", &name])?;
    let pulled = layout.top("c")?.0;
    let newer = ImageBuilder::new()
        .layer(files(5))
        .write(&scratch.join("newer"), "i")?;
    sluice::convert(&newer.reference(), &layout.directory, "c", &[])?;
    ensure!(layout.top("c")?.0 != pulled);
    let report = host.sluice(&[
        "export",
        &registry.reference("c"),
        "containerd",
        "--cache",
        path(&host.cache())?,
    ])?;
    ensure!(text(&report, "/digest")? == pulled);
    host.ctr(&["images", "export", path(&scratch.join("image.tar"))?, &name])?;
    Ok(())
}

/// An image with one incompressible layer, which is a plain tar.
fn plain_image(scratch: &Scratch) -> Result<Image> {
    ImageBuilder::new()
        .layer(files(1).compression(Compression::None))
        .write(&scratch.join("source"), "i")
}

#[test]
fn privileged_a_corrupt_blob_is_refused_and_left_nowhere() -> Result<()> {
    let scratch = Scratch::new("export-corrupt")?;
    let cache = scratch.directory("cache")?;
    let image = plain_image(&scratch)?;
    let registry = CountingRegistry::serve(&image.layout)?;
    // Behind the end of manifest and config.
    registry.set_faults(FaultSet::none().with(Fault::Corrupted {
        at: 9000,
        times: Countdown::always(),
    }));
    let layer = &image.layers[0].digest;
    let target = format!("oci:{}:t", scratch.join("out").display());
    let said = refusal(&cache, &[&registry.reference("i"), &target])?;
    ensure!(said.contains(layer) && said.contains("corrupt"), "{said}");
    let blobs = scratch.join("out/blobs");
    let left: Vec<_> = fs::read_dir(&blobs).into_iter().flatten().flatten().collect();
    ensure!(left.iter().all(|entry| entry.path().is_dir()), "{left:?}");
    ensure!(fs::read_dir(blobs.join("sha256")).into_iter().flatten().count() == 0);

    let host = Host::start(Release::One, &[])?;
    let socket = host.containerd.socket();
    let arguments = [
        &*registry.reference("i"),
        "containerd",
        "--address",
        path(&socket)?,
    ];
    let said = refusal(&cache, &arguments)?;
    ensure!(said.contains(layer) && said.contains("corrupt"), "{said}");
    let stored = host.ctr(&["content", "ls", "--quiet"])?;
    ensure!(!stored.contains(layer), "{stored}");
    let ingests = host.ctr(&["content", "active"])?;
    ensure!(!ingests.contains("sluice"), "{ingests}");
    ensure!(!host.ctr(&["images", "ls", "--quiet"])?.contains("test"));
    // Once spoilt on the way is no fault of the blob.
    registry.set_faults(FaultSet::none().with(Fault::Corrupted {
        at: 9000,
        times: Countdown::times(1),
    }));
    export(&cache, &arguments)?;
    ensure!(host.ctr(&["content", "ls", "--quiet"])?.contains(layer));
    Ok(())
}

/// Mounts the image until all of it is in the cache.
fn fill(reference: &str, cache: &Path) -> Result<()> {
    let mounted = Mounting::new(reference, "fuse")
        .cache(cache)
        .option("--fill")
        .mount()?;
    let complete = || -> Result<bool> {
        let listed = sluice::json(["cache", "--cache", path(cache)?, "ls"])?;
        Ok(array(&listed, "/images")?
            .iter()
            .all(|image| image["complete"] == true))
    };
    process::wait_until("the image to be complete", FILLED, || complete().unwrap_or(false))?;
    mounted.unmount()
}

#[test]
fn privileged_without_the_registry_the_cache_gives_plain_layers() -> Result<()> {
    let scratch = Scratch::new("export-plain")?;
    let layout = converted(&scratch)?;
    let mut registry = CountingRegistry::serve(&layout)?;
    let reference = registry.reference("c");
    let (empty, complete) = (scratch.directory("empty")?, scratch.directory("complete")?);
    Mounting::new(&reference, "fuse")
        .cache(&empty)
        .mount()?
        .unmount()?;
    fill(&reference, &complete)?;
    registry.vanish();
    let image = layout.image("c")?;
    let target = |name: &str| format!("oci:{}:t", scratch.join(name).display());

    let said = refusal(&complete, &[&reference, &target("original")])?;
    ensure!(
        said.contains("--plain") && image.layer_digests()?.iter().any(|layer| said.contains(layer)),
        "{said}"
    );
    let said = refusal(&empty, &[&reference, &target("incomplete"), "--plain"])?;
    ensure!(
        said.contains("not complete in the cache") && said.contains(&image.layer_digests()?[0]),
        "{said}"
    );
    let report = export(&complete, &[&reference, &target("out"), "--plain"])?;
    let exported = Layout::open(&scratch.join("out"));
    let plain = exported.image("t")?;
    ensure!(plain.image_id() == image.image_id());
    ensure!(plain.layer_digests()? == image.diff_ids()?);
    ensure!(text(&report, "/digest")? == plain.manifest_digest);
    for layer in plain.layer_digests()? {
        exported.blob(&layer)?;
    }
    // The same files by every measure.
    let source = format!("oci:{}:i", scratch.join("source").display());
    sluice::run(["check", &target("out"), "--against", &source])?;
    Ok(())
}

#[test]
fn privileged_without_the_registry_containerd_gets_plain_layers() -> Result<()> {
    let scratch = Scratch::new("export-plain-containerd")?;
    let layout = converted(&scratch)?;
    let mut registry = CountingRegistry::serve(&layout)?;
    let reference = registry.reference("c");
    let host = Host::start(Release::One, &[])?;
    let name = format!("{}/test:c", registry.address());
    host.sluice(&["pull", &name])?;
    // Both processes use one cache.
    fill(&reference, &host.cache())?;
    registry.vanish();
    let cache = host.cache();
    let report = host.sluice(&[
        "export",
        &reference,
        "containerd",
        "--plain",
        "--cache",
        path(&cache)?,
    ])?;
    ensure!(count(&report, "cache")? == 4, "{report}");
    let archive = scratch.join("image.tar");
    host.ctr(&["images", "export", path(&archive)?, &name])?;
    let elsewhere = Containerd::start()?;
    process::run(&mut elsewhere.ctr(["images", "import", path(&archive)?]))?;
    let id = format!("sluice-{}-plain", std::process::id());
    let script = "read a </small-1 && echo $a";
    let printed = elsewhere.run(&name, &id, &["/bin/sh", "-c", script])?;
    ensure!(printed == "1\n", "{printed}");
    // The containers of this host go on with the same layers.
    let id = format!("sluice-{}-served", std::process::id());
    let printed = host
        .containerd
        .run_on(NAME, &name, &id, &["/bin/sh", "-c", script])?;
    ensure!(printed == "1\n", "{printed}");
    Ok(())
}

#[test]
fn privileged_layers_that_are_stored_plain_come_from_the_cache() -> Result<()> {
    let scratch = Scratch::new("export-local")?;
    let image = plain_image(&scratch)?;
    let mut registry = CountingRegistry::serve(&image.layout)?;
    let cache = scratch.directory("cache")?;
    let reference = registry.reference("i");
    Mounting::new(&reference, "fuse")
        .cache(&cache)
        .mount()?
        .unmount()?;
    registry.vanish();
    let target = format!("oci:{}:t", scratch.join("out").display());
    let report = export(&cache, &[&reference, &target])?;
    ensure!(count(&report, "cache")? == 1, "{report}");
    ensure!(blobs(&Layout::open(&scratch.join("out")), "t")? == blobs(&image.layout, "i")?);
    Ok(())
}

#[test]
fn containerd_is_named_when_it_does_not_run() -> Result<()> {
    let scratch = Scratch::new("export-nobody")?;
    let cache = scratch.directory("cache")?;
    let image = plain_image(&scratch)?;
    let socket = scratch.join("nobody.sock");
    let arguments = [
        &*image.reference(),
        "containerd:host/a:t",
        "--address",
        path(&socket)?,
    ];
    let said = refusal(&cache, &arguments)?;
    ensure!(said.contains("does it run?"), "{said}");
    let said = refusal(&cache, &[&image.reference(), "containerd"])?;
    ensure!(said.contains("containerd:NAME"), "{said}");
    Ok(())
}
