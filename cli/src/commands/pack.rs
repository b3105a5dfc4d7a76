//! `sluice pack`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sluice_converter::{PackOptions, PackReport, Target, pack};

use crate::args::PackArgs;
use crate::progress::{Bars, with_bars};
use crate::{output, wiring};

/// Time of creation for builds that must be repeatable, as other builders take it.
const CREATED_VARIABLE: &str = "SOURCE_DATE_EPOCH";

pub(super) fn run(args: &PackArgs) -> anyhow::Result<()> {
    let report = with_bars(args.common.json, async |bars| work(args, bars).await)?;
    if args.common.json {
        output::json(&report)
    } else {
        print(&report)
    }
}

async fn work(args: &PackArgs, bars: &Bars) -> anyhow::Result<PackReport> {
    let options = options(args)?;
    let registries = wiring::registries(&args.common);
    let target = Target::create(&args.target, &registries).await?;
    Ok(pack(&args.dir, &target, &options, bars).await?)
}

fn options(args: &PackArgs) -> anyhow::Result<PackOptions> {
    let created = match std::env::var(CREATED_VARIABLE) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{CREATED_VARIABLE} is \"{text}\", not a number of seconds"))?,
        Err(_) => 0,
    };
    Ok(PackOptions {
        entrypoint: args.entrypoint.clone(),
        cmd: args.cmd.clone(),
        env: args.env.clone(),
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        labels: labels(&args.label)?,
        platform: args.platform.as_deref().map(str::parse).transpose()?,
        config_file: args.config.clone(),
        created,
        format: args.format.into(),
        level: args.encoding.level,
        chunk_size: args.encoding.chunk_size,
        jobs: args.encoding.jobs,
        ..PackOptions::default()
    })
}

fn labels(pairs: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let split = |pair: &String| {
        let (name, value) = pair
            .split_once('=')
            .with_context(|| format!("label \"{pair}\" is not NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    pairs.iter().map(split).collect()
}

fn print(report: &PackReport) -> anyhow::Result<()> {
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    output::line(format!(
        "{} entries, {} plain, {} stored, in {:.1} s",
        report.entries,
        output::bytes(report.plain_len),
        output::bytes(report.stored_len),
        report.seconds
    ))?;
    output::line(format!("{} {}", report.target, report.digest))
}
