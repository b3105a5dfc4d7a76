//! What runs in the containers that must not notice that the snapshotter was killed, and the image that it is in.
//!
//! The program (`src/bin/container-load.rs`) lies in the image itself. It works until a file [`STOP`] is there, and says
//! in the directory [`OUT`] of the host what it did: `<name>.reads` has a line per read, `<name>.acknowledged` the number of
//! the last record that is safe, `<name>.done` ends a good run, `<name>.failed` has the reason of a bad one.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::images::{Entry, ImageBuilder, Layer};
use crate::takeover::pattern;
use crate::{process, scratch};

/// Directory of the host, as the containers see it.
pub const OUT: &str = "/out";

/// File in [`OUT`] that ends the work.
pub const STOP: &str = "stop";

/// The program, in the image.
pub const PROGRAM: &str = "/bin/load";

/// File of the image that is read: its bytes follow from their positions.
pub const LARGE: &str = "/data/large";

/// Length of [`LARGE`]. It does not get smaller when compressed, and does not fit into the cache of the tests.
pub const LARGE_LEN: u64 = 64 << 20;

/// Files of the image that are changed, one after the other, which copies them up: `/data/small-<n>`, with the bytes of
/// [`LARGE`] from their number times their length on.
pub const SMALL_FILES: u64 = 400;

/// Length of each of them.
pub const SMALL_LEN: u64 = 24 << 10;

/// One read.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// When it began, in microseconds since 1970.
    pub began: u64,
    /// When it had all bytes.
    pub ended: u64,
}

/// The image: the program with what it loads, and the data in a layer of its own.
///
/// # Errors
/// When the program was not built.
pub fn image() -> Result<ImageBuilder> {
    let program = scratch::profile_directory()?.join("container-load");
    let loaded = process::run(Command::new("ldd").arg(&program))
        .context("container-load is missing. Build it first: cargo build -p sluice-tests")?;
    let libraries = loaded
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut programs = Layer::of([
        Entry::file(PROGRAM.trim_start_matches('/'), fs::read(&program)?).mode(0o755),
        Entry::directory("out", 0o755),
        Entry::directory("db", 0o755),
    ]);
    for library in libraries {
        let name = library.trim_start_matches('/');
        programs = programs.entry(Entry::file(name, fs::read(library)?).mode(0o755));
    }
    let mut data = Layer::of([Entry::file(LARGE.trim_start_matches('/'), pattern(0..LARGE_LEN))]);
    for number in 0..SMALL_FILES {
        let begin = number * SMALL_LEN;
        data = data.entry(Entry::file(
            format!("data/small-{number}"),
            pattern(begin..begin + SMALL_LEN),
        ));
    }
    Ok(ImageBuilder::new().layers([programs, data]))
}

/// The reads that a container has told of.
///
/// # Errors
/// When it has told of none.
pub fn reads(out: &Path, name: &str) -> Result<Vec<Read>> {
    let text = fs::read_to_string(out.join(name).with_extension("reads"))?;
    let read = |line: &str| {
        let (began, ended) = line.split_once(' ')?;
        Some(Read {
            began: began.parse().ok()?,
            ended: ended.parse().ok()?,
        })
    };
    Ok(text.lines().filter_map(read).collect())
}
