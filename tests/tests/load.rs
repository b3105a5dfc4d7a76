//! Promise: 256 readers over 20 images, with a cache smaller than what they read, all go on and get the right bytes, in bounded memory and
//! on a bounded disk.
//!
//! Most readers share one engine in this process, as containers of one host do; the rest read through real mounts.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_format::Limits;
use sluice_storage::registry::{RegistryClient, RegistryOptions};
use sluice_storage::{
    Cache, CacheOptions, Counters, Fetcher, ImageName, PlainLayer, Platform, Repository,
    load_lazy_image_cached,
};
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::mounted::{FRONTS, Mounted, Mounting};
use sluice_tests::numbers::numbers;
use sluice_tests::registry::CountingRegistry;
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;
use tokio::runtime::Runtime;

const IMAGES: u64 = 20;
/// Lower layers, each shared by five images.
const BASES: u64 = 4;
const BASE_FILES: u64 = 6;
const TOP_FILES: u64 = 3;
const FILE_LEN: u64 = 1_000_000;
/// A third of all plain bytes.
const QUOTA: u64 = 28_000_000;
const MOUNT_QUOTA: u64 = 5_000_000;
/// Documents, trees and directories, which the quota covers but eviction leaves alone, and what one measurement may be late.
const BESIDES: u64 = 4_000_000;
/// Readers of the engine in this process, and of each mount.
const ENGINE_READERS: u64 = 224;
const MOUNT_READERS: u64 = 16;
/// What a reader of the engine does between two reads. Without it those whose bytes are cached keep both cores busy, and who gets
/// how much is up to the kernel's scheduler.
const THINKING: Duration = Duration::from_millis(100);
/// Seconds that they read, unless the environment says otherwise.
const SECONDS: u64 = 15;
/// The variable that does.
const SECONDS_VARIABLE: &str = "SLUICE_LOAD_SECONDS";
/// A reader that has not ended so long after it was asked to is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
const MOST_MEMORY_KIB: u64 = 150 << 10;
/// What each reader of this process holds itself: a read of 128 KiB and the bytes to compare with.
const READERS_OWN_KIB: u64 = ENGINE_READERS * 256;

fn base(at: u64) -> Layer {
    Layer::of((0..BASE_FILES).map(|file| Entry::generated(format!("base-{file}"), FILE_LEN, at * 100 + file)))
}

fn top(at: u64) -> Layer {
    Layer::of(
        (0..TOP_FILES)
            .map(|file| Entry::generated(format!("top-{file}"), FILE_LEN, 10_000 + at * 100 + file)),
    )
}

/// Converted images, and their plain layers to compare with.
struct Images {
    layout: PathBuf,
    plain: PathBuf,
}

impl Images {
    fn write(scratch: &Scratch) -> Result<Self> {
        let images = Self {
            layout: scratch.join("converted"),
            plain: scratch.directory("plain")?,
        };
        for at in 0..IMAGES {
            let builder = ImageBuilder::new().layer(base(at % BASES)).layer(top(at));
            let image = builder.write(&scratch.join("source"), &format!("i{at}"))?;
            for (layer, record) in [base(at % BASES), top(at)].iter().zip(&image.layers) {
                fs::write(images.plain.join(&record.diff_id), layer.plain()?)?;
            }
            sluice::convert(&image.reference(), &images.layout, &format!("i{at}"), &[])?;
        }
        fs::remove_dir_all(scratch.join("source"))?;
        Ok(images)
    }

    /// The plain bytes that a layer has to show.
    fn expected(&self, layer: &PlainLayer) -> Result<File> {
        let path = self.plain.join(layer.diff_id().to_string());
        File::open(&path).with_context(|| format!("no plain layer {}", path.display()))
    }
}

/// What a reader is at, and when it has to stop.
struct Load {
    stop: AtomicBool,
    progress: Vec<AtomicU64>,
}

