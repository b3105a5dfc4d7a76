//! A host with many images and several running containers of each: real containerd, runc and `sluice snapshotter`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::containerd::{Containerd, Proxy, Release};
use crate::document::Layout;
use crate::images::{Entry, ImageBuilder, Layer, LayoutWriter, shell};
use crate::installed::{self, Service};
use crate::mountinfo::{self, Mount};
use crate::registry::CountingRegistry;
use crate::scratch::Scratch;
use crate::{process, sluice};

/// The snapshotter's name in containerd's configuration.
pub const NAME: &str = "sluice";
/// containerd's own.
const OVERLAYFS: &str = "overlayfs";

/// Images that share a layer, beside the one that all share.
const FAMILY: usize = 10;
/// Plain bytes of most files of an image.
const FILE_LEN: u64 = 3000;

/// What every container runs: reads a file of its image, says so, and waits for ever.
const SCRIPT: &str = "read a </own/0; echo READY; read b </pipe";
/// How long a container may take to say so.
const READY: Duration = Duration::from_secs(120);
/// How often one looks. Short beside the start of a container.
const LOOK: Duration = Duration::from_millis(1);
/// How long it may take until nothing is left.
const COLLECTED: Duration = Duration::from_secs(120);

/// `count` converted images in a layout, called `1`, `2` and so on. Each has a shell that all share, a layer of `files` small
/// files that ten share, and one of as many that is its own.
///
/// # Errors
/// When one cannot be written or converted.
pub fn images(scratch: &Scratch, count: usize, files: u64) -> Result<Layout> {
    let (source, target) = (scratch.join("source"), scratch.join("converted"));
    let writer = LayoutWriter::open(&source)?;
    let base = writer.put_layer(&shell()?.entry(Entry::fifo("pipe")))?;
    let mut family = None;
    for at in 0..count {
        if at % FAMILY == 0 {
            family = Some(writer.put_layer(&layer("shared", files, at as u64))?);
        }
        let own = writer.put_layer(&layer("own", files, (count + at) as u64))?;
        let layers = [Some(base.clone()), family.clone(), Some(own)];
        let (builder, tag) = (ImageBuilder::new(), name(at));
        let image = builder.write_with(&writer, layers.into_iter().flatten().collect(), &tag)?;
        sluice::convert(&image.reference(), &target, &tag, &[])?;
    }
    Ok(Layout::open(&target))
}

/// The first file has one line; the others have bytes that follow from `seed`.
fn layer(directory: &str, files: u64, seed: u64) -> Layer {
    let line = Entry::file(format!("{directory}/0"), format!("{seed}\n"));
    let others = (1..files).map(|at| {
        let path = format!("{directory}/part-{}/file-{at}", at / 100);
        Entry::generated(path, FILE_LEN, seed * files + at)
    });
    Layer::of(
        [Entry::directory(directory, 0o755), line]
            .into_iter()
            .chain(others),
    )
}

/// The name of an image, counted from 0.
fn name(image: usize) -> String {
    (image + 1).to_string()
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of its own: heap and stacks.
    pub anonymous: u64,
    /// All of it, pages of its program and of files that it maps included.
    pub resident: u64,
}

/// The host. Ends all of it when dropped.
#[derive(Debug)]
pub struct Crowd {
    containers: BTreeSet<String>,
    /// containerd.
    pub containerd: Containerd,
    service: Service,
    /// Where the images are.
    pub registry: CountingRegistry,
    /// Images that were pulled.
    pulled: Vec<String>,
    scratch: Scratch,
}

