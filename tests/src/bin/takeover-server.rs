//! A server that is made to be killed: one image over slow plain layers, mounted once, its session in the service
//! manager's store.
//!
//! `takeover-server DIRECTORY` runs until SIGTERM. It never unmounts: a successor goes on. `takeover-server mount-helper` is
//! its mount helper.

use std::env;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nix::errno::Errno;
use sluice_format::erofs::{DeviceSlot, write_image};
use sluice_format::inode;
use sluice_format::tree::{Extent, ExtentSource, FileContent};
use sluice_format::{DiffId, Digest, EntryName, Node, NodeId, NodeKind, Tree};
use sluice_fuse::erofs_mount::ErofsMount;
use sluice_fuse::filesystem::{Answer, Attributes, DirEntry, Entry, Namespace, OpenMode, Statistics};
use sluice_fuse::plain::LayerDirectory;
use sluice_fuse::session::Origin;
use sluice_fuse::trees::write_tree_file;
use sluice_fuse::{
    DescriptorStore, Layer, MountHelper, PlainSource, Session, SessionOptions, mountinfo, run_mount_helper,
};
use sluice_tests::takeover::{
    HELD_FILE, HOLD_FILE, LOG_FILE, PATTERN_LEN, PID_FILE, SLOW_LEN, SLOW_MS, TARGET, TOOL, pattern,
};
use tokio::signal::unix::{SignalKind, signal};

/// Argument that makes this program the mount helper.
const MOUNT_HELPER: &str = "mount-helper";

/// How long an ordinary read takes: requests are in flight at nearly every moment.
const DELAY: Duration = Duration::from_millis(2);

/// Where the bytes of a layer come from.
#[derive(Debug)]
enum Content {
    Pattern,
    File(File),
}

/// A plain layer whose reads take their time.
#[derive(Debug)]
struct Slow {
    len: u64,
    delay: Duration,
    content: Content,
}

impl PlainSource for Slow {
    fn plain_len(&self) -> u64 {
        self.len
    }

    fn read(self: Arc<Self>, plain: Range<u64>) -> BoxFuture<'static, Result<Bytes, sluice_storage::Error>> {
        async move {
            tokio::time::sleep(self.delay).await;
            let bytes = match &self.content {
                Content::Pattern => pattern(plain),
                Content::File(file) => {
                    let mut bytes = vec![0; (plain.end - plain.start) as usize];
                    file.read_exact_at(&mut bytes, plain.start).map_err(|error| {
                        sluice_storage::Error::new(sluice_storage::ErrorKind::Corrupt, error.to_string())
                    })?;
                    bytes
                }
            };
            Ok(bytes.into())
        }
        .boxed()
    }
}

/// The layers, as a server shows them that may be told to hold answers back.
#[derive(Debug)]
struct Held {
    layers: LayerDirectory,
    directory: PathBuf,
}

impl Held {
    fn wait_if_told(&self) -> io::Result<()> {
        if self.directory.join(HOLD_FILE).exists() {
            fs::write(self.directory.join(HELD_FILE), "")?;
            loop {
                thread::park();
            }
        }
        Ok(())
    }
}

impl Namespace for Held {
    fn open_mode(&self) -> OpenMode {
        self.layers.open_mode()
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        self.wait_if_told().map_err(|_| Errno::EIO)?;
        self.layers.lookup(parent, name)
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        self.layers.attributes(node)
    }

    fn read_dir(
        &self,
        node: u64,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        self.layers.read_dir(node, cookie, each)
    }

    fn read(&self, node: u64, file: Range<u64>) -> Result<Answer, Errno> {
        self.layers.read(node, file)
    }

    fn statistics(&self) -> Statistics {
        self.layers.statistics()
    }
}

