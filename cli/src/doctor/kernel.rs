//! What the kernel has: FUSE, overlayfs, and EROFS mounts straight from files.

use std::fs::OpenOptions;
use std::path::Path;

use anyhow::Context as _;
use nix::unistd::geteuid;
use sluice_fuse::probe;
use tokio::task::spawn_blocking;

use super::Finding;

const FUSE_DEVICE: &str = "/dev/fuse";
/// Lists every file system that the kernel can mount now.
const FILE_SYSTEMS: &str = "/proc/filesystems";

pub(super) async fn examine(cache: &Path) -> anyhow::Result<Vec<Finding>> {
    Ok(vec![fuse(), overlay()?, erofs(cache).await?])
}

fn fuse() -> Finding {
    match OpenOptions::new().read(true).write(true).open(FUSE_DEVICE) {
        Ok(_) => Finding::good("fuse", format!("{FUSE_DEVICE} can be opened")),
        Err(error) => Finding::problem(
            "fuse",
            format!("{FUSE_DEVICE} cannot be opened: {error}"),
            "missing bytes of an image are served through it",
            "as root: modprobe fuse; in a container, pass the device in",
        ),
    }
}

fn overlay() -> anyhow::Result<Finding> {
    let listed = std::fs::read_to_string(FILE_SYSTEMS).with_context(|| format!("reading {FILE_SYSTEMS}"))?;
    let has_overlay = listed
        .lines()
        .any(|line| line.split_ascii_whitespace().last() == Some("overlay"));
    if has_overlay {
        return Ok(Finding::good("overlay", "the kernel has overlayfs"));
    }
    Ok(Finding::problem(
        "overlay",
        "the kernel has no overlayfs",
        "containers write into an overlay over their image",
        "as root: modprobe overlay",
    ))
}

async fn erofs(cache: &Path) -> anyhow::Result<Finding> {
    if !geteuid().is_root() {
        return Ok(Finding::warning(
            "erofs",
            "whether the kernel can mount image trees cannot be tried without root",
            "sluice snapshotter needs root as well",
            "run sluice doctor as root",
        ));
    }
    let directory = if cache.is_dir() {
        cache.to_owned()
    } else {
        std::env::temp_dir()
    };
    let support = spawn_blocking(move || probe(&directory)).await?;
    if support.file_backed {
        return Ok(Finding::good("erofs", "the kernel mounts image trees with EROFS"));
    }
    let reason = support.reason.unwrap_or_default();
    Ok(Finding::warning(
        "erofs",
        format!("the kernel cannot mount image trees with EROFS: {reason}"),
        "trees are shown through FUSE instead, where every lookup of a file costs more",
        "for full speed: Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE",
    ))
}
