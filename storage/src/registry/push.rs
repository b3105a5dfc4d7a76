//! Uploading blobs.
//!
//! Bytes are collected into parts. A blob of one part is sent with the closing request; a longer one goes part by part
//! within an upload session. When a part fails on the way, the registry is asked how much of it arrived, and the rest is
//! sent. Before the session is closed the registry is asked once whether it has the blob already; then the session is
//! cancelled instead, which is how equal layers of parallel pushes cost one transfer. A writer that is dropped cancels its session
//! in background.
//!
//! Source: OCI distribution spec 1.1, "Pushing blobs".

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE};
use reqwest::{Method, StatusCode};
use sluice_format::BlobDigest;
use url::Url;

use super::answer::Answer;
use super::endpoint::authority;
use super::repository::RegistryRepository;
use super::retry::Failure;
use super::transport::Request;
use crate::{BlobWriter, Error, ErrorKind, WritableRepository};

/// Length of a part: large enough that round trips vanish, small enough that memory and what a failure costs stay small.
const PART_LEN: usize = 8 << 20;
/// Longest part that a registry may insist on; it must fit into memory.
const LONGEST_PART: usize = 128 << 20;
/// Wait for the answer to a part or to the closing request: a registry may copy the whole blob before it answers.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// Header by which a registry asks for longer parts.
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const OCTET_STREAM: &str = "application/octet-stream";

/// An upload session.
struct Session {
    /// Where the next request goes. It may hold a secret of the session: not to be shown.
    location: Url,
    /// Bytes that the registry has.
    received: u64,
    /// Length of parts to send.
    part_len: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} bytes received)", self.received)
    }
}

/// A blob on its way into a registry.
#[derive(Debug)]
pub(super) struct RegistryWriter {
    repository: RegistryRepository,
    collected: BytesMut,
    session: Option<Session>,
    /// Set while a part is on its way: a write that failed or was given up leaves it set, and the blob is lost.
    broken: bool,
}

impl RegistryWriter {
    pub(super) fn new(repository: RegistryRepository) -> Self {
        Self {
            repository,
            collected: BytesMut::new(),
            session: None,
            broken: false,
        }
    }

    async fn append(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        self.check()?;
        self.broken = true;
        while !bytes.is_empty() {
            let part_len = self.session.as_ref().map_or(PART_LEN, |session| session.part_len);
            let room = part_len.saturating_sub(self.collected.len()).min(bytes.len());
            self.collected.extend_from_slice(&bytes.split_to(room));
            if self.collected.len() >= part_len {
                self.send_part().await?;
            }
        }
        self.broken = false;
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        match self.broken {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Io,
                "an earlier write to this blob did not succeed",
            )),
        }
    }

    /// Sends what has been collected, unless the registry asks for longer parts.
    async fn send_part(&mut self) -> Result<(), Error> {
        // The session stays with the writer while the part travels, so that dropping the writer cancels it.
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let session = self.repository.retry(|| begin(&self.repository)).await?;
                self.session.insert(session)
            }
        };
        if self.collected.len() >= session.part_len {
            let part = self.collected.split().freeze();
            send_part(&self.repository, session, part).await?;
        }
        Ok(())
    }

    async fn close(mut self: Box<Self>, digest: BlobDigest) -> Result<(), Error> {
        self.check()?;
        if self.repository.has_blob(&digest).await? {
            if let Some(session) = self.session.take() {
                cancel(&self.repository, session.location).await;
            }
            return Ok(());
        }
        let rest = self.collected.split().freeze();
        if self.session.is_some() {
            self.close_session(digest, rest).await
        } else {
            self.store_whole(digest, rest).await
        }
    }

    /// Sends the last part and closes the session.
    async fn close_session(&mut self, digest: BlobDigest, rest: Bytes) -> Result<(), Error> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        if !rest.is_empty() {
            send_part(&self.repository, session, rest).await?;
        }
        let (repository, session) = (&self.repository, &*session);
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            try_close(repository, session, &digest, attempts > 1)
        };
        self.repository.retry(attempt).await?;
        self.session = None;
        Ok(())
    }

    /// Stores a blob of one part, in a session of its own for each attempt.
    async fn store_whole(&self, digest: BlobDigest, bytes: Bytes) -> Result<(), Error> {
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            try_store_whole(&self.repository, &digest, bytes.clone(), attempts > 1)
        };
        self.repository.retry(attempt).await
    }
}

