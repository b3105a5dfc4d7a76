//! A registry over an OCI layout that counts and misbehaves on request.
//!
//! Any repository name leads to the one layout. Manifests are found by tag and digest, blobs by digest with ranges.
//! Every request passes: record, latency, authentication, status faults, then the answer; a body is counted while the
//! connection takes it.

use std::fs;
use std::io::SeekFrom;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::fault::{End, FaultSet};
use super::traffic::{Class, Request, Traffic};
use crate::document::{self, Layout};

/// How a token begins; its number follows.
const TOKEN: &str = "a-token-of-the-tests-";

/// Longest wait for the end of connections when a registry vanishes.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// Pieces per second of a throttled body.
const THROTTLED_PIECES: u64 = 50;

/// Bytes of a body handed to the connection at once.
const PIECE: usize = 64 << 10;

/// A running registry; ends when dropped, breaking connections that are open.
#[derive(Debug)]
pub struct CountingRegistry {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    layout: Layout,
    address: SocketAddr,
    traffic: Traffic,
    faults: RwLock<Arc<FaultSet>>,
}

impl CountingRegistry {
    /// Serves a layout without fault.
    ///
    /// # Errors
    /// When no port can be opened.
    pub fn serve(layout: &Layout) -> Result<Self> {
        Self::serve_with(layout, FaultSet::none())
    }

    /// Serves a layout with faults.
    ///
    /// # Errors
    /// When no port can be opened.
    pub fn serve_with(layout: &Layout, faults: FaultSet) -> Result<Self> {
        let runtime = runtime()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let shared = Arc::new(Shared {
            layout: layout.clone(),
            address: listener.local_addr()?,
            traffic: Traffic::default(),
            faults: RwLock::new(Arc::new(faults)),
        });
        listen(&runtime, listener, &shared);
        Ok(Self {
            shared,
            runtime: Some(runtime),
        })
    }

    /// Is gone: connections break, and new ones are refused. Blocks for a moment.
    pub fn vanish(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(SHUTDOWN_WAIT);
        }
    }

    /// Is back under the same address.
    ///
    /// # Errors
    /// When somebody else has taken the port.
    pub fn come_back(&mut self) -> Result<()> {
        let runtime = runtime()?;
        let listener = runtime.block_on(TcpListener::bind(self.shared.address))?;
        listen(&runtime, listener, &self.shared);
        self.runtime = Some(runtime);
        Ok(())
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.shared.address.to_string()
    }

    /// `docker://HOST:PORT/test:TAG`.
    pub fn reference(&self, tag: &str) -> String {
        format!("docker://{}/test:{tag}", self.shared.address)
    }

    /// What it was asked for.
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// Misbehaves like this from now on.
    pub fn set_faults(&self, faults: FaultSet) {
        *self.shared.faults.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(faults);
    }
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

fn listen(runtime: &Runtime, listener: TcpListener, shared: &Arc<Shared>) {
    let router = Router::new().fallback(answer).with_state(Arc::clone(shared));
    let listener = listener.tap_io(|connection| {
        // Head and body of an answer are written apart; without this each would wait 40 ms for an acknowledgement.
        let _ = connection.set_nodelay(true);
        // A connection that breaks is reset, not ended.
        let _ = connection.set_zero_linger();
    });
    runtime.spawn(async move { axum::serve(listener, router).await });
}

