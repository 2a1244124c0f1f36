//! A worker's hold on its partition: how it claims the fence, makes sure of the log, learns what is parked, and lets go.

use std::time::{Duration, Instant};

use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    buffer::Chunk,
    compare::{compare, is_declared},
    halts,
    parked::{MAX_KEYS, Parked},
    partition::Stop,
    prepare::{Prepared, UnknownSchema},
    transaction::{Failure, Work},
    verdict::Recalled,
    worker::{Broken, Worker},
};
use crate::{
    kafka::{gaps::Gap, subscription::Ask},
    planted::{self, Bug},
    store::{
        self,
        fence::{self, Claim, Claimed, Halt},
        parked, status, verdicts,
    },
};

/// How long a record waits for its schema to be registered; a registry that lags is caught up within seconds.
pub(super) const SCHEMA_PATIENCE: Duration = Duration::from_secs(30);

/// How often a worker whose fence is held looks whether it may go on.
const BOUND: Duration = Duration::from_millis(50);

impl Worker {
    pub(super) fn take(&mut self, claim: Claim) {
        self.partition.set_next_offset(claim.next_offset);
        if self.guard.claimed(&claim) {
            info!(consumer = %self.engine.projection, partition = %self.partition.at, "the last owner has not released the partition; beginning with single records");
            self.limit.begin_small();
        }
        self.claim = Some(claim);
    }

    /// Keeps where the buffer continues, so that a new claim can tell whether it still fits.
    pub(super) fn drop_claim(&mut self) {
        self.claim = None;
        self.settled_in = false;
    }

