//! Every label that containerd and its clients put on a snapshot, parsed once.
//!
//! Labels are hints from the outside. One that describes the image and cannot be parsed is logged and left out: the layer
//! then becomes an ordinary snapshot, which is always right. One that changes what is mounted, an ID map, is refused
//! instead, because leaving it out would give a container other owners than asked for.
//!
//! Three clients name the same things differently; the first one found wins: containerd's CRI plugin and everything that
//! uses its wrapper (`cri.*`), stargz's own clients (`remote/stargz.*`), and containerd's unpacker since 2.3 (`diff-id`).

use std::collections::BTreeMap;
use std::str::FromStr;

use sluice_format::{BlobDigest, ChainId, DiffId, Digest};

use crate::Error;
use crate::idmap::IdMapping;

/// Labels of a snapshot as they travel.
pub type LabelMap = BTreeMap<String, String>;

/// The name under which the client will ask for the layer: its ChainID.
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// Reference of the image being pulled.
pub const IMAGE_REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
/// Digest of the image manifest of the platform being pulled.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Digest of the layer's blob.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// Digests of this layer's blob and those above it, cut where the label would get too long.
pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
/// Digest of the layer's plain bytes.
pub const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// ChainID of the layers below, also where the parent is not known yet.
pub const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";
/// Most bytes that the upper directory may take.
pub const MAX_SIZE: &str = "containerd.io/snapshot/max-size";
/// Map of user IDs.
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// Map of group IDs.
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
/// As [`IMAGE_REFERENCE`], from stargz's clients.
pub const STARGZ_REFERENCE: &str = "containerd.io/snapshot/remote/stargz.reference";
/// As [`LAYER_DIGEST`], from stargz's clients.
pub const STARGZ_DIGEST: &str = "containerd.io/snapshot/remote/stargz.digest";
/// As [`IMAGE_LAYERS`], from stargz's clients.
pub const STARGZ_LAYERS: &str = "containerd.io/snapshot/remote/stargz.layers";
/// Bytes at the front of the layer's blob that are worth prefetching, from stargz's clients.
pub const STARGZ_PREFETCH: &str = "containerd.io/snapshot/remote/stargz.prefetch";
/// Other places of the layer's blob.
pub const URLS: &str = "containerd.io/snapshot/remote/urls";
/// Digest of a SOCI index of the image.
pub const SOCI_INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";

/// Which layers come whole: `auto`, `lazy` or `whole`. On the snapshot of a container, or as an annotation of a layer.
pub const LAYER_MODE: &str = "containerd.io/snapshot/sluice.layers";

/// What the labels of one snapshot say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// The name under which the client will ask for this layer. Only with it may a Prepare be answered `AlreadyExists`.
    pub target: Option<String>,
    /// The image being pulled.
    pub reference: Option<String>,
    /// Manifest of the platform being pulled.
    pub manifest_digest: Option<Digest>,
    /// The layer's blob.
    pub layer_digest: Option<BlobDigest>,
    /// Blobs of this layer and the ones above; incomplete on deep images.
    pub image_layers: Vec<BlobDigest>,
    /// The layer's plain bytes.
    pub diff_id: Option<DiffId>,
    /// The layers below.
    pub parent_chain_id: Option<ChainId>,
    /// Most bytes that the upper directory may take.
    pub max_size: Option<u64>,
    /// ID maps for the mounts.
    pub id_mapping: Option<IdMapping>,
    /// Bytes at the front of the blob that are worth prefetching.
    pub prefetch_len: Option<u64>,
    /// Other places of the layer's blob.
    pub urls: Vec<String>,
    /// A SOCI index of the image.
    pub soci_index: Option<Digest>,
    /// Which layers come whole, in the words of the engine.
    pub layer_mode: Option<String>,
}

impl Labels {
    /// Parses the labels of a request.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidArgument`] for an ID map that is malformed or only half given.
    pub fn parse(labels: &LabelMap) -> Result<Self, Error> {
        let text = |key: &str| {
            labels
                .get(key)
                .filter(|value| !value.is_empty())
                .map(String::as_str)
        };
        Ok(Self {
            target: text(TARGET).map(str::to_owned),
            reference: text(IMAGE_REFERENCE)
                .or(text(STARGZ_REFERENCE))
                .map(str::to_owned),
            manifest_digest: first(labels, &[MANIFEST_DIGEST]),
            layer_digest: first(labels, &[LAYER_DIGEST, STARGZ_DIGEST]),
            image_layers: digests(text(IMAGE_LAYERS).or(text(STARGZ_LAYERS))),
            diff_id: first(labels, &[DIFF_ID]),
            parent_chain_id: first(labels, &[PARENT_CHAIN_ID]),
            max_size: first(labels, &[MAX_SIZE]),
            id_mapping: IdMapping::parse(text(UID_MAPPING), text(GID_MAPPING))?,
            prefetch_len: first(labels, &[STARGZ_PREFETCH]),
            urls: text(URLS).map_or_else(Vec::new, |urls| urls.split(',').map(str::to_owned).collect()),
            soci_index: first(labels, &[SOCI_INDEX_DIGEST]),
            layer_mode: text(LAYER_MODE).map(str::to_owned),
        })
    }

