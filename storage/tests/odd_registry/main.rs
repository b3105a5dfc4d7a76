//! Registries that misbehave: what is retried, resumed, renewed or refused.

#[path = "../support/odd.rs"]
mod odd;
mod uploads;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use axum::http::{HeaderName, Method, header};
use base64::Engine as _;
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use odd::{Answer, Asked, OddRegistry, answer, broken_part, part, status};
use sluice_format::artifact::{OCI_LAYER_ZSTD, OCI_MANIFEST};
use sluice_format::{BlobDigest, Digest, Limits};
use sluice_storage::testing::sample::pseudo_random;
use sluice_storage::{
    Blob, Descriptor, ErrorKind, ManifestName, RegistryClient, RegistryOptions, RegistryRepository,
    Repository, WritableRepository,
};

const CHALLENGE: HeaderName = header::WWW_AUTHENTICATE;

fn options() -> RegistryOptions {
    RegistryOptions {
        first_retry_delay: Duration::from_millis(5),
        // No credentials of whoever runs the tests.
        auth_file: Some("/nonexistent/auth.json".into()),
        ..RegistryOptions::default()
    }
}

fn repository_with(options: RegistryOptions, registry: &OddRegistry) -> Arc<RegistryRepository> {
    let client = RegistryClient::new(options);
    let reference = format!("{}/a/b", registry.address).parse().expect("a reference");
    client.repository(&reference).expect("a repository")
}

fn repository(registry: &OddRegistry) -> Arc<RegistryRepository> {
    repository_with(options(), registry)
}

fn describe(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: OCI_LAYER_ZSTD.to_owned(),
        digest: BlobDigest(Digest::of(bytes)),
        size: bytes.len() as u64,
        annotations: Default::default(),
    }
}

fn open(registry: &OddRegistry, bytes: &[u8]) -> Arc<dyn Blob> {
    repository(registry).open_blob(&describe(bytes))
}

fn blob_of(len: usize) -> Bytes {
    pseudo_random(len).into()
}

fn tag() -> ManifestName {
    ManifestName::Tag("t".to_owned())
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_put_up_with_while_little_is_skipped() {
    let bytes = blob_of(17 << 20);
    let served = bytes.clone();
    let registry = OddRegistry::start(move |_| answer(200, &[], served.clone())).await;
    let blob = open(&registry, &bytes);
    let read = blob
        .read_range(1_000_000..1_000_100)
        .await
        .expect("near the beginning");
    assert_eq!(read, bytes[1_000_000..1_000_100]);
    let end = bytes.len() as u64;
    let error = blob.read_range(end - 10..end).await.expect_err("far in");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("ignores ranges"), "{error}");
    let tail: Vec<Bytes> = blob
        .stream(end / 2..end)
        .await
        .expect("a stream")
        .try_collect()
        .await
        .expect("a stream skips");
    assert_eq!(tail.concat(), bytes[bytes.len() / 2..]);
}

