//! Every repository keeps the promises of the repository and blob contracts.

#[path = "support/docker_registry.rs"]
mod docker_registry;

use std::sync::Arc;

use docker_registry::DockerRegistry;
use sluice_storage::testing::conformance::{check_blob, check_writable_repository};
use sluice_storage::testing::sample::pseudo_random;
use sluice_storage::testing::{FaultyBlob, MemoryBlob, MemoryRepository};
use sluice_storage::{Layout, RegistryClient, RegistryOptions};

#[tokio::test]
async fn memory_keeps_the_contracts() {
    check_writable_repository(&MemoryRepository::new()).await;
}

#[tokio::test]
async fn a_decorated_blob_keeps_the_contract() {
    let bytes = pseudo_random(100_000);
    let blob = FaultyBlob::new(Arc::new(MemoryBlob::new(bytes.clone())));
    check_blob(blob.as_ref(), &bytes).await;
}

#[tokio::test]
async fn a_layout_keeps_the_contracts_and_leaves_no_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path().join("layout")).unwrap();
    check_writable_repository(&layout).await;
    let names = |path: &std::path::Path| {
        let entries = std::fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(layout.path()), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(names(&layout.path().join("blobs")), ["sha256"]);
    for blob in names(&layout.path().join("blobs/sha256")) {
        assert_eq!(blob.len(), 64, "{blob}");
    }
}

#[tokio::test]
async fn a_real_registry_keeps_the_contracts() {
    let registry = DockerRegistry::start();
    let client = RegistryClient::new(RegistryOptions::default());
    let reference = format!("{}/team/app", registry.address()).parse().unwrap();
    let repository = client.repository(&reference).unwrap();
    check_writable_repository(repository.as_ref()).await;
    let traffic = client.traffic();
    assert!(
        traffic.requests > 50 && traffic.sent_bytes > 25 << 20 && traffic.received_bytes > 25 << 20,
        "{traffic:?}"
    );
}
