//! `sluice index`.

use std::sync::Arc;

use anyhow::bail;
use serde_json::json;
use sluice_converter::report::{IndexReport, IndexedLayerReport};
use sluice_format::Limits;
use sluice_storage::registry::RegistryClient;
use sluice_storage::{ImageName, Layout, WritableRepository, resolve_image};

use crate::args::index::IndexArgs;
use crate::progress::{Bars, with_bars};
use crate::{output, wiring};

pub(super) fn run(args: &IndexArgs) -> anyhow::Result<()> {
    let report = with_bars(args.common.json, async |bars| work(args, bars).await)?;
    if args.common.json {
        let mut document = json!(report);
        document["image"] = args.image.to_string().into();
        return output::json(&document);
    }
    print(args, &report)
}

async fn work(args: &IndexArgs, bars: &Bars) -> anyhow::Result<IndexReport> {
    let registries = wiring::registries(&args.common);
    let platform = wiring::platform(args.platform.as_deref())?;
    let limits = Limits::default();
    let (repository, name) = wiring::writable_repository(&args.image, &registries)?;
    let target = match &args.output {
        None => repository.clone(),
        Some(output) => target(output, &registries)?,
    };
    let resolved = resolve_image(repository.as_ref(), &name, &platform, &limits).await?;
    let created = wiring::now();
    let (source, target) = (repository.as_ref(), target.as_ref());
    Ok(sluice_converter::index(source, &resolved, target, &created, &limits, bars).await?)
}

fn target(
    output: &ImageName,
    registries: &Arc<RegistryClient>,
) -> anyhow::Result<Arc<dyn WritableRepository>> {
    match output {
        ImageName::Registry(reference) => Ok(registries.repository(reference)?),
        ImageName::Layout { path, .. } => Ok(Arc::new(Layout::create(path)?)),
        other => bail!("indexes cannot be written to {other}: give docker:// or oci:"),
    }
}

fn print(args: &IndexArgs, report: &IndexReport) -> anyhow::Result<()> {
    for layer in &report.layers {
        output::line(format!("  {}", describe(layer)))?;
        for warning in &layer.warnings {
            tracing::warn!("{warning}");
        }
    }
    let sum = |part: fn(&IndexedLayerReport) -> u64| report.layers.iter().map(part).sum();
    let (stored, plain): (u64, u64) = (sum(|layer| layer.stored_len), sum(|layer| layer.plain_len));
    let index: u64 = sum(|layer| layer.index_stored_len);
    output::line(format!(
        "{} layers, {} stored, {} plain: {} of layer indexes ({:.2} % of the stored bytes), in {:.1} s",
        report.layers.len(),
        output::bytes(stored),
        output::bytes(plain),
        output::bytes(index),
        100.0 * index as f64 / stored.max(1) as f64,
        report.seconds
    ))?;
    let place = args.output.as_ref().unwrap_or(&args.image);
    match report.artifact_digest {
        Some(artifact) => output::line(format!(
            "attached to {} in {place} as {artifact}",
            report.manifest_digest
        )),
        None => output::line("no index was made, so nothing is attached"),
    }
}

fn describe(layer: &IndexedLayerReport) -> String {
    let stored = output::bytes(layer.stored_len);
    match &layer.refusal {
        Some(refusal) => format!("{}  {stored}  not indexed: {refusal}", layer.digest),
        None => format!(
            "{}  {stored}  {} chunks, index {}",
            layer.digest,
            layer.chunks,
            output::bytes(layer.index_stored_len)
        ),
    }
}
