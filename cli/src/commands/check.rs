//! `sluice check`. Exits with 1 when something is wrong with the image, after saying what.

use sluice_converter::report::{CheckReport, CheckedImage};
use sluice_converter::{CheckOptions, Source, check};

use crate::args::CheckArgs;
use crate::progress::{Bars, with_bars};
use crate::{output, wiring};

/// The image was read, and what is wrong with it was printed.
#[derive(Debug, thiserror::Error)]
#[error("the image is not sound")]
pub(super) struct NotSound;

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let report = with_bars(args.common.json, async |bars| work(args, bars).await)?;
    if args.common.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    if report.is_sound() {
        Ok(())
    } else {
        Err(NotSound.into())
    }
}

async fn work(args: &CheckArgs, bars: &Bars) -> anyhow::Result<CheckReport> {
    let options = CheckOptions {
        platform: wiring::platforms(&args.platform)?,
        ..CheckOptions::default()
    };
    let registries = wiring::registries(&args.common);
    let source = Source::open(&args.source, &registries).await?;
    let against = match &args.against {
        Some(original) => Some(Source::open(original, &registries).await?),
        None => None,
    };
    Ok(check(&source, against.as_ref(), &options, bars).await?)
}

fn print(report: &CheckReport) -> anyhow::Result<()> {
    report.images.iter().try_for_each(print_image)?;
    for problem in &report.problems {
        output::line(format!("problem: {problem}"))?;
    }
    let verdict = if report.is_sound() {
        "everything matches"
    } else {
        "there are problems"
    };
    output::line(format!(
        "{} {}: {verdict}, in {:.1} s",
        report.name, report.digest, report.seconds
    ))
}

fn print_image(image: &CheckedImage) -> anyhow::Result<()> {
    output::line(format!(
        "{}  image ID {}",
        image.platform.as_deref().unwrap_or("image"),
        image.image_id
    ))?;
    for layer in &image.layers {
        let chunks = layer
            .chunks
            .map_or("no layer index".to_owned(), |chunks| format!("{chunks} chunks"));
        let verdict = if layer.problems.is_empty() {
            "sound"
        } else {
            "not sound"
        };
        output::line(format!(
            "  {}  {}, {chunks}: {verdict}",
            layer.digest,
            output::bytes(layer.stored_len)
        ))?;
        for problem in &layer.problems {
            output::line(format!("    problem: {problem}"))?;
        }
    }
    for problem in &image.problems {
        output::line(format!("  problem: {problem}"))?;
    }
    Ok(())
}
