//! Promise: real containerd starts containers of converted images through `sluice snapshotter`, and fetches little of them; of images that
//! are not, every layer is claimed too, and fetched once, by Sluice alone;
//! containers start again after the service was restarted; and when image and containers are removed, nothing is left but
//! the cache.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::containerd::{Containerd, Proxy, Release};
use sluice_tests::document::Layout;
use sluice_tests::foreign::Writer;
use sluice_tests::images::{Entry, ImageBuilder, Layer, shell};
use sluice_tests::registry::{Class, CountingRegistry, DistributionRegistry};
use sluice_tests::scratch::Scratch;
use sluice_tests::{mountinfo, process, sluice};

/// The snapshotter's name in containerd's configuration.
const NAME: &str = "sluice";
/// How long the service may take to listen.
const START: Duration = Duration::from_secs(30);
/// How long the service may take to end.
const END: Duration = Duration::from_secs(20);
/// How long containerd's garbage collector may take.
const COLLECTED: Duration = Duration::from_secs(60);

/// How long it may take until a start is recorded, or what one reads is fetched.
const RECORDED: Duration = Duration::from_secs(60);

/// Plain bytes of the file that no container reads. An eighth of them remains when compressed.
const LARGE_LEN: u64 = 32 << 20;

/// Runs in every container: reads, checks and writes.
const SCRIPT: &str = "read a </top; [ -e /data/kept ] && [ ! -e /data/gone ] && echo b >/new && read b </new && \
                      echo $a $b";

/// Four layers: the shell, files, changes of them, nothing.
fn builder() -> Result<ImageBuilder> {
    let files = [
        Entry::directory("data", 0o755),
        Entry::file("data/kept", b"kept"),
        Entry::file("data/gone", b"gone"),
        Entry::generated("data/large", LARGE_LEN, 1),
        Entry::file("top", b"1\n"),
        Entry::fifo("pipe"),
    ];
    let changes = [Entry::whiteout("data/gone"), Entry::file("top", b"2\n")];
    Ok(ImageBuilder::new().layers([shell()?, Layer::of(files), Layer::of(changes), Layer::new()]))
}

/// The layout with the converted image, called `c`.
fn converted(scratch: &Scratch) -> Result<Layout> {
    let image = builder()?.write(&scratch.join("source"), "shell")?;
    let directory = scratch.join("converted");
    sluice::convert(&image.reference(), &directory, "c", &[])?;
    Ok(Layout::open(&directory))
}

/// A running `sluice snapshotter`; ended when dropped.
struct Service {
    child: Child,
}

