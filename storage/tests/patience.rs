//! What a registry may do to a read without the reader noticing, and when patience ends.

#[path = "support/odd.rs"]
mod odd;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::{HeaderName, header};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use odd::{Answer, Asked, OddRegistry, answer, broken_part, part, status};
use sluice_format::artifact::OCI_LAYER_ZSTD;
use sluice_format::{BlobDigest, Digest};
use sluice_storage::registry::HttpVersion;
use sluice_storage::testing::sample::pseudo_random;
use sluice_storage::{Blob, Descriptor, ErrorKind, RegistryClient, RegistryOptions, Repository};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;

fn options() -> RegistryOptions {
    RegistryOptions {
        first_retry_delay: Duration::from_millis(5),
        idle_timeout: Duration::from_millis(300),
        auth_file: Some("/nonexistent/auth.json".into()),
        ..RegistryOptions::default()
    }
}

fn open_with(options: RegistryOptions, address: &str, bytes: &[u8]) -> Arc<dyn Blob> {
    let client = RegistryClient::new(options);
    let reference = format!("{address}/a/b").parse().expect("a reference");
    let descriptor = Descriptor {
        media_type: OCI_LAYER_ZSTD.to_owned(),
        digest: BlobDigest(Digest::of(bytes)),
        size: bytes.len() as u64,
        annotations: Default::default(),
    };
    let repository = client.repository(&reference).expect("a repository");
    repository.open_blob(&descriptor)
}

fn open(address: &str, bytes: &[u8]) -> Arc<dyn Blob> {
    open_with(options(), address, bytes)
}

fn blob_of(len: usize) -> Bytes {
    pseudo_random(len).into()
}

/// An answer that begins with `sent` bytes of the range and then stands still.
fn stalled_part(blob: &Bytes, asked: &Asked, sent: usize) -> Answer {
    let (first, _) = asked.range().expect("a range");
    let piece = blob.slice(first..(first + sent).min(blob.len()));
    let begun = stream::iter([Ok::<_, std::io::Error>(piece)]);
    let mut whole = part(blob, asked);
    *whole.body_mut() = Body::from_stream(begun.chain(stream::once(std::future::pending())));
    whole
}

/// Serves `blob` after `failures` answers of `fail`.
async fn failing_first(
    blob: &Bytes,
    failures: usize,
    fail: impl Fn(&Bytes, &Asked) -> Answer + Send + Sync + 'static,
) -> OddRegistry {
    let (served, count) = (blob.clone(), AtomicUsize::new(0));
    OddRegistry::start(
        move |asked| match count.fetch_add(1, Ordering::SeqCst) < failures {
            true => fail(&served, asked),
            false => part(&served, asked),
        },
    )
    .await
}

#[tokio::test]
async fn a_body_that_stands_still_is_resumed_where_it_stopped() {
    let bytes = blob_of(200_000);
    let registry = failing_first(&bytes, 2, |blob, asked| stalled_part(blob, asked, 70_000)).await;
    let read = open(&registry.address, &bytes).read_range(0..200_000).await;
    assert!(read.expect("resumed") == bytes);
    let firsts: Vec<_> = registry
        .asked("GET")
        .iter()
        .filter_map(|asked| Some(asked.range()?.0))
        .collect();
    assert_eq!(firsts, [0, 70_000, 140_000]);
}

#[tokio::test]
async fn a_registry_that_always_stands_still_ends_in_one_clear_error() {
    let bytes = blob_of(200_000);
    let registry = failing_first(&bytes, usize::MAX, |blob, asked| stalled_part(blob, asked, 100)).await;
    let short = RegistryOptions {
        retries: 1,
        ..options()
    };
    let begun = Instant::now();
    let error = open_with(short, &registry.address, &bytes)
        .read_range(0..200_000)
        .await
        .expect_err("stalls");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(
        error.is_temporary() && error.to_string().contains("sent nothing for 0.3 s"),
        "{error}"
    );
    assert_eq!(registry.asked("GET").len(), 2);
}

