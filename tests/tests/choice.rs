//! Promise: which layers of an image come whole is chosen by one policy, can be asked for, and is what then happens: lazy fetches what is read,
//! whole everything, auto what pays.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::containerd::Release;
use sluice_tests::document::{Layout, array};
use sluice_tests::host::{Host, NAME};
use sluice_tests::images::{Entry, ImageBuilder, Layer, shell};
use sluice_tests::mounted::{Mounted, Mounting};
use sluice_tests::registry::{Class, CountingRegistry};
use sluice_tests::scratch::Scratch;
use sluice_tests::{process, sluice};

/// Plain bytes of the files of the long layers; an eighth of them remains when compressed.
const FIRST_LEN: u64 = 24 << 20;
const SECOND_LEN: u64 = 36 << 20;

/// How long what is fetched in the background may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long it is watched that nothing more comes: much longer than it takes when it comes.
const WATCHED: Duration = Duration::from_secs(2);

/// Position of the short layer, of the long one with two files, and of the one that nobody reads.
const SHORT: usize = 1;
const LONG: usize = 2;
const OTHER: usize = 3;

struct Lazy {
    registry: CountingRegistry,
    reference: String,
    diff_ids: Vec<String>,
    stored_len: u64,
    scratch: Scratch,
}

impl Lazy {
    fn new() -> Result<Self> {
        let scratch = Scratch::new("choice")?;
        let short = (0..8).map(|at| Entry::generated(format!("short-{at}"), 300_000, at));
        let layers = [
            shell()?.entry(Entry::fifo("pipe")),
            Layer::of(short),
            Layer::of([
                Entry::generated("first", FIRST_LEN, 21),
                Entry::generated("second", SECOND_LEN, 22),
            ]),
            Layer::of([Entry::generated("other", FIRST_LEN, 23)]),
        ];
        let image = ImageBuilder::new()
            .layers(layers)
            .write(&scratch.join("source"), "i")?;
        let directory = scratch.join("converted");
        sluice::convert(&image.reference(), &directory, "c", &[])?;
        let layout = Layout::open(&directory);
        let documents = layout.image("c")?;
        let registry = CountingRegistry::serve(&layout)?;
        Ok(Self {
            reference: registry.reference("c"),
            diff_ids: documents.diff_ids()?,
            stored_len: documents.stored_len()?,
            registry,
            scratch,
        })
    }

    /// Mounts the image into a cache of its own.
    fn mount(&self, name: &str, layers: &str) -> Result<Mounted> {
        self.registry.traffic().clear();
        let cache = self.scratch.directory(name)?;
        let mounting = Mounting::new(&self.reference, "fuse").cache(&cache);
        mounting.option("--layers").option(layers).mount()
    }

    /// Whether each layer is complete in a cache.
    fn complete(&self, cache: &Path) -> Result<Vec<bool>> {
        let cache = cache.to_str().context("the path is not UTF-8")?;
        let listed = sluice::json(["cache", "--cache", cache, "ls"])?;
        let entries = array(&listed, "/layers")?;
        let is_complete = |diff_id: &String| {
            let entry = entries.iter().find(|entry| entry["diff_id"] == diff_id.as_str());
            entry.is_some_and(|entry| entry["complete"] == true)
        };
        Ok(self.diff_ids.iter().map(is_complete).collect())
    }

    fn wait_complete(&self, cache: &Path, layer: usize) -> Result<()> {
        process::wait_until("a layer to be complete", PATIENCE, || {
            self.complete(cache).is_ok_and(|complete| complete[layer])
        })
    }

    fn moved(&self) -> u64 {
        self.registry.traffic().bytes(Class::Blob)
    }
}

/// Reads a file from end to end, in order.
fn read(mounted: &Mounted, name: &str) -> Result<()> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(mounted.directory.join(name))?);
    io::copy(&mut file, &mut io::sink())?;
    Ok(())
}

