//! Small images in temporary layouts, and the places they are converted to.

use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_converter::report::ConvertReport;
use sluice_converter::{CheckOptions, ConvertOptions, Error, Silent, Source, Target, check, convert};
use sluice_format::{BlobDigest, Digest, artifact};
use sluice_storage::{
    ImageName, Layout, Manifest, ManifestName, RegistryClient, RegistryOptions, Repository,
    WritableRepository,
};
use tempfile::TempDir;

/// Runs a test on a runtime of its own.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test)
}

/// Bytes that neither repeat soon nor resist compression.
pub(crate) fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(format!("{:x} ", state >> 40).as_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Builds a tar entry by entry.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(1_700_000_000);
        header
    }

    pub(crate) fn directory(mut self, path: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Directory, 0o755, 0);
        self.0.append_data(&mut header, path, &[][..]).unwrap();
        self
    }

    pub(crate) fn file(mut self, path: &str, data: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, 0o644, data.len() as u64);
        self.0.append_data(&mut header, path, data).unwrap();
        self
    }

    pub(crate) fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub(crate) fn hard_link(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A layer with files below, at and above the chunk size.
pub(crate) fn base_tar() -> Vec<u8> {
    Tar::new()
        .directory("bin/")
        .file("bin/tool", &text(700_000, 1))
        .hard_link("bin/same", "bin/tool")
        .symlink("bin/sh", "tool")
        .directory("etc/")
        .file("etc/empty", b"")
        .file("etc/hosts", b"127.0.0.1 localhost\n")
        .file("etc/long", &text(40_000, 2))
        .finish()
}

/// A layer that deletes, replaces and adds.
pub(crate) fn upper_tar() -> Vec<u8> {
    Tar::new()
        .file("etc/.wh.hosts", b"")
        .file("etc/long", &text(100, 3))
        .file("new", b"new\n")
        .finish()
}

pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// gzip in several members, as parallel compressors write it.
pub(crate) fn gzip_members(plain: &[u8]) -> Vec<u8> {
    plain.chunks(100_001).flat_map(gzip).collect()
}

pub(crate) fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 5).unwrap()
}

/// The plain bytes as a tool finds them that knows nothing of Sluice.
pub(crate) fn unzstd(stored: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    zstd::stream::read::Decoder::new(stored)
        .unwrap()
        .read_to_end(&mut plain)
        .unwrap();
    plain
}

/// One layer to be put into an image.
pub(crate) struct Layer {
    pub(crate) media_type: String,
    pub(crate) stored: Vec<u8>,
    pub(crate) diff_id: Digest,
    pub(crate) annotations: Value,
}

impl Layer {
    pub(crate) fn new(media_type: &str, stored: Vec<u8>, plain: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            stored,
            diff_id: Digest::of(plain),
            annotations: Value::Null,
        }
    }

    pub(crate) fn gzip(plain: &[u8]) -> Self {
        Self::new(artifact::OCI_LAYER_GZIP, gzip(plain), plain)
    }
}

