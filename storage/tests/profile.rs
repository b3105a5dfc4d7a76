//! A profile travels beside its image: what one host pushed another one finds, and what is wrong with it never shows.

#[path = "support/docker_registry.rs"]
mod docker_registry;
#[path = "support/odd.rs"]
#[expect(dead_code, reason = "other tests break answers off and count requests")]
mod odd;
#[path = "support/referrers_registry.rs"]
mod referrers_registry;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use docker_registry::DockerRegistry;
use odd::{OddRegistry, status};
use serde_json::json;
use sluice_format::artifact::{OCI_MANIFEST, PROFILE_ARTIFACT, PROFILE_DOCUMENT};
use sluice_format::profile::{Demand, ProfileLayer};
use sluice_format::{BlobDigest, DiffId, Digest, Limits, Profile};
use sluice_storage::profile::{
    RecordedLayer, Recorder, RecordingOptions, fetch_profile, find_profile, merge, plan, push_profile,
};
use sluice_storage::referrers::{Artifact, ArtifactDocument, attach_artifact};
use sluice_storage::testing::{MemoryRepository, SampleLayer};
use sluice_storage::{
    Descriptor, Layout, LazyLayer, ManifestName, RegistryClient, RegistryOptions, Repository,
    WritableRepository,
};

fn profile(image: &str, runs: u32) -> Profile {
    let demand = Demand {
        plain_off: 512,
        plain_len: 4096,
        first_ms: 3,
        seen: 1,
        missed: 0,
    };
    let layer = ProfileLayer {
        diff_id: DiffId(Digest::of(b"layer")),
        demands: vec![demand],
    };
    let image_id = Digest::of(image.as_bytes());
    Profile::new(image_id, runs, vec![layer], &Limits::default()).expect("within the limits")
}

fn registry(address: &str) -> Arc<dyn WritableRepository> {
    let options = RegistryOptions {
        first_retry_delay: Duration::from_millis(5),
        auth_file: Some("/nonexistent/auth.json".into()),
        ..RegistryOptions::default()
    };
    let client = RegistryClient::new(options);
    client
        .repository(&format!("{address}/a/b").parse().expect("a reference"))
        .expect("a repository")
}

/// An image manifest, stored.
async fn put_image(repository: &dyn WritableRepository) -> Descriptor {
    let config = Bytes::from_static(b"{}");
    let config_digest = BlobDigest(Digest::of(&config));
    let mut writer = repository.begin_blob().await.expect("a blob begins");
    writer.write(config).await.expect("bytes are taken");
    writer.finish(config_digest).await.expect("a blob is finished");
    let document = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest.to_string(), "size": 2 } });
    let bytes = Bytes::from(document.to_string());
    let name = ManifestName::Tag("t".into());
    repository
        .put_manifest(&name, OCI_MANIFEST, bytes.clone())
        .await
        .expect("a manifest is stored");
    Descriptor {
        media_type: OCI_MANIFEST.to_owned(),
        digest: BlobDigest(Digest::of(&bytes)),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
    }
}

async fn find(repository: &dyn Repository, subject: &Descriptor, image: &str) -> Option<Profile> {
    let image_id = Digest::of(image.as_bytes());
    find_profile(repository, &subject.digest.0, &image_id, &Limits::default()).await
}

/// The newest profile of the image is found, whatever else is attached.
async fn check_finding(repository: &dyn WritableRepository) {
    let subject = put_image(repository).await;
    assert_eq!(find(repository, &subject, "a").await, None);
    for (image, runs, created) in [
        ("a", 1, "2026-03-01T00:00:00Z"),
        ("a", 2, "2026-05-01T00:00:00Z"),
        ("a", 3, "2026-04-01T00:00:00Z"),
        ("b", 4, "2026-06-01T00:00:00Z"),
    ] {
        push_profile(repository, &subject, &profile(image, runs), created)
            .await
            .expect("a profile is pushed");
    }
    assert_eq!(find(repository, &subject, "a").await, Some(profile("a", 2)));
    assert_eq!(find(repository, &subject, "b").await, Some(profile("b", 4)));
    assert_eq!(find(repository, &subject, "c").await, None);
}

