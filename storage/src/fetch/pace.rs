//! How much may be under way from one upstream at the same time.
//!
//! More in flight fills a link better until it is full; from then on it only queues, and every reader gets through later. What counts is bytes: one
//! long range fills a link that takes a dozen short ones. So the bound is on bytes, beside one on ranges. It climbs while that brings more
//! bytes per second, and falls while less brings as many: a hill climber that compares one epoch with the one before. After each
//! step an epoch passes unmeasured, because ranges that began before the step still end in it. It moves only when work was waiting,
//! since an idle link says nothing. An upstream that asks for patience halves the bound at once.
//!
//! Ranges that share a link all end late, and what is needed first with them. So how long one may be follows from how long the ones before took.
//!
//! Where ranges are short their number counts, because each costs the upstream work. Its answers tell when it has enough: a first byte that takes several times as long as the
//! quickest one has stood in a queue, and one more range in that queue brings nothing but a longer wait for the next reader.

use std::time::Duration;

/// Where it begins: some short ranges, or two long ones, so that one is asked for while the others arrive.
const START: u64 = 3 << 20;
/// Least, so that one slow answer does not stop everything.
const LEAST: u64 = 1 << 20;
/// Most: buffers stay in the tens of megabytes.
const MOST: u64 = 32 << 20;
/// A step up and a step down.
const UP: u64 = 2 << 20;
const DOWN: u64 = 1 << 20;
/// Ranges under way at the same time, however short: at most, when nothing is known yet, and at least. Connections that all begin at once overflow the
/// buffer of a link together, though none of them is fast yet.
const MOST_RANGES: usize = 12;
const START_RANGES: usize = 6;
const LEAST_RANGES: usize = 2;
/// An answer that takes so many times as long as the quickest one, and a little, has waited for others. At three a link is still full: its own buffer holds a
/// round trip or two.
const QUEUED: u32 = 3;
const QUEUED_AT_LEAST: Duration = Duration::from_millis(2);
/// Ranges in an epoch, at least; and how long it lasts, at least. Shorter ones compare noise.
const EPOCH_RANGES: u32 = 8;
const EPOCH: Duration = Duration::from_millis(200);
/// Change of the rate that counts as one, in percent.
const NOTICEABLE: u64 = 5;
/// Stored length of a range that nobody waits for: at least, and to begin with; and at most. On a link of 1 Gbit/s and 2 ms with a buffer of 256 KiB,
/// 2 x 4 MiB came at 113 MB/s, 8 x 1 MiB at 58, and 16 x 1 MiB at 25: each begins with a burst, and one that overflows the buffer at its end is only noticed by a
/// timeout of 200 ms. At 200 Mbit/s six MiB in ranges of four take 0.25 s to arrive, in which a start with a profile waits for one of them.
const SHORT_RANGE: u64 = 1 << 20;
pub(super) const LONG_RANGE: u64 = 4 << 20;
/// A range that took no longer may be followed by longer ones; and twice as long, by shorter ones.
const PROMPT: Duration = Duration::from_millis(100);
/// Ranges for which a reader waits may pass the bound by so many: they must never queue behind lesser work.
const RESERVE: usize = 8;

/// What is under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UnderWay {
    pub(super) ranges: usize,
    /// Those of them that have brought nothing for a while.
    pub(super) silent: usize,
    /// Stored bytes, but for those that silent ranges have not brought.
    pub(super) bytes: u64,
}

/// The bound and what it learns from.
#[derive(Debug)]
pub(super) struct Pace {
    limit: u64,
    rises: bool,
    /// Bytes per second of the last epoch.
    last_rate: u64,
    epoch: Epoch,
    queue: Queue,
    range_len: u64,
}

/// How many ranges the upstream works on without queueing them.
#[derive(Debug)]
struct Queue {
    ranges: usize,
    /// Times until the first byte; `None` before the first answer.
    first_bytes: Option<FirstBytes>,
    /// Answers since the last step.
    answers: usize,
}

#[derive(Clone, Copy, Debug)]
struct FirstBytes {
    quickest: Duration,
    /// Smoothed, quicker than [`Latency`](super::latency::Latency) does: a step is to see what the one before has done.
    mean: Duration,
}