impl Load {
    fn go_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn read(&self, reader: u64, bytes: u64) {
        self.progress[reader as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// The slowest of some readers made at least a tenth of the progress of the one in the middle.
    fn check_fair(&self, kind: &str, readers: impl Iterator<Item = u64>) -> Result<()> {
        let mut read: Vec<u64> = readers
            .map(|at| self.progress[at as usize].load(Ordering::Relaxed))
            .collect();
        read.sort_unstable();
        let (slowest, median) = (read[0], read[read.len() / 2]);
        ensure!(
            median > 0 && slowest * 10 >= median,
            "{kind} readers read {read:?}"
        );
        Ok(())
    }
}

/// Reads one layer of the engine, every second reader from end to end, the others in no order.
fn read_engine(
    load: &Load,
    reader: u64,
    layer: &PlainLayer,
    expected: &File,
    runtime: &Runtime,
) -> Result<()> {
    let mut next = numbers(reader + 1);
    let mut at = next(layer.plain_len());
    while load.go_on() {
        let len = if reader.is_multiple_of(2) {
            128 << 10
        } else {
            1 + next(48 << 10)
        };
        let plain = at..(at + len).min(layer.plain_len());
        let bytes = runtime.block_on(layer.read(plain.clone()))?;
        let mut right = vec![0; bytes.len()];
        expected.read_exact_at(&mut right, plain.start)?;
        ensure!(
            bytes == right && bytes.len() as u64 == plain.end - plain.start,
            "wrong bytes at {plain:?}"
        );
        load.read(reader, bytes.len() as u64);
        thread::sleep(THINKING);
        at = match reader.is_multiple_of(2) {
            true => plain.end % layer.plain_len(),
            false => next(layer.plain_len()),
        };
    }
    Ok(())
}

/// Reads files of a mount whole, in no order.
fn read_mount(load: &Load, reader: u64, root: &Path, digests: &[(String, String)]) -> Result<()> {
    let mut next = numbers(reader + 1);
    while load.go_on() {
        let (name, digest) = &digests[next(digests.len() as u64) as usize];
        let bytes = fs::read(root.join(name))?;
        ensure!(
            sluice_tests::document::digest(&bytes) == *digest,
            "{name} has wrong bytes"
        );
        load.read(reader, bytes.len() as u64);
    }
    Ok(())
}

/// Names and digests of the files of an image, from its tars.
fn digests(at: u64) -> Result<Vec<(String, String)>> {
    let mut digests = Vec::new();
    for layer in [base(at % BASES), top(at)] {
        let plain = layer.plain()?;
        for entry in tar::Archive::new(&plain[..]).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes)?;
            digests.push((name, sluice_tests::document::digest(&bytes)));
        }
    }
    Ok(digests)
}

/// All layers of all images, read by one engine.
async fn open(registry: &CountingRegistry, cache: &Arc<Cache>) -> Result<Vec<Arc<PlainLayer>>> {
    let client = RegistryClient::new(RegistryOptions {
        plain_http: true,
        ..RegistryOptions::default()
    });
    let fetcher = Fetcher::new(Arc::new(Counters::default()));
    let mut layers = Vec::new();
    for at in 0..IMAGES {
        let ImageName::Registry(reference) = registry.reference(&format!("i{at}")).parse()? else {
            anyhow::bail!("not a name in a registry");
        };
        let repository: Arc<dyn Repository> = client.repository(&reference)?;
        let name = reference.manifest_name();
        let image =
            load_lazy_image_cached(&repository, &name, &Platform::host(), &Limits::default(), cache).await?;
        let plain = |layer| PlainLayer::new(layer, Some(cache.layer(&layer.index)), &fetcher);
        layers.extend(image.layers.iter().map(plain));
    }
    Ok(layers)
}

