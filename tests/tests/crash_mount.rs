//! Promise: a mount that is killed at any moment, while readers read and its cache evicts, leaves no mount, no wrong byte and no more on
//! the disk than the cache may take; the next mount goes on with the same cache.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::numbers::numbers;
use sluice_tests::registry::CountingRegistry;
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

/// Mounts that are killed, on each front end in turn.
const KILLS: u64 = 52;
const FILES: u64 = 12;
const FILE_LEN: u64 = 700_000;
const READERS: u64 = 3;
/// Less than half of the image, so that every life evicts.
const QUOTA: u64 = 4_000_000;
/// Longest life after the mount is there, in milliseconds.
const LIFE: u64 = 350;
/// Documents, trees, profiles and directories, which the quota covers but eviction leaves alone.
const BESIDES: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

fn name(at: u64) -> String {
    format!("file-{at:02}")
}

/// Reads files in no order until it is told to stop or the mount dies; a wrong byte is an error.
fn read_on(root: &Path, expected: &[Vec<u8>], seed: u64, stop: &AtomicBool) -> Result<u64> {
    let mut next = numbers(seed);
    let mut read = 0;
    while !stop.load(Ordering::Relaxed) {
        let at = next(FILES);
        match fs::read(root.join(name(at))) {
            Ok(bytes) => ensure!(bytes == expected[at as usize], "{} has wrong bytes", name(at)),
            // What a reader of a dead mount gets.
            Err(error) if is_death(&error) => return Ok(read),
            Err(error) => return Err(error).context("a reader got another error than that of a dead mount"),
        }
        read += 1;
    }
    Ok(read)
}

fn is_death(error: &io::Error) -> bool {
    let codes = [
        Errno::ENOTCONN,
        Errno::ECONNABORTED,
        Errno::EIO,
        Errno::ENOENT,
        Errno::ESTALE,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&Errno::from_raw(code)))
}

/// Bytes that a directory takes on the disk.
fn allocated(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += allocated(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// What the files hold, from the tar itself.
fn contents() -> Result<Vec<Vec<u8>>> {
    let content = |at| {
        let plain = Layer::of([Entry::generated(name(at), FILE_LEN, at)]).plain()?;
        let mut archive = tar::Archive::new(&plain[..]);
        let mut entry = archive.entries()?.next().context("no entry")??;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    (0..FILES).map(content).collect()
}

#[test]
fn privileged_heavy_kill_9_while_reading_and_evicting_shows_no_wrong_byte() -> Result<()> {
    let scratch = Scratch::new("crash-mount")?;
    let files = (0..FILES).map(|at| Entry::generated(name(at), FILE_LEN, at));
    let image = ImageBuilder::new()
        .layer(Layer::of(files))
        .write(&scratch.join("source"), "crash")?;
    let layout = scratch.join("converted");
    sluice::convert(&image.reference(), &layout, "crash", &[])?;
    let registry = CountingRegistry::serve(&Layout::open(&layout))?;
    let cache = scratch.directory("cache")?;
    let mounting = |front: &str| {
        Mounting::new(&registry.reference("crash"), front)
            .cache(&cache)
            .option("--cache-quota")
            .option(&QUOTA.to_string())
    };
    let expected = Arc::new(contents()?);
    let mut next = numbers(7);
    let mut files_read = 0;
    for kill in 0..KILLS {
        let front = FRONTS[kill as usize % FRONTS.len()];
        let context = || format!("kill {kill} on {front}");
        let mut mounted = mounting(front).mount().with_context(context)?;
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<JoinHandle<Result<u64>>> = (0..READERS)
            .map(|reader| {
                let (root, expected, stop) = (mounted.directory.clone(), expected.clone(), stop.clone());
                thread::spawn(move || read_on(&root, &expected, kill * READERS + reader + 1, &stop))
            })
            .collect();
        thread::sleep(Duration::from_millis(next(LIFE)));
        mounted.signal(Signal::SIGKILL)?;
        mounted.wait_end(PATIENCE)?;
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            let read = reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?;
            files_read += read.with_context(context)?;
        }
        mounted.wait_nothing_left(PATIENCE).with_context(context)?;
        let taken = allocated(&cache)?;
        ensure!(taken <= QUOTA + BESIDES, "{}: the cache takes {taken}", context());
    }
    ensure!(files_read > KILLS, "{files_read} files were read in all");
    for front in FRONTS {
        let mounted = mounting(front).mount()?;
        for at in 0..FILES {
            let bytes = fs::read(mounted.directory.join(name(at)))?;
            ensure!(
                bytes == expected[at as usize],
                "{front}: {} after all kills",
                name(at)
            );
        }
        mounted.unmount()?;
    }
    let taken = allocated(&cache)?;
    ensure!(taken <= QUOTA + BESIDES, "the cache takes {taken} in the end");
    Ok(())
}
