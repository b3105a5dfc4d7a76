//! A damaged source is an error that names the layer, and leaves nothing in the target.

use std::error::Error as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use sluice_converter::{Error, Silent, Source, convert};
use sluice_format::{BlobDigest, Digest, artifact};
use sluice_storage::{
    Blob, ByteStream, Descriptor, Error as StorageError, ErrorKind, Layout, Manifest, ManifestName,
    Repository,
};

use crate::images::*;

fn full_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn a_flipped_byte_anywhere_is_an_error_and_leaves_nothing() {
    run(async {
        let plain = Tar::new().file("a", b"some content").finish();
        for (media_type, stored) in [
            (artifact::OCI_LAYER_GZIP, gzip(&plain)),
            (artifact::OCI_LAYER_ZSTD, zstd(&plain)),
        ] {
            let source = Place::with_layers(&[Layer::new(media_type, stored.clone(), &plain)]).await;
            let digest = Digest::of(&stored).to_string();
            let target = Place::new();
            for at in 0..stored.len() {
                let mut flipped = stored.clone();
                flipped[at] ^= 0x10;
                std::fs::write(source.blob_path(&digest), &flipped).unwrap();
                let error = try_convert(&source, &target)
                    .await
                    .expect_err(&format!("byte {at}"));
                assert!(full_text(&error).contains(&digest), "{}", full_text(&error));
                assert!(target.is_untouched().await, "byte {at}");
            }
            std::fs::write(source.blob_path(&digest), &stored).unwrap();
            try_convert(&source, &target).await.unwrap();
        }
    });
}

#[test]
fn a_layer_that_was_cut_before_it_was_pushed_is_an_error() {
    run(async {
        let plain = base_tar();
        for stored in [gzip(&plain), zstd(&plain)] {
            for cut in [1, 4, 7, stored.len() / 2] {
                let layer = Layer::new(
                    artifact::OCI_LAYER_GZIP,
                    stored[..stored.len() - cut].to_vec(),
                    &plain,
                );
                let source = Place::with_layers(&[layer]).await;
                let target = Place::new();
                let error = try_convert(&source, &target).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", full_text(&error));
                assert!(target.is_untouched().await);
            }
        }
    });
}

#[test]
fn a_blob_of_another_length_is_an_error() {
    run(async {
        let stored = gzip(&base_tar());
        let source = Place::with_layers(&[Layer::gzip(&base_tar())]).await;
        let path = source.blob_path(&Digest::of(&stored).to_string());
        for changed in [
            stored[..stored.len() - 100].to_vec(),
            [&stored[..], b"more"].concat(),
        ] {
            std::fs::write(&path, changed).unwrap();
            let target = Place::new();
            assert!(try_convert(&source, &target).await.is_err());
            assert!(target.is_untouched().await);
        }
    });
}

#[test]
fn a_wrong_diff_id_is_corrupt_with_both_values() {
    run(async {
        let mut layer = Layer::gzip(&base_tar());
        layer.diff_id = Digest::of(b"other");
        let source = Place::with_layers(&[layer]).await;
        let target = Place::new();
        let text = full_text(&try_convert(&source, &target).await.unwrap_err());
        assert!(text.contains("DiffID"), "{text}");
        assert!(text.contains(&Digest::of(b"other").to_string()), "{text}");
        assert!(text.contains(&Digest::of(&base_tar()).to_string()), "{text}");
        assert!(target.is_untouched().await);
    });
}

#[test]
fn a_config_with_another_number_of_layers_is_refused() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar())]).await;
        let (_, mut manifest) = source.manifest().await;
        let layer = manifest["layers"][0].clone();
        manifest["layers"].as_array_mut().unwrap().push(layer);
        source.put_document(Some("latest"), &manifest).await;
        let text = full_text(&try_convert(&source, &Place::new()).await.unwrap_err());
        assert!(text.contains("names 1 layers, the manifest 2"), "{text}");
    });
}

#[test]
fn a_hard_link_to_nothing_is_an_error_that_names_it() {
    run(async {
        let linked = Tar::new().hard_link("link", "bin/tool").finish();
        let good = Place::with_layers(&[Layer::gzip(&base_tar()), Layer::gzip(&linked)]).await;
        converted(&good).await;
        let bad = Place::with_layers(&[Layer::gzip(&linked)]).await;
        let target = Place::new();
        let text = full_text(&try_convert(&bad, &target).await.unwrap_err());
        assert!(text.contains("bin/tool"), "{text}");
        assert!(target.layout.names().unwrap().is_empty());
    });
}

