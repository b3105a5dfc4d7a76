//! Media types and annotations.
//!
//! The media types of the OCI image spec 1.1 and of Docker image manifests v2 schema 2, the one annotation that Sluice
//! adds to a layer descriptor, and the types of the artifacts that Sluice attaches to images.

/// Annotation on a layer descriptor: where the layer index lies in the blob, and its digest ([`crate::IndexLocation`]).
/// containerd hands only annotations with the prefix `containerd.io/snapshot/` to a snapshotter.
pub const INDEX_ANNOTATION: &str = "containerd.io/snapshot/sluice.index";

/// Annotation on an entry of an OCI layout's `index.json`: the tag.
pub const REF_NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, a plain tar.
pub const OCI_LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd. Layers with a Sluice index keep this type: they are ordinary zstd layers.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Docker image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
/// Docker layer, a plain tar.
pub const DOCKER_LAYER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// The empty JSON object, which stands where an artifact has no config.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Artifact type of a start-up profile: a manifest with one layer of type [`PROFILE_DOCUMENT`].
pub const PROFILE_ARTIFACT: &str = "application/vnd.sluice.profile.v1";
/// A start-up profile ([`crate::Profile`]).
pub const PROFILE_DOCUMENT: &str = "application/vnd.sluice.profile.document.v1";

/// Artifact type of the layer indexes of an image whose layers have none inside: a manifest with one [`LAYER_INDEX_DOCUMENT`] per layer.
pub const INDEX_ARTIFACT: &str = "application/vnd.sluice.index.v1";
/// A layer index ([`crate::LayerIndex`]) as a blob of its own.
pub const LAYER_INDEX_DOCUMENT: &str = "application/vnd.sluice.index.layer.v1";
/// Annotation on a [`LAYER_INDEX_DOCUMENT`]: digest of the blob whose stored bytes it describes.
pub const INDEXED_BLOB_ANNOTATION: &str = "vnd.sluice.blob";
/// Annotation on a [`LAYER_INDEX_DOCUMENT`]: the DiffID.
pub const INDEXED_DIFF_ID_ANNOTATION: &str = "vnd.sluice.diff-id";

/// Annotation on an artifact: the image ID that it is for, which several manifests may share.
pub const IMAGE_ID_ANNOTATION: &str = "vnd.sluice.image-id";
/// Annotation: when a manifest was made, in the format of RFC 3339.
pub const CREATED_ANNOTATION: &str = "org.opencontainers.image.created";

/// Whether a media type names a list of platforms.
pub fn is_image_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether a media type names the manifest of one platform.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}