impl Crowd {
    /// One without images, beside a registry that serves `layout`.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn start(layout: &Layout) -> Result<Self> {
        Self::start_with(layout, &[])
    }

    /// The same with further options of the service.
    ///
    /// # Errors
    /// As [`Crowd::start`].
    pub fn start_with(layout: &Layout, options: &[&str]) -> Result<Self> {
        let scratch = Scratch::new("crowd")?;
        let service = Service::start(&scratch, options)?;
        let socket = installed::socket(&scratch);
        let proxy = Proxy {
            name: NAME,
            socket: &socket,
        };
        Ok(Self {
            containers: BTreeSet::new(),
            containerd: Containerd::start_with(Release::One, &[proxy])?,
            service,
            registry: CountingRegistry::serve(layout)?,
            pulled: Vec::new(),
            scratch,
        })
    }

    /// The service's socket.
    pub fn socket(&self) -> PathBuf {
        installed::socket(&self.scratch)
    }

    /// The process of the service.
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    fn reference(&self, image: usize) -> String {
        format!("{}/test:{}", self.registry.address(), name(image))
    }

    /// `sluice pull` of an image, counted from 0; no layer may be unpacked.
    ///
    /// # Errors
    /// When it is not.
    pub fn pull(&mut self, image: usize) -> Result<Duration> {
        let (reference, socket) = (self.reference(image), self.containerd.socket());
        let socket = socket.to_str().context("the socket's path is not UTF-8")?;
        let began = Instant::now();
        let pulled = sluice::json(["pull", &reference, "--containerd-address", socket])?;
        let took = began.elapsed();
        ensure!(pulled["unpacked"] == 0, "{pulled}");
        self.pulled.push(reference);
        Ok(took)
    }

    /// Starts container `number` of an image, and waits until its program has read a file.
    ///
    /// # Errors
    /// When it does not.
    pub fn run(&mut self, image: usize, number: usize) -> Result<Duration> {
        // runc keeps the containers of every containerd on a host in one place.
        let id = format!("sluice-{}-{}-{number}", std::process::id(), name(image));
        self.start_container(NAME, image, &id)
    }

    /// Starts one more container of an image, with containerd's overlayfs snapshotter, and removes it. Tells what a start costs
    /// here without Sluice.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn run_on_overlayfs(&mut self, image: usize) -> Result<Duration> {
        self.containerd.pull(&self.reference(image))?;
        let id = format!("sluice-{}-overlayfs", std::process::id());
        let took = self.start_container(OVERLAYFS, image, &id)?;
        self.remove_containers(&BTreeSet::from([id]))?;
        Ok(took)
    }

    fn start_container(&mut self, snapshotter: &str, image: usize, id: &str) -> Result<Duration> {
        let reference = self.reference(image);
        let output = self.scratch.join(id);
        let log = format!("file://{}", output.display());
        let start = ["run", "--detach", "--snapshotter", snapshotter, "--log-uri"];
        let arguments = start.into_iter().chain([log.as_str(), reference.as_str(), id]);
        let command = ["/bin/sh", "-c", SCRIPT];
        self.containers.insert(id.to_owned());
        let began = Instant::now();
        process::run(&mut self.containerd.ctr(arguments.chain(command)))?;
        while !fs::read(&output).is_ok_and(|printed| printed.ends_with(b"READY\n")) {
            ensure!(
                began.elapsed() < READY,
                "{id} does not get ready:\n{}",
                installed::log(&self.scratch)?
            );
            thread::sleep(LOOK);
        }
        let took = began.elapsed();
        fs::remove_file(output)?;
        Ok(took)
    }

    /// Descriptors of FUSE sessions that the service has: each session has the same number of them.
    ///
    /// # Errors
    /// When it is gone.
    pub fn fuse_descriptors(&self) -> Result<usize> {
        let mut descriptors = 0;
        for descriptor in fs::read_dir(format!("/proc/{}/fd", self.pid()))? {
            // It may be closed by now.
            let target = fs::read_link(descriptor?.path()).unwrap_or_default();
            descriptors += usize::from(target == Path::new("/dev/fuse"));
        }
        Ok(descriptors)
    }

    /// Image trees that are mounted.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn trees(&self) -> Result<Vec<Mount>> {
        mountinfo::mounts_under(&self.scratch)
    }

    /// Memory of the service.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib.map(|kib| kib * 1024).with_context(|| format!("no {name}"))
        };
        Ok(Memory {
            anonymous: bytes("RssAnon:")?,
            resident: bytes("VmRSS:")?,
        })
    }

    /// What the service has logged.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        installed::log(&self.scratch)
    }

    /// Plain bytes of the images that were pulled: those that are in the cache, and all.
    ///
    /// # Errors
    /// When the cache cannot be looked into.
    pub fn cached(&self) -> Result<(u64, u64)> {
        let cache = self.scratch.join("cache");
        let cache = cache.to_str().context("the cache's path is not UTF-8")?;
        let usage = sluice::json(["cache", "du", "--cache", cache])?;
        let number = |key: &str| usage[key].as_u64().context("no number");
        Ok((number("cached_bytes")?, number("plain_len")?))
    }

    /// Removes all containers.
    ///
    /// # Errors
    /// When containerd refuses.
    pub fn remove_all_containers(&mut self) -> Result<()> {
        self.remove_containers(&self.containers.clone())
    }

    /// Removes all containers and images.
    ///
    /// # Errors
    /// When containerd refuses.
    pub fn remove_all(&mut self) -> Result<()> {
        self.remove_all_containers()?;
        let images = std::mem::take(&mut self.pulled);
        let remove = ["images", "rm", "--sync"];
        process::run(&mut self.ctr_of(&remove, images.iter()))?;
        Ok(())
    }

    fn remove_containers(&mut self, containers: &BTreeSet<String>) -> Result<()> {
        if containers.is_empty() {
            return Ok(());
        }
        self.containers.retain(|id| !containers.contains(id));
        let killed = process::run(&mut self.ctr_of(&["tasks", "rm", "--force"], containers.iter()));
        process::run(&mut self.ctr_of(&["containers", "rm"], containers.iter()))?;
        killed.map(|_| ())
    }

    fn ctr_of<'a>(
        &self,
        command: &[&'a str],
        names: impl Iterator<Item = &'a String>,
    ) -> std::process::Command {
        let names = names.map(String::as_str);
        self.containerd.ctr(command.iter().copied().chain(names))
    }

    /// Waits until nothing is left of what was removed: no mount, no record, no process, no file but those of the cache.
    ///
    /// # Errors
    /// Naming what is left.
    pub fn wait_for_nothing(&self) -> Result<Duration> {
        let (began, mut left) = (Instant::now(), Vec::new());
        process::wait_until("removal of everything", COLLECTED, || {
            left = self.left().unwrap_or_else(|error| vec![error.to_string()]);
            left.is_empty()
        })
        .with_context(|| left.join("\n"))?;
        Ok(began.elapsed())
    }

    fn left(&self) -> Result<Vec<String>> {
        let mounts = self.trees()?.into_iter().map(|mount| format!("{mount:?}"));
        let mut left: Vec<String> = mounts.collect();
        for entry in fs::read_dir(self.scratch.join("root/snapshots"))? {
            left.push(entry?.path().display().to_string());
        }
        let list = process::run(&mut self.containerd.ctr(["snapshots", "--snapshotter", NAME, "ls"]))?;
        left.extend(list.lines().skip(1).map(str::to_owned));
        left.extend(self.shims()?);
        Ok(left)
    }

    /// Processes that hold containers of this containerd.
    fn shims(&self) -> Result<Vec<String>> {
        let socket = self.containerd.socket();
        let socket = socket.to_str().context("the socket's path is not UTF-8")?;
        let mut shims = Vec::new();
        for entry in fs::read_dir("/proc")? {
            // It may have ended by now.
            let command = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains("containerd-shim") && command.contains(socket) {
                shims.push(command);
            }
        }
        Ok(shims)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // What is left of a test that failed.
        let _ = self.remove_all_containers();
    }
}