impl Drop for CountingRegistry {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a path asks for.
enum Asked {
    Ping,
    Token,
    Manifest(String),
    Blob(String),
    Storage(String),
    Referrers(String),
    Other,
}

impl Asked {
    fn parse(uri: &Uri) -> Self {
        let path = uri.path();
        let last = path.rsplit('/').next().unwrap_or_default().to_owned();
        match path {
            "/v2/" | "/v2" => Self::Ping,
            "/token" => Self::Token,
            _ if path.starts_with("/storage/") => Self::Storage(last),
            _ if path.contains("/manifests/") => Self::Manifest(last),
            _ if path.contains("/blobs/") => Self::Blob(last),
            _ if path.contains("/referrers/") => Self::Referrers(last),
            _ => Self::Other,
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Ping => Class::Ping,
            Self::Token => Class::Token,
            Self::Manifest(_) => Class::Manifest,
            Self::Blob(_) => Class::Blob,
            Self::Storage(_) => Class::Storage,
            Self::Referrers(_) => Class::Referrers,
            Self::Other => Class::Other,
        }
    }
}

/// Marks the end of an answer in the record when the connection lets go of it.
struct Mark {
    traffic: Traffic,
    number: usize,
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.traffic.ended(self.number);
    }
}

async fn answer(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let asked = Asked::parse(&uri);
    let number = shared.traffic.arrived(Request {
        class: asked.class(),
        path: uri.to_string(),
        range: headers.get(header::RANGE).and_then(parse_range),
        status: 0,
        began: Instant::now(),
        ended: None,
        bytes: 0,
    });
    let mark = Mark {
        traffic: shared.traffic.clone(),
        number,
    };
    let faults = Arc::clone(&shared.faults.read().unwrap_or_else(PoisonError::into_inner));
    tokio::time::sleep(faults.latency()).await;
    let response = Answer {
        shared: &shared,
        faults: &faults,
        method: &method,
        query: uri.query().unwrap_or_default(),
        headers: &headers,
        mark,
    }
    .make(asked)
    .await;
    shared.traffic.answered(number, response.status().as_u16());
    response
}

/// Everything an answer is made from.
struct Answer<'a> {
    shared: &'a Shared,
    faults: &'a FaultSet,
    method: &'a Method,
    query: &'a str,
    headers: &'a HeaderMap,
    mark: Mark,
}

