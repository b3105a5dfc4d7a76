//! Conversion keeps the image, and its result depends on nothing but the plain bytes, the level and the chunk size.

use serde_json::{Value, json};
use sluice_converter::report::Outcome;
use sluice_converter::{ConvertOptions, Silent, convert};
use sluice_format::artifact::{self, INDEX_ANNOTATION};
use sluice_format::layer_index::{FOOTER_LEN, parse_footer};
use sluice_format::{Digest, LayerIndex, Limits};
use sluice_storage::ManifestName;

use crate::images::*;

fn layer_digests(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_same_layer_gives_the_same_blob_whatever_its_compression_and_the_number_of_jobs() {
    run(async {
        let plain = base_tar();
        let mut digests = Vec::new();
        for (media_type, stored) in [
            (artifact::OCI_LAYER_GZIP, gzip(&plain)),
            (artifact::OCI_LAYER_GZIP, gzip_members(&plain)),
            (artifact::OCI_LAYER_ZSTD, zstd(&plain)),
            (artifact::OCI_LAYER_TAR, plain.clone()),
        ] {
            let source = Place::with_layers(&[Layer::new(media_type, stored, &plain)]).await;
            for jobs in [1, 2, 4] {
                let target = Place::new();
                let report = convert(&source.source(), &target.target(), &options(jobs), &Silent)
                    .await
                    .unwrap();
                let (_, manifest) = target.manifest().await;
                digests.extend(layer_digests(&manifest));
                assert_eq!(report.totals.layers, 1);
                assert!(report.totals.chunks > 5, "{}", report.totals.chunks);
            }
        }
        digests.dedup();
        assert_eq!(digests.len(), 1);
    });
}

#[test]
fn config_diff_ids_and_unknown_fields_stay_as_they_are() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar()), Layer::gzip(&upper_tar())]).await;
        let (target, report) = converted(&source).await;
        let (_, before) = source.manifest().await;
        let (_, after) = target.manifest().await;
        assert_eq!(before["config"], after["config"]);
        let config = before["config"]["digest"].as_str().unwrap();
        assert_eq!(source.blob(config), target.blob(config));
        assert_eq!(report.images[0].image_id.to_string(), config);
        for field in ["schemaVersion", "mediaType", "annotations", "x-unknown"] {
            assert_eq!(before[field], after[field], "{field}");
        }
        let keys = |document: &Value| document.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&before), keys(&after));
        assert_sound(&target.source(), Some(&source.source())).await;
    });
}

#[test]
fn a_converted_blob_is_an_ordinary_zstd_stream_of_the_same_tar() {
    run(async {
        let tars = [base_tar(), upper_tar(), Tar::new().finish(), Vec::new()];
        let layers: Vec<_> = tars.iter().map(|tar| Layer::gzip(tar)).collect();
        let source = Place::with_layers(&layers).await;
        let (target, report) = converted(&source).await;
        let (_, manifest) = target.manifest().await;
        for (layer, (tar, digest)) in tars.iter().zip(layer_digests(&manifest)).enumerate() {
            let blob = target.blob(&digest);
            assert_eq!(unzstd(&blob), *tar, "layer {layer}");
            // Decoders that refuse a stream of skippable frames alone see a frame first.
            assert_eq!(blob[..4], [0x28, 0xb5, 0x2f, 0xfd], "layer {layer}");
            let descriptor = &manifest["layers"][layer];
            assert_eq!(descriptor["mediaType"], artifact::OCI_LAYER_ZSTD);
            assert_eq!(descriptor["size"], blob.len());
            assert_eq!(report.images[0].layers[layer].plain_len, tar.len() as u64);
        }
    });
}

#[test]
fn annotation_and_footer_lead_to_the_index_of_the_layer() {
    run(async {
        let plain = base_tar();
        let source = Place::with_layers(&[Layer::gzip(&plain)]).await;
        let (target, _) = converted(&source).await;
        let (_, manifest) = target.manifest().await;
        let blob = target.blob(&layer_digests(&manifest)[0]);
        let tail = &blob[blob.len() - FOOTER_LEN as usize..];
        let location = parse_footer(tail, blob.len() as u64).unwrap().unwrap();
        let annotation = manifest["layers"][0]["annotations"][INDEX_ANNOTATION]
            .as_str()
            .unwrap();
        assert_eq!(annotation, location.to_string());
        let bytes = &blob[location.stored_off as usize..][..location.stored_len as usize];
        let index = LayerIndex::parse_verified(bytes, &location.digest, &Limits::default()).unwrap();
        assert_eq!(index.diff_id.0, Digest::of(&plain));
        assert_eq!(index.plain_len(), plain.len() as u64);
    });
}

#[test]
fn a_docker_manifest_becomes_an_oci_manifest_with_the_same_image_id() {
    run(async {
        let plain = base_tar();
        let source = Place::new();
        let layer = Layer::new(artifact::DOCKER_LAYER_GZIP, gzip(&plain), &plain);
        let manifest = source.put_image(true, "amd64", &[layer]).await;
        source.put_document(Some("latest"), &manifest).await;
        let (target, _) = converted(&source).await;
        let (stored, after) = target.manifest().await;
        assert_eq!(stored.media_type, artifact::OCI_MANIFEST);
        assert_eq!(after["mediaType"], artifact::OCI_MANIFEST);
        assert_eq!(after["config"]["mediaType"], artifact::OCI_CONFIG);
        assert_eq!(after["config"]["digest"], manifest["config"]["digest"]);
    });
}

