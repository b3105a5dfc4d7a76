//! Image in, image out: the same plain layers as chunks, each with its layer index.
//!
//! [`convert`] reads the documents of the source ([`plan`]), converts the distinct layers ([`layers`]), makes sure that
//! their trees can be stacked, and only then stores manifests, image indexes and the tag ([`publish`]). What a layer
//! becomes is the business of [`crate::recompress`]. DiffIDs and config bytes, and thereby the image ID, stay as they are;
//! so does every field of every document that has nothing to do with the stored form of the layers.

pub(crate) mod documents;
mod kept;
mod layers;
mod plan;
mod publish;

use std::num::NonZeroUsize;
use std::time::Instant;

use sluice_format::{LayerIndex, Limits, merge::merge};
use sluice_storage::Platform;
use tokio::task::spawn_blocking;

pub use sluice_format::cut::DEFAULT_CHUNK_SIZE;

pub(crate) use self::kept::find_index;
pub(crate) use self::plan::{ImagePlan, Plan, SourceLayer, read as read_plan, read_sparse};

use self::layers::{ConvertedLayers, LayerConverter};
use self::publish::{Place, Publisher};
use crate::error::joined;
use crate::progress::Progress;
use crate::recompress::Recompressor;
use crate::report::{ConvertReport, Totals};
use crate::{Error, Source, Target};

/// zstd level of new chunks.
pub const DEFAULT_LEVEL: i32 = 5;

/// Bounds of the chunk size: below, the chunk table outweighs the gain; above, a read of one page fetches megabytes.
const CHUNK_SIZES: std::ops::RangeInclusive<u32> = (16 << 10)..=(4 << 20);

/// zstd levels that are taken: the negative ones write images larger than gzip does, those above 19 need windows that
/// chunks are too small to use.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// Layers under way at once, at least and at most: enough that the serial stages of one (reading, gunzip) leave no core
/// idle, few enough that their queues and trees stay small.
const LAYERS_IN_FLIGHT: (usize, usize) = (2, 4);

/// How to convert.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Plain bytes in a chunk of a large file, a power of two from 16 KiB to 4 MiB.
    pub chunk_size: u32,
    /// The one image of an image index to convert; `None` converts the whole image index.
    pub platform: Option<Platform>,
    /// Compressing threads; `None` for one per core. The result does not depend on it.
    pub jobs: Option<NonZeroUsize>,
    /// Bounds on what the source may contain.
    pub limits: Limits,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            level: DEFAULT_LEVEL,
            chunk_size: DEFAULT_CHUNK_SIZE,
            platform: None,
            jobs: None,
            limits: Limits::default(),
        }
    }
}

/// Refuses a level or chunk size outside its bounds.
pub(crate) fn check_recompression(level: i32, chunk_size: u32) -> Result<(), Error> {
    if !LEVELS.contains(&level) {
        return Err(Error::Refused(format!(
            "zstd level {level} is not between {} and {}",
            LEVELS.start(),
            LEVELS.end()
        )));
    }
    if !CHUNK_SIZES.contains(&chunk_size) || !chunk_size.is_power_of_two() {
        return Err(Error::Refused(format!(
            "chunk size {chunk_size} is not a power of two from 16 KiB to 4 MiB"
        )));
    }
    Ok(())
}

/// The number of compressing threads to use.
pub(crate) fn threads(jobs: Option<NonZeroUsize>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    jobs.map_or_else(cores, NonZeroUsize::get)
}

/// Converts the image `source` and stores it as `target`.
///
/// # Errors
/// The first failure. The target then has no new manifest and no new tag; blobs of layers that were finished before the
/// failure may remain in a registry or a layout, unreferenced.
pub async fn convert(
    source: &Source,
    target: &Target,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<ConvertReport, Error> {
    let started = Instant::now();
    check_recompression(options.level, options.chunk_size)?;
    let platform = options.platform.as_ref();
    let plan = read_plan(source.repository(), source.name(), platform, &options.limits).await?;

    let layers = convert_layers(&plan, source, target, options, progress).await?;
    for image in plan.images() {
        check_mountable(image, &layers, &options.limits).await?;
    }

    let mut publisher = Publisher {
        source,
        target,
        layers: &layers,
        images: Vec::new(),
    };
    let published = publisher.publish(&plan, Place::Root).await?;
    let images = publisher.images;
    target.seal().await?;

    let mut totals = Totals::default();
    layers.values().for_each(|layer| totals.add(&layer.report));
    Ok(ConvertReport {
        source: source.to_string(),
        target: target.to_string(),
        source_digest: plan.digest(),
        digest: published.digest,
        images,
        copied_manifests: plan
            .copies()
            .iter()
            .map(|copy| copy.manifest.digest.to_string())
            .collect(),
        warnings: Vec::new(),
        totals,
        seconds: started.elapsed().as_secs_f64(),
    })
}

async fn convert_layers(
    plan: &Plan,
    source: &Source,
    target: &Target,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<ConvertedLayers, Error> {
    let threads = threads(options.jobs);
    let recompressor =
        Recompressor::start(threads, options.level, options.chunk_size, options.limits.clone())?;
    let converter = LayerConverter {
        source,
        target,
        recompressor: &recompressor,
        limits: &options.limits,
        progress,
    };
    let (least, most) = LAYERS_IN_FLIGHT;
    converter.convert_all(plan, threads.clamp(least, most)).await
}

/// Stacks the layer trees of an image, as every mount of it will.
///
/// # Errors
/// What hinders it, such as a hard link whose target is in no layer below.
async fn check_mountable(image: &ImagePlan, layers: &ConvertedLayers, limits: &Limits) -> Result<(), Error> {
    let indexes: Vec<_> = image
        .layers
        .iter()
        .filter_map(|layer| Some(layers.get(&layer.key())?.index.clone()))
        .collect();
    let limits = limits.clone();
    let merging = spawn_blocking(move || {
        let trees = indexes
            .iter()
            .map(|index| LayerIndex::parse(index, &limits)?.layer_tree(&limits))
            .collect::<Result<_, _>>()?;
        merge(trees, &limits)?;
        Ok(())
    });
    joined(merging.await).map_err(|error| error.of_manifest(image.manifest.digest))
}
