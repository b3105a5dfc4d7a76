//! A registry that does what a test tells it: every request goes to one closure, and is remembered.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

/// Longest request body that is taken, in bytes.
const BODY_LEN: usize = 64 << 20;

pub(crate) type Answer = Response<Body>;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// First and last byte of the range that was asked for.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header(header::RANGE)?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// A running registry. It ends with the test's runtime.
#[derive(Clone, Debug)]
pub(crate) struct OddRegistry {
    /// `host:port`.
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl OddRegistry {
    pub(crate) async fn start(serve: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (log, serve) = (asked.clone(), Arc::new(serve));
        let router = Router::new().fallback(move |request: Request| {
            let (log, serve) = (log.clone(), serve.clone());
            async move {
                let asked = take(request).await;
                log.lock()
                    .expect("no test panics while it logs")
                    .push(asked.clone());
                serve(&asked)
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    /// Requests so far whose method and target begin so, as in `GET /v2/a/blobs`.
    pub(crate) fn asked(&self, begin: &str) -> Vec<Asked> {
        let asked = self.asked.lock().expect("no test panics while it logs");
        let matches = |asked: &&Asked| format!("{} {}", asked.method, asked.target).starts_with(begin);
        asked.iter().filter(matches).cloned().collect()
    }
}

async fn take(request: Request) -> Asked {
    let (parts, body) = request.into_parts();
    Asked {
        method: parts.method,
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: axum::body::to_bytes(body, BODY_LEN).await.unwrap_or_default(),
    }
}

/// An answer without a body.
pub(crate) fn status(code: u16, headers: &[(HeaderName, &str)]) -> Answer {
    answer(code, headers, Body::empty())
}

pub(crate) fn answer(code: u16, headers: &[(HeaderName, &str)], body: impl Into<Body>) -> Answer {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = StatusCode::from_u16(code).expect("a status code");
    for (name, value) in headers {
        answer
            .headers_mut()
            .append(name, value.parse().expect("a header"));
    }
    answer
}

/// What a good registry answers to a range.
pub(crate) fn part(blob: &Bytes, asked: &Asked) -> Answer {
    assert!(asked.body.is_empty(), "a question for a range has no body");
    let Some((first, last)) = asked.range() else {
        return answer(200, &[], blob.clone());
    };
    let range = format!("bytes {first}-{last}/{}", blob.len());
    answer(206, &[(header::CONTENT_RANGE, &range)], blob.slice(first..=last))
}

/// The same, but the connection breaks after `sent` bytes of the body.
pub(crate) fn broken_part(blob: &Bytes, asked: &Asked, sent: usize) -> Answer {
    let (first, last) = asked.range().expect("a range");
    let begun = blob.slice(first..(first + sent).min(last + 1));
    let cut = async {
        // hyper drops what it has not sent yet when a body fails.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut"))
    };
    let pieces = stream::iter([Ok(begun)]).chain(stream::once(cut));
    let mut answer = answer(206, &[], Body::from_stream(pieces));
    let range = format!("bytes {first}-{last}/{}", blob.len());
    answer
        .headers_mut()
        .insert(header::CONTENT_RANGE, range.parse().expect("a header"));
    answer
        .headers_mut()
        .insert(header::CONTENT_LENGTH, (last + 1 - first).into());
    answer
}
