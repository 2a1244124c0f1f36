//! The breaker: many dead letters at once are a bad deploy, not bad data.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Failures are judged over the last minute.
const WINDOW: Duration = Duration::from_secs(60);
/// Fewer failures than this never trip it: a small batch of rubbish is not a deploy.
const MIN_FAILURES: usize = 20;
/// More than one in twenty.
const MAX_SHARE: f64 = 0.05;

/// Counts what a consumer did lately, over all its partitions in this process.
#[derive(Debug, Default)]
pub struct Breaker {
    batches: VecDeque<(Instant, usize, usize)>,
}

impl Breaker {
    /// Counts a batch; returns the failures and records of the window when it trips. Only a batch with failures does:
    /// it is its partition that halts.
    pub fn count(&mut self, now: Instant, records: usize, failures: usize) -> Option<(usize, usize)> {
        while self.batches.front().is_some_and(|(at, ..)| now.duration_since(*at) > WINDOW) {
            self.batches.pop_front();
        }
        self.batches.push_back((now, records, failures));
        if failures == 0 {
            return None;
        }
        let records: usize = self.batches.iter().map(|b| b.1).sum();
        let failures: usize = self.batches.iter().map(|b| b.2).sum();
        let share = failures as f64 / records.max(1) as f64;
        let trips = failures >= MIN_FAILURES && share > MAX_SHARE;
        // After a restart by an operator it counts anew.
        if trips {
            self.batches.clear();
        }
        trips.then_some((failures, records))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_failures_or_a_small_share_do_not_trip() {
        let now = Instant::now();
        assert_eq!(Breaker::default().count(now, 19, 19), None);
        assert_eq!(Breaker::default().count(now, 1000, 50), None);
        assert_eq!(Breaker::default().count(now, 1000, 51), Some((51, 1000)));
    }

    #[test]
    fn a_batch_without_failures_does_not_trip_when_good_ones_fall_out_of_the_window() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        assert_eq!(breaker.count(start, 10_000, 0), None);
        assert_eq!(breaker.count(start + Duration::from_secs(30), 100, 30), None);
        assert_eq!(breaker.count(start + Duration::from_secs(70), 10, 0), None);
        assert_eq!(breaker.count(start + Duration::from_secs(71), 1, 1), Some((31, 111)));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut breaker = Breaker::default();
        let start = Instant::now();
        assert_eq!(breaker.count(start, 19, 19), None);
        assert_eq!(breaker.count(start + Duration::from_secs(61), 1, 1), None);
        assert_eq!(breaker.count(start + Duration::from_secs(62), 19, 19), Some((20, 20)));
        assert_eq!(breaker.count(start + Duration::from_secs(63), 19, 19), None);
    }
}
