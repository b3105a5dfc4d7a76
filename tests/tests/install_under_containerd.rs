//! Promise: on a fresh Debian 12 with containerd, the section "Install under containerd" of the README, done to the letter, leads to a
//! lazily started container; and what it did can be taken back.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer, shell};
use sluice_tests::machine::Machine;
use sluice_tests::registry::{Class, CountingRegistry};
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

/// The section of the README.
const SECTION: &str = "### Install under containerd";
/// What it has the user do first.
const INSTALL: &str = "sluice install";
/// What `sluice install` says comes next, as the section has it.
const NEXT: [&str; 3] = [
    "systemctl daemon-reload && systemctl enable --now sluice-snapshotter",
    "systemctl restart containerd",
    "sluice doctor",
];
/// The image of the section, and the program that is run of it.
const IMAGE: &str = "registry.example.com/python:3.12";
const PROGRAM: &str = "python3 -c 'print(\"hello\")'";
/// How an image is pulled and run there.
const USE: [&str; 2] = [
    "sluice pull registry.example.com/python:3.12",
    "ctr run --rm --snapshotter sluice registry.example.com/python:3.12 hello python3 -c 'print(\"hello\")'",
];

/// Plain bytes of the file that nobody reads. An eighth of them remains when compressed.
const UNREAD_LEN: u64 = 32 << 20;

fn section() -> Result<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&readme).with_context(|| readme.display().to_string())?;
    let (_, section) = readme
        .split_once(SECTION)
        .context("the README has no such section")?;
    Ok(section.split("\n## ").next().unwrap_or_default().to_owned())
}

fn converted(scratch: &Scratch) -> Result<Layout> {
    let unread = Layer::of([Entry::generated("unread", UNREAD_LEN, 1)]);
    let image = ImageBuilder::new()
        .layers([shell()?, unread])
        .write(&scratch.join("source"), "shell")?;
    let directory = scratch.join("converted");
    sluice::convert(&image.reference(), &directory, "c", &[])?;
    Ok(Layout::open(&directory))
}

#[test]
fn privileged_the_readme_leads_from_a_fresh_debian_to_a_lazy_container() -> Result<()> {
    let section = section()?;
    for step in [INSTALL].iter().chain(&NEXT).chain(&USE) {
        ensure!(section.contains(step), "the README does not say {step}");
    }
    let scratch = Scratch::new("readme")?;
    let layout = converted(&scratch)?;
    let registry = CountingRegistry::serve(&layout)?;
    let machine = Machine::start()?;
    // As `cargo install --path cli` does.
    let programs = machine.root().join("root/.cargo/bin");
    fs::create_dir_all(&programs)?;
    fs::copy(sluice::binary()?, programs.join("sluice"))?;

    let said = machine.run(INSTALL)?;
    for step in NEXT {
        ensure!(said.contains(step), "sluice install does not say {step}: {said}");
        machine.run(step).with_context(|| step.to_owned())?;
    }
    let image = format!("{}/test:c", registry.address());
    let diagnosis = machine.run(&format!("sluice doctor {image}"))?;
    ensure!(
        diagnosis.lines().all(|line| line.starts_with("good")),
        "{diagnosis}"
    );
    let [pull, run] = USE.map(|step| {
        let step = step.replace(IMAGE, &image);
        step.replace(PROGRAM, "/bin/sh -c 'echo hello'")
    });
    registry.traffic().clear();
    machine.run(&pull)?;
    ensure!(machine.run(&run)? == "hello\n", "{run}");
    let fetched = registry.traffic().bytes(Class::Blob);
    let stored = layout.image("c")?.stored_len()?;
    ensure!(fetched < stored / 2, "{fetched} of {stored} bytes were fetched");

    machine.run(&format!("ctr images rm --sync {image}"))?;
    let said = machine.run("sluice install --uninstall")?;
    for step in [
        "systemctl disable --now sluice-snapshotter.service; systemctl daemon-reload",
        "systemctl restart containerd",
    ] {
        ensure!(said.contains(step), "{said}");
        machine.run(step)?;
    }
    let plugins = machine.run("ctr plugins ls")?;
    ensure!(!plugins.contains("sluice"), "{plugins}");
    Ok(())
}