    /// Claims again after a failure; on success the consumer stands at the fence. False: not now.
    pub(super) async fn reclaim(&mut self) -> Result<bool, Broken> {
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
        let continues =
            self.partition.next_offset().is_some_and(|next| next <= claim.next_offset || planted::is(Bug::GapIgnored))
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

    /// What a claim has to be followed by before anything is applied: the log is compared with the fence, and what is
    /// parked and decided is read.
    pub(super) async fn settle_in(&mut self) -> Result<(), Broken> {
        let Some(claim) = &self.claim else { return Ok(()) };
        let declared = self.engine.declared_partitions.get(&*claim.at.topic).copied();
        is_declared(&self.engine.projection, &claim.at, declared).map_err(Broken::Halt)?;
        let found = self.engine.inspect(claim).await.map_err(Broken::Retry)?;
        compare(&self.engine.projection, claim, &found).map_err(Broken::Halt)?;
        self.read_parked().await?;
        self.settled_in = true;
        Ok(())
    }

    async fn read_parked(&mut self) -> Result<(), Broken> {
        let (name, version, at) = (self.engine.projection.as_str(), self.engine.version, &self.partition.at);
        let read = async {
            let mut lease = self.engine.sessions.control().await?;
            let connection = &mut lease.connection;
            let keys = parked::load(connection, name, version, at, MAX_KEYS).await?;
            let due = parked::due(connection, name, version, at).await?;
            let greatest = verdicts::greatest(connection, name, at).await?;
            // Who ends a halt says it with the same command: here it is known before the next record.
            let switches = status::switches(connection, name, version).await?;
            lease.give_back();
            Ok::<_, store::Error>((keys, due, greatest, switches))
        };
        let (keys, due, greatest, switches) = store::bounded(read).await.map_err(|error| self.broken(error))?;
        self.engine.vitals.set_breaker_rests(switches.breaker_rests);
        self.engine.vitals.set_beside(!switches.live);
        if keys.len() > MAX_KEYS {
            return Err(Broken::Halt(halts::too_many_parked_keys(self.name(), &self.partition.at)));
        }
        self.parked = Parked::of(keys);
        self.parked.set_due(due);
        self.greatest_verdict = greatest;
        Ok(())
    }

    /// Acts on what was decided about records of a batch when the log was read before. Costs nothing above the last of
    /// them.
    pub(super) async fn recall(&mut self, chunk: &mut Chunk) -> Result<(), Broken> {
        self.recalled = Recalled::default();
        // What is decided about a record that the live version is past this one may not have read yet.
        let greatest = if self.engine.vitals.is_beside() { Some(i64::MAX) } else { self.greatest_verdict };
        let greatest = greatest.filter(|_| !(planted::is(Bug::VerdictsUnread) && self.engine.vitals.is_beside()));
        let (Some(greatest), Some(last)) = (greatest, chunk.records.last()) else { return Ok(()) };
        let (from, to) = (chunk.records[0].offset, last.offset.min(greatest));
        if from > greatest {
            return Ok(());
        }
        let find = async {
            let mut lease = self.engine.sessions.control().await?;
            let (name, at) = (&self.engine.projection, &self.partition.at);
            let found = verdicts::between(&mut lease.connection, name, at, (from, to)).await?;
            lease.give_back();
            Ok::<_, store::Error>(found)
        };
        let found = store::bounded(find).await.map_err(|error| self.broken(error))?;
        self.recalled = Recalled::of(found, chunk);
        Ok(())
    }

    /// Moves the fence over offsets without records. Else a topic written in transactions would always look as if one
    /// more record had to be applied, and as if it had been cut once its old records are removed.
    pub(super) async fn pass_over(&mut self, gap: &Gap) -> Result<(), Broken> {
        let Some(claim) = self.claim.clone().filter(|claim| claim.next_offset == gap.from) else { return Ok(()) };
        let to = self.bound.map_or(gap.to, |bound| bound.min(gap.to));
        if to <= gap.from {
            return Err(Broken::Held);
        }
        let chunk = Chunk::default();
        let work = Work::new(&claim, &chunk, to, Prepared::nothing(&self.engine.compiled, 0));
        match self.commit(work).await {
            Ok(_) => Ok(()),
            Err(Failure::Store(error)) => Err(self.broken(error)),
            Err(Failure::Record(_, fault)) => Err(Broken::Retry(fault.reason)),
        }
    }

    /// The schema may be on its way: the record waits for it, but not for ever.
    pub(super) async fn unknown_schema(&mut self, unknown: UnknownSchema) -> Broken {
        if let Err(error) = self.outlived().await {
            return self.broken(error);
        }
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

    /// Those of a range that the fence may go over.
    pub(super) fn below_bound(
        &self,
        chunk: &Chunk,
        range: std::ops::Range<usize>,
    ) -> Result<std::ops::Range<usize>, Broken> {
        let Some(bound) = self.bound else { return Ok(range) };
        let end = chunk.records.partition_point(|record| record.offset < bound).clamp(range.start, range.end);
        if end == range.start { Err(Broken::Held) } else { Ok(range.start..end) }
    }

    /// Whether the batch that waits says of these offsets that none of them holds a record.
    fn is_bare(&self, gap: &Gap) -> bool {
        let Some(chunk) = self.pending.as_ref().filter(|chunk| chunk.from <= gap.from && gap.from < gap.to) else {
            return false;
        };
        chunk.records.iter().find(|record| record.offset >= gap.from).is_some_and(|record| record.offset >= gap.to)
    }

    /// Waits until the fence may go on, if only for a few records. Comparisons take a moment, and their bounds end by
    /// themselves.
    pub(super) async fn wait_for_bound(&mut self) {
        while let Some(claim) = self.claim.clone().filter(|_| self.partition.stopping() == Stop::Run) {
            let asked = async {
                let mut lease = self.engine.sessions.control().await?;
                let (name, version) = (&self.engine.projection, self.engine.version);
                let bound = fence::bound(&mut lease.connection, name, version, &claim).await?;
                lease.give_back();
                Ok::<_, store::Error>(bound)
            };
            match store::bounded(asked).await {
                Ok(bound) => {
                    self.bound = bound;
                    let Some(to) = bound else { return };
                    let gap = Gap { at: claim.at.clone(), from: claim.next_offset, to };
                    if self.is_bare(&gap) {
                        if self.pass_over(&gap).await.is_err() {
                            return self.drop_claim();
                        }
                    } else if to > claim.next_offset {
                        return;
                    }
                }
                // A claim says what is what.
                Err(_) => return self.drop_claim(),
            }
            self.partition.sleep(BOUND).await;
        }
    }

    pub(super) async fn halt(&mut self, halt: &Halt) {
        error!(consumer = %self.engine.projection, partition = %self.partition.at, code = halt.code, reason = %halt.reason, "halted");
        self.partition.note_error(&halt.reason);
        self.pending = None;
        self.partition.buffer().refuse();
        if let Some(claim) = self.claim.take() {
            self.settled_in = false;
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

    pub(super) async fn release(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        let Ok(mut lease) = self.engine.sessions.control().await else { return };
        let (name, version) = (&self.engine.projection, self.engine.version);
        if store::bounded(fence::release(&mut lease.connection, name, version, &claim)).await.is_ok() {
            lease.give_back();
        }
    }
}
