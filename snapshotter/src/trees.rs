//! Image trees that are mounted, and who uses them.
//!
//! A tree is mounted once however many snapshots lie on it. [`Trees::acquire`] gives a [`TreeLease`]; the tree stays mounted
//! while any lease lives. Giving the last one back unmounts nothing: containerd does that inside its own transactions, and
//! a container that is started again should find its tree, and in the page cache what it read before. So some idle trees are kept
//! as long as their images are there ([`Trees::worth_keeping`]); [`Trees::sweep`] unmounts the others, when nobody has used
//! them for a while.
//!
//! | state | leases | next |
//! |---|---|---|
//! | not mounted | 0 or more waiting | mounted, by the first `acquire`; the others wait for it |
//! | mounted | 1 or more | idle, when the last lease is dropped |
//! | idle | 0 | mounted, by `acquire`; not mounted, by `sweep`; mounted anew, when the engine wants that |
//!
//! Each tree has a lock of its own that is held while the engine mounts, checks or unmounts it, so a slow tree delays
//! nobody else.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::directories::Directories;
use crate::error::Chain;
use crate::images::{IdleTree, Images, TreeRequest};
use crate::store::Store;
use crate::{Error, ErrorKind};

/// How long a tree that could not be unmounted is left alone at least.
const RETRY: Duration = Duration::from_secs(5);

/// How long until it is asked again whether a tree is worth keeping.
const KEEP: Duration = Duration::from_secs(10);

/// All trees of this process.
#[derive(Debug)]
pub(crate) struct Trees {
    engine: Arc<dyn Images>,
    directories: Arc<Directories>,
    entries: Mutex<HashMap<String, Arc<Entry>>>,
    /// Woken when a tree gets idle.
    idle: Arc<Notify>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    request: TreeRequest,
    target: PathBuf,
    /// Whether it is mounted. Held while that changes.
    mounted: tokio::sync::Mutex<bool>,
    users: Mutex<Users>,
}

#[derive(Debug)]
struct Users {
    count: usize,
    /// Committed snapshots through which it was asked for: the tree is of use while one of them is there.
    tops: BTreeSet<String>,
    /// When the last one left, or when unmounting failed.
    idle_since: Instant,
}

impl Entry {
    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a snapshot is there on which containers with this tree can be made.
    async fn is_of_an_image(&self, store: &Store) -> bool {
        let tops = self.users().tops.clone();
        for top in tops {
            if store.get(&top).await.is_ok() {
                return true;
            }
            self.users().tops.remove(&top);
        }
        false
    }

    /// How long nobody has used it; `None` while somebody does.
    fn idle_for(&self) -> Option<Duration> {
        let users = self.users();
        (users.count == 0).then(|| users.idle_since.elapsed())
    }
}

/// Keeps a tree mounted.
pub(crate) struct TreeLease {
    entry: Arc<Entry>,
    idle: Arc<Notify>,
}

impl TreeLease {
    /// The directory that shows the tree.
    pub(crate) fn directory(&self) -> PathBuf {
        self.entry.target.clone()
    }
}

impl fmt::Debug for TreeLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeLease({})", self.entry.name)
    }
}

impl Drop for TreeLease {
    fn drop(&mut self) {
        let mut users = self.entry.users();
        users.count -= 1;
        if users.count == 0 {
            users.idle_since = Instant::now();
            self.idle.notify_one();
        }
    }
}