impl Drop for RegistryWriter {
    fn drop(&mut self) {
        let (Some(session), Ok(runtime)) = (self.session.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let repository = self.repository.clone();
        runtime.spawn(async move { cancel(&repository, session.location).await });
    }
}

impl BlobWriter for RegistryWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        self.append(bytes).boxed()
    }

    fn finish(self: Box<Self>, digest: BlobDigest) -> BoxFuture<'static, Result<(), Error>> {
        self.close(digest).boxed()
    }
}

/// One attempt to take a blob over from another repository.
pub(super) async fn try_mount(
    repository: &RegistryRepository,
    digest: &BlobDigest,
    from: &str,
) -> Result<bool, Failure> {
    let request = Request::new(Method::POST, format!("taking blob {digest} over from {from}"));
    let url = repository.endpoint.mount(digest, from);
    let answer = repository.send_push(&request, &url, Some(from)).await?;
    match answer.status() {
        StatusCode::CREATED => Ok(true),
        StatusCode::ACCEPTED => {
            // Not mounted; the registry began an upload instead.
            if let Ok(location) = location(&answer) {
                cancel(repository, location).await;
            }
            Ok(false)
        }
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Ok(false),
        _ => Err(answer.refuse().await),
    }
}

/// One attempt to begin a session.
async fn begin(repository: &RegistryRepository) -> Result<Session, Failure> {
    let request = Request::new(
        Method::POST,
        format!("beginning an upload to {}", repository.endpoint),
    );
    let answer = repository
        .send_push(&request, &repository.endpoint.uploads(), None)
        .await?;
    if answer.status() != StatusCode::ACCEPTED {
        return Err(answer.refuse().await);
    }
    let asked = answer
        .header(CHUNK_MIN_LENGTH)
        .and_then(|text| text.trim().parse().ok());
    let part_len = asked.unwrap_or(0).max(PART_LEN);
    if part_len > LONGEST_PART {
        let message = format!("{} wants parts of {part_len} bytes", authority(&answer.url));
        return Err(Error::new(ErrorKind::Unsupported, message).into());
    }
    Ok(Session {
        location: location(&answer)?,
        received: 0,
        part_len,
    })
}

/// One attempt to close a session that has all bytes.
async fn try_close(
    repository: &RegistryRepository,
    session: &Session,
    digest: &BlobDigest,
    again: bool,
) -> Result<(), Failure> {
    // The answer to an attempt that succeeded may have been lost.
    if again && repository.has_blob(digest).await? {
        return Ok(());
    }
    put(repository, session, digest, Bytes::new()).await
}

/// One attempt to store a blob in one go.
async fn try_store_whole(
    repository: &RegistryRepository,
    digest: &BlobDigest,
    bytes: Bytes,
    again: bool,
) -> Result<(), Failure> {
    if again && repository.has_blob(digest).await? {
        return Ok(());
    }
    let session = begin(repository).await?;
    put(repository, &session, digest, bytes).await
}

/// Closes a session with the last bytes.
async fn put(
    repository: &RegistryRepository,
    session: &Session,
    digest: &BlobDigest,
    rest: Bytes,
) -> Result<(), Failure> {
    let mut url = session.location.clone();
    url.query_pairs_mut().append_pair("digest", &digest.to_string());
    let request = Request::new(Method::PUT, format!("the end of blob {digest}"))
        .header(CONTENT_TYPE, OCTET_STREAM)
        .head_timeout(UPLOAD_TIMEOUT)
        .body(rest);
    let answer = repository.send_push(&request, &url, None).await?;
    match answer.status().is_success() {
        true => Ok(()),
        false => Err(answer.refuse().await),
    }
}

/// Sends one part, in as many attempts as it takes.
async fn send_part(repository: &RegistryRepository, session: &mut Session, part: Bytes) -> Result<(), Error> {
    let begin = session.received;
    let end = begin + part.len() as u64;
    let mut patience = repository.patience();
    while session.received < end {
        let rest = part.slice((session.received - begin) as usize..);
        let sent = try_send(repository, session, rest).await;
        let Err(failure) = sent else { continue };
        patience.after(resumable(failure)).await?;
        if let Err(failure) = ask_received(repository, session, begin..=end).await {
            patience.after(failure).await?;
        }
    }
    Ok(())
}

