//! Puts everything in place that the records promise.
//!
//! After a restart the trees are still mounted and the engine adopts them; after a reboot none is, and it mounts them
//! again from what it keeps on disk. Either way a running or restarted container finds its directories where they were.
//! A tree that cannot be mounted costs only the snapshots on it: it is logged, and tried again when one of them is used.
//!
//! What a crash left is found by comparison: a directory without a record, a tree that no snapshot lies on, garbage that
//! was not cleaned up.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::Error;
use crate::error::Chain;
use crate::filter::Filter;
use crate::operations::{cleanup, lower_trees};
use crate::snapshotter::Parts;
use crate::store::{Kind, Named};

/// Snapshots whose trees are mounted at the same time.
const AT_ONCE: usize = 16;

pub(crate) async fn restore(parts: &Arc<Parts>) -> Result<(), Error> {
    let snapshots = parts.store.list(Filter::parse(&[])?).await?;
    let garbage = parts.store.garbage().await?;
    let recorded: HashSet<u64> = snapshots.iter().map(|named| named.record.id).collect();
    let last = recorded
        .iter()
        .copied()
        .chain(garbage.iter().map(|(id, _)| *id))
        .max();
    let found = parts.directories.scan(last.unwrap_or(0))?;

    let in_use = snapshots
        .iter()
        .filter(|named| named.record.kind != Kind::Committed);
    let mounting = in_use.map(|named| mount_again(parts, named));
    stream::iter(mounting)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
    parts.trees.collect(&found.trees).await;

    for id in found.ids.iter().filter(|id| !recorded.contains(id)) {
        tracing::info!(
            id,
            "removing the directory of a snapshot that was never completed or was removed"
        );
        parts.directories.remove_or_warn(*id).await;
    }
    cleanup::clean_garbage(parts).await
}

async fn mount_again(parts: &Parts, named: &Named) {
    let result = async {
        let chain = parts.store.chain(&named.record.parent).await?;
        lower_trees(parts, &chain).await
    };
    match result.await {
        Ok((_, leases)) => parts.keep(named.record.id, Arc::new(leases)),
        Err(error) => {
            tracing::error!(snapshot = named.name, error = %Chain(&error), "the snapshot cannot be used for now");
        }
    }
}
