//! What can go wrong with a registry, as values that compose.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::traffic::Class;

/// One way of misbehaving.
#[derive(Debug)]
pub enum Fault {
    /// Every answer begins this late.
    Latency(Duration),
    /// Answers 401 with a Bearer challenge until a request carries a token from `/token`.
    TokenAuth,
    /// Blobs are at another address: 307 to a signed URL, which refuses requests with credentials, as object stores do.
    Redirect,
    /// Range requests are answered with 200 and the whole blob.
    WholeBlob,
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

    pub(super) fn token_auth(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::TokenAuth))
    }

    pub(super) fn redirect(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::Redirect))
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

    /// Bytes after which this blob answer ends, and whether it then stalls instead of closing.
    pub(super) fn cut(&self) -> Option<(u64, bool)> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::CutAfter { bytes, times } if times.take() => Some((*bytes, false)),
            Fault::StallAfter { bytes, times } if times.take() => Some((*bytes, true)),
            _ => None,
        })
    }
}
