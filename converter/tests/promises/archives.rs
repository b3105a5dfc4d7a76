//! Images in tars are read like those in layouts, and come out of them whole.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use sluice_converter::{Silent, Source, convert};
use sluice_format::Digest;
use sluice_storage::Layout;

use crate::images::*;

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What `docker save` writes: legacy layout with a repeated layer as symbolic link.
fn docker_archive(dir: &Path, gzip_second: bool) -> String {
    let (base, upper) = (base_tar(), upper_tar());
    let diff_ids = [&base, &upper, &base].map(|tar| Digest::of(tar).to_string());
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]}, "docker_version": "20.10",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let listed = json!([
        {"Config": "config.json", "RepoTags": ["example/app:1"], "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]},
        {"Config": "config.json", "RepoTags": ["other:2"], "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]},
    ])
    .to_string();
    let upper = if gzip_second { gzip(&upper) } else { upper };
    let archive = Tar::new()
        .directory("a/")
        .file("a/layer.tar", &base)
        .file("b/layer.tar", &upper)
        .symlink("c/layer.tar", "../a/layer.tar")
        .file("config.json", config.as_bytes())
        .file("manifest.json", listed.as_bytes())
        .finish();
    let path = dir.join("saved.tar");
    fs::write(&path, archive).unwrap();
    format!("docker-archive:{}", shown(&path))
}

async fn sound_conversion(source: &Source) -> Digest {
    let target = Place::new();
    let report = convert(source, &target.target(), &options(2), &Silent)
        .await
        .unwrap();
    assert_sound(&target.source(), Some(source)).await;
    report.digest
}

#[test]
fn a_docker_archive_converts_with_its_image_id() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let mut digests = Vec::new();
        for gzip_second in [false, true] {
            let name = docker_archive(dir.path(), gzip_second);
            let source = open_source(&format!("{name}:example/app:1")).await.unwrap();
            digests.push(sound_conversion(&source).await);
        }
        // The layer's compression in the archive leaves no trace.
        assert_eq!(digests[0], digests[1]);
    });
}

#[test]
fn a_compressed_docker_archive_is_the_same_image() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let name = docker_archive(dir.path(), false);
        let plain = sound_conversion(&open_source(&format!("{name}:other:2")).await.unwrap()).await;
        let path = dir.path().join("saved.tar");
        let bytes = fs::read(&path).unwrap();
        for compressed in [gzip(&bytes), zstd(&bytes)] {
            fs::write(&path, compressed).unwrap();
            let source = open_source(&format!("{name}:other:2")).await.unwrap();
            assert_eq!(sound_conversion(&source).await, plain);
        }
    });
}

#[test]
fn an_archive_of_several_images_asks_which() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let name = docker_archive(dir.path(), false);
        let text = open_source(&name).await.unwrap_err().to_string();
        assert!(text.contains("example/app:1, other:2"), "{text}");
        let text = open_source(&format!("{name}:none:1"))
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains("example/app:1"), "{text}");
    });
}

#[test]
fn an_oci_archive_round_trips() {
    run(async {
        let place = Place::with_layers(&[Layer::gzip(&base_tar()), Layer::gzip(&upper_tar())]).await;
        let (_, expected) = converted(&place).await;
        let dir = tempfile::tempdir().unwrap();
        let name = format!("oci-archive:{}", shown(&dir.path().join("image.tar")));
        for name in [name.clone(), format!("{name}:v1")] {
            let target = create_target(&name).await.unwrap();
            let report = convert(&place.source(), &target, &options(2), &Silent)
                .await
                .unwrap();
            assert_eq!(report.digest, expected.digest);
            let source = open_source(&name).await.unwrap();
            assert_eq!(sound_conversion(&source).await, expected.digest);
        }
        // Nothing but the archive is left beside it.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let listed = Command::new("tar")
            .arg("-tf")
            .arg(dir.path().join("image.tar"))
            .output()
            .unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(
            listed.starts_with("oci-layout\nindex.json\nblobs/\nblobs/sha256/\n"),
            "{listed}"
        );
    });
}

#[test]
fn an_oci_archive_that_fails_is_not_there() {
    run(async {
        let mut layer = Layer::gzip(&base_tar());
        layer.diff_id = Digest::of(b"other");
        let place = Place::with_layers(&[layer]).await;
        let dir = tempfile::tempdir().unwrap();
        let target = create_target(&format!("oci-archive:{}", shown(&dir.path().join("x.tar"))))
            .await
            .unwrap();
        assert!(
            convert(&place.source(), &target, &options(2), &Silent)
                .await
                .is_err()
        );
        drop(target);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    });
}

#[test]
fn an_untagged_layout_target_lists_its_image() {
    run(async {
        let place = Place::with_layers(&[Layer::gzip(&base_tar())]).await;
        let dir = tempfile::tempdir().unwrap();
        let name = format!("oci:{}", shown(&dir.path().join("new")));
        let target = create_target(&name).await.unwrap();
        let report = convert(&place.source(), &target, &options(2), &Silent)
            .await
            .unwrap();
        assert_eq!(
            sound_conversion(&open_source(&name).await.unwrap()).await,
            report.digest
        );
    });
}

#[test]
fn a_new_layout_that_gets_no_image_is_taken_away_again() {
    run(async {
        let mut layer = Layer::gzip(&base_tar());
        layer.diff_id = Digest::of(b"other");
        let place = Place::with_layers(&[layer]).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let target = create_target(&format!("oci:{}", shown(&path))).await.unwrap();
        assert!(
            convert(&place.source(), &target, &options(2), &Silent)
                .await
                .is_err()
        );
        drop(target);
        assert!(!path.exists());
        // One that was there before is not touched.
        drop(Layout::create(&path).unwrap());
        drop(create_target(&format!("oci:{}", shown(&path))).await.unwrap());
        assert!(Layout::open(&path).is_ok());
    });
}

#[test]
fn names_that_cannot_be_written_to_are_refused() {
    run(async {
        let digest = Digest::of(b"");
        for name in [
            "docker-archive:x.tar".to_owned(),
            "oci-archive:-".to_owned(),
            format!("oci:dir@{digest}"),
            format!("docker://localhost:1/a@{digest}"),
        ] {
            assert!(create_target(&name).await.is_err(), "{name}");
        }
    });
}

#[test]
fn a_file_that_is_no_archive_is_refused() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for junk in [&b"hello"[..], &[b'x'; 4000], &Tar::new().file("a", b"b").finish()] {
            fs::write(&path, junk).unwrap();
            for transport in ["oci-archive", "docker-archive"] {
                assert!(
                    open_source(&format!("{transport}:{}", shown(&path)))
                        .await
                        .is_err()
                );
            }
        }
    });
}
