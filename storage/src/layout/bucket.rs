//! The files of a layout in object storage, through opendal.
//!
//! Credentials and endpoints come from the environment, as each service names them there. opendal retries nothing here: the
//! patience that registries get decides, and a range that breaks off is resumed where it broke.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use opendal::services::{Azblob, Gcs, Oss, S3};
use opendal::{BufferStream, BytesRange, HttpTransporter, OperationContext, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;
use sluice_format::BlobDigest;

use super::objects::{Objects, check_len};
use super::{RemotePlace, Service};
use crate::blob::check_range;
use crate::registry::{Patience, RegistryOptions};
use crate::{Blob, ByteStream, Error, ErrorKind, RegistryClient};

/// Variables that name the endpoint of a service for which opendal reads none.
const OSS_ENDPOINT: &str = "OSS_ENDPOINT";
const GCS_ENDPOINT: &str = "GCS_ENDPOINT";
const AZURE_ENDPOINT: &str = "AZURE_STORAGE_ENDPOINT";
const AZURE_ACCOUNT: &str = "AZURE_STORAGE_ACCOUNT_NAME";
/// Variable that, set to anything, has public buckets read without credentials.
const ANONYMOUS: &str = "SLUICE_ANONYMOUS_STORAGE";
/// Bytes after which a range that broke off counts as progress and the attempts are counted anew.
const PROGRESS: u64 = 64 << 10;

/// A bucket and a prefix in it.
#[derive(Clone)]
pub(crate) struct Bucket {
    operator: Operator,
    location: String,
    options: Arc<RegistryOptions>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location)
    }
}

impl Bucket {
    /// The bucket that `place` names, with what the environment says of its service.
    pub(super) fn open(place: &RemotePlace, client: &Arc<RegistryClient>) -> Result<Self, Error> {
        let transport = ReqwestTransport::new(client.plain_http_client()?);
        let context = OperationContext::new().with_http_transport(HttpTransporter::new(transport));
        let operator = build(place).map_err(|error| {
            let message = format!("{place} cannot be set up");
            Error::new(ErrorKind::InvalidInput, message).with_source(error)
        })?;
        Ok(Self::new(
            operator.with_context(context),
            place.to_string(),
            client,
        ))
    }

    pub(super) fn new(operator: Operator, location: String, client: &Arc<RegistryClient>) -> Self {
        Self {
            operator,
            location,
            options: Arc::new(client.options().clone()),
        }
    }

    /// Waits for `answer` no longer than `limit`.
    async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        answer: impl Future<Output = Result<T, opendal::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.map_err(|error| self.failed(what, error)),
            Err(_) => {
                let message = format!(
                    "{} sent nothing for {} s for {what}",
                    self.location,
                    limit.as_secs_f32()
                );
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    fn failed(&self, what: &str, error: opendal::Error) -> Error {
        let kind = match error.kind() {
            opendal::ErrorKind::NotFound => ErrorKind::NotFound,
            opendal::ErrorKind::PermissionDenied => ErrorKind::Denied,
            opendal::ErrorKind::RateLimited => ErrorKind::Unavailable,
            opendal::ErrorKind::RangeNotSatisfied => ErrorKind::Corrupt,
            opendal::ErrorKind::ConfigInvalid => ErrorKind::InvalidInput,
            opendal::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Unavailable,
        };
        let message = format!("{} does not give {what}: {}", self.location, error.kind());
        Error::new(kind, message).with_source(error)
    }

    async fn begin(&self, path: &str, range: impl Into<BytesRange>) -> Result<BufferStream, Error> {
        let begin = async { self.operator.reader(path).await?.into_stream(range).await };
        self.within(self.options.answer_timeout, path, begin).await
    }

    async fn next(&self, path: &str, stream: &mut BufferStream) -> Result<Option<Bytes>, Error> {
        let piece = self
            .within(self.options.idle_timeout, path, stream.try_next())
            .await?;
        Ok(piece.map(|piece| piece.to_bytes()))
    }

    async fn try_fetch(&self, path: &str, max_len: u64) -> Result<Bytes, Error> {
        let mut stream = self.begin(path, ..).await?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = self.next(path, &mut stream).await? {
            bytes.extend_from_slice(&piece);
            check_len(
                &format!("{path} of {}", self.location),
                bytes.len() as u64,
                max_len,
            )?;
        }
        Ok(bytes.freeze())
    }
}

fn build(place: &RemotePlace) -> Result<Operator, opendal::Error> {
    let (bucket, root) = (place.authority(), format!("/{}", place.path()));
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let anonymous = variable(ANONYMOUS).is_some();
    match place.service() {
        Service::Oss => {
            let service = Oss::default().bucket(bucket).root(&root);
            let service = service.endpoint(&variable(OSS_ENDPOINT).unwrap_or_default());
            Operator::new(when(anonymous, service, Oss::skip_signature))
        }
        Service::Gcs => {
            let service = Gcs::default().bucket(bucket).root(&root);
            let service = service.endpoint(&variable(GCS_ENDPOINT).unwrap_or_default());
            Operator::new(when(anonymous, service, Gcs::skip_signature))
        }
        Service::Azblob => {
            let of_account = |account| format!("https://{account}.blob.core.windows.net");
            let endpoint = variable(AZURE_ENDPOINT).or_else(|| variable(AZURE_ACCOUNT).map(of_account));
            let service = Azblob::default().container(bucket).root(&root);
            let service = service.endpoint(&endpoint.unwrap_or_default());
            Operator::new(when(anonymous, service, Azblob::skip_signature))
        }
        Service::S3 | Service::Http | Service::Https => {
            let service = S3::default().bucket(bucket).root(&root);
            Operator::new(when(anonymous, service, S3::skip_signature))
        }
    }
}

fn when<T>(applies: bool, service: T, change: impl FnOnce(T) -> T) -> T {
    if applies { change(service) } else { service }
}

impl Objects for Bucket {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn fetch<'a>(&'a self, path: &'a str, max_len: u64) -> BoxFuture<'a, Result<Bytes, Error>> {
        async move {
            let mut patience = Patience::new(&self.options);
            loop {
                match self.try_fetch(path, max_len).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => patience.after(error.into()).await?,
                }
            }
        }
        .boxed()
    }