impl Service {
    fn start(scratch: &Path, options: &[&str]) -> Result<Self> {
        let (root, socket, cache) = (
            scratch.join("root"),
            scratch.join("p.sock"),
            scratch.join("cache"),
        );
        let mut command = sluice::command(["snapshotter"])?;
        command
            .arg("--root")
            .arg(root)
            .arg("--socket")
            .arg(&socket)
            .arg("--cache")
            .arg(cache)
            .args(options);
        let log = scratch.join("service.log");
        let child = process::spawn_logged(&mut command, &log)?;
        let service = Self { child };
        process::wait_until("the snapshotter to listen", START, || {
            UnixStream::connect(&socket).is_ok()
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(service)
    }

    /// Asks it to end, which must succeed.
    fn stop(mut self) -> Result<()> {
        process::signal(&self.child, nix::sys::signal::Signal::SIGTERM)?;
        let mut status = None;
        process::wait_until("the snapshotter to end", END, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        ensure!(status.is_some_and(|status| status.success()), "{status:?}");
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        process::end(&mut self.child, END);
    }
}

struct Host {
    service: Option<Service>,
    containerd: Containerd,
    reference: String,
    directory: PathBuf,
    /// Distinguishes the containers: runc keeps those of every containerd on a host in one place.
    prefix: String,
    // Removed last.
    _scratch: Scratch,
}

impl Host {
    fn start(release: Release, address: &str, front: &str) -> Result<Self> {
        Self::start_with(release, address, front, &[])
    }

    fn start_with(release: Release, address: &str, front: &str, options: &[&str]) -> Result<Self> {
        let scratch = Scratch::new("engine")?;
        let service = Service::start(&scratch, &[&["--front", front], options].concat())?;
        let socket = scratch.join("p.sock");
        let proxy = Proxy {
            name: NAME,
            socket: &socket,
        };
        Ok(Self {
            service: Some(service),
            containerd: Containerd::start_with(release, &[proxy])?,
            reference: format!("{address}/test:c"),
            directory: scratch.to_path_buf(),
            prefix: format!("sluice-{}-{front}-{release:?}", std::process::id()),
            _scratch: scratch,
        })
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let log = || fs::read_to_string(self.directory.join("service.log")).unwrap_or_default();
        process::run(&mut self.containerd.ctr(arguments.iter().copied())).with_context(log)
    }

    /// `sluice pull`; gives the number of layers, and of those that are served.
    fn pull(&self) -> Result<(u64, u64)> {
        let socket = self.containerd.socket();
        let socket = socket.to_str().context("the socket's path is not UTF-8")?;
        let pulled = sluice::json(["pull", &self.reference, "--containerd-address", socket])?;
        let number = |key: &str| pulled[key].as_u64().context("no number");
        Ok((number("layers")?, number("served")?))
    }

    fn cache(&self) -> String {
        self.directory.join("cache").display().to_string()
    }

    fn run(&self, name: &str) -> Result<()> {
        let id = format!("{}-{name}", self.prefix);
        let command = ["/bin/sh", "-c", SCRIPT];
        let start = ["run", "--rm", "--snapshotter", NAME, &self.reference, &id];
        let printed = self.ctr(&[&start[..], &command].concat())?;
        ensure!(printed == "2 b\n", "{printed}");
        Ok(())
    }

    /// Starts a container that waits for ever.
    fn start_waiting(&self) -> Result<String> {
        let id = format!("{}-waiting", self.prefix);
        let wait = ["/bin/sh", "-c", "read x </pipe"];
        let start = ["run", "-d", "--snapshotter", NAME, &self.reference, &id];
        self.ctr(&[&start[..], &wait].concat())?;
        Ok(id)
    }

    fn remove_waiting(&self, id: &str) -> Result<()> {
        self.ctr(&["tasks", "rm", "--force", id])?;
        self.ctr(&["containers", "rm", id])?;
        Ok(())
    }

    fn restart_service(&mut self, front: &str) -> Result<()> {
        if let Some(service) = self.service.take() {
            service.stop()?;
        }
        let left = mountinfo::mounts_under(&self.directory)?;
        ensure!(left.is_empty(), "mounted after the end: {left:?}");
        self.start_service(front)
    }

    fn start_service(&mut self, front: &str) -> Result<()> {
        self.service = Some(Service::start(&self.directory, &["--front", front])?);
        // containerd waits a moment before it connects again.
        process::wait_until("containerd to find the snapshotter again", START, || {
            self.ctr(&["snapshots", "--snapshotter", NAME, "ls"]).is_ok()
        })
    }

    /// Removes the image; then nothing may be left.
    fn remove_image(&self) -> Result<()> {
        self.ctr(&["images", "rm", "--sync", &self.reference])?;
        let snapshots = self.directory.join("root/snapshots");
        let mut left = String::new();
        process::wait_until("removal of everything", COLLECTED, || {
            let mounts = mountinfo::mounts_under(&self.directory).unwrap_or_default();
            let directories = fs::read_dir(&snapshots).map_or(0, Iterator::count);
            left = format!("{mounts:?} and {directories} directories");
            mounts.is_empty() && directories == 0
        })
        .with_context(|| left.clone())?;
        let snapshots = self.ctr(&["snapshots", "--snapshotter", NAME, "ls"])?;
        ensure!(snapshots.lines().count() == 1, "{snapshots}");
        Ok(())
    }
}

/// Bytes of the image in its registry.
fn stored_len(layout: &Layout) -> Result<u64> {
    layout.image("c")?.stored_len()
}

/// The whole life of an image that `sluice pull` brings, the one called `c` in `layout`.
fn life(layout: &Layout, front: &str) -> Result<()> {
    let mut registry = CountingRegistry::serve(layout)?;
    let mut host = Host::start(Release::One, &registry.address(), front)?;
    let (layers, served) = host.pull()?;
    ensure!(
        layers == 4 && served == 4,
        "{served} of {layers} layers are served"
    );

    host.run("first")?;
    let id = host.start_waiting()?;
    let exec = ["tasks", "exec", "--exec-id", "e", &id, "/bin/sh", "-c", SCRIPT];
    let printed = host.ctr(&exec)?;
    ensure!(printed == "2 b\n", "{printed}");
    let (moved, whole) = (registry.traffic().total_bytes(), stored_len(layout)?);
    ensure!(
        moved * 2 < whole,
        "{moved} of {whole} bytes\n{}",
        registry.traffic().describe()
    );

    host.restart_service(front)?;
    // What the first container read is here. Somebody may still ask for what a container could read.
    registry.vanish();
    host.run("second")?;
    registry.come_back()?;
    host.remove_waiting(&id)?;
    host.remove_image()
}

#[test]
fn privileged_a_pull_is_followed_by_what_the_command_of_the_image_names() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?
        .config("/config/Cmd", json!(["/bin/sh"]))
        .write(&source.join("source"), "shell")?;
    let directory = source.join("converted");
    sluice::convert(&image.reference(), &directory, "c", &[])?;
    let registry = CountingRegistry::serve(&Layout::open(&directory))?;
    let host = Host::start(Release::One, &registry.address(), "erofs")?;
    host.pull()?;
    let shell = fs::metadata("/bin/dash")?.len();
    // Compressed it is more than half as long; documents and indexes of the image are a few kilobytes.
    process::wait_until("the shell on the host", START, || {
        registry.traffic().total_bytes() > shell / 2
    })?;
    host.run("first")?;
    host.remove_image()
}

#[test]
fn privileged_containerd_1_starts_containers_lazily_over_erofs() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    life(&converted(&source)?, "erofs")
}

#[test]
fn privileged_containerd_1_starts_containers_lazily_over_fuse() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    life(&converted(&source)?, "fuse")
}