#[derive(Debug, Default)]
struct Epoch {
    /// Since some fixed moment; `None` before the first range has ended.
    began: Option<Duration>,
    bytes: u64,
    ranges: u32,
    /// Shows what the last step has done.
    measures: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            limit: START,
            rises: true,
            last_rate: 0,
            epoch: Epoch::default(),
            queue: Queue::default(),
            range_len: SHORT_RANGE,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            ranges: START_RANGES,
            first_bytes: None,
            answers: 0,
        }
    }
}

impl Queue {
    /// Notes how long a first byte took. Once in as many answers as ranges are allowed, these become one more, or a quarter fewer.
    fn answered(&mut self, first_byte: Duration) {
        let alone = FirstBytes {
            quickest: first_byte,
            mean: first_byte,
        };
        let times = self.first_bytes.get_or_insert(alone);
        times.quickest = times.quickest.min(first_byte);
        times.mean = (times.mean * 3 + first_byte) / 4;
        self.answers += 1;
        if self.answers < self.ranges {
            return;
        }
        self.answers = 0;
        if times.mean <= times.quickest * QUEUED + QUEUED_AT_LEAST {
            self.ranges = (self.ranges + 1).min(MOST_RANGES);
        } else if self.ranges > LEAST_RANGES {
            self.ranges = (self.ranges * 3 / 4).max(LEAST_RANGES);
        } else {
            // So few make no queue: the upstream has become slower.
            times.quickest = times.mean / QUEUED;
        }
    }
}

impl Pace {
    /// Whether one more range may start beside what is under way; `demanded` says that a reader waits for it.
    pub(super) fn admits(&self, under_way: UnderWay, demanded: bool) -> bool {
        let UnderWay {
            ranges,
            silent,
            bytes,
        } = under_way;
        if demanded {
            return ranges < MOST_RANGES + RESERVE;
        }
        bytes < self.limit && ranges < MOST_RANGES && ranges - silent < self.queue.ranges
    }

    /// Notes how long the first byte of a range took.
    pub(super) fn answered(&mut self, first_byte: Duration) {
        self.queue.answered(first_byte);
    }

    /// Notes how long a range of `bytes` that nobody waited for took, from its request to its end.
    pub(super) fn took(&mut self, bytes: u64, time: Duration) {
        // A short one tells about the upstream rather than about the link.
        if bytes < self.range_len / 2 {
            return;
        }
        if time <= PROMPT {
            self.range_len = (self.range_len * 2).min(LONG_RANGE);
        } else if time > PROMPT * 2 {
            self.range_len = (self.range_len / 2).max(SHORT_RANGE);
        }
    }

    /// Stored length at which a range that nobody waits for is not made longer.
    pub(super) fn range_len(&self) -> u64 {
        self.range_len
    }

    /// Bytes per second of the last epoch in which more was wanted than could come.
    pub(super) fn rate(&self) -> Option<u64> {
        (self.last_rate > 0).then_some(self.last_rate)
    }

    /// Notes that a range of `bytes` ended at `now`; `busy` says that more work was waiting.
    pub(super) fn ended(&mut self, now: Duration, bytes: u64, busy: bool) {
        if !busy {
            self.epoch = Epoch::default();
            return;
        }
        let Some(began) = self.epoch.began else {
            self.epoch.began = Some(now);
            return;
        };
        self.epoch.bytes += bytes;
        self.epoch.ranges += 1;
        let lasted = now.saturating_sub(began);
        if self.epoch.ranges < EPOCH_RANGES || lasted < EPOCH {
            return;
        }
        if self.epoch.measures {
            let rate = (u128::from(self.epoch.bytes) * 1000 / lasted.as_millis().max(1)) as u64;
            self.step(rate);
            self.last_rate = rate;
        }
        self.epoch = Epoch {
            began: Some(now),
            measures: !self.epoch.measures,
            ..Epoch::default()
        };
    }

    fn step(&mut self, rate: u64) {
        let margin = self.last_rate / 100 * NOTICEABLE;
        if rate + margin < self.last_rate {
            // Worse than before: the last step was wrong.
            self.rises = !self.rises;
        } else if rate <= self.last_rate + margin {
            // As many bytes as before: fewer requests do as well, and readers get through faster.
            self.rises = false;
        }
        self.limit = if self.rises {
            self.limit + UP
        } else {
            self.limit - DOWN
        }
        .clamp(LEAST, MOST);
    }

