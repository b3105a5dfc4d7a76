//! Promise: what the command of an image names, and what that imports, is on the host before a container reads it, and nothing else is.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::registry::CountingRegistry;
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

/// Between two files, so that neither comes with the other.
const APART: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
/// Without a request for so long, nothing more is fetched.
const QUIET: Duration = Duration::from_secs(1);

const FORETOLD: [(&str, &str); 4] = [
    (
        "app/main.py",
        "import package.part\n\ndef later():\n    import lazily\n",
    ),
    (
        "usr/lib/python3/site-packages/package/__init__.py",
        "import helper\n",
    ),
    (
        "usr/lib/python3/site-packages/package/part.py",
        "from . import __version__\n",
    ),
    ("usr/lib/python3/site-packages/helper.py", "# the end\n"),
];
const OTHERS: [(&str, &str); 2] = [
    ("usr/lib/python3/site-packages/lazily.py", "import unrelated\n"),
    ("usr/lib/python3/site-packages/unrelated.py", "# never\n"),
];

/// A converted image that runs the first file.
fn image(scratch: &Scratch) -> Result<Layout> {
    let entries = (0..)
        .zip(FORETOLD.iter().chain(&OTHERS))
        .flat_map(|(at, (name, text))| {
            let filler = Entry::generated(format!("filler/{at}"), APART, at);
            [filler, Entry::file(name, text)]
        });
    let image = ImageBuilder::new()
        .layer(Layer::of(entries))
        .config("/config/Entrypoint", json!(["python3", "/app/main.py"]))
        .write(&scratch.join("source"), "t")?;
    let directory = scratch.join("converted");
    sluice::convert(&image.reference(), &directory, "t", &["--chunk-size", "128K"])?;
    Ok(Layout::open(&directory))
}

fn wait_for_quiet(registry: &CountingRegistry) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let count = || registry.traffic().requests().len();
    let mut seen = count();
    while Instant::now() < deadline {
        thread::sleep(QUIET);
        let now = count();
        if now == seen {
            return Ok(());
        }
        seen = now;
    }
    bail!("requests do not end:\n{}", registry.traffic().describe())
}

#[test]
fn privileged_a_mount_has_what_the_command_imports_when_the_registry_is_gone() -> Result<()> {
    for front in FRONTS {
        let scratch = Scratch::new("foretold")?;
        let layout = image(&scratch)?;
        let mut registry = CountingRegistry::serve(&layout)?;
        let mounted = Mounting::new(&registry.reference("t"), front).mount()?;
        wait_for_quiet(&registry)?;
        let (moved, whole) = (registry.traffic().total_bytes(), layout.image("t")?.stored_len()?);
        ensure!(moved * 3 < whole * 2, "{front}: {moved} of {whole} bytes");

        registry.vanish();
        for (name, text) in FORETOLD {
            let read = fs::read_to_string(mounted.directory.join(name))?;
            ensure!(read == text, "{front}: {name} is {read:?}");
        }
        registry.come_back()?;
        registry.traffic().clear();
        for (name, text) in OTHERS {
            let read = fs::read_to_string(mounted.directory.join(name))?;
            ensure!(read == text, "{front}: {name} is {read:?}");
        }
        let fetched = registry.traffic().requests().len();
        ensure!(
            fetched >= OTHERS.len(),
            "{front}: {fetched} requests for what nobody foretold"
        );
        mounted.unmount()?;
    }
    Ok(())
}
