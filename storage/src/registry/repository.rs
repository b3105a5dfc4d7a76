//! One repository of a registry.

use std::fmt;
use std::sync::Arc;

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
use super::pull::RegistryBlob;
use super::push::{self, RegistryWriter};
use super::referrers;
use super::retry::{Failure, Patience};
use super::transport::Request;
use crate::referrers::Referrer;
use crate::{
    Blob, BlobWriter, Descriptor, Error, ErrorKind, Manifest, ManifestName, Repository, WritableRepository,
    documents,
};

/// A repository of a registry, for reading and writing.
#[derive(Clone)]
pub struct RegistryRepository {
    client: Arc<RegistryClient>,
    pub(super) endpoint: Endpoint,
}

impl fmt::Debug for RegistryRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.endpoint, f)
    }
}

impl RegistryRepository {
    pub(super) fn new(client: Arc<RegistryClient>, endpoint: Endpoint) -> Self {
        Self { client, endpoint }
    }

    /// The client that it shares with other repositories.
    pub fn client(&self) -> &Arc<RegistryClient> {
        &self.client
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.client.options.limits
    }

    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.client.options.first_retry_delay)
    }

    /// One attempt at a request that reads.
    pub(super) async fn send_pull(&self, request: &Request, url: &Url) -> Result<Answer, Failure> {
        let scope = Scope::pull(self.endpoint.repository());
        self.client.exchange.send(request, url, &scope).await
    }

    /// One attempt at a request that writes, and that reads `from` when it takes a blob over from there.
    pub(super) async fn send_push(
        &self,
        request: &Request,
        url: &Url,
        from: Option<&str>,
    ) -> Result<Answer, Failure> {
        let mut scope = Scope::push(self.endpoint.repository());
        if let Some(from) = from {
            scope = scope.and_pull(from);
        }
        self.client.exchange.send(request, url, &scope).await
    }

    async fn try_fetch_manifest(&self, name: &ManifestName) -> Result<Manifest, Failure> {
        let limits = &self.client.options.limits;
        let what = format!("manifest {name} of {}", self.endpoint);
        let accepted = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let request = Request::new(Method::GET, what.clone()).header(ACCEPT, &accepted);
        let answer = self.send_pull(&request, &self.endpoint.manifest(name)).await?;
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
    fn location(&self) -> String {
        self.endpoint.to_string()
    }

    fn fetch_manifest<'a>(&'a self, name: &'a ManifestName) -> BoxFuture<'a, Result<Manifest, Error>> {
        Box::pin(self.retry(|| self.try_fetch_manifest(name)))
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        Arc::new(RegistryBlob::new(
            self.clone(),
            descriptor.digest,
            descriptor.size,
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
            let bytes = self.open_blob(descriptor).read_range(0..*size).await?;
            verify(
                &format!("blob {digest} of {}", self.endpoint),
                Digest::of(&bytes),
                digest.0,
            )?;
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
