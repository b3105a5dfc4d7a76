//! One request out, the head of one response in.
//!
//! Redirects are not followed and nothing is retried here. The wait for the head is bounded per request, because an upload
//! may take minutes where a range takes a moment; bodies have an idle timeout of their own. Bytes must arrive as they are stored, so no
//! encoding is offered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use url::{Origin, Url};

use super::answer::{Answer, transport_failure};
use super::clients::Clients;
use super::endpoint::authority;
use super::hosts::config::HostConfig;
use super::retry::Failure;
use super::{RegistryOptions, TrafficCounters};
use crate::{Error, ErrorKind};

/// A request apart from where it goes and who asks.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// What is asked, for messages: "manifest latest", "bytes 0-99 of blob sha256:…".
    pub(super) what: Arc<str>,
    headers: HeaderMap,
    body: Bytes,
    /// Longest wait for the head of the answer, where it is not that of the transport.
    head_timeout: Option<Duration>,
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
            head_timeout: None,
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
        self.head_timeout = Some(head_timeout);
        self
    }
}

/// The connection pools of one host, or of all hosts that need nothing of their own.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    clients: Arc<Clients>,
    own: Option<Arc<OwnHeaders>>,
    answer_timeout: Duration,
    idle_timeout: Duration,
    traffic: Arc<TrafficCounters>,
}

/// Headers that go to one host and to none that it redirects to.
#[derive(Debug)]
struct OwnHeaders {
    origin: Origin,
    headers: HeaderMap,
}

impl Transport {
    /// The connections of hosts that need nothing of their own.
    pub(super) fn new(options: &RegistryOptions, traffic: &Arc<TrafficCounters>) -> Self {
        Self::with(Clients::shared(options), None, options, traffic)
    }

    /// The connections of a host with certificates, headers or a time limit of its own.
    pub(super) fn for_host(
        options: &RegistryOptions,
        traffic: &Arc<TrafficCounters>,
        config: &HostConfig,
        base: &Url,
    ) -> Result<Self, Error> {
        let own = (!config.headers.is_empty()).then(|| {
            Arc::new(OwnHeaders {
                origin: base.origin(),
                headers: config.headers.clone(),
            })
        });
        let clients = Clients::of_host(options, config, base)?;
        Ok(Self::with(clients, own, options, traffic))
    }

    /// Makes what TLS needs.
    pub(super) async fn prepare(&self) {
        self.clients.prepare().await;
    }

    /// A client for other protocols. Blocks on the disk.
    #[cfg(feature = "object-storage")]
    pub(super) fn client(&self) -> Result<reqwest::Client, Error> {
        self.clients.any()
    }

    fn with(
        clients: Clients,
        own: Option<Arc<OwnHeaders>>,
        options: &RegistryOptions,
        traffic: &Arc<TrafficCounters>,
    ) -> Self {
        Self {
            clients: Arc::new(clients),
            own,
            answer_timeout: options.answer_timeout,
            idle_timeout: options.idle_timeout,
            traffic: traffic.clone(),
        }
    }

    /// Sends `request` to `url` and waits for the head of the answer, whatever its status.
    pub(super) async fn send(
        &self,
        request: &Request,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        let client = self.clients.of(url).await?;
        let builder = client
            .request(request.method.clone(), url.clone())
            .headers(self.headers(request, url, authorization))
            .body(request.body.clone());
        self.traffic.requests.fetch_add(1, Ordering::Relaxed);
        self.traffic
            .sent_bytes
            .fetch_add(request.body.len() as u64, Ordering::Relaxed);
        let head_timeout = request.head_timeout.unwrap_or(self.answer_timeout);
        match tokio::time::timeout(head_timeout, builder.send()).await {
            Ok(Ok(response)) => Ok(Answer {
                response,
                url: url.clone(),
                what: request.what.clone(),
                credentials: None,
                idle_timeout: self.idle_timeout,
                traffic: self.traffic.clone(),
            }),
            Ok(Err(error)) => Err(transport_failure(error, url, &request.what)),
            Err(_) => {
                let message = format!(
                    "{} gave no answer for {} s to {}",
                    authority(url),
                    head_timeout.as_secs_f32(),
                    request.what
                );
                Err(Error::new(ErrorKind::Unavailable, message).into())
            }
        }
    }

    fn headers(&self, request: &Request, url: &Url, authorization: Option<HeaderValue>) -> HeaderMap {
        let own = self.own.as_ref().filter(|own| own.origin == url.origin());
        let mut headers = own.map(|own| own.headers.clone()).unwrap_or_default();
        for (name, value) in &request.headers {
            headers.insert(name, value.clone());
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        headers
    }
}
