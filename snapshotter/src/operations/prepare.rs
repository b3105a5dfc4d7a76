//! Prepare and View: a new snapshot on top of others, or a layer that needs none.
//!
//! A Prepare that names a target is a question: is the layer there already? It is when a layer was claimed for that target
//! on that parent before, by whomever; then nothing else is looked at. Otherwise the engine is asked, if the labels tell
//! the image. A layer that it serves is recorded as committed at once, under a name of ours, with the target in its labels
//! so that containerd finds it; the answer is `AlreadyExists`. In every other case the client gets a directory.
//!
//! The order of work keeps a crash harmless: trees are mounted, then the directory is made, then the record is written.

use std::path::PathBuf;
use std::sync::Arc;

use super::lower_trees;
use crate::chain;
use crate::directories::NewDirectory;
use crate::error::Chain;
use crate::images::{ContainerStart, LayerRequest};
use crate::labels::{LAYER_MODE, LabelMap, Labels};
use crate::mounts::{Access, Layout, MountSpec};
use crate::snapshotter::Parts;
use crate::store::{Claim, Kind, Named, NewClaim, NewSnapshot};
use crate::{Error, ErrorKind, Snapshotter};

/// A snapshot that is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Its key.
    pub key: String,
    /// Name of a committed snapshot; empty for none.
    pub parent: String,
    /// Its labels.
    pub labels: LabelMap,
    /// containerd's namespace, when the client tells.
    pub namespace: Option<String>,
}

impl Snapshotter {
    /// Makes a snapshot that the client may write to.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] for a key in use, or for a target that is there or is served from now on;
    /// [`ErrorKind::NotFound`] and [`ErrorKind::InvalidArgument`] for a parent that is not there or not committed;
    /// [`ErrorKind::Unavailable`] when an image tree below cannot be mounted.
    pub async fn prepare(&self, request: Request) -> Result<MountSpec, Error> {
        let parts = &self.parts;
        let labels = Labels::parse(&request.labels)?;
        if let Some(target) = labels.target.clone()
            && claim(parts, &request, &labels, &target).await?
        {
            let message = format!("the layer for target snapshot \"{target}\" already exists");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        create(parts, Kind::Active, request, labels).await
    }

    /// Makes a snapshot that the client only reads.
    ///
    /// # Errors
    /// As [`Snapshotter::prepare`].
    pub async fn view(&self, request: Request) -> Result<MountSpec, Error> {
        let labels = Labels::parse(&request.labels)?;
        create(&self.parts, Kind::View, request, labels).await
    }
}

/// Whether the layer is served, from before or from now on.
async fn claim(parts: &Parts, request: &Request, labels: &Labels, target: &str) -> Result<bool, Error> {
    if parts.store.is_claimed(target, &request.parent).await? {
        return Ok(true);
    }
    let (Some(reference), Some(chain_id)) = (&labels.reference, labels.target_chain_id()) else {
        return Ok(false);
    };
    let stack = parts.store.chain(&request.parent).await?;
    let layer = LayerRequest {
        reference: reference.clone(),
        manifest_digest: labels.manifest_digest,
        layer_digest: labels.layer_digest,
        diff_id: labels.diff_id,
        target: chain_id,
        parents: chain::parent_layers(&stack),
        namespace: request.namespace.clone(),
        labels: labels.clone(),
        raw_labels: request.labels.clone(),
    };
    let layer = match parts.engine.resolve(&layer).await {
        Ok(Some(layer)) => layer,
        Ok(None) => return Ok(false),
        Err(error) => {
            let error = Chain(error.as_ref());
            tracing::warn!(image = reference, target, %error, "the layer is left to the client");
            return Ok(false);
        }
    };
    let id = parts.directories.next_id();
    let new = NewClaim {
        id,
        name: claimed_name(id, target),
        parent: request.parent.clone(),
        labels: request.labels.clone(),
        claim: Claim {
            target: target.to_owned(),
            layer,
        },
    };
    parts.store.claim(new).await?;
    Ok(true)
}

/// A name that no client chooses: theirs begin with a namespace, and no namespace begins like this.
fn claimed_name(id: u64, target: &str) -> String {
    format!("@sluice/{id}/{target}")
}

async fn create(parts: &Parts, kind: Kind, request: Request, labels: Labels) -> Result<MountSpec, Error> {
    if request.key.is_empty() {
        return Err(Error::new(ErrorKind::InvalidArgument, "a snapshot needs a key"));
    }
    let stack = parts.store.chain(&request.parent).await?;
    check_id_mapping(parts, &labels, &stack)?;
    let (lowers, leases) = lower_trees(parts, &stack).await?;
    let lowers = chain::paths(&lowers, &leases, &parts.directories);

    let id = parts.directories.next_id();
    let directory = NewDirectory {
        with_work: kind == Kind::Active,
        owner: labels.id_mapping.as_ref().map(|map| map.root()),
        like: lowers.first().cloned(),
    };
    parts.directories.create(id, directory).await?;
    // Before the record: whoever removes the snapshot right after it appears has to find them.
    parts.keep(id, Arc::new(leases));
    let layers = chain::remote_layers(&stack);
    let of_layers = || stack.iter().find_map(|named| named.record.labels.get(LAYER_MODE));
    let layer_mode = labels.layer_mode.clone().or_else(|| of_layers().cloned());
    let new = NewSnapshot {
        id,
        kind,
        key: request.key.clone(),
        parent: stack.into_iter().next(),
        labels: request.labels,
    };
    if let Err(error) = parts.store.create(new).await {
        parts.release(id);
        parts.directories.remove_or_warn(id).await;
        return Err(error);
    }
    let spec = mount_spec(parts, kind, id, &lowers, &labels);
    if kind == Kind::Active && labels.target.is_none() && !layers.is_empty() {
        parts.engine.container_prepared(&ContainerStart {
            layers,
            key: request.key,
            namespace: request.namespace,
            labels,
            layer_mode,
        });
    }
    Ok(spec)
}

/// What a client mounts to see the snapshot.
pub(super) fn mount_spec(
    parts: &Parts,
    kind: Kind,
    id: u64,
    lowers: &[PathBuf],
    labels: &Labels,
) -> MountSpec {
    Layout {
        access: if kind == Kind::Active {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        },
        upper: &parts.directories.files(id),
        work: &parts.directories.work(id),
        lowers,
        id_mapping: labels.id_mapping.as_ref(),
        overlay_options: &parts.overlay_options,
    }
    .mount()
}

/// Refuses an ID map that the trees below cannot follow, instead of showing files with the wrong owners.
fn check_id_mapping(parts: &Parts, labels: &Labels, stack: &[Named]) -> Result<(), Error> {
    let has_tree = stack.iter().any(|named| named.record.remote.is_some());
    if labels.id_mapping.is_none() || !has_tree || parts.engine.can_map_ids() {
        return Ok(());
    }
    let message = "this host cannot map the IDs of mounted images: take \"remap-ids\" out of the capabilities of this \
                   snapshotter in containerd's configuration";
    Err(Error::new(ErrorKind::FailedPrecondition, message))
}
