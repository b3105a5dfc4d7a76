//! Promise: with `--fill`, the image of a running container comes to the host as a whole; from then on it is read, and starts, without its
//! registry.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_tests::crowd::{self, Crowd};
use sluice_tests::process;
use sluice_tests::scratch::Scratch;

/// How long a small image on a loaded machine may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the service says then.
const FILLED: &str = "every layer of an image tree is on this host";

/// And what it says whenever it mounts one.
const MOUNTED: &str = "mounted an image tree";

/// Reads every file below a directory; gives their bytes.
fn read_all(directory: &Path) -> Result<u64> {
    let mut len = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            len += read_all(&entry.path())?;
        } else if kind.is_file() {
            len += fs::read(entry.path())?.len() as u64;
        }
    }
    Ok(len)
}

#[test]
fn privileged_a_filled_image_needs_no_registry() -> Result<()> {
    let scratch = Scratch::new("fill")?;
    let layout = crowd::images(&scratch, 1, 300)?;
    let mut host = Crowd::start_with(&layout, &["--fill"])?;
    host.pull(0)?;
    host.run(0, 0)?;
    process::wait_until("filling of the image", PATIENCE, || {
        host.log().is_ok_and(|log| log.contains(FILLED))
    })?;
    let (cached, all) = host.cached()?;
    ensure!(cached == all && all > 300 * 3000, "{cached} of {all} bytes");

    host.registry.vanish();
    let trees = host.trees()?;
    ensure!(trees.len() == 1, "{trees:?}");
    ensure!(read_all(&trees[0].mountpoint)? > 300 * 3000);
    host.remove_all_containers()?;
    host.containerd.collect_garbage()?;
    // For the next container, which is to read the files of the layers themselves.
    process::wait_until("a new mount of the whole layers", PATIENCE, || {
        host.log().is_ok_and(|log| log.matches(MOUNTED).count() == 2)
    })?;
    let renewed = host.trees()?;
    ensure!(renewed.len() == 1, "{renewed:?}");
    host.run(0, 1)?;
    ensure!(host.trees()? == renewed, "{:?}", host.trees()?);
    ensure!(read_all(&host.trees()?[0].mountpoint)? > 300 * 3000);
    Ok(())
}
