//! How long a container takes until it is ready, beside the bound of the link and beside containerd with overlayfs.
//!
//! `coldstart IMAGE [--original IMAGE] [--rounds N] [--device DEV] [--link-mbit M --rtt-ms R] [--plain-http] [--peer overlayfs|none]`. IMAGE is
//! a converted image in a registry, reached over a link that is shaped outside. Each round starts its entry point
//!
//! - `first`: with an empty cache, as on a host that has never seen the image;
//! - `profile`: with an empty cache again, but with the profile that `first` left;
//! - `warm`: with that cache, the page cache dropped;
//! - `hot`: once more in the same mount;
//! - `memory`: in a new mount without a profile, with everything in memory;
//! - `overlayfs`: by a private containerd that pulls and unpacks the original image and runs it with runc.
//!
//! Page cache is dropped before each start except `hot` and `memory`; the programs of the host itself stay in it.
//!
//! A start lasts from before the mount (or the pull) until the entry point prints a line with the text that `--ready` gives, or ends. The
//! bound is what no way of fetching can beat: the stored bytes of the chunks that `first` touched at the rate of the link, or the hot run,
//! whichever takes longer, and three round trips. "In order" is what a perfect order of fetching takes: the program demands in an order, which `memory` shows, and
//! runs as quickly as `hot` between two demands.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use serde_json::json;
use sluice_benches::command::{drop_caches_but, sluice};
use sluice_benches::container::{Container, EntryPoint};
use sluice_benches::link::LinkArgs;
use sluice_benches::mounted::Mounted;
use sluice_benches::started::{PROGRAMS, Started, in_turn};
use sluice_benches::stats::Stats;
use sluice_benches::table::{Table, mb, say};
use sluice_benches::{median, ratio, spread};
use sluice_tests::containerd::Containerd;
use sluice_tests::scratch::Scratch;

/// Round trips that the bound allows: to resolve the tag, to load the indexes, and for the first bytes.
const ROUND_TRIPS: f64 = 3.0;

/// Seconds of starts that nothing holds up.
#[derive(Clone, Copy, Debug)]
struct Ideals {
    /// The working set over the link.
    transfer: f64,
    /// Running while that comes.
    bound: f64,
    /// Running as far as what is demanded has come, with every page in memory.
    in_order: f64,
}

/// What a cache keeps between `first` and `profile`.
const PROFILES: &str = "profiles";

#[derive(Debug, Parser)]
struct Args {
    /// Converted image.
    image: String,
    /// The image that it was converted from, for the peer.
    #[arg(long, value_name = "IMAGE")]
    original: Option<String>,
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// What to compare with; needs --original.
    #[arg(long, value_enum, default_value = "overlayfs")]
    peer: Peer,
    /// Text by which a line of output says that the container is ready.
    #[arg(long, value_name = "TEXT", default_value = "READY")]
    ready: String,
    /// Print every start as a line of JSON too.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// containerd's ordinary snapshotter.
    Overlayfs,
    /// Nothing.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    First,
    Profile,
    Warm,
    Hot,
    Memory,
    Overlayfs,
}

impl Case {
    const ALL: [Self; 6] = [
        Self::First,
        Self::Profile,
        Self::Warm,
        Self::Hot,
        Self::Memory,
        Self::Overlayfs,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Profile => "profile",
            Self::Warm => "warm",
            Self::Hot => "hot",
            Self::Memory => "memory",
            Self::Overlayfs => "overlayfs",
        }
    }
}

/// One start, in seconds and bytes.
#[derive(Debug)]
struct Start {
    case: Case,
    /// Until the mount was ready, or the image was pulled.
    mount: f64,
    run: f64,
    total: f64,
    device: Option<u64>,
    /// None of the peer, which keeps no such record, and of `hot`, which shares the mount of `warm`.
    stats: Option<Stats>,
}

struct Bench {
    args: Args,
    entry: EntryPoint,
    scratch: Scratch,
    starts: Vec<Start>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "mounting needs root: run this as root"
    );
    let mut bench = Bench {
        entry: EntryPoint::of(&args.image, args.link.plain_http())?,
        scratch: Scratch::new("coldstart")?,
        starts: Vec::new(),
        args,
    };
    let rounds = bench.args.rounds;
    in_turn(&mut bench, rounds, Bench::start_sluice, Bench::start_peer)?;
    bench.report()
}

