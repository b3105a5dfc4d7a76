//! The only table from failures to errno, and the log of failed reads.
//!
//! A reader learns one number; the cause goes to the log. A program that meets a missing range retries it in a loop, and
//! the kernel's readahead asks for it again, so a failure is logged once per layer and window until [`QUIET`] is over.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use sluice_format::{DiffId, FormatError};
use sluice_storage::{Error, ErrorKind};

/// Reads that fail within the same window of a layer count as one failure. Bytes; about one chunk.
const WINDOW: u64 = 128 << 10;

/// How long a logged failure stays quiet.
const QUIET: Duration = Duration::from_secs(60);

/// Failures remembered at most; when more are quiet, all are forgotten and may be logged again.
const REMEMBERED: usize = 1024;

/// What a reader gets for a failed fetch.
///
/// The name is there, so `ENOENT` and `EACCES` would mislead a program about the image; only a registry that does not
/// answer is told apart, because there a retry makes sense.
pub(crate) fn of_kind(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::Unavailable => Errno::ETIMEDOUT,
        ErrorKind::NotFound
        | ErrorKind::Denied
        | ErrorKind::Corrupt
        | ErrorKind::InvalidInput
        | ErrorKind::Unsupported
        | ErrorKind::NoSpace
        | ErrorKind::Io => Errno::EIO,
        _ => Errno::EIO,
    }
}

/// What a reader gets for an image tree that breaks its format.
pub(crate) fn of_format(nid: u64, error: &FormatError) -> Errno {
    tracing::warn!(nid, %error, "image tree is corrupt");
    Errno::EIO
}

/// Remembers which failed reads were logged.
#[derive(Debug, Default)]
pub(crate) struct ReadFailures {
    logged: Mutex<HashMap<(DiffId, u64), Instant>>,
}

impl ReadFailures {
    /// The errno for a failed read; logs its cause unless that was done a short time ago.
    pub(crate) fn errno(&self, layer: DiffId, plain: &Range<u64>, error: &Error) -> Errno {
        let errno = of_kind(error.kind());
        if self.is_news(layer, plain.start, Instant::now()) {
            let cause = causes(error);
            tracing::warn!(%layer, ?plain, %errno, cause, "a read failed");
        }
        errno
    }

    fn is_news(&self, layer: DiffId, plain_off: u64, now: Instant) -> bool {
        let Ok(mut logged) = self.logged.lock() else {
            return true;
        };
        if logged.len() >= REMEMBERED {
            logged.clear();
        }
        let before = logged.insert((layer, plain_off / WINDOW), now);
        before.is_none_or(|then| now.duration_since(then) >= QUIET)
    }
}

/// The message of an error and of everything below it.
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_format::Digest;

    #[test]
    fn a_repeated_failure_is_logged_once_per_window_and_minute() {
        let failures = ReadFailures::default();
        let layer = DiffId(Digest::of(b"layer"));
        let start = Instant::now();
        assert!(failures.is_news(layer, 0, start));
        assert!(!failures.is_news(layer, WINDOW - 1, start));
        assert!(failures.is_news(layer, WINDOW, start));
        assert!(failures.is_news(DiffId(Digest::of(b"other")), 0, start));
        assert!(failures.is_news(layer, 0, start + QUIET + Duration::from_secs(1)));
    }

    #[test]
    fn a_flood_of_different_failures_keeps_memory_bounded() {
        let failures = ReadFailures::default();
        let layer = DiffId(Digest::of(b"layer"));
        for at in 0..10 * REMEMBERED as u64 {
            failures.is_news(layer, at * WINDOW, Instant::now());
        }
        assert!(failures.logged.lock().unwrap().len() <= REMEMBERED);
    }

    #[test]
    fn causes_are_told_to_the_end() {
        let error = Error::io("reading /x", std::io::Error::other("broken disk"));
        assert_eq!(causes(&error), "reading /x: broken disk");
    }
}