    fn open(&self, path: &str, digest: BlobDigest, stored_len: u64) -> Arc<dyn Blob> {
        Arc::new(BucketBlob {
            bucket: self.clone(),
            path: path.into(),
            digest,
            stored_len,
        })
    }
}

/// The rest of a range, across as many requests as it takes.
struct Reading {
    bucket: Bucket,
    path: Arc<str>,
    wanted: Range<u64>,
    stream: Option<BufferStream>,
    patience: Patience,
    since_failure: u64,
}

impl Reading {
    fn new(bucket: Bucket, path: Arc<str>, wanted: Range<u64>) -> Self {
        Self {
            patience: Patience::new(&bucket.options),
            bucket,
            path,
            wanted,
            stream: None,
            since_failure: 0,
        }
    }

    /// The next bytes; `None` when all have arrived.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.wanted.is_empty() {
            match self.attempt().await {
                Ok(bytes) => {
                    self.wanted.start += bytes.len() as u64;
                    self.since_failure += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Err(error) => {
                    self.stream = None;
                    if std::mem::take(&mut self.since_failure) >= PROGRESS {
                        self.patience.renew();
                    }
                    self.patience.after(error.into()).await?;
                }
            }
        }
        Ok(None)
    }

    async fn attempt(&mut self) -> Result<Bytes, Error> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = self.bucket.begin(&self.path, self.wanted.clone()).await?;
                self.stream.insert(stream)
            }
        };
        let piece = self.bucket.next(&self.path, stream).await?;
        let Some(mut bytes) = piece.filter(|piece| !piece.is_empty()) else {
            let message = format!(
                "{} broke off in the middle of {}",
                self.bucket.location, self.path
            );
            return Err(Error::new(ErrorKind::Unavailable, message));
        };
        bytes.truncate((self.wanted.end - self.wanted.start).min(bytes.len() as u64) as usize);
        Ok(bytes)
    }
}

/// An object as a blob.
#[derive(Debug)]
struct BucketBlob {
    bucket: Bucket,
    path: Arc<str>,
    digest: BlobDigest,
    stored_len: u64,
}

impl BucketBlob {
    fn reading(&self, stored: Range<u64>) -> Result<Reading, Error> {
        check_range(&self.digest, self.stored_len, &stored)?;
        Ok(Reading::new(self.bucket.clone(), self.path.clone(), stored))
    }
}

impl Blob for BucketBlob {
    fn digest(&self) -> BlobDigest {
        self.digest
    }

    fn stored_len(&self) -> u64 {
        self.stored_len
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        async move {
            let mut reading = self.reading(stored.clone())?;
            let mut bytes = BytesMut::with_capacity((stored.end - stored.start) as usize);
            while let Some(piece) = reading.next().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            let reading = self.reading(stored)?;
            let pieces = stream::try_unfold(reading, |mut reading| async move {
                Ok(reading.next().await?.map(|piece| (piece, reading)))
            });
            Ok(pieces.boxed())
        }
        .boxed()
    }

    fn upstream(&self) -> Arc<str> {
        self.bucket.location.as_str().into()
    }
}
