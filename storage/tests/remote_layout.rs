//! Layouts on web servers and in object storage give the same bytes as the directory that was copied there.

#[path = "support/odd.rs"]
mod odd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{Method, header};
use base64::Engine as _;
use bytes::Bytes;
use odd::{Answer, Asked, OddRegistry, answer, broken_part, part, status};
use sluice_format::artifact::{OCI_LAYER_ZSTD, OCI_MANIFEST};
use sluice_format::{BlobDigest, Digest};
use sluice_storage::layout::Service;
use sluice_storage::testing::conformance::check_blob;
use sluice_storage::testing::sample::pseudo_random;
use sluice_storage::{
    Descriptor, ErrorKind, ImageName, Layout, ManifestName, RegistryClient, RegistryOptions, RemoteLayout,
    RemotePlace, Repository, WritableRepository,
};

fn client() -> Arc<RegistryClient> {
    client_with(Some("/nonexistent/auth.json".into()))
}

fn client_with(auth_file: Option<PathBuf>) -> Arc<RegistryClient> {
    let options = RegistryOptions {
        first_retry_delay: Duration::from_millis(5),
        auth_file,
        ..RegistryOptions::default()
    };
    RegistryClient::new(options)
}

/// A layout directory with one blob and one manifest under two tags.
struct Sample {
    dir: tempfile::TempDir,
    blob: Bytes,
    manifest: Bytes,
}

impl Sample {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::create(dir.path()).expect("a layout");
        let blob = Bytes::from(pseudo_random(300_000));
        let mut writer = layout.begin_blob().await.expect("begun");
        writer.write(blob.clone()).await.expect("taken");
        writer.finish(describe(&blob).digest).await.expect("stored");
        let manifest = Bytes::from_static(b"{\"schemaVersion\":2,\"layers\":[]}");
        for tag in ["one", "two"] {
            let name = ManifestName::Tag(tag.to_owned());
            let stored = layout.put_manifest(&name, OCI_MANIFEST, manifest.clone()).await;
            stored.expect("stored");
        }
        Self { dir, blob, manifest }
    }

    /// Checks everything that a reader can ask of the copy at `layout`.
    async fn check(&self, layout: &RemoteLayout) {
        let tags: Vec<_> = layout
            .names()
            .await
            .expect("listed")
            .into_iter()
            .map(|entry| entry.tag)
            .collect();
        assert_eq!(tags, [Some("one".to_owned()), Some("two".to_owned())]);
        let error = layout.manifest_name(None).await.expect_err("there are two");
        assert!(error.to_string().contains("one, two"), "{error}");
        for name in [
            ManifestName::Tag("two".to_owned()),
            ManifestName::Digest(Digest::of(&self.manifest)),
        ] {
            let found = layout.fetch_manifest(&name).await.expect("found");
            assert_eq!(
                (found.media_type.as_str(), &found.bytes),
                (OCI_MANIFEST, &self.manifest)
            );
        }
        for absent in [
            ManifestName::Tag("three".to_owned()),
            ManifestName::Digest(Digest::of(b"absent")),
        ] {
            let error = layout.fetch_manifest(&absent).await.expect_err("absent");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        }
        let descriptor = describe(&self.blob);
        check_blob(layout.open_blob(&descriptor).as_ref(), &self.blob).await;
        let fetched = layout.fetch_blob(&descriptor, 300_000).await.expect("fetched");
        assert!(fetched == self.blob);
        let error = layout
            .fetch_blob(&descriptor, 299_999)
            .await
            .expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let absent = layout.open_blob(&describe(b"absent"));
        let error = absent.read_range(0..1).await.expect_err("absent");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}

fn describe(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: OCI_LAYER_ZSTD.to_owned(),
        digest: BlobDigest(Digest::of(bytes)),
        size: bytes.len() as u64,
        annotations: Default::default(),
    }
}

