//! One repository of a registry.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, StatusCode};
use sluice_format::artifact::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use sluice_format::{BlobDigest, Digest, FormatError, Limits};
use url::Url;

use super::RegistryClient;
use super::answer::Answer;
use super::auth::Scope;
use super::endpoint::Endpoint;
use super::hosts::config::Capabilities;
use super::pull::RemoteBlob;
use super::push::{self, RegistryWriter};
use super::referrers;
use super::retry::{Failure, Patience};
use super::route::Route;
use super::transfer::Place;
use super::transport::Request;
use crate::referrers::Referrer;
use crate::{
    Blob, BlobWriter, Descriptor, Error, ErrorKind, Manifest, ManifestName, Repository, WritableRepository,
    documents,
};

/// Connections opened ahead: for the config and the parts of indexes of a usual image.
const CONNECTIONS: usize = 5;
/// How long one may take.
const CONNECTING: Duration = Duration::from_secs(5);

/// A repository of a registry, for reading and writing.
#[derive(Clone)]
pub struct RegistryRepository {
    client: Arc<RegistryClient>,
    /// In the order in which they are asked; the origin is the last.
    endpoints: Arc<[Endpoint]>,
    /// The one that is written to: the first that may be.
    pub(super) endpoint: Endpoint,
}

impl fmt::Debug for RegistryRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.endpoint, f)
    }
}

impl RegistryRepository {
    /// A repository at `endpoints`, of which there is at least one besides `origin`, or that one.
    pub(super) fn new(client: Arc<RegistryClient>, mirrors: Vec<Endpoint>, origin: Endpoint) -> Self {
        let endpoints: Arc<[Endpoint]> = mirrors.into_iter().chain([origin.clone()]).collect();
        let pushes = endpoints.iter().find(|endpoint| endpoint.host.capabilities.push);
        Self {
            client,
            endpoint: pushes.unwrap_or(&origin).clone(),
            endpoints,
        }
    }

    /// The client that it shares with other repositories.
    pub fn client(&self) -> &Arc<RegistryClient> {
        &self.client
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.client.options.limits
    }

    pub(super) fn patience(&self) -> Patience {
        Patience::new(&self.client.options)
    }

    /// One attempt at a request that reads.
    pub(super) async fn send_pull(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        url: &Url,
    ) -> Result<Answer, Failure> {
        let scope = Scope::pull(endpoint.repository());
        let transport = &endpoint.host.transport;
        self.client.exchange.send(transport, request, url, &scope).await
    }

    /// One attempt at a request that writes, and that reads `from` when it takes a blob over from there.
    pub(super) async fn send_push(
        &self,
        request: &Request,
        url: &Url,
        from: Option<&str>,
    ) -> Result<Answer, Failure> {
        let host = &self.endpoint.host;
        if !host.capabilities.push {
            let message = format!("no host of {} may be pushed to", self.endpoint.registry());
            return Err(Error::new(ErrorKind::Unsupported, message).into());
        }
        let mut scope = Scope::push(self.endpoint.repository());
        if let Some(from) = from {
            scope = scope.and_pull(from);
        }
        self.client
            .exchange
            .send(&host.transport, request, url, &scope)
            .await
    }

    /// Opens a connection to the host that is asked first.
    async fn try_connect(&self) {
        let Some(endpoint) = self.endpoints.first() else {
            return;
        };
        let request = Request::new(Method::HEAD, "a connection").head_timeout(CONNECTING);
        // Whatever the answer is, the connection is there; and whoever needs it meets the same error.
        let _ = endpoint
            .host
            .transport
            .send(&request, &endpoint.root(), None)
            .await;
    }

    async fn try_fetch_manifest(
        &self,
        endpoint: &Endpoint,
        name: &ManifestName,
    ) -> Result<Manifest, Failure> {
        let limits = &self.client.options.limits;
        let what = format!("manifest {name} of {endpoint}");
        let accepted = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let request = Request::new(Method::GET, what.clone()).header(ACCEPT, &accepted);
        let answer = self
            .send_pull(endpoint, &request, &endpoint.manifest(name))
            .await?;
        if answer.status() != StatusCode::OK {
            return Err(answer.refuse().await);
        }
        let header = answer.header(CONTENT_TYPE).map(media_type);
        let bytes = answer.bytes(limits.manifest_len).await?;
        let digest = Digest::of(&bytes);
        if let ManifestName::Digest(expected) = name {
            verify(&what, digest, *expected)?;
        }
        let media_type = match header {
            Some(media_type) if accepted.contains(media_type.as_str()) && !media_type.is_empty() => {
                media_type
            }
            _ => documents::manifest_media_type(&bytes, limits)?,
        };
        Ok(Manifest {
            media_type,
            digest,
            bytes,
        })
    }

