//! Directory in, image out: one layer with everything under the directory.
//!
//! The tar stream ([`walk`]) goes through the same stages as a layer that is converted, or is stored as an ordinary layer
//! ([`ordinary`]) when asked. Config and manifest ([`config`]) hold nothing of the time and place of packing, so the same
//! tree packed twice gives the same image.

mod config;
mod ordinary;
mod walk;
mod xattrs;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::Value;
use sluice_format::{BlobDigest, Digest, Limits, artifact};
use sluice_storage::{ByteStream, Platform};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use self::config::PackedLayer;
use self::walk::Walked;
use crate::convert::{DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, check_recompression, threads};
use crate::error::joined;
use crate::progress::Progress;
use crate::recompress::{Expected, Recompressor};
use crate::report::PackReport;
use crate::{Error, Target};

/// Pieces of the tar stream that may wait for the next stage.
const TAR_QUEUE: usize = 4;

/// How the layer of a packed image is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PackFormat {
    /// Chunks with a layer index.
    #[default]
    Sluice,
    /// gzip, as other tools build images.
    Gzip,
    /// A plain tar.
    Tar,
}

/// How to pack.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Command that always runs; empty keeps the one of `config_file`.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command where there is no entry point; empty keeps those of `config_file`.
    pub cmd: Vec<String>,
    /// `KEY=value` settings, added to those of `config_file`.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// User, and group after a colon, by name or number.
    pub user: Option<String>,
    /// Labels, added to those of `config_file`.
    pub labels: BTreeMap<String, String>,
    /// Platform; `None` for that of `config_file` or else this host's.
    pub platform: Option<Platform>,
    /// An image config to begin with. Its `rootfs`, `history` and `created` are replaced.
    pub config_file: Option<PathBuf>,
    /// Time of creation in seconds after the epoch. File times are kept as they are.
    pub created: u64,
    /// How the layer is stored.
    pub format: PackFormat,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Plain bytes in a chunk of a large file, a power of two from 16 KiB to 4 MiB.
    pub chunk_size: u32,
    /// Compressing threads; `None` for one per core.
    pub jobs: Option<NonZeroUsize>,
    /// Bounds on what the directory may contain.
    pub limits: Limits,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
            labels: BTreeMap::new(),
            platform: None,
            config_file: None,
            created: 0,
            format: PackFormat::default(),
            level: DEFAULT_LEVEL,
            chunk_size: DEFAULT_CHUNK_SIZE,
            jobs: None,
            limits: Limits::default(),
        }
    }
}

/// Makes an image of everything under `directory` and stores it as `target`.
///
/// # Errors
/// What hinders reading or writing; [`Error::Refused`] for options out of bounds. The target then has no new manifest.
pub async fn pack(
    directory: &Path,
    target: &Target,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackReport, Error> {
    let started = Instant::now();
    check_recompression(options.level, options.chunk_size)?;
    if !directory.is_dir() {
        return Err(Error::Refused(format!(
            "{} is not a directory",
            directory.display()
        )));
    }
    let base = options
        .config_file
        .as_deref()
        .map(|path| load_config(path, &options.limits))
        .transpose()?;

    let (tar, walking) = tar_stream(directory);
    let mut warnings = Vec::new();
    let layer = store_layer(tar, target, options, progress, &mut warnings).await?;
    let walked = joined(walking.await.map(Ok))?;
    warnings.splice(..0, walked.warnings);

    let config = config::config(base, options, layer.diff_id)?.to_string();
    put_config(target, &config).await?;
    let manifest = Bytes::from(config::manifest(config.as_bytes(), &layer).to_string());
    let digest = Digest::of(&manifest);
    target.put_root(artifact::OCI_MANIFEST, manifest).await?;
    target.seal().await?;
    Ok(PackReport {
        target: target.to_string(),
        digest,
        image_id: Digest::of(config.as_bytes()),
        layer: layer.digest,
        diff_id: layer.diff_id,
        entries: walked.entries,
        plain_len: layer.plain_len,
        stored_len: layer.stored_len,
        chunks: layer.chunks,
        warnings,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn load_config(path: &Path, limits: &Limits) -> Result<Value, Error> {
    let what = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| Error::io(format!("cannot read {what}"), error))?;
    sluice_format::FormatError::check_limit("length of a config", bytes.len() as u64, limits.manifest_len)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::document(what, error))
}

fn tar_stream(directory: &Path) -> (ByteStream, JoinHandle<Walked>) {
    let (to, pieces) = mpsc::channel(TAR_QUEUE);
    let root = directory.to_owned();
    let walking = spawn_blocking(move || walk::walk(&root, to));
    let pieces = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    });
    (pieces.boxed(), walking)
}

async fn store_layer(
    tar: ByteStream,
    target: &Target,
    options: &PackOptions,
    progress: &dyn Progress,
    warnings: &mut Vec<String>,
) -> Result<PackedLayer, Error> {
    let writer = target.repository().begin_blob().await?;
    if options.format != PackFormat::Sluice {
        return ordinary::store(tar, options.format == PackFormat::Gzip, writer).await;
    }
    let threads = threads(options.jobs);
    let recompressor =
        Recompressor::start(threads, options.level, options.chunk_size, options.limits.clone())?;
    let advanced = |len| progress.packed(len);
    let new = recompressor
        .run(tar, &Expected::default(), writer, &advanced)
        .await?;
    warnings.extend(new.warnings);
    Ok(PackedLayer {
        media_type: artifact::OCI_LAYER_ZSTD,
        digest: new.digest,
        stored_len: new.stored_len,
        diff_id: new.diff_id,
        plain_len: new.plain_len,
        chunks: new.chunks,
        index: Some(new.location),
    })
}

async fn put_config(target: &Target, config: &str) -> Result<(), Error> {
    let bytes = Bytes::copy_from_slice(config.as_bytes());
    let digest = BlobDigest(Digest::of(&bytes));
    if target.repository().has_blob(&digest).await? {
        return Ok(());
    }
    let mut writer = target.repository().begin_blob().await?;
    writer.write(bytes).await?;
    Ok(writer.finish(digest).await?)
}
