//! How long a reader waits when the source of its bytes fails.
//!
//! Below this, a request is already retried some times within seconds. That covers a hiccup. When a registry is gone for a minute, a mount
//! has to choose: an error tells the program at once, and many programs die of it; a stall keeps the program waiting, as a hard NFS mount
//! does. A byte that does not match its digest is an error under either.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sluice_format::DiffId;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{Error, ErrorKind};

/// First wait between two rounds of attempts, doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// What a reader gets when its bytes cannot be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// An error, at the deadline.
    #[default]
    Error,
    /// Nothing, until they can be had.
    Stall,
}

impl FromStr for OnFailure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "stall" => Ok(Self::Stall),
            _ => Err(format!("\"{text}\" is neither \"error\" nor \"stall\"")),
        }
    }
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Stall => "stall",
        })
    }
}

/// How long readers wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadPolicy {
    /// What happens when the source does not give the bytes.
    pub on_failure: OnFailure,
    /// How long one read tries, for [`OnFailure::Error`]. `None`: one round of attempts, however long the source takes for it.
    pub deadline: Option<Duration>,
}

/// The patience of one read.
#[derive(Debug)]
pub(crate) struct Patience {
    on_failure: OnFailure,
    deadline: Option<Instant>,
    wait: Duration,
    said: bool,
}

impl Patience {
    pub(crate) fn new(policy: &ReadPolicy) -> Self {
        let deadline = match policy.on_failure {
            OnFailure::Error => policy.deadline.map(|deadline| Instant::now() + deadline),
            OnFailure::Stall => None,
        };
        Self {
            on_failure: policy.on_failure,
            deadline,
            wait: FIRST_WAIT,
            said: false,
        }
    }

    /// Runs one round of attempts, no longer than the deadline.
    pub(crate) async fn bound<T>(&self, round: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let Some(deadline) = self.deadline else {
            return round.await;
        };
        timeout_at(deadline, round).await.unwrap_or_else(|_| {
            let message = "the bytes did not arrive before the deadline of the read";
            Err(Error::new(ErrorKind::Unavailable, message))
        })
    }

    /// Waits for the next round.
    ///
    /// # Errors
    /// The failure, when there is to be none.
    pub(crate) async fn after(&mut self, error: Error, layer: DiffId) -> Result<(), Error> {
        if !self.may_go_on(&error) {
            return Err(error);
        }
        if self.on_failure == OnFailure::Stall && !self.said {
            self.said = true;
            tracing::warn!(%layer, %error, "a reader waits until its bytes can be fetched");
        }
        sleep(self.wait).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(())
    }

    fn may_go_on(&self, error: &Error) -> bool {
        match self.on_failure {
            // Credentials may be renewed and images restored; wrong bytes do not become right.
            OnFailure::Stall => !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidInput),
            OnFailure::Error => {
                let has_time = self
                    .deadline
                    .is_some_and(|deadline| Instant::now() + self.wait < deadline);
                error.is_temporary() && has_time
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_format::Digest;

    use super::*;

    fn failure(kind: ErrorKind) -> Error {
        Error::new(kind, "no")
    }

    async fn rounds(policy: ReadPolicy, kind: ErrorKind, most: usize) -> usize {
        let mut patience = Patience::new(&policy);
        for round in 1..=most {
            if patience
                .after(failure(kind), DiffId(Digest::of(b"")))
                .await
                .is_err()
            {
                return round;
            }
        }
        most
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_comes_at_the_deadline_and_a_stall_never() {
        let error = |deadline| ReadPolicy {
            on_failure: OnFailure::Error,
            deadline,
        };
        let stall = ReadPolicy {
            on_failure: OnFailure::Stall,
            deadline: Some(Duration::from_secs(1)),
        };
        assert_eq!(rounds(error(None), ErrorKind::Unavailable, 50).await, 1);
        let began = Instant::now();
        let some = rounds(error(Some(Duration::from_secs(10))), ErrorKind::Unavailable, 50).await;
        assert!(
            (3..10).contains(&some) && began.elapsed() <= Duration::from_secs(10),
            "{some}"
        );
        assert_eq!(
            rounds(error(Some(Duration::from_secs(10))), ErrorKind::Denied, 50).await,
            1
        );
        assert_eq!(rounds(stall, ErrorKind::Unavailable, 50).await, 50);
        assert_eq!(rounds(stall, ErrorKind::Denied, 50).await, 50);
        assert_eq!(rounds(stall, ErrorKind::Corrupt, 50).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_hangs_ends_at_the_deadline() {
        let policy = ReadPolicy {
            deadline: Some(Duration::from_secs(5)),
            ..ReadPolicy::default()
        };
        let patience = Patience::new(&policy);
        let hanging = std::future::pending::<Result<(), Error>>();
        assert_eq!(
            patience.bound(hanging).await.unwrap_err().kind(),
            ErrorKind::Unavailable
        );
    }
}