impl Answer<'_> {
    async fn make(self, asked: Asked) -> Response {
        if let Some(code) = self.faults.status(asked.class()) {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response =
                (status, r#"{"errors":[{"code":"FAULT","message":"injected"}]}"#).into_response();
            if let Some(seconds) = self.faults.retry_after() {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            return response;
        }
        if matches!(asked, Asked::Blob(_) | Asked::Storage(_)) && self.faults.reset() {
            let broken = stream::once(async { Err::<Bytes, _>(std::io::Error::other("reset")) });
            return Body::from_stream(broken).into_response();
        }
        if let Some(refusal) = self.refusal(&asked) {
            return refusal;
        }
        match asked {
            Asked::Ping => "{}".into_response(),
            Asked::Token => {
                let number = self.faults.token_expiry().map_or(0, |expiry| expiry.issue());
                ([(header::CONTENT_TYPE, "application/json")], token_answer(number)).into_response()
            }
            Asked::Manifest(name) => self.manifest(&name),
            Asked::Blob(digest) if self.faults.redirect() && *self.method == Method::GET => {
                // Another host name, so that clients drop the credentials as they do towards an object store.
                let signature = self
                    .faults
                    .redirect_expiry()
                    .map_or(0, |(expiry, _)| expiry.issue());
                let target = format!(
                    "http://localhost:{}/storage/{digest}?signature={signature}",
                    self.shared.address.port()
                );
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response()
            }
            Asked::Blob(digest) | Asked::Storage(digest) => {
                let answer = self.blob(&digest).await;
                answer.unwrap_or_else(|error| (StatusCode::NOT_FOUND, error.to_string()).into_response())
            }
            Asked::Referrers(subject) => self.referrers(&subject),
            Asked::Other => StatusCode::NOT_FOUND.into_response(),
        }
    }

    /// 401 without a token where one is asked for; 400 for credentials at the signed address.
    fn refusal(&self, asked: &Asked) -> Option<Response> {
        let credentials = self.headers.get(header::AUTHORIZATION);
        match asked {
            Asked::Token => None,
            Asked::Storage(_) if credentials.is_some() => {
                Some((StatusCode::BAD_REQUEST, "credentials twice").into_response())
            }
            Asked::Storage(_) => self.late_refusal(),
            _ if self.faults.password().is_some() => self.password_refusal(credentials),
            _ if !self.faults.token_auth() => None,
            _ if self.is_good_token(credentials) => None,
            _ => {
                let realm = format!("http://{}/token", self.shared.address);
                let challenge =
                    format!(r#"Bearer realm="{realm}",service="tests",scope="repository:test:pull""#);
                Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response())
            }
        }
    }

    /// The refusal of everything but the password.
    fn password_refusal(&self, credentials: Option<&HeaderValue>) -> Option<Response> {
        let (user, password) = self.faults.password()?;
        let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let is_good = credentials.is_some_and(|value| value.as_bytes() == expected.as_bytes());
        let challenge = [(header::WWW_AUTHENTICATE, r#"Basic realm="tests""#)];
        (!is_good).then(|| (StatusCode::UNAUTHORIZED, challenge).into_response())
    }

    /// The refusal of a signature that is used up.
    fn late_refusal(&self) -> Option<Response> {
        let (expiry, code) = self.faults.redirect_expiry()?;
        let (_, signature) = self.query.rsplit_once("signature=")?;
        let refused = !expiry.accepts(signature.parse().ok());
        refused.then(|| {
            StatusCode::from_u16(code)
                .unwrap_or(StatusCode::FORBIDDEN)
                .into_response()
        })
    }

    fn is_good_token(&self, credentials: Option<&HeaderValue>) -> bool {
        let token = credentials.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let number = token.and_then(|token| token.strip_prefix(TOKEN)?.parse().ok());
        match self.faults.token_expiry() {
            Some(expiry) => expiry.accepts(number),
            None => number.is_some(),
        }
    }

    fn manifest(self, name: &str) -> Response {
        match self.find_manifest(name) {
            Ok((digest, media_type, bytes)) => {
                if *self.method == Method::GET {
                    self.shared.traffic.sent(self.mark.number, bytes.len() as u64);
                }
                let headers = [
                    (header::CONTENT_TYPE, media_type),
                    (header::HeaderName::from_static("docker-content-digest"), digest),
                ];
                (headers, bytes).into_response()
            }
            Err(error) => (StatusCode::NOT_FOUND, format!("{error:#}")).into_response(),
        }
    }

    fn find_manifest(&self, name: &str) -> Result<(String, String, Vec<u8>)> {
        let layout = &self.shared.layout;
        let digest = match name.starts_with("sha256:") {
            true => name.to_owned(),
            false => document::text(&layout.tagged(name)?, "/digest")?.to_owned(),
        };
        let mut bytes = fs::read(layout.blob_path(&digest)?)?;
        let parsed: serde_json::Value = serde_json::from_slice(&bytes)?;
        let media_type = document::text(&parsed, "/mediaType")?.to_owned();
        for offset in self.faults.flipped(&digest) {
            let byte = bytes
                .get_mut(usize::try_from(offset)?)
                .context("a flipped byte outside of the manifest")?;
            *byte ^= 1;
        }
        Ok((digest, media_type, bytes))
    }

    /// The artifacts of the layout that are attached to a manifest. Without any, this is a registry that has no such API.
    fn referrers(self, subject: &str) -> Response {
        let listed = self.shared.layout.referrers(subject).unwrap_or_default();
        if listed.is_empty() {
            return StatusCode::NOT_FOUND.into_response();
        }
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": listed,
        });
        let bytes = index.to_string();
        self.shared.traffic.sent(self.mark.number, bytes.len() as u64);
        let headers = [(header::CONTENT_TYPE, "application/vnd.oci.image.index.v1+json")];
        (headers, bytes).into_response()
    }

    async fn blob(self, digest: &str) -> Result<Response> {
        let path = self.shared.layout.blob_path(digest)?;
        let len = tokio::fs::metadata(&path).await?.len();
        let asked = self
            .headers
            .get(header::RANGE)
            .and_then(parse_range)
            .filter(|_| !self.faults.whole_blob());
        let (first, end) = match asked {
            Some((first, _)) if first >= len => return Ok(StatusCode::RANGE_NOT_SATISFIABLE.into_response()),
            Some((first, last)) => (first, last.saturating_add(1).min(len)),
            None => (0, len),
        };
        let status = if asked.is_some() {
            StatusCode::PARTIAL_CONTENT
        } else {
            StatusCode::OK
        };
        let body = BlobBody::open(path, first, end, self, digest).await?;
        let tells_len = !matches!(body.cut, Some((_, End::Whole)));
        let mut response = (status, body.into_body()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if tells_len {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - first));
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        if asked.is_some() {
            let range = format!("bytes {first}-{}/{len}", end - 1);
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&range)?);
        }
        Ok(response)
    }
}

