//! Moving a range of a blob across as many answers and hosts as it takes.
//!
//! A host may send a reader elsewhere, to a URL that is signed and expires. The URL is remembered per blob and host, so that a
//! range costs one round trip, and forgotten as soon as it answers with anything but the bytes; the host then names a fresh
//! one, and the reader learns nothing of it. A body that breaks off or stalls is resumed where it broke, at the next host
//! if there is one ([`Route`]); what has arrived is not asked for again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use reqwest::header::RANGE;
use reqwest::{Method, StatusCode};
use url::Url;

use super::answer::Answer;
use super::auth::Scope;
use super::endpoint::authority;
use super::hosts::Host;
use super::hosts::health::Standing;
use super::part::{RangeBody, Wanted};
use super::pull::Inner;
use super::retry::Failure;
use super::route::Route;
use super::transport::Request;
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// Bytes after which a broken transfer counts as progress and the attempts are counted anew. Without a bound a server that cuts
/// every answer after one byte would be asked millions of times.
const PROGRESS: u64 = 64 << 10;

/// A blob at one host.
pub(super) struct Place {
    pub(super) host: Arc<Host>,
    pub(super) standing: Standing,
    pub(super) url: Url,
    pub(super) scope: Scope,
    /// Where the last range came from, if not from the host itself. Signed: not to be shown.
    target: Mutex<Option<Url>>,
}

impl Place {
    pub(super) fn new(host: Arc<Host>, standing: Standing, url: Url, scope: Scope) -> Self {
        Self {
            host,
            standing,
            url,
            scope,
            target: Mutex::default(),
        }
    }
}

/// The rest of a range.
pub(super) struct Transfer {
    blob: Arc<Inner>,
    /// What has not arrived yet.
    wanted: Wanted,
    route: Route,
    body: Option<(usize, RangeBody)>,
    since_failure: u64,
}

impl Transfer {
    pub(super) fn new(blob: Arc<Inner>, wanted: Wanted) -> Self {
        Self {
            route: blob.route(),
            blob,
            wanted,
            body: None,
            since_failure: 0,
        }
    }

    /// The next bytes; `None` when all have arrived.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.wanted.stored.is_empty() {
            let at = self
                .body
                .as_ref()
                .map_or_else(|| self.route.next(), |(at, _)| *at);
            match self.attempt(at).await {
                Ok(bytes) => {
                    self.wanted.stored.start += bytes.len() as u64;
                    self.since_failure += bytes.len() as u64;
                    if self.wanted.stored.is_empty() {
                        self.blob.served_by.store(at, Ordering::Relaxed);
                        self.route.worked(at);
                    }
                    return Ok(Some(bytes));
                }
                Err(failure) => {
                    self.body = None;
                    if std::mem::take(&mut self.since_failure) >= PROGRESS {
                        self.route.renew();
                    }
                    self.route.after(at, failure).await?;
                }
            }
        }
        Ok(None)
    }

    async fn attempt(&mut self, at: usize) -> Result<Bytes, Failure> {
        let (_, body) = match &mut self.body {
            Some(body) => body,
            None => {
                let body = self.blob.open(at, &self.wanted).await?;
                self.body.insert((at, body))
            }
        };
        body.next(self.wanted.stored.end - self.wanted.stored.start).await
    }
}

impl Inner {
    /// Asks a host for a range and checks the head of the answer.
    async fn open(&self, at: usize, wanted: &Wanted) -> Result<RangeBody, Failure> {
        let place = self.place(at)?;
        let what = format!(
            "bytes {}-{} of blob {}",
            wanted.stored.start,
            wanted.stored.end - 1,
            wanted.digest
        );
        let range = format!("bytes={}-{}", wanted.stored.start, wanted.stored.end - 1);
        let request = Request::new(Method::GET, what).header(RANGE, &range);
        let target = lock(&place.target).clone();
        if let Some(target) = target {
            match self.send(place, &request, &target).await {
                Ok(answer) if is_settled(answer.status()) => return wanted.check(answer).await,
                // Expired, or that address has a bad day: the host names a fresh one.
                _ => forget(place, &target),
            }
        }
        let answer = self.send(place, &request, &place.url).await?;
        let was_sent_elsewhere = answer.url != place.url;
        if was_sent_elsewhere && is_settled(answer.status()) {
            *lock(&place.target) = Some(answer.url.clone());
        }
        if was_sent_elsewhere && is_refused_signature(answer.status()) {
            return Err(stale(answer).await);
        }
        wanted.check(answer).await
    }

    async fn send(&self, place: &Place, request: &Request, url: &Url) -> Result<Answer, Failure> {
        let exchange = &self.client.exchange;
        exchange
            .send(&place.host.transport, request, url, &place.scope)
            .await
    }
}

/// Forgets a target unless another request has found a fresh one meanwhile.
fn forget(place: &Place, stale: &Url) {
    let mut target = lock(&place.target);
    if target.as_ref() == Some(stale) {
        *target = None;
    }
}

/// Whether a remembered target still answers for the blob.
fn is_settled(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE
    )
}

/// How object stores refuse a signature that has expired or is not valid yet.
fn is_refused_signature(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN)
}

/// A fresh address that does not work: clocks differ, or a cache in between gave an old one. The next may.
async fn stale(answer: Answer) -> Failure {
    let host = authority(&answer.url);
    let refusal = answer.refuse().await;
    let message = format!(
        "{}; {host} is where the registry sent this request",
        refusal.error
    );
    Failure {
        error: Error::new(ErrorKind::Unavailable, message),
        retry_after: refusal.retry_after,
    }
}
