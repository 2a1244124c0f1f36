//! The worker of one partition: claim, batch, transaction, and what to do when one of them fails.
//!
//! One transaction is in flight per partition. A worker that loses its fence or the database keeps its batch, backs off and
//! claims again, for only the claim tells what was committed; what is below the fence then is dropped.

use std::{
    any::Any,
    collections::HashMap,
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
    engine::{Engine, OnError},
    guard::{Attempt, Guard},
    halts,
    limit::Limit,
    parked::{Parked, RETRY},
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

    pub(super) async fn apply(&mut self, chunk: &Chunk) -> Result<(), Broken> {
        let next = self.claim.as_ref().map_or(0, |c| c.next_offset);
        if next < chunk.from && !planted::is(Bug::GapIgnored) {
            // Never step over an offset: read again from the fence.
            self.partition.buffer().refuse();
            return Err(Broken::Retry(format!("records from {next} to {} are missing from the batch", chunk.from)));
        }
        // Whatever Kafka delivered again is below the fence.
        let applied = |offset: i64| offset < next && !planted::is(Bug::RedeliveredApplied);
        let first = chunk.records.partition_point(|r| applied(r.offset));
        let Some(claim) = &self.claim else { return Ok(()) };
        let found = Repeats::find(&self.engine, claim, chunk, first).await;
        let repeats = found.map_err(|error| self.broken(error))?;
        let mut ranges = Vec::new();
        ranges.push(first..chunk.records.len());
        while let Some(range) = ranges.pop() {
            if range.is_empty() {
                continue;
            }
            // What is left stands above the fence: the next owner applies it.
            if self.partition.stopping() != Stop::Run {
                return Ok(());
            }
            let wanted = range.start..range.start + self.limit.of(range.len());
            let wanted = self.below_bound(chunk, wanted)?;
            let blamed = self.watch(chunk.records[wanted.start].offset, wanted.len()).await?;
            if let Some(fault) = blamed.filter(|_| !repeats.aside.contains(&range.start)) {
                self.around(chunk, &repeats, &mut ranges, range.clone(), range.start, fault).await?;
                continue;
            }
            let division = match self.divide(chunk, wanted, &repeats) {
                Ok(division) => division,
                Err(unknown) => return Err(self.unknown_schema(unknown).await),
            };
            self.unknown_since = None;
            let done = division.prepared.end;
            if done < range.end {
                ranges.push(done..range.end);
            }
            let range = range.start..done;
            if let Some((index, fault)) = division.halting(self.engine.on_error) {
                // What stands before the fault is applied first, on the ordinary path.
                self.around(chunk, &repeats, &mut ranges, range, index, fault).await?;
                continue;
            }
            let aside = self.aside(chunk, &division);
            let heads = aside.heads(chunk);
            if range.len() > 1 && self.parked.is_full_for(heads.len()) {
                // As many are parked as there is room for, so that each one that is decided about makes room for another.
                ranges.extend(halves(&range));
                continue;
            }
            self.check_room(heads.len())?;
            let failures = division.failures();
            match self.transact(chunk, &range, division, (&aside, heads), &repeats).await {
                Ok(()) => self.count(range.len(), failures)?,
                Err(Failure::Record(offset, mut fault)) => {
                    let index = chunk.records.partition_point(|r| r.offset < offset).clamp(range.start, range.end - 1);
                    fault.record_type = self.engine.preparer.record_type(chunk, &chunk.records[index]);
                    self.around(chunk, &repeats, &mut ranges, range, index, fault).await?;
                }
                Err(Failure::Store(e)) if e.is_too_slow() => {
                    self.limit.too_slow(range.len());
                    // Whether one without an answer was committed is known only from a new claim.
                    if e.sqlstate().is_none() || range.len() == 1 {
                        return Err(self.broken(e));
                    }
                    ranges.push(range);
                }
                Err(Failure::Store(e)) if e.class() == Class::Record => {
                    metrics::BATCHES.with_label_values(&[self.engine.label().as_str(), "record_error"]).inc();
                    let blamed = planted::is(Bug::DeadLetterOnDeadlock) && e.sqlstate() == Some("40P01");
                    if range.len() > 1 && !blamed {
                        // Bisect: each half is a transaction of its own that advances the fence.
                        ranges.extend(halves(&range));
                    } else {
                        let record_type = self.engine.preparer.record_type(chunk, &chunk.records[range.start]);
                        let fault = Fault { class: "refused_by_postgres", reason: e.to_string(), record_type };
                        self.around(chunk, &repeats, &mut ranges, range.clone(), range.start, fault).await?;
                    }
                }
                Err(Failure::Store(e)) => return Err(self.broken(e)),
            }
        }
        Ok(())
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

    /// Applies what is before a faulty record, sets it aside, leaves the rest to do.
    async fn around(
        &mut self,
        chunk: &Chunk,
        repeats: &Repeats,
        ranges: &mut Vec<std::ops::Range<usize>>,
        range: std::ops::Range<usize>,
        index: usize,
        fault: Fault,
    ) -> Result<(), Broken> {
        if range.start < index {
            ranges.push(index..range.end);
            ranges.push(range.start..index);
            return Ok(());
        }
        ranges.push(index + 1..range.end);
        if self.engine.on_error == OnError::Halt && fault.class != RETRY {
            return Err(Broken::Halt(halts::poison(
                self.name(),
                &self.partition.at,
                chunk.records[index].offset,
                &fault,
            )));
        }
        let division = Division::alone(&self.engine.compiled, chunk, index, fault);
        let aside = self.aside(chunk, &division);
        let heads = aside.heads(chunk);
        self.check_room(heads.len())?;
        match self.transact(chunk, &(index..index + 1), division, (&aside, heads), repeats).await {
            Ok(()) => self.count(1, 1),
            Err(Failure::Store(e)) => Err(self.broken(e)),
            Err(Failure::Record(_, fault)) => Err(Broken::Retry(fault.reason)),
        }
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
    async fn transact(
        &mut self,
        chunk: &Chunk,
        range: &std::ops::Range<usize>,
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

    fn count(&mut self, records: usize, failures: usize) -> Result<(), Broken> {
        // What another version sets aside is seen before it is swapped in.
        if self.engine.vitals.is_beside() {
            return Ok(());
        }
        let Some((failures, records)) = self.engine.vitals.count(records, failures) else { return Ok(()) };
        Err(Broken::Halt(halts::breaker(self.name(), failures, records)))
    }
}

/// A range in two, the first half last, for the last one is taken next.
fn halves(range: &std::ops::Range<usize>) -> [std::ops::Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [middle..range.end, range.start..middle]
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
