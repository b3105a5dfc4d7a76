//! Many images and containers on one host: what a start, a metadata operation and the service itself cost with their number.
//!
//! `scale [--images N] [--containers N] [--files N]`. Generated images, which share some of their layers, are converted, served from an
//! in-process registry, pulled by `sluice pull` into a private containerd, and started with runc; every container stays. Beside each
//! image, a container with overlayfs is started and removed, which tells what a start costs among as many containers without Sluice. The
//! layers are small: what is measured is what there is to do once per image, not fetching. At the end all is removed, and nothing may be left.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use sluice_benches::table::{Table, mb, say};
use sluice_benches::{median, ratio};
use sluice_tests::crowd::{self, Crowd};
use sluice_tests::scratch::Scratch;
use sluice_tests::snapshots::{Client, Labels};
use tokio::runtime::Runtime;

/// Groups of images whose medians are compared.
const GROUPS: usize = 10;
/// Metadata operations of each kind at each number of snapshots.
const OPERATIONS: usize = 50;
/// How long it takes until nothing goes on in the service any more: images that nobody asks for are dropped after a minute.
const IDLE: Duration = Duration::from_secs(80);

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, value_name = "N", default_value_t = 100)]
    images: usize,
    /// Containers of each image.
    #[arg(long, value_name = "N", default_value_t = 3)]
    containers: usize,
    /// Files in a layer; an image has two such layers, of which ten images share one.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    files: u64,
}

/// What an image took, in seconds.
#[derive(Debug, Default)]
struct Times {
    pull: f64,
    starts: Vec<f64>,
    /// A start with overlayfs among as many containers.
    overlayfs: f64,
    /// Memory of the service's own afterwards, in bytes.
    memory: u64,
}

/// What metadata operations took at some number of snapshots, in milliseconds.
#[derive(Debug, Default)]
struct Metadata {
    active: usize,
    stat: Vec<f64>,
    mounts: Vec<f64>,
    prepare: Vec<f64>,
    remove: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "containerd mounts images: run this as root"
    );
    let scratch = Scratch::new("scale")?;
    let began = Instant::now();
    let layout = crowd::images(&scratch, args.images, args.files)?;
    say(format!(
        "{} images of {} files made and converted in {:.1} s",
        args.images,
        2 * args.files,
        began.elapsed().as_secs_f64()
    ))?;
    let mut host = Crowd::start(&layout)?;
    let (empty, of_a_session) = (host.memory()?, host.fuse_descriptors()?.max(1));
    let (mut times, mut metadata) = (Vec::new(), Vec::new());
    for image in 0..args.images {
        let mut time = Times {
            pull: host.pull(image)?.as_secs_f64(),
            ..Times::default()
        };
        for number in 0..args.containers {
            time.starts.push(host.run(image, number)?.as_secs_f64());
            let active = image * args.containers + number + 1;
            if [1, args.images, args.images * args.containers].contains(&active) {
                metadata.push(measure_metadata(host.socket(), active)?);
            }
        }
        time.overlayfs = host.run_on_overlayfs(0)?.as_secs_f64();
        time.memory = host.memory()?.anonymous;
        times.push(time);
    }
    report_starts(&times)?;
    report_metadata(&metadata)?;
    thread::sleep(IDLE);
    let full = host.memory()?;
    say(format!(
        "service: {} FUSE sessions, {} mounts; memory anonymous {} MB, resident {} MB; before the first image {} and {} MB",
        host.fuse_descriptors()? / of_a_session,
        host.trees()?.len(),
        mb(full.anonymous),
        mb(full.resident),
        mb(empty.anonymous),
        mb(empty.resident),
    ))?;
    let began = Instant::now();
    host.remove_all()?;
    let removed = began.elapsed().as_secs_f64();
    let collected = host.wait_for_nothing()?.as_secs_f64();
    let left = host.memory()?;
    say(format!(
        "removed in {removed:.1} s, nothing left {collected:.1} s later; memory anonymous {} MB, resident {} MB",
        mb(left.anonymous),
        mb(left.resident),
    ))
}

fn measure_metadata(socket: PathBuf, active: usize) -> anyhow::Result<Metadata> {
    Runtime::new()?.block_on(async {
        let client = Client::connect(&socket, crowd::NAME, "default").await?;
        let found = client.list(&["kind==active"]).await?;
        let sample = found.last().context("no container has a snapshot")?;
        let mut measured = Metadata {
            active,
            ..Metadata::default()
        };
        for at in 0..OPERATIONS {
            let key = format!("bench/{active}/{at}");
            let began = Instant::now();
            client.stat(&sample.name).await?;
            measured.stat.push(milliseconds(began));
            let began = Instant::now();
            client.mounts(&sample.name).await?;
            measured.mounts.push(milliseconds(began));
            let began = Instant::now();
            client.prepare(&key, &sample.parent, &Labels::new()).await?;
            measured.prepare.push(milliseconds(began));
            let began = Instant::now();
            client.remove(&key).await?;
            measured.remove.push(milliseconds(began));
        }
        Ok(measured)
    })
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

fn report_starts(times: &[Times]) -> anyhow::Result<()> {
    let containers = times.first().map_or(0, |times| times.starts.len());
    let mut head = vec!["images".to_owned(), "pull ms".to_owned()];
    head.extend((1..=containers).map(|number| format!("container {number} ms")));
    head.extend(["overlayfs ms", "container 1 / overlayfs", "memory MB"].map(str::to_owned));
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut table = Table::new(&head);
    let length = times.len().div_ceil(GROUPS).max(1);
    let of_start = |group: &[Times], number: usize| {
        let starts: Vec<f64> = group.iter().map(|times| times.starts[number]).collect();
        median(&starts)
    };
    for (at, group) in times.chunks(length).enumerate() {
        let whole = |seconds: f64| format!("{:.0}", seconds * 1e3);
        let pulls: Vec<f64> = group.iter().map(|times| times.pull).collect();
        let range = format!("{}–{}", at * length + 1, at * length + group.len());
        let mut row = vec![range, whole(median(&pulls))];
        row.extend((0..containers).map(|number| whole(of_start(group, number))));
        let overlayfs: Vec<f64> = group.iter().map(|times| times.overlayfs).collect();
        row.push(whole(median(&overlayfs)));
        row.push(ratio(of_start(group, 0), Some(median(&overlayfs))));
        row.extend(group.last().map(|times| mb(times.memory)));
        table.row(row);
    }
    table.print()
}

fn report_metadata(metadata: &[Metadata]) -> anyhow::Result<()> {
    let mut table = Table::new(&["containers", "Stat ms", "Mounts ms", "Prepare ms", "Remove ms"]);
    for measured in metadata {
        let of = |values: &[f64]| format!("{:.2}", median(values));
        table.row([
            measured.active.to_string(),
            of(&measured.stat),
            of(&measured.mounts),
            of(&measured.prepare),
            of(&measured.remove),
        ]);
    }
    table.print()
}