/// A registry that has another number of bytes than it was told says so with `416`; asking it is worth a try.
fn resumable(failure: Failure) -> Failure {
    match failure.error.kind() {
        ErrorKind::InvalidInput => {
            let message = failure.error.to_string();
            Error::new(ErrorKind::Unavailable, message)
                .with_source(failure.error)
                .into()
        }
        _ => failure,
    }
}

async fn try_send(
    repository: &RegistryRepository,
    session: &mut Session,
    rest: Bytes,
) -> Result<(), Failure> {
    let end = session.received + rest.len() as u64;
    let range = format!("{}-{}", session.received, end - 1);
    let request = Request::new(Method::PATCH, format!("bytes {range} of an upload"))
        .header(CONTENT_TYPE, OCTET_STREAM)
        .header(CONTENT_RANGE, &range)
        .head_timeout(UPLOAD_TIMEOUT)
        .body(rest);
    let answer = repository.send_push(&request, &session.location, None).await?;
    if !answer.status().is_success() {
        return Err(answer.refuse().await);
    }
    session.location = location(&answer)?;
    let reported = answer.header(RANGE).and_then(parse_received);
    session.received = reported
        .filter(|at| (session.received + 1..=end).contains(at))
        .unwrap_or(end);
    Ok(())
}

/// Asks how much the registry has; it must be within what may have arrived.
async fn ask_received(
    repository: &RegistryRepository,
    session: &mut Session,
    possible: std::ops::RangeInclusive<u64>,
) -> Result<(), Failure> {
    let request = Request::new(Method::GET, "the state of an upload");
    let answer = repository.send_push(&request, &session.location, None).await?;
    if !answer.status().is_success() {
        return Err(answer.refuse().await);
    }
    let reported = answer.header(RANGE).and_then(parse_received);
    // "0-0" means both one byte and none. Where nothing can have arrived before this part, none is the likely one.
    let received = match reported {
        Some(1) | None if *possible.start() == 0 => 0,
        Some(received) => received,
        None => session.received,
    };
    if !possible.contains(&received) {
        let message = format!(
            "{} has {received} bytes of an upload, between {} and {} were sent",
            authority(&answer.url),
            possible.start(),
            possible.end()
        );
        return Err(Error::new(ErrorKind::Corrupt, message).into());
    }
    if let Ok(location) = location(&answer) {
        session.location = location;
    }
    session.received = received;
    Ok(())
}

/// Gives a session up. What cannot be cancelled expires in the registry by itself.
async fn cancel(repository: &RegistryRepository, location: Url) {
    let request = Request::new(Method::DELETE, "giving up an upload");
    if let Err(failure) = repository.send_push(&request, &location, None).await {
        tracing::debug!(error = %failure.error, "an upload could not be given up; the registry will forget it");
    }
}

/// Where a session goes on. A registry behind a proxy that ends TLS may name itself without it; that is not followed.
fn location(answer: &Answer) -> Result<Url, Failure> {
    let target = answer
        .header(LOCATION)
        .and_then(|text| answer.url.join(text).ok());
    let Some(mut target) = target.filter(|target| matches!(target.scheme(), "http" | "https")) else {
        let message = format!(
            "{} answered {} without a location",
            authority(&answer.url),
            answer.what
        );
        return Err(Error::new(ErrorKind::Unsupported, message).into());
    };
    let is_downgrade = answer.url.scheme() == "https" && target.scheme() == "http";
    if is_downgrade && target.host() == answer.url.host() {
        // Neither fails between the two schemes of the web.
        let _ = target.set_scheme("https");
        let _ = target.set_port(answer.url.port());
    }
    Ok(target)
}

/// The number of bytes received, from `0-1023` or `bytes=0-1023`.
fn parse_received(text: &str) -> Option<u64> {
    let (_, last) = text.trim().rsplit_once('-')?;
    last.parse::<u64>().ok()?.checked_add(1)
}
