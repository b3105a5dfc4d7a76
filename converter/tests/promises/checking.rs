//! A check finds what is wrong, and says where.

use std::fs;

use serde_json::{Value, json};
use sluice_converter::report::CheckReport;
use sluice_converter::{CheckOptions, Silent, check};
use sluice_format::compression::{ChunkEncoder, Codec};
use sluice_format::layer_index::frame_index;
use sluice_format::scan::LayerScanner;
use sluice_format::{ChunkDigest, ChunkRef, ChunkTable, DiffId, Digest, LayerIndex, Limits, artifact};

use crate::images::*;

async fn checked(place: &Place) -> CheckReport {
    check(&place.source(), None, &CheckOptions::default(), &Silent)
        .await
        .unwrap()
}

#[test]
fn sound_images_are_sound_converted_or_not() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar()), Layer::gzip(&upper_tar())]).await;
        let report = checked(&source).await;
        assert!(report.is_sound());
        assert_eq!(report.images[0].layers[0].chunks, None);
        let (target, _) = converted(&source).await;
        let report = checked(&target).await;
        assert!(report.is_sound(), "{:?}", report.all_problems());
        assert!(report.images[0].layers[0].chunks.unwrap() > 5);
    });
}

#[test]
fn a_flipped_byte_in_a_chunk_is_found_and_placed() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar())]).await;
        let (target, _) = converted(&source).await;
        let (_, manifest) = target.manifest().await;
        let path = target.blob_path(manifest["layers"][0]["digest"].as_str().unwrap());
        let mut blob = fs::read(&path).unwrap();
        let middle = blob.len() / 2;
        blob[middle] ^= 1;
        fs::write(&path, blob).unwrap();
        let problems = checked(&target).await.all_problems().join("\n");
        assert!(problems.contains("its blob is sha256:"), "{problems}");
        assert!(problems.contains("plain offset"), "{problems}");
    });
}

/// A blob with the chunks of one tar and an index with the tree of another.
fn lying_blob(plain: &[u8], shown: &[u8]) -> (Vec<u8>, String) {
    let limits = Limits::default();
    let mut scanner = LayerScanner::new(1 << 16, limits.clone()).unwrap();
    scanner.push(shown, &mut Vec::new()).unwrap();
    let tree = scanner.finish(&mut Vec::new()).unwrap().layer;
    let mut blob = ChunkEncoder::new(3).unwrap().encode(plain).unwrap();
    let chunk = ChunkRef {
        plain_off: 0,
        plain_len: plain.len() as u32,
        stored_off: 0,
        stored_len: blob.len() as u32,
        codec: Codec::Zstd,
        digest: ChunkDigest(Digest::of(plain)),
    };
    let table = ChunkTable::new(vec![chunk], plain.len() as u64, &limits).unwrap();
    let index = LayerIndex::new(DiffId(Digest::of(plain)), table, &tree)
        .unwrap()
        .encode()
        .unwrap();
    let (framed, location) = frame_index(&index, blob.len() as u64).unwrap();
    blob.extend_from_slice(&framed);
    (blob, location.to_string())
}

#[test]
fn an_index_that_lies_about_the_tree_is_found() {
    run(async {
        let plain = Tar::new().file("safe", b"1").file("same", b"2").finish();
        let shown = Tar::new().file("evil", b"1").file("same", b"2").finish();
        let (stored, annotation) = lying_blob(&plain, &shown);
        let mut layer = Layer::new(artifact::OCI_LAYER_ZSTD, stored, &plain);
        layer.annotations = json!({ artifact::INDEX_ANNOTATION: annotation });
        let problems = checked(&Place::with_layers(&[layer]).await).await.all_problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].ends_with("its layer index differs from its tar: /safe: is missing"),
            "{problems:?}"
        );
        assert!(problems[1].ends_with("/evil: is not expected"), "{problems:?}");
    });
}

#[test]
fn another_image_differs_by_path() {
    run(async {
        let plain = base_tar();
        let source = Place::with_layers(&[Layer::gzip(&plain)]).await;
        let other = Place::with_layers(&[Layer::gzip(&plain), Layer::gzip(&upper_tar())]).await;
        let report = check(
            &other.source(),
            Some(&source.source()),
            &CheckOptions::default(),
            &Silent,
        )
        .await
        .unwrap();
        let problems = report.all_problems().join("\n");
        for expected in [
            "image ID",
            "DiffIDs",
            "/new: is not expected",
            "/etc/hosts: is missing",
            "/etc/long: has 100",
        ] {
            assert!(problems.contains(expected), "{expected} in {problems}");
        }
    });
}

#[test]
fn reports_serialise() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar())]).await;
        let (target, report) = converted(&source).await;
        let converted: Value = serde_json::to_value(&report).unwrap();
        assert_eq!(converted["images"][0]["layers"][0]["outcome"], "converted");
        assert_eq!(converted["digest"], report.digest.to_string());
        let checked = serde_json::to_value(checked(&target).await).unwrap();
        assert_eq!(checked["images"][0]["problems"], json!([]));
    });
}
