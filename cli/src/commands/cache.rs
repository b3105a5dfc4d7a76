//! `sluice cache`: what is in the cache, room in it, and its check.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{bail, ensure};
use serde_json::json;
use sluice_format::DiffId;
use sluice_storage::cache::{Goal, ImageEntry, Inventory, LayerEntry, PartialEntry, Pin};
use sluice_storage::{Cache, CacheOptions, ImageName};

use crate::args::{CacheArgs, CacheCommand, PruneArgs};
use crate::output;

/// Share of the quota, in percent, that `prune` leaves unless it is told otherwise: where evictions of a mount end too.
const KEEP_PERCENT: u64 = 85;

/// The check removed damaged chunks; what they are has been printed.
#[derive(Debug, thiserror::Error)]
#[error("damaged chunks were removed")]
pub(crate) struct Damaged;

pub(super) fn run(args: &CacheArgs) -> anyhow::Result<()> {
    let cache = open(args)?;
    match &args.command {
        CacheCommand::Ls => ls(args, &cache.inventory()),
        CacheCommand::Du => du(args, &cache.inventory()),
        CacheCommand::Prune(prune_args) => prune(args, prune_args, &cache),
        CacheCommand::Pin { what } => {
            let pin = find(what, &cache.inventory())?;
            cache.pin(&pin)?;
            report_pin(args, &pin, true)
        }
        CacheCommand::Unpin { what } => {
            let pin = find(what, &cache.inventory())?;
            cache.unpin(&pin)?;
            report_pin(args, &pin, false)
        }
        CacheCommand::Verify => verify(args, &cache),
    }
}

fn open(args: &CacheArgs) -> anyhow::Result<Arc<Cache>> {
    let dir = args.cache.clone().map_or_else(Cache::default_dir, Ok)?;
    ensure!(dir.is_dir(), "there is no cache directory {}", dir.display());
    let options = CacheOptions {
        upkeep: false,
        ..CacheOptions::default()
    };
    Ok(Cache::open_with(dir, options)?)
}

fn ls(args: &CacheArgs, inventory: &Inventory) -> anyhow::Result<()> {
    if args.json {
        return output::json(inventory);
    }
    for image in &inventory.images {
        output::line(describe_image(image))?;
    }
    for layer in &inventory.layers {
        output::line(describe_layer(layer))?;
    }
    for partial in &inventory.partial {
        output::line(describe_partial(partial))?;
    }
    Ok(())
}

fn describe_image(image: &ImageEntry) -> String {
    format!(
        "{:>9} of {:>9}  {:>10}  {:14}  image {} ({})",
        output::bytes(image.cached_bytes),
        output::bytes(image.plain_len),
        age(image.record.used),
        marks(image.pinned, image.complete, false),
        image.record.name,
        image.record.platform,
    )
}

fn describe_layer(layer: &LayerEntry) -> String {
    format!(
        "{:>9} of {:>9}  {:>10}  {:14}  layer {}",
        output::bytes(layer.cached_bytes),
        output::bytes(layer.plain_len),
        age(layer.used),
        marks(layer.pinned, layer.complete, layer.verified),
        layer.diff_id,
    )
}

fn describe_partial(partial: &PartialEntry) -> String {
    format!(
        "{:>9} of {:>9}  {:>10}  {:14}  blob {}",
        output::bytes(partial.disk_bytes),
        output::bytes(partial.stored_len),
        age(partial.used),
        "not complete",
        partial.blob,
    )
}

fn marks(pinned: bool, complete: bool, verified: bool) -> String {
    let complete = match (complete, verified) {
        (_, true) => Some("verified"),
        (true, false) => Some("complete"),
        (false, false) => None,
    };
    let marks: Vec<&str> = pinned.then_some("pinned").into_iter().chain(complete).collect();
    marks.join(",")
}

/// How long ago a second after the epoch was: "5m ago".
fn age(used: u64) -> String {
    if used == 0 {
        return "never".to_owned();
    }
    let seconds = now().as_secs().saturating_sub(used);
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86400),
    }
}

fn now() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