#[tokio::test]
async fn patience_bounds_the_waits_together() {
    let bytes = blob_of(100);
    let registry = failing_first(&bytes, usize::MAX, |_, _| {
        status(503, &[(header::RETRY_AFTER, "1")])
    })
    .await;
    let options = RegistryOptions {
        retries: 100,
        patience: Duration::from_millis(1500),
        ..options()
    };
    let error = open_with(options, &registry.address, &bytes)
        .read_range(0..100)
        .await
        .expect_err("busy");
    assert!(error.is_temporary(), "{error}");
    assert_eq!(
        registry.asked("GET").len(),
        2,
        "a third would be after two seconds"
    );
}

#[tokio::test]
async fn a_date_to_come_back_at_is_honoured() {
    let bytes = blob_of(100);
    let registry = failing_first(&bytes, 1, |_, _| {
        // The server's clock is far off: only the difference counts.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let date = |at| httpdate::fmt_http_date(at);
        let (now, then) = (date(now), date(now + Duration::from_secs(1)));
        status(429, &[(header::DATE, &now), (header::RETRY_AFTER, &then)])
    })
    .await;
    let begun = Instant::now();
    let read = open(&registry.address, &bytes).read_range(0..100).await;
    assert_eq!(read.expect("retried"), bytes);
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn odd_answers_that_pass_are_not_seen() {
    type Odd = fn(&Bytes, &Asked) -> Answer;
    let odd: [(&str, Odd); 7] = [
        ("429", |_, _| status(429, &[])),
        ("500", |_, _| status(500, &[])),
        ("502", |_, _| status(502, &[])),
        ("503", |_, _| status(503, &[])),
        ("504", |_, _| status(504, &[])),
        ("200 for 206", |blob, _| answer(200, &[], blob.clone())),
        ("cut", |blob, asked| broken_part(blob, asked, 10)),
    ];
    let bytes = blob_of(50_000);
    for (name, fail) in odd {
        let registry = failing_first(&bytes, 2, fail).await;
        let read = open(&registry.address, &bytes).read_range(10..50_000).await;
        assert!(read.expect(name) == bytes.slice(10..), "{name}");
    }
}

#[tokio::test]
async fn lasting_refusals_are_one_error_each() {
    let bytes = blob_of(50_000);
    for (code, kind) in [
        (403, ErrorKind::Denied),
        (404, ErrorKind::NotFound),
        (416, ErrorKind::Corrupt),
        (501, ErrorKind::Unsupported),
    ] {
        let registry = failing_first(&bytes, usize::MAX, move |_, _| status(code, &[])).await;
        let error = open(&registry.address, &bytes)
            .read_range(0..10)
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), kind, "{code}: {error}");
        assert!(error.to_string().contains(&registry.address), "{error}");
        assert_eq!(registry.asked("GET").len(), 1, "{code}");
    }
}

/// A registry that sends readers to `storage`, with a new signature each time.
async fn redirecting(storage: &OddRegistry) -> OddRegistry {
    let (storage, count) = (storage.address.clone(), AtomicUsize::new(0));
    OddRegistry::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let location = format!("http://{storage}/data?signature={number}");
        status(307, &[(header::LOCATION, &location)])
    })
    .await
}

#[tokio::test]
async fn an_address_that_expires_is_asked_for_again_whatever_its_refusal() {
    for code in [400, 401, 403, 404, 500] {
        let bytes = blob_of(1000);
        let served = bytes.clone();
        // The first address is good for two requests.
        let count = AtomicUsize::new(0);
        let storage = OddRegistry::start(move |asked| {
            let is_first = asked.target.ends_with("=0");
            match is_first && count.fetch_add(1, Ordering::SeqCst) >= 2 {
                true => status(code, &[]),
                false => part(&served, asked),
            }
        })
        .await;
        let registry = redirecting(&storage).await;
        let blob = open(&registry.address, &bytes);
        for at in 0..6 {
            let read = blob.read_range(at..at + 10).await;
            assert_eq!(
                read.expect("asked again")[..],
                bytes[at as usize..at as usize + 10]
            );
        }
        assert_eq!(registry.asked("GET").len(), 2, "{code}: asked again once");
        assert_eq!(storage.asked("GET").len(), 7, "{code}: one refusal");
    }
}