#[tokio::test]
async fn truncated_bodies_are_resumed_where_they_broke() {
    let bytes = blob_of(300_000);
    let served = bytes.clone();
    let registry = OddRegistry::start(move |asked| broken_part(&served, asked, 40_000)).await;
    let blob = open(&registry, &bytes);
    let cut = blob.read_range(0..300_000).await;
    // Each attempt brings too little to count as progress, so the fifth is the last.
    let asked = registry.asked("GET /v2/a/b/blobs");
    let first_bytes: Vec<usize> = asked.iter().filter_map(|asked| Some(asked.range()?.0)).collect();
    assert_eq!(first_bytes[..4], [0, 40_000, 80_000, 120_000]);
    assert_eq!(
        cut.expect_err("too many cuts with too little between").kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn a_transfer_with_progress_goes_on_however_often_it_is_cut() {
    let bytes = blob_of(1 << 20);
    let served = bytes.clone();
    let registry = OddRegistry::start(move |asked| broken_part(&served, asked, 70_000)).await;
    let blob = open(&registry, &bytes);
    assert_eq!(blob.read_range(0..1 << 20).await.expect("resumed"), bytes);
    let stream = blob.stream(5..blob.stored_len()).await.expect("a stream");
    let pieces: Vec<Bytes> = stream.try_collect().await.expect("resumed");
    assert_eq!(pieces.concat(), bytes[5..]);
    assert!(registry.asked("GET").len() >= 28);
}

#[tokio::test]
async fn answers_for_another_range_or_blob_are_refused() {
    let bytes = blob_of(1000);
    for (content_range, kind) in [
        ("bytes 1-10/1000", ErrorKind::Unsupported),
        ("bytes 0-9/999", ErrorKind::Corrupt),
        ("0-9", ErrorKind::Unsupported),
    ] {
        let registry = OddRegistry::start(move |_| {
            answer(
                206,
                &[(header::CONTENT_RANGE, content_range)],
                Bytes::from(vec![0; 10]),
            )
        });
        let error = open(&registry.await, &bytes)
            .read_range(0..10)
            .await
            .expect_err(content_range);
        assert_eq!(error.kind(), kind, "{error}");
    }
    let registry = OddRegistry::start(|_| status(416, &[])).await;
    let error = open(&registry, &bytes).read_range(0..10).await.expect_err("416");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains(&describe(&bytes).digest.to_string()),
        "{error}"
    );
    let encoded =
        OddRegistry::start(|_| answer(200, &[(header::CONTENT_ENCODING, "gzip")], vec![0; 1000])).await;
    let error = open(&encoded, &bytes)
        .read_range(0..10)
        .await
        .expect_err("encoded");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn busy_answers_are_retried_as_late_as_asked_and_not_for_ever() {
    let bytes = blob_of(100);
    let served = bytes.clone();
    let count = AtomicUsize::new(0);
    let registry = OddRegistry::start(move |asked| match count.fetch_add(1, Ordering::Relaxed) {
        0 => status(429, &[(header::RETRY_AFTER, "1")]),
        1 => status(503, &[]),
        _ => part(&served, asked),
    })
    .await;
    let begun = Instant::now();
    assert_eq!(
        open(&registry, &bytes).read_range(0..100).await.expect("retried"),
        bytes
    );
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let busy = OddRegistry::start(|_| status(500, &[])).await;
    let error = open(&busy, &bytes)
        .read_range(0..100)
        .await
        .expect_err("always busy");
    assert!(error.is_temporary(), "{error}");
    assert_eq!(busy.asked("GET").len(), 5);
    let gone = OddRegistry::start(|_| status(404, &[])).await;
    let error = open(&gone, &bytes).read_range(0..100).await.expect_err("gone");
    assert_eq!((error.kind(), gone.asked("GET").len()), (ErrorKind::NotFound, 1));
}

/// Serves `blob` to whoever shows the newest token; every token is good for `uses` requests.
fn token_registry(blob: Bytes, uses: usize) -> impl Fn(&Asked) -> Answer {
    let (issued, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    move |asked| {
        let host = asked.header(header::HOST).unwrap_or_default();
        if asked.target.starts_with("/token") {
            used.store(0, Ordering::SeqCst);
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return answer(
                200,
                &[],
                format!(r#"{{"token":"secret-{number}","expires_in":300}}"#),
            );
        }
        let newest = format!("Bearer secret-{}", issued.load(Ordering::SeqCst));
        let is_good = asked.header(header::AUTHORIZATION) == Some(&newest);
        if is_good && used.fetch_add(1, Ordering::SeqCst) < uses {
            return part(&blob, asked);
        }
        let challenge = format!(
            r#"Bearer realm="http://{host}/token",service="odd",scope="repository:a/b:pull",error="invalid_token""#
        );
        status(401, &[(CHALLENGE, &challenge)])
    }
}

#[tokio::test]
async fn a_token_that_stops_working_in_mid_flight_is_renewed_once() {
    let bytes = blob_of(10_000);
    let registry = OddRegistry::start(token_registry(bytes.clone(), 10)).await;
    let blob = open(&registry, &bytes);
    for round in 0..4 {
        let reads = (0..5).map(|at| blob.read_range(at * 100..at * 100 + 100));
        for (at, read) in join_all(reads).await.into_iter().enumerate() {
            assert_eq!(
                read.expect("renewed"),
                bytes[at * 100..at * 100 + 100],
                "round {round}"
            );
        }
    }
    assert_eq!(
        registry.asked("GET /token").len(),
        2,
        "20 requests at 10 per token"
    );
    let asked = &registry.asked("GET /token")[0].target;
    assert!(
        asked.contains("service=odd") && asked.contains("scope=repository%3Aa%2Fb%3Apull"),
        "{asked}"
    );
}

#[tokio::test]
async fn tokens_that_expire_are_renewed_without_a_refusal() {
    let bytes = blob_of(100);
    let served = bytes.clone();
    let registry = OddRegistry::start(move |asked| {
        let host = asked.header(header::HOST).unwrap_or_default();
        if asked.target.starts_with("/token") {
            return answer(200, &[], r#"{"access_token":"x","expires_in":0}"#);
        }
        match asked.header(header::AUTHORIZATION) {
            Some("Bearer x") => part(&served, asked),
            _ => status(
                401,
                &[(CHALLENGE, &format!(r#"Bearer realm="http://{host}/token""#))],
            ),
        }
    })
    .await;
    let blob = open(&registry, &bytes);
    for _ in 0..3 {
        blob.read_range(0..100).await.expect("renewed");
    }
    assert_eq!(registry.asked("GET /token").len(), 3);
    assert_eq!(registry.asked("GET /v2").len(), 4, "one refusal, the first");
}

/// A credential file for `host`.
fn auth_file(dir: &Path, host: &str, secret: &str) -> std::path::PathBuf {
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("user:{secret}"));
    let path = dir.join("auth.json");
    std::fs::write(&path, format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)).expect("written");
    path
}

#[tokio::test]
async fn passwords_are_sent_when_asked_for_and_refused_ones_are_named_by_file() {
    let bytes = blob_of(100);
    let served = bytes.clone();
    let good = format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode("user:right")
    );
    let registry = OddRegistry::start(move |asked| match asked.header(header::AUTHORIZATION) {
        Some(shown) if shown == good => part(&served, asked),
        _ => status(401, &[(CHALLENGE, "Basic realm=\"odd\"")]),
    })
    .await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let read = |secret: &'static str| {
        let auth_file = Some(auth_file(dir.path(), &registry.address, secret));
        let repository = repository_with(
            RegistryOptions {
                auth_file,
                ..options()
            },
            &registry,
        );
        let blob = repository.open_blob(&describe(&bytes));
        async move { blob.read_range(0..100).await }
    };
    assert_eq!(read("right").await.expect("let in"), bytes);
    let error = read("wrong-secret").await.expect_err("kept out");
    let text = format!("{error} {error:?}");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        text.contains(&registry.address) && text.contains("auth.json"),
        "{text}"
    );
    assert!(
        !text.contains("wrong-secret") && !text.contains("Basic d"),
        "{text}"
    );
    let error = open(&registry, &bytes)
        .read_range(0..100)
        .await
        .expect_err("no credentials");
    assert!(
        error
            .to_string()
            .contains("without credentials: none for it in /nonexistent/auth.json"),
        "{error}"
    );
}

#[tokio::test]
async fn a_refused_password_for_a_token_names_registry_and_file() {
    let registry = OddRegistry::start(|asked| {
        let host = asked.header(header::HOST).unwrap_or_default();
        match asked.target.starts_with("/token") {
            true => answer(
                401,
                &[],
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"bad password"}]}"#,
            ),
            false => status(
                401,
                &[(CHALLENGE, &format!(r#"Bearer realm="http://{host}/token""#))],
            ),
        }
    })
    .await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let auth_file = Some(auth_file(dir.path(), &registry.address, "hush"));
    let repository = repository_with(
        RegistryOptions {
            auth_file,
            ..options()
        },
        &registry,
    );
    let error = repository.fetch_manifest(&tag()).await.expect_err("kept out");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Denied);
    for part in [registry.address.as_str(), "auth.json", "bad password"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("hush"), "{text}");
    assert_eq!(registry.asked("GET /token").len(), 1, "not retried");
}

/// A host that serves `blob` at signed URLs, each of which is good for `uses` requests.
async fn signed_host(blob: Bytes, uses: usize) -> OddRegistry {
    let used = AtomicUsize::new(0);
    OddRegistry::start(move |asked| {
        assert_eq!(
            asked.header(header::AUTHORIZATION),
            None,
            "the registry's token went elsewhere"
        );
        let number = used.fetch_add(1, Ordering::SeqCst) / uses;
        match asked.target == format!("/data?signature=s3cret-{number}") {
            true => part(&blob, asked),
            false => status(403, &[]),
        }
    })
    .await
}

#[tokio::test]
async fn a_redirect_is_remembered_until_it_expires_and_gets_no_token() {
    let bytes = blob_of(10_000);
    let uses = 5;
    let signed = signed_host(bytes.clone(), uses).await;
    let target = signed.address.clone();
    let handed_out = AtomicUsize::new(0);
    let inner = token_registry(bytes.clone(), usize::MAX);
    let registry = OddRegistry::start(move |asked| {
        let answer = inner(asked);
        if answer.status() != 206 {
            return answer;
        }
        // The signed host counts a refused request too, so its numbers skip.
        let number = handed_out.fetch_add(1, Ordering::SeqCst);
        let location = format!("http://{target}/data?signature=s3cret-{number}");
        status(307, &[(header::LOCATION, &location)])
    })
    .await;
    let blob = open(&registry, &bytes);
    for at in 0..12u64 {
        let read = blob
            .read_range(at..at + 1)
            .await
            .expect("resolved anew when expired");
        assert_eq!(read[0], bytes[at as usize]);
    }
    assert_eq!(signed.asked("GET /data").len(), 14, "12 ranges and 2 refusals");
    assert_eq!(
        registry.asked("GET /v2").len(),
        4,
        "the challenge and 3 redirects"
    );
}

#[tokio::test]
async fn signed_urls_are_not_shown_in_errors() {
    let bytes = blob_of(100);
    let broken = OddRegistry::start(|_| status(500, &[])).await;
    let dead = "127.0.0.1:1".to_owned();
    for target in [broken.address.clone(), dead] {
        let location = format!("http://{target}/data?signature=s3cret");
        let registry = OddRegistry::start(move |_| status(302, &[(header::LOCATION, &location)])).await;
        let blob = open(&registry, &bytes);
        let error = blob.read_range(0..10).await.expect_err("broken");
        let text = format!("{error} {error:?} {blob:?}");
        assert!(error.is_temporary() && !text.contains("s3cret"), "{text}");
    }
    let circle = OddRegistry::start(|asked| status(302, &[(header::LOCATION, &asked.target)])).await;
    let error = open(&circle, &bytes)
        .read_range(0..10)
        .await
        .expect_err("a circle");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn manifests_are_checked_whatever_the_headers_say() {
    let document = br#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;
    let registry = OddRegistry::start(move |asked| {
        let claimed = HeaderName::from_static("docker-content-digest");
        let wanted = asked.target.rsplit('/').next().unwrap_or_default();
        let types = [
            (claimed, wanted),
            (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        ];
        answer(200, &types, &document[..])
    })
    .await;
    let repository = repository(&registry);
    let found = repository.fetch_manifest(&tag()).await.expect("by tag");
    assert_eq!(
        (found.media_type.as_str(), found.digest),
        (OCI_MANIFEST, Digest::of(document))
    );
    let wrong = ManifestName::Digest(Digest::of(b"wrong"));
    let error = repository
        .fetch_manifest(&wrong)
        .await
        .expect_err("another digest");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("docker://"), "{error}");
    let accepted = registry.asked("GET")[0]
        .header(header::ACCEPT)
        .unwrap_or_default()
        .to_owned();
    assert!(
        accepted.contains("image.index.v1") && accepted.contains("manifest.list.v2"),
        "{accepted}"
    );
    let limits = Limits {
        manifest_len: 10,
        ..Limits::default()
    };
    let bounded = repository_with(RegistryOptions { limits, ..options() }, &registry);
    let error = bounded.fetch_manifest(&tag()).await.expect_err("too long");
    assert!(error.to_string().contains("more than 10 bytes"), "{error}");
}

#[tokio::test]
async fn what_is_no_registry_says_so() {
    let dead: sluice_storage::Reference = "127.0.0.1:1/a".parse().expect("a reference");
    let client = RegistryClient::new(options());
    let repository = client.repository(&dead).expect("a repository");
    let error = repository
        .fetch_manifest(&tag())
        .await
        .expect_err("nobody listens");
    assert!(
        error.is_temporary() && error.to_string().contains("127.0.0.1:1 cannot be reached"),
        "{error}"
    );
}

#[tokio::test]
async fn connections_are_opened_ahead_whatever_the_answer_and_without_credentials() {
    let registry = OddRegistry::start(|_| status(401, &[])).await;
    let repository = repository(&registry);
    repository.connect();
    for _ in 0..500 {
        if registry.asked("HEAD /v2/").len() == 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let asked = registry.asked("");
    assert_eq!(asked.len(), 5, "{asked:?}");
    let has_none = |asked: &Asked| asked.header(header::AUTHORIZATION).is_none();
    assert!(
        asked
            .iter()
            .all(|asked| asked.target == "/v2/" && has_none(asked)),
        "{asked:?}"
    );
}
