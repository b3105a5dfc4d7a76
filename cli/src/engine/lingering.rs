//! Trees that are unmounted and may be in use still.
//!
//! The overlay of a container that is just ending holds the file system of its tree, and its reads must be answered. The
//! kernel lists an EROFS file system below `/sys/fs/erofs` until its last user is gone; only then the layers are given back
//! and the record is removed. A process that ends before that leaves the record, and its successor goes on waiting.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::layers::LayerLease;
use super::records::OwnRecord;

/// Pauses between two looks at whether a file system is still used: the first, and the longest.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(5);

/// How often one looks again before the process ends. The kernel takes a moment to end a file system that nobody uses.
const FINAL_LOOKS: usize = 10;

/// A tree without a place.
#[derive(Debug)]
pub(super) struct Unmounted {
    /// Exists as long as the file system does. On kernels that do not tell, nobody knows when the last user leaves.
    pub(super) file_system: Option<PathBuf>,
    pub(super) layers: Vec<LayerLease>,
    pub(super) record: Option<OwnRecord>,
}

impl Unmounted {
    fn is_gone(&self) -> bool {
        // An error is no sign that it is gone.
        let exists = |path: &PathBuf| path.try_exists().unwrap_or(true);
        self.file_system.as_ref().is_some_and(|path| !exists(path))
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Lingering {
    waiting: Mutex<Vec<Unmounted>>,
    runtime: Handle,
}

impl Lingering {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            runtime: Handle::current(),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Unmounted>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the layers of a tree back as soon as nobody uses it.
    pub(super) fn add(self: &Arc<Self>, unmounted: Unmounted) {
        let watched = unmounted.file_system.clone();
        self.waiting().push(unmounted);
        if let Some(file_system) = watched {
            self.runtime.spawn(self.clone().watch(file_system));
        }
    }

    async fn watch(self: Arc<Self>, file_system: PathBuf) {
        let mut pause = FIRST_LOOK;
        while self.holds(&file_system) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
            self.look();
        }
    }

    fn holds(&self, file_system: &PathBuf) -> bool {
        let is_it = |unmounted: &Unmounted| unmounted.file_system.as_ref() == Some(file_system);
        self.waiting().iter().any(is_it)
    }

    /// Gives back what nobody uses.
    fn look(&self) {
        let gone: Vec<Unmounted> = self
            .waiting()
            .extract_if(.., |unmounted| unmounted.is_gone())
            .collect();
        for Unmounted { layers, record, .. } in gone {
            drop(layers);
            record.into_iter().for_each(OwnRecord::remove);
        }
    }

    /// Looks once more, for the end of the process: what stays is used.
    pub(super) async fn finish(&self) {
        for _ in 0..FINAL_LOOKS {
            self.look();
            if self.waiting().is_empty() {
                return;
            }
            tokio::time::sleep(FIRST_LOOK).await;
        }
        self.look();
    }
}
