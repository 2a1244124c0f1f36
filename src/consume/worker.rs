//! The worker of one partition: claim, batch, transaction, and what to do when one of them fails.
//!
//! One transaction is in flight per partition. A worker that loses its fence throws its batch away; one that loses
//! the database keeps its batch, backs off and claims again, for only the claim tells what was committed.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::FutureExt;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    buffer::Chunk,
    compare::compare,
    dead_letter::DeadLetter,
    dedupe::Repeats,
    engine::{Engine, OnError},
    guard::Guard,
    halts,
    limit::Limit,
    partition::{Next, Partition, Stop},
    prepare::{self, Fault, Prepared, UnknownSchema},
    tally::Tally,
    transaction::{self, Committed, Failure, Work},
};
use crate::{
    kafka::{
        gaps::Gap,
        subscription::{Ask, Command, Inbox},
    },
    store::{
        self, Class,
        fence::{self, Claim, Claimed, Halt},
    },
    telemetry::{metrics::consume as metrics, panic_message},
};

pub struct Worker {
    engine: Arc<Engine>,
    partition: Arc<Partition>,
    poll_thread: Arc<Inbox>,
    claim: Option<Claim>,
    /// A batch whose transaction failed for no fault of its own.
    pending: Option<Chunk>,
    /// Since when which schema id has been waited for.
    unknown_since: Option<(i32, Instant)>,
    /// Whether the last record before the claim was compared with Kafka's.
    verified: bool,
    limit: Limit,
    guard: Guard,
}

