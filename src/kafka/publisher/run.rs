//! The publisher's two threads and what they observe: *poll* takes delivery reports and decides on health, *scout*
//! asks the brokers about topics, which also tells whether they answer at all.

use std::{
    collections::HashSet,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{client::Client, error::KafkaError, producer::Producer};
use tokio::sync::watch;

use super::{
    Health, NotSent, Reason, Shared,
    in_flight::{Budget, Window},
    producer::{self, Context},
    topics::Topics,
};
use crate::{
    kafka::{Error, Options, client::MESSAGE_TIMEOUT},
    telemetry::metrics::kafka as metrics,
};

/// How often health is decided. Reports are taken the moment they come. The client spins through the last millisecond of
/// every wait, so that short ones cost an idle process CPU time.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// A record that waits longer than this says that something is wrong.
pub(super) const STALL: Duration = Duration::from_secs(2);
/// Old batches looked at for the partitions they wait for; more would say nothing new.
const STALLED_BATCHES: usize = 1000;
/// How often topics are looked up when all is well: partitions are added rarely.
const LOOK: Duration = Duration::from_secs(30);
/// How often when something is wrong, or not known yet.
const LOOK_CLOSER: Duration = Duration::from_millis(500);
/// Why none are taken while it is not known whether there is one.
const DOUBTED: &str = "the producer met an error that may have ended it";
/// What one look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// What the producer's callbacks, the threads and the callers know in common.
pub(super) struct State {
    pub window: Window,
    pub budget: Arc<Budget>,
    pub topics: Topics,
    pub health: watch::Sender<Health>,
    /// Counts the scout's rounds.
    pub rounds: watch::Sender<u64>,
    /// The number of records given up, once closed.
    pub closed: watch::Sender<Option<usize>>,
    /// The health as one flag, for the hot path.
    open: AtomicBool,
    pub has_producer_id: AtomicBool,
    has_looked: AtomicBool,
    pub fatal: AtomicBool,
    pub written: AtomicBool,
    /// Whether some partition is.
    stalled: AtomicBool,
    suspicion: Mutex<Option<String>>,
    closing: Mutex<Option<Instant>>,
    scout_wanted: Mutex<bool>,
    scout: Condvar,
}

impl State {
    pub fn new(options: &Options) -> Self {
        let starting = Health::Degraded { since: Instant::now(), why: "the producer is starting".into() };
        Self {
            window: Window::default(),
            budget: Arc::new(Budget::new(options.in_flight_bytes)),
            topics: Topics::declared_as(&options.declared_partitions),
            health: watch::Sender::new(starting),
            rounds: watch::Sender::new(0),
            closed: watch::Sender::new(None),
            open: AtomicBool::new(false),
            has_producer_id: AtomicBool::new(false),
            has_looked: AtomicBool::new(false),
            fatal: AtomicBool::new(false),
            written: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            suspicion: Mutex::new(None),
            closing: Mutex::new(None),
            scout_wanted: Mutex::new(false),
            scout: Condvar::new(),
        }
    }

    /// Whether a batch may be sent at all now.
    pub fn admit(&self) -> Result<(), NotSent> {
        if self.open.load(Ordering::Relaxed) {
            return Ok(());
        }
        match &*self.health.borrow() {
            Health::Ready => Ok(()),
            Health::Degraded { why, .. } => Err(NotSent::Unavailable { why: why.clone() }),
        }
    }

    pub fn wake_scout(&self) {
        *self.scout_wanted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.scout.notify_one();
    }

    pub fn close(&self, deadline: Instant) {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(deadline);
        self.set_health(Err("millpond is stopping".into()));
        self.wake_scout();
    }

    pub fn closing(&self) -> Option<Instant> {
        *self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the publisher until the poll thread has asked librdkafka whether the producer is lost.
    pub fn doubt_producer(&self) {
        self.fatal.store(true, Ordering::Relaxed);
        self.set_health(Err(DOUBTED.into()));
    }

    pub fn suspect(&self, why: String) {
        self.suspicion.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn clear_suspicion(&self) {
        *self.suspicion.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn set_health(&self, verdict: Result<(), String>) {
        self.open.store(verdict.is_ok(), Ordering::Relaxed);
        metrics::PUBLISHER_READY.set(i64::from(verdict.is_ok()));
        self.health.send_if_modified(|health| match (&*health, verdict) {
            (Health::Ready, Ok(())) => false,
            (Health::Degraded { since, .. }, Ok(())) => {
                tracing::info!(after = ?since.elapsed(), "kafka takes records");
                *health = Health::Ready;
                true
            }
            (Health::Degraded { why: old, .. }, Err(why)) if **old == *why => false,
            (Health::Degraded { since, .. }, Err(why)) => {
                *health = Health::Degraded { since: *since, why: why.into() };
                true
            }
            (Health::Ready, Err(why)) => {
                tracing::warn!(why, "kafka takes no records");
                *health = Health::Degraded { since: Instant::now(), why: why.into() };
                self.wake_scout();
                true
            }
        });
    }
}

/// What is looked at to decide on health.
struct Signs {
    closing: bool,
    has_producer_id: bool,
    has_looked: bool,
    suspicion: Option<String>,
    /// Age of the oldest record without acknowledgement.
    oldest: Option<Duration>,
    /// Time since anything was acknowledged.
    silence: Duration,
}

/// Whether records can be taken; if not, why.
fn assess(signs: Signs) -> Result<(), String> {
    if signs.closing {
        return Err("millpond is stopping".into());
    }
    if let Some(why) = signs.suspicion {
        return Err(why);
    }
    if !signs.has_producer_id {
        return Err("the producer has no id from the brokers yet".into());
    }
    if !signs.has_looked {
        return Err("the topics are not looked up yet".into());
    }
    match signs.oldest {
        // While other partitions go on, only those that wait are closed: see `mark_stalled`.
        Some(age) if age > STALL && signs.silence > STALL => {
            Err(format!("the brokers have acknowledged nothing for {} s", signs.silence.as_secs()))
        }
        _ => Ok(()),
    }
}

pub(super) fn spawn(shared: &Arc<Shared>) -> Result<(), Error> {
    let start = |name: &str, run: fn(&Shared)| {
        let shared = shared.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || run(&shared));
        thread.map(drop).map_err(|error| Error::Create { what: "publisher's thread", why: error.to_string() })
    };
    start("kafka-poll", poll)?;
    start("kafka-scout", scout).inspect_err(|_| shared.state.close(Instant::now()))
}

/// Takes reports until the publisher is closed and nothing is under way, or the time for it is over.
fn poll(shared: &Shared) {
    let state = &shared.state;
    let mut last_written = Instant::now();
    loop {
        if let Some(producer) = &*shared.live() {
            producer.poll(TICK);
            // The flag is set by the error callback; what counts is librdkafka's own word.
            if state.fatal.swap(false, Ordering::Relaxed) && producer.client().fatal_error().is_some() {
                state.fatal.store(true, Ordering::Relaxed);
            }
        }
        if state.fatal.swap(false, Ordering::Relaxed) {
            producer::replace(shared);
        } else if state.window.oldest().is_some_and(|since| since.elapsed() > MESSAGE_TIMEOUT) {
            producer::give_up(shared);
        }
        if state.written.swap(false, Ordering::Relaxed) {
            last_written = Instant::now();
            state.clear_suspicion();
        }
        tick(state, last_written);
        if let Some(deadline) = state.closing()
            && let Some(abandoned) = try_end(shared, deadline)
        {
            state.closed.send_replace(Some(abandoned));
            return;
        }
    }
}

fn tick(state: &State, last_written: Instant) {
    let now = Instant::now();
    let oldest = state.window.oldest().map(|since| now - since);
    let stalled: HashSet<(Arc<str>, i32)> = match oldest {
        Some(age) if age > STALL => {
            let old = state.window.older_than(now - STALL, STALLED_BATCHES);
            old.iter().flat_map(|batch| batch.waiting().map(|(topic, at)| (topic.clone(), at))).collect()
        }
        _ => HashSet::new(),
    };
    state.topics.mark_stalled(&stalled);
    if state.topics.any_doubted() {
        let all = state.window.older_than(now, usize::MAX);
        state
            .topics
            .end_tries(&all.iter().flat_map(|batch| batch.waiting()).map(|(name, at)| (name.clone(), at)).collect());
    }
    if !state.stalled.swap(!stalled.is_empty(), Ordering::Relaxed) && !stalled.is_empty() {
        state.wake_scout();
    }
    metrics::IN_FLIGHT_BYTES.set(state.budget.used() as i64);
    let suspicion = state.suspicion.lock().unwrap_or_else(PoisonError::into_inner).clone();
    state.set_health(assess(Signs {
        closing: state.closing().is_some(),
        has_producer_id: state.has_producer_id.load(Ordering::Relaxed),
        has_looked: state.has_looked.load(Ordering::Relaxed),
        suspicion,
        oldest,
        silence: now - last_written,
    }));
}

/// Ends the producer if nothing is under way or the time is over; returns the number of records given up.
fn try_end(shared: &Shared, deadline: Instant) -> Option<usize> {
    let state = &shared.state;
    let late = Instant::now() >= deadline;
    if !late && !state.window.is_empty() {
        return None;
    }
    let mut live = shared.live.write().unwrap_or_else(PoisonError::into_inner);
    // Nobody is queueing now, but somebody may have been a moment ago.
    if !late && !state.window.is_empty() {
        return None;
    }
    let left = state.window.older_than(Instant::now(), usize::MAX);
    // Dropping purges the queues: most reports come now, as `Closed`; the rest is settled here.
    drop(live.take());
    state.window.abandon(Reason::Closed);
    Some(left.iter().map(|batch| batch.unknown()).sum())
}

/// Looks the topics up, from time to time or when woken.
fn scout(shared: &Shared) {
    let state = &shared.state;
    while state.closing().is_none() {
        let looked = shared.live().as_ref().map(|producer| look(producer.client(), &state.topics));
        let answered = matches!(looked, Some(Ok(())));
        match looked {
            Some(Ok(())) => {
                state.has_looked.store(true, Ordering::Relaxed);
                state.clear_suspicion();
            }
            // An acknowledgement, should there be one all the same, clears this within a tick.
            Some(Err(error)) => state.suspect(format!("no broker answers: {error}")),
            None => {}
        }
        state.rounds.send_modify(|round| *round += 1);
        let well = answered
            && *state.health.borrow() == Health::Ready
            && !state.stalled.load(Ordering::Relaxed)
            && !state.topics.need_another_look();
        let wanted = state.scout_wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = if well { LOOK } else { LOOK_CLOSER };
        let waited = state.scout.wait_timeout_while(wanted, interval, |wanted| !*wanted);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// One round over all topics asked for; an error if the brokers do not answer.
fn look(client: &Client<Context>, topics: &Topics) -> Result<(), KafkaError> {
    let names = topics.names();
    if names.is_empty() {
        return client.fetch_metadata(None, LOOK_TIMEOUT).map(drop);
    }
    for name in names {
        let metadata = client.fetch_metadata(Some(&name), LOOK_TIMEOUT)?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == &*name);
        let mut partitions: Vec<(i32, bool)> =
            topic.map_or_else(Vec::new, |topic| topic.partitions().iter().map(|p| (p.id(), p.leader() >= 0)).collect());
        partitions.sort_unstable();
        let leaders: Vec<bool> = partitions.into_iter().map(|(_, has_leader)| has_leader).collect();
        topics.update(&name, Some(&leaders).filter(|l| !l.is_empty()).map(Vec::as_slice));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Signs {
        Signs {
            closing: false,
            has_producer_id: true,
            has_looked: true,
            suspicion: None,
            oldest: None,
            silence: Duration::from_secs(100),
        }
    }

    #[test]
    fn idle_publisher_is_ready_however_long_nothing_was_sent() {
        assert_eq!(assess(well()), Ok(()));
    }

    #[test]
    fn publisher_without_producer_id_is_not_ready() {
        assert!(assess(Signs { has_producer_id: false, ..well() }).unwrap_err().contains("id"));
    }

    #[test]
    fn old_record_closes_the_publisher_only_when_nothing_is_acknowledged() {
        let old = Some(STALL + Duration::from_millis(1));
        assert!(assess(Signs { oldest: old, ..well() }).is_err());
        assert_eq!(assess(Signs { oldest: old, silence: Duration::from_millis(10), ..well() }), Ok(()));
    }
}
