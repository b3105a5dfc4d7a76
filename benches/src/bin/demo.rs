//! The main job on real input: pack, convert, serve, mount, run.
//!
//! `demo [TOOLCHAIN]`. The input is the Rust toolchain that built this program (or another one with `bin/rustc`): more than a gigabyte of
//! real programs and libraries. It becomes an ordinary gzip image, is converted, and is mounted from an in-process registry that counts what it is asked
//! for. Then the compiler in the mount compiles a program, which runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sluice_benches::command::{self, drop_caches};
use sluice_benches::mounted::Mounted;
use sluice_benches::table::{mb, say};
use sluice_tests::document::Layout;
use sluice_tests::registry::CountingRegistry;
use sluice_tests::scratch::Scratch;

const TAG: &str = "demo";

const PROGRAM: &str =
    "fn main() { println!(\"hello from a program that a lazily mounted compiler built\"); }\n";

fn main() -> anyhow::Result<()> {
    let toolchain = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => installed_toolchain()?,
    };
    ensure!(
        toolchain.join("bin/rustc").exists(),
        "{} has no bin/rustc",
        toolchain.display()
    );
    ensure!(
        nix::unistd::geteuid().is_root(),
        "mounting needs root: run this as root"
    );
    let scratch = Scratch::new("demo")?;
    let layouts = [scratch.join("ordinary"), scratch.join("converted")];
    let original = pack(&toolchain, &layouts[0])?;
    convert(&original, &layouts[1])?;
    let registry = CountingRegistry::serve(&Layout::open(&layouts[1]))?;
    let stored_len = Layout::open(&layouts[1]).image(TAG)?.stored_len()?;
    say(format!(
        "serving it from an in-process registry at {}",
        registry.address()
    ))?;
    // What the conversion left in the page cache must not make the mount look faster than it is.
    drop_caches()?;
    run_from_mount(&scratch, &registry, stored_len)?;
    compare_with_unpacking(&scratch, &layouts[0])
}

fn installed_toolchain() -> anyhow::Result<PathBuf> {
    let (text, _) = command::run(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(text.trim()))
}

fn pack(toolchain: &Path, layout: &Path) -> anyhow::Result<String> {
    let target = format!("oci:{}:{TAG}", layout.display());
    say(format!(
        "packing {} into an ordinary gzip image",
        toolchain.display()
    ))?;
    let mut pack = Command::new(command::sluice()?);
    let pack = pack
        .args(["pack", "--json", "--format", "gzip", "--entrypoint", "/bin/rustc"])
        .arg(toolchain)
        .arg(&target);
    let report: Value = serde_json::from_str(&command::run(pack)?.0)?;
    let number = |name: &str| report[name].as_u64().unwrap_or(0);
    say(format!(
        "  {} MB in {} entries became {} MB",
        mb(number("plain_len")),
        number("entries"),
        mb(number("stored_len"))
    ))?;
    Ok(target)
}

fn convert(original: &str, layout: &Path) -> anyhow::Result<()> {
    let target = format!("oci:{}:{TAG}", layout.display());
    say("converting it")?;
    let mut convert = Command::new(command::sluice()?);
    let (text, usage) = command::run(convert.args(["convert", "--json", original, &target]))?;
    let report: Value = serde_json::from_str(&text)?;
    let total = |name: &str| report["totals"][name].as_u64().unwrap_or(0);
    say(format!(
        "  {} MB became {} MB in {:.1} s, {:.0} % of all cores busy, {} MB resident at most; the image ID stays {}",
        mb(total("source_stored_len")),
        mb(total("stored_len")),
        usage.wall,
        usage.busy() * 100.0,
        mb(usage.peak_rss),
        report["images"][0]["image_id"].as_str().unwrap_or("?"),
    ))
}

fn run_from_mount(scratch: &Path, registry: &CountingRegistry, stored_len: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    let reference = registry.reference(TAG);
    let mounted = Mounted::new(
        &reference,
        &scratch.join("mnt"),
        "auto",
        &scratch.join("cache"),
        &scratch.join("run"),
    )?;
    let read = |what: &str, at: f64| {
        let bytes = registry.traffic().total_bytes();
        let share = 100.0 * bytes as f64 / stored_len as f64;
        say(format!(
            "  {at:6.2} s  {what}: {} of {} MB read ({share:.1} %)",
            mb(bytes),
            mb(stored_len)
        ))
    };
    say(format!("mounting {reference} with an empty cache"))?;
    read("mounted", start.elapsed().as_secs_f64())?;
    let compiler = mounted.dir().join("bin/rustc");
    let (version, _) = command::run(Command::new(&compiler).arg("--version"))?;
    read(
        &format!("first output, \"{}\"", version.trim()),
        start.elapsed().as_secs_f64(),
    )?;
    let (source, program) = (scratch.join("hello.rs"), scratch.join("hello"));
    std::fs::write(&source, PROGRAM)?;
    command::run(
        Command::new(&compiler)
            .args(["-O", "-o"])
            .arg(&program)
            .arg(&source),
    )?;
    let (greeting, _) = command::run(&mut Command::new(&program))?;
    read(
        &format!("compiled and ran: \"{}\"", greeting.trim()),
        start.elapsed().as_secs_f64(),
    )
}

/// The same start without Sluice: the whole image is decompressed and unpacked before its first program can run.
fn compare_with_unpacking(scratch: &Path, layout: &Path) -> anyhow::Result<()> {
    let image = Layout::open(layout).image(TAG)?;
    let layers = image.layer_digests()?;
    let blob = Layout::open(layout).blob_path(layers.first().context("the image has a layer")?)?;
    let dir = scratch.join("unpacked");
    std::fs::create_dir(&dir)?;
    drop_caches()?;
    let start = Instant::now();
    command::run(Command::new("tar").arg("-xzf").arg(&blob).arg("-C").arg(&dir))?;
    command::run(Command::new(dir.join("bin/rustc")).arg("--version"))?;
    say(format!(
        "for comparison: unpacking the ordinary image from the local disk and the same first output took {:.2} s",
        start.elapsed().as_secs_f64()
    ))
}
