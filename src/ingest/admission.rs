//! Who is let in, and how much of it at once: bytes held for requests, records per client and time.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::HashMapStateStore,
};

use super::problems::{OVERLOADED, RATE_LIMIT};
use crate::{http::Problem, spec::producer::Rate, telemetry::metrics::ingest::IN_FLIGHT_BYTES};

/// Seconds after which a request that met a full process should come again.
const OVERLOAD_RETRY_SECONDS: u32 = 1;
/// How many admissions pass between two sweeps of clients that have been silent.
const SWEEP_EVERY: u32 = 4096;

/// The bytes of requests that this process holds at once, as sent, decompressed and encoded together.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    used: Arc<AtomicUsize>,
    limit: usize,
}

/// Bytes taken from the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { used: Arc::default(), limit }
    }

    /// Holds nothing yet.
    pub(super) fn hold(&self) -> Held {
        Held { budget: self.clone(), bytes: 0 }
    }
}

impl Held {
    /// Takes more, or says that the process holds enough; there is no waiting, for a full process should shed at once.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let Budget { used, limit } = &self.budget;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= *limit);
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| {
            OVERLOADED
                .problem(format!("the {limit} bytes that this process may hold of requests are in use"))
                .with("outcome", "not_written")
                .retry_after(OVERLOAD_RETRY_SECONDS)
        })?;
        self.bytes += bytes;
        IN_FLIGHT_BYTES.add(bytes as i64);
        Ok(())
    }

    /// Gives back all but `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.budget.used.fetch_sub(surplus, Ordering::Relaxed);
        IN_FLIGHT_BYTES.sub(surplus as i64);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Counts the records of each client of one producer folder.
pub(super) struct ClientRate {
    limiter: RateLimiter<Arc<str>, HashMapStateStore<Arc<str>>, DefaultClock>,
    clock: DefaultClock,
    rate: Rate,
    until_sweep: AtomicU32,
}

/// Why records have to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limited {
    /// Come again after this time.
    For(Duration),
    /// More at once than is ever let in.
    Never,
}

impl ClientRate {
    pub(super) fn new(rate: Rate) -> Self {
        let period = (rate.per / rate.records.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(period).expect("invariant: the period is above zero").allow_burst(rate.records);
        Self {
            limiter: RateLimiter::hashmap(quota),
            clock: DefaultClock::default(),
            rate,
            until_sweep: AtomicU32::new(SWEEP_EVERY),
        }
    }

    /// Most records that are let in at once.
    pub(super) fn burst(&self) -> usize {
        self.rate.records.get() as usize
    }

    /// Counts `records` of `client`, all or none.
    pub(super) fn take(&self, client: &Arc<str>, records: usize) -> Result<(), Limited> {
        let Some(count) = u32::try_from(records).ok().and_then(NonZeroU32::new) else {
            return if records == 0 { Ok(()) } else { Err(Limited::Never) };
        };
        // Addresses come and go; without a sweep each would be remembered for ever.
        if self.until_sweep.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.until_sweep.store(SWEEP_EVERY, Ordering::Relaxed);
            self.limiter.retain_recent();
        }
        match self.limiter.check_key_n(client, count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(later)) => Err(Limited::For(later.wait_time_from(self.clock.now()))),
            Err(_) => Err(Limited::Never),
        }
    }

    /// The 429 for `records` of `client` that `limited` keeps out.
    pub(super) fn problem(&self, client: &str, records: usize, limited: Limited) -> Problem {
        let (allowed, seconds) = (self.rate.records, self.rate.per.as_secs());
        let limit = format!("client {client:?} may send {allowed} records in {seconds} s");
        let problem = |detail: String| RATE_LIMIT.problem(detail).with("outcome", "not_written");
        match limited {
            Limited::For(wait) => {
                let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
                problem(format!("{limit}; these {records} go in {seconds} s")).retry_after(seconds)
            }
            Limited::Never => problem(format!(
                "{limit}, and never {records} at once: send fewer in a request, or Prefer: handling=lenient"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_given_back_whatever_becomes_of_the_request() {
        let budget = Budget::new(10);
        let mut first = budget.hold();
        first.grow(6).unwrap();
        let mut second = budget.hold();
        assert_eq!(second.grow(5).unwrap_err().status, 503);
        second.grow(4).unwrap();
        first.shrink_to(1);
        second.grow(5).unwrap();
        drop((first, second));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        assert!(budget.hold().grow(usize::MAX).is_err());
    }

    #[test]
    fn rate_counts_each_client_by_itself() {
        let rate = ClientRate::new(Rate { records: NonZeroU32::new(5).unwrap(), per: Duration::from_secs(3600) });
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(rate.take(&a, 5), Ok(()));
        let Err(Limited::For(wait)) = rate.take(&a, 1) else { panic!("the sixth is let in") };
        assert!(wait > Duration::from_secs(600));
        assert_eq!(rate.take(&b, 5), Ok(()));
        assert_eq!(rate.take(&b, 6), Err(Limited::Never));
        assert_eq!(rate.take(&b, 0), Ok(()));
        assert_eq!(rate.problem("a", 1, Limited::For(wait)).retry_after, Some(wait.as_secs() as u32 + 1));
    }
}
