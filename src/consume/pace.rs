//! How fast records may be applied, over all partitions of a version: a rate, and whether others go first.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A bound on the rate; none without one, as long as nobody else needs what a batch takes.
#[derive(Debug, Default)]
pub struct Pace {
    per_second: Option<u32>,
    /// When the records that were let through before are due to be done.
    free: Mutex<Option<Instant>>,
    makes_room: AtomicBool,
}

impl Pace {
    pub fn of(per_second: Option<u32>) -> Self {
        Self { per_second, ..Self::default() }
    }

    /// How long so many records have to wait: as long as those before them take at this rate.
    pub fn wait(&self, records: usize) -> Duration {
        let Some(rate) = self.per_second.filter(|rate| *rate > 0) else { return Duration::ZERO };
        let now = Instant::now();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = free.map_or(now, |free| free.max(now));
        *free = Some(begin + Duration::from_secs_f64(records as f64 / f64::from(rate)));
        begin - now
    }

    /// Has every partition wait between two batches, or go on.
    pub fn make_room(&self, wanted: bool) {
        self.makes_room.store(wanted, Ordering::Relaxed);
    }

    pub fn makes_room(&self) -> bool {
        self.makes_room.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_wait_for_those_before_them_and_for_nothing_without_a_rate() {
        let pace = Pace::of(Some(100));
        assert_eq!(pace.wait(50), Duration::ZERO);
        let second = pace.wait(50);
        assert!(second > Duration::from_millis(400) && second <= Duration::from_millis(500), "{second:?}");
        let third = pace.wait(1);
        assert!(third > Duration::from_millis(900) && third <= Duration::from_secs(1), "{third:?}");
        assert_eq!((Pace::default().wait(1_000_000), Pace::of(Some(0)).wait(9)), (Duration::ZERO, Duration::ZERO));
    }
}
