//! What users of a layout directory meet.

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sluice_format::Digest;
use sluice_format::artifact::OCI_MANIFEST;
use sluice_storage::{ErrorKind, Layout, ManifestName, Repository, WritableRepository};

fn manifest(number: usize) -> Bytes {
    json!({ "schemaVersion": 2, "number": number, "layers": [] })
        .to_string()
        .into()
}

fn tag(text: &str) -> ManifestName {
    ManifestName::Tag(text.into())
}

#[test]
fn what_is_no_layout_is_named_so() {
    let dir = tempfile::tempdir().unwrap();
    let error = Layout::open(dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("is not an OCI image layout"),
        "{error}"
    );
    let error = Layout::open(dir.path().join("missing")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    std::fs::write(dir.path().join("something"), "else").unwrap();
    let error = Layout::create(dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("is not an OCI image layout"),
        "{error}"
    );
}

#[test]
fn an_interrupted_creation_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("blobs")).unwrap();
    std::fs::write(dir.path().join(".index-abc"), "{").unwrap();
    let layout = Layout::create(dir.path()).unwrap();
    assert_eq!(layout.names().unwrap(), []);
    Layout::open(dir.path()).unwrap();
    Layout::create(dir.path()).unwrap();
}

#[tokio::test]
async fn without_a_name_the_only_image_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path()).unwrap();
    let error = layout.manifest_name(None).unwrap_err();
    assert!(error.to_string().contains("holds no image"), "{error}");
    layout
        .put_manifest(&tag("a"), OCI_MANIFEST, manifest(1))
        .await
        .unwrap();
    let only = layout.manifest_name(None).unwrap();
    assert_eq!(layout.fetch_manifest(&only).await.unwrap().bytes, manifest(1));
    layout
        .put_manifest(&tag("b"), OCI_MANIFEST, manifest(2))
        .await
        .unwrap();
    let error = layout.manifest_name(None).unwrap_err();
    assert!(error.to_string().ends_with("name one of them: a, b"), "{error}");
    let error = layout.fetch_manifest(&tag("c")).await.unwrap_err();
    assert!(
        error.to_string().ends_with("no tag \"c\"; it has a, b"),
        "{error}"
    );
}

#[tokio::test]
async fn writers_side_by_side_lose_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    Layout::create(dir.path()).unwrap();
    // Every writer opens the layout by itself, as another process would.
    let path = dir.path();
    let writes = (0..20).map(|number| async move {
        let layout = Layout::open(path).unwrap();
        let name = tag(&number.to_string());
        layout.put_manifest(&name, OCI_MANIFEST, manifest(number)).await
    });
    for written in join_all(writes).await {
        written.unwrap();
    }
    let mut tags: Vec<_> = Layout::open(dir.path())
        .unwrap()
        .names()
        .unwrap()
        .into_iter()
        .map(|entry| entry.tag)
        .collect();
    tags.sort();
    assert_eq!(tags.len(), 20);
    tags.dedup();
    assert_eq!(tags.len(), 20);
}

#[tokio::test]
async fn fields_of_other_tools_survive_in_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path()).unwrap();
    layout
        .put_manifest(&tag("a"), OCI_MANIFEST, manifest(1))
        .await
        .unwrap();
    let path = dir.path().join("index.json");
    let mut list: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    list["annotations"] = json!({ "by": "others" });
    list["manifests"][0]["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    std::fs::write(&path, list.to_string()).unwrap();
    layout
        .put_manifest(&tag("b"), OCI_MANIFEST, manifest(2))
        .await
        .unwrap();
    layout
        .add_untagged(Digest::of(b"x"), OCI_MANIFEST, 1)
        .await
        .unwrap();
    layout
        .add_untagged(Digest::of(b"x"), OCI_MANIFEST, 1)
        .await
        .unwrap();
    let list: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(list["annotations"]["by"], "others");
    assert_eq!(list["manifests"][0]["platform"]["os"], "linux");
    assert_eq!(list["manifests"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_changed_blob_is_corrupt_and_a_shortened_one_is_never_read_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path()).unwrap();
    layout
        .put_manifest(&tag("a"), OCI_MANIFEST, manifest(1))
        .await
        .unwrap();
    let entry = layout.names().unwrap().remove(0);
    let path = dir
        .path()
        .join("blobs/sha256")
        .join(entry.descriptor.digest.0.to_hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(
        layout.fetch_manifest(&tag("a")).await.unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let error = layout.fetch_blob(&entry.descriptor, 1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    std::fs::write(&path, &bytes[1..]).unwrap();
    let error = layout
        .open_blob(&entry.descriptor)
        .read_range(0..1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}
