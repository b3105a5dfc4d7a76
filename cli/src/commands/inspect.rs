//! `sluice inspect`.

use sluice_converter::inspect::{InspectReport, InspectedLayer, InspectedManifest};
use sluice_converter::{Source, inspect};
use sluice_format::Limits;

use crate::args::LookArgs;
use crate::{output, wiring};

pub(super) fn run(args: &LookArgs) -> anyhow::Result<()> {
    let report = wiring::run(work(args))?;
    if args.common.json {
        output::json(&report)
    } else {
        print(&report)
    }
}

async fn work(args: &LookArgs) -> anyhow::Result<InspectReport> {
    let registries = wiring::registries(&args.common);
    let source = Source::open(&args.source, &registries).await?;
    let platform = args.platform.as_deref().map(str::parse).transpose()?;
    Ok(inspect(&source, platform.as_ref(), &Limits::default()).await?)
}

fn print(report: &InspectReport) -> anyhow::Result<()> {
    output::line(format!(
        "{} {} ({})",
        report.name, report.digest, report.media_type
    ))?;
    report.manifests.iter().try_for_each(print_manifest)
}

fn print_manifest(manifest: &InspectedManifest) -> anyhow::Result<()> {
    let platform = manifest.platform.as_deref().unwrap_or("no platform");
    output::line(format!(
        "{platform}: manifest {} ({})",
        manifest.digest, manifest.media_type
    ))?;
    if let Some(image_id) = &manifest.image_id {
        output::line(format!("  image ID {image_id}"))?;
    }
    if let Some(reason) = &manifest.not_convertible {
        return output::line(format!("  not a container image: {reason}"));
    }
    let verdict = if manifest.is_lazy() {
        "can be mounted"
    } else {
        "has layers without an index; `sluice convert` adds them"
    };
    output::line(format!("  {verdict}"))?;
    manifest
        .layers
        .iter()
        .try_for_each(|layer| output::line(format!("  {}", describe(layer))))
}

fn describe(layer: &InspectedLayer) -> String {
    let stored = output::bytes(layer.stored_len);
    match (&layer.index, &layer.index_problem) {
        (_, Some(problem)) => format!("{}  {stored}  index unusable: {problem}", layer.digest),
        (None, None) => format!("{}  {stored}  {}", layer.digest, layer.media_type),
        (Some(index), None) => format!(
            "{}  {stored}, {} plain in {} chunks, index {}",
            layer.digest,
            output::bytes(index.plain_len),
            index.chunks,
            output::bytes(index.stored_len)
        ),
    }
}