    /// The upstream asked for patience.
    pub(super) fn refused(&mut self) {
        self.limit = (self.limit / 2).max(LEAST);
        self.rises = false;
        self.epoch = Epoch::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs epochs against a link that carries so many times what is in flight per second, up to `most`. The limits, in MiB.
    fn run(pace: &mut Pace, epochs: u64, turns_per_second: u64, most: u64) -> Vec<u64> {
        let mut now = Duration::ZERO;
        let mut limits = Vec::new();
        for _ in 0..epochs {
            let rate = (pace.limit * turns_per_second).min(most);
            for _ in 0..EPOCH_RANGES {
                now += EPOCH / EPOCH_RANGES;
                pace.ended(now, rate / 5 / u64::from(EPOCH_RANGES), true);
            }
            limits.push(pace.limit >> 20);
        }
        limits
    }

    #[test]
    fn it_climbs_while_that_helps_and_settles_where_the_link_is_full() {
        let mut pace = Pace::default();
        let limits = run(&mut pace, 80, 1, 16 << 20);
        assert!(limits.iter().any(|limit| *limit >= 14), "{limits:?}");
        let settled = &limits[40..];
        assert!(settled.iter().all(|limit| (6..=22).contains(limit)), "{limits:?}");
    }

    #[test]
    fn a_link_that_little_fills_is_left_to_little() {
        let mut pace = Pace::default();
        let limits = run(&mut pace, 80, 64, 16 << 20);
        assert!(limits[60..].iter().all(|limit| *limit <= 6), "{limits:?}");
        assert!(limits.iter().all(|limit| *limit >= LEAST >> 20));
    }

    /// The ranges that are allowed after so many answers of an upstream that takes a time to answer `ranges` at once.
    fn settle(queue: &mut Queue, answers: usize, time: impl Fn(usize) -> Duration) -> usize {
        (0..answers).for_each(|_| queue.answered(time(queue.ranges)));
        queue.ranges
    }

    #[test]
    fn ranges_grow_in_number_until_they_queue_at_the_upstream() {
        const ANSWER: Duration = Duration::from_millis(5);
        let far = |_| ANSWER * 12;
        let one_by_one = |ranges: usize| ANSWER * ranges as u32;
        let mut queue = Queue::default();
        queue.answered(ANSWER);
        assert!(settle(&mut queue, 200, one_by_one) <= 4);
        assert_eq!(settle(&mut Queue::default(), 200, far), MOST_RANGES);
        assert_eq!(
            settle(&mut queue, 200, far),
            MOST_RANGES,
            "the way has become longer"
        );
    }

    #[test]
    fn ranges_get_long_where_they_come_promptly() {
        let mut pace = Pace::default();
        let mut lengths = |bytes_per_ms: u64| {
            let mut length = || {
                let len = pace.range_len();
                pace.took(len, Duration::from_millis(len / bytes_per_ms));
                pace.took(1000, Duration::from_secs(1));
                len >> 20
            };
            [length(), length(), length(), length()]
        };
        assert_eq!(lengths(60_000), [1, 2, 4, 4]);
        assert_eq!(lengths(12_000), [4, 2, 2, 2], "neither prompt nor late");
        assert_eq!(lengths(4_000), [2, 1, 1, 1]);
        assert_eq!(lengths(60_000), [1, 2, 4, 4]);
    }

    fn under_way(ranges: usize, silent: usize, bytes: u64) -> UnderWay {
        UnderWay {
            ranges,
            silent,
            bytes,
        }
    }

    #[test]
    fn silent_ranges_leave_their_place_to_others_but_not_for_good() {
        let pace = Pace::default();
        assert!(!pace.admits(under_way(START_RANGES, 0, 0), false));
        assert!(pace.admits(under_way(START_RANGES, 1, 0), false));
        assert!(!pace.admits(under_way(MOST_RANGES, MOST_RANGES, 0), false));
    }

    #[test]
    fn readers_have_a_reserve_and_refusals_halve() {
        let mut pace = Pace::default();
        assert!(pace.admits(under_way(1, 0, START - 1), false));
        assert!(!pace.admits(under_way(1, 0, START), false));
        assert!(pace.admits(under_way(MOST_RANGES, 0, MOST), true));
        assert!(!pace.admits(under_way(MOST_RANGES + RESERVE, 0, 0), true));
        pace.refused();
        assert!(!pace.admits(under_way(1, 0, START / 2), false));
        (0..10).for_each(|_| pace.refused());
        assert!(pace.admits(under_way(1, 0, LEAST - 1), false));
    }
}
