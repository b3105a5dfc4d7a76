//! Mirrors from `hosts.toml`: who is asked, with what, and what happens when one of them fails in the middle of a read.

#[path = "support/odd.rs"]
mod odd;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, Method, header};
use base64::Engine as _;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use odd::{Answer, Asked, OddRegistry, answer, broken_part, part, status};
use sluice_format::artifact::{OCI_LAYER_ZSTD, OCI_MANIFEST};
use sluice_format::{BlobDigest, Digest};
use sluice_storage::testing::conformance::check_blob;
use sluice_storage::testing::sample::pseudo_random;
use sluice_storage::{
    Blob, Descriptor, ErrorKind, ManifestName, RegistryClient, RegistryOptions, RegistryRepository,
    Repository, WritableRepository,
};

/// Time limit of a body that stands still, in these tests.
const IDLE: Duration = Duration::from_millis(300);

fn options(hosts_dir: &Path) -> RegistryOptions {
    RegistryOptions {
        first_retry_delay: Duration::from_millis(5),
        idle_timeout: IDLE,
        hosts_dir: hosts_dir.to_owned(),
        auth_file: Some("/nonexistent/auth.json".into()),
        ..RegistryOptions::default()
    }
}

/// A registry with the `hosts.toml` that is given, and the client that reads it.
struct Setup {
    dir: tempfile::TempDir,
    client: Arc<RegistryClient>,
    address: String,
}

impl Setup {
    fn new(origin: &OddRegistry, hosts: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let setup = Self {
            client: RegistryClient::new(options(dir.path())),
            address: origin.address.clone(),
            dir,
        };
        setup.write(hosts);
        setup
    }

    fn write(&self, hosts: &str) {
        let (host, port) = self.address.split_once(':').expect("a port");
        let dir = self.dir.path().join(format!("{host}_{port}_"));
        std::fs::create_dir_all(&dir).expect("made");
        std::fs::write(dir.join("hosts.toml"), hosts).expect("written");
    }

    fn repository(&self) -> Arc<RegistryRepository> {
        let reference = format!("{}/a/b:t", self.address).parse().expect("a reference");
        self.client.repository(&reference).expect("a repository")
    }

    fn open(&self, bytes: &[u8]) -> Arc<dyn Blob> {
        self.repository().open_blob(&describe(bytes))
    }
}

fn host(mirror: &OddRegistry) -> String {
    format!("[host.\"http://{}\"]\n", mirror.address)
}

fn describe(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: OCI_LAYER_ZSTD.to_owned(),
        digest: BlobDigest(Digest::of(bytes)),
        size: bytes.len() as u64,
        annotations: Default::default(),
    }
}

fn blob_of(len: usize) -> Bytes {
    pseudo_random(len).into()
}

async fn good(bytes: &Bytes) -> OddRegistry {
    let served = bytes.clone();
    OddRegistry::start(move |asked| part(&served, asked)).await
}

/// A body that begins and then stands still.
fn stalled_part(blob: &Bytes, asked: &Asked, sent: usize) -> Answer {
    let mut begun = part(blob, asked);
    let (first, _) = asked.range().expect("a range");
    let piece = blob.slice(first..(first + sent).min(blob.len()));
    *begun.body_mut() = Body::from_stream(
        stream::iter([Ok::<_, std::io::Error>(piece)]).chain(stream::once(std::future::pending())),
    );
    begun
}

#[tokio::test]
async fn a_blob_read_through_a_mirror_keeps_the_contract() {
    let bytes = blob_of(100_000);
    let origin = OddRegistry::start(|_| status(500, &[])).await;
    let mirror = good(&bytes).await;
    let setup = Setup::new(&origin, &host(&mirror));
    check_blob(setup.open(&bytes).as_ref(), &bytes).await;
    assert!(origin.asked("GET").is_empty(), "the mirror has everything");
    let asked = &mirror.asked("GET")[0].target;
    let namespace = format!("?ns={}", setup.address.replace(':', "%3A"));
    assert!(
        asked.starts_with("/v2/a/b/blobs/sha256:") && asked.ends_with(&namespace),
        "{asked}"
    );
}

