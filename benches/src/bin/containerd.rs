//! How long a container takes until it is ready, through containerd: with Sluice's snapshotter, beside overlayfs.
//!
//! `containerd IMAGE [--original IMAGE] [--rounds N] [--device DEV] [--plain-http] [--ready TEXT]`. IMAGE is a converted image in a
//! registry, reached over a link that is shaped outside; the other image is the one that it was converted from. In each
//! round a private containerd with a private service pulls the image by `sluice pull` and runs it with runc
//!
//! - `first`: with an empty cache, on a host that has never seen the image;
//! - `profile`: with an empty cache again, but with the profile that `first` left;
//! - `again`: on that host once more, after the container has gone; the page cache was dropped;
//! - `warm`: the same after the whole image was fetched (`sluice snapshotter --fill`);
//! - `hot`: once more right after;
//!
//! and another private containerd pulls the original image, unpacks it with the overlayfs snapshotter and runs it (`overlayfs`),
//! then again as in `warm` and `hot`.
//!
//! Both keep everything in an ext4 file system of their own on the same disk, and both daemons run already. Page cache is dropped before
//! each start but `hot`; the programs that run for every container stay in it. A start lasts from before the pull
//! (in the last three: from before `ctr run`) until the entry point prints a line with the text that `--ready` gives, or ends.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use serde_json::json;
use sluice_benches::command::sluice;
use sluice_benches::link::LinkArgs;
use sluice_benches::started::{Started, drop_page_cache, in_turn};
use sluice_benches::table::{Table, mb, say};
use sluice_benches::{median, ratio, spread};
use sluice_tests::containerd::{Containerd, Proxy, Release};
use sluice_tests::installed::{self, Service};
use sluice_tests::process;
use sluice_tests::scratch::Disk;
use sluice_tests::snapshots::{Client, Labels};

/// Name of our snapshotter in containerd's configuration.
const SLUICE: &str = "sluice";
/// The one to compare with.
const OVERLAYFS: &str = "overlayfs";

/// What the service says when it has followed a start to its end.
const FOLLOWED: &str = "a container started";
/// How long that may take: a start has ended when nothing was read for some seconds.
const FOLLOW: Duration = Duration::from_secs(60);

/// What it says when every layer of an image is there.
const FILLED: &str = "every layer of an image tree is on this host";
/// How long that may take over a slow link.
const FILL: Duration = Duration::from_secs(600);

/// Directories of the service's state, and whether the profile of an earlier start is kept with the cache.
const ROOT: &str = "root";
const CACHE: &str = "cache";
const PROFILES: &str = "profiles";

#[derive(Debug, Parser)]
struct Args {
    /// Converted image.
    image: String,
    /// The image that it was converted from, for overlayfs; without it there is nothing to compare with.
    #[arg(long, value_name = "IMAGE")]
    original: Option<String>,
    #[arg(long, value_name = "N", default_value_t = 5)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    First,
    Profile,
    Again,
    Warm,
    Hot,
    Overlayfs,
    OverlayfsWarm,
    OverlayfsHot,
}

impl Case {
    const ALL: [Self; 8] = [
        Self::First,
        Self::Profile,
        Self::Again,
        Self::Warm,
        Self::Hot,
        Self::Overlayfs,
        Self::OverlayfsWarm,
        Self::OverlayfsHot,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Profile => "profile",
            Self::Again => "again",
            Self::Warm => "warm",
            Self::Hot => "hot",
            Self::Overlayfs => "overlayfs",
            Self::OverlayfsWarm => "overlayfs warm",
            Self::OverlayfsHot => "overlayfs hot",
        }
    }

    /// What it is compared with: the same with overlayfs.
    fn peer(self) -> Self {
        match self {
            Self::First | Self::Profile | Self::Overlayfs => Self::Overlayfs,
            Self::Again | Self::Warm | Self::OverlayfsWarm => Self::OverlayfsWarm,
            Self::Hot | Self::OverlayfsHot => Self::OverlayfsHot,
        }
    }
}

/// One start, in seconds and bytes.
#[derive(Debug)]
struct Start {
    case: Case,
    pull: f64,
    run: f64,
    device: Option<u64>,
}

impl Start {
    fn total(&self) -> f64 {
        self.pull + self.run
    }
}

/// A host with Sluice. Its parts end in this order.
struct SluiceHost {
    containerd: Containerd,
    _service: Service,
}

