//! What a registry answered.
//!
//! An [`Answer`] is a response whose head has arrived: its body is read under an idle timeout and counted. Status codes become
//! error kinds in one place, here, with the registry's own words (bounded, without control characters) in the message.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{AsHeaderName, DATE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use url::Url;

use super::TrafficCounters;
use super::endpoint::authority;
use super::retry::Failure;
use crate::{Error, ErrorKind};

/// How much of a refusal is read for its message, in bytes, and shown, in characters.
const REFUSAL_LEN: u64 = 16 << 10;
const REFUSAL_SHOWN: usize = 300;

/// A response and what it is a response to.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// The URL that gave it, after redirects.
    pub(super) url: Url,
    /// What was asked, for messages.
    pub(super) what: Arc<str>,
    /// Which credentials were used, for messages; `None` when none were asked for.
    pub(super) credentials: Option<String>,
    /// Longest pause between two reads of the body.
    pub(super) idle_timeout: Duration,
    pub(super) traffic: Arc<TrafficCounters>,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header that is text.
    pub(super) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The next bytes of the body; `None` at its end. A body that is cut is an error.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let chunk = match tokio::time::timeout(self.idle_timeout, self.response.chunk()).await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) => return Err(transport_failure(error, &self.url, &self.what)),
            Err(_) => {
                let message = format!(
                    "{} sent nothing for {} s in the middle of {}",
                    authority(&self.url),
                    self.idle_timeout.as_secs_f32(),
                    self.what
                );
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
        };
        if let Some(chunk) = &chunk {
            let received = chunk.len() as u64;
            self.traffic.received_bytes.fetch_add(received, Ordering::Relaxed);
        }
        Ok(chunk)
    }

    /// The whole body, which must not be longer than `max_len`.
    pub(super) async fn bytes(mut self, max_len: u64) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > max_len {
                let message = format!(
                    "{} sent more than {max_len} bytes for {}",
                    authority(&self.url),
                    self.what
                );
                return Err(Error::new(ErrorKind::Corrupt, message).into());
            }
        }
        Ok(body.freeze())
    }

    /// The failure that this answer means.
    pub(super) async fn refuse(mut self) -> Failure {
        let date = self.header(DATE);
        let retry_after = self
            .header(RETRY_AFTER)
            .and_then(|text| parse_retry_after(text, date));
        let (code, words) = self.refusal().await;
        let status = self.status();
        let mut message = format!("{} answered {status} to {}", authority(&self.url), self.what);
        if !words.is_empty() {
            message = format!("{message}: {words}");
        }
        let kind = kind_of(status, &code);
        if kind == ErrorKind::Denied {
            let used = self
                .credentials
                .as_deref()
                .unwrap_or("no credentials were asked for");
            message = format!("{message} ({used})");
        }
        Failure {
            error: Error::new(kind, message),
            retry_after,
        }
    }

    /// The code and the words of a refusal, as the distribution spec has them in `errors`.
    async fn refusal(&mut self) -> (String, String) {
        #[derive(Deserialize, Default)]
        struct Refusal {
            #[serde(default)]
            errors: Vec<Reason>,
        }
        #[derive(Deserialize)]
        struct Reason {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > REFUSAL_LEN {
                break;
            }
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        match refusal.errors.into_iter().next() {
            Some(Reason { code, message }) => {
                let words = format!("{code} {message}");
                (code, shown(&words))
            }
            None => Default::default(),
        }
    }
}

/// `Retry-After`: seconds, or a date, which is taken relative to the `date` of the answer, so that clocks need not agree.
fn parse_retry_after(text: &str, date: Option<&str>) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(text).ok()?;
    let now = date.and_then(|date| httpdate::parse_http_date(date).ok());
    Some(
        then.duration_since(now.unwrap_or_else(SystemTime::now))
            .unwrap_or_default(),
    )
}

/// Registry text made fit for a message.
fn shown(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable
        .take(REFUSAL_SHOWN)
        .collect::<String>()
        .trim()
        .to_owned()
}

fn kind_of(status: StatusCode, code: &str) -> ErrorKind {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
        StatusCode::NOT_FOUND | StatusCode::GONE => ErrorKind::NotFound,
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => ErrorKind::Unsupported,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            ErrorKind::Unavailable
        }
        status if status.is_server_error() => ErrorKind::Unavailable,
        _ if code == "DIGEST_INVALID" => ErrorKind::Corrupt,
        status if status.is_client_error() => ErrorKind::InvalidInput,
        _ => ErrorKind::Unsupported,
    }
}

/// The failure of a request whose answer never came or broke off. The URL, which may be signed, is kept out of it.
pub(super) fn transport_failure(error: reqwest::Error, url: &Url, what: &str) -> Failure {
    let error = error.without_url();
    let host = authority(url);
    let tls = tls_error(&error);
    let (kind, message) = match tls {
        Some(rustls::Error::InvalidMessage(_)) => (
            ErrorKind::Unsupported,
            format!("{host} does not speak TLS; if it speaks plain HTTP, allow that"),
        ),
        Some(rustls::Error::InvalidCertificate(_)) => (
            ErrorKind::Denied,
            format!("the certificate of {host} is not trusted"),
        ),
        _ if error.is_builder() => (ErrorKind::InvalidInput, format!("{what} is no valid request")),
        _ if error.is_connect() => (
            ErrorKind::Unavailable,
            format!("{host} cannot be reached for {what}"),
        ),
        _ => (
            ErrorKind::Unavailable,
            format!("the connection to {host} broke during {what}"),
        ),
    };
    Error::new(kind, message).with_source(error).into()
}

/// The TLS error at the root of a transport error. I/O errors hide it from [`StdError::source`].
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = Some("Wed, 21 Oct 2026 07:28:00 GMT");
        for (text, expected) in [
            (" 7 ", Some(7)),
            ("Wed, 21 Oct 2026 07:28:09 GMT", Some(9)),
            ("Wed, 21 Oct 2026 07:27:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(
                parse_retry_after(text, date),
                expected.map(Duration::from_secs),
                "{text}"
            );
        }
        let past = parse_retry_after("Wed, 21 Oct 2020 07:28:00 GMT", None);
        assert_eq!(past, Some(Duration::ZERO));
    }
}