    /// The ChainID that the target names; `None` for a client with names of its own.
    pub fn target_chain_id(&self) -> Option<ChainId> {
        self.target.as_deref()?.parse().ok()
    }
}

/// The first of `keys` that is present, if it can be parsed.
fn first<T: FromStr>(labels: &LabelMap, keys: &[&str]) -> Option<T> {
    let (key, value) = keys
        .iter()
        .find_map(|key| Some((key, labels.get(*key).filter(|value| !value.is_empty())?)))?;
    let parsed = value.parse().ok();
    if parsed.is_none() {
        tracing::warn!(label = key, value, "label ignored: its value has another form");
    }
    parsed
}

/// A list cut off by the label's limit ends with half a digest: what cannot be parsed is left out.
fn digests(list: Option<&str>) -> Vec<BlobDigest> {
    list.into_iter()
        .flat_map(|list| list.split(','))
        .filter_map(|digest| digest.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(labels: &[(&str, &str)]) -> LabelMap {
        labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    #[test]
    fn labels_of_the_cri_plugin() {
        let (chain, manifest, layer) = (
            digest("c").to_string(),
            digest("m").to_string(),
            digest("l").to_string(),
        );
        let cut = format!("{layer},{manifest},sha256:abc");
        let labels = Labels::parse(&map(&[
            (TARGET, &chain),
            (IMAGE_REFERENCE, "example.com/a:1"),
            (MANIFEST_DIGEST, &manifest),
            (LAYER_DIGEST, &layer),
            (IMAGE_LAYERS, &cut),
        ]))
        .unwrap();
        assert_eq!(labels.target_chain_id(), Some(ChainId(digest("c"))));
        assert_eq!(labels.reference.as_deref(), Some("example.com/a:1"));
        assert_eq!(labels.manifest_digest, Some(digest("m")));
        assert_eq!(labels.layer_digest, Some(BlobDigest(digest("l"))));
        assert_eq!(
            labels.image_layers,
            [BlobDigest(digest("l")), BlobDigest(digest("m"))]
        );
    }

    #[test]
    fn labels_of_stargz_clients_mean_the_same() {
        let layer = digest("l").to_string();
        let labels = Labels::parse(&map(&[
            (STARGZ_REFERENCE, "example.com/a:1"),
            (STARGZ_DIGEST, &layer),
            (STARGZ_LAYERS, &layer),
            (STARGZ_PREFETCH, "4096"),
            (URLS, "https://a/x,https://b/x"),
            (SOCI_INDEX_DIGEST, &layer),
        ]))
        .unwrap();
        assert_eq!(labels.reference.as_deref(), Some("example.com/a:1"));
        assert_eq!(labels.layer_digest, Some(BlobDigest(digest("l"))));
        assert_eq!(labels.image_layers.len(), 1);
        assert_eq!(labels.prefetch_len, Some(4096));
        assert_eq!(labels.urls, ["https://a/x", "https://b/x"]);
        assert_eq!(labels.soci_index, Some(digest("l")));
    }

    #[test]
    fn labels_of_the_unpacker_since_2_3() {
        let (diff, chain) = (digest("d").to_string(), digest("p").to_string());
        let labels = Labels::parse(&map(&[
            (DIFF_ID, &diff),
            (PARENT_CHAIN_ID, &chain),
            (MAX_SIZE, "1048576"),
        ]))
        .unwrap();
        assert_eq!(labels.diff_id, Some(DiffId(digest("d"))));
        assert_eq!(labels.parent_chain_id, Some(ChainId(digest("p"))));
        assert_eq!(labels.max_size, Some(1 << 20));
    }

    #[test]
    fn a_bad_hint_is_left_out_and_a_bad_id_map_refused() {
        let labels = Labels::parse(&map(&[
            (MANIFEST_DIGEST, "sha256:12"),
            (TARGET, "mine"),
            (LAYER_DIGEST, ""),
        ]));
        let labels = labels.unwrap();
        assert_eq!(labels.manifest_digest, None);
        assert_eq!(labels.layer_digest, None);
        assert_eq!(labels.target.as_deref(), Some("mine"));
        assert_eq!(labels.target_chain_id(), None);
        assert!(Labels::parse(&map(&[(UID_MAPPING, "0:1:1")])).is_err());
    }
}
