//! Size and cost of a converted image by chunk size and zstd level, from which the defaults are chosen.
//!
//! `sweep SRC [LEVELS] [CHUNK-SIZES]`, for example `sweep oci:DIR:TAG 1,3,5,7 64K,128K,256K,512K,1M`.

use std::process::Command;

use anyhow::Context as _;
use sluice_benches::command;
use sluice_benches::table::{Table, mb, say};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let source = args.next().context("usage: sweep SRC [LEVELS] [CHUNK-SIZES]")?;
    let levels = args.next().unwrap_or_else(|| "1,3,5,7,9".into());
    let sizes = args.next().unwrap_or_else(|| "64K,128K,256K,512K,1M".into());
    let mut table = Table::new(&[
        "level",
        "chunk",
        "MB",
        "x source",
        "index MB",
        "chunks",
        "CPU s",
        "plain MB / CPU s",
    ]);
    for level in levels.split(',') {
        for size in sizes.split(',') {
            let scratch =
                tempfile::tempdir_in(std::env::var("TMPDIR").unwrap_or_else(|_| "/var/tmp".into()))?;
            let target = format!("oci:{}:t", scratch.path().display());
            let mut convert = Command::new(command::sluice()?);
            convert.args([
                "convert",
                "--json",
                "--level",
                level,
                "--chunk-size",
                size,
                &source,
                &target,
            ]);
            let (text, usage) = command::run(&mut convert)?;
            let report: serde_json::Value = serde_json::from_str(&text)?;
            let field = |name: &str| report["totals"][name].as_u64().unwrap_or(0);
            table.row([
                level.to_owned(),
                size.to_owned(),
                mb(field("stored_len")),
                format!(
                    "{:.3}",
                    field("stored_len") as f64 / field("source_stored_len") as f64
                ),
                mb(field("index_stored_len")),
                field("chunks").to_string(),
                format!("{:.1}", usage.cpu),
                format!("{:.0}", field("plain_len") as f64 / 1e6 / usage.cpu),
            ]);
        }
    }
    say(&source)?;
    table.print()
}
