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

use super::{
    problems::{CLIENT_SHARE, OVERLOADED, RATE_LIMIT},
    turns::Turn,
};
use crate::{
    http::{Client, Problem},
    spec::producer::Rate,
    telemetry::metrics::ingest::IN_FLIGHT_BYTES,
};

/// Seconds after which a request that met a full process should come again.
const OVERLOAD_RETRY_SECONDS: u32 = 1;
/// How many admissions pass between two sweeps of clients that have been silent.
const SWEEP_EVERY: u32 = 4096;

/// The bytes of requests that this process holds at once, as sent, decompressed and encoded together.
///
/// Half of them is anybody's, without counting whose. The other half is scarce: of it a client may hold as much as is still
/// free, so that something is left for whoever comes next, and several clients that want all of it end up with equal
/// shares.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    used: Arc<AtomicUsize>,
    limit: usize,
}

/// Bytes taken from the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: Budget,
    client: Arc<Client>,
    bytes: usize,
    /// Those of them that were taken when they were scarce.
    scarce: usize,
    /// The turn in which what is held was sent; it ends with it.
    turn: Option<Turn>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { used: Arc::default(), limit }
    }

    /// Holds nothing yet.
    pub(super) fn hold(&self, client: &Arc<Client>) -> Held {
        Held { budget: self.clone(), client: Arc::clone(client), bytes: 0, scarce: 0, turn: None }
    }
}

impl Held {
    /// Takes more, or says that the process holds enough; there is no waiting, for a full process should shed at once.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let Budget { used, limit } = &self.budget;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= *limit);
        let before = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| {
            OVERLOADED
                .problem(format!("the {limit} bytes that this process may hold of requests are in use"))
                .with("outcome", "not_written")
                .retry_after(OVERLOAD_RETRY_SECONDS)
        })?;
        self.bytes += bytes;
        IN_FLIGHT_BYTES.add(bytes as i64);
        if before + bytes > limit / 2 { self.take_scarce(bytes, limit - before) } else { Ok(()) }
    }

    /// Counts bytes that were scarce when they were taken; `free` is what was left before.
    fn take_scarce(&mut self, bytes: usize, free: usize) -> Result<(), Problem> {
        self.scarce += bytes;
        let has = self.client.scarce_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if has <= free {
            return Ok(());
        }
        self.shrink_to(self.bytes - bytes);
        let name = &self.client.name;
        let problem = CLIENT_SHARE.problem(format!(
            "client {name:?} has the most that one client gets of the memory for requests while others need it, too"
        ));
        Err(problem.with("outcome", "not_written").retry_after(OVERLOAD_RETRY_SECONDS))
    }

    /// Gives back all but `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.budget.used.fetch_sub(surplus, Ordering::Relaxed);
        IN_FLIGHT_BYTES.sub(surplus as i64);
        let scarce = self.scarce.min(surplus);
        if scarce > 0 {
            self.scarce -= scarce;
            self.client.scarce_bytes.fetch_sub(scarce, Ordering::Relaxed);
        }
    }

    /// Ends the turn when what is held is given back.
    pub(super) fn keep(&mut self, turn: Turn) {
        self.turn = Some(turn);
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn budget_is_given_back_whatever_becomes_of_the_request() {
        let (budget, a, b) = (Budget::new(12), Client::new("a"), Client::new("b"));
        let mut first = budget.hold(&a);
        first.grow(6).unwrap();
        let mut second = budget.hold(&b);
        assert_eq!(second.grow(7).unwrap_err().status, 503);
        second.grow(3).unwrap();
        first.shrink_to(1);
        second.grow(2).unwrap();
        drop((first, second));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        assert!(budget.hold(&a).grow(usize::MAX).is_err());
        assert_eq!(a.scarce_bytes.load(Ordering::Relaxed) + b.scarce_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn greedy_client_leaves_room_for_another() {
        let (budget, greedy, modest) = (Budget::new(1000), Client::new("greedy"), Client::new("modest"));
        let mut taken: Vec<Held> = Vec::new();
        let problem = loop {
            let mut held = budget.hold(&greedy);
            match held.grow(10) {
                Ok(()) => taken.push(held),
                Err(problem) => break problem,
            }
        };
        assert_eq!((problem.status, problem.code), (429, CLIENT_SHARE.code));
        assert_eq!(taken.len(), 75, "half that is anybody's, and half of the scarce half");
        let mut held = budget.hold(&modest);
        held.grow(100).unwrap();
        // With another there, the greedy one's share is smaller still.
        drop(taken.split_off(70));
        assert!(budget.hold(&greedy).grow(10).is_err());
        drop((taken, held));
        assert_eq!(greedy.scarce_bytes.load(Ordering::Relaxed), 0);
        budget.hold(&greedy).grow(500).unwrap();
    }

    proptest! {
        /// Whoever takes whatever in whatever order: nothing is lost, and the limit holds.
        #[test]
        fn budget_and_shares_balance(
            steps in prop::collection::vec((0_usize..3, 0_usize..400, any::<bool>()), 0..200),
        ) {
            let (budget, clients) = (Budget::new(1000), ["a", "b", "c"].map(Client::new));
            let mut holders: Vec<Held> = Vec::new();
            for (client, bytes, ends) in steps {
                if ends {
                    drop(holders.pop());
                    continue;
                }
                let mut held = budget.hold(&clients[client]);
                let _ = held.grow(bytes);
                held.shrink_to(bytes / 2);
                holders.push(held);
                prop_assert!(budget.used.load(Ordering::Relaxed) <= 1000);
                prop_assert_eq!(budget.used.load(Ordering::Relaxed), holders.iter().map(|held| held.bytes).sum::<usize>());
            }
            drop(holders);
            prop_assert_eq!(budget.used.load(Ordering::Relaxed), 0);
            prop_assert!(clients.iter().all(|client| client.scarce_bytes.load(Ordering::Relaxed) == 0));
        }
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
