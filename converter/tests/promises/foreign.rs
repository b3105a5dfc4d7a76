//! Layers in the lazy formats of others are ordinary gzip and zstd streams, and convert like those: same plain layer, nothing left of the
//! old layout.

use serde_json::json;
use sluice_format::artifact::{self, INDEX_ANNOTATION};
use sluice_format::layer_index::parse_footer;

use crate::images::*;

/// Where the plain layer is cut into members or frames: anywhere will do.
const CUT: usize = 700;

/// A tar with the table of contents that eStargz appends as a file.
fn estargz_tar() -> Vec<u8> {
    let toc = json!({"version": 1, "entries": [{"name": "usr/", "type": "dir"}]}).to_string();
    Tar::new()
        .directory("usr/")
        .file("usr/text", &text(3000, 1))
        .file(".no.prefetch.landmark", b"\x0f")
        .file("stargz.index.json", toc.as_bytes())
        .finish()
}

/// The empty gzip member that ends an eStargz blob and tells where its table is.
fn estargz_footer(toc_off: usize) -> Vec<u8> {
    let told = format!("{toc_off:016x}STARGZ");
    let mut footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff".to_vec();
    footer.extend((told.len() as u16 + 4).to_le_bytes());
    footer.extend(b"SG");
    footer.extend((told.len() as u16).to_le_bytes());
    footer.extend(told.as_bytes());
    // One empty stored block, and the checksum and length of nothing.
    footer.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
    assert_eq!(footer.len(), 51);
    footer
}

fn estargz(plain: &[u8]) -> Layer {
    let (front, back) = plain.split_at(CUT);
    let (front, back) = (gzip(front), gzip(back));
    let footer = estargz_footer(front.len());
    let mut layer = Layer::new(artifact::OCI_LAYER_GZIP, [front, back, footer].concat(), plain);
    layer.annotations = json!({
        "containerd.io/snapshot/stargz/toc.digest": format!("sha256:{}", "0".repeat(64)),
        "io.containers.estargz.uncompressed-size": plain.len().to_string(),
    });
    layer
}

fn skippable(payload: &[u8]) -> Vec<u8> {
    let mut frame = 0x184D_2A50_u32.to_le_bytes().to_vec();
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(payload);
    frame
}

/// As Podman writes it: frames, a compressed table, a compressed tar-split, and a footer.
fn zstd_chunked(plain: &[u8]) -> Layer {
    let (front, back) = plain.split_at(CUT);
    let toc = zstd(br#"{"version":1,"entries":[]}"#);
    let mut footer = vec![0; 56];
    footer.extend(b"GNUlInUx");
    let stored = [
        zstd(front),
        zstd(back),
        skippable(&toc),
        skippable(&zstd(b"tar-split")),
        skippable(&footer),
    ];
    let mut layer = Layer::new(artifact::OCI_LAYER_ZSTD, stored.concat(), plain);
    layer.annotations = json!({
        "io.github.containers.zstd-chunked.manifest-checksum": format!("sha256:{}", "0".repeat(64)),
        "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1",
    });
    layer
}

#[test]
fn estargz_and_zstd_chunked_layers_convert_like_others() {
    run(async {
        let source = Place::with_layers(&[estargz(&estargz_tar()), zstd_chunked(&base_tar())]).await;
        let (target, report) = converted(&source).await;
        assert_sound(&target.source(), Some(&source.source())).await;
        assert!(
            report.images[0]
                .layers
                .iter()
                .all(|layer| layer.warnings.is_empty())
        );
        let (_, manifest) = target.manifest().await;
        for (layer, plain) in [(0, estargz_tar()), (1, base_tar())] {
            let layer = &manifest["layers"][layer];
            let keys: Vec<_> = layer["annotations"].as_object().unwrap().keys().collect();
            assert_eq!(keys, [INDEX_ANNOTATION]);
            let stored = target.blob(layer["digest"].as_str().unwrap());
            assert_eq!(unzstd(&stored), plain);
            let tail = &stored[stored.len() - sluice_format::layer_index::FOOTER_LEN as usize..];
            assert!(parse_footer(tail, stored.len() as u64).unwrap().is_some());
        }
    });
}
