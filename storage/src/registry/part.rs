//! The answer to a request for a range of a blob.
//!
//! A `206` must be for the range that was asked and for a blob of the right length. A host that ignores ranges and sends the
//! whole blob is put up with while what must be skipped is little.

use std::ops::Range;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE};
use sluice_format::BlobDigest;

use super::answer::Answer;
use super::endpoint::authority;
use super::retry::Failure;
use crate::{Error, ErrorKind};

/// Bytes that are skipped at most when a host sends the whole blob for a range, unless the range itself is longer.
const SKIPPED_FOR_RANGE: u64 = 16 << 20;

/// What is asked of a host.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) digest: BlobDigest,
    pub(super) stored_len: u64,
    pub(super) stored: Range<u64>,
    skip_limit: u64,
}

impl Wanted {
    pub(super) fn new(digest: BlobDigest, stored_len: u64, stored: Range<u64>) -> Self {
        Self {
            digest,
            stored_len,
            skip_limit: SKIPPED_FOR_RANGE.max(stored.end - stored.start),
            stored,
        }
    }

    /// Checks the head of an answer.
    pub(super) async fn check(&self, answer: Answer) -> Result<RangeBody, Failure> {
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => self.check_part(answer),
            StatusCode::OK => self.check_whole(answer),
            StatusCode::RANGE_NOT_SATISFIABLE => Err(self.other_len(&answer, "less").into()),
            _ => Err(answer.refuse().await),
        }
    }

    fn check_part(&self, answer: Answer) -> Result<RangeBody, Failure> {
        check_encoding(&answer)?;
        let part = answer.header(CONTENT_RANGE).and_then(parse_content_range);
        let Some(part) = part.filter(|part| part.stored.start == self.stored.start) else {
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

    fn check_whole(&self, answer: Answer) -> Result<RangeBody, Failure> {
        check_encoding(&answer)?;
        if let Some(total) = answer
            .response
            .content_length()
            .filter(|total| *total != self.stored_len)
        {
            return Err(self.other_len(&answer, &total.to_string()).into());
        }
        if self.stored.start > self.skip_limit {
            let message = format!(
                "{} ignores ranges: it answered {} with the whole blob of {} bytes",
                authority(&answer.url),
                answer.what,
                self.stored_len
            );
            return Err(Error::new(ErrorKind::Unsupported, message).into());
        }
        Ok(RangeBody {
            expected: self.stored_len - self.stored.start,
            skip: self.stored.start,
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
pub(super) struct RangeBody {
    answer: Answer,
    skip: u64,
    /// Bytes that the body holds after those to skip.
    expected: u64,
}

impl RangeBody {
    /// Some of the next bytes, at least one and at most `limit`.
    pub(super) async fn next(&mut self, limit: u64) -> Result<Bytes, Failure> {
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
