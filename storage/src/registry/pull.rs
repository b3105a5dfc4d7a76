//! Reading a blob of a registry by ranges.
//!
//! A registry may send a reader elsewhere, to a URL that is signed and expires. The URL is remembered per blob, so that a
//! range costs one round trip, and forgotten as soon as it answers with anything but the bytes. Answers are checked: a `206`
//! must be for the range that was asked and for a blob of the right length; a registry that ignores ranges and sends the
//! whole blob is put up with while what must be skipped is little. A body that breaks off is resumed where it broke; what has
//! arrived is not asked for again.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode};
use sluice_format::BlobDigest;
use url::Url;

use super::answer::Answer;
use super::endpoint::authority;
use super::repository::RegistryRepository;
use super::retry::{Failure, Patience};
use super::transport::Request;
use crate::blob::check_range;
use crate::sync::lock;
use crate::{Blob, ByteStream, Error, ErrorKind};

/// Bytes that are skipped at most when a registry sends the whole blob for a range, unless the range itself is longer.
const SKIPPED_FOR_RANGE: u64 = 16 << 20;
/// Bytes after which a broken transfer counts as progress and the attempts are counted anew. Without a bound a server that cuts
/// every answer after one byte would be asked millions of times.
const PROGRESS: u64 = 64 << 10;

/// A blob in a registry.
#[derive(Clone, Debug)]
pub(super) struct RegistryBlob {
    inner: Arc<Inner>,
}

struct Inner {
    repository: RegistryRepository,
    digest: BlobDigest,
    stored_len: u64,
    /// Where the last range came from, if not from the registry itself. Signed: not to be shown.
    target: Mutex<Option<Url>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.repository.endpoint, self.digest)
    }
}

impl RegistryBlob {
    pub(super) fn new(repository: RegistryRepository, digest: BlobDigest, stored_len: u64) -> Self {
        let inner = Inner {
            repository,
            digest,
            stored_len,
            target: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A transfer of `stored`, which begins when the first bytes are asked for.
    fn transfer(&self, stored: Range<u64>) -> Result<Transfer, Error> {
        check_range(&self.inner.digest, self.inner.stored_len, &stored)?;
        Ok(Transfer {
            patience: self.inner.repository.patience(),
            blob: self.inner.clone(),
            skip_limit: SKIPPED_FOR_RANGE.max(stored.end - stored.start),
            wanted: stored,
            body: None,
            since_failure: 0,
        })
    }
}

impl Blob for RegistryBlob {
    fn digest(&self) -> BlobDigest {
        self.inner.digest
    }

    fn stored_len(&self) -> u64 {
        self.inner.stored_len
    }

    fn read_range(&self, stored: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        async move {
            let mut transfer = self.transfer(stored.clone())?;
            let mut bytes = BytesMut::with_capacity((stored.end - stored.start) as usize);
            while let Some(next) = transfer.next().await? {
                bytes.extend_from_slice(&next);
            }
            Ok(bytes.freeze())
        }
        .boxed()
    }

    fn stream(&self, stored: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        async move {
            let transfer = self.transfer(stored)?;
            let bytes = stream::try_unfold(transfer, |mut transfer| async move {
                Ok(transfer.next().await?.map(|next| (next, transfer)))
            });
            Ok(bytes.boxed())
        }
        .boxed()
    }

    fn upstream(&self) -> Arc<str> {
        self.inner.repository.endpoint.host()
    }
}

/// The rest of a range, across as many answers as it takes.
struct Transfer {
    blob: Arc<Inner>,
    /// What has not arrived yet.
    wanted: Range<u64>,
    skip_limit: u64,
    body: Option<RangeBody>,
    patience: Patience,
    since_failure: u64,
}

impl Transfer {
    /// The next bytes; `None` when all have arrived.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.wanted.is_empty() {
            match self.attempt().await {
                Ok(bytes) => {
                    self.wanted.start += bytes.len() as u64;
                    self.since_failure += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Err(failure) => {
                    self.body = None;
                    if std::mem::take(&mut self.since_failure) >= PROGRESS {
                        self.patience.renew();
                    }
                    self.patience.after(failure).await?;
                }
            }
        }
        Ok(None)
    }

    async fn attempt(&mut self) -> Result<Bytes, Failure> {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let body = self.blob.open(self.wanted.clone(), self.skip_limit).await?;
                self.body.insert(body)
            }
        };
        body.next(self.wanted.end - self.wanted.start).await
    }
}

impl Inner {
    /// Asks for a range and checks the head of the answer.
    async fn open(&self, wanted: Range<u64>, skip_limit: u64) -> Result<RangeBody, Failure> {
        let what = format!(
            "bytes {}-{} of blob {}",
            wanted.start,
            wanted.end - 1,
            self.digest
        );
        let range = format!("bytes={}-{}", wanted.start, wanted.end - 1);
        let request = Request::new(Method::GET, what).header(RANGE, &range);
        let target = lock(&self.target).clone();
        if let Some(target) = target {
            let answer = self.repository.send_pull(&request, &target).await;
            match answer {
                Ok(answer) if is_settled(answer.status()) => {
                    return self.check(answer, &wanted, skip_limit).await;
                }
                // Expired, or that host has a bad day: the registry names a fresh one.
                _ => *lock(&self.target) = None,
            }
        }
        let own = self.repository.endpoint.blob(&self.digest);
        let answer = self.repository.send_pull(&request, &own).await?;
        if answer.url != own && is_settled(answer.status()) {
            *lock(&self.target) = Some(answer.url.clone());
        }
        self.check(answer, &wanted, skip_limit).await
    }

