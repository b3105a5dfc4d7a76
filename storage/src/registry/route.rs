//! Which host the attempts of one operation go to.
//!
//! Hosts are asked in their order; those that are avoided are passed over, and the last one, the origin, never is. A host that
//! fails is left for the next at once, without a wait. Only when every host has failed, those that were passed over
//! included, is there a wait and a new round, if any of them may recover: what one mirror lacks or forbids for good another may
//! have in a moment.

use super::hosts::health::Standing;
use super::retry::{Failure, Patience};
use crate::Error;

/// The hosts of one operation and what became of them.
#[derive(Debug)]
pub(super) struct Route {
    standings: Vec<Standing>,
    /// The failure of each host in this round.
    failed: Vec<Option<Failure>>,
    patience: Patience,
}

impl Route {
    /// A route over at least one host; the last of `standings` is the origin.
    pub(super) fn new(standings: Vec<Standing>, patience: Patience) -> Self {
        Self {
            failed: standings.iter().map(|_| None).collect(),
            standings,
            patience,
        }
    }

    /// The host for the next attempt.
    pub(super) fn next(&self) -> usize {
        let origin = self.standings.len().saturating_sub(1);
        let left = || (0..=origin).filter(|at| self.failed.get(*at).is_some_and(Option::is_none));
        let healthy = left().find(|at| *at == origin || !self.standings[*at].is_avoided());
        healthy.or_else(|| left().next()).unwrap_or(origin)
    }

    /// The operation got on: failures are counted anew.
    pub(super) fn renew(&mut self) {
        self.patience.renew();
    }

    /// The operation succeeded at a host.
    pub(super) fn worked(&self, at: usize) {
        if let Some(standing) = self.standings.get(at) {
            standing.worked();
        }
    }

    /// Takes note of a failed attempt, and waits until the next may begin.
    ///
    /// # Errors
    /// The failure that ends the operation.
    pub(super) async fn after(&mut self, at: usize, failure: Failure) -> Result<(), Error> {
        let origin = self.standings.len().saturating_sub(1);
        if at != origin {
            tracing::debug!(error = %failure.error, "a mirror is left for the next host");
            self.standings[at].failed(&failure);
        }
        self.failed[at] = Some(failure);
        if self.failed.iter().any(Option::is_none) {
            return Ok(());
        }
        let mut round: Vec<Failure> = self.failed.iter_mut().filter_map(Option::take).collect();
        match round.pop() {
            Some(origin) => self.patience.after(combine(origin, round)).await,
            None => Ok(()),
        }
    }
}

/// One failure for those of all hosts. The origin's word counts, but as long as a mirror may recover, so may the whole.
fn combine(origin: Failure, mirrors: Vec<Failure>) -> Failure {
    if mirrors.is_empty() {
        return origin;
    }
    let mut kind = origin.error.kind();
    let mut retry_after = origin.retry_after;
    let recovering = mirrors.iter().find(|failure| failure.error.is_temporary());
    if let (false, Some(recovering)) = (origin.error.is_temporary(), recovering) {
        kind = recovering.error.kind();
        retry_after = recovering.retry_after;
    }
    let mut message = origin.error.to_string();
    for failure in &mirrors {
        message = format!("{message}; before that, {}", failure.error);
    }
    Failure {
        error: Error::new(kind, message).with_source(origin.error),
        retry_after,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::RegistryOptions;
    use super::*;
    use crate::ErrorKind;

    fn route(standings: &[Standing]) -> Route {
        let options = RegistryOptions {
            retries: 1,
            first_retry_delay: Duration::from_secs(1),
            ..RegistryOptions::default()
        };
        Route::new(standings.to_vec(), Patience::new(&options))
    }

    fn failure(kind: ErrorKind) -> Failure {
        Error::new(kind, format!("{kind:?}")).into()
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_are_asked_in_order_and_avoided_ones_last() {
        let standings = [Standing::default(), Standing::default(), Standing::default()];
        standings[0].failed(&failure(ErrorKind::Unavailable));
        let mut route = route(&standings);
        let mut asked = Vec::new();
        let error = loop {
            let at = route.next();
            asked.push(at);
            if let Err(error) = route.after(at, failure(ErrorKind::Unavailable)).await {
                break error;
            }
        };
        // After the wait of one second to two, the first host is avoided no longer.
        assert_eq!(asked[..3], [1, 2, 0]);
        assert_eq!(asked.len(), 6);
        assert!(error.to_string().contains("before that"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_only_when_no_host_may_recover() {
        for (mirror, origin, attempts) in [
            (ErrorKind::NotFound, ErrorKind::Denied, 2),
            (ErrorKind::Unavailable, ErrorKind::Denied, 4),
            (ErrorKind::Denied, ErrorKind::Unavailable, 4),
        ] {
            let mut route = route(&[Standing::default(), Standing::default()]);
            let mut asked = 0;
            while asked < 10 {
                asked += 1;
                let at = route.next();
                let kind = if at == 0 { mirror } else { origin };
                if route.after(at, failure(kind)).await.is_err() {
                    break;
                }
            }
            assert_eq!(asked, attempts, "{mirror:?} {origin:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leaving_a_mirror_costs_no_time() {
        let mut route = route(&[Standing::default(), Standing::default()]);
        let begun = tokio::time::Instant::now();
        assert_eq!(route.next(), 0);
        route
            .after(0, failure(ErrorKind::Unavailable))
            .await
            .expect("the origin is left");
        assert_eq!((route.next(), begun.elapsed()), (1, Duration::ZERO));
        route.worked(0);
        assert_eq!(self::route(&[Standing::default()]).next(), 0);
    }
}
