//! Reading a whole image through a cold mount, beside what the link can carry and what the cores can decode.
//!
//! `readall IMAGE [--rounds N] [--device DEV] [--link-mbit M] [--plain-http]`. Each round mounts the image with an empty cache and
//! reads every file in the order of `tar`, then mounts it again and reads with several threads. Beside them, in the same round, one request fetches
//! the beginning of the largest layer (at most 128 MiB), and all cores decode and verify its chunks from memory.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::ensure;
use clap::Parser;
use serde_json::json;
use sluice_benches::command::drop_caches;
use sluice_benches::decode::Sample;
use sluice_benches::link::LinkArgs;
use sluice_benches::mounted::Mounted;
use sluice_benches::stats::Stats;
use sluice_benches::table::{Table, say};
use sluice_benches::{median, ratio, spread, walk};
use sluice_tests::scratch::Scratch;

#[derive(Debug, Parser)]
struct Args {
    /// Converted image.
    image: String,
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Readers of the parallel read.
    #[arg(long, value_name = "N", default_value_t = 4)]
    threads: usize,
    /// How the kernel sees the tree: auto, erofs or fuse.
    #[arg(long, default_value = "auto")]
    front: String,
    /// Print every read as a line of JSON too.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    link: LinkArgs,
}

/// One read of the whole tree.
#[derive(Debug)]
struct Read {
    threads: usize,
    seconds: f64,
    /// Bytes of files.
    read: u64,
    device: Option<u64>,
    /// Processor time of the serving process.
    cpu: f64,
    stats: Stats,
}

/// What the reads are compared with, in bytes per second.
#[derive(Debug, Default)]
struct Bases {
    fetch: Vec<f64>,
    decode: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "mounting needs root: run this as root"
    );
    let scratch = Scratch::new("readall")?;
    let (mut reads, mut bases) = (Vec::new(), Bases::default());
    for _ in 0..args.rounds {
        for threads in [1, args.threads] {
            let read = read_cold(&args, &scratch, threads)?;
            if args.json {
                say(describe(&args.image, &read))?;
            }
            reads.push(read);
        }
        let sample = Sample::fetch(&args.image, args.link.plain_http())?;
        bases.fetch.push(sample.fetch_rate);
        bases.decode.push(sample.decode_rate()?);
    }
    report(&args, &reads, &bases)
}

fn read_cold(args: &Args, scratch: &Path, threads: usize) -> anyhow::Result<Read> {
    let (cache, run_dir, stats) = (scratch.join("cache"), scratch.join("run"), scratch.join("stats"));
    let mut options: Vec<&OsStr> = vec![
        "--front".as_ref(),
        args.front.as_ref(),
        "--cache".as_ref(),
        cache.as_os_str(),
        "--run-dir".as_ref(),
        run_dir.as_os_str(),
        "--stats".as_ref(),
        stats.as_os_str(),
        // What a start reads and what a profile says of it have no part in this.
        "--no-profile".as_ref(),
    ];
    if args.link.plain_http() {
        options.push("--plain-http".as_ref());
    }
    drop_caches()?;
    let mounted = Mounted::with_options(&args.image, &scratch.join("mnt"), options)?;
    let (meter, cpu) = (args.link.meter()?, mounted.cpu_seconds()?);
    let (read, seconds) = match threads {
        1 => walk::read_tree(mounted.dir())?,
        _ => walk::read_tree_in_parallel(mounted.dir(), threads)?,
    };
    let (device, cpu) = (meter.received()?, mounted.cpu_seconds()? - cpu);
    drop(mounted);
    fs::remove_dir_all(&cache)?;
    Ok(Read {
        threads,
        seconds,
        read,
        device,
        cpu,
        stats: Stats::read(&stats)?,
    })
}

fn describe(image: &str, read: &Read) -> serde_json::Value {
    json!({
        "image": image,
        "threads": read.threads,
        "seconds": read.seconds,
        "read_bytes": read.read,
        "device_bytes": read.device,
        "cpu_seconds": read.cpu,
        "requests": read.stats.requests,
        "stored_bytes": read.stats.stored_bytes,
        "plain_bytes": read.stats.plain_bytes,
        "waits": read.stats.waits(),
        "wait_seconds": read.stats.wait_seconds(),
    })
}

fn report(args: &Args, reads: &[Read], bases: &Bases) -> anyhow::Result<()> {
    let (fetch, decode) = (median(&bases.fetch), median(&bases.decode));
    say(format!(
        "{}: {} rounds in turn, medians; one request fetches {:.1} MB/s, the cores decode and verify {:.0} MB/s",
        args.image,
        args.rounds,
        fetch / 1e6,
        decode / 1e6
    ))?;
    let mut table = Table::new(&[
        "readers",
        "seconds",
        "stored MB/s",
        "/ link",
        "/ one request",
        "device MB/s",
        "/ link",
        "plain MB/s",
        "/ decode",
        "requests",
        "waits",
        "waited s",
        "server CPU s",
    ]);
    for threads in [1, args.threads] {
        let of = |value: &dyn Fn(&Read) -> f64| -> Vec<f64> {
            let own = reads.iter().filter(|read| read.threads == threads);
            own.map(value).collect()
        };
        let stored = median(&of(&|read| read.stats.stored_bytes as f64 / read.seconds));
        let plain = median(&of(&|read| read.stats.plain_bytes as f64 / read.seconds));
        let device = median(&of(&|read| read.device.unwrap_or(0) as f64 / read.seconds));
        table.row([
            threads.to_string(),
            spread(&of(&|read| read.seconds)),
            format!("{:.1}", stored / 1e6),
            ratio(stored, args.link.rate()),
            ratio(stored, Some(fetch)),
            format!("{:.1}", device / 1e6),
            ratio(device, args.link.rate()),
            format!("{:.0}", plain / 1e6),
            ratio(plain, Some(decode)),
            format!("{:.0}", median(&of(&|read| read.stats.requests as f64))),
            format!("{:.0}", median(&of(&|read| read.stats.waits() as f64))),
            format!("{:.2}", median(&of(&|read| read.stats.wait_seconds()))),
            format!("{:.2}", median(&of(&|read| read.cpu))),
        ]);
    }
    table.print()
}