#[tokio::test]
async fn a_fresh_address_that_is_refused_is_asked_for_again() {
    let bytes = blob_of(1000);
    let served = bytes.clone();
    let storage = OddRegistry::start(move |asked| match asked.target.ends_with("=2") {
        true => part(&served, asked),
        false => status(403, &[]),
    })
    .await;
    let registry = redirecting(&storage).await;
    let read = open(&registry.address, &bytes).read_range(0..1000).await;
    assert_eq!(read.expect("the third address works"), bytes);
    let never = OddRegistry::start(|_| status(403, &[])).await;
    let registry = redirecting(&never).await;
    let error = open(&registry.address, &bytes)
        .read_range(0..1000)
        .await
        .expect_err("refused");
    let text = error.to_string();
    assert!(
        text.contains("403") && text.contains(&never.address) && !text.contains("signature"),
        "{text}"
    );
}

#[tokio::test]
async fn a_miss_costs_one_request_once_the_way_is_known() {
    let bytes = blob_of(10_000);
    let served = bytes.clone();
    let storage = OddRegistry::start(move |asked| part(&served, asked)).await;
    let address = storage.address.clone();
    let registry = OddRegistry::start(move |asked| {
        let host = asked.header(header::HOST).unwrap_or_default();
        if asked.target.starts_with("/token") {
            return answer(200, &[], r#"{"token":"x","expires_in":300}"#);
        }
        match asked.header(header::AUTHORIZATION) {
            Some("Bearer x") => {
                let location = format!("http://{address}/data?signature=1");
                status(307, &[(header::LOCATION, &location)])
            }
            _ => {
                let challenge = format!(r#"Bearer realm="http://{host}/token""#);
                status(401, &[(HeaderName::from_static("www-authenticate"), &challenge)])
            }
        }
    })
    .await;
    let blob = open(&registry.address, &bytes);
    blob.read_range(0..10).await.expect("read");
    let before = registry.asked("").len();
    for at in 0..20 {
        blob.read_range(at * 10..at * 10 + 10).await.expect("read");
    }
    assert_eq!(registry.asked("").len(), before, "nothing is resolved twice");
    assert_eq!(storage.asked("").len(), 21);
}

#[tokio::test]
async fn connections_that_are_reset_are_made_again() {
    let bytes = blob_of(1000);
    let registry = failing_first(&bytes, 0, |_, _| status(500, &[])).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let upstream = registry.address.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((mut near, _)) = listener.accept().await else {
                return;
            };
            let upstream = upstream.clone();
            tokio::spawn(async move {
                if number < 2 {
                    // Unread bytes at the time of closing make it a reset.
                    let mut some = [0; 5];
                    let _ = near.read_exact(&mut some).await;
                    return;
                }
                let mut far = tokio::net::TcpStream::connect(upstream).await.expect("up");
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let read = open(&address, &bytes).read_range(0..1000).await;
    assert_eq!(read.expect("connected again"), bytes);
}

#[tokio::test]
async fn a_registry_that_is_gone_for_a_while_is_waited_for() {
    let bytes = blob_of(1000);
    let registry = failing_first(&bytes, 0, |_, _| status(500, &[])).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("bound: the port refuses connections until it listens");
    let address = socket.local_addr().expect("an address").to_string();
    let blob = open_with(
        RegistryOptions {
            first_retry_delay: Duration::from_millis(200),
            ..options()
        },
        &address,
        &bytes,
    );
    let reading = tokio::spawn(async move { blob.read_range(0..1000).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    let listener = socket.listen(16).expect("listening");
    let upstream = registry.address.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(&upstream).await.expect("up");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let read = reading.await.expect("no panic");
    assert_eq!(read.expect("waited for"), bytes);
    let nowhere = open("no-such-host.invalid", &bytes);
    let error = nowhere.read_range(0..10).await.expect_err("no such name");
    assert!(
        error.is_temporary()
            && error
                .to_string()
                .contains("no-such-host.invalid cannot be reached"),
        "{error}"
    );
}

#[tokio::test]
async fn plain_http_stays_http_1_whatever_is_negotiated_over_tls() {
    let bytes = blob_of(1000);
    let registry = failing_first(&bytes, 0, |_, _| status(500, &[])).await;
    for http_version in [HttpVersion::Http1Only, HttpVersion::Negotiate] {
        let options = RegistryOptions {
            http_version,
            ..options()
        };
        let read = open_with(options, &registry.address, &bytes)
            .read_range(0..1000)
            .await;
        assert_eq!(read.expect("read"), bytes);
    }
}