#[test]
fn privileged_containerd_1_starts_an_image_with_attached_indexes_lazily() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?.write(&source.join("source"), "c")?;
    sluice::run(["index", &image.reference()])?;
    life(&image.layout, "fuse")
}

#[test]
fn privileged_containerd_1_starts_a_zstd_chunked_image_lazily() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?.write(&source.join("source"), "s")?;
    life(
        &Writer::RecentSkopeo.write(&image, &source.join("foreign"))?,
        "erofs",
    )
}

#[test]
fn privileged_containerd_1_starts_an_estargz_image_lazily() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?.write(&source.join("source"), "s")?;
    life(&Writer::Estargz.write(&image, &source.join("foreign"))?, "fuse")
}

#[test]
fn privileged_containerd_1_starts_an_estargz_image_with_tables_of_contents_apart_lazily() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?.write(&source.join("source"), "s")?;
    life(
        &Writer::EstargzApart.write(&image, &source.join("foreign"))?,
        "erofs",
    )
}

/// The whole life of an image without indexes: its layers come once, and not through containerd.
fn streamed_life(front: &str) -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?.write(&source.join("source"), "c")?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let mut host = Host::start(Release::One, &registry.address(), front)?;
    ensure!(host.pull()? == (4, 4), "every layer is served");
    let layers: u64 = image.layers.iter().map(|layer| layer.stored_len).sum();
    let moved = registry.traffic().bytes(Class::Blob);
    // Beside the layers, the config, for containerd and for Sluice.
    ensure!(
        moved >= layers && moved < layers + 50_000,
        "{moved} bytes of layers of {layers}\n{}",
        registry.traffic().describe()
    );
    let content = host.ctr(&["content", "ls", "-q"])?;
    let unpacked = image.layers.iter().find(|layer| content.contains(&layer.digest));
    ensure!(unpacked.is_none(), "containerd has fetched {unpacked:?}");
    registry.traffic().clear();
    host.run("first")?;
    host.restart_service(front)?;
    host.run("second")?;
    ensure!(
        registry.traffic().count(Class::Blob) == 0,
        "everything is here:\n{}",
        registry.traffic().describe()
    );
    host.remove_image()
}

#[test]
fn privileged_an_image_without_indexes_is_streamed_and_claimed_over_erofs() -> Result<()> {
    streamed_life("erofs")
}

#[test]
fn privileged_an_image_without_indexes_is_streamed_and_claimed_over_fuse() -> Result<()> {
    streamed_life("fuse")
}

#[test]
fn privileged_an_image_that_the_cache_has_no_place_for_is_served_lazily() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?.write(&source.join("source"), "c")?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let quota = ["--cache-quota", "20000000"];
    let host = Host::start_with(Release::One, &registry.address(), "auto", &quota)?;
    let (layers, served) = host.pull()?;
    ensure!(
        layers == 4 && served > 0,
        "{served} of {layers} layers are served"
    );
    host.run("ordinary")?;
    host.remove_image()
}