#[tokio::test]
async fn a_read_goes_on_at_the_next_host_where_the_mirror_broke() {
    let bytes = blob_of(300_000);
    let origin = good(&bytes).await;
    let served = bytes.clone();
    let mirror = OddRegistry::start(move |asked| broken_part(&served, asked, 100_000)).await;
    let setup = Setup::new(&origin, &host(&mirror));
    let blob = setup.open(&bytes);
    assert_eq!(blob.read_range(0..300_000).await.expect("resumed"), bytes);
    assert_eq!(
        origin.asked("GET")[0].range(),
        Some((100_000, 299_999)),
        "nothing is asked for twice"
    );
    assert!(
        origin.asked("GET")[0]
            .target
            .ends_with(&describe(&bytes).digest.to_string()),
        "the origin gets no namespace"
    );
    blob.read_range(0..10).await.expect("read");
    assert_eq!(mirror.asked("GET").len(), 1, "a mirror that broke is avoided");
    let other = setup.repository().open_blob(&describe(&bytes));
    other.read_range(0..10).await.expect("read");
    assert_eq!(mirror.asked("GET").len(), 1, "by every repository of the client");
}

/// A way in which a mirror fails.
type Failing = Box<dyn Fn(&Bytes, &Asked) -> Answer + Send + Sync>;

#[tokio::test]
async fn no_failure_of_a_mirror_reaches_the_reader() {
    let refuse = |code| -> Failing { Box::new(move |_, _| status(code, &[])) };
    let other_range = |_: &Bytes, _: &Asked| {
        let range = [(header::CONTENT_RANGE, "bytes 5-9/100000")];
        answer(206, &range, vec![0; 5])
    };
    let ways: Vec<(&str, Failing)> = vec![
        ("403", refuse(403)),
        ("404", refuse(404)),
        ("416", refuse(416)),
        ("429", refuse(429)),
        ("500", refuse(500)),
        ("501", refuse(501)),
        ("503", refuse(503)),
        ("another range", Box::new(other_range)),
        ("another length", Box::new(|_, _| answer(200, &[], vec![0; 10]))),
        ("cut", Box::new(|blob, asked| broken_part(blob, asked, 30_000))),
        (
            "stalled",
            Box::new(|blob, asked| stalled_part(blob, asked, 30_000)),
        ),
    ];
    let bytes = blob_of(100_000);
    let origin = good(&bytes).await;
    for (name, way) in ways {
        let served = bytes.clone();
        let mirror = OddRegistry::start(move |asked| way(&served, asked)).await;
        let setup = Setup::new(&origin, &host(&mirror));
        let read = setup.open(&bytes).read_range(0..100_000).await;
        assert!(read.expect(name) == bytes, "{name}");
        assert_eq!(mirror.asked("GET").len(), 1, "{name}: asked once");
    }
    for dead in ["http://127.0.0.1:1", "http://no-such-host.invalid"] {
        let setup = Setup::new(&origin, &format!("[host.\"{dead}\"]\ndial_timeout = \"2s\"\n"));
        let read = setup.open(&bytes).read_range(0..100_000).await;
        assert!(read.expect(dead) == bytes, "{dead}");
    }
}

