//! Promise: what starts of an image read can be looked at, carried by hand, travels beside the image without changing it, and is in memory
//! when the next start asks for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_format::profile::{Demand, ProfileLayer};
use sluice_format::{Limits, Profile};
use sluice_tests::document::{Layout, array, text};
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::mounted::Mounting;
use sluice_tests::registry::{CountingRegistry, DistributionRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

/// Length of the files of the image.
const FILE_LEN: u64 = 600_000;

/// How long an end may take to be complete.
const PATIENCE: Duration = Duration::from_secs(15);

/// A converted image of two layers, each with one file, and a profile of it.
struct Started {
    scratch: Scratch,
    reference: String,
    image_id: String,
    /// The profile as a file.
    file: PathBuf,
}

impl Started {
    fn new() -> Result<Self> {
        let scratch = Scratch::new("profile")?;
        let lower = Layer::of([Entry::generated("lower.bin", FILE_LEN, 1)]);
        let upper = Layer::of([Entry::generated("upper.bin", FILE_LEN, 2)]);
        let builder = ImageBuilder::new().layer(lower).layer(upper);
        let image = builder.write(&scratch.join("source"), "t")?;
        let reference = sluice::convert(&image.reference(), &scratch.join("converted"), "c", &[])?;
        let documents = image.layout.image("t")?;
        let image_id = documents.image_id();
        let layer = |at: usize, first_ms: u32| -> Result<ProfileLayer> {
            let demand = Demand {
                plain_off: 1024,
                plain_len: 300_000,
                first_ms,
                seen: 2,
                missed: 0,
            };
            Ok(ProfileLayer {
                diff_id: image.layers[at].diff_id.parse()?,
                demands: vec![demand],
            })
        };
        let layers = vec![layer(0, 250)?, layer(1, 0)?];
        let profile = Profile::new(image_id.parse()?, 2, layers, &Limits::default())?;
        let file = scratch.join("a.profile");
        fs::write(&file, profile.encode()?)?;
        Ok(Self {
            scratch,
            reference,
            image_id,
            file,
        })
    }

    fn cache(&self, name: &str) -> String {
        self.scratch.join(name).display().to_string()
    }

    /// What `sluice profile export` writes.
    fn exported(&self, cache: &str) -> Result<Vec<u8>> {
        let file = self.scratch.join("exported");
        let path = file.display().to_string();
        sluice::run(["profile", "export", &self.image_id, &path, "--cache", cache])?;
        Ok(fs::read(file)?)
    }

    fn import(&self, cache: &str) -> Result<String> {
        let file = self.file.display().to_string();
        sluice::run(["profile", "import", &file, "--cache", cache])
    }
}

#[test]
fn a_profile_is_shown_with_its_files_and_listed_and_removed() -> Result<()> {
    let started = Started::new()?;
    let cache = started.cache("cache");
    started.import(&cache)?;
    let shown = sluice::json(["profile", "show", &started.reference, "--cache", &cache])?;
    assert_eq!(text(&shown, "/image_id")?, started.image_id);
    assert_eq!(shown["runs"], 2);
    let order: Vec<(&Value, &Value, &Value)> = array(&shown, "/demands")?
        .iter()
        .map(|demand| (&demand["first_ms"], &demand["layer"], &demand["files"][0]))
        .collect();
    let expected = serde_json::json!([[0, 2, "/upper.bin"], [250, 1, "/lower.bin"]]);
    assert_eq!(serde_json::json!(order), expected);
    let image = &shown["image"];
    assert_eq!(image["planned_chunks"], 4, "two chunks hold each range");
    ensure!(
        image["planned_stored_len"].as_u64() < image["stored_len"].as_u64(),
        "{shown}"
    );
    let printed = sluice::run(["profile", "show", &started.image_id, "--cache", &cache])?;
    ensure!(
        printed.contains("2 starts, 2 ranges") && printed.contains("1024+300000"),
        "{printed}"
    );
    let listed = sluice::run(["profile", "ls", "--cache", &cache])?;
    ensure!(listed.contains(&started.image_id), "{listed}");
    sluice::run(["profile", "rm", &started.reference, "--cache", &cache])?;
    assert_eq!(sluice::run(["profile", "ls", "--cache", &cache])?, "");
    let refused = sluice::refused(["profile", "rm", &started.image_id, "--cache", &cache])?;
    ensure!(refused.contains("no profile"), "{refused}");
    Ok(())
}

#[test]
fn a_profile_is_carried_as_a_file() -> Result<()> {
    let started = Started::new()?;
    let cache = started.cache("cache");
    let refused = sluice::refused(["profile", "show", &started.reference, "--cache", &cache])?;
    ensure!(refused.contains("mount it once and let it start"), "{refused}");
    started.import(&cache)?;
    assert_eq!(started.exported(&cache)?, fs::read(&started.file)?);
    let mut damaged = fs::read(&started.file)?;
    damaged[120] ^= 1;
    fs::write(&started.file, damaged)?;
    let file = started.file.display().to_string();
    let refused = sluice::refused(["profile", "import", &file, "--cache", &cache])?;
    ensure!(
        refused.contains(&file) && refused.contains("corrupt"),
        "{refused}"
    );
    Ok(())
}

/// Pushes from one cache and pulls into another.
fn check_travel(started: &Started, image: &str) -> Result<()> {
    let (here, there) = (started.cache("here"), started.cache("there"));
    started.import(&here)?;
    let refused = sluice::refused(["profile", "pull", image, "--cache", &there])?;
    ensure!(refused.contains("no profile is attached"), "{refused}");
    let refused = sluice::refused(["profile", "push", image, "--cache", &there])?;
    ensure!(refused.contains("mount it once and let it start"), "{refused}");
    let before = sluice::json(["inspect", image])?;
    sluice::run(["profile", "push", image, "--cache", &here])?;
    sluice::run(["profile", "push", image, "--cache", &here])?;
    let after = sluice::json(["inspect", image])?;
    assert_eq!(after, before, "the image stays as it is");
    sluice::run(["profile", "pull", image, "--cache", &there])?;
    assert_eq!(started.exported(&there)?, fs::read(&started.file)?);
    Ok(())
}

#[test]
fn a_profile_travels_with_an_image_in_a_registry_without_the_referrers_api() -> Result<()> {
    let started = Started::new()?;
    let registry = DistributionRegistry::start()?;
    let target = registry.reference("team/app:v1");
    sluice::run(["convert", &started.reference, &target])?;
    check_travel(&started, &target)
}

#[test]
fn a_profile_travels_with_an_image_in_a_layout_that_still_has_one_image() -> Result<()> {
    let started = Started::new()?;
    check_travel(&started, &started.reference)?;
    let directory = started.scratch.join("converted");
    let untagged = format!("oci:{}", directory.display());
    let inspected = sluice::json(["inspect", &untagged])?;
    let (digest, _) = Layout::open(Path::new(&directory)).top("c")?;
    assert_eq!(text(&inspected, "/digest")?, digest);
    Ok(())
}

/// Chunks of the upper layer that a program has asked the server for.
fn touched(stats: &Path) -> Result<Vec<u64>> {
    let stats: Value = serde_json::from_slice(&fs::read(stats)?)?;
    let touches = array(&stats, "/touches")?.iter();
    let upper = touches.filter(|touch| touch["layer"] == 1);
    Ok(upper.filter_map(|touch| touch["chunk"].as_u64()).collect())
}

#[test]
fn privileged_what_starts_read_is_in_the_page_cache_before_it_is_asked_for() -> Result<()> {
    let started = Started::new()?;
    let stats = started.scratch.join("stats");
    // One start in eight is left alone, to be learnt from.
    for attempt in 0..12 {
        let cache = started.cache(&format!("cache-{attempt}"));
        started.import(&cache)?;
        let mounting = Mounting::new(&started.reference, "erofs").cache(Path::new(&cache));
        let mounted = mounting.option(&format!("--stats={}", stats.display())).mount()?;
        thread::sleep(Duration::from_secs(1));
        let bytes = fs::read(mounted.directory.join("upper.bin"))?;
        assert_eq!(bytes.len() as u64, FILE_LEN);
        mounted.unmount()?;
        ensure!(
            touched(&stats)?.contains(&2),
            "more was read ahead than was demanded"
        );
        let learnt = Profile::parse(&started.exported(&cache)?, &Limits::default())?;
        let known = Profile::parse(&fs::read(&started.file)?, &Limits::default())?;
        ensure!(learnt.plain_len() > known.plain_len(), "what is new is learnt");
        // Where the program itself has asked for the beginning, that has been seen once more.
        let seen = |profile: &Profile| profile.layers()[1].demands[0].seen;
        if seen(&learnt) != seen(&known) {
            continue;
        }
        return Ok(());
    }
    bail!("no start was read ahead of")
}

#[test]
fn privileged_nothing_is_left_of_a_mount_that_ends_while_pages_are_read_ahead() -> Result<()> {
    let started = Started::new()?;
    let slow = FaultSet::none().with(Fault::Latency(Duration::from_millis(30)));
    let registry = CountingRegistry::serve_with(&Layout::open(&started.scratch.join("converted")), slow)?;
    for moment in 0..24 {
        let cache = started.cache(&format!("cache-{moment}"));
        started.import(&cache)?;
        let mounting = Mounting::new(&registry.reference("c"), "erofs").cache(Path::new(&cache));
        let mut mounted = mounting.mount()?;
        thread::sleep(Duration::from_millis(moment * 5));
        if moment % 2 == 0 {
            mounted
                .unmount()
                .with_context(|| format!("after {moment} x 5 ms"))?;
            continue;
        }
        mounted.signal(Signal::SIGKILL)?;
        mounted.wait_end(PATIENCE)?;
        mounted
            .wait_nothing_left(PATIENCE)
            .with_context(|| format!("after {moment} x 5 ms"))?;
    }
    Ok(())
}
