//! One mounted image tree. What becomes of it when it is unmounted: [`super::lingering`].

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use sluice_format::Limits;
use sluice_fuse::erofs_mount::ErofsMount;
use sluice_fuse::trees::{ImageTree, OnlyTree};
use sluice_fuse::{Front, Layer, MountHelper, Session, SessionOptions, mountinfo};
use sluice_snapshotter::images::TreeRequest;
use sluice_storage::{Cache, LazyLayer};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::Fill;
use super::layers::{LayerLease, ServedLayers};
use super::lingering::{Lingering, Unmounted};
use super::records::OwnRecord;
use crate::open_image::{merged_tree, read_ahead_kib, write_tree};

/// Mounts of earlier processes that are taken away from one directory at most; each start leaves one at most.
const LEFTOVERS_MAX: usize = 64;

/// How a tree is shown.
#[derive(Debug)]
enum Shown {
    Erofs(ErofsMount),
    /// In a lock because a session is not `Sync`.
    Fuse(Mutex<Session>),
}

/// What is to be mounted where.
#[derive(Debug)]
pub(super) struct TreeMount<'a> {
    pub(super) tree: &'a TreeRequest,
    /// The layers of `tree`, lowest first.
    pub(super) stack: &'a [LazyLayer],
    /// The merged tree, if it was written already.
    pub(super) tree_file: Option<PathBuf>,
    pub(super) target: &'a Path,
}

/// A mounted tree. Dropping it unmounts it.
#[derive(Debug)]
pub(super) struct MountedTree {
    // Dropped before the layers.
    shown: Shown,
    layers: Vec<LayerLease>,
    /// By which a successor finds it.
    record: Option<OwnRecord>,
    /// Device number of the mounted file system.
    device: u64,
    /// Layers that could be given to the kernel as files when it was mounted.
    whole_layers: usize,
    /// How long it took to merge and mount it.
    pub(super) mount_time: Duration,
    /// What is done for it beside; given up when the tree is.
    background: Mutex<JoinSet<()>>,
}

impl MountedTree {
    /// Merges the layers, unless that was done, and mounts the tree on its target, where nothing is mounted. Blocks.
    ///
    /// # Errors
    /// When the layers cannot be stacked or the kernel refuses; nothing is left behind then.
    pub(super) fn mount(
        request: TreeMount<'_>,
        cache: &Cache,
        layers: &Arc<ServedLayers>,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        let began = Instant::now();
        let TreeMount {
            tree,
            stack,
            tree_file,
            target,
        } = request;
        let tree_file = match tree_file {
            Some(written) => written,
            None => write_tree(&merged_tree(stack)?, stack, cache)?,
        };
        let leases: Vec<LayerLease> = stack.iter().map(|layer| layers.lease(layer)).collect();
        let whole_layers = count_whole(&leases);
        let read_ahead = Some(read_ahead(stack, &leases));
        let (shown, record) = match layers.front() {
            Front::Fuse => {
                let session = mount_fuse(&tree_file, &leases, target, read_ahead, runtime)?;
                (Shown::Fuse(Mutex::new(session)), None)
            }
            Front::Erofs | Front::Auto => {
                let record = layers.record(tree, target);
                match mount_erofs(&tree_file, &leases, target, read_ahead, layers.mount_helper()) {
                    Ok(mount) => (Shown::Erofs(mount), record),
                    Err(error) => {
                        record.into_iter().for_each(OwnRecord::remove);
                        return Err(error);
                    }
                }
            }
        };
        Ok(Self {
            shown,
            layers: leases,
            record,
            device: device_of(target)?,
            whole_layers,
            mount_time: began.elapsed(),
            background: Mutex::default(),
        })
    }

    /// The tree that an earlier process recorded, as it is mounted. `None` when it is not: then its layers are given back
    /// as soon as nobody uses it. Blocks.
    ///
    /// # Errors
    /// When what is mounted cannot be looked at.
    pub(super) fn find(
        record: OwnRecord,
        layers: Vec<LayerLease>,
        lingering: &Arc<Lingering>,
    ) -> anyhow::Result<Option<Self>> {
        let (target, leaving) = (record.record.target.clone(), record.record.leaving.clone());
        let mounted = ErofsMount::find(&target)?;
        match (mounted, leaving) {
            (Some(mount), leaving) if leaving.is_none() || leaving == mount.sysfs_directory() => {
                Ok(Some(Self {
                    shown: Shown::Erofs(mount),
                    whole_layers: count_whole(&layers),
                    layers,
                    record: Some(record),
                    device: device_of(&target)?,
                    mount_time: Duration::ZERO,
                    background: Mutex::default(),
                }))
            }
            (mounted, Some(leaving)) => {
                // What is mounted there now belongs to another record.
                std::mem::forget(mounted);
                lingering.add(Unmounted {
                    file_system: Some(leaving),
                    layers,
                    record: Some(record),
                });
                Ok(None)
            }
            (_, None) => {
                record.remove();
                Ok(None)
            }
        }
    }

