//! How long an upstream takes to answer, and when an answer is late.
//!
//! Mean and mean deviation are smoothed as TCP smooths its round-trip time (RFC 6298), from the first answer on. An answer is late when it takes longer than the
//! mean and four deviations; then a second request is worth its bytes. Second requests are rationed: an upstream that is slow as a whole must not be
//! asked twice for everything. One is free, because a start has earned none by the time a connection of its own does not come up.

use std::time::Duration;

/// Shortest wait for a first byte that is called late: below it a second request costs more than it can win.
const LATE_AT_LEAST: Duration = Duration::from_millis(100);
/// Shortest pause of a body that is called silence, and how many usual first bytes it takes at least. A lost segment at the end of a burst is noticed by
/// a timer of 200 ms or more; meanwhile the link is idle.
const SILENT_AT_LEAST: Duration = Duration::from_millis(50);
const SILENT_FIRST_BYTES: u32 = 4;
/// What counts as late, and as silence, before the first answer: TCP sends a lost first segment again after as long.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Answers after which the mean says what a request costs.
const SAMPLES_NEEDED: u32 = 8;
/// Requests that earn one second request.
const REQUESTS_PER_HEDGE: u32 = 20;
/// Second requests that can be saved up.
const HEDGES_SAVED: u32 = 4;

/// First-byte times of one upstream.
#[derive(Debug)]
pub(super) struct Latency {
    mean: Duration,
    deviation: Duration,
    samples: u32,
    /// In units of one request.
    savings: u32,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            mean: Duration::ZERO,
            deviation: Duration::ZERO,
            samples: 0,
            savings: REQUESTS_PER_HEDGE,
        }
    }
}

impl Latency {
    /// Notes how long the first byte of a request took.
    pub(super) fn note(&mut self, first_byte: Duration) {
        if self.samples == 0 {
            self.mean = first_byte;
            self.deviation = first_byte / 2;
        } else {
            let difference = self.mean.abs_diff(first_byte);
            self.deviation = (self.deviation * 3 + difference) / 4;
            self.mean = (self.mean * 7 + first_byte) / 8;
        }
        self.samples = self.samples.saturating_add(1);
        self.savings = (self.savings + 1).min(HEDGES_SAVED * REQUESTS_PER_HEDGE);
    }

    /// How long the first byte takes; `None` while too little is known.
    pub(super) fn mean(&self) -> Option<Duration> {
        (self.samples >= SAMPLES_NEEDED).then_some(self.mean)
    }

    /// The wait after which an answer is late.
    pub(super) fn late_after(&self) -> Duration {
        if self.samples == 0 {
            return UNKNOWN;
        }
        (self.mean + self.deviation * 4).max(LATE_AT_LEAST)
    }

    /// The pause after which a body is silent.
    pub(super) fn silent_after(&self) -> Duration {
        if self.samples == 0 {
            return UNKNOWN;
        }
        (self.mean * SILENT_FIRST_BYTES).max(SILENT_AT_LEAST)
    }

    /// Takes the right to a second request.
    pub(super) fn take_hedge(&mut self) -> bool {
        let Some(rest) = self.savings.checked_sub(REQUESTS_PER_HEDGE) else {
            return false;
        };
        self.savings = rest;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_answers_make_a_tight_bound_and_scattered_ones_a_loose_one() {
        let mut steady = Latency::default();
        let mut scattered = Latency::default();
        assert_eq!((steady.late_after(), steady.silent_after()), (UNKNOWN, UNKNOWN));
        for at in 0..100 {
            steady.note(Duration::from_millis(200));
            scattered.note(Duration::from_millis(if at % 2 == 0 { 100 } else { 300 }));
        }
        let (tight, loose) = (steady.late_after(), scattered.late_after());
        assert!(tight < Duration::from_millis(210), "{tight:?}");
        assert!(steady.silent_after().abs_diff(Duration::from_millis(800)) < Duration::from_millis(10));
        assert!(loose > Duration::from_millis(500), "{loose:?}");
    }

    #[test]
    fn one_answer_makes_a_bound_as_for_tcp() {
        let mut latency = Latency::default();
        latency.note(Duration::from_millis(60));
        assert_eq!(latency.late_after(), Duration::from_millis(180));
        assert_eq!(latency.silent_after(), Duration::from_millis(240));
        assert_eq!(latency.mean(), None);
    }

    #[test]
    fn second_requests_are_earned_but_for_one() {
        let mut latency = Latency::default();
        assert!(latency.take_hedge() && !latency.take_hedge());
        (0..REQUESTS_PER_HEDGE).for_each(|_| latency.note(Duration::from_millis(1)));
        assert!(latency.take_hedge() && !latency.take_hedge());
        (0..10_000).for_each(|_| latency.note(Duration::from_millis(1)));
        assert_eq!(
            (0..100).filter(|_| latency.take_hedge()).count(),
            HEDGES_SAVED as usize
        );
    }
}
