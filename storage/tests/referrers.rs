//! Artifacts attached to images: the same promises for every repository, and what registries do differently.

#[path = "support/docker_registry.rs"]
mod docker_registry;
#[path = "support/odd.rs"]
#[expect(dead_code, reason = "other tests break answers off")]
mod odd;
#[path = "support/referrers_registry.rs"]
mod referrers_registry;

use std::sync::Arc;
use std::time::Duration;

use axum::http::header;
use docker_registry::DockerRegistry;
use odd::{Asked, OddRegistry, answer, status};
use serde_json::{Value, json};
use sluice_format::Digest;
use sluice_format::artifact::{OCI_INDEX, OCI_MANIFEST};
use sluice_storage::referrers::referrers_tag;
use sluice_storage::testing::MemoryRepository;
use sluice_storage::testing::attached::{check_referrers, check_referrers_at_once};
use sluice_storage::{
    ErrorKind, Layout, ManifestName, RegistryClient, RegistryOptions, RegistryRepository, Repository,
};

const TYPE: &str = "application/vnd.example.notes.v1";

fn repository(address: &str) -> Arc<RegistryRepository> {
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

fn subject() -> Digest {
    Digest::of(b"subject")
}

fn entry(text: &str) -> Value {
    json!({ "mediaType": OCI_MANIFEST, "digest": Digest::of(text.as_bytes()).to_string(), "size": 10, "artifactType": TYPE })
}

fn list(entries: &[Value]) -> String {
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries }).to_string()
}

#[tokio::test]
async fn memory_keeps_the_promises() {
    check_referrers(&MemoryRepository::new()).await;
}

#[tokio::test]
async fn a_layout_keeps_the_promises() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path().join("layout")).unwrap();
    check_referrers(&layout).await;
    check_referrers_at_once(&layout).await;
}

#[tokio::test]
async fn a_real_registry_without_the_api_keeps_the_promises_by_tag() {
    let registry = DockerRegistry::start();
    let repository = repository(registry.address());
    check_referrers(repository.as_ref()).await;
    let tag = ManifestName::Tag(referrers_tag(&subject()));
    let error = repository.fetch_manifest(&tag).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "asking makes no tag");
}

#[tokio::test]
async fn a_registry_with_the_api_keeps_the_promises_and_gets_no_tag() {
    for filters in [true, false] {
        let registry = referrers_registry::start(filters).await;
        let repository = repository(&registry.address);
        check_referrers(repository.as_ref()).await;
        check_referrers_at_once(repository.as_ref()).await;
        assert!(registry.asked("PUT /v2/a/b/manifests/sha256-").is_empty());
        assert!(registry.asked("PUT /v2/a/b/manifests/sha256:").len() >= 7);
    }
}

#[tokio::test]
async fn an_artifact_does_not_make_the_only_image_of_a_layout_ambiguous() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path().join("layout")).unwrap();
    check_referrers(&layout).await;
    let names = layout.names().unwrap();
    let images: Vec<_> = names
        .iter()
        .filter(|entry| entry.artifact_type.is_none())
        .collect();
    assert_eq!(images.len(), 2, "two subjects");
    assert_eq!(names.len(), 2 + 7);
    let error = layout.manifest_name(None).unwrap_err();
    assert!(error.to_string().contains("holds 2 images"), "{error}");
}

/// Whatever a registry without the API says, the tag is asked for, in the same round trip.
#[tokio::test]
async fn registries_without_the_api_are_asked_for_the_tag() {
    for refusal in [400, 401, 403, 404, 405, 501] {
        let registry = OddRegistry::start(move |asked| match asked.target.contains("/referrers/") {
            true => status(refusal, &[]),
            false => answer(
                200,
                &[(header::CONTENT_TYPE, OCI_INDEX)],
                list(&[entry("one"), json!({ "digest": "sha512:00" }), json!(7)]),
            ),
        })
        .await;
        let found = repository(&registry.address)
            .fetch_referrers(&subject(), TYPE)
            .await
            .unwrap();
        assert_eq!(found.len(), 1, "{refusal}");
        assert_eq!(found[0].descriptor.digest.0, Digest::of(b"one"));
        assert_eq!(registry.asked("GET").len(), 2);
    }
}

#[tokio::test]
async fn nothing_attached_costs_two_requests_at_once_and_no_retries() {
    let registry = OddRegistry::start(|_| status(404, &[])).await;
    let repository = repository(&registry.address);
    assert_eq!(repository.fetch_referrers(&subject(), TYPE).await.unwrap(), []);
    let query = format!("/v2/a/b/referrers/{}?artifactType=", subject());
    assert_eq!(registry.asked(&format!("GET {query}")).len(), 1);
    let tag = format!("/v2/a/b/manifests/{}", referrers_tag(&subject()));
    assert_eq!(registry.asked(&format!("GET {tag}")).len(), 1);
    assert_eq!(registry.asked("").len(), 2);
}

#[tokio::test]
async fn null_lists_are_empty_and_other_documents_are_refused() {
    for (body, empty) in [(r#"{"manifests":null}"#, true), ("{}", true), ("<html>", false)] {
        let registry = OddRegistry::start(move |asked| match asked.target.contains("/referrers/") {
            true => answer(200, &[], body),
            false => status(404, &[]),
        })
        .await;
        let found = repository(&registry.address)
            .fetch_referrers(&subject(), TYPE)
            .await;
        assert_eq!(found.is_ok_and(|found| found.is_empty()), empty, "{body}");
    }
}

/// Pages that never end, and pages elsewhere.
#[tokio::test]
async fn paging_is_bounded_and_stays_with_the_registry() {
    let endless = |asked: &Asked| match asked.target.contains("/referrers/") {
        true => answer(
            200,
            &[(header::LINK, "<?n=1>; rel=\"next\"")],
            list(&[entry("one")]),
        ),
        false => status(404, &[]),
    };
    let registry = OddRegistry::start(endless).await;
    let found = repository(&registry.address)
        .fetch_referrers(&subject(), TYPE)
        .await
        .unwrap();
    assert_eq!(found.len(), 32);
    let elsewhere = OddRegistry::start(|_| answer(200, &[], list(&[entry("two")]))).await;
    let link = format!("<http://{}/next>; rel=\"next\"", elsewhere.address);
    let registry = OddRegistry::start(move |asked| match asked.target.contains("/referrers/") {
        true => answer(200, &[(header::LINK, &link)], list(&[entry("one")])),
        false => status(404, &[]),
    })
    .await;
    let found = repository(&registry.address)
        .fetch_referrers(&subject(), TYPE)
        .await
        .unwrap();
    assert_eq!(found.len(), 1);
    assert!(elsewhere.asked("").is_empty());
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_and_a_dead_one_is_an_error() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let registry = OddRegistry::start(move |request| {
        if !request.target.contains("/referrers/") {
            return status(404, &[]);
        }
        match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => status(503, &[]),
            _ => answer(200, &[], list(&[entry("one")])),
        }
    })
    .await;
    let found = repository(&registry.address)
        .fetch_referrers(&subject(), TYPE)
        .await;
    assert_eq!(found.unwrap().len(), 1);
    let error = repository("127.0.0.1:1")
        .fetch_referrers(&subject(), TYPE)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
