//! What the loading of a lazy image promises: indexes that fit their layers, or an error that says what to do.

#[path = "support/docker_registry.rs"]
mod docker_registry;

use std::sync::Arc;

use bytes::Bytes;
use docker_registry::DockerRegistry;
use serde_json::{Value, json};
use sluice_format::artifact::{
    INDEX_ANNOTATION, OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST,
};
use sluice_format::layer_index::frame_index;
use sluice_format::{BlobDigest, ChainId, DiffId, Digest, IndexLocation, Limits};
use sluice_storage::testing::{MemoryRepository, SampleLayer};
use sluice_storage::{
    Counters, Descriptor, Error, ErrorKind, Fetcher, LazyImage, ManifestName, PlainLayer, Platform,
    RegistryClient, RegistryOptions, Repository, WritableRepository, load_lazy_image,
};

/// A layer as the converter stores it.
struct Converted {
    sample: SampleLayer,
    blob: Bytes,
    location: IndexLocation,
}

fn converted(chunks: usize) -> Converted {
    let sample = SampleLayer::new(chunks, 5000, 0);
    let index = sample.layer.index.encode().expect("an index");
    let (framed, location) = frame_index(&index, sample.stored.len() as u64).expect("a frame");
    let blob = [&sample.stored[..], &framed].concat().into();
    Converted {
        sample,
        blob,
        location,
    }
}

fn tag() -> ManifestName {
    ManifestName::Tag("t".to_owned())
}

fn descriptor(media_type: &str, bytes: &[u8], annotation: Option<String>) -> Value {
    let mut descriptor =
        json!({ "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len() });
    if let Some(annotation) = annotation {
        descriptor["annotations"] = json!({ INDEX_ANNOTATION: annotation });
    }
    descriptor
}

async fn store(repository: &dyn WritableRepository, bytes: &[u8]) {
    let mut writer = repository.begin_blob().await.expect("begun");
    writer.write(Bytes::copy_from_slice(bytes)).await.expect("taken");
    writer
        .finish(BlobDigest(Digest::of(bytes)))
        .await
        .expect("finished");
}

/// Stores an image of these layer descriptors and DiffIDs under the tag `t`, inside an image index.
async fn store_image(repository: &dyn WritableRepository, layers: &[Value], diff_ids: &[DiffId]) {
    let diff_ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = config.to_string();
    store(repository, config.as_bytes()).await;
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config.as_bytes(), None), "layers": layers });
    let manifest = Bytes::from(manifest.to_string());
    let name = ManifestName::Digest(Digest::of(&manifest));
    repository
        .put_manifest(&name, OCI_MANIFEST, manifest.clone())
        .await
        .expect("stored");
    let mut entry = descriptor(OCI_MANIFEST, &manifest, None);
    entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
    repository
        .put_manifest(&tag(), OCI_INDEX, list.to_string().into())
        .await
        .expect("stored");
}

async fn load(repository: Arc<dyn Repository>) -> Result<LazyImage, Error> {
    let platform: Platform = "linux/amd64".parse().expect("a platform");
    load_lazy_image(&repository, &tag(), &platform, &Limits::default()).await
}

/// Loads an image of one layer that is described so.
async fn load_one(layer: &Converted, descriptor: Value, diff_id: DiffId) -> Result<LazyImage, Error> {
    let repository = MemoryRepository::new();
    store(&repository, &layer.blob).await;
    store_image(&repository, &[descriptor], &[diff_id]).await;
    load(Arc::new(repository)).await
}

#[tokio::test]
async fn an_image_in_a_registry_is_loaded_with_one_request_per_layer_and_read() {
    let registry = DockerRegistry::start();
    let client = RegistryClient::new(RegistryOptions::default());
    let reference = format!("{}/app:t", registry.address())
        .parse()
        .expect("a reference");
    let repository = client.repository(&reference).expect("a repository");
    let layers: Vec<Converted> = (1..=10).map(converted).collect();
    let mut descriptors = Vec::new();
    for layer in &layers {
        store(repository.as_ref(), &layer.blob).await;
        descriptors.push(descriptor(
            OCI_LAYER_ZSTD,
            &layer.blob,
            Some(layer.location.to_string()),
        ));
    }
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.sample.layer.diff_id).collect();
    store_image(repository.as_ref(), &descriptors, &diff_ids).await;

    let before = client.traffic();
    let image = load(repository.clone()).await.expect("loaded");
    let after = client.traffic();
    assert_eq!(
        after.requests - before.requests,
        3 + 10,
        "image index, manifest, config, layer indexes"
    );
    assert_eq!(image.chain_id(), ChainId::of_stack(&diff_ids));
    assert_eq!(
        image.index_bytes,
        layers.iter().map(|layer| layer.location.stored_len).sum::<u64>()
    );
    assert_eq!(image.image_id, Digest::of(&image.config));
    let fetcher = Fetcher::new(Arc::new(Counters::default()));
    for (layer, expected) in image.layers.iter().zip(&layers) {
        let plain = PlainLayer::new(layer, None, &fetcher);
        let bytes = plain.read(0..plain.plain_len()).await.expect("read");
        assert_eq!(bytes, expected.sample.plain);
    }
}