/// A temporary directory with a layout in it.
pub(crate) struct Place {
    _dir: TempDir,
    pub(crate) layout: Layout,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path().join("layout")).unwrap();
        Self { _dir: dir, layout }
    }

    pub(crate) fn path(&self) -> &Path {
        self.layout.path()
    }

    pub(crate) fn source(&self) -> Source {
        self.source_of("latest")
    }

    pub(crate) fn source_of(&self, tag: &str) -> Source {
        let repository = Arc::new(self.layout.clone()) as Arc<dyn Repository>;
        Source::new(
            format!("oci:test:{tag}"),
            repository,
            ManifestName::Tag(tag.to_owned()),
        )
    }

    pub(crate) fn target(&self) -> Target {
        Target::new("oci:test", Arc::new(self.layout.clone()), "latest")
    }

    pub(crate) async fn put_blob(&self, bytes: &[u8]) -> BlobDigest {
        let digest = BlobDigest(Digest::of(bytes));
        let mut writer = self.layout.begin_blob().await.unwrap();
        writer.write(Bytes::copy_from_slice(bytes)).await.unwrap();
        writer.finish(digest).await.unwrap();
        digest
    }

    /// Stores a document; under a tag when one is given.
    pub(crate) async fn put_document(&self, tag: Option<&str>, document: &Value) -> Digest {
        let bytes = Bytes::from(document.to_string());
        let digest = Digest::of(&bytes);
        let name = tag.map_or(ManifestName::Digest(digest), |tag| {
            ManifestName::Tag(tag.to_owned())
        });
        let media_type = document["mediaType"].as_str().unwrap();
        self.layout.put_manifest(&name, media_type, bytes).await.unwrap();
        digest
    }

    /// Stores config and layers of an image; gives its manifest.
    pub(crate) async fn put_image(&self, docker: bool, architecture: &str, layers: &[Layer]) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        // A field order and fields that no type of ours has.
        let config = json!({
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "os": "linux", "architecture": architecture,
            "config": {"Healthcheck": {"Test": ["CMD", "true"]}, "Cmd": ["/bin/sh"]},
            "docker_version": "1.2.3",
        })
        .to_string();
        let config_digest = self.put_blob(config.as_bytes()).await;
        let mut descriptors = Vec::new();
        for layer in layers {
            let digest = self.put_blob(&layer.stored).await;
            let mut descriptor = json!({
                "mediaType": layer.media_type, "size": layer.stored.len(), "digest": digest.to_string(),
            });
            if !layer.annotations.is_null() {
                descriptor["annotations"] = layer.annotations.clone();
            }
            descriptors.push(descriptor);
        }
        let (manifest_type, config_type) = match docker {
            true => (artifact::DOCKER_MANIFEST, artifact::DOCKER_CONFIG),
            false => (artifact::OCI_MANIFEST, artifact::OCI_CONFIG),
        };
        json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": config_digest.to_string(), "size": config.len()},
            "layers": descriptors,
            "annotations": {"org.example.note": "kept"}, "x-unknown": [1, {"b": 2, "a": 1}],
        })
    }

    /// A layout with one OCI image of `layers`.
    pub(crate) async fn with_layers(layers: &[Layer]) -> Self {
        let place = Self::new();
        let manifest = place.put_image(false, "amd64", layers).await;
        place.put_document(Some("latest"), &manifest).await;
        place
    }

    pub(crate) async fn manifest(&self) -> (Manifest, Value) {
        self.manifest_of(&ManifestName::Tag("latest".to_owned())).await
    }

    pub(crate) async fn manifest_of(&self, name: &ManifestName) -> (Manifest, Value) {
        let manifest = self.layout.fetch_manifest(name).await.unwrap();
        let document = serde_json::from_slice(&manifest.bytes).unwrap();
        (manifest, document)
    }

    pub(crate) fn blob(&self, digest: &str) -> Vec<u8> {
        std::fs::read(self.blob_path(digest)).unwrap()
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.path()
            .join("blobs/sha256")
            .join(digest.strip_prefix("sha256:").unwrap())
    }

    /// Names of everything under `blobs`, temporary files included.
    pub(crate) fn blob_names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path().join("blobs/sha256")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    pub(crate) async fn is_untouched(&self) -> bool {
        self.blob_names().is_empty() && self.layout.names().unwrap().is_empty()
    }
}

pub(crate) fn options(jobs: usize) -> ConvertOptions {
    ConvertOptions {
        jobs: NonZeroUsize::new(jobs),
        chunk_size: 64 << 10,
        ..ConvertOptions::default()
    }
}

/// Converts with two threads.
pub(crate) async fn converted(source: &Place) -> (Place, ConvertReport) {
    let target = Place::new();
    let report = try_convert(source, &target).await.unwrap();
    (target, report)
}

pub(crate) async fn try_convert(source: &Place, target: &Place) -> Result<ConvertReport, Error> {
    convert(&source.source(), &target.target(), &options(2), &Silent).await
}

/// Fails unless the image is sound, and equal to `against` when that is given.
pub(crate) async fn assert_sound(image: &Source, against: Option<&Source>) {
    let report = check(image, against, &CheckOptions::default(), &Silent)
        .await
        .unwrap();
    assert_eq!(report.all_problems(), Vec::<String>::new());
}

/// A client that is never asked for a registry.
pub(crate) fn no_registries() -> Arc<RegistryClient> {
    RegistryClient::new(RegistryOptions::default())
}

pub(crate) async fn open_source(name: &str) -> Result<Source, Error> {
    Source::open(&name.parse::<ImageName>().unwrap(), &no_registries()).await
}

pub(crate) async fn create_target(name: &str) -> Result<Target, Error> {
    Target::create(&name.parse::<ImageName>().unwrap(), &no_registries()).await
}