#[test]
fn annotations_about_the_old_blob_go_and_others_stay() {
    run(async {
        let mut layer = Layer::gzip(&base_tar());
        layer.annotations = json!({
            "org.example.kept": "yes",
            "containerd.io/snapshot/stargz/toc.digest": "sha256:00",
            "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1",
        });
        let source = Place::with_layers(&[layer]).await;
        let (target, _) = converted(&source).await;
        let (_, manifest) = target.manifest().await;
        let annotations = manifest["layers"][0]["annotations"].as_object().unwrap();
        let keys: Vec<_> = annotations.keys().map(String::as_str).collect();
        assert_eq!(keys, ["org.example.kept", INDEX_ANNOTATION]);
    });
}

#[test]
fn a_converted_image_is_kept_as_it_is() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar()), Layer::gzip(&upper_tar())]).await;
        let (once, first) = converted(&source).await;
        // Other settings would give other blobs if the layers were converted again.
        let (twice, other) = (
            Place::new(),
            ConvertOptions {
                level: 9,
                ..options(1)
            },
        );
        let second = convert(&once.source(), &twice.target(), &other, &Silent)
            .await
            .unwrap();
        assert_eq!(first.digest, second.digest);
        let outcomes: Vec<_> = second.images[0]
            .layers
            .iter()
            .map(|layer| layer.outcome)
            .collect();
        assert_eq!(outcomes, [Outcome::Kept, Outcome::Kept]);
        let third = convert(&once.source(), &twice.target(), &other, &Silent)
            .await
            .unwrap();
        assert_eq!(third.images[0].layers[0].outcome, Outcome::Mounted);
    });
}

#[test]
fn a_layer_that_lost_its_annotation_is_recognised_by_its_footer() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar())]).await;
        let (once, _) = converted(&source).await;
        let (_, mut manifest) = once.manifest().await;
        let annotated = manifest.clone();
        manifest["layers"][0]
            .as_object_mut()
            .unwrap()
            .remove("annotations");
        once.put_document(Some("latest"), &manifest).await;
        let (twice, report) = converted(&once).await;
        assert_eq!(report.images[0].layers[0].outcome, Outcome::Kept);
        assert_eq!(twice.manifest().await.1["layers"], annotated["layers"]);
    });
}

#[test]
fn an_index_of_another_layer_is_not_believed() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar()), Layer::gzip(&upper_tar())]).await;
        let (once, _) = converted(&source).await;
        let (_, mut manifest) = once.manifest().await;
        let good = manifest["layers"].clone();
        manifest["layers"][1]["annotations"] = json!({ INDEX_ANNOTATION: "sha256:nonsense" });
        once.put_document(Some("latest"), &manifest).await;
        let (twice, report) = converted(&once).await;
        let layers = &report.images[0].layers;
        assert_eq!(
            [layers[0].outcome, layers[1].outcome],
            [Outcome::Kept, Outcome::Converted]
        );
        assert!(
            layers[1].warnings[0].contains("not usable"),
            "{:?}",
            layers[1].warnings
        );
        assert_eq!(twice.manifest().await.1["layers"], good);
    });
}

#[test]
fn a_repeated_layer_is_converted_once_and_named_each_time() {
    run(async {
        let source = Place::with_layers(&[
            Layer::gzip(&base_tar()),
            Layer::gzip(&upper_tar()),
            Layer::gzip(&base_tar()),
        ])
        .await;
        let (target, report) = converted(&source).await;
        assert_eq!(report.totals.layers, 2);
        let digests = layer_digests(&target.manifest().await.1);
        assert_eq!(digests[0], digests[2]);
        assert_eq!(target.blob_names().len(), 4);
    });
}

#[test]
fn a_wrong_media_type_is_a_warning() {
    run(async {
        let plain = upper_tar();
        let layer = Layer::new(artifact::OCI_LAYER_GZIP, plain.clone(), &plain);
        let source = Place::with_layers(&[layer]).await;
        let (_, report) = converted(&source).await;
        let warnings = &report.images[0].layers[0].warnings;
        assert_eq!(
            warnings[..],
            ["its media type says gzip, its bytes are plain tar"]
        );
    });
}