impl Trees {
    pub(crate) fn new(engine: Arc<dyn Images>, directories: Arc<Directories>, idle: Arc<Notify>) -> Self {
        Self {
            engine,
            directories,
            entries: Mutex::default(),
            idle,
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts a tree unless it is mounted and answers. `top` is the committed snapshot of its topmost layer.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the engine cannot mount it.
    pub(crate) async fn acquire(&self, request: TreeRequest, top: &str) -> Result<TreeLease, Error> {
        let lease = self.lease(request, top);
        let entry = &lease.entry;
        let mut mounted = entry.mounted.lock().await;
        if *mounted {
            match self.engine.check_tree(&entry.request, &entry.target).await {
                Ok(()) => {
                    drop(mounted);
                    return Ok(lease);
                }
                Err(error) => tracing::warn!(
                    tree = entry.name,
                    error = %Chain(error.as_ref()),
                    "an image tree stopped answering and is mounted again"
                ),
            }
        }
        *mounted = false;
        self.directories.create_tree(&entry.name)?;
        let result = self.engine.mount_tree(&entry.request, &entry.target).await;
        *mounted = result.is_ok();
        drop(mounted);
        match result {
            Ok(()) => Ok(lease),
            Err(error) => {
                let message = format!("image tree {} cannot be mounted", entry.name);
                Err(Error::new(ErrorKind::Unavailable, message).with_source(error))
            }
        }
    }

    /// Counts a user before anything is mounted, so that no sweep gets in between.
    fn lease(&self, request: TreeRequest, top: &str) -> TreeLease {
        let name = request.name();
        let mut entries = self.entries();
        let entry = entries.entry(name.clone()).or_insert_with(|| {
            Arc::new(Entry {
                target: self.directories.tree(&name),
                name,
                request,
                mounted: tokio::sync::Mutex::new(false),
                users: Mutex::new(Users {
                    count: 0,
                    tops: BTreeSet::new(),
                    idle_since: Instant::now(),
                }),
            })
        });
        let mut users = entry.users();
        users.count += 1;
        users.tops.insert(top.to_owned());
        drop(users);
        TreeLease {
            entry: Arc::clone(entry),
            idle: Arc::clone(&self.idle),
        }
    }

    /// Names of the trees to be kept though nobody uses them: at most `most`, those used last, of images that are there. Those that
    /// are better mounted anew are.
    pub(crate) async fn worth_keeping(&self, store: &Store, most: usize) -> HashSet<String> {
        let mut idle: Vec<(Duration, Arc<Entry>)> = self
            .entries()
            .values()
            .filter_map(|entry| Some((entry.idle_for()?, entry.clone())))
            .collect();
        idle.sort_by_key(|(idle_for, _)| *idle_for);
        let mut kept = HashSet::new();
        for (_, entry) in idle {
            if kept.len() >= most || !entry.is_of_an_image(store).await {
                continue;
            }
            let stays = match self.engine.idle_tree(&entry.target).await {
                IdleTree::Keep => true,
                IdleTree::Renew => self.renew(&entry).await,
                IdleTree::GiveUp => false,
            };
            if stays {
                kept.insert(entry.name.clone());
            }
        }
        kept
    }

    /// Mounts a tree anew, unless somebody uses it now; whether it is mounted.
    async fn renew(&self, entry: &Arc<Entry>) -> bool {
        let mut mounted = entry.mounted.lock().await;
        if entry.idle_for().is_none() {
            return true;
        }
        let unmounted = self.engine.unmount_tree(&entry.target).await;
        *mounted = false;
        let renewed = match unmounted {
            Ok(()) => self.engine.mount_tree(&entry.request, &entry.target).await,
            Err(error) => Err(error),
        };
        *mounted = renewed.is_ok();
        if let Err(error) = renewed {
            tracing::warn!(tree = entry.name, error = %Chain(error.as_ref()), "an image tree is not kept");
        }
        *mounted
    }

    /// Unmounts every tree that nobody has used for `linger` and that is not `kept`. Gives how long until there is something to do.
    pub(crate) async fn sweep(&self, linger: Duration, kept: &HashSet<String>) -> Option<Duration> {
        let entries: Vec<Arc<Entry>> = self.entries().values().cloned().collect();
        let mut next: Option<Duration> = None;
        for entry in entries {
            let Some(idle) = entry.idle_for() else { continue };
            let due = if kept.contains(&entry.name) {
                Some(KEEP)
            } else if idle >= linger {
                self.unmount(&entry).await
            } else {
                Some(linger - idle)
            };
            next = [next, due].into_iter().flatten().min();
        }
        next
    }

    /// Unmounts an idle tree; gives when to try again if that fails.
    async fn unmount(&self, entry: &Arc<Entry>) -> Option<Duration> {
        let mut mounted = entry.mounted.lock().await;
        entry.idle_for()?;
        let result = match self.engine.unmount_tree(&entry.target).await {
            Ok(()) => {
                *mounted = false;
                self.directories.remove_tree(&entry.name)
            }
            Err(error) => {
                let message = format!("image tree {} cannot be unmounted", entry.name);
                Err(Error::new(ErrorKind::Unavailable, message).with_source(error))
            }
        };
        if let Err(error) = result {
            tracing::warn!(error = %Chain(&error), "tried again later");
            entry.users().idle_since = Instant::now();
            return Some(RETRY);
        }
        // Whoever came meanwhile waits for the lock and needs the entry.
        let mut entries = self.entries();
        if entry.idle_for().is_some() {
            entries.remove(&entry.name);
        }
        None
    }

    /// Unmounts trees of an earlier process that no snapshot needs now.
    pub(crate) async fn collect(&self, found: &[String]) {
        for name in found {
            if self.entries().contains_key(name) {
                continue;
            }
            let target = self.directories.tree(name);
            let unmounted = self.engine.unmount_tree(&target).await;
            let result = match unmounted {
                Ok(()) => self.directories.remove_tree(name),
                Err(error) => {
                    let message = format!("image tree {name} of an earlier run cannot be unmounted");
                    Err(Error::new(ErrorKind::Unavailable, message).with_source(error))
                }
            };
            if let Err(error) = result {
                tracing::warn!(error = %Chain(&error), "tried again at the next start");
            }
        }
    }
}
