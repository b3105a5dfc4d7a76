//! The parts of a running snapshotter.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::directories::Directories;
use crate::images::Images;
use crate::store::Store;
use crate::trees::{TreeLease, Trees};
use crate::{Error, kernel, operations, restore};

/// How long a tree stays mounted that no snapshot uses and that is not kept: longer than a restart of a container or the gap
/// between two layers of one pull, shorter than anybody looks for what is left.
const TREE_LINGER: Duration = Duration::from_secs(10);

/// Trees that are kept though no snapshot uses them. One costs the tables of its layers, some ten kilobytes to a megabyte.
const IDLE_TREES: usize = 32;

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Options for every overlay, as in the configuration of containerd's overlayfs snapshotter.
    pub mount_options: Vec<String>,
    /// How long a tree stays mounted that no snapshot uses and that is not kept.
    pub tree_linger: Duration,
    /// Trees that are kept mounted though no snapshot uses them, those used last, as long as their images are there and the
    /// engine does not need what they hold. A container that starts on one finds it and its page cache.
    pub idle_trees: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mount_options: Vec::new(),
            tree_linger: TREE_LINGER,
            idle_trees: IDLE_TREES,
        }
    }
}

/// A snapshotter. Clones share one state; when the last one is dropped, the background task ends. Mounts stay.
#[derive(Clone, Debug)]
pub struct Snapshotter {
    pub(crate) parts: Arc<Parts>,
    // Ends the task when the last clone goes away.
    _worker: Arc<Worker>,
}

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) engine: Arc<dyn Images>,
    pub(crate) store: Store,
    pub(crate) directories: Arc<Directories>,
    pub(crate) trees: Trees,
    pub(crate) overlay_options: Vec<String>,
    pub(crate) tree_linger: Duration,
    idle_trees: usize,
    /// Woken when something was removed or a tree got idle.
    pub(crate) work: Arc<Notify>,
    /// Held by the one cleanup that runs.
    pub(crate) cleaning: tokio::sync::Mutex<()>,
    /// Trees that active snapshots and views keep mounted, by ID.
    leases: Mutex<HashMap<u64, Arc<Vec<TreeLease>>>>,
}

impl Parts {
    fn leases(&self) -> MutexGuard<'_, HashMap<u64, Arc<Vec<TreeLease>>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps trees mounted for a snapshot until [`Parts::release`].
    pub(crate) fn keep(&self, id: u64, leases: Arc<Vec<TreeLease>>) {
        if !leases.is_empty() {
            self.leases().insert(id, leases);
        }
    }

    /// Trees that stay mounted though no snapshot uses them, by name.
    pub(crate) async fn idle_trees_to_keep(&self) -> HashSet<String> {
        self.trees.worth_keeping(&self.store, self.idle_trees).await
    }

    /// Gives the trees of a snapshot back.
    pub(crate) fn release(&self, id: u64) {
        let leases = self.leases().remove(&id);
        drop(leases);
    }
}

#[derive(Debug)]
struct Worker(tokio::task::JoinHandle<()>);

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Snapshotter {
    /// Opens the snapshotter whose state is under `root`, and puts everything in place that its snapshots need: trees are
    /// mounted again, what a crash left is collected. A tree that cannot be mounted is logged and tried again when
    /// somebody asks for it.
    ///
    /// `root` has to be on a file system that overlayfs can write to, and belongs to this process alone.
    ///
    /// # Errors
    /// When the directory or the records cannot be used, or another process uses them.
    pub async fn open(root: &Path, engine: Arc<dyn Images>, options: Options) -> Result<Self, Error> {
        let directories = Arc::new(Directories::open(root)?);
        let store = Store::open(&directories.records())?;
        let work = Arc::new(Notify::new());
        let parts = Arc::new(Parts {
            trees: Trees::new(Arc::clone(&engine), Arc::clone(&directories), Arc::clone(&work)),
            engine,
            store,
            directories,
            overlay_options: kernel::overlay_options(&options.mount_options),
            tree_linger: options.tree_linger,
            idle_trees: options.idle_trees,
            work,
            cleaning: tokio::sync::Mutex::new(()),
            leases: Mutex::default(),
        });
        restore::restore(&parts).await?;
        let worker = tokio::spawn(operations::cleanup::work(
            Arc::downgrade(&parts),
            Arc::clone(&parts.work),
        ));
        Ok(Self {
            parts,
            _worker: Arc::new(Worker(worker)),
        })
    }

    /// Unmounts every tree that no snapshot uses, without waiting until it has been idle for a while. For the end of the
    /// process, after the last request.
    pub async fn close(&self) {
        self.parts.trees.sweep(Duration::ZERO, &HashSet::new()).await;
    }
}