#[tokio::test]
async fn an_index_is_found_through_the_footer_when_the_annotation_is_lost() {
    let layer = converted(3);
    let diff_id = layer.sample.layer.diff_id;
    let image = load_one(&layer, descriptor(OCI_LAYER_ZSTD, &layer.blob, None), diff_id).await;
    assert_eq!(image.expect("found").layers[0].index, layer.sample.layer.index);
}

#[tokio::test]
async fn a_layer_without_an_index_says_how_to_get_one() {
    let layer = converted(3);
    let diff_id = layer.sample.layer.diff_id;
    let plain = Converted {
        blob: layer.sample.stored.clone(),
        ..converted(3)
    };
    for (layer, media_type) in [(&layer, OCI_LAYER_GZIP), (&plain, OCI_LAYER_ZSTD)] {
        let error = load_one(layer, descriptor(media_type, &layer.blob, None), diff_id)
            .await
            .expect_err(media_type);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let expected = format!(
            "layer 1 ({}) of memory (t) has no Sluice index",
            Digest::of(&layer.blob)
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
        for help in ["sluice convert SRC DST", "sluice index IMAGE"] {
            assert!(error.to_string().contains(help), "{error}");
        }
    }
}

#[tokio::test]
async fn indexes_that_do_not_fit_are_corrupt() {
    let layer = converted(3);
    let diff_id = layer.sample.layer.diff_id;
    let far = IndexLocation {
        stored_off: u64::MAX - 10,
        ..layer.location
    };
    let other = IndexLocation {
        digest: Digest::of(b"other"),
        ..layer.location
    };
    let shifted = IndexLocation {
        stored_off: layer.location.stored_off - 1,
        ..layer.location
    };
    for location in [far, other, shifted] {
        let described = descriptor(OCI_LAYER_ZSTD, &layer.blob, Some(location.to_string()));
        let error = load_one(&layer, described, diff_id)
            .await
            .expect_err("does not fit");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("layer 1"), "{error}");
    }
    let described = descriptor(OCI_LAYER_ZSTD, &layer.blob, Some(layer.location.to_string()));
    let error = load_one(&layer, described.clone(), DiffId(Digest::of(b"other")))
        .await
        .expect_err("another DiffID");
    assert!(error.to_string().contains("is for DiffID"), "{error}");
    let repository = MemoryRepository::new();
    store(&repository, &layer.blob).await;
    store_image(&repository, &[described], &[diff_id, diff_id]).await;
    let error = load(Arc::new(repository)).await.expect_err("too many DiffIDs");
    assert!(
        error.to_string().contains("1 layers, but its config lists 2"),
        "{error}"
    );
}

#[tokio::test]
async fn every_changed_byte_of_an_index_is_noticed() {
    let layer = converted(2);
    let start = layer.location.stored_off as usize;
    for at in start..start + layer.location.stored_len as usize {
        let mut blob = layer.blob.to_vec();
        blob[at] ^= 1;
        let changed = Converted {
            blob: blob.into(),
            ..converted(2)
        };
        let described = descriptor(OCI_LAYER_ZSTD, &changed.blob, Some(layer.location.to_string()));
        let error = load_one(&changed, described, layer.sample.layer.diff_id)
            .await
            .expect_err("changed");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}");
    }
}

#[tokio::test]
async fn an_image_without_layers_is_an_image() {
    let repository = MemoryRepository::new();
    store_image(&repository, &[], &[]).await;
    let image = load(Arc::new(repository)).await.expect("loaded");
    assert_eq!((image.layers.len(), image.chain_id()), (0, None));
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let repository = MemoryRepository::new();
    let manifest = json!({ "mediaType": "application/vnd.example+json", "layers": [] }).to_string();
    let stored = repository
        .put_manifest(&tag(), "application/vnd.example+json", manifest.into())
        .await;
    stored.expect("stored");
    let error = load(Arc::new(repository)).await.expect_err("no image");
    assert!(
        error.to_string().contains("application/vnd.example+json"),
        "{error}"
    );
    let described = Descriptor {
        media_type: OCI_LAYER_ZSTD.to_owned(),
        digest: BlobDigest(Digest::of(b"")),
        size: 0,
        annotations: Default::default(),
    };
    let tiny = MemoryRepository::new();
    let value = serde_json::to_value(&described).expect("a descriptor");
    store_image(&tiny, &[value], &[DiffId(Digest::of(b""))]).await;
    assert_eq!(
        load(Arc::new(tiny)).await.expect_err("empty").kind(),
        ErrorKind::Unsupported
    );
}
