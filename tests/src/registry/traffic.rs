//! What a registry was asked for, and when.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// `/v2/`.
    Ping,
    /// `/token`.
    Token,
    /// A manifest or image index.
    Manifest,
    /// The referrers of a manifest.
    Referrers,
    /// A blob.
    Blob,
    /// A blob at the address that a redirect gave.
    Storage,
    /// Anything else.
    Other,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it was about.
    pub class: Class,
    /// Path and query.
    pub path: String,
    /// First and last byte of the range that was asked for.
    pub range: Option<(u64, u64)>,
    /// Status of the answer.
    pub status: u16,
    /// When it came.
    pub began: Instant,
    /// When the last byte of the answer had been given to the connection.
    pub ended: Option<Instant>,
    /// Bytes of the answer's body.
    pub bytes: u64,
}

/// Everything a registry was asked for since it started or was last cleared.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    log: Arc<Mutex<Log>>,
}

/// Requests by number; those before `first_kept` were cleared.
#[derive(Debug, Default)]
struct Log {
    first_kept: usize,
    requests: Vec<Request>,
}

impl Traffic {
    /// All requests in the order of their arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut log = self.lock();
        log.first_kept += log.requests.len();
        log.requests.clear();
    }

    /// Bytes of all bodies of a class.
    pub fn bytes(&self, class: Class) -> u64 {
        self.lock()
            .requests
            .iter()
            .filter(|request| request.class == class)
            .map(|request| request.bytes)
            .sum()
    }

    /// Bytes of all bodies.
    pub fn total_bytes(&self) -> u64 {
        self.lock().requests.iter().map(|request| request.bytes).sum()
    }

    /// Number of requests of a class.
    pub fn count(&self, class: Class) -> usize {
        self.lock()
            .requests
            .iter()
            .filter(|request| request.class == class)
            .count()
    }

    /// Length of the longest row of requests of which each began after the one before it had ended: the round trips
    /// that a client had to wait for one after the other. With a latency injected, requests sent together overlap.
    pub fn round_trips(&self) -> usize {
        let mut spans: Vec<(Instant, Instant)> = self
            .lock()
            .requests
            .iter()
            .filter_map(|request| Some((request.began, request.ended?)))
            .collect();
        spans.sort_by_key(|(_, ended)| *ended);
        let mut count = 0;
        let mut free_from: Option<Instant> = None;
        for (began, ended) in spans {
            if free_from.is_none_or(|free_from| began >= free_from) {
                count += 1;
                free_from = Some(ended);
            }
        }
        count
    }

    /// One line per request, for a failed assertion.
    pub fn describe(&self) -> String {
        let requests = &self.lock().requests;
        let Some(first) = requests.first().map(|request| request.began) else {
            return "no request".to_owned();
        };
        let line = |request: &Request| {
            let at = request.began.duration_since(first).as_millis();
            let Request {
                path,
                range,
                status,
                bytes,
                ..
            } = request;
            format!("{at:>6} ms  {status}  {bytes:>10} bytes  {path}  {range:?}")
        };
        requests.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Notes a request; the number is for [`Traffic::answered`] and [`Traffic::sent`].
    pub(super) fn arrived(&self, request: Request) -> usize {
        let mut log = self.lock();
        log.requests.push(request);
        log.first_kept + log.requests.len() - 1
    }

    pub(super) fn answered(&self, number: usize, status: u16) {
        self.change(number, |request| request.status = status);
    }

    pub(super) fn sent(&self, number: usize, bytes: u64) {
        self.change(number, |request| request.bytes += bytes);
    }

    pub(super) fn ended(&self, number: usize) {
        self.change(number, |request| request.ended = Some(Instant::now()));
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut Request)) {
        let mut log = self.lock();
        let kept = number.checked_sub(log.first_kept);
        if let Some(request) = kept.and_then(|at| log.requests.get_mut(at)) {
            change(request);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
