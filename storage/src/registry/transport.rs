//! One request out, the head of one response in.
//!
//! Redirects are not followed and nothing is retried here. The wait for the head is bounded per request, because an upload
//! may take minutes where a range takes a moment; bodies have an idle timeout of their own. Bytes must arrive as they are stored, so no
//! encoding is offered. Loopback hosts are reached without the proxy that the environment may name.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method};
use url::Url;

use super::TrafficCounters;
use super::answer::{Answer, transport_failure};
use super::endpoint::{authority, is_loopback};
use super::retry::Failure;
use crate::{Error, ErrorKind};

/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the head of an answer to a request that carries no blob.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept per host: as many as a fetcher uses at a time.
const IDLE_CONNECTIONS: usize = 32;
/// How long one is kept: shorter than the minute after which most servers and balancers close it.
const IDLE_LIFETIME: Duration = Duration::from_secs(50);
const USER_AGENT: &str = concat!("sluice/", env!("CARGO_PKG_VERSION"));

/// A request apart from where it goes and who asks.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// What is asked, for messages: "manifest latest", "bytes 0-99 of blob sha256:…".
    pub(super) what: Arc<str>,
    headers: HeaderMap,
    body: Bytes,
    head_timeout: Duration,
}

impl Request {
    pub(super) fn new(method: Method, what: impl Into<Arc<str>>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Self {
            method,
            what: what.into(),
            headers,
            body: Bytes::new(),
            head_timeout: HEAD_TIMEOUT,
        }
    }

    /// Adds a header whose value this crate made. A value that is no header is left out, and the registry complains.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    pub(super) fn head_timeout(mut self, head_timeout: Duration) -> Self {
        self.head_timeout = head_timeout;
        self
    }
}

/// The connection pools.
#[derive(Debug)]
pub(super) struct Transport {
    proxied: Client,
    direct: Client,
    traffic: Arc<TrafficCounters>,
}

impl Transport {
    pub(super) fn new(traffic: &Arc<TrafficCounters>) -> Result<Self, Error> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Fails only when another thread has just installed one, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|error| {
                Error::new(ErrorKind::Io, "the HTTP client cannot be set up").with_source(error)
            })
        };
        Ok(Self {
            proxied: build(client())?,
            direct: build(client().no_proxy())?,
            traffic: traffic.clone(),
        })
    }

    /// Sends `request` to `url` and waits for the head of the answer, whatever its status.
    pub(super) async fn send(
        &self,
        request: &Request,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        let client = if is_loopback(url) {
            &self.direct
        } else {
            &self.proxied
        };
        let mut builder = client
            .request(request.method.clone(), url.clone())
            .headers(request.headers.clone())
            .body(request.body.clone());
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        self.traffic.requests.fetch_add(1, Ordering::Relaxed);
        self.traffic
            .sent_bytes
            .fetch_add(request.body.len() as u64, Ordering::Relaxed);
        match tokio::time::timeout(request.head_timeout, builder.send()).await {
            Ok(Ok(response)) => Ok(Answer {
                response,
                url: url.clone(),
                what: request.what.clone(),
                credentials: None,
                traffic: self.traffic.clone(),
            }),
            Ok(Err(error)) => Err(transport_failure(error, url, &request.what)),
            Err(_) => {
                let message = format!(
                    "{} gave no answer for {} s to {}",
                    authority(url),
                    request.head_timeout.as_secs(),
                    request.what
                );
                Err(Error::new(ErrorKind::Unavailable, message).into())
            }
        }
    }
}

fn client() -> reqwest::ClientBuilder {
    Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_LIFETIME)
}