fn du(args: &CacheArgs, inventory: &Inventory) -> anyhow::Result<()> {
    let cached: u64 = inventory.layers.iter().map(|layer| layer.cached_bytes).sum();
    let plain: u64 = inventory.layers.iter().map(|layer| layer.plain_len).sum();
    let partial: u64 = inventory.partial.iter().map(|partial| partial.disk_bytes).sum();
    if args.json {
        return output::json(&json!({
            "disk_bytes": inventory.disk_bytes,
            "quota": inventory.quota,
            "cached_bytes": cached,
            "plain_len": plain,
            "images": inventory.images.len(),
            "layers": inventory.layers.len(),
            "partial_bytes": partial,
            "partial_blobs": inventory.partial.len(),
        }));
    }
    output::line(format!(
        "{} on the disk, at most {}; {} of {} plain bytes of {} layers of {} images; {} of {} blobs that are not complete",
        output::bytes(inventory.disk_bytes),
        output::bytes(inventory.quota),
        output::bytes(cached),
        output::bytes(plain),
        inventory.layers.len(),
        inventory.images.len(),
        output::bytes(partial),
        inventory.partial.len(),
    ))
}

fn prune(args: &CacheArgs, prune_args: &PruneArgs, cache: &Arc<Cache>) -> anyhow::Result<()> {
    let used_before = prune_args
        .older_than
        .map(|age| now().saturating_sub(age).as_secs());
    let keep = match (prune_args.keep, prune_args.all || used_before.is_some()) {
        (Some(size), _) => size.as_u64(),
        (None, true) => 0,
        (None, false) => cache.quota() / 100 * KEEP_PERCENT,
    };
    let evicted = cache.evict(Goal { keep, used_before })?;
    if evicted.busy {
        bail!("another process is making room in {}", cache.path().display());
    }
    if args.json {
        return output::json(&json!({
            "disk_bytes_before": evicted.before,
            "disk_bytes": evicted.after,
            "chunks": evicted.chunks,
            "layers": evicted.layers,
        }));
    }
    output::line(format!(
        "{} freed, {} stay; {} chunks and {} layers were removed",
        output::bytes(evicted.before.saturating_sub(evicted.after)),
        output::bytes(evicted.after),
        evicted.chunks,
        evicted.layers,
    ))
}

/// What a text names: a layer by DiffID, or an image by its name or a digest of its documents.
fn find(text: &str, inventory: &Inventory) -> anyhow::Result<Pin> {
    if inventory.layers.iter().any(|layer| layer.diff_id == text) {
        return Ok(Pin::Layer(text.parse::<DiffId>()?));
    }
    let name = text.parse::<ImageName>().map(|name| name.to_string()).ok();
    let is_meant = |image: &&ImageEntry| {
        let record = &image.record;
        [&record.name, &record.manifest, &record.image_id].contains(&&text.to_owned())
            || name.as_ref() == Some(&record.name)
    };
    match inventory.images.iter().find(is_meant) {
        Some(image) => Ok(Pin::Image(image.record.name.clone())),
        None => bail!("the cache has no image and no layer {text}; `sluice cache ls` lists what it has"),
    }
}

fn report_pin(args: &CacheArgs, pin: &Pin, pinned: bool) -> anyhow::Result<()> {
    if args.json {
        return output::json(&json!({ "what": pin.to_string(), "pinned": pinned }));
    }
    let state = if pinned {
        "is pinned"
    } else {
        "is not pinned any more"
    };
    output::line(format!("{pin} {state}"))
}

fn verify(args: &CacheArgs, cache: &Arc<Cache>) -> anyhow::Result<()> {
    let checked = cache.verify();
    if args.json {
        output::json(&checked)?;
    } else {
        for layer in &checked.bad_layers {
            output::line(format!("layer {layer} had damaged chunks"))?;
        }
        output::line(format!(
            "{} chunks of {} layers verified, {}; {} damaged chunks and {} damaged documents were removed",
            checked.chunks,
            checked.layers,
            output::bytes(checked.bytes),
            checked.bad_chunks,
            checked.bad_documents,
        ))?;
    }
    if checked.is_sound() {
        return Ok(());
    }
    Err(Damaged.into())
}