struct Bench {
    args: Args,
    /// State of the service.
    disk: Disk,
    starts: Vec<Start>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "containerd mounts images: run this as root"
    );
    let mut bench = Bench {
        disk: Disk::new("service")?,
        starts: Vec::new(),
        args,
    };
    let rounds = bench.args.rounds;
    in_turn(&mut bench, rounds, Bench::start_sluice, Bench::start_peer)?;
    bench.report()
}

/// The image as containerd names it.
fn reference(image: &str) -> &str {
    image.strip_prefix("docker://").unwrap_or(image)
}

impl Bench {
    fn note(&mut self, start: Start) -> anyhow::Result<()> {
        if self.args.json {
            say(json!({
                "image": self.args.image,
                "case": start.case.name(),
                "pull_seconds": start.pull,
                "run_seconds": start.run,
                "total_seconds": start.total(),
                "device_bytes": start.device,
            }))?;
        }
        self.starts.push(start);
        Ok(())
    }

    fn start_sluice(&mut self) -> anyhow::Result<()> {
        self.forget(false)?;
        let host = self.sluice_host(&[])?;
        self.cold(Case::First, &host)?;
        drop(host);
        self.forget(true)?;
        let host = self.sluice_host(&[])?;
        self.cold(Case::Profile, &host)?;
        tidy(&host.containerd, &self.disk.directory)?;
        self.again(Case::Again, &host.containerd)?;
        drop(host);
        remove(&self.disk.directory.join(ROOT))?;
        let host = self.sluice_host(&["--fill"])?;
        self.fill(&host)?;
        tidy(&host.containerd, &self.disk.directory)?;
        self.again(Case::Warm, &host.containerd)?;
        self.again(Case::Hot, &host.containerd)
    }

    fn start_peer(&mut self) -> anyhow::Result<()> {
        let Some(original) = self.args.original.clone() else {
            return Ok(());
        };
        let containerd = Containerd::start()?;
        drop_page_cache()?;
        let meter = self.args.link.meter()?;
        let began = Instant::now();
        containerd.pull(reference(&original))?;
        let pull = began.elapsed().as_secs_f64();
        let container = Started::new(&containerd, OVERLAYFS, reference(&original), &self.args.ready)?;
        let (run, device) = (container.seconds(), meter.received()?);
        container.end()?;
        self.note(Start {
            case: Case::Overlayfs,
            pull,
            run,
            device,
        })?;
        self.again(Case::OverlayfsWarm, &containerd)?;
        self.again(Case::OverlayfsHot, &containerd)
    }

