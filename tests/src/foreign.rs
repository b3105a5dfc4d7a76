//! Images in the lazy formats of other tools, made by those tools.
//!
//! eStargz and one dialect of zstd:chunked are written by `ctr-remote` of stargz-snapshotter, which needs a containerd; the other dialects by
//! skopeo, of Debian 12 and of Debian unstable. What Debian 12 does not have, `tests/setup.sh` unpacks beside the build.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::containerd::Containerd;
use crate::document::Layout;
use crate::images::Image;
use crate::registry::CountingRegistry;
use crate::scratch::Scratch;
use crate::{prerequisites, process, scratch};

/// The tag of every image that is made here.
pub const TAG: &str = "c";

/// The tag of an image with tables of contents.
pub const APART_TAG: &str = "c-esgztoc";

/// Name of a converted image in its containerd.
const CONVERTED: &str = "registry.invalid/converted:c";

/// Who writes the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// eStargz by `ctr-remote`.
    Estargz,
    /// The same with the tables of contents in an image of their own, [`APART_TAG`].
    EstargzApart,
    /// eStargz with small files in common gzip members.
    EstargzShared,
    /// zstd:chunked by `ctr-remote`.
    StargzZstd,
    /// zstd:chunked by skopeo of Debian 12.
    Skopeo,
    /// zstd:chunked by skopeo of Debian unstable: other annotations, another footer.
    RecentSkopeo,
}

impl Writer {
    /// Writes `image` anew, into the layout `directory`, where it is called [`TAG`].
    ///
    /// # Errors
    /// When a tool is missing or refuses the image.
    pub fn write(self, image: &Image, directory: &Path) -> Result<Layout> {
        let to = format!("oci:{}:{TAG}", directory.display());
        match self {
            // The level that is quickest to write.
            Self::Estargz => with_ctr_remote(image, &["--estargz", "--estargz-compression-level", "1"], &to)?,
            Self::EstargzApart => {
                let options = [
                    "--estargz",
                    "--estargz-external-toc",
                    "--estargz-compression-level",
                    "1",
                ];
                with_ctr_remote(image, &options, &to)?;
            }
            // With many files of some hundred bytes in a member.
            Self::EstargzShared => {
                with_ctr_remote(image, &["--estargz", "--estargz-min-chunk-size", "50000"], &to)?;
            }
            Self::StargzZstd => with_ctr_remote(image, &["--zstdchunked"], &to)?,
            Self::Skopeo => {
                let skopeo = Command::new(prerequisites::command("skopeo", "skopeo")?);
                recompress(skopeo, &image.reference(), &to)?;
            }
            Self::RecentSkopeo => recompress(recent_skopeo()?, &image.reference(), &to)?,
        }
        Ok(Layout::open(directory))
    }
}

fn recompress(mut skopeo: Command, from: &str, to: &str) -> Result<()> {
    skopeo.args([
        "copy",
        "--insecure-policy",
        "--dest-compress-format",
        "zstd:chunked",
    ]);
    process::run(skopeo.args([from, to])).map(drop)
}

/// Pulls the image into a containerd, has it converted there, and takes it out.
fn with_ctr_remote(image: &Image, options: &[&str], to: &str) -> Result<()> {
    let program = unpacked("SLUICE_STARGZ", "stargz", "ctr-remote")?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let containerd = Containerd::start()?;
    let source = format!("{}/test:{}", registry.address(), image.tag);
    containerd.pull(&source)?;
    let mut convert = Command::new(program);
    convert.arg("--address").arg(containerd.socket());
    convert.args(["images", "convert", "--oci"]).args(options);
    let printed = process::run(convert.args([source.as_str(), CONVERTED]))?;
    export(&containerd, CONVERTED, to)?;
    let apart = printed
        .lines()
        .find_map(|line| line.strip_prefix("extra image: "));
    apart.map_or(Ok(()), |apart| {
        export(&containerd, apart, &format!("{to}-esgztoc"))
    })
}

/// Takes an image out of a containerd.
fn export(containerd: &Containerd, image: &str, to: &str) -> Result<()> {
    let scratch = Scratch::new("export")?;
    let archive = scratch.join("archive.tar");
    let path = archive.to_str().context("the scratch directory is not UTF-8")?;
    process::run(&mut containerd.ctr(["images", "export", "--all-platforms", path, image]))?;
    let mut skopeo = Command::new(prerequisites::command("skopeo", "skopeo")?);
    skopeo.args(["copy", "--insecure-policy", "--preserve-digests"]);
    process::run(skopeo.args([&format!("oci-archive:{path}"), to])).map(drop)
}

/// skopeo of Debian unstable, run with the libraries it came with.
fn recent_skopeo() -> Result<Command> {
    let program = unpacked("SLUICE_SKOPEO", "skopeo", "skopeo")?;
    let root = program.ancestors().nth(3).context("skopeo has no directory")?;
    let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    command.args([
        OsStr::new("--library-path"),
        libraries.as_os_str(),
        program.as_os_str(),
    ]);
    Ok(command)
}

/// A program of a package that `tests/setup.sh` has unpacked: below the directory that `variable` names, or `target/<name>`.
fn unpacked(variable: &str, name: &str, program: &str) -> Result<PathBuf> {
    let root = match env::var_os(variable) {
        Some(directory) => PathBuf::from(directory),
        None => scratch::target_directory()?.join(name),
    };
    let program = root.join("usr/bin").join(program);
    ensure!(
        program.is_file(),
        "{} is missing: run tests/setup.sh",
        program.display()
    );
    Ok(program)
}
