//! What can go wrong with a registry, as values that compose.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::traffic::Class;

/// One way of misbehaving.
#[derive(Debug)]
pub enum Fault {
    /// Every answer begins this late.
    Latency(Duration),
    /// Blob answers come no faster than so many bytes per second each.
    Throttled(u64),
    /// Answers 401 with a Bearer challenge until a request carries a token from `/token`.
    TokenAuth,
    /// Answers 401 with a Basic challenge until a request carries this name and password.
    Password {
        /// The name.
        user: String,
        /// Its password.
        password: String,
    },
    /// As [`Fault::TokenAuth`], and a token is good for a number of requests only.
    TokenExpires(Expiry),
    /// Blobs are at another address: 307 to a signed URL, which refuses requests with credentials, as object stores do.
    Redirect,
    /// The same, and a signature is good for a number of requests only; later ones get `code`.
    RedirectExpires {
        /// How long a signature is good.
        expiry: Expiry,
        /// The status code of a request that comes too late.
        code: u16,
    },
    /// Range requests are answered with 200 and the whole blob.
    WholeBlob,
    /// The connection of a blob request is reset instead of an answer.
    Reset(Countdown),
    /// One bit of a blob answer comes changed.
    Corrupted {
        /// Which byte of the answer.
        at: u64,
        /// How many answers are spoilt.
        times: Countdown,
    },
    /// Blob answers say nothing of their length and end after so many bytes as if that were all.
    TruncatedAfter {
        /// Bytes that still come.
        bytes: u64,
        /// How many answers are short; later ones are whole.
        times: Countdown,
    },
    /// Refusals by [`Fault::Status`] ask to come back after so many seconds.
    RetryAfter(u64),
    /// One byte of a blob or manifest comes changed.
    FlippedByte {
        /// Digest of the blob or manifest.
        digest: String,
        /// Which of its bytes.
        offset: u64,
    },
    /// Blob answers end after so many bytes although their header promises more.
    CutAfter {
        /// Bytes that still come.
        bytes: u64,
        /// How many answers are cut; later ones are whole.
        times: Countdown,
    },
    /// Blob answers stop after so many bytes and never go on.
    StallAfter {
        /// Bytes that still come.
        bytes: u64,
        /// How many answers stall.
        times: Countdown,
    },
    /// Requests of a class are answered with this status.
    Status {
        /// Which requests.
        class: Class,
        /// The status code.
        code: u16,
        /// How many requests; later ones are served.
        times: Countdown,
    },
}

/// Something that happens a limited number of times.
#[derive(Debug)]
pub struct Countdown(AtomicUsize);

impl Countdown {
    /// So many times.
    pub fn times(times: usize) -> Self {
        Self(AtomicUsize::new(times))
    }

    /// Every time.
    pub fn always() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }

    /// Whether it happens this time too.
    fn take(&self) -> bool {
        let less = |left: usize| match left {
            0 => None,
            usize::MAX => Some(left),
            _ => Some(left - 1),
        };
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// Something that is good for a number of uses and then replaced by a new one.
#[derive(Debug)]
pub struct Expiry {
    uses: usize,
    issued: AtomicUsize,
    used: AtomicUsize,
}

impl Expiry {
    /// Good for so many uses.
    pub fn after(uses: usize) -> Self {
        Self {
            uses,
            issued: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
        }
    }

    /// The number of a new one, unless the newest is not used up.
    pub(super) fn issue(&self) -> usize {
        if self.used.load(Ordering::Relaxed) >= self.uses {
            self.used.store(0, Ordering::Relaxed);
            self.issued.fetch_add(1, Ordering::Relaxed);
        }
        self.issued.load(Ordering::Relaxed)
    }

    /// Uses the one of this number, if it is good.
    pub(super) fn accepts(&self, number: Option<usize>) -> bool {
        number == Some(self.issued.load(Ordering::Relaxed))
            && self.used.fetch_add(1, Ordering::Relaxed) < self.uses
    }
}

/// How a body ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The connection breaks.
    Break,
    /// Nothing more comes.
    Stall,
    /// As if it were whole; the head does not tell the length.
    Whole,
}

/// The faults of a registry.
#[derive(Debug, Default)]
pub struct FaultSet {
    faults: Vec<Fault>,
}

impl FaultSet {
    /// A registry without fault.
    pub fn none() -> Self {
        Self::default()
    }

    /// With one more fault.
    #[must_use]
    pub fn with(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    pub(super) fn latency(&self) -> Duration {
        let latencies = self.faults.iter().map(|fault| match fault {
            Fault::Latency(latency) => *latency,
            _ => Duration::ZERO,
        });
        latencies.sum()
    }

    /// Bytes per second of a body.
    pub(super) fn throttle(&self) -> Option<u64> {
        let rates = self.faults.iter().filter_map(|fault| match fault {
            Fault::Throttled(rate) => Some(*rate),
            _ => None,
        });
        rates.min()
    }

    /// The name and password that are asked for.
    pub(super) fn password(&self) -> Option<(&str, &str)> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::Password { user, password } => Some((user.as_str(), password.as_str())),
            _ => None,
        })
    }

    pub(super) fn token_auth(&self) -> bool {
        let asks = |fault: &Fault| matches!(fault, Fault::TokenAuth | Fault::TokenExpires(_));
        self.faults.iter().any(asks)
    }

    pub(super) fn token_expiry(&self) -> Option<&Expiry> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::TokenExpires(expiry) => Some(expiry),
            _ => None,
        })
    }

    pub(super) fn redirect(&self) -> bool {
        let redirects = |fault: &Fault| matches!(fault, Fault::Redirect | Fault::RedirectExpires { .. });
        self.faults.iter().any(redirects)
    }

    /// How long a signed address is good, and how it refuses afterwards.
    pub(super) fn redirect_expiry(&self) -> Option<(&Expiry, u16)> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::RedirectExpires { expiry, code } => Some((expiry, *code)),
            _ => None,
        })
    }

    pub(super) fn reset(&self) -> bool {
        self.faults
            .iter()
            .any(|fault| matches!(fault, Fault::Reset(times) if times.take()))
    }

    pub(super) fn retry_after(&self) -> Option<u64> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::RetryAfter(seconds) => Some(*seconds),
            _ => None,
        })
    }

    /// The byte of this blob answer that is spoilt.
    pub(super) fn corrupted(&self) -> Option<u64> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::Corrupted { at, times } if times.take() => Some(*at),
            _ => None,
        })
    }

    pub(super) fn whole_blob(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::WholeBlob))
    }

    pub(super) fn status(&self, asked: Class) -> Option<u16> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::Status { class, code, times } if *class == asked && times.take() => Some(*code),
            _ => None,
        })
    }

    /// Offsets of changed bytes in what has `digest`.
    pub(super) fn flipped(&self, digest: &str) -> Vec<u64> {
        let offsets = self.faults.iter().filter_map(|fault| match fault {
            Fault::FlippedByte { digest: of, offset } if of == digest => Some(*offset),
            _ => None,
        });
        offsets.collect()
    }

    /// Bytes after which this blob answer ends, and how.
    pub(super) fn cut(&self) -> Option<(u64, End)> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::CutAfter { bytes, times } if times.take() => Some((*bytes, End::Break)),
            Fault::StallAfter { bytes, times } if times.take() => Some((*bytes, End::Stall)),
            Fault::TruncatedAfter { bytes, times } if times.take() => Some((*bytes, End::Whole)),
            _ => None,
        })
    }
}