/// Bytes that a directory takes on the disk.
fn allocated(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Temporary files come and go.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += allocated(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// A line of what the kernel tells of a process's memory, in KiB.
fn memory(process: &str, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Makes the kernel count the most memory of this process anew, and gives what it has now. Writing images took some.
fn forget_most_memory() -> Result<u64> {
    fs::write("/proc/self/clear_refs", "5")?;
    memory("self", "VmRSS:")
}

fn check_disk(cache: &Path, quota: u64, when: &str) -> Result<()> {
    let taken = allocated(cache)?;
    ensure!(
        taken <= quota + BESIDES,
        "{when}: {} takes {taken} of {quota}",
        cache.display()
    );
    Ok(())
}

#[test]
fn privileged_heavy_256_readers_of_20_images_go_on_within_memory_and_quota() -> Result<()> {
    let seconds = match env::var(SECONDS_VARIABLE) {
        Ok(seconds) => seconds.parse().context(SECONDS_VARIABLE)?,
        Err(_) => SECONDS,
    };
    let scratch = Scratch::new("load")?;
    let images = Images::write(&scratch)?;
    let registry = CountingRegistry::serve(&Layout::open(&images.layout))?;
    let cache_directory = scratch.directory("engine-cache")?;
    let options = CacheOptions {
        quota: Some(QUOTA),
        ..CacheOptions::default()
    };
    let cache = Cache::open_with(&cache_directory, options)?;
    let runtime = Arc::new(
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?,
    );
    let layers = runtime.block_on(open(&registry, &cache))?;
    let mounts: Vec<Mounted> = FRONTS
        .iter()
        .map(|front| {
            let mounting = Mounting::new(&registry.reference("i0"), front);
            mounting
                .option("--cache-quota")
                .option(&MOUNT_QUOTA.to_string())
                .mount()
        })
        .collect::<Result<_>>()?;
    let digests = Arc::new(digests(0)?);
    let readers = ENGINE_READERS + MOUNT_READERS * mounts.len() as u64;
    let load = Arc::new(Load {
        stop: AtomicBool::new(false),
        progress: (0..readers).map(|_| AtomicU64::new(0)).collect(),
    });

    let before = forget_most_memory()?;
    let (done, ended) = mpsc::channel();
    for reader in 0..readers {
        let (load, done) = (load.clone(), done.clone());
        if reader < ENGINE_READERS {
            let layer = layers[reader as usize / 2 % layers.len()].clone();
            let (expected, runtime) = (images.expected(&layer)?, runtime.clone());
            thread::spawn(move || done.send(read_engine(&load, reader, &layer, &expected, &runtime)));
        } else {
            let mount = (reader - ENGINE_READERS) / MOUNT_READERS;
            let (root, digests) = (mounts[mount as usize].directory.clone(), digests.clone());
            thread::spawn(move || done.send(read_mount(&load, reader, &root, &digests)));
        }
    }
    let began = Instant::now();
    while began.elapsed().as_secs() < seconds {
        thread::sleep(Duration::from_millis(500));
        // What the registry remembers of every request is in this process too, and would count as the engine's memory.
        registry.traffic().clear();
        check_disk(&cache_directory, QUOTA, "under load")?;
        mounts
            .iter()
            .try_for_each(|mounted| check_disk(&mounted.cache, MOUNT_QUOTA, "under load"))?;
    }
    load.stop.store(true, Ordering::Relaxed);
    for at in 0..readers {
        let outcome = ended
            .recv_timeout(PATIENCE)
            .with_context(|| format!("{at} readers of {readers} ended"))?;
        outcome?;
    }
    load.check_fair("sequential", (0..ENGINE_READERS).step_by(2))?;
    load.check_fair("random", (1..ENGINE_READERS).step_by(2))?;
    for mount in 0..mounts.len() as u64 {
        let first = ENGINE_READERS + mount * MOUNT_READERS;
        load.check_fair("mount", first..first + MOUNT_READERS)?;
    }
    for mounted in &mounts {
        let memory = memory(&mounted.pid().to_string(), "VmHWM:")?;
        ensure!(memory <= MOST_MEMORY_KIB, "a mount had {memory} KiB");
    }
    let grown = memory("self", "VmHWM:")?.saturating_sub(before + READERS_OWN_KIB);
    ensure!(
        grown <= MOST_MEMORY_KIB,
        "the engine and the registry took {grown} KiB"
    );
    mounts.into_iter().try_for_each(Mounted::unmount)
}
