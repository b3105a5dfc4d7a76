//! The promises of [`Blob`] and [`WritableRepository`], checked on any implementation.
//!
//! Each function panics with a sentence when a promise is broken.

use std::ops::Range;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use serde_json::json;
use sluice_format::artifact::{OCI_CONFIG, OCI_INDEX, OCI_LAYER_ZSTD, OCI_MANIFEST};
use sluice_format::{BlobDigest, Digest};

use super::sample::pseudo_random;
use crate::{Blob, Descriptor, ErrorKind, ManifestName, WritableRepository};

/// A blob gives exactly the bytes of its ranges and streams, and refuses what lies outside. `expected` needs ten bytes.
pub async fn check_blob(blob: &dyn Blob, expected: &[u8]) {
    let len = expected.len() as u64;
    assert_eq!(blob.stored_len(), len, "the length is that of the bytes");
    assert_eq!(
        blob.digest(),
        BlobDigest(Digest::of(expected)),
        "the digest is that of the bytes"
    );
    for stored in [0..len, 0..0, len..len, 0..1, len - 1..len, len / 3..len / 2] {
        let bytes = blob
            .read_range(stored.clone())
            .await
            .expect("a range within the blob is read");
        assert_eq!(bytes, expected[as_usize(&stored)], "bytes of {stored:?}");
    }
    let many = (0..8).map(|at| at..len - at);
    let read = join_all(many.clone().map(|stored| blob.read_range(stored))).await;
    for (stored, bytes) in many.zip(read) {
        let bytes = bytes.expect("ranges are read side by side");
        assert_eq!(
            bytes,
            expected[as_usize(&stored)],
            "bytes of {stored:?} beside others"
        );
    }
    let backwards = Range { start: 2, end: 1 };
    for stored in [
        0..len + 1,
        len + 1..len + 1,
        len..len + 1,
        backwards,
        u64::MAX - 1..u64::MAX,
    ] {
        let error = blob
            .read_range(stored.clone())
            .await
            .expect_err("a range outside the blob is refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{stored:?}: {error}");
    }
    check_stream(blob, expected).await;
}