/// Two platforms and an attestation, in a Docker list.
async fn multi_platform() -> (Place, Value) {
    let place = Place::new();
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let layers = [Layer::gzip(&base_tar()), Layer::gzip(architecture.as_bytes())];
        let layers = match architecture {
            "amd64" => &layers[..1],
            _ => &[Layer::gzip(&base_tar()), Layer::gzip(&upper_tar())],
        };
        let manifest = place.put_image(true, architecture, layers).await;
        let digest = place.put_document(None, &manifest).await;
        entries.push(json!({
            "mediaType": artifact::DOCKER_MANIFEST, "digest": digest.to_string(), "size": manifest.to_string().len(),
            "platform": {"architecture": architecture, "os": "linux", "os.features": ["x"]},
        }));
    }
    let statement = br#"{"_type":"https://in-toto.io/Statement/v0.1"}"#;
    let blob = place.put_blob(statement).await;
    let config = place.put_blob(b"{}").await;
    let attestation = json!({
        "schemaVersion": 2, "mediaType": artifact::OCI_MANIFEST,
        "config": {"mediaType": artifact::OCI_CONFIG, "digest": config.to_string(), "size": 2},
        "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": blob.to_string(), "size": statement.len()}],
    });
    let digest = place.put_document(None, &attestation).await;
    entries.push(json!({
        "mediaType": artifact::OCI_MANIFEST, "digest": digest.to_string(), "size": attestation.to_string().len(),
        "platform": {"architecture": "unknown", "os": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": entries[0]["digest"],
        },
    }));
    let list = json!({
        "schemaVersion": 2, "mediaType": artifact::DOCKER_LIST, "manifests": entries,
        "annotations": {"org.example.list": "kept"},
    });
    place.put_document(Some("latest"), &list).await;
    (place, list)
}

#[test]
fn an_image_index_is_kept_whole() {
    run(async {
        let (source, before) = multi_platform().await;
        let (target, report) = converted(&source).await;
        let (stored, after) = target.manifest().await;
        assert_eq!(stored.media_type, artifact::OCI_INDEX);
        assert_eq!(after["mediaType"], artifact::OCI_INDEX);
        assert_eq!(after["annotations"], before["annotations"]);
        assert_eq!(after["manifests"].as_array().unwrap().len(), 3);
        for at in 0..2 {
            let entry = &after["manifests"][at];
            assert_eq!(entry["platform"], before["manifests"][at]["platform"]);
            assert_eq!(entry["mediaType"], artifact::OCI_MANIFEST);
            let name = ManifestName::Digest(entry["digest"].as_str().unwrap().parse().unwrap());
            let (manifest, _) = target.manifest_of(&name).await;
            assert_eq!(entry["size"], manifest.bytes.len());
        }
        // The attestation itself is unchanged, and still belongs to the first image.
        let mut expected = before["manifests"][2].clone();
        expected["annotations"]["vnd.docker.reference.digest"] = after["manifests"][0]["digest"].clone();
        assert_eq!(after["manifests"][2], expected);
        let attestation = before["manifests"][2]["digest"].as_str().unwrap();
        assert_eq!(target.blob(attestation), source.blob(attestation));
        assert_eq!(report.copied_manifests, [attestation]);
        let platforms: Vec<_> = report
            .images
            .iter()
            .map(|image| image.platform.as_deref().unwrap())
            .collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
        // The base layer is in both images.
        assert_eq!(report.totals.layers, 2);
        assert_sound(&target.source(), Some(&source.source())).await;
    });
}

#[test]
fn one_platform_can_be_chosen() {
    run(async {
        let (source, _) = multi_platform().await;
        let target = Place::new();
        let chosen = |text: &str| ConvertOptions {
            platform: Some(text.parse().unwrap()),
            ..options(2)
        };
        let report = convert(
            &source.source(),
            &target.target(),
            &chosen("linux/arm64"),
            &Silent,
        )
        .await
        .unwrap();
        assert_eq!(report.images.len(), 1);
        let (stored, manifest) = target.manifest().await;
        assert_eq!(stored.media_type, artifact::OCI_MANIFEST);
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
        let refused = convert(
            &source.source(),
            &Place::new().target(),
            &chosen("linux/s390x"),
            &Silent,
        )
        .await;
        assert!(refused.unwrap_err().to_string().contains("linux/s390x"));
        // A single image of another platform is not what was asked for.
        let refused = convert(
            &target.source(),
            &Place::new().target(),
            &chosen("linux/amd64"),
            &Silent,
        )
        .await;
        assert!(refused.is_err());
    });
}

#[test]
fn what_is_no_image_is_refused_with_the_reason() {
    run(async {
        let place = Place::new();
        let config = place.put_blob(b"{}").await;
        let chart = json!({
            "schemaVersion": 2, "mediaType": artifact::OCI_MANIFEST, "layers": [],
            "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": config.to_string(), "size": 2},
        });
        place.put_document(Some("latest"), &chart).await;
        let error = try_convert(&place, &Place::new()).await.unwrap_err();
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains("helm"), "{text}");
    });
}

#[test]
fn options_out_of_bounds_are_refused() {
    run(async {
        let source = Place::with_layers(&[]).await;
        for (level, chunk_size) in [(0, 65536), (20, 65536), (3, 100_000), (3, 8192), (3, 8 << 20)] {
            let options = ConvertOptions {
                level,
                chunk_size,
                ..ConvertOptions::default()
            };
            assert!(
                convert(&source.source(), &Place::new().target(), &options, &Silent)
                    .await
                    .is_err()
            );
        }
        convert(
            &source.source(),
            &Place::new().target(),
            &ConvertOptions::default(),
            &Silent,
        )
        .await
        .unwrap();
    });
}
