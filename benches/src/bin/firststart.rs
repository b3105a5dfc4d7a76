//! How long a container takes until it is ready on a host that has never seen its image, through containerd: with Sluice beside others.
//!
//! `firststart sluice=IMAGE [WAY=IMAGE]... [--rounds N] [--device DEV] [--plain-http] [--ready TEXT]`. Images are in a registry, reached over a link
//! that is shaped outside. In each round they are pulled and started in changing order:
//!
//! - `sluice`: by `sluice pull` and the service. Any image: a converted or indexed one starts lazily, layers of others are streamed;
//! - `overlayfs`: by containerd 1.6, which unpacks an ordinary image;
//! - `erofs`: by containerd 2 and its EROFS snapshotter, which makes an EROFS image of each layer;
//! - `soci`: by the SOCI snapshotter, lazily if an index was pushed with the image. Its old versions speak TLS only, so the image may have
//!   another name for it, and `SSL_CERT_FILE` tells it of a certificate;
//! - `stargz`: by the stargz snapshotter, lazily for an eStargz or zstd:chunked image;
//! - `nydus`: by the nydus snapshotter, for an image in the format of `nydus-image`.
//!
//! The daemons run already, each with its state in an ext4 file system of its own on the same disk. Page cache is dropped before each
//! start; the programs that run for every container stay in it. A start lasts from before the pull until the entry point prints a line with the text
//! that `--ready` gives, or ends. Processor time and memory are those of the daemons with the programs that they run; the container's are not in it.

use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use serde_json::json;
use sluice_benches::link::LinkArgs;
use sluice_benches::peer::{Contestant, Host};
use sluice_benches::started::{Started, drop_page_cache};
use sluice_benches::table::{Table, mb, say};
use sluice_benches::{median, ratio, spread};

#[derive(Debug, Parser)]
struct Args {
    /// What runs which image. The first one is what the others are compared with.
    #[arg(required = true, value_name = "WAY=IMAGE")]
    contestants: Vec<Contestant>,
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Text by which a line of output says that the container is ready.
    #[arg(long, value_name = "TEXT", default_value = "READY")]
    ready: String,
    /// Print every start as a line of JSON too.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    link: LinkArgs,
}

/// One start, in seconds and bytes.
#[derive(Debug)]
struct Start {
    /// Position of the contestant.
    contestant: usize,
    pull: f64,
    run: f64,
    cpu: f64,
    memory: u64,
    device: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "containerd mounts images: run this as root"
    );
    let count = args.contestants.len();
    let mut starts = Vec::new();
    for round in 0..args.rounds {
        // What runs first finds another machine than what runs last.
        for at in (0..count).map(|at| (at + round) % count) {
            let start = measure(&args, at)?;
            if args.json {
                say(start.json(&args.contestants[at]))?;
            }
            starts.push(start);
        }
    }
    report(&args, &starts)
}

impl Start {
    fn total(&self) -> f64 {
        self.pull + self.run
    }

    fn json(&self, contestant: &Contestant) -> serde_json::Value {
        json!({
            "way": contestant.way.name(),
            "image": contestant.reference,
            "pull_seconds": self.pull,
            "run_seconds": self.run,
            "total_seconds": self.total(),
            "cpu_seconds": self.cpu,
            "peak_bytes": self.memory,
            "device_bytes": self.device,
        })
    }
}

fn measure(args: &Args, at: usize) -> anyhow::Result<Start> {
    let contestant = &args.contestants[at];
    let host = Host::start(contestant, args.link.plain_http())?;
    drop_page_cache()?;
    let (idle, meter) = (host.cpu_seconds()?, args.link.meter()?);
    let began = Instant::now();
    host.pull(&contestant.reference)?;
    let pull = began.elapsed().as_secs_f64();
    let container = Started::new(
        host.containerd(),
        contestant.way.name(),
        &contestant.reference,
        &args.ready,
    )?;
    let (run, device) = (container.seconds(), meter.received()?);
    let (cpu, memory) = (host.cpu_seconds()? - idle, host.peak_memory()?);
    container.end()?;
    Ok(Start {
        contestant: at,
        pull,
        run,
        cpu,
        memory,
        device,
    })
}

fn report(args: &Args, starts: &[Start]) -> anyhow::Result<()> {
    say(format!(
        "first starts through containerd and runc: {} rounds in turn, median (least–most)",
        args.rounds
    ))?;
    let mut table = Table::new(&[
        "way",
        "image",
        "pull s",
        "run s",
        "total s",
        "first / this",
        "CPU s",
        "peak MB",
        "device MB",
    ]);
    let values = |at: usize, value: &dyn Fn(&Start) -> Option<f64>| -> Vec<f64> {
        let starts = starts.iter().filter(|start| start.contestant == at);
        starts.filter_map(value).collect()
    };
    let first = median(&values(0, &|start| Some(start.total())));
    for (at, contestant) in args.contestants.iter().enumerate() {
        let total = values(at, &|start| Some(start.total()));
        let device = values(at, &|start| start.device.map(|len| len as f64));
        let (_, name) = contestant.reference.rsplit_once('/').unwrap_or_default();
        table.row([
            contestant.way.name().to_owned(),
            name.to_owned(),
            spread(&values(at, &|start| Some(start.pull))),
            spread(&values(at, &|start| Some(start.run))),
            spread(&total),
            ratio(first, Some(median(&total))),
            spread(&values(at, &|start| Some(start.cpu))),
            mb(median(&values(at, &|start| Some(start.memory as f64))) as u64),
            match device[..] {
                [] => "-".to_owned(),
                _ => mb(median(&device) as u64),
            },
        ]);
    }
    table.print()
}
