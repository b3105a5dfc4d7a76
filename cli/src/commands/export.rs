//! `sluice export`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{bail, ensure};
use sluice_converter::report::{ExportReport, Origin};
use sluice_converter::{ExportOptions, LayerForm, Source, Target, export};
use sluice_storage::{Cache, CacheOptions, ImageName, ManifestName, Platform};

use crate::args::export::{Destination, ExportArgs};
use crate::containerd::client::Client;
use crate::containerd::content::ContentStore;
use crate::containerd::lease::under_lease;
use crate::progress::{Bars, with_bars};
use crate::{output, wiring};

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let report = with_bars(args.common.json, async |bars| work(args, bars).await)?;
    if args.common.json {
        output::json(&report)
    } else {
        print(args, &report)
    }
}

async fn work(args: &ExportArgs, bars: &Bars) -> anyhow::Result<ExportReport> {
    let registries = wiring::registries(&args.common);
    let cache = cache(args)?;
    let mut source = Source::open(&args.image, &registries).await?;
    if let Some(cache) = &cache {
        source = source.remembering(cache);
    }
    let options = options(args)?;
    match &args.destination {
        Destination::Place(name) => {
            let target = Target::create(name, &registries).await?;
            Ok(export(&source, &target, cache.as_ref(), &options, bars).await?)
        }
        Destination::Containerd(name) => {
            let name = name_there(args, name.as_deref())?;
            into_containerd(args, &name, source, cache.as_ref(), &options, bars).await
        }
    }
}

/// The cache, if there is one.
fn cache(args: &ExportArgs) -> anyhow::Result<Option<Arc<Cache>>> {
    let dir = args.cache.clone().map_or_else(Cache::default_dir, Ok)?;
    if !dir.is_dir() {
        let is_needed = args.plain || args.cache.is_some();
        ensure!(!is_needed, "there is no cache directory {}", dir.display());
        return Ok(None);
    }
    let options = CacheOptions {
        upkeep: false,
        ..CacheOptions::default()
    };
    Ok(Some(Cache::open_with(dir, options)?))
}

fn options(args: &ExportArgs) -> anyhow::Result<ExportOptions> {
    let in_containerd = matches!(args.destination, Destination::Containerd(_));
    let platform = match args.platform.as_deref() {
        // A pull brings one platform; the others would be as much again of what nobody runs here.
        None if in_containerd || args.plain => Some(Platform::host()),
        None => None,
        Some(text) => wiring::platforms(text)?,
    };
    Ok(ExportOptions {
        form: match args.plain {
            true => LayerForm::Plain,
            false => LayerForm::Original,
        },
        platform,
        keeps_index: in_containerd,
        ..ExportOptions::default()
    })
}

/// What containerd calls the image.
fn name_there(args: &ExportArgs, name: Option<&str>) -> anyhow::Result<String> {
    match (name, &args.image) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, ImageName::Registry(reference)) => Ok(reference.to_string()),
        (None, image) => bail!("containerd has no name for {image}: give one as containerd:NAME"),
    }
}

/// Makes up for what an image lacks in containerd. When the image is there, it is the one that its name means there, whatever the name
/// means in the registry by now.
async fn into_containerd(
    args: &ExportArgs,
    name: &str,
    source: Source,
    cache: Option<&Arc<Cache>>,
    options: &ExportOptions,
    bars: &Bars,
) -> anyhow::Result<ExportReport> {
    let (socket, namespace): (&Path, &str) =
        (&args.containerd.containerd_address, &args.containerd.namespace);
    let client = Client::connect(socket, namespace).await?;
    let source = match client.image_target(name).await? {
        Some(digest) => source.named(ManifestName::Digest(digest.parse()?)),
        None => source,
    };
    under_lease(&client, "export", async |leased| {
        let store = Arc::new(ContentStore::new(leased, namespace));
        let target = Target::new(format!("containerd:{name}"), store.clone(), name);
        let exported = export(&source, &target, cache, options, bars).await;
        if exported.is_err() {
            store.clean_up().await;
        }
        Ok(exported?)
    })
    .await
}

fn print(args: &ExportArgs, report: &ExportReport) -> anyhow::Result<()> {
    let of = |origin| {
        let blobs = report.blobs.iter().filter(move |blob| blob.origin == origin);
        blobs.fold((0, 0), |(count, len), blob| (count + 1, len + blob.stored_len))
    };
    let (fetched, cached, present) = (of(Origin::Source), of(Origin::Cache), of(Origin::Present));
    output::line(format!(
        "{} blobs: {} ({}) from {}, {} ({}) from the cache, {} were there; in {:.1} s",
        report.blobs.len(),
        fetched.0,
        output::bytes(fetched.1),
        args.image,
        cached.0,
        output::bytes(cached.1),
        present.0,
        report.seconds
    ))?;
    output::line(format!("{} {}", report.target, report.digest))
}
