//! What the snapshotter needs from the engine that serves images.
//!
//! The snapshotter knows names: which layer lies on which, who uses a chain, when nobody does any more. The engine knows
//! bytes: where a layer is stored, how to show a stack of layers as a directory. They meet in [`Images`], which the
//! binary implements with whatever serves the bytes and which tests implement on plain directories.
//!
//! The life of a layer as the engine sees it:
//!
//! ```text
//! resolve ──► (mount_tree ◄──► unmount_tree)* ──► forget
//! ```
//!
//! [`Images::resolve`] is asked once per layer while its image is pulled. A layer it returns is recorded and survives
//! restarts; everything afterwards is asked with the recorded [`RemoteLayer`], possibly by another process that never
//! resolved the image and on a host that cannot reach the registry.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::path::Path;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sluice_format::{BlobDigest, ChainId, DiffId, Digest};

use crate::labels::{LabelMap, Labels};
use crate::mounts::Usage;
use crate::text_form;

/// Why the engine could not do something; shown to the user with all its sources.
pub type EngineError = Box<dyn StdError + Send + Sync>;

/// The engine that serves images.
pub trait Images: Debug + Send + Sync {
    /// Whether the layer can be served by mounting, and as what.
    ///
    /// The first request of an image should resolve all its layers at once, in parallel; the requests for the others
    /// follow within moments and should find the answer. `None` means that the client has to unpack the layer. An error
    /// is logged and means the same. Called again for the same layer when several clients pull at once; must then give
    /// an equal answer. No lock and no transaction is held meanwhile.
    fn resolve<'a>(
        &'a self,
        request: &'a LayerRequest,
    ) -> BoxFuture<'a, Result<Option<RemoteLayer>, EngineError>>;

    /// Shows the tree at `target`, an existing directory, in this mount namespace.
    ///
    /// Idempotent: when `target` shows this tree already, because an earlier process mounted it, the engine adopts it;
    /// when something dead is mounted there, the engine replaces it. Must not need the registry for layers whose indexes
    /// were fetched before. Never called twice at the same time for one `target`.
    fn mount_tree<'a>(
        &'a self,
        tree: &'a TreeRequest,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), EngineError>>;

    /// Whether a tree that was mounted at `target` still answers. Cheap: asked before every use.
    fn check_tree<'a>(
        &'a self,
        tree: &'a TreeRequest,
        target: &'a Path,
    ) -> BoxFuture<'a, Result<(), EngineError>>;

    /// Takes away what is mounted at `target`. Success when nothing is.
    ///
    /// No snapshot uses it any more, but a container's mount on top may linger for a moment: its files must stay
    /// readable until it is gone. After an error the snapshotter asks again later. Also asked for trees that a crash
    /// left behind, of which this process knows nothing but the directory.
    fn unmount_tree<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<(), EngineError>>;

    /// What is best done with a mounted tree that no snapshot uses, while its image is still there. Asked now and then.
    fn idle_tree<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, IdleTree>;

    /// What the layer takes on this host's disk now.
    fn usage<'a>(&'a self, layer: &'a RemoteLayer) -> BoxFuture<'a, Result<Usage, EngineError>>;

    /// A container is about to start on these layers: a hint for fetching ahead. Must not block.
    fn container_prepared(&self, start: &ContainerStart);

    /// The record of a layer is gone. Called once for every layer that was returned by [`Images::resolve`] and recorded;
    /// after a crash in between, once more. Must not block. Cached bytes may stay.
    fn forget(&self, layer: &RemoteLayer);

    /// Whether the trees can be used through ID-mapped mounts.
    fn can_map_ids(&self) -> bool;
}

/// What is best done with a tree that nobody uses. Unmounting one costs the next container a mount, and the page cache of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleTree {
    /// Left as it is.
    Keep,
    /// Mounted anew: it would be read faster then.
    Renew,
    /// Unmounted: what it holds is needed elsewhere.
    GiveUp,
}

