//! Promise: real containerd runs containers on Sluice's snapshots: 1.6 and 2.x, layers that it unpacked and layers that
//! were served; and when image and containers are removed, nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_format::DiffId;
use sluice_snapshotter::labels::{IMAGE_REFERENCE, LAYER_DIGEST, MANIFEST_DIGEST, TARGET};
use sluice_snapshotter::testing::DirectoryImages;
use sluice_tests::containerd::{Containerd, Proxy, Release};
use sluice_tests::images::{Entry, Image, ImageBuilder, Layer, shell};
use sluice_tests::registry::{Class, CountingRegistry};
use sluice_tests::scratch::Scratch;
use sluice_tests::snapshots::images::TestImage;
use sluice_tests::snapshots::{Client, Labels, Process};
use sluice_tests::{mountinfo, process};
use tonic::Code;

/// The snapshotter's name in containerd's configuration.
const NAME: &str = "sluice";
/// How long containerd's garbage collector may take.
const COLLECTED: Duration = Duration::from_secs(60);

/// Four layers: the shell, files, changes of them, nothing.
fn image(scratch: &Scratch) -> Result<Image> {
    let files = [
        Entry::directory("data", 0o755),
        Entry::file("data/kept", b"kept"),
        Entry::file("data/gone", b"gone"),
        Entry::file("top", b"1\n"),
    ];
    let changes = [Entry::whiteout("data/gone"), Entry::file("top", b"2\n")];
    ImageBuilder::new()
        .layers([shell()?, Layer::of(files), Layer::of(changes), Layer::new()])
        .write(&scratch.join("image"), "shell")
}

/// Runs in every container: reads, checks and writes.
const SCRIPT: &str = "read a </top; [ -e /data/kept ] && [ ! -e /data/gone ] && echo b >/new && read b </new && \
                      echo $a $b";

struct Host<'a> {
    containerd: Containerd,
    service: Process,
    registry: &'a CountingRegistry,
    engine: DirectoryImages,
    image: &'a Image,
    reference: String,
    scratch: &'a Scratch,
}

impl<'a> Host<'a> {
    async fn start(
        release: Release,
        scratch: &'a Scratch,
        image: &'a Image,
        registry: &'a CountingRegistry,
    ) -> Result<Self> {
        let home = scratch.join("engine");
        let engine = DirectoryImages::open(&home)?;
        let service = Process::start(scratch, Some(&home)).await?;
        let proxy = Proxy {
            name: NAME,
            socket: service.socket(),
        };
        let containerd = Containerd::start_with(release, &[proxy])?;
        let reference = format!("{}/test:{}", registry.address(), image.tag);
        Ok(Self {
            containerd,
            service,
            registry,
            engine,
            image,
            reference,
            scratch,
        })
    }

    fn root(&self) -> PathBuf {
        self.scratch.join("root")
    }

    fn layers(&self) -> Result<TestImage> {
        let layers = self
            .image
            .layers
            .iter()
            .map(|layer| Ok(layer.diff_id.parse::<DiffId>()?));
        Ok(TestImage {
            reference: self.reference.clone(),
            layers: layers.collect::<Result<_>>()?,
        })
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        process::run(&mut self.containerd.ctr(arguments.iter().copied()))
    }

    /// Runs a container to its end, and another that stays after its end.
    async fn run_containers(&self) -> Result<()> {
        // runc keeps the containers of every containerd on a host in one place.
        let host = std::process::id();
        let (removed, kept) = (format!("sluice-{host}-removed"), format!("sluice-{host}-kept"));
        let command = ["/bin/sh", "-c", SCRIPT];
        let printed = self
            .containerd
            .run_on(NAME, &self.reference, &removed, &command)?;
        ensure!(printed == "2 b\n", "{printed}");
        let start = ["run", "--snapshotter", NAME, &self.reference, &kept];
        let printed = self.ctr(&[&start[..], &command].concat())?;
        ensure!(printed == "2 b\n", "{printed}");
        let client = self.service.connect().await?;
        let active = client.list(&[&format!("kind==active,name~=/{kept}$/")]).await?;
        ensure!(active.len() == 1, "{active:?}");
        let written = client.usage(&active[0].name).await?;
        ensure!(written.inodes >= 2, "{written:?}");
        self.ctr(&["containers", "rm", &kept])?;
        Ok(())
    }

