//! Cleanup: everything that Commit and Remove leave undone.
//!
//! Two things are freed: what removed snapshots left (directories, and layers that the engine may forget), and trees that
//! nobody uses, except those that are worth keeping. A background task does it soon after there is work; containerd's Cleanup
//! does it at once and waits, which is how a client knows that nothing is left. Only one of them works at a time. What fails
//! stays noted and is tried again, next time or at the next start.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::error::Chain;
use crate::snapshotter::Parts;
use crate::{Error, Snapshotter};

impl Snapshotter {
    /// Frees everything that nobody uses any more, and waits for it.
    ///
    /// # Errors
    /// When the records cannot be read or written. A directory or mount that resists is logged instead.
    pub async fn cleanup(&self) -> Result<(), Error> {
        let parts = &self.parts;
        let _only_one = parts.cleaning.lock().await;
        let kept = parts.idle_trees_to_keep().await;
        parts.trees.sweep(Duration::ZERO, &kept).await;
        clean_garbage(parts).await
    }
}

/// The background task. It holds the parts only while it works, so they end with the last snapshotter.
pub(crate) async fn work(parts: Weak<Parts>, woken: Arc<Notify>) {
    let mut due = None;
    loop {
        match due {
            None => woken.notified().await,
            Some(due) => {
                // Woken or due, there is work either way.
                let _ = tokio::time::timeout(due, woken.notified()).await;
            }
        }
        let Some(parts) = parts.upgrade() else { return };
        let _only_one = parts.cleaning.lock().await;
        let kept = parts.idle_trees_to_keep().await;
        due = parts.trees.sweep(parts.tree_linger, &kept).await;
        if let Err(error) = clean_garbage(&parts).await {
            tracing::error!(error = %Chain(&error), "removed snapshots were not cleaned up");
        }
    }
}

/// Frees what removed snapshots left.
pub(crate) async fn clean_garbage(parts: &Parts) -> Result<(), Error> {
    let mut done = Vec::new();
    for (id, left) in parts.store.garbage().await? {
        match &left.remote {
            Some(layer) => parts.engine.forget(layer),
            None => {
                if let Err(error) = parts.directories.remove(id).await {
                    tracing::warn!(error = %Chain(&error), "tried again later");
                    continue;
                }
            }
        }
        done.push(id);
    }
    parts.store.clear_garbage(done).await
}