impl Bench {
    fn note(&mut self, start: Start) -> anyhow::Result<()> {
        if self.args.json {
            let stats = start.stats.as_ref();
            say(json!({
                "image": self.args.image,
                "case": start.case.name(),
                "mount_seconds": start.mount,
                "run_seconds": start.run,
                "total_seconds": start.total,
                "device_bytes": start.device,
                "requests": stats.map(|stats| stats.requests),
                "stored_bytes": stats.map(|stats| stats.stored_bytes),
                "waits": stats.map(Stats::waits),
                "wait_seconds": stats.map(Stats::wait_seconds),
                "working_set": stats.map(Stats::working_set),
            }))?;
        }
        self.starts.push(start);
        Ok(())
    }

    fn start_sluice(&mut self) -> anyhow::Result<()> {
        self.empty_cache(None)?;
        self.start_from_mount(Case::First)?;
        self.empty_cache(Some(PROFILES))?;
        self.start_from_mount(Case::Profile)?;
        self.start_from_mount(Case::Warm)?;
        self.start_from_mount(Case::Memory)
    }

    fn cache(&self) -> PathBuf {
        self.scratch.join("cache")
    }

    fn empty_cache(&self, kept: Option<&str>) -> anyhow::Result<()> {
        let entries = match fs::read_dir(self.cache()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if kept.is_some_and(|kept| entry.file_name() == kept) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Starts the image, and once more in the same mount when it was warm.
    fn start_from_mount(&mut self, case: Case) -> anyhow::Result<()> {
        let stats_file = self.scratch.join("stats");
        if case != Case::Memory {
            drop_caches_but(&[&sluice()?, Path::new("unshare")])?;
        }
        let meter = self.args.link.meter()?;
        let began = Instant::now();
        let mounted = self.mount(case, &stats_file)?;
        let (prepared, run) = self.run_container(&mounted, began)?;
        let device = meter.received()?;
        let mut hot = None;
        if case == Case::Warm {
            let (prepared, run) = self.run_container(&mounted, Instant::now())?;
            hot = Some(Start {
                case: Case::Hot,
                mount: 0.0,
                run,
                total: prepared + run,
                device: None,
                stats: None,
            });
        }
        let mount = mounted.seconds();
        drop(mounted);
        self.note(Start {
            case,
            mount,
            run,
            total: prepared + run,
            device,
            stats: Some(Stats::read(&stats_file)?),
        })?;
        hot.map_or(Ok(()), |hot| self.note(hot))
    }

    fn mount(&self, case: Case, stats_file: &Path) -> anyhow::Result<Mounted> {
        let (cache, run_dir) = (self.cache(), self.scratch.join("run"));
        let mut options: Vec<&OsStr> = vec![
            "--cache".as_ref(),
            cache.as_os_str(),
            "--run-dir".as_ref(),
            run_dir.as_os_str(),
            "--stats".as_ref(),
            stats_file.as_os_str(),
        ];
        if self.args.link.plain_http() {
            options.push("--plain-http".as_ref());
        }
        if case == Case::Memory {
            options.push("--no-profile".as_ref());
        }
        Mounted::with_options(&self.args.image, &self.scratch.join("mnt"), options)
    }

    /// Seconds from `began` until the entry point was started, and until it was ready then.
    fn run_container(&self, mounted: &Mounted, began: Instant) -> anyhow::Result<(f64, f64)> {
        let container = Container::new(mounted.dir(), &self.scratch)?;
        let prepared = began.elapsed().as_secs_f64();
        let run = container.run(&self.entry, &self.args.ready)?;
        Ok((prepared, run))
    }

    fn start_peer(&mut self) -> anyhow::Result<()> {
        let (Peer::Overlayfs, Some(original)) = (self.args.peer, &self.args.original) else {
            return Ok(());
        };
        let reference = original.strip_prefix("docker://").unwrap_or(original);
        let containerd = Containerd::start()?;
        drop_caches_but(&PROGRAMS.map(Path::new))?;
        let meter = self.args.link.meter()?;
        let began = Instant::now();
        containerd.pull(reference)?;
        let pulled = began.elapsed().as_secs_f64();
        let container = Started::new(&containerd, "overlayfs", reference, &self.args.ready)?;
        let (run, device) = (container.seconds(), meter.received()?);
        container.end()?;
        self.note(Start {
            case: Case::Overlayfs,
            mount: pulled,
            run,
            total: pulled + run,
            device,
            stats: None,
        })
    }

    fn values(&self, case: Case, value: impl Fn(&Start) -> Option<f64>) -> Vec<f64> {
        let starts = self.starts.iter().filter(|start| start.case == case);
        starts.filter_map(value).collect()
    }

    fn report(&self) -> anyhow::Result<()> {
        let working_set = self.values(Case::First, |start| {
            start.stats.as_ref().map(|stats| stats.working_set() as f64)
        });
        let working_set = median(&working_set);
        let hot = median(&self.values(Case::Hot, |start| Some(start.run)));
        let ideals = self.ideals(working_set, hot);
        say(format!(
            "{}: {} rounds in turn, median (least–most)",
            self.args.image, self.args.rounds
        ))?;
        say(self.describe_ideals(working_set, hot, ideals))?;
        let mut table = Table::new(&[
            "start",
            "mount s",
            "run s",
            "total s",
            "/ bound",
            "/ in order",
            "/ peer",
            "stored MB",
            "/ set",
            "device MB",
            "/ set",
            "requests",
            "waits",
            "waited s",
        ]);
        let peer = self.values(Case::Overlayfs, |start| Some(start.total));
        let peer = (!peer.is_empty()).then(|| median(&peer));
        for case in Case::ALL {
            if self.starts.iter().any(|start| start.case == case) {
                table.row(self.row(case, ideals, peer, working_set));
            }
        }
        table.print()
    }

    fn ideals(&self, working_set: f64, hot: f64) -> Option<Ideals> {
        let link = &self.args.link;
        let (transfer, waits) = (link.seconds_for(working_set)?, ROUND_TRIPS * link.round_trip());
        Some(Ideals {
            transfer,
            bound: transfer.max(hot) + waits,
            in_order: self.in_order(hot)? + waits,
        })
    }

    fn in_order(&self, hot: f64) -> Option<f64> {
        let rate = self.args.link.rate()?;
        let seconds = self.values(Case::Memory, |start| {
            let stats = start.stats.as_ref()?;
            Some(stats.seconds_in_order(start.run, hot, rate))
        });
        Some(median(&seconds))
    }

    fn describe_ideals(&self, working_set: f64, hot: f64, ideals: Option<Ideals>) -> String {
        let set = mb(working_set as u64);
        let Some(Ideals {
            transfer,
            bound,
            in_order,
        }) = ideals
        else {
            return format!(
                "compressed working set {set} MB, hot run {hot:.2} s; no bound without --link-mbit"
            );
        };
        format!(
            "bound {bound:.2} s: the larger of {set} MB compressed working set at the rate of the link ({transfer:.2} s) and the hot run \
             ({hot:.2} s), and {ROUND_TRIPS} round trips; {in_order:.2} s with the bytes in the order of the demands"
        )
    }

    fn row(&self, case: Case, ideals: Option<Ideals>, peer: Option<f64>, working_set: f64) -> Vec<String> {
        let total = self.values(case, |start| Some(start.total));
        let stat = |value: &dyn Fn(&Stats) -> f64| self.values(case, |start| start.stats.as_ref().map(value));
        let bytes = |values: &[f64]| match values {
            [] => ["-".to_owned(), "-".to_owned()],
            _ => [
                mb(median(values) as u64),
                ratio(median(values), Some(working_set)),
            ],
        };
        let whole = |values: Vec<f64>| match values[..] {
            [] => "-".to_owned(),
            _ => format!("{:.0}", median(&values)),
        };
        let [stored, stored_ratio] = bytes(&stat(&|stats| stats.stored_bytes as f64));
        let [device, device_ratio] = bytes(&self.values(case, |start| start.device.map(|len| len as f64)));
        vec![
            case.name().to_owned(),
            spread(&self.values(case, |start| Some(start.mount))),
            spread(&self.values(case, |start| Some(start.run))),
            spread(&total),
            ratio(median(&total), ideals.map(|ideals| ideals.bound)),
            ratio(median(&total), ideals.map(|ideals| ideals.in_order)),
            ratio(median(&total), peer),
            stored,
            stored_ratio,
            device,
            device_ratio,
            whole(stat(&|stats| stats.requests as f64)),
            whole(stat(&|stats| stats.waits() as f64)),
            spread(&stat(&Stats::wait_seconds)),
        ]
    }
}