async fn check_stream(blob: &dyn Blob, expected: &[u8]) {
    let len = expected.len() as u64;
    for stored in [
        0..len,
        1..len,
        len / 2..len,
        len..len,
        0..0,
        2..7,
        len / 3..len / 2,
    ] {
        let stream = blob
            .stream(stored.clone())
            .await
            .expect("a stream begins within the blob");
        let pieces: Vec<Bytes> = stream
            .try_collect()
            .await
            .expect("a stream goes to the end of its range");
        assert_eq!(
            pieces.concat(),
            expected[as_usize(&stored)],
            "stream of {stored:?}"
        );
    }
    let error = blob
        .stream(len..len + 1)
        .await
        .err()
        .expect("a stream outside the blob is refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

/// A repository stores blobs and manifests whole or not at all, and gives them back as they were.
pub async fn check_writable_repository(repository: &dyn WritableRepository) {
    check_blobs(repository).await;
    check_refused_blobs(repository).await;
    check_tags(repository).await;
    check_manifests_by_digest(repository).await;
}

async fn check_blobs(repository: &dyn WritableRepository) {
    // One byte, one registry part, more than two of them, in pieces that fit none.
    for len in [1, 100_000, (8 << 20) + 1, (17 << 20) + 12_345] {
        let mut bytes = pseudo_random(len);
        bytes[0] = bytes[0].wrapping_add(1);
        let blob = describe(OCI_LAYER_ZSTD, &bytes);
        assert!(
            !repository
                .has_blob(&blob.digest)
                .await
                .expect("the question is answered")
        );
        write_blob(repository, &bytes, 1_000_003).await;
        assert!(
            repository
                .has_blob(&blob.digest)
                .await
                .expect("the question is answered")
        );
        if len >= 10 {
            check_blob(repository.open_blob(&blob).as_ref(), &bytes).await;
        }
        let fetched = repository
            .fetch_blob(&blob, len as u64)
            .await
            .expect("a stored blob is fetched");
        assert_eq!(fetched, bytes);
        let error = repository
            .fetch_blob(&blob, len as u64 - 1)
            .await
            .expect_err("the bound holds");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        write_blob(repository, &bytes, 4 << 20).await;
    }
    let contents: Vec<Vec<u8>> = (0..4u8).map(|at| vec![at; 50_000]).collect();
    join_all(contents.iter().map(|bytes| write_blob(repository, bytes, 777))).await;
    for bytes in &contents {
        let fetched = repository.fetch_blob(&describe(OCI_CONFIG, bytes), 1 << 20).await;
        assert_eq!(fetched.expect("blobs written side by side are there"), bytes[..]);
    }
}

async fn check_refused_blobs(repository: &dyn WritableRepository) {
    let bytes = b"never finished under its name".to_vec();
    let digest = BlobDigest(Digest::of(&bytes));
    let other = BlobDigest(Digest::of(b"other"));
    let mut writer = repository.begin_blob().await.expect("a blob begins");
    writer.write(bytes.clone().into()).await.expect("bytes are taken");
    writer.finish(other).await.expect_err("a wrong digest is refused");
    let mut writer = repository.begin_blob().await.expect("a blob begins");
    writer
        .write(pseudo_random(9 << 20).into())
        .await
        .expect("bytes are taken");
    drop(writer);
    for absent in [digest, other] {
        assert!(
            !repository
                .has_blob(&absent)
                .await
                .expect("the question is answered"),
            "{absent} was left behind"
        );
        let mounted = repository
            .mount_blob(&absent, "no/such")
            .await
            .expect("the question is answered");
        assert!(!mounted);
    }
    let missing = describe(OCI_LAYER_ZSTD, b"missing");
    let error = repository
        .open_blob(&missing)
        .read_range(0..1)
        .await
        .expect_err("absence shows");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

async fn check_tags(repository: &dyn WritableRepository) {
    let (first, second) = (
        manifest(repository, "one").await,
        manifest(repository, "two").await,
    );
    let (moving, fixed) = (tag("moving"), tag("fixed"));
    let error = repository
        .fetch_manifest(&moving)
        .await
        .expect_err("the tag is not there yet");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    for (name, bytes) in [
        (&moving, &first),
        (&fixed, &first),
        (&moving, &second),
        (&moving, &second),
    ] {
        let stored = repository.put_manifest(name, OCI_MANIFEST, bytes.clone()).await;
        stored.expect("a manifest is stored");
        let found = repository
            .fetch_manifest(name)
            .await
            .expect("a stored manifest is found");
        assert_eq!(found.bytes, bytes);
        assert_eq!(found.digest, Digest::of(bytes));
        assert_eq!(found.media_type, OCI_MANIFEST);
    }
    let kept = repository
        .fetch_manifest(&fixed)
        .await
        .expect("the other tag stays");
    assert_eq!(kept.bytes, first);
    let old = ManifestName::Digest(Digest::of(&first));
    assert_eq!(
        repository
            .fetch_manifest(&old)
            .await
            .expect("the old manifest stays")
            .bytes,
        first
    );
}

async fn check_manifests_by_digest(repository: &dyn WritableRepository) {
    let child = manifest(repository, "child").await;
    let digest = Digest::of(&child);
    let name = ManifestName::Digest(digest);
    let error = repository
        .fetch_manifest(&name)
        .await
        .expect_err("it is not there yet");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let wrong = ManifestName::Digest(Digest::of(b"wrong"));
    let stored = repository.put_manifest(&wrong, OCI_MANIFEST, child.clone()).await;
    assert_eq!(
        stored.expect_err("a wrong digest is refused").kind(),
        ErrorKind::Corrupt
    );
    let stored = repository.put_manifest(&name, OCI_MANIFEST, child.clone()).await;
    stored.expect("a manifest is stored by digest");
    let list = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{ "mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": child.len(),
            "platform": { "os": "linux", "architecture": "amd64" } }],
    });
    let list = Bytes::from(list.to_string());
    let stored = repository
        .put_manifest(&tag("list"), OCI_INDEX, list.clone())
        .await;
    stored.expect("an image index is stored");
    let found = repository
        .fetch_manifest(&tag("list"))
        .await
        .expect("the image index is found");
    assert_eq!((found.media_type.as_str(), found.bytes), (OCI_INDEX, list));
    let found = repository
        .fetch_manifest(&name)
        .await
        .expect("the child is found");
    assert_eq!((found.media_type.as_str(), found.bytes), (OCI_MANIFEST, child));
}

async fn write_blob(repository: &dyn WritableRepository, bytes: &[u8], piece_len: usize) {
    let mut writer = repository.begin_blob().await.expect("a blob begins");
    for piece in bytes.chunks(piece_len) {
        writer
            .write(Bytes::copy_from_slice(piece))
            .await
            .expect("bytes are taken");
    }
    let digest = BlobDigest(Digest::of(bytes));
    writer
        .finish(digest)
        .await
        .expect("a blob is finished under its digest");
}

/// A manifest whose blobs are stored.
async fn manifest(repository: &dyn WritableRepository, marker: &str) -> Bytes {
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [] },
        "marker": marker });
    let config = config.to_string().into_bytes();
    write_blob(repository, &config, 1 << 20).await;
    let document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": describe(OCI_CONFIG, &config),
        "layers": [],
    });
    document.to_string().into()
}

fn tag(text: &str) -> ManifestName {
    ManifestName::Tag(text.to_owned())
}

fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: BlobDigest(Digest::of(bytes)),
        size: bytes.len() as u64,
        annotations: Default::default(),
    }
}

fn as_usize(stored: &Range<u64>) -> Range<usize> {
    stored.start as usize..stored.end as usize
}