    async fn check(
        &self,
        answer: Answer,
        wanted: &Range<u64>,
        skip_limit: u64,
    ) -> Result<RangeBody, Failure> {
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => self.check_part(answer, wanted),
            StatusCode::OK => self.check_whole(answer, wanted, skip_limit),
            StatusCode::RANGE_NOT_SATISFIABLE => Err(self.other_len(&answer, "less").into()),
            _ => Err(answer.refuse().await),
        }
    }

    fn check_part(&self, answer: Answer, wanted: &Range<u64>) -> Result<RangeBody, Failure> {
        check_encoding(&answer)?;
        let part = answer.header(CONTENT_RANGE).and_then(parse_content_range);
        let Some(part) = part.filter(|part| part.stored.start == wanted.start) else {
            let message = format!(
                "{} answered {} with another range",
                authority(&answer.url),
                answer.what
            );
            return Err(Error::new(ErrorKind::Unsupported, message).into());
        };
        if let Some(total) = part.total.filter(|total| *total != self.stored_len) {
            return Err(self.other_len(&answer, &total.to_string()).into());
        }
        Ok(RangeBody {
            expected: part.stored.end - part.stored.start,
            skip: 0,
            answer,
        })
    }

    fn check_whole(
        &self,
        answer: Answer,
        wanted: &Range<u64>,
        skip_limit: u64,
    ) -> Result<RangeBody, Failure> {
        check_encoding(&answer)?;
        if let Some(total) = answer
            .response
            .content_length()
            .filter(|total| *total != self.stored_len)
        {
            return Err(self.other_len(&answer, &total.to_string()).into());
        }
        if wanted.start > skip_limit {
            let message = format!(
                "{} ignores ranges: it answered {} with the whole blob of {} bytes",
                authority(&answer.url),
                answer.what,
                self.stored_len
            );
            return Err(Error::new(ErrorKind::Unsupported, message).into());
        }
        Ok(RangeBody {
            expected: self.stored_len - wanted.start,
            skip: wanted.start,
            answer,
        })
    }

    fn other_len(&self, answer: &Answer, found: &str) -> Error {
        let message = format!(
            "blob {} has {found} bytes at {}, its descriptor says {}",
            self.digest,
            authority(&answer.url),
            self.stored_len
        );
        Error::new(ErrorKind::Corrupt, message)
    }
}

/// Whether a remembered target still answers for the blob.
fn is_settled(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE
    )
}

fn check_encoding(answer: &Answer) -> Result<(), Failure> {
    match answer.header(CONTENT_ENCODING) {
        None | Some("identity") => Ok(()),
        Some(encoding) => {
            let message = format!(
                "{} sends {} encoded as {encoding}",
                authority(&answer.url),
                answer.what
            );
            Err(Error::new(ErrorKind::Unsupported, message).into())
        }
    }
}

/// A body whose first wanted byte is `skip` bytes away.
struct RangeBody {
    answer: Answer,
    skip: u64,
    /// Bytes that the body holds after those to skip.
    expected: u64,
}

impl RangeBody {
    /// Some of the next bytes, at least one and at most `limit`.
    async fn next(&mut self, limit: u64) -> Result<Bytes, Failure> {
        while self.expected > 0 {
            let Some(mut bytes) = self.answer.chunk().await? else {
                break;
            };
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            drop(bytes.split_to(skipped as usize));
            bytes.truncate(limit.min(self.expected).min(bytes.len() as u64) as usize);
            self.expected -= bytes.len() as u64;
            if !bytes.is_empty() {
                return Ok(bytes);
            }
        }
        let message = format!(
            "{} broke off in the middle of {}",
            authority(&self.answer.url),
            self.answer.what
        );
        Err(Error::new(ErrorKind::Unavailable, message).into())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    stored: Range<u64>,
    /// Length of the whole; `None` when the server does not say.
    total: Option<u64>,
}

/// `bytes 0-99/1234` (RFC 9110, section 14.4).
fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let is_valid = unit.eq_ignore_ascii_case("bytes") && first <= last && last < u64::MAX;
    is_valid.then_some(ContentRange {
        stored: first..last.wrapping_add(1),
        total,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_parsed_strictly() {
        let range = |stored, total| Some(ContentRange { stored, total });
        assert_eq!(parse_content_range("bytes 0-99/1234"), range(0..100, Some(1234)));
        assert_eq!(parse_content_range("bytes 5-5/*"), range(5..6, None));
        for bad in [
            "",
            "bytes */10",
            "bytes 5-4/10",
            "items 0-1/2",
            "bytes 0-x/2",
            "bytes 0-1",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