    async fn try_has_blob(&self, digest: &BlobDigest) -> Result<bool, Failure> {
        let request = Request::new(Method::HEAD, format!("the question for blob {digest}"));
        let answer = self
            .send_push(&request, &self.endpoint.blob(digest), None)
            .await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(answer.refuse().await),
        }
    }

    async fn try_put_manifest(&self, url: &Url, media_type: &str, bytes: &Bytes) -> Result<(), Failure> {
        let request = Request::new(Method::PUT, format!("storing a manifest of {}", self.endpoint))
            .header(CONTENT_TYPE, media_type)
            .body(bytes.clone());
        let answer = self.send_push(&request, url, None).await?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(answer.refuse().await),
        }
    }

    /// Runs `attempt` at one host after the other until it succeeds or patience ends.
    pub(super) async fn retry_at<'a, T, A>(
        &'a self,
        is_able: impl Fn(Capabilities) -> bool,
        mut attempt: impl FnMut(&'a Endpoint) -> A,
    ) -> Result<T, Error>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        let able: Vec<&Endpoint> = self
            .endpoints
            .iter()
            .filter(|endpoint| is_able(endpoint.host.capabilities))
            .collect();
        let standings = able.iter().map(|endpoint| endpoint.standing()).collect();
        let mut route = Route::new(standings, self.patience());
        loop {
            let at = route.next();
            let Some(endpoint) = able.get(at) else {
                let message = format!("no host of {} may be asked for that", self.endpoint.registry());
                return Err(Error::new(ErrorKind::Unsupported, message));
            };
            match attempt(endpoint).await {
                Ok(value) => {
                    route.worked(at);
                    return Ok(value);
                }
                Err(failure) => route.after(at, failure).await?,
            }
        }
    }

    /// Runs `attempt` until it succeeds or patience ends.
    pub(super) async fn retry<T, A>(&self, mut attempt: impl FnMut() -> A) -> Result<T, Error>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        let mut patience = self.patience();
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(failure) => patience.after(failure).await?,
            }
        }
    }
}

impl Repository for RegistryRepository {
    fn connect(&self) {
        for _ in 0..CONNECTIONS {
            let repository = self.clone();
            tokio::spawn(async move { repository.try_connect().await });
        }
    }

    fn location(&self) -> String {
        self.endpoint.to_string()
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        let is_able = |able: Capabilities| match name {
            ManifestName::Tag(_) => able.resolve,
            ManifestName::Digest(_) => able.pull,
        };
        Box::pin(self.retry_at(is_able, move |endpoint| self.try_fetch_manifest(endpoint, name)))
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let pulls = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.host.capabilities.pull);
        let places = pulls.map(|endpoint| {
            let scope = Scope::pull(endpoint.repository());
            let url = endpoint.blob(&descriptor.digest);
            Place::new(endpoint.host.clone(), endpoint.standing(), url, scope)
        });
        Arc::new(RemoteBlob::new(
            &self.client,
            self.endpoint.to_string(),
            self.endpoint.registry(),
            (descriptor.digest, descriptor.size),
            places.collect(),
        ))
    }

    fn fetch_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        max_len: u64,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        async move {
            let Descriptor { digest, size, .. } = descriptor;
            if *size > max_len {
                let message = format!("blob {digest} has {size} bytes, over the limit of {max_len}");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            let blob = self.open_blob(descriptor);
            let what = format!("blob {digest} of {}", self.endpoint);
            let bytes = blob.read_range(0..*size).await?;
            if Digest::of(&bytes) == digest.0 {
                return Ok(bytes);
            }
            blob.gave_wrong_bytes();
            let bytes = blob.read_range(0..*size).await?;
            verify(&what, Digest::of(&bytes), digest.0)?;
            Ok(bytes)
        }
        .boxed()
    }

    fn fetch_referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Referrer>, Error>> {
        Box::pin(referrers::fetch(self, subject, artifact_type))
    }
}

impl WritableRepository for RegistryRepository {
    fn has_blob<'a>(&'a self, digest: &'a BlobDigest) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.retry(|| self.try_has_blob(digest)))
    }

    fn mount_blob<'a>(
        &'a self,
        digest: &'a BlobDigest,
        from_repository: &'a str,
    ) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.retry(|| push::try_mount(self, digest, from_repository)))
    }

    fn begin_blob(&self) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, Error>> {
        let writer = RegistryWriter::new(self.clone());
        async move { Ok(Box::new(writer) as Box<dyn BlobWriter>) }.boxed()
    }

    fn put_manifest<'a>(
        &'a self,
        name: &'a ManifestName,
        media_type: &'a str,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let digest = Digest::of(&bytes);
            if let ManifestName::Digest(expected) = name {
                verify("the manifest to store", digest, *expected)?;
            }
            let url = self.endpoint.manifest(name);
            self.retry(|| self.try_put_manifest(&url, media_type, &bytes))
                .await
        }
        .boxed()
    }

    fn put_referrer<'a>(
        &'a self,
        subject: &'a Digest,
        referrer: &'a Referrer,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(referrers::put(self, subject, referrer, bytes))
    }
}

/// A `Content-Type` without its parameters.
fn media_type(header: &str) -> String {
    let end = header.find(';').unwrap_or(header.len());
    header[..end].trim().to_owned()
}

fn verify(what: &str, found: Digest, expected: Digest) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Corrupt {
        what: what.to_owned(),
        expected,
        found,
    }
    .into())
}
