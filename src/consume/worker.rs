//! The worker of one partition: claim, batch, transaction, and what to do when one of them fails.
//!
//! One transaction is in flight per partition. A worker that loses its fence or the database keeps its batch, backs off and
//! claims again, for only the claim tells what was committed; what is below the fence then is dropped.

use std::{
    any::Any,
    collections::HashMap,
    ops::Range,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tracing::warn;

use super::{
    buffer::Chunk,
    dedupe::Repeats,
    divide::{Aside, Division},
    engine::Engine,
    guard::{Attempt, Guard},
    halts,
    limit::Limit,
    parked::Parked,
    partition::{Next, Partition, Stop},
    prepare::Fault,
    transaction::{self, Committed, Failure, Work},
    verdict::Recalled,
};
use crate::{
    kafka::subscription::{Ask, Command, Inbox},
    planted::{self, Bug},
    store::{
        self, Class,
        fence::{Claim, Halt},
        parked::ParkedKey,
    },
    telemetry::{metrics::consume as metrics, panic_message},
};

/// How long a batch waits where others are to go first: one of a partition in that time takes little from them, and it is not for
/// ever.
const ROOM: Duration = Duration::from_secs(5);

pub struct Worker {
    pub(super) engine: Arc<Engine>,
    pub(super) partition: Arc<Partition>,
    poll_thread: Arc<Inbox>,
    pub(super) claim: Option<Claim>,
    /// A batch whose transaction failed for no fault of its own.
    pub(super) pending: Option<Chunk>,
    /// Since when which schema id has been waited for.
    pub(super) unknown_since: Option<(i32, Instant)>,
    /// The same of records that were set aside; at most one entry for each lane that is due.
    pub(super) unknown_aside: HashMap<i32, Instant>,
    /// Whether what has to follow a claim was done.
    pub(super) settled_in: bool,
    pub(super) parked: Parked,
    /// Whether the last turn was one of records that were set aside.
    drained_last: bool,
    /// Above this offset nothing was decided by an earlier reading of the log.
    pub(super) greatest_verdict: Option<i64>,
    pub(super) recalled: Recalled,
    pub(super) limit: Limit,
    pub(super) guard: Guard,
    /// How far the fence may go while versions are compared.
    pub(super) bound: Option<i64>,
}

/// Why applying a batch stopped.
pub(super) enum Broken {
    /// Back off, claim again, go on with the same batch.
    Retry(String),
    /// Someone else owns the fence.
    Fenced,
    /// The fence goes no further for now: it is compared.
    Held,
    Halt(Halt),
}

impl Worker {
    pub fn new(engine: Arc<Engine>, partition: Arc<Partition>, poll_thread: Arc<Inbox>, claim: Option<Claim>) -> Self {
        let mut worker = Self {
            engine,
            partition,
            poll_thread,
            claim: None,
            pending: None,
            unknown_since: None,
            unknown_aside: HashMap::new(),
            settled_in: false,
            parked: Parked::default(),
            drained_last: false,
            greatest_verdict: None,
            recalled: Recalled::default(),
            limit: Limit::default(),
            guard: Guard::default(),
            bound: None,
        };
        if let Some(claim) = claim {
            worker.take(claim);
        }
        worker
    }

    /// Works until the partition is taken away.
    pub async fn run(mut self) {
        let mut waits = Backoff::default();
        while self.partition.stopping() == Stop::Run {
            let turn = AssertUnwindSafe(self.turn()).catch_unwind().await;
            self.guard.give_up_turn();
            match turn.unwrap_or_else(|panic| Err(Broken::Halt(self.panicked(panic.as_ref())))) {
                Ok(true) => waits = Backoff::default(),
                Ok(false) => {}
                Err(Broken::Fenced) if self.engine.vitals.yields_fences() => return,
                Err(Broken::Fenced) => {
                    warn!(consumer = %self.engine.projection, partition = %self.partition.at, "fenced: another member owns this partition's fence");
                    metrics::BATCHES.with_label_values(&[self.engine.label().as_str(), "fenced"]).inc();
                    self.drop_claim();
                    self.partition.sleep(waits.next()).await;
                }
                Err(Broken::Retry(reason)) => {
                    self.partition.note_error(&reason);
                    warn!(consumer = %self.engine.projection, partition = %self.partition.at, error = %reason, "batch not applied; trying again");
                    metrics::BATCHES.with_label_values(&[self.engine.label().as_str(), "transient_error"]).inc();
                    self.engine.sessions.drop_idle();
                    if !planted::is(Bug::UnknownSentAgain) {
                        self.drop_claim();
                    }
                    self.partition.sleep(waits.next()).await;
                }
                Err(Broken::Held) => self.wait_for_bound().await,
                Err(Broken::Halt(halt)) => self.halt(&halt).await,
            }
        }
        if self.partition.stopping() == Stop::Finish {
            self.release().await;
        }
    }

    /// One claim or one batch. True when something was applied.
    async fn turn(&mut self) -> Result<bool, Broken> {
        if self.claim.is_none() && !self.reclaim().await? {
            return Ok(false);
        }
        if !self.settled_in {
            self.settle_in().await?;
        }
        if self.engine.vitals.is_paused() {
            self.partition.sleep(Duration::from_millis(200)).await;
            return Ok(false);
        }
        if self.partition.is_to_look() {
            self.look().await?;
        }
        if self.drains_next() {
            self.drained_last = true;
            return self.drain().await.map(|()| true);
        }
        self.drained_last = false;
        let Some(mut chunk) = self.next_batch().await? else { return Ok(false) };
        if self.engine.vitals.is_paused() {
            self.pending = Some(chunk);
            return Ok(false);
        }
        let wait = self.engine.pace.wait(chunk.records.len());
        if !wait.is_zero() {
            self.partition.sleep(wait).await;
        }
        self.partition.sleep_while(ROOM, || self.engine.pace.makes_room()).await;
        let result = match self.recall(&mut chunk).await {
            Ok(()) => self.apply(&chunk).await,
            Err(broken) => Err(broken),
        };
        // Its records were not applied, and the buffer continues behind them.
        if matches!(result, Err(Broken::Retry(_) | Broken::Fenced | Broken::Held)) {
            self.pending = Some(chunk);
        }
        result.map(|()| true)
    }

    /// What was set aside and what comes from the log take turns, unless there is no room for more of the former. While the
    /// crash guard watches, what was set aside goes first: attempts at two places at once could not be counted.
    fn drains_next(&self) -> bool {
        let first = !self.drained_last || self.guard.is_watching() || self.parked.is_full_for(1);
        first && self.parked.has_due()
    }

    /// The next batch of the log; none when there is something else to be done first.
    async fn next_batch(&mut self) -> Result<Option<Chunk>, Broken> {
        if let Some(chunk) = self.pending.take() {
            return Ok(Some(chunk));
        }
        let patient = !self.parked.has_due();
        match self.partition.next_batch(self.engine.bounds, self.engine.max_age, patient).await {
            Next::Stop | Next::Nothing => Ok(None),
            Next::Doubt => {
                self.partition.buffer().refuse();
                self.drop_claim();
                Ok(None)
            }
            Next::Gap(gap) => self.pass_over(&gap).await.map(|()| None),
            Next::Batch(chunk, resume) => {
                if resume {
                    self.ask(Ask::Resume);
                }
                Ok(Some(chunk))
            }
        }
    }

    pub(super) fn ask(&self, ask: Ask) {
        let (at, assignment) = (self.partition.at.clone(), self.partition.assignment);
        self.poll_thread.send(Command::Ask { at, assignment, ask });
    }

    /// Tells the crash guard, while it watches, that the process has outlived what it began.
    pub(super) async fn outlived(&self) -> Result<(), store::Error> {
        let (Some(turn), Some(claim)) = (self.guard.turn(), &self.claim) else { return Ok(()) };
        Attempt { engine: &self.engine, claim, turn: &turn }.end().await
    }

    /// Tells the crash guard what is begun, while it watches.
    pub(super) async fn watch(&mut self, from: i64, records: usize) -> Result<Option<Fault>, Broken> {
        let Some(claim) = self.claim.clone().filter(|_| self.guard.is_watching()) else { return Ok(None) };
        let begun = self.guard.begin(&self.engine, &claim, from, records).await;
        begun.map_err(|error| self.broken(error))
    }

    pub(super) fn broken(&self, error: store::Error) -> Broken {
        match error.class() {
            Class::Fenced => Broken::Fenced,
            Class::Held => Broken::Held,
            Class::Deploy => Broken::Halt(halts::deploy(self.name(), &error)),
            _ => Broken::Retry(error.to_string()),
        }
    }

    fn panicked(&self, panic: &(dyn Any + Send)) -> Halt {
        let next = self.claim.as_ref().map_or(0, |claim| claim.next_offset);
        halts::panicked(self.name(), &self.partition.at, next, &panic_message(panic))
    }

    pub(super) fn name(&self) -> &str {
        &self.engine.projection
    }

    /// One transaction over `range`, with what is set aside of it.
    pub(super) async fn transact(
        &mut self,
        chunk: &Chunk,
        range: &Range<usize>,
        division: Division,
        (aside, heads): (&Aside<'_>, Vec<ParkedKey>),
        repeats: &Repeats,
    ) -> Result<(), Failure> {
        let Some(claim) = self.claim.clone() else { return Ok(()) };
        let to = chunk.records[range.end - 1].offset + 1;
        let started = Instant::now();
        let tally = division.tally(range.len(), heads.len());
        let mut work = Work::new(&claim, chunk, to, division.prepared);
        work.from = if planted::is(Bug::GapIgnored) { claim.next_offset.max(chunk.from) } else { work.from };
        work.watched = self.guard.turn();
        work.decisions = division.decisions;
        work.reviewed = self.recalled.reviewed(chunk.records[range.start].offset, to);
        work.dead = aside.letters();
        work.ids = repeats.entries(chunk, range);
        work.log_time = chunk.records[range.clone()].iter().map(|record| record.timestamp).max();
        work.repeats = repeats.first_met(chunk, range);
        let committed = self.commit(work).await?;
        heads.into_iter().for_each(|key| self.parked.park(key));
        self.done(range.len(), committed.took);
        tally.report(&self.engine.label(), committed.refused, started);
        Ok(())
    }

    /// A transaction of so many records took so long: the next ones may be larger, or have to be smaller.
    pub(super) fn done(&mut self, records: usize, took: Duration) {
        self.limit.done(records, took);
        if self.limit.of(self.engine.bounds.max_records) == self.engine.bounds.max_records {
            self.guard.rest();
        }
    }

    pub(super) async fn commit(&mut self, mut work: Work<'_>) -> Result<Committed, Failure> {
        let (to, log_time) = (work.to, work.log_time);
        if self.engine.vitals.is_beside() {
            // What another version found by itself holds for it alone: it may be given up.
            work.decisions.clear();
        }
        work.wait(&self.engine).await?;
        // For as long as other partitions are at work, perhaps with handlers that take their time.
        let mut lease = self.engine.sessions.batch().await?;
        let begun = Instant::now();
        let transacted = async {
            // It may take as long as it takes; Postgres may not.
            transaction::decide(&self.engine, &self.partition, &lease.connection, &mut work).await?;
            store::bounded(transaction::run(&self.engine, &mut lease.connection, work)).await
        };
        let committed = match transacted.await {
            Ok(committed) => Committed { took: begun.elapsed(), ..committed },
            Err(failure) => {
                lease.give_back_after(&failure).await;
                return Err(failure);
            }
        };
        lease.give_back();
        if let Some(claim) = &mut self.claim {
            claim.next_offset = to;
            claim.out_seq = committed.out_seq;
            claim.log_time = claim.log_time.max(log_time);
        }
        self.partition.set_next_offset(to);
        self.ask(Ask::Commit(to));
        Ok(committed)
    }
}

/// Waits between attempts while the database is away: at most so long, twice as long each time up to the most, and each
/// any part of that by chance, so that a database that is back is not met by all workers at once.
struct Backoff(Duration);

const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(5);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_WAIT)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let most = self.0;
        self.0 = (most * 2).min(MAX_WAIT);
        most.mul_f64(fastrand::f64())
    }
}