/// Why applying a batch stopped.
pub(super) enum Broken {
    /// Back off, claim again, go on with the same batch.
    Retry(String),
    /// Someone else owns the fence.
    Fenced,
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
            verified: false,
            limit: Limit::default(),
            guard: Guard::default(),
        };
        if let Some(claim) = claim {
            worker.take(claim);
        }
        worker
    }

    fn take(&mut self, claim: Claim) {
        self.partition.set_next_offset(claim.next_offset);
        if self.guard.claimed(&claim) {
            info!(consumer = %self.engine.projection, partition = %self.partition.at, "the last owner has not released the partition; beginning with single records");
            self.limit.begin_small();
        }
        self.claim = Some(claim);
    }

    /// Works until the partition is taken away.
    pub async fn run(mut self) {
        let mut waits = backoff();
        while self.partition.stopping() == Stop::Run {
            let turn = AssertUnwindSafe(self.turn()).catch_unwind().await;
            match turn.unwrap_or_else(|panic| Err(Broken::Halt(self.panicked(panic.as_ref())))) {
                Ok(true) => waits = backoff(),
                Ok(false) => {}
                Err(Broken::Fenced) => {
                    warn!(consumer = %self.engine.projection, partition = %self.partition.at, "fenced: another member owns this partition's fence");
                    metrics::BATCHES.with_label_values(&[self.engine.projection.as_str(), "fenced"]).inc();
                    self.drop_claim();
                    self.partition.sleep(waits.next().unwrap_or(MAX_WAIT)).await;
                }
                Err(Broken::Retry(reason)) => {
                    self.partition.note_error(&reason);
                    warn!(consumer = %self.engine.projection, partition = %self.partition.at, error = %reason, "batch not applied; trying again");
                    metrics::BATCHES.with_label_values(&[self.engine.projection.as_str(), "transient_error"]).inc();
                    self.engine.sessions.drop_idle();
                    self.drop_claim();
                    self.partition.sleep(waits.next().unwrap_or(MAX_WAIT)).await;
                }
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
        if !self.verified {
            self.verify().await?;
            self.verified = true;
        }
        if self.engine.vitals.is_paused() {
            self.partition.sleep(Duration::from_millis(200)).await;
            return Ok(false);
        }
        let chunk = match self.pending.take() {
            Some(chunk) => chunk,
            None => match self.partition.next_batch(self.engine.bounds, self.engine.max_age).await {
                Next::Stop => return Ok(false),
                Next::Doubt => {
                    self.partition.buffer().refuse();
                    self.drop_claim();
                    return Ok(false);
                }
                Next::Gap(gap) => return self.pass_over(&gap).await.map(|()| true),
                Next::Batch(chunk, resume) => {
                    if resume {
                        self.ask(Ask::Resume);
                    }
                    chunk
                }
            },
        };
        if self.engine.vitals.is_paused() {
            self.pending = Some(chunk);
            return Ok(false);
        }
        let result = self.apply(&chunk).await;
        // Its records were not applied, and the buffer continues behind them.
        if matches!(result, Err(Broken::Retry(_) | Broken::Fenced)) {
            self.pending = Some(chunk);
        }
        result.map(|()| true)
    }

    fn ask(&self, ask: Ask) {
        let (at, assignment) = (self.partition.at.clone(), self.partition.assignment);
        self.poll_thread.send(Command::Ask { at, assignment, ask });
    }

    /// Keeps where the buffer continues, so that a new claim can tell whether it still fits.
    fn drop_claim(&mut self) {
        self.claim = None;
        self.verified = false;
    }

    /// Claims again after a failure; on success the consumer stands at the fence. False: not now.
    async fn reclaim(&mut self) -> Result<bool, Broken> {
        let claimed =
            self.engine.claim(&self.partition.at, Uuid::new_v4()).await.map_err(|e| Broken::Retry(e.to_string()))?;
        let claim = match claimed {
            Claimed::Mine(claim) => claim,
            Claimed::Closed { .. } => {
                self.partition.buffer().refuse();
                self.pending = None;
                self.ask(Ask::Pause);
                self.partition.sleep(Duration::from_secs(1)).await;
                return Ok(false);
            }
        };
        let continues = self.partition.next_offset().is_some_and(|next| next <= claim.next_offset)
            && self.partition.buffer().is_accepting();
        if !continues {
            self.pending = None;
            self.partition.buffer().refuse();
            self.ask(Ask::Seek(claim.next_offset));
            self.partition.wait_sought().await;
            if self.partition.stopping() != Stop::Run {
                self.take(claim);
                return Ok(false);
            }
        }
        info!(consumer = %self.engine.projection, partition = %self.partition.at, next_offset = claim.next_offset, epoch = claim.epoch, "claimed");
        self.take(claim);
        Ok(true)
    }

    /// Compares the log with the fence.
    async fn verify(&mut self) -> Result<(), Broken> {
        let Some(claim) = &self.claim else { return Ok(()) };
        let found = self.engine.inspect(claim).await.map_err(Broken::Retry)?;
        compare(&self.engine.projection, claim, &found).map_err(Broken::Halt)
    }

    pub(super) async fn apply(&mut self, chunk: &Chunk) -> Result<(), Broken> {
        let next = self.claim.as_ref().map_or(0, |c| c.next_offset);
        if next < chunk.from {
            // Never step over an offset: read again from the fence.
            self.partition.buffer().refuse();
            return Err(Broken::Retry(format!("records from {next} to {} are missing from the batch", chunk.from)));
        }
        // Whatever Kafka delivered again is below the fence.
        let first = chunk.records.partition_point(|r| r.offset < next);
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
            let blamed = self.watch(chunk, &wanted).await?;
            if let Some(fault) = blamed.filter(|_| !repeats.aside.contains(&range.start)) {
                self.around(chunk, &repeats, &mut ranges, range.clone(), range.start, fault).await?;
                continue;
            }
            let at = &self.partition.at;
            let prepared = match self.engine.preparer.prepare(&at.topic, at.partition, chunk, wanted, &repeats.aside) {
                Ok(prepared) => prepared,
                Err(unknown) => return Err(self.unknown_schema(unknown).await),
            };
            self.unknown_since = None;
            let done = prepared.end;
            if done < range.end {
                ranges.push(done..range.end);
            }
            let range = range.start..done;
            let faults = prepared.faults.clone();
            if let Some((index, fault)) = faults.first().filter(|_| self.engine.on_error == OnError::Halt) {
                // What stands before the fault is applied first, on the ordinary path.
                self.around(chunk, &repeats, &mut ranges, range, *index, fault.clone()).await?;
                continue;
            }
            match self.transact(chunk, &range, prepared, &faults, &repeats).await {
                Ok(()) => self.count(range.len(), faults.len())?,
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
                    metrics::BATCHES.with_label_values(&[self.engine.projection.as_str(), "record_error"]).inc();
                    if range.len() > 1 {
                        // Bisect: each half is a transaction of its own that advances the fence.
                        let middle = range.start + range.len() / 2;
                        ranges.push(middle..range.end);
                        ranges.push(range.start..middle);
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

    /// Tells the crash guard what is begun, while it watches.
    async fn watch(&mut self, chunk: &Chunk, wanted: &std::ops::Range<usize>) -> Result<Option<Fault>, Broken> {
        let Some(claim) = self.claim.clone().filter(|_| self.guard.is_watching()) else { return Ok(None) };
        let from = chunk.records[wanted.start].offset;
        let begun = self.guard.begin(&self.engine, &claim, from, wanted.len()).await;
        begun.map_err(|error| self.broken(error))
    }

    /// Applies what is before a faulty record, dead-letters it, leaves the rest to do.
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
        if self.engine.on_error == OnError::Halt {
            return Err(Broken::Halt(halts::poison(
                self.name(),
                &self.partition.at,
                chunk.records[index].offset,
                &fault,
            )));
        }
        let alone = index..index + 1;
        let mut prepared = Prepared::nothing(&self.engine.compiled, index + 1);
        prepared.last = Some(prepare::last_applied(chunk, &chunk.records[index]));
        match self.transact(chunk, &alone, prepared, &[(index, fault)], repeats).await {
            Ok(()) => self.count(1, 1),
            Err(Failure::Store(e)) => Err(self.broken(e)),
            Err(Failure::Record(_, fault)) => Err(Broken::Retry(fault.reason)),
        }
    }

    fn broken(&self, error: store::Error) -> Broken {
        match error.class() {
            Class::Fenced => Broken::Fenced,
            Class::Deploy => Broken::Halt(halts::deploy(self.name(), &error)),
            _ => Broken::Retry(error.to_string()),
        }
    }

    fn panicked(&self, panic: &(dyn Any + Send)) -> Halt {
        let next = self.claim.as_ref().map_or(0, |claim| claim.next_offset);
        halts::panicked(self.name(), &self.partition.at, next, &panic_message(panic))
    }

    fn name(&self) -> &str {
        &self.engine.projection
    }

    /// One transaction over `range`, with the dead letters among it.
    async fn transact(
        &mut self,
        chunk: &Chunk,
        range: &std::ops::Range<usize>,
        prepared: Prepared,
        faults: &[(usize, Fault)],
        repeats: &Repeats,
    ) -> Result<(), Failure> {
        let Some(claim) = self.claim.clone() else { return Ok(()) };
        let to = chunk.records[range.end - 1].offset + 1;
        let faults = faults.iter().chain(repeats.conflicts(range));
        let mut dead: Vec<DeadLetter<'_>> =
            faults.map(|(index, fault)| DeadLetter { record: &chunk.records[*index], fault }).collect();
        dead.sort_by_key(|dead| dead.record.offset);
        dead.dedup_by_key(|dead| dead.record.offset);
        let started = Instant::now();
        let (skipped, repeated) = (prepared.skipped, repeats.count(range));
        let tally = Tally {
            applied: range.len().saturating_sub(dead.len() + skipped + repeated),
            skipped,
            repeated,
            classes: dead.iter().map(|dead| dead.fault.class).collect(),
        };
        let (watched, ids) = (self.guard.is_watching(), repeats.entries(chunk, range));
        let log_time = chunk.records[range.clone()].iter().map(|record| record.timestamp).max();
        let work = Work { claim: &claim, chunk, from: claim.next_offset, to, prepared, watched, dead, ids, log_time };
        let committed = self.commit(work).await?;
        self.limit.done(started.elapsed());
        if self.limit.of(self.engine.bounds.max_records) == self.engine.bounds.max_records {
            self.guard.rest();
        }
        tally.report(&self.engine.projection, committed.refused, started);
        Ok(())
    }

    async fn commit(&mut self, work: Work<'_>) -> Result<Committed, Failure> {
        let (to, log_time) = (work.to, work.log_time);
        let mut lease = store::bounded(self.engine.sessions.batch()).await?;
        let committed = store::bounded(transaction::run(&self.engine, &mut lease.connection, work)).await?;
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

    /// Moves the fence over offsets without records. Else a topic written in transactions would always look as if one
    /// more record had to be applied, and as if it had been cut once its old records are removed.
    async fn pass_over(&mut self, gap: &Gap) -> Result<(), Broken> {
        let Some(claim) = self.claim.clone().filter(|claim| claim.next_offset == gap.from) else { return Ok(()) };
        let prepared = Prepared::nothing(&self.engine.compiled, 0);
        let chunk = Chunk::default();
        let work = Work {
            claim: &claim,
            chunk: &chunk,
            from: gap.from,
            to: gap.to,
            prepared,
            watched: false,
            dead: Vec::new(),
            ids: BTreeMap::new(),
            log_time: None,
        };
        match self.commit(work).await {
            Ok(_) => Ok(()),
            Err(Failure::Store(error)) => Err(self.broken(error)),
            Err(Failure::Record(_, fault)) => Err(Broken::Retry(fault.reason)),
        }
    }

    /// The schema may be on its way: the record waits for it, but not for ever.
    async fn unknown_schema(&mut self, unknown: UnknownSchema) -> Broken {
        let (id, since) = *self.unknown_since.get_or_insert((unknown.0, Instant::now()));
        if id != unknown.0 {
            self.unknown_since = None;
        } else if since.elapsed() > SCHEMA_PATIENCE {
            self.unknown_since = None;
            // A registry that cannot be read must not look like poison.
            if let Err(error) = self.engine.preparer.give_up(id).await {
                return Broken::Retry(format!("{unknown}; the registry cannot be read now: {error}"));
            }
        }
        Broken::Retry(unknown.to_string())
    }

    fn count(&mut self, records: usize, failures: usize) -> Result<(), Broken> {
        let Some((failures, records)) = self.engine.vitals.count(records, failures) else { return Ok(()) };
        Err(Broken::Halt(halts::breaker(self.name(), failures, records)))
    }

    async fn halt(&mut self, halt: &Halt) {
        error!(consumer = %self.engine.projection, partition = %self.partition.at, code = halt.code, reason = %halt.reason, "halted");
        self.partition.note_error(&halt.reason);
        self.pending = None;
        self.partition.buffer().refuse();
        if let Some(claim) = self.claim.take() {
            self.verified = false;
            let halted = match self.engine.sessions.control().await {
                Ok(mut lease) => {
                    let (name, version) = (&self.engine.projection, self.engine.version);
                    store::bounded(fence::halt(&mut lease.connection, name, version, &claim, halt)).await
                }
                Err(e) => Err(e),
            };
            if let Err(error) = halted {
                warn!(consumer = %self.engine.projection, %error, "the halt could not be written; trying again");
                self.partition.sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn release(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        let Ok(mut lease) = self.engine.sessions.control().await else { return };
        let (name, version) = (&self.engine.projection, self.engine.version);
        if store::bounded(fence::release(&mut lease.connection, name, version, &claim)).await.is_ok() {
            lease.give_back();
        }
    }
}

/// How long a record waits for its schema to be registered; a registry that lags is caught up within seconds.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait between attempts while the database is away.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Full jitter between 100 ms and 5 s: a returning database is not met by all workers at once.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(MAX_WAIT)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}