#[tokio::test]
async fn an_avoided_mirror_is_tried_again_later_and_when_the_origin_fails() {
    let bytes = blob_of(1000);
    let is_well = Arc::new(AtomicBool::new(false));
    let (served, well) = (bytes.clone(), is_well.clone());
    let mirror = OddRegistry::start(move |asked| match well.load(Ordering::SeqCst) {
        true => part(&served, asked),
        false => status(503, &[]),
    })
    .await;
    let is_up = Arc::new(AtomicBool::new(true));
    let (served, up) = (bytes.clone(), is_up.clone());
    let origin = OddRegistry::start(move |asked| match up.load(Ordering::SeqCst) {
        true => part(&served, asked),
        false => status(404, &[]),
    })
    .await;
    let setup = Setup::new(&origin, &host(&mirror));
    let blob = setup.open(&bytes);
    blob.read_range(0..10).await.expect("from the origin");
    is_well.store(true, Ordering::SeqCst);
    is_up.store(false, Ordering::SeqCst);
    blob.read_range(0..10)
        .await
        .expect("the origin has lost it, the mirror is asked although it is avoided");
    is_up.store(true, Ordering::SeqCst);
    let (at_mirror, at_origin) = (mirror.asked("GET").len(), origin.asked("GET").len());
    blob.read_range(0..10).await.expect("from the mirror");
    assert_eq!(
        (mirror.asked("GET").len(), origin.asked("GET").len()),
        (at_mirror + 1, at_origin),
        "what has served is not avoided"
    );
}

#[tokio::test]
async fn when_all_hosts_fail_the_error_names_each() {
    let bytes = blob_of(1000);
    let mirror = OddRegistry::start(|_| status(403, &[])).await;
    let origin = OddRegistry::start(|_| status(404, &[])).await;
    let setup = Setup::new(&origin, &host(&mirror));
    let error = setup
        .open(&bytes)
        .read_range(0..10)
        .await
        .expect_err("nobody has it");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        text.contains(&mirror.address) && text.contains(&origin.address),
        "{text}"
    );
    assert_eq!((mirror.asked("GET").len(), origin.asked("GET").len()), (1, 1));
}