#[test]
fn privileged_lazy_stays_lazy_and_whole_brings_everything() -> Result<()> {
    let image = Lazy::new()?;
    let lazy = image.mount("lazy", "lazy")?;
    read(&lazy, "second")?;
    read(&lazy, "short-3")?;
    std::thread::sleep(WATCHED);
    let complete = image.complete(&lazy.cache)?;
    ensure!(
        !complete[LONG] && !complete[OTHER],
        "read and not read: {complete:?}\n{}",
        image.registry.traffic().describe()
    );
    let moved = image.moved();
    ensure!(
        moved * 10 < image.stored_len * 8,
        "{moved} of {}",
        image.stored_len
    );
    lazy.unmount()?;

    let whole = image.mount("whole", "whole")?;
    for layer in 0..image.diff_ids.len() {
        image.wait_complete(&whole.cache, layer)?;
    }
    let moved = image.moved();
    ensure!(
        moved >= image.stored_len * 9 / 10 && moved < image.stored_len * 11 / 10,
        "{moved} of {}: each byte once",
        image.stored_len
    );
    whole.unmount()
}

#[test]
fn privileged_auto_brings_what_pays() -> Result<()> {
    let image = Lazy::new()?;
    let auto = image.mount("auto", "auto")?;
    std::thread::sleep(WATCHED);
    let moved = image.moved();
    ensure!(moved * 10 < image.stored_len, "nobody has read yet: {moved}");
    read(&auto, "short-3")?;
    image.wait_complete(&auto.cache, SHORT)?;
    // More than half of the layer, in order: the rest is behind the reader.
    read(&auto, "second")?;
    image.wait_complete(&auto.cache, LONG)?;
    ensure!(!image.complete(&auto.cache)?[OTHER]);
    auto.unmount()
}

#[test]
fn privileged_an_image_that_starts_read_nearly_all_of_comes_whole() -> Result<()> {
    let image = Lazy::new()?;
    let first = image.mount("first", "lazy")?;
    for name in ["second", "other", "short-1"] {
        read(&first, name)?;
    }
    let first_cache = first.cache.clone();
    first.unmount()?;
    let profile = image.scratch.join("a.profile");
    let (profile, cache) = (profile.display().to_string(), first_cache.display().to_string());
    sluice::run(["profile", "export", &image.reference, &profile, "--cache", &cache])?;
    let cache = image.scratch.directory("next")?.display().to_string();
    sluice::run(["profile", "import", &profile, "--cache", &cache])?;
    let next = image.mount("next", "auto")?;
    // Also what no start has read.
    image.wait_complete(&next.cache, LONG)?;
    image.wait_complete(&next.cache, 0)?;
    next.unmount()
}

#[test]
fn privileged_a_label_of_a_container_goes_before_the_service() -> Result<()> {
    let image = Lazy::new()?;
    let host = Host::start(Release::One, &["--layers", "lazy"])?;
    let name = format!("{}/test:c", image.registry.address());
    let pulled: Value = host.sluice(&["pull", &name])?;
    ensure!(pulled["served"] == 4, "{pulled}");
    let id = |which: &str| format!("sluice-{}-choice-{which}", std::process::id());
    let run = |which: &str, labels: &[&str]| -> Result<()> {
        let id = id(which);
        let start = ["run", "-d", "--snapshotter", NAME];
        let command = [&name, &id, "/bin/sh", "-c", "read a </pipe"];
        host.ctr(&[&start, labels, &command].concat()).map(drop)
    };
    run("lazy", &[])?;
    std::thread::sleep(WATCHED);
    let complete = image.complete(&host.cache())?;
    ensure!(
        !complete[LONG] && !complete[OTHER],
        "{complete:?}\n{}",
        host.log()
    );
    let label = "containerd.io/snapshot/sluice.layers=whole";
    run("whole", &["--snapshotter-label", label])?;
    for layer in 0..image.diff_ids.len() {
        let waited = image.wait_complete(&host.cache(), layer);
        waited.with_context(|| host.log())?;
    }
    for which in ["lazy", "whole"] {
        host.ctr(&["tasks", "rm", "-f", &id(which)])?;
        host.ctr(&["containers", "rm", &id(which)])?;
    }
    let log = host.log();
    let told = log
        .lines()
        .filter(|line| line.contains("chose which layers come whole"));
    ensure!(told.clone().count() == 2, "{log}");
    ensure!(
        told.clone()
            .any(|line| line.contains("asked for") && line.contains(&name)),
        "{log}"
    );
    Ok(())
}

#[test]
fn unknown_words_are_refused() -> Result<()> {
    let scratch = Scratch::new("choice-words")?;
    let said = process::run_refused(
        sluice::command(["mount", "oci:x", ".", "--layers", "some"])?.current_dir(&*scratch),
    )?;
    ensure!(said.contains("\"auto\", \"lazy\" and \"whole\""), "{said}");
    ensure!(fs::read_dir(&*scratch)?.count() == 0);
    Ok(())
}
