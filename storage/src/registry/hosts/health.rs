//! Which hosts are avoided for a while.
//!
//! A host that failed is left alone, for longer each time it fails again after such a pause, until it has served something.
//! Failures of requests that were under way when the pause began do not lengthen it. What went wrong decides how much is
//! avoided: a host that does not answer is no use for anything, one that refuses credentials or ranges is none for this
//! repository, and one that lacks a blob is none for this blob.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::super::retry::Failure;
use crate::ErrorKind;
use crate::sync::lock;

/// First pause after a failure: a restart of a mirror is over by then.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Longest pause, after many failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How one host did in one respect.
#[derive(Debug, Default)]
pub(in crate::registry) struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    avoided_until: Option<Instant>,
    failures: u32,
}

impl Health {
    fn is_avoided(&self) -> bool {
        lock(&self.state)
            .avoided_until
            .is_some_and(|until| Instant::now() < until)
    }

    fn failed(&self, at_least: Duration) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.avoided_until.is_some_and(|until| now < until) {
            return;
        }
        let factor = 1u32.checked_shl(state.failures).unwrap_or(u32::MAX);
        let pause = FIRST_PAUSE
            .saturating_mul(factor)
            .max(at_least)
            .min(LONGEST_PAUSE);
        state.failures = state.failures.saturating_add(1);
        state.avoided_until = Some(now + pause);
    }

    fn worked(&self) {
        *lock(&self.state) = State::default();
    }
}

/// How one host stands with one operation, from wide to narrow.
#[derive(Clone, Debug, Default)]
pub(in crate::registry) struct Standing {
    pub(in crate::registry) host: Arc<Health>,
    pub(in crate::registry) repository: Arc<Health>,
    pub(in crate::registry) blob: Arc<Health>,
}

impl Standing {
    pub(in crate::registry) fn is_avoided(&self) -> bool {
        self.host.is_avoided() || self.repository.is_avoided() || self.blob.is_avoided()
    }

    pub(in crate::registry) fn failed(&self, failure: &Failure) {
        let health = match failure.error.kind() {
            ErrorKind::Unavailable => &self.host,
            ErrorKind::Denied | ErrorKind::Unsupported => &self.repository,
            _ => &self.blob,
        };
        health.failed(failure.retry_after.unwrap_or_default());
    }

    /// What it gave did not match its digest.
    pub(in crate::registry) fn gave_wrong_bytes(&self) {
        self.blob.failed(Duration::ZERO);
    }

    pub(in crate::registry) fn worked(&self) {
        self.host.worked();
        self.repository.worked();
        self.blob.worked();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_one_success_ends_them() {
        let health = Health::default();
        assert!(!health.is_avoided());
        for pause in [2, 4, 8] {
            health.failed(Duration::ZERO);
            health.failed(Duration::ZERO);
            tokio::time::advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
            assert!(health.is_avoided(), "{pause} s");
            tokio::time::advance(Duration::from_millis(2)).await;
            assert!(!health.is_avoided(), "{pause} s");
        }
        health.worked();
        health.failed(Duration::ZERO);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(!health.is_avoided());
    }

    #[tokio::test(start_paused = true)]
    async fn what_went_wrong_decides_what_is_avoided() {
        for (kind, host, repository, blob) in [
            (ErrorKind::Unavailable, true, true, true),
            (ErrorKind::Denied, false, true, true),
            (ErrorKind::Unsupported, false, true, true),
            (ErrorKind::NotFound, false, false, true),
            (ErrorKind::Corrupt, false, false, true),
        ] {
            let here = Standing::default();
            let same_host = Standing {
                host: here.host.clone(),
                ..Standing::default()
            };
            let same_repository = Standing {
                repository: here.repository.clone(),
                ..same_host.clone()
            };
            here.failed(&Error::new(kind, "failed").into());
            let found = (
                same_host.is_avoided(),
                same_repository.is_avoided(),
                here.is_avoided(),
            );
            assert_eq!(found, (host, repository, blob), "{kind:?}");
        }
    }
}