/// A layer that a client is about to fetch and unpack.
#[derive(Clone, Debug)]
pub struct LayerRequest {
    /// The image, as the client names it.
    pub reference: String,
    /// Its manifest for the client's platform, when the client tells.
    pub manifest_digest: Option<Digest>,
    /// The layer's blob, when the client tells.
    pub layer_digest: Option<BlobDigest>,
    /// The layer's plain bytes, when the client tells.
    pub diff_id: Option<DiffId>,
    /// ChainID of this layer on everything below it. Always tells which layer of the image is meant.
    pub target: ChainId,
    /// The layers below, lowest first.
    pub parents: Vec<ParentLayer>,
    /// containerd's namespace, when the client tells.
    pub namespace: Option<String>,
    /// All labels, parsed.
    pub labels: Labels,
    /// All labels as they came, with the layer's annotations among them.
    pub raw_labels: LabelMap,
}

/// A layer below the one asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentLayer {
    /// Unpacked into a directory by the client. What it contains is not known.
    Ordinary,
    /// Served by mounting.
    Remote(RemoteLayer),
}

/// A layer that is served by mounting: what its record keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteLayer {
    /// The image it was resolved for.
    pub reference: String,
    /// The manifest of that image.
    #[serde(with = "text_form")]
    pub manifest_digest: Digest,
    /// Its blob.
    #[serde(with = "text_form")]
    pub layer_digest: BlobDigest,
    /// The plain layer that is served. For a layer whose plain bytes are laid out by us, the identity of that layout
    /// instead of the DiffID in the image's config.
    #[serde(with = "text_form")]
    pub plain_layer: DiffId,
}

/// A run of remote layers to be shown as one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeRequest {
    /// The layers, lowest first; at least one.
    pub layers: Vec<RemoteLayer>,
    /// Whether ordinary layers lie below. Whiteouts and opaque directories then have to stay in the tree, in overlayfs
    /// form, because they hide entries of those layers.
    pub keeps_whiteouts: bool,
}

impl TreeRequest {
    /// A name for the tree, the same for the same plain layers; a valid file name.
    pub fn name(&self) -> String {
        let layers: Vec<DiffId> = self.layers.iter().map(|layer| layer.plain_layer).collect();
        let chain = ChainId::of_stack(&layers).map_or_else(String::new, |chain| chain.0.to_hex());
        let form = if self.keeps_whiteouts { "-over" } else { "" };
        format!("{TREE_PREFIX}{chain}{form}")
    }
}

/// How names of trees begin; other directories beside them have numbers.
pub(crate) const TREE_PREFIX: &str = "tree-";

/// A container's root file system was prepared.
#[derive(Clone, Debug)]
pub struct ContainerStart {
    /// Remote layers of its image, lowest first.
    pub layers: Vec<RemoteLayer>,
    /// Key of the snapshot.
    pub key: String,
    /// containerd's namespace, when the client tells.
    pub namespace: Option<String>,
    /// Labels of the snapshot.
    pub labels: Labels,
    /// Which layers come whole: what the snapshot's labels say, else those of its topmost layer that says anything.
    pub layer_mode: Option<String>,
}

/// No engine: every layer is unpacked by the client.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoImages;

impl NoImages {
    fn refuse<T>() -> BoxFuture<'static, Result<T, EngineError>> {
        Box::pin(async { Err("no engine serves images here".into()) })
    }
}

impl Images for NoImages {
    fn resolve<'a>(&'a self, _: &'a LayerRequest) -> BoxFuture<'a, Result<Option<RemoteLayer>, EngineError>> {
        Box::pin(async { Ok(None) })
    }

    fn mount_tree<'a>(&'a self, _: &'a TreeRequest, _: &'a Path) -> BoxFuture<'a, Result<(), EngineError>> {
        Self::refuse()
    }

    fn check_tree<'a>(&'a self, _: &'a TreeRequest, _: &'a Path) -> BoxFuture<'a, Result<(), EngineError>> {
        Self::refuse()
    }

    fn unmount_tree<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, Result<(), EngineError>> {
        Self::refuse()
    }

    fn idle_tree<'a>(&'a self, _: &'a Path) -> BoxFuture<'a, IdleTree> {
        Box::pin(async { IdleTree::GiveUp })
    }

    fn usage<'a>(&'a self, _: &'a RemoteLayer) -> BoxFuture<'a, Result<Usage, EngineError>> {
        Self::refuse()
    }

    fn container_prepared(&self, _: &ContainerStart) {}

    fn forget(&self, _: &RemoteLayer) {}

    fn can_map_ids(&self) -> bool {
        true
    }
}