/// A start of the image as it is cut on one host is replayed by another host that has it cut otherwise.
#[tokio::test]
async fn a_start_is_replayed_on_other_cuts() {
    let fine = SampleLayer::new(64, 4096, 0).layer;
    let coarse = SampleLayer::new(16, 4 * 4096, 100).layer;
    assert_eq!(fine.diff_id, coarse.diff_id);
    let recorded = RecordedLayer {
        index: fine.index.clone(),
        observed: true,
    };
    let image_id = Digest::of(b"a");
    let recorder = Recorder::new(image_id, vec![recorded], RecordingOptions::default());
    for chunk in [9, 8, 40, 9] {
        recorder.record(0, fine.index.chunks.chunks()[chunk].plain_range());
    }
    let learnt = merge(None, &recorder.finish()).unwrap().unwrap();

    let repository = MemoryRepository::new();
    let subject = put_image(&repository).await;
    push_profile(&repository, &subject, &learnt, "2026-01-01T00:00:00Z")
        .await
        .unwrap();
    let found = find(&repository, &subject, "a").await.unwrap();
    let chunks = |layer: &LazyLayer| {
        let planned = plan(&found, &[(layer.diff_id, &layer.index.chunks)]);
        planned.iter().map(|at| at.chunk).collect::<Vec<_>>()
    };
    assert_eq!(chunks(&fine), [8, 9, 40]);
    assert_eq!(chunks(&coarse), [2, 10]);
}

#[tokio::test]
async fn profiles_are_found_in_every_repository() {
    check_finding(&MemoryRepository::new()).await;
    let dir = tempfile::tempdir().unwrap();
    check_finding(&Layout::create(dir.path().join("layout")).unwrap()).await;
    let old = DockerRegistry::start();
    check_finding(registry(old.address()).as_ref()).await;
    let new = referrers_registry::start(true).await;
    check_finding(registry(&new.address).as_ref()).await;
}

async fn attach(
    repository: &dyn WritableRepository,
    subject: &Descriptor,
    created: &str,
    media_type: &str,
    bytes: Vec<u8>,
) {
    let document = ArtifactDocument {
        media_type: media_type.to_owned(),
        bytes: bytes.into(),
        annotations: BTreeMap::new(),
    };
    let artifact = Artifact {
        artifact_type: PROFILE_ARTIFACT.to_owned(),
        documents: vec![document],
        annotations: BTreeMap::from([("org.opencontainers.image.created".to_owned(), created.to_owned())]),
    };
    attach_artifact(repository, subject, &artifact)
        .await
        .expect("an artifact is attached");
}

#[tokio::test]
async fn bad_profiles_give_way_to_older_good_ones() {
    let repository = MemoryRepository::new();
    let subject = put_image(&repository).await;
    push_profile(&repository, &subject, &profile("a", 1), "2026-01-01T00:00:00Z")
        .await
        .unwrap();
    let mut damaged = profile("a", 2).encode().unwrap();
    damaged[100] ^= 1;
    attach(
        &repository,
        &subject,
        "2026-02-01T00:00:00Z",
        PROFILE_DOCUMENT,
        damaged,
    )
    .await;
    let foreign = profile("b", 2).encode().unwrap();
    attach(
        &repository,
        &subject,
        "2026-03-01T00:00:00Z",
        PROFILE_DOCUMENT,
        foreign,
    )
    .await;
    let bytes = profile("a", 2).encode().unwrap();
    attach(&repository, &subject, "2026-04-01T00:00:00Z", "text/plain", bytes).await;
    assert_eq!(find(&repository, &subject, "a").await, Some(profile("a", 1)));
}

#[tokio::test]
async fn only_bad_profiles_are_an_error_to_those_who_ask_for_one_and_nothing_to_a_mount() {
    let repository = MemoryRepository::new();
    let subject = put_image(&repository).await;
    let huge = vec![0; 2 << 20];
    attach(&repository, &subject, "2026", PROFILE_DOCUMENT, huge).await;
    let image_id = Digest::of(b"a");
    let limits = Limits::default();
    let error = fetch_profile(&repository, &subject.digest.0, &image_id, &limits)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("over the limit"), "{error}");
    assert_eq!(find(&repository, &subject, "a").await, None);
}

#[tokio::test]
async fn a_registry_that_fails_is_no_profile() {
    for code in [401, 403, 404, 500, 503] {
        let broken = OddRegistry::start(move |_| status(code, &[])).await;
        let repository = registry(&broken.address);
        let image = Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: BlobDigest(Digest::of(b"image")),
            size: 1,
            annotations: BTreeMap::new(),
        };
        assert_eq!(find(repository.as_ref(), &image, "a").await, None, "{code}");
    }
}
