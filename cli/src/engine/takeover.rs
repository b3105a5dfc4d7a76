//! Going on with what an earlier process has mounted.
//!
//! The FUSE session of the layers outlives its process when a service manager keeps its descriptors. Trees that lie on it
//! stay mounted, containers go on reading, and what they ask meanwhile waits. The successor
//!
//! 1. loads the images of all recorded trees from the cache, and opens their layers;
//! 2. adopts the session: whatever waited is answered now;
//! 3. takes every recorded tree over as it is mounted, and waits for the end of those that are unmounted but still used.
//!
//! A layer that cannot be loaded costs its readers an error. When the session cannot be adopted, because the host was
//! started anew or nobody kept it, all records are of the past, and the snapshotter has its trees mounted again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use sluice_fuse::DescriptorStore;
use sluice_fuse::session::Origin;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::images::LoadedImages;
use super::layers::{LayerLease, SESSION, ServedLayers};
use super::lingering::Lingering;
use super::records::{OwnRecord, Records};
use super::trees::MountedTree;

/// How long loading an image from the cache may take. One that is not there would be fetched, and everybody waits.
const LOAD_MAX: Duration = Duration::from_secs(10);

/// Trees by the directory that they are mounted on.
pub(super) type Trees = HashMap<PathBuf, Arc<MountedTree>>;

/// A tree of an earlier process with its layers open.
type Opened = (OwnRecord, Vec<LayerLease>);

/// Opens the session of `layers`, and gives the trees that an earlier process has mounted on it.
///
/// # Errors
/// When another process serves the same records, or the host cannot have the session.
pub(super) async fn open_session(
    layers: &Arc<ServedLayers>,
    images: &LoadedImages,
    lingering: &Arc<Lingering>,
    store: DescriptorStore,
    records: Option<Records>,
) -> anyhow::Result<Trees> {
    let found = records.as_ref().map_or_else(|| Ok(Vec::new()), Records::load)?;
    let opened = if store.holds_session(SESSION) {
        open_layers(layers, images, found).await
    } else {
        found.into_iter().for_each(OwnRecord::remove);
        Vec::new()
    };
    let (layers, lingering) = (layers.clone(), lingering.clone());
    let taken = spawn_blocking(move || {
        let origin = layers.open_session(store, records)?;
        let trees = match origin {
            Origin::Adopted => take_over(opened, &layers, &lingering),
            Origin::Created => {
                opened.into_iter().for_each(|(record, _)| record.remove());
                Trees::new()
            }
        };
        tracing::info!(
            ?origin,
            trees = trees.len(),
            "the FUSE session of the layers is open"
        );
        anyhow::Ok(trees)
    });
    taken.await?
}

/// Opens the layers of each tree. A record whose layers cannot be opened is removed.
async fn open_layers(
    layers: &Arc<ServedLayers>,
    images: &LoadedImages,
    found: Vec<OwnRecord>,
) -> Vec<Opened> {
    let opening = found.into_iter().map(|record| async move {
        match open_tree(layers, images, &record).await {
            Ok(leases) => Some((record, leases)),
            Err(error) => {
                let target = record.record.target.display();
                tracing::error!(%target, error = format!("{error:#}"), "a mounted tree cannot be served any more");
                record.remove();
                None
            }
        }
    });
    join_all(opening).await.into_iter().flatten().collect()
}

async fn open_tree(
    layers: &Arc<ServedLayers>,
    images: &LoadedImages,
    record: &OwnRecord,
) -> anyhow::Result<Vec<LayerLease>> {
    let mut stack = Vec::with_capacity(record.record.layers.len());
    for layer in &record.record.layers {
        let loaded = timeout(LOAD_MAX, images.layer(layer)).await;
        stack.push(loaded.context("the cache does not have its image")??);
    }
    let layers = layers.clone();
    let leased = spawn_blocking(move || {
        let lease = |layer| {
            let lease = layers.lease(layer);
            lease.show()?;
            anyhow::Ok(lease)
        };
        stack.iter().map(lease).collect()
    });
    leased.await?
}

/// Takes over what is still mounted, or unmounted and used.
fn take_over(opened: Vec<Opened>, layers: &ServedLayers, lingering: &Arc<Lingering>) -> Trees {
    let mut trees = Trees::new();
    for (record, leases) in opened {
        let target = record.record.target.clone();
        if !layers.carries(&record.record) || trees.contains_key(&target) {
            record.remove();
            continue;
        }
        match MountedTree::find(record, leases, lingering) {
            Ok(Some(tree)) => {
                trees.insert(target, Arc::new(tree));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(target = %target.display(), %error, "a mounted tree cannot be taken over");
            }
        }
    }
    trees
}
