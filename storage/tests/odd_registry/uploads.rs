//! What becomes of uploads.

use super::*;

/// An upload that fails twice in the middle of a part: once with half of it kept, once with nothing.
#[derive(Default)]
struct FailingUpload {
    kept: Vec<u8>,
    patches: usize,
    finished: Option<Vec<u8>>,
}

impl FailingUpload {
    fn serve(&mut self, asked: &Asked) -> Answer {
        let location = format!("/v2/a/b/blobs/uploads/1?state={}", self.kept.len());
        let end = self.kept.len().saturating_sub(1);
        let range = format!("0-{end}");
        let headers = [
            (header::LOCATION, location.as_str()),
            (header::RANGE, range.as_str()),
        ];
        match asked.method {
            Method::HEAD => status(404, &[]),
            Method::POST => status(202, &headers[..1]),
            Method::GET => status(204, &headers),
            Method::PATCH => self.patch(asked),
            Method::PUT => {
                self.finished = Some(std::mem::take(&mut self.kept));
                status(201, &[])
            }
            _ => status(405, &[]),
        }
    }

    fn patch(&mut self, asked: &Asked) -> Answer {
        self.patches += 1;
        let begin = asked
            .header(header::CONTENT_RANGE)
            .and_then(|range| range.split('-').next());
        if begin != Some(&self.kept.len().to_string()) {
            return status(416, &[]);
        }
        match self.patches {
            2 => {
                self.kept.extend_from_slice(&asked.body[..asked.body.len() / 2]);
                status(500, &[])
            }
            3 => status(502, &[]),
            _ => {
                self.kept.extend_from_slice(&asked.body);
                let location = format!("/v2/a/b/blobs/uploads/1?state={}", self.kept.len());
                status(202, &[(header::LOCATION, &location)])
            }
        }
    }
}

#[tokio::test]
async fn an_upload_that_breaks_is_resumed_where_the_registry_is() {
    let upload = Arc::new(std::sync::Mutex::new(FailingUpload::default()));
    let served = upload.clone();
    let registry = OddRegistry::start(move |asked| served.lock().expect("no panic").serve(asked)).await;
    let bytes = blob_of((20 << 20) + 3);
    let mut writer = repository(&registry).begin_blob().await.expect("begun");
    for piece in bytes.chunks(3 << 20) {
        writer.write(bytes.slice_ref(piece)).await.expect("taken");
    }
    writer.finish(describe(&bytes).digest).await.expect("finished");
    let upload = upload.lock().expect("no panic");
    assert!(
        upload.finished.as_deref() == Some(&bytes[..]),
        "the bytes arrived whole and in order"
    );
    assert_eq!(upload.patches, 5, "three parts, two of them resumed");
    let last = registry.asked("PUT").remove(0);
    assert!(
        last.target.contains("state=20971523&digest=sha256"),
        "{}",
        last.target
    );
}

#[tokio::test]
async fn an_upload_is_given_up_when_dropped_or_when_the_blob_is_there_already() {
    for is_there in [false, true] {
        let registry = OddRegistry::start(move |asked| match asked.method {
            Method::HEAD if is_there => status(200, &[]),
            Method::HEAD => status(404, &[]),
            _ => status(202, &[(header::LOCATION, "/v2/a/b/blobs/uploads/7")]),
        })
        .await;
        let mut writer = repository(&registry).begin_blob().await.expect("begun");
        let bytes = blob_of(9 << 20);
        writer.write(bytes.clone()).await.expect("taken");
        match is_there {
            true => writer.finish(describe(&bytes).digest).await.expect("it is there"),
            false => drop(writer),
        }
        let begun = Instant::now();
        while registry.asked("DELETE /v2/a/b/blobs/uploads/7").is_empty() {
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "the upload is not given up"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(registry.asked("PUT").is_empty());
    }
}

#[tokio::test]
async fn a_registry_that_wants_longer_parts_gets_them() {
    let registry = OddRegistry::start(|asked| match asked.method {
        Method::HEAD => status(404, &[]),
        Method::PUT => status(201, &[]),
        _ => status(
            202,
            &[
                (header::LOCATION, "/v2/a/b/blobs/uploads/7"),
                (HeaderName::from_static("oci-chunk-min-length"), "10000000"),
            ],
        ),
    })
    .await;
    let bytes = blob_of(25 << 20);
    let mut writer = repository(&registry).begin_blob().await.expect("begun");
    writer.write(bytes.clone()).await.expect("taken");
    writer.finish(describe(&bytes).digest).await.expect("finished");
    let lengths: Vec<usize> = registry
        .asked("PATCH")
        .iter()
        .map(|asked| asked.body.len())
        .collect();
    assert_eq!(lengths, [10_000_000, 10_000_000, (25 << 20) - 20_000_000]);
}

#[tokio::test]
async fn a_blob_is_taken_over_where_the_registry_can() {
    let mounts = OddRegistry::start(|_| status(201, &[])).await;
    let digest = BlobDigest(Digest::of(b"x"));
    assert!(
        repository(&mounts)
            .mount_blob(&digest, "other/repo")
            .await
            .expect("asked")
    );
    let asked = &mounts.asked("POST")[0].target;
    assert!(
        asked.contains(&format!("mount=sha256%3A{}&from=other%2Frepo", digest.0.to_hex())),
        "{asked}"
    );
    let uploads = OddRegistry::start(|_| status(202, &[(header::LOCATION, "/v2/a/b/blobs/uploads/9")])).await;
    assert!(
        !repository(&uploads)
            .mount_blob(&digest, "other/repo")
            .await
            .expect("asked")
    );
    assert_eq!(uploads.asked("DELETE /v2/a/b/blobs/uploads/9").len(), 1);
    let refuses = OddRegistry::start(|_| status(405, &[])).await;
    assert!(
        !repository(&refuses)
            .mount_blob(&digest, "other/repo")
            .await
            .expect("asked")
    );
}