    /// Makes the host one that has not seen the image, except for the profile if that is kept.
    fn forget(&self, keeps_profile: bool) -> anyhow::Result<()> {
        remove(&self.disk.directory.join(ROOT))?;
        let cache = self.disk.directory.join(CACHE);
        if !keeps_profile {
            return remove(&cache);
        }
        for entry in fs::read_dir(&cache)? {
            let entry = entry?;
            match (entry.file_name() == PROFILES, entry.file_type()?.is_dir()) {
                (true, _) => {}
                (_, true) => remove(&entry.path())?,
                (_, false) => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    fn sluice_host(&self, options: &[&str]) -> anyhow::Result<SluiceHost> {
        let plain_http = self.args.link.plain_http().then_some("--plain-http");
        let options: Vec<&str> = options.iter().copied().chain(plain_http).collect();
        let service = Service::start(&self.disk.directory, &options)?;
        let proxy = Proxy {
            name: SLUICE,
            socket: &installed::socket(&self.disk.directory),
        };
        Ok(SluiceHost {
            containerd: Containerd::start_with(Release::One, &[proxy])?,
            _service: service,
        })
    }

    /// Pulls and starts the image on a host that has not seen it, and waits until the start is recorded.
    fn cold(&mut self, case: Case, host: &SluiceHost) -> anyhow::Result<()> {
        drop_page_cache()?;
        let meter = self.args.link.meter()?;
        let began = Instant::now();
        self.pull(&host.containerd)?;
        let pull = began.elapsed().as_secs_f64();
        let image = reference(&self.args.image);
        let container = Started::new(&host.containerd, SLUICE, image, &self.args.ready)?;
        let (run, device) = (container.seconds(), meter.received()?);
        container.end()?;
        self.note(Start {
            case,
            pull,
            run,
            device,
        })?;
        let state = &self.disk.directory;
        process::wait_until("the end of a followed start", FOLLOW, || {
            let kept =
                fs::read_dir(state.join(CACHE).join(PROFILES)).is_ok_and(|mut files| files.next().is_some());
            kept && installed::log(state).is_ok_and(|log| log.contains(FOLLOWED))
        })
        .with_context(|| installed::log(state).unwrap_or_default())
    }

    /// Has the whole image fetched.
    fn fill(&self, host: &SluiceHost) -> anyhow::Result<()> {
        self.pull(&host.containerd)?;
        let state = &self.disk.directory;
        // As on the other hosts, where a container has run before the one that is measured.
        Started::new(
            &host.containerd,
            SLUICE,
            reference(&self.args.image),
            &self.args.ready,
        )?
        .end()?;
        // Keeps the image mounted, as a container that goes on would.
        prepare_topmost(state)?;
        process::wait_until("arrival of the whole image", FILL, || {
            installed::log(state).is_ok_and(|log| log.contains(FILLED))
        })
        .with_context(|| installed::log(state).unwrap_or_default())
    }

    fn pull(&self, containerd: &Containerd) -> anyhow::Result<()> {
        let mut command = Command::new(sluice()?);
        command
            .args(["pull", "--snapshotter", SLUICE, "--containerd-address"])
            .arg(containerd.socket())
            .arg(reference(&self.args.image));
        if self.args.link.plain_http() {
            command.arg("--plain-http");
        }
        let pulled = process::run(command.arg("--json"))?;
        let pulled: serde_json::Value = serde_json::from_str(&pulled)?;
        ensure!(
            pulled["layers"] == pulled["served"],
            "not every layer of {} is served: {pulled}",
            self.args.image
        );
        Ok(())
    }

    /// Starts an image that was pulled before.
    fn again(&mut self, case: Case, containerd: &Containerd) -> anyhow::Result<()> {
        let (snapshotter, image) = match (case, &self.args.original) {
            (Case::OverlayfsWarm | Case::OverlayfsHot, Some(original)) => (OVERLAYFS, original),
            _ => (SLUICE, &self.args.image),
        };
        if matches!(case, Case::Again | Case::Warm | Case::OverlayfsWarm) {
            drop_page_cache()?;
        }
        let meter = self.args.link.meter()?;
        let container = Started::new(containerd, snapshotter, reference(image), &self.args.ready)?;
        let (run, device) = (container.seconds(), meter.received()?);
        container.end()?;
        self.note(Start {
            case,
            pull: 0.0,
            run,
            device,
        })
    }

    fn values(&self, case: Case, value: impl Fn(&Start) -> Option<f64>) -> Vec<f64> {
        let starts = self.starts.iter().filter(|start| start.case == case);
        starts.filter_map(value).collect()
    }

    fn report(&self) -> anyhow::Result<()> {
        say(format!(
            "{} through containerd 1.6 and runc: {} rounds in turn, median (least–most)",
            self.args.image, self.args.rounds
        ))?;
        let mut table = Table::new(&["start", "pull s", "run s", "total s", "/ overlayfs", "device MB"]);
        for case in Case::ALL {
            let total = self.values(case, |start| Some(start.total()));
            if total.is_empty() {
                continue;
            }
            let peer = self.values(case.peer(), |start| Some(start.total()));
            let peer = (!peer.is_empty()).then(|| median(&peer));
            let device = self.values(case, |start| start.device.map(|len| len as f64));
            table.row([
                case.name().to_owned(),
                spread(&self.values(case, |start| Some(start.pull))),
                spread(&self.values(case, |start| Some(start.run))),
                spread(&total),
                ratio(median(&total), peer),
                match device[..] {
                    [] => "-".to_owned(),
                    _ => mb(median(&device) as u64),
                },
            ]);
        }
        table.print()
    }
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome.with_context(|| format!("removing {}", directory.display())),
    }
}

/// Makes a snapshot on the one image that was pulled. containerd, which does not know it, takes it away when it collects garbage.
fn prepare_topmost(state: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::connect(&installed::socket(state), SLUICE, "default").await?;
        let layers = client.list(&["kind==committed"]).await?;
        let is_topmost = |name: &str| layers.iter().all(|layer| layer.parent != name);
        let topmost = layers.iter().find(|layer| is_topmost(&layer.name));
        let topmost = topmost.context("no layer was pulled")?;
        client.prepare("fill", &topmost.name, &Labels::new()).await?;
        anyhow::Ok(())
    })
}

/// Has everything done that follows the end of a container: its files go, and its image is mounted as the next one is to see it.
fn tidy(containerd: &Containerd, state: &Path) -> anyhow::Result<()> {
    containerd.collect_garbage()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::connect(&installed::socket(state), SLUICE, "default").await?;
        Ok(client.cleanup().await?)
    })
}
