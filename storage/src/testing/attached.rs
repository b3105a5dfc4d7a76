//! The promises about artifacts attached to manifests, for every repository.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::json;
use sluice_format::artifact::OCI_MANIFEST;
use sluice_format::{BlobDigest, Digest, Limits};

use crate::referrers::{Artifact, ArtifactDocument, attach_artifact, fetch_artifact, referrers_tag};
use crate::{Descriptor, ManifestName, Repository, WritableRepository};

const TYPE: &str = "application/vnd.example.notes.v1";
const OTHER_TYPE: &str = "application/vnd.example.other.v1";
const DOCUMENT: &str = "text/plain";

/// Artifacts are listed by the manifest and the type that they were attached with, once each, and come back whole; attaching leaves the
/// subject as it was.
pub async fn check_referrers(repository: &dyn WritableRepository) {
    let subject = put_subject(repository, "attached to").await;
    let other = put_subject(repository, "another").await;
    let (digest, other_digest) = (subject.digest.0, other.digest.0);
    assert_eq!(listed(repository, &digest, TYPE).await, []);

    let mut attached = Vec::new();
    for text in ["one", "two", "three", "four", "five"] {
        attached.push(attach(repository, &subject, TYPE, text).await);
    }
    let typed = attach(repository, &subject, OTHER_TYPE, "one").await;
    let elsewhere = attach(repository, &other, TYPE, "one").await;
    let again = attach(repository, &subject, TYPE, "three").await;
    assert_eq!(again, attached[2]);

    attached.sort();
    assert_eq!(listed(repository, &digest, TYPE).await, attached);
    assert_eq!(listed(repository, &digest, OTHER_TYPE).await, [typed]);
    assert_eq!(listed(repository, &other_digest, TYPE).await, [elsewhere]);
    assert_eq!(
        listed(repository, &other_digest, "application/vnd.example.none").await,
        []
    );
    check_content(repository, &digest).await;
    check_list_is_not_believed(repository, &digest, &other_digest).await;
    let kept = repository.fetch_manifest(&ManifestName::Digest(digest)).await;
    assert_eq!(kept.expect("the subject stays").digest, digest);
}

/// Artifacts attached at the same time are all listed, when the list is kept where writers see each other.
pub async fn check_referrers_at_once(repository: &dyn WritableRepository) {
    let subject = put_subject(repository, "many at once").await;
    let texts: Vec<String> = (0..6).map(|at| format!("at once {at}")).collect();
    let writers = texts.iter().map(|text| attach(repository, &subject, TYPE, text));
    let mut attached = futures_util::future::join_all(writers).await;
    attached.sort();
    assert_eq!(listed(repository, &subject.digest.0, TYPE).await, attached);
}

async fn check_content(repository: &dyn WritableRepository, subject: &Digest) {
    let limits = Limits::default();
    let referrers = repository
        .fetch_referrers(subject, TYPE)
        .await
        .expect("the list is read");
    let mut texts = Vec::new();
    for referrer in &referrers {
        let text = referrer.descriptor.annotations["text"].clone();
        let manifest = fetch_artifact(repository, subject, TYPE, referrer, &limits)
            .await
            .expect("a listed manifest is read")
            .expect("it belongs to the subject");
        assert_eq!(manifest.annotations["text"], text);
        assert_eq!(manifest.layers[0].media_type, DOCUMENT);
        assert_eq!(manifest.layers[0].annotations["nth"], "first");
        let bytes = repository.fetch_blob(&manifest.layers[0], 100).await;
        assert_eq!(bytes.expect("a document is read"), text.as_bytes());
        texts.push(text);
    }
    texts.sort();
    assert_eq!(texts, ["five", "four", "one", "three", "two"]);
}

/// An entry for one subject taken for another.
async fn check_list_is_not_believed(repository: &dyn WritableRepository, subject: &Digest, other: &Digest) {
    let limits = Limits::default();
    let referrers = repository
        .fetch_referrers(subject, TYPE)
        .await
        .expect("the list is read");
    for (subject, artifact_type) in [(other, TYPE), (subject, OTHER_TYPE)] {
        let fetched = fetch_artifact(repository, subject, artifact_type, &referrers[0], &limits).await;
        assert_eq!(fetched.expect("the manifest is read"), None);
    }
}

async fn listed(repository: &dyn Repository, subject: &Digest, artifact_type: &str) -> Vec<Digest> {
    let referrers = repository
        .fetch_referrers(subject, artifact_type)
        .await
        .expect("a list is read, and none is no error");
    let mut digests: Vec<Digest> = referrers
        .iter()
        .map(|referrer| {
            assert_eq!(referrer.artifact_type.as_deref(), Some(artifact_type));
            referrer.descriptor.digest.0
        })
        .collect();
    digests.sort();
    digests
}

async fn attach(
    repository: &dyn WritableRepository,
    subject: &Descriptor,
    artifact_type: &str,
    text: &str,
) -> Digest {
    let note = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let artifact = Artifact {
        artifact_type: artifact_type.to_owned(),
        documents: vec![ArtifactDocument {
            media_type: DOCUMENT.to_owned(),
            bytes: Bytes::copy_from_slice(text.as_bytes()),
            annotations: note("nth", "first"),
        }],
        annotations: note("text", text),
    };
    attach_artifact(repository, subject, &artifact)
        .await
        .expect("an artifact is attached")
}

/// An image manifest without layers, stored and tagged.
async fn put_subject(repository: &dyn WritableRepository, marker: &str) -> Descriptor {
    let config = json!({ "marker": marker }).to_string();
    let config_digest = BlobDigest(Digest::of(config.as_bytes()));
    let mut writer = repository.begin_blob().await.expect("a blob begins");
    writer
        .write(config.clone().into())
        .await
        .expect("bytes are taken");
    writer.finish(config_digest).await.expect("a blob is finished");
    let document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest.to_string(),
            "size": config.len() },
        "layers": [],
    });
    let bytes = Bytes::from(document.to_string());
    let digest = Digest::of(&bytes);
    let tag = ManifestName::Tag(marker.replace(' ', "-"));
    repository
        .put_manifest(&tag, OCI_MANIFEST, bytes.clone())
        .await
        .expect("a manifest is stored");
    assert!(referrers_tag(&digest).len() <= 128, "tags are no longer");
    Descriptor {
        media_type: OCI_MANIFEST.to_owned(),
        digest: BlobDigest(digest),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
    }
}