    /// Fetches what is missing of its layers in the background. A layer that gets complete is given to the kernel by the next mount.
    pub(super) fn fill(&self, fill: Fill, runtime: &Handle) {
        let layers: Vec<_> = self.layers.iter().map(|lease| lease.plain().clone()).collect();
        let work = async move {
            sluice_storage::fill(&layers, fill.rate).await;
            if layers.iter().all(|layer| layer.is_complete()) {
                tracing::info!(
                    layers = layers.len(),
                    "every layer of an image tree is on this host"
                );
            }
        };
        self.accompany(work, runtime);
    }

    /// Goes on with some work as long as it is mounted.
    pub(super) fn accompany(&self, work: impl Future<Output = ()> + Send + 'static, runtime: &Handle) {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        background.spawn_on(work, runtime);
    }

    /// Whether the kernel has the tree, and asks for windows of layers only.
    pub(super) fn is_by_kernel(&self) -> bool {
        matches!(self.shown, Shown::Erofs(_))
    }

    /// Whether layers have become whole since it was mounted, which the kernel would read without asking. Blocks for a moment.
    pub(super) fn is_outdated(&self) -> bool {
        self.is_by_kernel() && count_whole(&self.layers) > self.whole_layers
    }

    /// Whether `target` still shows it. Blocks for a moment.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn check(&self, target: &Path) -> anyhow::Result<()> {
        ensure!(
            device_of(target)? == self.device,
            "something else is mounted on {}",
            target.display()
        );
        Ok(())
    }

    /// Takes the mount away. Who holds its file system can go on reading. Blocks.
    ///
    /// # Errors
    /// When the kernel refuses. What is left is found by [`clear`].
    pub(super) fn unmount(mut self, lingering: &Arc<Lingering>) -> anyhow::Result<()> {
        drop(self.background);
        match self.shown {
            Shown::Erofs(mut mount) => {
                let sysfs = mount.sysfs_directory();
                if let Some(record) = &mut self.record {
                    record.leave(sysfs.clone());
                }
                if let Err(sluice_fuse::Error::Busy { .. }) = mount.unmount(false) {
                    mount.unmount(true)?;
                }
                lingering.add(Unmounted {
                    file_system: sysfs,
                    layers: self.layers,
                    record: self.record,
                });
            }
            // The session keeps its layers until its last user is gone.
            Shown::Fuse(session) => {
                let mut session = session.into_inner().unwrap_or_else(PoisonError::into_inner);
                session.unmount(true)?;
            }
        }
        Ok(())
    }
}

fn count_whole(leases: &[LayerLease]) -> usize {
    leases.iter().filter(|lease| lease.plain().is_whole()).count()
}

/// The readahead window of a tree, in KiB.
fn read_ahead(stack: &[LazyLayer], leases: &[LayerLease]) -> u32 {
    let missing = leases.iter().map(|lease| lease.plain().missing_chunks()).sum();
    let chunks = stack.iter().map(|layer| layer.index.chunks.chunks().len()).sum();
    read_ahead_kib(missing, chunks)
}

fn mount_erofs(
    tree_file: &Path,
    leases: &[LayerLease],
    target: &Path,
    read_ahead_kib: Option<u32>,
    helper: &MountHelper,
) -> anyhow::Result<ErofsMount> {
    let devices = leases.iter().map(LayerLease::device);
    let devices = devices.collect::<Result<Vec<PathBuf>, _>>()?;
    let mount = ErofsMount::mount(tree_file, &devices, target, read_ahead_kib, Some(helper));
    Ok(mount?)
}

fn mount_fuse(
    tree_file: &Path,
    leases: &[LayerLease],
    target: &Path,
    read_ahead_kib: Option<u32>,
    runtime: &Handle,
) -> anyhow::Result<Session> {
    let layers = leases.iter().map(|lease| Layer::from(lease.plain().clone()));
    let tree = ImageTree::open(tree_file, layers.collect(), &Limits::default())?;
    let options = SessionOptions {
        read_ahead_kib,
        ..SessionOptions::default()
    };
    let namespace = Arc::new(OnlyTree::new(Arc::new(tree)));
    Ok(Session::mount(namespace, target, &options, runtime)?)
}

fn device_of(target: &Path) -> anyhow::Result<u64> {
    let metadata = std::fs::metadata(target).with_context(|| format!("looking at {}", target.display()))?;
    Ok(metadata.dev())
}

/// Takes away whatever is mounted on `target`, also what does not answer any more. Blocks.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn clear(target: &Path) -> anyhow::Result<()> {
    for _ in 0..LEFTOVERS_MAX {
        // The path must be as the mount table has it; what is mounted there may be dead, so just its parent is looked up.
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Ok(());
        };
        let Ok(parent) = parent.canonicalize() else {
            return Ok(());
        };
        let target = parent.join(name);
        if mountinfo::topmost_at(&target)?.is_none() {
            return Ok(());
        }
        match umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| format!("unmounting {}", target.display())),
        }
    }
    Ok(())
}