/// A run of a blob on its way out.
struct BlobBody {
    file: tokio::fs::File,
    at: u64,
    end: u64,
    flipped: Vec<u64>,
    /// Where the answer ends before its time, and how.
    cut: Option<(u64, End)>,
    /// Bytes per second.
    throttle: Option<u64>,
    mark: Mark,
}

impl BlobBody {
    async fn open(path: PathBuf, first: u64, end: u64, answer: Answer<'_>, digest: &str) -> Result<Self> {
        let mut file = tokio::fs::File::open(path).await?;
        file.seek(SeekFrom::Start(first)).await?;
        let mut flipped = answer.faults.flipped(digest);
        flipped.extend(answer.faults.corrupted().map(|at| first.saturating_add(at)));
        Ok(Self {
            file,
            at: first,
            end,
            flipped,
            throttle: answer.faults.throttle(),
            cut: answer
                .faults
                .cut()
                .map(|(bytes, how)| (first.saturating_add(bytes), how)),
            mark: answer.mark,
        })
    }

    fn into_body(self) -> Body {
        Body::from_stream(stream::try_unfold(self, |mut body| async move {
            let piece = body.next_piece().await?;
            Ok::<_, std::io::Error>(piece.map(|piece| (piece, body)))
        }))
    }

    async fn next_piece(&mut self) -> std::io::Result<Option<Bytes>> {
        let stop = self.cut.map_or(self.end, |(at, _)| at.min(self.end));
        if self.at >= stop {
            return match self.cut {
                Some((at, End::Stall)) if at < self.end => std::future::pending().await,
                Some((at, End::Break)) if at < self.end => Err(std::io::Error::other("cut")),
                _ => Ok(None),
            };
        }
        let piece_len = match self.throttle {
            None => PIECE as u64,
            Some(rate) => {
                tokio::time::sleep(Duration::from_secs(1) / THROTTLED_PIECES as u32).await;
                (rate / THROTTLED_PIECES).max(1)
            }
        };
        let want = (stop - self.at).min(piece_len) as usize;
        let mut piece = vec![0; want];
        self.file.read_exact(&mut piece).await?;
        for offset in &self.flipped {
            let place = offset
                .checked_sub(self.at)
                .and_then(|place| usize::try_from(place).ok());
            if let Some(byte) = place.and_then(|place| piece.get_mut(place)) {
                *byte ^= 1;
            }
        }
        self.at += want as u64;
        self.mark.traffic.sent(self.mark.number, want as u64);
        Ok(Some(piece.into()))
    }
}

fn token_answer(number: usize) -> String {
    serde_json::json!({"token": format!("{TOKEN}{number}"), "expires_in": 300}).to_string()
}

/// `bytes=first-last` with both ends or an open end.
fn parse_range(value: &HeaderValue) -> Option<(u64, u64)> {
    let (first, last) = value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        last.parse().ok()?
    };
    Some((first.parse().ok()?, last))
}
