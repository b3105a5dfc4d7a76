//! Warm and cold walks and reads of a mounted image through both front ends, beside the same tree on this disk's file system.
//!
//! `steady IMAGE [ROUNDS]`, IMAGE being a converted image (`oci:DIR:TAG`). Rounds are interleaved; the table shows medians and ratios to the
//! copy. "cold" drops the page cache with the plain layers on the local disk.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use sluice_benches::command::{drop_caches, run};
use sluice_benches::median;
use sluice_benches::mounted::Mounted;
use sluice_benches::table::{Table, say};
use sluice_benches::walk;

/// Random page reads per round.
const PAGES: u64 = 20_000;

const TESTS: [&str; 6] = [
    "walk warm",
    "read warm",
    "4K warm",
    "walk cold",
    "read cold",
    "4K cold",
];

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let image = args.next().context("usage: steady oci:DIR:TAG [ROUNDS]")?;
    let rounds: usize = args.next().map_or(Ok(5), |text| text.parse())?;
    let scratch = tempfile::tempdir_in(std::env::var("TMPDIR").unwrap_or_else(|_| "/var/tmp".into()))?;
    let (cache, run_dir) = (scratch.path().join("cache"), scratch.path().join("run"));
    let mount = |front: &str| Mounted::new(&image, &scratch.path().join(front), front, &cache, &run_dir);
    let copy = scratch.path().join("copy");
    let first = mount("erofs")?;
    run(Command::new("cp").arg("-a").arg(first.dir()).arg(&copy))?;
    // A mount that finds everything in the cache is tuned for that; this is the state that lasts.
    drop(first);
    let erofs = mount("erofs")?;
    let fuse = mount("fuse")?;
    let roots = [
        ("disk copy", copy.as_path()),
        ("erofs", erofs.dir()),
        ("fuse", fuse.dir()),
    ];
    let mut seconds = vec![vec![Vec::new(); TESTS.len()]; roots.len()];
    for round in 0..rounds {
        // Each tree is first, second and last equally often: what runs before leaves its traces in the processor's caches.
        for turn in 0..roots.len() {
            let at = (round + turn) % roots.len();
            for (test, value) in measure(roots[at].1)?.into_iter().enumerate() {
                seconds[at][test].push(value);
            }
        }
    }
    say(format!(
        "{image}: {rounds} rounds in turn, medians; ratio = speed beside the copy on disk"
    ))?;
    print(&roots.map(|(name, _)| name), &seconds)
}

fn measure(root: &Path) -> anyhow::Result<[f64; 6]> {
    let files = walk::files(root)?;
    walk::read_all(&files)?;
    let warm = [
        walk::walk(root)?.1,
        walk::read_all(&files)?.1,
        walk::read_pages(&files, PAGES)?.1,
    ];
    drop_caches()?;
    let walk_cold = walk::walk(root)?.1;
    drop_caches()?;
    let read_cold = walk::read_all(&files)?.1;
    drop_caches()?;
    Ok([
        warm[0],
        warm[1],
        warm[2],
        walk_cold,
        read_cold,
        walk::read_pages(&files, PAGES / 4)?.1,
    ])
}

fn print(names: &[&str], seconds: &[Vec<Vec<f64>>]) -> anyhow::Result<()> {
    let mut head = vec!["tree"];
    head.extend(TESTS);
    let mut table = Table::new(&head);
    for (name, tests) in names.iter().zip(seconds) {
        let cells = tests.iter().zip(&seconds[0]).map(|(values, base)| {
            let (value, base) = (median(values), median(base));
            format!("{:.0} ms {:.2}x", value * 1e3, base / value)
        });
        table.row(std::iter::once((*name).to_owned()).chain(cells));
    }
    table.print()
}