    /// Removes the image; containerd's garbage collector then has to take everything away.
    async fn remove_image(&self) -> Result<()> {
        self.ctr(&["images", "rm", "--sync", &self.reference])?;
        let client = self.service.connect().await?;
        let deadline = tokio::time::Instant::now() + COLLECTED;
        loop {
            let names = client.names().await?;
            let mounts = mountinfo::mounts_under(&self.root())?;
            let directories = fs::read_dir(self.root().join("snapshots"))?.count();
            if names.is_empty() && mounts.is_empty() && directories == 0 {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "left: {names:?} {mounts:?} {directories} directories\n{}",
                self.containerd.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Gives the engine the layers that containerd unpacked.
    async fn take_layers(&self) -> Result<()> {
        let client = self.service.connect().await?;
        let image = self.layers()?;
        // containerd 1.6 puts no target on what it unpacked itself, but its names end with the ChainID.
        let top = format!("name~=/{}$/", image.chain_id(image.layers.len()));
        let found = client.list(&[&top]).await?;
        let top = found.into_iter().next().context("the image was not unpacked")?;
        let mounts = client.prepare("copied", &top.name, &Labels::new()).await?;
        let lowers = mounts[0]
            .options
            .iter()
            .find_map(|option| option.strip_prefix("lowerdir="));
        let lowers: Vec<&str> = lowers.context("no lower directories")?.split(':').collect();
        ensure!(lowers.len() == image.layers.len());
        for (lower, layer) in lowers.iter().rev().zip(&image.layers) {
            let to = self.engine.add_layer(*layer)?;
            process::run(
                Command::new("cp")
                    .arg("-a")
                    .arg(Path::new(lower).join("."))
                    .arg(to),
            )?;
        }
        self.engine.add_image(&image.reference, &image.layers)?;
        // containerd removes what it does not know, and may have been quicker.
        match client.remove("copied").await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// Asks containerd for every layer as a pull with an image's labels does.
    async fn claim_layers(&self, client: &Client) -> Result<()> {
        let image = self.layers()?;
        for (at, layer) in self.image.layers.iter().enumerate() {
            let labels = Labels::from([
                (TARGET.to_owned(), image.chain_id(at + 1)),
                (IMAGE_REFERENCE.to_owned(), self.reference.clone()),
                (MANIFEST_DIGEST.to_owned(), self.image.digest.clone()),
                (LAYER_DIGEST.to_owned(), layer.digest.clone()),
            ]);
            let key = format!("extract-{at} {}", image.chain_id(at + 1));
            let answer = client.prepare(&key, &image.chain_id(at), &labels).await;
            let status = answer.err().context("the layer was not claimed")?;
            ensure!(status.code() == Code::AlreadyExists, "{status}");
            client.stat(&image.chain_id(at + 1)).await?;
        }
        Ok(())
    }
}

/// The whole life of an image, first unpacked by containerd, then served.
fn life(release: Release) -> Result<()> {
    let scratch = Scratch::new("host")?;
    let image = image(&scratch)?;
    // Has a runtime of its own.
    let registry = CountingRegistry::serve(&image.layout)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let host = Host::start(release, &scratch, &image, &registry).await?;
        live(release, &host).await
    })
}

async fn live(release: Release, host: &Host<'_>) -> Result<()> {
    host.containerd.pull_into(NAME, &host.reference)?;
    host.run_containers().await?;
    host.take_layers().await?;
    host.remove_image().await?;

    host.ctr(&["leases", "create", "--id", "pull"])?;
    for namespace in ["default", "other"] {
        let socket = host.containerd.socket();
        let client = Client::connect(&socket, NAME, namespace).await?;
        if namespace == "other" {
            host.ctr(&["-n", namespace, "leases", "create", "--id", "pull"])?;
        }
        host.claim_layers(&client.with_lease("pull")?).await?;
    }
    let names = host.service.connect().await?.names().await?;
    ensure!(
        names.len() == host.image.layers.len(),
        "one record per layer for both namespaces: {names:?}"
    );

    host.registry.traffic().clear();
    host.containerd.pull_into(NAME, &host.reference)?;
    if release == Release::Two {
        let config = host.image.layout.image(&host.image.tag)?.config_bytes.len();
        let fetched = host.registry.traffic().bytes(Class::Blob);
        ensure!(fetched == config as u64, "{}", host.registry.traffic().describe());
    }
    host.run_containers().await?;
    let committed = host.service.connect().await?.list(&["kind==committed"]).await?;
    ensure!(committed.len() == names.len(), "{committed:?}");
    for namespace in ["default", "other"] {
        host.ctr(&["-n", namespace, "leases", "rm", "--sync", "pull"])?;
    }
    host.remove_image().await
}

#[test]
fn privileged_containerd_1_runs_containers_on_our_snapshots() -> Result<()> {
    life(Release::One)
}

#[test]
fn privileged_containerd_2_runs_containers_on_our_snapshots() -> Result<()> {
    life(Release::Two)
}