#[test]
fn what_is_not_a_tar_is_an_error() {
    run(async {
        for junk in [text(5000, 9), b"BZh91AY&SY".to_vec(), b"\xfd7zXZ\0\0".to_vec()] {
            let source =
                Place::with_layers(&[Layer::new(artifact::OCI_LAYER_TAR, junk.clone(), &junk)]).await;
            let target = Place::new();
            assert!(try_convert(&source, &target).await.is_err());
            assert!(target.is_untouched().await);
        }
    });
}

/// How the layers of a [`Faulty`] repository misbehave.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The stream ends in an error after so many bytes.
    BreaksAfter(usize),
    /// The stream gives so many bytes and then nothing at all.
    StallsAfter(usize),
}

/// A layout whose blobs cannot be read to their end.
#[derive(Debug)]
struct Faulty(Layout, Fault);

impl Repository for Faulty {
    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, StorageError>> {
        self.0.fetch_manifest(name)
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        Arc::new(FaultyBlob(self.0.open_blob(descriptor), self.1))
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, StorageError>> {
        self.0.fetch_blob(descriptor, max_len)
    }
}

#[derive(Debug)]
struct FaultyBlob(Arc<dyn Blob>, Fault);

impl Blob for FaultyBlob {
    fn digest(&self) -> BlobDigest {
        self.0.digest()
    }

    fn stored_len(&self) -> u64 {
        self.0.stored_len()
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, StorageError>> {
        self.0.read_range(stored)
    }

    fn stream(&self, _stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, StorageError>> {
        Box::pin(async move {
            let (Fault::BreaksAfter(len) | Fault::StallsAfter(len)) = self.1;
            let start = stream::iter([self.0.read_range(0..len as u64).await]);
            Ok(match self.1 {
                Fault::BreaksAfter(_) => {
                    let error = StorageError::new(ErrorKind::Unavailable, "the line went dead");
                    start.chain(stream::iter([Err(error)])).boxed()
                }
                Fault::StallsAfter(_) => start.chain(stream::pending()).boxed(),
            })
        })
    }

    fn upstream(&self) -> Arc<str> {
        self.0.upstream()
    }
}

async fn faulty(fault: Fault) -> (Place, Source) {
    let place = Place::with_layers(&[Layer::gzip(&base_tar())]).await;
    let name = ManifestName::Tag("latest".to_owned());
    let source = Source::new("faulty", Arc::new(Faulty(place.layout.clone(), fault)), name);
    (place, source)
}

#[test]
fn a_broken_transfer_is_the_cause_that_is_reported() {
    run(async {
        let (_place, source) = faulty(Fault::BreaksAfter(100_000)).await;
        let target = Place::new();
        let error = convert(&source, &target.target(), &options(2), &Silent)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", full_text(&error));
        assert!(target.is_untouched().await);
    });
}

#[test]
fn a_conversion_that_is_dropped_leaves_nothing() {
    run(async {
        let (_place, source) = faulty(Fault::StallsAfter(100_000)).await;
        let target = Place::new();
        let place = target.target();
        let options = options(2);
        let conversion = convert(&source, &place, &options, &Silent);
        assert!(
            tokio::time::timeout(Duration::from_millis(300), conversion)
                .await
                .is_err()
        );
        // The writer removes its file on a thread of its own.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(target.is_untouched().await);
    });
}

#[test]
fn one_bad_layer_stops_the_others() {
    run(async {
        let mut layers = vec![Layer::gzip(&base_tar())];
        layers[0].diff_id = Digest::of(b"other");
        layers.extend((0..6).map(|seed| Layer::gzip(&Tar::new().file("x", &text(9000, seed)).finish())));
        let source = Place::with_layers(&layers).await;
        let target = Place::new();
        let bad = Digest::of(&layers[0].stored).to_string();
        let error = try_convert(&source, &target).await.unwrap_err();
        assert!(error.to_string().contains(&bad), "{error}");
        assert!(target.layout.names().unwrap().is_empty());
        // Blobs that were finished before may stay; nothing half written does.
        assert!(
            target.blob_names().iter().all(|name| name.len() == 64),
            "{:?}",
            target.blob_names()
        );
    });
}