/// What a static server answers for the files below `root`, which it shows below `prefix`.
fn serve_file(root: &Path, prefix: &str, asked: &Asked) -> Answer {
    let path = asked.target.split('?').next().unwrap_or_default();
    let Some(path) = path.strip_prefix(prefix) else {
        return status(404, &[]);
    };
    let Ok(bytes) = std::fs::read(root.join(path)) else {
        return status(404, &[]);
    };
    if asked.method == Method::HEAD {
        return answer(200, &[(header::CONTENT_LENGTH, &bytes.len().to_string())], "");
    }
    part(&bytes.into(), asked)
}

fn web(server: &OddRegistry, path: &str) -> RemotePlace {
    RemotePlace::new(Service::Http, &format!("{}{path}", server.address)).expect("a place")
}

#[tokio::test]
async fn a_layout_on_a_web_server_keeps_the_contracts() {
    let sample = Sample::new().await;
    let root = sample.dir.path().to_owned();
    let server = OddRegistry::start(move |asked| serve_file(&root, "/images/py/", asked)).await;
    let layout = RemoteLayout::open(&web(&server, "/images/py"), &client()).expect("opened");
    sample.check(&layout).await;
    let shown = format!("oci+http://{}/images/py", server.address);
    assert_eq!(layout.location(), shown);
    let name: ImageName = format!("{shown}:one").parse().expect("a name");
    assert!(matches!(name, ImageName::RemoteLayout { .. }));
    for asked in server.asked("GET") {
        assert_eq!(asked.header(header::AUTHORIZATION), None);
    }
}

#[tokio::test]
async fn a_web_server_that_fails_for_a_moment_is_asked_again_where_it_broke() {
    let sample = Sample::new().await;
    let (blob, root) = (sample.blob.clone(), sample.dir.path().to_owned());
    let count = AtomicUsize::new(0);
    let server = OddRegistry::start(move |asked| match count.fetch_add(1, Ordering::SeqCst) {
        0 => status(503, &[]),
        2 => broken_part(&blob, asked, 100_000),
        3 => status(500, &[]),
        _ => serve_file(&root, "/", asked),
    })
    .await;
    let layout = RemoteLayout::open(&web(&server, ""), &client()).expect("opened");
    let name = ManifestName::Digest(Digest::of(&sample.manifest));
    layout.fetch_manifest(&name).await.expect("asked again");
    let read = layout
        .open_blob(&describe(&sample.blob))
        .read_range(0..300_000)
        .await;
    assert!(read.expect("resumed") == sample.blob);
    assert_eq!(server.asked("GET")[4].range(), Some((100_000, 299_999)));
}

#[tokio::test]
async fn a_web_server_gets_a_password_when_it_asks_for_one() {
    let sample = Sample::new().await;
    let root = sample.dir.path().to_owned();
    let secret = base64::engine::general_purpose::STANDARD.encode("user:secret");
    let expected = format!("Basic {secret}");
    let server = OddRegistry::start(move |asked| match asked.header(header::AUTHORIZATION) {
        Some(shown) if shown == expected => serve_file(&root, "/", asked),
        _ => status(401, &[(header::WWW_AUTHENTICATE, "Basic realm=\"files\"")]),
    })
    .await;
    let auth_file = sample.dir.path().join("auth.json");
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"{secret}"}}}}}}"#, server.address);
    std::fs::write(&auth_file, text).expect("written");
    let layout = RemoteLayout::open(&web(&server, ""), &client_with(Some(auth_file))).expect("opened");
    sample.check(&layout).await;
    let outside = RemoteLayout::open(&web(&server, ""), &client()).expect("opened");
    let error = outside.names().await.expect_err("kept out");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn bytes_that_do_not_match_are_refused() {
    let sample = Sample::new().await;
    let server = OddRegistry::start(|_| answer(200, &[], "{}")).await;
    let layout = RemoteLayout::open(&web(&server, ""), &client()).expect("opened");
    let name = ManifestName::Digest(Digest::of(&sample.manifest));
    let error = layout.fetch_manifest(&name).await.expect_err("another document");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let nonsense = OddRegistry::start(|_| answer(200, &[], "nonsense")).await;
    let layout = RemoteLayout::open(&web(&nonsense, ""), &client()).expect("opened");
    let error = layout.names().await.expect_err("no list");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[cfg(not(feature = "object-storage"))]
#[tokio::test]
async fn object_storage_that_is_not_built_in_says_so() {
    let place = RemotePlace::new(Service::S3, "bucket/prefix").expect("a place");
    let error = RemoteLayout::open(&place, &client()).expect_err("not built in");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("object-storage"), "{error}");
}

