//! `sluice convert`.

use sluice_converter::report::{ConvertReport, LayerReport, Outcome};
use sluice_converter::{ConvertOptions, Source, Target, convert};

use crate::args::ConvertArgs;
use crate::progress::{Bars, with_bars};
use crate::{output, wiring};

pub(super) fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let report = with_bars(args.common.json, async |bars| work(args, bars).await)?;
    if args.common.json {
        output::json(&report)
    } else {
        print(&report)
    }
}

async fn work(args: &ConvertArgs, bars: &Bars) -> anyhow::Result<ConvertReport> {
    let options = ConvertOptions {
        level: args.encoding.level,
        chunk_size: args.encoding.chunk_size,
        platform: wiring::platforms(&args.platform)?,
        jobs: args.encoding.jobs,
        ..ConvertOptions::default()
    };
    let registries = wiring::registries(&args.common);
    let source = Source::open(&args.source, &registries).await?;
    let target = Target::create(&args.target, &registries).await?;
    Ok(convert(&source, &target, &options, bars).await?)
}

fn print(report: &ConvertReport) -> anyhow::Result<()> {
    for image in &report.images {
        output::line(format!(
            "{}  image ID {}",
            image.platform.as_deref().unwrap_or("image"),
            image.image_id
        ))?;
        for layer in &image.layers {
            output::line(format!("  {}", describe(layer)))?;
        }
    }
    let layers = report.images.iter().flat_map(|image| &image.layers);
    for warning in report
        .warnings
        .iter()
        .chain(layers.flat_map(|layer| &layer.warnings))
    {
        tracing::warn!("{warning}");
    }
    let totals = &report.totals;
    output::line(format!(
        "{} layers, {} plain: {} became {} ({:.0} %), of which {} layer indexes, in {:.1} s",
        totals.layers,
        output::bytes(totals.plain_len),
        output::bytes(totals.source_stored_len),
        output::bytes(totals.stored_len),
        100.0 * totals.stored_len as f64 / totals.source_stored_len.max(1) as f64,
        output::bytes(totals.index_stored_len),
        report.seconds
    ))?;
    output::line(format!("{} {}", report.target, report.digest))
}

fn describe(layer: &LayerReport) -> String {
    let outcome = match layer.outcome {
        Outcome::Converted => "converted",
        Outcome::Kept => "had an index already, copied",
        Outcome::Mounted => "had an index already, in place",
    };
    let (from, to) = (
        output::bytes(layer.source_stored_len),
        output::bytes(layer.stored_len),
    );
    format!("{}  {from} -> {to}  {outcome}", layer.digest)
}
