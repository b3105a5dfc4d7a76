//! What converting an image costs, beside decompressing it with `gzip` and recompressing it with `zstd`, in turn.
//!
//! `convert SRC [LEVEL] [ROUNDS]`, SRC being an image layout with gzip layers (`oci:DIR:TAG`). Converted blobs go to a temporary
//! layout beside the source.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use sluice_benches::command::{self, Usage};
use sluice_benches::median;
use sluice_benches::table::{Table, mb, say};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let source = args
        .next()
        .context("usage: convert oci:DIR:TAG [LEVEL] [ROUNDS]")?;
    let level = args.next().unwrap_or_else(|| sluice_level().to_string());
    let rounds: usize = args.next().map_or(Ok(3), |text| text.parse())?;
    let blobs = gzip_layers(&source)?;
    let stored_len = blobs
        .iter()
        .map(|blob| blob.metadata().map(|m| m.len()))
        .sum::<Result<u64, _>>()?;
    let (mut ours, mut gunzip, mut zstd, mut report) = (vec![], vec![], vec![], serde_json::Value::Null);
    let layout = Path::new(&blobs[0])
        .ancestors()
        .nth(3)
        .context("blobs lie in blobs/sha256 of a layout")?;
    for _ in 0..rounds {
        let scratch = tempfile::tempdir_in(layout.parent().unwrap_or(layout))?;
        let target = format!("oci:{}:converted", scratch.path().display());
        let mut convert = Command::new(command::sluice()?);
        let (text, usage) =
            command::run(convert.args(["convert", "--json", "--level", &level, &source, &target]))?;
        report = serde_json::from_str(&text)?;
        ours.push(usage);
        gunzip.push(pipeline(&blobs, "gzip -dc \"$@\" >/dev/null")?);
        zstd.push(pipeline(
            &blobs,
            &format!("gzip -dc \"$@\" | zstd -q -{level} -T0 >/dev/null"),
        )?);
    }
    let totals = &report["totals"];
    let field = |name: &str| totals[name].as_u64().unwrap_or(0);
    say(format!(
        "{source}: {} layers, {} MB plain, {} MB gzip; level {level}, {rounds} rounds, medians",
        field("layers"),
        mb(field("plain_len")),
        mb(stored_len)
    ))?;
    say(format!(
        "converted: {} MB = {:.3} x gzip, of which layer indexes {} MB; {} chunks",
        mb(field("stored_len")),
        field("stored_len") as f64 / stored_len as f64,
        mb(field("index_stored_len")),
        field("chunks")
    ))?;
    print(
        &[
            ("sluice convert", &ours),
            ("gzip -d", &gunzip),
            ("gzip -d | zstd -T0", &zstd),
        ],
        field("plain_len"),
    )
}

fn sluice_level() -> i32 {
    5
}

/// Files of the gzip layers of an image layout with one image.
fn gzip_layers(source: &str) -> anyhow::Result<Vec<PathBuf>> {
    let Some(("oci", rest)) = source.split_once(':') else {
        bail!("{source} is not an image layout (oci:DIR:TAG)")
    };
    let dir = Path::new(rest.split(':').next().unwrap_or(rest));
    let document = |digest: &str| -> anyhow::Result<serde_json::Value> {
        let hex = digest.strip_prefix("sha256:").context("digests are sha256")?;
        Ok(serde_json::from_slice(&std::fs::read(
            dir.join("blobs/sha256").join(hex),
        )?)?)
    };
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"]
        .as_str()
        .context("the layout has no manifest")?;
    let layers = document(digest)?["layers"].clone();
    let layers = layers.as_array().context("the manifest has no layers")?.clone();
    let hexes = layers.iter().filter_map(|layer| {
        layer["digest"]
            .as_str()?
            .strip_prefix("sha256:")
            .map(str::to_owned)
    });
    Ok(hexes.map(|hex| dir.join("blobs/sha256").join(hex)).collect())
}

fn pipeline(blobs: &[PathBuf], script: &str) -> anyhow::Result<Usage> {
    // The layers are decompressed one after another by one process, as a plain pull does with each layer.
    let script = script.replace("gzip -dc \"$@\"", "for f in \"$@\"; do gzip -dc <\"$f\"; done");
    Ok(command::run(Command::new("sh").args(["-c", &script, "sh"]).args(blobs))?.1)
}

fn print(rows: &[(&str, &Vec<Usage>)], plain_len: u64) -> anyhow::Result<()> {
    let pick =
        |usages: &[Usage], field: fn(&Usage) -> f64| median(&usages.iter().map(field).collect::<Vec<_>>());
    let ours = pick(rows[0].1, |usage| usage.wall);
    let mut table = Table::new(&[
        "command",
        "wall s",
        "CPU s",
        "cores busy",
        "peak MB",
        "plain MB/s",
        "wall / ours",
    ]);
    for (name, usages) in rows {
        let wall = pick(usages, |usage| usage.wall);
        table.row([
            (*name).to_owned(),
            format!("{wall:.2}"),
            format!("{:.2}", pick(usages, |usage| usage.cpu)),
            format!("{:.0} %", pick(usages, Usage::busy) * 100.0),
            format!("{:.0}", pick(usages, |usage| usage.peak_rss as f64) / 1e6),
            format!("{:.0}", plain_len as f64 / 1e6 / wall),
            format!("{:.2}", wall / ours),
        ]);
    }
    table.print()
}
