//! How many ranges of one upstream are under way at the same time.
//!
//! More requests fill a link better until it is full; from then on they only share it, and every one takes longer. So the number climbs while
//! that brings more bytes per second, and falls while fewer bring as many: a hill climber that compares one epoch with the one before. After
//! each step an epoch passes unmeasured, because ranges that began before the step still end in it. It moves only when work was waiting,
//! since an idle link says nothing. An upstream that asks for patience halves the number at once.

use std::time::Duration;

/// Where it begins: enough for a fast link at registry latencies, and few enough that a slow one is shared well.
const START: usize = 8;
/// Fewest, so that one slow answer never stops everything.
const LEAST: usize = 2;
/// Most: with ranges of a megabyte their buffers stay in the tens of megabytes.
const MOST: usize = 32;
/// Ranges in an epoch, at least; and how long it lasts, at least. Shorter ones compare noise.
const EPOCH_RANGES: u32 = 8;
const EPOCH: Duration = Duration::from_millis(200);
/// Change of the rate that counts as one, in percent.
const NOTICEABLE: u64 = 5;
/// Ranges for which a reader waits may pass the bound by so many: they must never queue behind lesser work.
const RESERVE: usize = 8;

/// The bound and what it learns from.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    rises: bool,
    /// Bytes per second of the last epoch.
    last_rate: u64,
    epoch: Epoch,
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
        }
    }
}

impl Pace {
    /// Whether one more range may start beside `under_way`; `demanded` says that a reader waits for it.
    pub(super) fn admits(&self, under_way: usize, demanded: bool) -> bool {
        let reserve = if demanded { RESERVE } else { 0 };
        under_way < self.limit + reserve
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
            self.limit + 2
        } else {
            self.limit - 1
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

    /// Runs epochs against a link that carries `per_range` bytes per second and range, up to `most`.
    fn run(pace: &mut Pace, epochs: u64, per_range: u64, most: u64) -> Vec<usize> {
        let mut now = Duration::ZERO;
        let mut limits = Vec::new();
        for _ in 0..epochs {
            let rate = (pace.limit as u64 * per_range).min(most);
            for _ in 0..EPOCH_RANGES {
                now += EPOCH / EPOCH_RANGES;
                pace.ended(now, rate / 5 / u64::from(EPOCH_RANGES), true);
            }
            limits.push(pace.limit);
        }
        limits
    }

    #[test]
    fn it_climbs_while_that_helps_and_settles_where_the_link_is_full() {
        let mut pace = Pace::default();
        let limits = run(&mut pace, 80, 1 << 20, 16 << 20);
        assert!(limits.iter().any(|limit| *limit >= 14), "{limits:?}");
        let settled = &limits[40..];
        assert!(settled.iter().all(|limit| (6..=22).contains(limit)), "{limits:?}");
    }

    #[test]
    fn a_link_that_one_range_fills_is_left_to_few() {
        let mut pace = Pace::default();
        let limits = run(&mut pace, 80, 64 << 20, 16 << 20);
        assert!(limits[60..].iter().all(|limit| *limit <= 6), "{limits:?}");
        assert!(limits.iter().all(|limit| *limit >= LEAST));
    }

    #[test]
    fn readers_have_a_reserve_and_refusals_halve() {
        let mut pace = Pace::default();
        assert!(pace.admits(START - 1, false) && !pace.admits(START, false));
        assert!(pace.admits(START + RESERVE - 1, true) && !pace.admits(START + RESERVE, true));
        pace.refused();
        assert!(!pace.admits(START / 2, false));
        (0..10).for_each(|_| pace.refused());
        assert!(pace.admits(LEAST - 1, false));
    }
}
