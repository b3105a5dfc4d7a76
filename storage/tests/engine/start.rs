//! What the files of an image tell about its start is there before anybody reads.

use std::ops::Range;
use std::sync::Arc;

use sluice_format::program::Program;
use sluice_format::startup::{Command, ImageFiles};
use sluice_storage::PlainLayer;
use sluice_storage::testing::SampleLayer;

use crate::ahead::tree_of;
use crate::bench::{Bench, settle};

const CHUNK_LEN: usize = 8 << 10;
/// Far enough from the file before that none comes along with its neighbour.
const APART: usize = 1 << 20;
const FILE_LEN: usize = 512;

/// A layer with small files, and what an image of it runs.
struct Image {
    bench: Bench,
    layer: Arc<PlainLayer>,
    names: Vec<&'static str>,
}

impl Image {
    fn of(files: &[(&'static str, &str)]) -> Self {
        let mut plain = Vec::new();
        for (at, (_, content)) in files.iter().enumerate() {
            plain.resize(APART * (at + 1), 0x55);
            plain.extend(content.as_bytes());
            plain.resize(APART * (at + 1) + FILE_LEN, b'\n');
        }
        plain.resize(APART * (files.len() + 1), 0x55);
        let bench = Bench::of(SampleLayer::of_plain(plain, CHUNK_LEN, 0));
        Self {
            layer: bench.layer(),
            names: files.iter().map(|(name, _)| *name).collect(),
            bench,
        }
    }

    fn place(&self, name: &str) -> u64 {
        self.range(name).start
    }

    fn range(&self, name: &str) -> Range<u64> {
        let at = self.names.iter().position(|known| *known == name);
        let start = (APART * (at.expect("a file of the image") + 1)) as u64;
        start..start + FILE_LEN as u64
    }

    async fn foresee(&self, command: &[&str]) {
        let files: Vec<_> = self.names.iter().map(|name| (*name, self.range(name))).collect();
        let command = Command::new(command.iter().copied(), ["/"], "/");
        let files = ImageFiles::of(&tree_of(&files, &[]), &command);
        PlainLayer::foresee(std::slice::from_ref(&self.layer), files);
        settle().await;
    }

    /// The files that are here.
    fn here(&self) -> Vec<&'static str> {
        let names = self.names.iter().copied();
        let is_here = |name: &&str| self.layer.read_cached(self.range(name)).is_some();
        names.filter(is_here).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn modules_that_a_script_imports_come_before_it_runs() {
    let image = Image::of(&[
        ("main.py", "import one\ndef f():\n    import lazily\n"),
        ("one.py", "from two import name\n"),
        ("two.py", "import main, one, missing\n"),
        ("lazily.py", "import unrelated\n"),
        ("unrelated.py", ""),
    ]);
    image.foresee(&["python3", "main.py"]).await;
    assert_eq!(image.here(), ["main.py", "one.py", "two.py"]);
    image.bench.assert_asked_once();
}

#[tokio::test(start_paused = true)]
async fn a_script_leads_to_its_interpreter() {
    let image = Image::of(&[
        ("run", "#!/usr/bin/env -S interpreter --flag\n"),
        ("interpreter", "no program, but that is its own affair"),
        ("other", ""),
    ]);
    image.foresee(&["run"]).await;
    assert_eq!(image.here(), ["run", "interpreter"]);
}

#[tokio::test(start_paused = true)]
async fn modules_that_a_script_requires_come_before_it_runs() {
    let image = Image::of(&[
        ("server.js", "const a = require('./a'), fs = require('fs');"),
        ("a.js", "exports.b = () => require('./b.json')"),
        ("b.json", "{}"),
        ("c.js", ""),
    ]);
    image.foresee(&["node", "server.js"]).await;
    assert_eq!(image.here(), ["server.js", "a.js", "b.json"]);
}

#[tokio::test(start_paused = true)]
async fn modules_come_when_one_is_read_that_nobody_expected() {
    let image = Image::of(&[("plugin.py", "import one\n"), ("one.py", ""), ("two.py", "")]);
    image.foresee(&[]).await;
    assert!(image.here().is_empty());
    let plugin = image.place("plugin.py");
    let read = image.layer.read(plugin..plugin + FILE_LEN as u64);
    read.await.expect("it is read");
    settle().await;
    assert_eq!(image.here(), ["plugin.py", "one.py"]);

    image.layer.foresee_no_more();
    let two = image.place("two.py");
    assert!(image.layer.read_cached(two..two + 1).is_none());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_looked_into_while_a_profile_is_followed() {
    let image = Image::of(&[("plugin.py", "import one\n"), ("one.py", "")]);
    image.foresee(&[]).await;
    let plugin = image.place("plugin.py");
    image.layer.follow_profile(true);
    image.layer.read(plugin..plugin + 1).await.expect("it is read");
    settle().await;
    assert_eq!(image.here(), ["plugin.py"]);
    image.layer.follow_profile(false);
    image.layer.read(plugin..plugin + 1).await.expect("it is read");
    settle().await;
    assert_eq!(image.here(), ["plugin.py", "one.py"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_looked_into_for_a_reader_of_everything() {
    let image = Image::of(&[
        ("plugin.py", "import one\n"),
        ("one.py", "import two\n"),
        ("two.py", ""),
    ]);
    image.foresee(&[]).await;
    let chunks = (0..34).map(|chunk| chunk * CHUNK_LEN as u64);
    for plain_off in chunks.chain([image.place("plugin.py")]) {
        let read = image.layer.read(plain_off..plain_off + 1).await;
        read.expect("it is read");
    }
    settle().await;
    let one = image.place("one.py");
    assert!(image.layer.read_cached(one..one + 1).is_none());
}

/// Containers start right after the mount: the kernel reads the head of a program before the config of the image has named it.
#[tokio::test(start_paused = true)]
async fn all_code_of_a_program_comes_although_a_reader_was_there_before_its_name() {
    /// Too far for what lies between two parts to come along.
    const GAP: usize = (192 << 10) + 1;
    let elf = std::fs::read("/usr/lib/x86_64-linux-gnu/libstdc++.so.6").expect("libstdc++ is installed");
    let program = Program::parse(&elf[..4096]).expect("a program");
    let mut plain = vec![0x55; FILE_LEN];
    plain.extend_from_slice(&elf);
    plain.resize(plain.len().next_multiple_of(FILE_LEN) + 1024, 0);
    let bench = Bench::of(SampleLayer::of_plain(plain, CHUNK_LEN, GAP));
    let layer = bench.layer();
    let begin = FILE_LEN as u64;
    layer.read(begin..begin + 4096).await.expect("the head is read");
    settle().await;
    let code_is_here = || {
        let mut code = program.code_ranges().into_iter();
        code.all(|range| {
            layer
                .read_cached(begin + range.start..begin + range.end)
                .is_some()
        })
    };
    assert!(!code_is_here(), "it is no more than some program yet");
    let command = Command::new(["program"], ["/"], "/");
    let files = ImageFiles::of(
        &tree_of(&[("program", begin..begin + elf.len() as u64)], &[]),
        &command,
    );
    PlainLayer::foresee(std::slice::from_ref(&layer), files);
    settle().await;
    assert!(code_is_here());
}