#[test]
fn privileged_containerd_2_streams_an_image_through_its_transfer_service() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?.write(&source.join("source"), "c")?;
    let registry = CountingRegistry::serve(&image.layout)?;
    let host = Host::start(Release::Two, &registry.address(), "auto")?;
    host.containerd.pull_into(NAME, &host.reference)?;
    host.run("first")?;
    let content = host.ctr(&["content", "ls", "-q"])?;
    let fetched = image.layers.iter().find(|layer| content.contains(&layer.digest));
    ensure!(fetched.is_none(), "containerd has fetched {fetched:?}");
    host.remove_image()
}

#[test]
fn privileged_a_killed_service_starts_again_over_what_it_left() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let layout = converted(&source)?;
    let registry = CountingRegistry::serve(&layout)?;
    let mut host = Host::start(Release::One, &registry.address(), "erofs")?;
    host.pull()?;
    let id = host.start_waiting()?;
    if let Some(mut service) = host.service.take() {
        service.child.kill()?;
        service.child.wait()?;
    }
    let left = mountinfo::mounts_under(&host.directory)?;
    ensure!(!left.is_empty(), "the mounts of a killed service stay");
    host.start_service("erofs")?;
    host.run("after")?;
    host.remove_waiting(&id)?;
    host.remove_image()
}

#[test]
fn privileged_containerd_2_pulls_lazily_through_its_transfer_service() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let layout = converted(&source)?;
    let registry = CountingRegistry::serve(&layout)?;
    let host = Host::start(Release::Two, &registry.address(), "auto")?;
    host.containerd.pull_into(NAME, &host.reference)?;
    host.run("first")?;
    let (moved, whole) = (registry.traffic().total_bytes(), stored_len(&layout)?);
    ensure!(
        moved * 2 < whole,
        "{moved} of {whole} bytes\n{}",
        registry.traffic().describe()
    );
    host.remove_image()
}

#[test]
fn privileged_images_of_a_real_registry_start_whether_converted_or_not() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let image = builder()?.write(&source.join("source"), "shell")?;
    let registry = DistributionRegistry::start()?;
    sluice::run(["convert", &image.reference(), &registry.reference("test:c")])?;
    let mut host = Host::start(Release::One, registry.address(), "auto")?;
    ensure!(host.pull()? == (4, 4), "every layer is served");
    host.run("converted")?;
    host.remove_image()?;

    // As a client of every registry pushes it: no layer has an index.
    let plain = DistributionRegistry::start()?;
    let target = plain.reference("test:c");
    process::run(
        Command::new("skopeo")
            .args(["copy", "--dest-tls-verify=false"])
            .arg(image.reference())
            .arg(&target),
    )?;
    host.reference = format!("{}/test:c", plain.address());
    ensure!(host.pull()? == (4, 4), "every layer is served");
    host.run("ordinary")?;
    host.remove_image()
}

#[test]
fn privileged_what_starts_read_is_fetched_when_the_image_is_pulled() -> Result<()> {
    let source = Scratch::new("engine-source")?;
    let layout = converted(&source)?;
    let mut registry = CountingRegistry::serve(&layout)?;
    let here = Host::start(Release::One, &registry.address(), "auto")?;
    here.pull()?;
    here.run("recorded")?;
    let (image_id, file) = (layout.image("c")?.image_id(), source.join("start.profile"));
    let file = file.display().to_string();
    let export = || sluice::run(["profile", "export", &image_id, &file, "--cache", &here.cache()]);
    process::wait_until("the record of a start", RECORDED, || export().is_ok())?;
    here.remove_image()?;
    drop(here);

    let there = Host::start(Release::One, &registry.address(), "auto")?;
    sluice::run(["profile", "import", &file, "--cache", &there.cache()])?;
    registry.traffic().clear();
    there.pull()?;
    let mut fetched = 0;
    process::wait_until("an end of fetching", RECORDED, || {
        let before = std::mem::replace(&mut fetched, registry.traffic().bytes(Class::Blob));
        std::thread::sleep(Duration::from_millis(500));
        before == fetched
    })?;
    // No container has asked for anything so far, and none could any more.
    registry.vanish();
    there.run("later")?;
    there.remove_image()
}

#[test]
fn privileged_metrics_and_health_are_served() -> Result<()> {
    let scratch = Scratch::new("engine-metrics")?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let service = Service::start(&scratch, &["--metrics", &address])?;
    for (path, expected) in [("/healthz", "ok"), ("/metrics", "sluice_chunk_misses_total")] {
        let mut stream = TcpStream::connect(&address)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(
            answer.starts_with("HTTP/1.1 200") && answer.contains(expected),
            "{answer}"
        );
    }
    service.stop()
}
