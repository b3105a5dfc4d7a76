//! Runs in a container of the tests: `container-load read|write|whole NAME [SEED]`, see `sluice_tests::workload`.
//!
//! `whole` reads and compares every file of the image once.
//! The reader compares random ranges of a file of the image, and has the kernel forget them afterwards. The writer is a
//! small database: a log that grows, pages that are overwritten, both brought to the disk before a record counts; and it
//! changes files of the image. At its start and its end it verifies everything that it has acknowledged, also what an
//! earlier run of the container did.

use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sluice_tests::takeover::pattern;
use sluice_tests::workload::{LARGE, LARGE_LEN, OUT, SMALL_FILES, SMALL_LEN, STOP};

/// Bytes that a reader compares at once.
const READ_LEN: u64 = 48 << 10;

/// The database's files.
const LOG: &str = "/db/log";
const PAGES: &str = "/db/pages";

/// Length of a record of the log, and of a page.
const RECORD_LEN: u64 = 512;

/// Pages of the database: record `n` is also written to page `n % PAGE_COUNT`.
const PAGE_COUNT: u64 = 64;

/// Records between two changes of a file of the image.
const CHANGE_EVERY: u64 = 4;

/// Pause between two records, so that a test's worth of them stays small.
const RECORD_PAUSE: Duration = Duration::from_millis(5);

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let (mode, name) = arguments
        .next()
        .zip(arguments.next())
        .context("usage: read|write|whole NAME")?;
    let seed = arguments.next().map_or(Ok(1), |seed| seed.parse())?;
    let out = Path::new(OUT).join(&name);
    let outcome = match mode.as_str() {
        "read" => read(&out, seed),
        "write" => write(&out),
        "whole" => read_whole(),
        other => bail!("{other} is none of read, write and whole"),
    };
    match &outcome {
        Ok(done) => fs::write(out.with_extension("done"), done.to_string())?,
        Err(error) => fs::write(out.with_extension("failed"), format!("{error:#}"))?,
    }
    outcome.map(|_| ())
}

fn told_to_stop() -> bool {
    Path::new(OUT).join(STOP).exists()
}

/// Microseconds since 1970.
fn now() -> Result<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_micros())?)
}

fn read(out: &Path, seed: u64) -> Result<u64> {
    let file = File::open(LARGE)?;
    let mut told = File::create(out.with_extension("reads"))?;
    let (mut dice, mut count) = (seed, 0);
    let mut bytes = vec![0; READ_LEN as usize];
    while !told_to_stop() {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (dice >> 33) % (LARGE_LEN - READ_LEN);
        let began = now()?;
        let outcome = file.read_exact_at(&mut bytes, at);
        outcome.with_context(|| format!("reading at {at}, after {count} reads"))?;
        writeln!(told, "{began} {}", now()?)?;
        ensure!(bytes == pattern(at..at + READ_LEN), "wrong bytes at {at}");
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        count += 1;
    }
    Ok(count)
}

/// Gives the number of files.
fn read_whole() -> Result<u64> {
    ensure!(fs::read(LARGE)? == pattern(0..LARGE_LEN), "{LARGE} is wrong");
    for number in 0..SMALL_FILES {
        ensure!(
            fs::read(small(number))? == small_bytes(number),
            "file {number} is wrong"
        );
    }
    Ok(SMALL_FILES + 1)
}

fn record(number: u64) -> Vec<u8> {
    let begin = number * RECORD_LEN;
    pattern(begin..begin + RECORD_LEN)
}

fn write(out: &Path) -> Result<u64> {
    let acknowledged = out.with_extension("acknowledged");
    let mut next = match fs::read_to_string(&acknowledged) {
        Ok(text) => text.trim().parse()?,
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    verify(next).context("at the start")?;
    let open = |path: &str| {
        File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
    };
    let (log, pages) = (open(LOG)?, open(PAGES)?);
    while !told_to_stop() {
        log.write_all_at(&record(next), next * RECORD_LEN)?;
        log.sync_data()?;
        pages.write_all_at(&record(next), next % PAGE_COUNT * RECORD_LEN)?;
        pages.sync_data()?;
        if next.is_multiple_of(CHANGE_EVERY) {
            change(next / CHANGE_EVERY).with_context(|| format!("changing a file for record {next}"))?;
        }
        next += 1;
        replace(&acknowledged, &next.to_string())?;
        thread::sleep(RECORD_PAUSE);
    }
    verify(next).context("at the end")?;
    Ok(next)
}

fn small(number: u64) -> PathBuf {
    PathBuf::from(format!("/data/small-{number}"))
}

fn small_bytes(number: u64) -> Vec<u8> {
    pattern(number * SMALL_LEN..(number + 1) * SMALL_LEN)
}

/// Writes behind the bytes that a file of the image has. The image has a limited number of them.
fn change(number: u64) -> Result<()> {
    if number >= SMALL_FILES {
        return Ok(());
    }
    let file = File::options().write(true).open(small(number))?;
    file.write_all_at(&record(number), SMALL_LEN)?;
    Ok(file.sync_all()?)
}

/// Everything that records up to `next` did is there.
fn verify(next: u64) -> Result<()> {
    if next == 0 {
        return Ok(());
    }
    let log = fs::read(LOG)?;
    for number in 0..next {
        let begin = (number * RECORD_LEN) as usize;
        let found = log.get(begin..begin + RECORD_LEN as usize);
        ensure!(
            found == Some(&record(number)),
            "record {number} of {next} is lost"
        );
    }
    let pages = fs::read(PAGES)?;
    for (page, bytes) in (0..).zip(pages.chunks(RECORD_LEN as usize)) {
        // A page may also have the record after the last one that was acknowledged.
        let fits = |number: &u64| number % PAGE_COUNT == page && bytes == record(*number);
        ensure!(
            (next.saturating_sub(PAGE_COUNT)..=next).any(|number| fits(&number)),
            "page {page} is lost"
        );
    }
    for number in 0..next.div_ceil(CHANGE_EVERY).min(SMALL_FILES) {
        let whole = [small_bytes(number), record(number)].concat();
        ensure!(fs::read(small(number))? == whole, "changed file {number} is lost");
    }
    Ok(())
}

/// The host reads it at any moment.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(&new, path)?)
}