#[cfg(feature = "object-storage")]
mod object_storage {
    use opendal::Operator;
    use opendal::services::Fs;

    use super::*;

    /// Set in the process that reads from the look-alike of S3.
    const PLACE: &str = "SLUICE_TEST_PLACE";
    const LAYOUT: &str = "SLUICE_TEST_LAYOUT";

    #[tokio::test]
    async fn a_layout_behind_an_operator_keeps_the_contracts() {
        let sample = Sample::new().await;
        let root = sample.dir.path().to_str().expect("text");
        let operator = Operator::new(Fs::default().root(root)).expect("an operator");
        let layout = RemoteLayout::of_operator(operator, "fs", &client());
        sample.check(&layout).await;
    }

    /// Credentials and endpoint come from the environment, so the reader is another process: the test below.
    #[tokio::test]
    async fn a_layout_in_s3_keeps_the_contracts() {
        let sample = Sample::new().await;
        let root = sample.dir.path().to_owned();
        let count = AtomicUsize::new(0);
        let server = OddRegistry::start(move |asked| {
            let shown = asked.header(header::AUTHORIZATION).unwrap_or_default();
            if !shown.starts_with("AWS4-HMAC-SHA256 Credential=AKID/") {
                return status(403, &[]);
            }
            match count.fetch_add(1, Ordering::SeqCst) % 7 {
                3 => status(503, &[]),
                _ => serve_file(&root, "/bucket/some/prefix/", asked),
            }
        })
        .await;
        let reader = tokio::process::Command::new(std::env::current_exe().expect("a path"))
            .args([
                "--exact",
                "object_storage::the_environment_leads_to_the_bucket",
                "--ignored",
            ])
            .env(PLACE, "bucket/some/prefix")
            .env(LAYOUT, sample.dir.path())
            .env("AWS_ENDPOINT_URL", format!("http://{}", server.address))
            .env("AWS_REGION", "eu-1")
            .env("AWS_ACCESS_KEY_ID", "AKID")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("NO_PROXY", "127.0.0.1")
            .output()
            .await
            .expect("run");
        let text = String::from_utf8_lossy(&reader.stdout).into_owned();
        assert!(
            reader.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&reader.stderr)
        );
        assert!(server.asked("GET /bucket/some/prefix/blobs/sha256/").len() > 20);
    }

    #[tokio::test]
    #[ignore = "run by a_layout_in_s3_keeps_the_contracts with an environment of its own"]
    async fn the_environment_leads_to_the_bucket() {
        // A run of everything that is ignored starts it without that environment.
        if std::env::var(PLACE).is_err() {
            return;
        }
        let variable = |name| std::env::var(name).expect("set by the other test");
        let place = RemotePlace::new(Service::S3, &variable(PLACE)).expect("a place");
        let layout = RemoteLayout::open(&place, &client()).expect("opened");
        let original = Layout::open(variable(LAYOUT)).expect("the original");
        let name = ManifestName::Tag("one".to_owned());
        let manifest = original.fetch_manifest(&name).await.expect("found").bytes;
        let blob = Bytes::from(pseudo_random(300_000));
        let sample = Sample {
            dir: tempfile::tempdir().expect("a temporary directory"),
            blob,
            manifest,
        };
        sample.check(&layout).await;
    }
}
