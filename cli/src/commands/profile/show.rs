//! `sluice profile show`.

use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;
use sluice_format::name::Printable;
use sluice_format::profile::Demand;
use sluice_format::{ChunkTable, DiffId, Limits, Profile};
use sluice_storage::Cache;
use sluice_storage::profile::{PlannedChunk, plan};
use sluice_storage::{ImageName, LazyImage};

use super::{load, store};
use crate::args::profile::{ProfileName, ProfileOfArgs, ProfileStoreArgs};
use crate::files_by_place::FilesByPlace;
use crate::{output, wiring};

/// Hex digits that tell layers apart for people.
const SHORT_DIGITS: usize = 12;
/// Files named per range for people.
const NAMED_MAX: usize = 3;

/// A profile, and what only the image tells about it.
#[derive(Debug, Serialize)]
struct Shown {
    image_id: String,
    runs: u32,
    plain_len: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<ShownImage>,
    demands: Vec<ShownDemand>,
}

#[derive(Debug, Serialize)]
struct ShownImage {
    /// Plain and stored bytes of the layers.
    plain_len: u64,
    stored_len: u64,
    /// Chunks that the next start fetches ahead, and their stored bytes.
    planned_chunks: usize,
    planned_stored_len: u64,
}

#[derive(Debug, Serialize)]
struct ShownDemand {
    first_ms: u32,
    /// Position in the image, 1 for the lowest.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    diff_id: String,
    plain_off: u64,
    plain_len: u64,
    seen: u8,
    missed: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<String>,
}

pub(super) fn run(args: &ProfileOfArgs) -> anyhow::Result<()> {
    let store = store(args.store.cache.as_deref())?;
    let (image_id, image) = match &args.image {
        ProfileName::Id(image_id) => (*image_id, None),
        ProfileName::Image(name) => {
            let image = load_image(name, &args.store)?;
            (image.image_id, Some(image))
        }
    };
    let profile = load(&store, &image_id, &args.image.to_string())?;
    let shown = describe(&profile, image.as_ref())?;
    if args.store.common.json {
        output::json(&shown)
    } else {
        print(&shown, &profile)
    }
}

fn load_image(name: &ImageName, args: &ProfileStoreArgs) -> anyhow::Result<LazyImage> {
    wiring::run(async {
        let registries = wiring::registries(&args.common);
        let platform = wiring::platform(args.platform.as_deref())?;
        let cache = Cache::open(args.cache.clone().map_or_else(Cache::default_dir, Ok)?)?;
        wiring::load_image(name, &platform, &registries, &cache).await
    })
}

fn describe(profile: &Profile, image: Option<&LazyImage>) -> anyhow::Result<Shown> {
    let files = match image {
        Some(image) => {
            let tree = image.merged_tree(&Limits::default())?;
            Some(FilesByPlace::new(&tree, |_, _| true))
        }
        None => None,
    };
    let mut demands = Vec::new();
    for layer in profile.layers() {
        let same = |image: &LazyImage| image.layers.iter().position(|own| own.diff_id == layer.diff_id);
        let place = image.and_then(same);
        for demand in &layer.demands {
            demands.push(ShownDemand {
                first_ms: demand.first_ms,
                layer: place.map(|place| place + 1),
                diff_id: layer.diff_id.to_string(),
                plain_off: demand.plain_off,
                plain_len: demand.plain_len,
                seen: demand.seen,
                missed: demand.missed,
                files: named(files.as_ref(), place, demand),
            });
        }
    }
    demands.sort_by_key(|demand| (demand.first_ms, demand.layer, demand.plain_off));
    Ok(Shown {
        image_id: profile.image_id().to_string(),
        runs: profile.runs(),
        plain_len: profile.plain_len(),
        image: image.map(|image| weigh(profile, image)),
        demands,
    })
}

fn named(files: Option<&FilesByPlace>, place: Option<usize>, demand: &Demand) -> Vec<String> {
    let (Some(files), Some(Ok(device))) = (files, place.map(|place| u16::try_from(place + 1))) else {
        return Vec::new();
    };
    let range = demand.plain_range();
    let mut found: Vec<usize> = files.within(device, &range).map(|part| part.file).collect();
    found.dedup();
    let name = |file: &usize| {
        let path = files.path(*file).as_os_str();
        format!("/{}", Printable(path.as_bytes()))
    };
    found.iter().map(name).collect()
}

fn weigh(profile: &Profile, image: &LazyImage) -> ShownImage {
    let tables: Vec<(DiffId, &ChunkTable)> = image
        .layers
        .iter()
        .map(|layer| (layer.diff_id, layer.index.chunks.as_ref()))
        .collect();
    let planned = plan(profile, &tables);
    let stored = |chunk: &PlannedChunk| u64::from(tables[chunk.layer].1.chunks()[chunk.chunk].stored_len);
    ShownImage {
        plain_len: image.layers.iter().map(|layer| layer.plain_len).sum(),
        stored_len: image.layers.iter().map(|layer| layer.descriptor.size).sum(),
        planned_chunks: planned.len(),
        planned_stored_len: planned.iter().map(stored).sum(),
    }
}

fn print(shown: &Shown, profile: &Profile) -> anyhow::Result<()> {
    output::line(format!("image ID {}: {}", shown.image_id, extent(profile)))?;
    if let Some(image) = &shown.image {
        output::line(format!(
            "the next start fetches {} chunks ahead: {} of {} ({:.1} %)",
            image.planned_chunks,
            output::bytes(image.planned_stored_len),
            output::bytes(image.stored_len),
            percent(image.planned_stored_len, image.stored_len)
        ))?;
    }
    output::line(format!(
        "{:>8}  {:<12}  {:>5}  {:>24}  {:>9}  files",
        "ms", "layer", "seen", "plain range", "bytes"
    ))?;
    for demand in &shown.demands {
        let layer = demand
            .layer
            .map_or_else(|| short(&demand.diff_id), |place| place.to_string());
        let row = format!(
            "{:>8}  {layer:<12}  {:>5}  {:>24}  {:>9}  {}",
            demand.first_ms,
            demand.seen,
            format!("{}+{}", demand.plain_off, demand.plain_len),
            output::bytes(demand.plain_len),
            shortened(&demand.files)
        );
        output::line(row.trim_end())?;
    }
    Ok(())
}

/// A few names for people.
fn shortened(paths: &[String]) -> String {
    let mut text = paths[..paths.len().min(NAMED_MAX)].join(" ");
    if paths.len() > NAMED_MAX {
        text.push_str(&format!(" and {} more", paths.len() - NAMED_MAX));
    }
    text
}

/// "3 starts, 412 ranges, 101.3 MB plain".
pub(super) fn extent(profile: &Profile) -> String {
    let starts = match profile.runs() {
        1 => "1 start".to_owned(),
        runs => format!("{runs} starts"),
    };
    format!(
        "{starts}, {} ranges, {} plain",
        profile.demand_count(),
        output::bytes(profile.plain_len())
    )
}

fn short(diff_id: &str) -> String {
    let hex = diff_id.strip_prefix("sha256:").unwrap_or(diff_id);
    hex.chars().take(SHORT_DIGITS).collect()
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    part as f64 * 100.0 / whole as f64
}