#[tokio::test]
async fn capabilities_decide_who_is_asked_for_what() {
    let document =
        Bytes::from_static(br#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#);
    let serve = |document: Bytes| move |_: &Asked| answer(200, &[], document.clone());
    let mirror = OddRegistry::start(serve(document.clone())).await;
    let origin = OddRegistry::start(serve(document.clone())).await;
    let hosts = format!("{}capabilities = [\"pull\"]\n", host(&mirror));
    let setup = Setup::new(&origin, &hosts);
    let repository = setup.repository();
    let by_tag = ManifestName::Tag("t".to_owned());
    let by_digest = ManifestName::Digest(Digest::of(&document));
    repository.fetch_manifest(&by_tag).await.expect("resolved");
    assert_eq!((mirror.asked("").len(), origin.asked("").len()), (0, 1));
    repository.fetch_manifest(&by_digest).await.expect("pulled");
    assert_eq!((mirror.asked("").len(), origin.asked("").len()), (1, 1));
    repository
        .put_manifest(&by_digest, OCI_MANIFEST, document.clone())
        .await
        .expect("pushed");
    assert_eq!(
        (mirror.asked("PUT").len(), origin.asked("PUT").len()),
        (0, 1),
        "pushed to the first that takes it"
    );
    setup.write("capabilities = [\"pull\", \"resolve\"]\n");
    let error = setup
        .repository()
        .put_manifest(&by_digest, OCI_MANIFEST, document)
        .await
        .expect_err("nobody takes it");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn a_manifest_of_a_mirror_that_does_not_match_comes_from_the_next_host() {
    let document = Bytes::from_static(br#"{"layers":[]}"#);
    let mirror = OddRegistry::start(|_| answer(200, &[], r#"{"layers":[1]}"#)).await;
    let origin = good(&document).await;
    let setup = Setup::new(&origin, &host(&mirror));
    let name = ManifestName::Digest(Digest::of(&document));
    let found = setup.repository().fetch_manifest(&name).await.expect("found");
    assert_eq!(found.bytes, document);
    let bytes = blob_of(1000);
    let origin = good(&bytes).await;
    let wrong = good(&blob_of(1001).slice(1..)).await;
    let setup = Setup::new(&origin, &host(&wrong));
    let fetched = setup.repository().fetch_blob(&describe(&bytes), 1000).await;
    assert_eq!(fetched.expect("from the origin"), bytes);
    assert_eq!((wrong.asked("GET").len(), origin.asked("GET").len()), (1, 1));
}

#[tokio::test]
async fn secrets_and_headers_of_one_host_do_not_reach_another() {
    let bytes = blob_of(1000);
    let x_team = HeaderName::from_static("x-team");
    let storage = good(&bytes).await;
    let basic = |user: &str| {
        let text = format!("{user}:secret");
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
    };
    let (expected, location) = (
        basic("mirror"),
        format!("http://{}/data?signature=1", storage.address),
    );
    let mirror = OddRegistry::start(move |asked| match asked.header(header::AUTHORIZATION) {
        Some(shown) if shown == expected => status(307, &[(header::LOCATION, &location)]),
        _ => status(401, &[(header::WWW_AUTHENTICATE, "Basic realm=\"m\"")]),
    })
    .await;
    let origin = OddRegistry::start(|_| status(500, &[])).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let auth = |user: &str| base64::engine::general_purpose::STANDARD.encode(format!("{user}:secret"));
    let auth_file = dir.path().join("auth.json");
    let text = format!(
        r#"{{"auths":{{"{}":{{"auth":"{}"}},"{}":{{"auth":"{}"}}}}}}"#,
        mirror.address,
        auth("mirror"),
        origin.address,
        auth("origin")
    );
    std::fs::write(&auth_file, text).expect("written");
    let hosts = format!(
        "{0}[host.\"http://{1}\".header]\nx-team = \"a\"\n",
        host(&mirror),
        mirror.address
    );
    let mut setup = Setup::new(&origin, &hosts);
    setup.client = RegistryClient::new(RegistryOptions {
        auth_file: Some(auth_file),
        ..options(setup.dir.path())
    });
    let read = setup.open(&bytes).read_range(0..1000).await;
    assert_eq!(read.expect("let in"), bytes);
    assert_eq!(mirror.asked("GET")[1].header(x_team.clone()), Some("a"));
    let elsewhere = &storage.asked("GET")[0];
    assert_eq!(
        (elsewhere.header(x_team), elsewhere.header(header::AUTHORIZATION)),
        (None, None)
    );
}

#[tokio::test]
async fn a_hosts_file_that_is_wrong_is_an_error_and_one_that_changes_counts() {
    let bytes = blob_of(1000);
    let (first, second) = (good(&bytes).await, good(&bytes).await);
    let origin = OddRegistry::start(|_| status(404, &[])).await;
    let setup = Setup::new(&origin, &host(&first));
    setup.open(&bytes).read_range(0..10).await.expect("read");
    setup.write(&host(&second));
    setup.open(&bytes).read_range(0..10).await.expect("read");
    assert_eq!((first.asked("GET").len(), second.asked("GET").len()), (1, 1));
    setup.write("[host.\"nonsense://\"]\ncapabilities = 1\n");
    let reference = format!("{}/a/b:t", setup.address).parse().expect("a reference");
    let error = setup.client.repository(&reference).expect_err("refused");
    assert!(
        error.kind() == ErrorKind::InvalidInput && error.to_string().contains("hosts.toml"),
        "{error}"
    );
}

#[tokio::test]
async fn uploads_go_to_one_host_only() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let mirror = OddRegistry::start(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        status(500, &[])
    })
    .await;
    let origin = OddRegistry::start(|asked| match asked.method {
        Method::HEAD => status(404, &[]),
        Method::POST => status(202, &[(header::LOCATION, "/v2/a/b/blobs/uploads/7")]),
        _ => status(201, &[]),
    })
    .await;
    let hosts = format!("{}capabilities = [\"pull\", \"resolve\"]\n", host(&mirror));
    let setup = Setup::new(&origin, &hosts);
    let mut writer = setup.repository().begin_blob().await.expect("begun");
    let bytes = blob_of(1000);
    writer.write(bytes.clone()).await.expect("taken");
    writer.finish(describe(&bytes).digest).await.expect("stored");
    assert_eq!(count.load(Ordering::SeqCst), 0);
}
