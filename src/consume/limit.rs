//! How many records one transaction may have: fewer after the database or a handler was too slow for more, or after a process
//! ended over what it had under way.

use std::time::Duration;

/// A transaction that took less leaves room for one of twice as many records.
const QUICK: Duration = Duration::from_secs(5);

/// One that took longer is followed by smaller ones: what is under way is lost when the process ends, and nothing of it is
/// seen before.
const SLOW: Duration = Duration::from_secs(10);

/// The bound of one partition. There is none until a transaction took too long.
#[derive(Debug)]
pub struct Limit {
    most: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Self { most: usize::MAX }
    }
}

impl Limit {
    /// How many of so many records may go into the next transaction.
    pub fn of(&self, records: usize) -> usize {
        records.min(self.most)
    }

    /// Begins with a single one.
    pub fn begin_small(&mut self) {
        self.most = 1;
    }

    /// A transaction of so many records was not done in time.
    pub fn too_slow(&mut self, records: usize) {
        self.most = (records / 2).max(1);
    }

    /// One of so many records was done.
    pub fn done(&mut self, records: usize, took: Duration) {
        if took < QUICK {
            self.most = self.most.saturating_mul(2);
        } else if took > SLOW {
            let fit = records as f64 * (QUICK.as_secs_f64() / took.as_secs_f64());
            self.most = (fit as usize).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_halves_down_to_one_record_and_is_gone_when_the_database_is_quick_again() {
        let mut limit = Limit::default();
        assert_eq!(limit.of(5000), 5000);
        limit.too_slow(limit.of(5000));
        assert_eq!(limit.of(5000), 2500);
        for _ in 0..20 {
            limit.too_slow(limit.of(5000));
        }
        assert_eq!(limit.of(5000), 1);
        limit.done(1, QUICK);
        assert_eq!(limit.of(5000), 1, "twice as many might take too long again");
        for _ in 0..13 {
            limit.done(1, Duration::from_millis(10));
        }
        assert_eq!(limit.of(5000), 5000);
    }

    #[test]
    fn limit_counts_from_what_the_slow_transaction_had() {
        let mut limit = Limit::default();
        limit.too_slow(10);
        assert_eq!(limit.of(5000), 5);
    }

    #[test]
    fn limit_after_a_slow_handler_is_what_it_does_in_five_seconds() {
        let mut limit = Limit::default();
        limit.done(5000, Duration::from_secs(100));
        assert_eq!(limit.of(5000), 250);
        limit.done(250, Duration::from_secs(5));
        assert_eq!(limit.of(5000), 250, "neither quick nor slow");
        limit.done(1, Duration::from_secs(60));
        assert_eq!(limit.of(5000), 1);
    }
}