fn main() -> Result<()> {
    let argument = env::args_os()
        .nth(1)
        .context("usage: takeover-server DIRECTORY")?;
    if argument == MOUNT_HELPER {
        return Ok(run_mount_helper()?);
    }
    let mut store = DescriptorStore::from_environment()?;
    let directory = PathBuf::from(argument);
    replace(&directory.join(PID_FILE), &std::process::id().to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let session = runtime.block_on(serve(&directory, &mut store))?;
    session.leave();
    runtime.shutdown_background();
    Ok(())
}

async fn serve(directory: &Path, store: &mut DescriptorStore) -> Result<Session> {
    let mut terminate = signal(SignalKind::terminate())?;
    let layers = layers()?;
    let served = LayerDirectory::new();
    for layer in &layers {
        served.insert(layer.clone())?;
    }
    let served = Arc::new(Held {
        layers: served,
        directory: directory.to_owned(),
    });
    let handle = tokio::runtime::Handle::current();
    let options = SessionOptions::default();
    let (session, origin) = tokio::task::block_in_place(|| {
        Session::hidden_or_adopted(store, "layers", served, &options, &handle)
    })?;
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(directory.join(LOG_FILE))?;
    let line = match origin {
        Origin::Created => "created\n",
        Origin::Adopted => "adopted\n",
    };
    log.write_all(line.as_bytes())?;
    tokio::task::block_in_place(|| mount(directory, &layers, &session))?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    terminate.recv().await;
    Ok(session)
}

/// Mounts the image, unless a predecessor has.
fn mount(directory: &Path, layers: &[Layer], session: &Session) -> Result<()> {
    let target = directory.join(TARGET);
    if mountinfo::topmost_at(&target)?.is_some() {
        return Ok(());
    }
    let slots: Vec<_> = layers
        .iter()
        .map(|layer| DeviceSlot {
            diff_id: layer.diff_id,
            plain_len: layer.source.plain_len(),
        })
        .collect();
    let tree_file = directory.join(format!("tree-{}.erofs", std::process::id()));
    write_tree_file(&tree_file, &write_image(&tree(layers)?, &slots)?.bytes)?;
    let devices: Vec<_> = layers
        .iter()
        .map(|layer| session.root().join(LayerDirectory::path_of(layer.diff_id)))
        .collect();
    // The mount outlives this process.
    let helper = MountHelper::spawn(Path::new("/proc/self/exe"), &[MOUNT_HELPER])?;
    let mount = ErofsMount::mount(&tree_file, &devices, &target, Some(64), Some(&helper))?;
    std::mem::forget(mount);
    Ok(())
}

fn layers() -> Result<Vec<Layer>> {
    let tool = File::open(TOOL).with_context(|| format!("opening {TOOL}"))?;
    let tool_len = tool.metadata()?.len();
    let sources = [
        (PATTERN_LEN, DELAY, Content::Pattern),
        (SLOW_LEN, Duration::from_millis(SLOW_MS), Content::Pattern),
        (tool_len, DELAY, Content::File(tool)),
    ];
    let named = sources.into_iter().zip(0..).map(|((len, delay, content), at)| {
        let diff_id = DiffId(Digest::of(format!("layer {at}").as_bytes()));
        let source = Arc::new(Slow { len, delay, content });
        Layer { diff_id, source }
    });
    Ok(named.collect())
}

/// Files `pattern`, `slow` and `tool`, each a whole layer.
fn tree(layers: &[Layer]) -> Result<Tree> {
    let mut tree = Tree::new();
    for ((name, device), layer) in ["pattern", "slow", "tool"].into_iter().zip(1..).zip(layers) {
        let size = layer.source.plain_len();
        let extents = vec![Extent {
            file_off: 0,
            len: size,
            source: ExtentSource::Plain { device, plain_off: 0 },
        }];
        let node = tree.add(Node {
            kind: NodeKind::Regular(FileContent { size, extents }),
            attributes: inode::Attributes {
                permissions: 0o755,
                ..inode::Attributes::default()
            },
        });
        let root = tree.directory_mut(NodeId::ROOT).context("a tree has a root")?;
        root.entries.insert(EntryName::new(name.as_bytes())?, node);
    }
    Ok(tree)
}

/// Writes a file so that readers see the old or the new text.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}
