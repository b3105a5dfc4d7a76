//! When to try again.
//!
//! Temporary failures are retried a bounded number of times, each wait about twice the one before and spread at random, so
//! that many clients do not come back in step. A registry that names a time (`Retry-After`) is taken at its word while the
//! waits together stay within a bound; one that asks for longer is not asked again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::RegistryOptions;
use crate::Error;

/// Longest wait between two attempts that the registry did not ask for.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Why one attempt did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// The wait that the registry asked for.
    pub(crate) retry_after: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            retry_after: None,
        }
    }
}

/// How many more attempts one operation has.
#[derive(Debug)]
pub(crate) struct Patience {
    first_delay: Duration,
    retries: usize,
    longest_wait: Duration,
    delays: ExponentialBackoff,
    attempts: usize,
    waited: Duration,
}

impl Patience {
    pub(crate) fn new(options: &RegistryOptions) -> Self {
        let (first_delay, retries) = (options.first_retry_delay, options.retries);
        Self {
            first_delay,
            retries,
            longest_wait: options.patience,
            delays: delays(first_delay, retries),
            attempts: 0,
            waited: Duration::ZERO,
        }
    }

    /// Starts counting anew after an attempt that achieved something.
    pub(crate) fn renew(&mut self) {
        self.delays = delays(self.first_delay, self.retries);
        self.attempts = 0;
        self.waited = Duration::ZERO;
    }

    /// Waits until the next attempt may begin.
    ///
    /// # Errors
    /// The failure, when it is not temporary or there have been enough of them.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<(), Error> {
        match self.next_delay(&failure) {
            Some(delay) => {
                tracing::debug!(error = %failure.error, ?delay, "trying again");
                tokio::time::sleep(delay).await;
                Ok(())
            }
            None if failure.error.is_temporary() => Err(self.exhausted(failure)),
            None => Err(failure.error),
        }
    }

    /// The wait before the next attempt; `None` when there is to be none.
    fn next_delay(&mut self, failure: &Failure) -> Option<Duration> {
        self.attempts += 1;
        if !failure.error.is_temporary() {
            return None;
        }
        let delay = self.delays.next()?.max(failure.retry_after.unwrap_or_default());
        let waited = self.waited + delay;
        (waited <= self.longest_wait).then(|| {
            self.waited = waited;
            delay
        })
    }

    fn exhausted(&self, failure: Failure) -> Error {
        let message = match failure.retry_after {
            Some(asked) if asked + self.waited > self.longest_wait => {
                format!("{}; it asks to come back in {} s", failure.error, asked.as_secs())
            }
            _ => format!("{} (attempt {})", failure.error, self.attempts),
        };
        Error::new(failure.error.kind(), message).with_source(failure.error)
    }
}

fn delays(first: Duration, retries: usize) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(first)
        .with_max_delay(LONGEST_DELAY)
        .with_max_times(retries)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn patience(first_retry_delay: Duration) -> Patience {
        Patience::new(&RegistryOptions {
            first_retry_delay,
            ..RegistryOptions::default()
        })
    }

    fn busy(retry_after: Option<u64>) -> Failure {
        Failure {
            error: Error::new(ErrorKind::Unavailable, "busy"),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn attempts_are_bounded_and_waits_grow() {
        let mut patience = patience(Duration::from_secs(1));
        for least in [1, 2, 4, 5] {
            let delay = patience.next_delay(&busy(None)).unwrap();
            assert!(delay >= Duration::from_secs(least), "{delay:?}");
            assert!(delay <= 2 * LONGEST_DELAY, "{delay:?}");
        }
        assert_eq!(patience.next_delay(&busy(None)), None);
        patience.renew();
        assert!(patience.next_delay(&busy(None)).is_some());
    }

    #[tokio::test]
    async fn a_named_time_is_honoured_up_to_a_bound() {
        let mut patience = patience(Duration::from_millis(1));
        let delay = patience.next_delay(&busy(Some(20))).unwrap();
        assert_eq!(delay, Duration::from_secs(20));
        assert_eq!(
            patience.next_delay(&busy(Some(20))),
            None,
            "40 s are more than a reader waits"
        );
        let error = patience.after(busy(Some(3600))).await.unwrap_err();
        assert!(error.to_string().contains("3600 s"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn lasting_failures_are_not_retried() {
        let mut patience = patience(Duration::ZERO);
        let gone = Error::new(ErrorKind::NotFound, "gone");
        assert_eq!(patience.after(gone.into()).await.unwrap_err().to_string(), "gone");
    }
}
