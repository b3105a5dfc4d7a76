//! How long an ordinary image takes until its container is ready, through containerd: with Sluice beside others.
//!
//! `ordinary IMAGE [--beside overlayfs,erofs,soci] [--rounds N] [--device DEV] [--plain-http] [--ready TEXT]`. IMAGE is any image in a
//! registry, reached over a link that is shaped outside. In each round it is pulled and started, in changing order, on a host that has
//! never seen it:
//!
//! - `sluice`: by `sluice pull` and the service, which streams every layer that has no index;
//! - `overlayfs`: by containerd 1.6, which unpacks it;
//! - `erofs`: by containerd 2 and its EROFS snapshotter, which makes an EROFS image of each layer;
//! - `soci`: by the SOCI snapshotter (`--soci DIR`), lazily if an index of the image was pushed with it.
//!
//! The daemons run already, each with its state in an ext4 file system of its own on the same disk. Page cache is dropped before each
//! start; the programs that run for every container stay in it. A start lasts from before the pull until the entry point prints a line with the text
//! that `--ready` gives, or ends. Processor time and memory are those of the daemons with the programs that they run; the container's are not in it.

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use serde_json::json;
use sluice_benches::command::{drop_caches_but, sluice};
use sluice_benches::link::LinkArgs;
use sluice_benches::peer::{Host, SociArgs, Way};
use sluice_benches::started::{PROGRAMS, Started};
use sluice_benches::table::{Table, mb, say};
use sluice_benches::{median, ratio, spread};

#[derive(Debug, Parser)]
struct Args {
    /// The image.
    image: String,
    /// What to measure beside Sluice.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "overlayfs")]
    beside: Vec<Way>,
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
    #[command(flatten)]
    soci: SociArgs,
}

/// One start, in seconds and bytes.
#[derive(Debug)]
struct Start {
    way: Way,
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
    let mut ways = vec![Way::Sluice];
    ways.extend(args.beside.iter().filter(|way| **way != Way::Sluice));
    let mut starts = Vec::new();
    for _ in 0..args.rounds {
        for way in &ways {
            let start = measure(&args, *way)?;
            if args.json {
                say(start.json(&args.image))?;
            }
            starts.push(start);
        }
        // What runs first finds another machine than what runs last.
        ways.rotate_left(1);
    }
    ways.sort_by_key(|way| *way as u8);
    report(&args, &ways, &starts)
}

impl Start {
    fn total(&self) -> f64 {
        self.pull + self.run
    }

    fn json(&self, image: &str) -> serde_json::Value {
        json!({
            "image": image,
            "way": self.way.name(),
            "pull_seconds": self.pull,
            "run_seconds": self.run,
            "total_seconds": self.total(),
            "cpu_seconds": self.cpu,
            "peak_bytes": self.memory,
            "device_bytes": self.device,
        })
    }
}

fn measure(args: &Args, way: Way) -> anyhow::Result<Start> {
    let host = Host::start(way, args.link.plain_http(), &args.soci)?;
    let sluice = sluice()?;
    let programs: Vec<&Path> = PROGRAMS.iter().map(Path::new).chain([sluice.as_path()]).collect();
    drop_caches_but(&programs)?;
    let (idle, meter) = (host.cpu_seconds()?, args.link.meter()?);
    let began = Instant::now();
    host.pull(&args.image)?;
    let pull = began.elapsed().as_secs_f64();
    let container = Started::new(
        host.containerd(),
        way.snapshotter(),
        host.reference(&args.image),
        &args.ready,
    )?;
    let (run, device) = (container.seconds(), meter.received()?);
    let (cpu, memory) = (host.cpu_seconds()? - idle, host.peak_memory()?);
    container.end()?;
    Ok(Start {
        way,
        pull,
        run,
        cpu,
        memory,
        device,
    })
}

fn report(args: &Args, ways: &[Way], starts: &[Start]) -> anyhow::Result<()> {
    say(format!(
        "{} through containerd and runc: {} rounds in turn, median (least–most)",
        args.image, args.rounds
    ))?;
    let mut table = Table::new(&[
        "way",
        "pull s",
        "run s",
        "total s",
        "sluice / this",
        "CPU s",
        "peak MB",
        "device MB",
    ]);
    let values = |way: Way, value: &dyn Fn(&Start) -> Option<f64>| -> Vec<f64> {
        let starts = starts.iter().filter(|start| start.way == way);
        starts.filter_map(value).collect()
    };
    let ours = median(&values(Way::Sluice, &|start| Some(start.total())));
    for way in ways {
        let total = values(*way, &|start| Some(start.total()));
        let device = values(*way, &|start| start.device.map(|len| len as f64));
        table.row([
            way.name().to_owned(),
            spread(&values(*way, &|start| Some(start.pull))),
            spread(&values(*way, &|start| Some(start.run))),
            spread(&total),
            ratio(ours, Some(median(&total))),
            spread(&values(*way, &|start| Some(start.cpu))),
            mb(median(&values(*way, &|start| Some(start.memory as f64))) as u64),
            match device[..] {
                [] => "-".to_owned(),
                _ => mb(median(&device) as u64),
            },
        ]);
    }
    table.print()
}
