//! Draining what was set aside: under the fence, which stays where it is, the records of a lane are applied in the order of
//! their offsets, in batches, each in one transaction that takes them out of `millpond.dead_letters`. A crash leaves the
//! state before it or after it.
//!
//! The first record that fails again ends the batch before it; alone, it is set back. What of a lane may be applied now
//! follows from the rows alone, so whoever claims the fence next goes on in the same way.

use std::{collections::BTreeSet, time::Instant};

use tracing::debug;

use super::{
    buffer::Chunk,
    dead_letter::{DeadLetter, Place},
    drained::{Drained, Outcome, SetBack},
    engine::OnError,
    halts,
    hold::SCHEMA_PATIENCE,
    parked::{ATTEMPTS, CRASH, RETRY, WAITS},
    prepare::{Fault, Prepared, UnknownSchema},
    tally::Tally,
    transaction::{Failure, Work},
    verdict::Decision,
    worker::{Broken, Worker},
};
use crate::{
    kafka::subscription::Incoming,
    store::{
        self, Class, headers,
        parked::{self, Lane, SetAside, Wish},
    },
};

/// What is to be done with the first records of a lane.
enum Step {
    /// They were settled, or one was set back.
    Done,
    /// So many at most may be taken at once.
    Fewer(usize),
    /// The first one cannot be applied.
    Failed(Fault),
}

impl Worker {
    /// Learns in which lanes there is something to do.
    pub(super) async fn look(&mut self) -> Result<(), Broken> {
        let look = async {
            let mut lease = self.engine.sessions.control().await?;
            let (name, version, at) = (&self.engine.projection, self.engine.version, &self.partition.at);
            let due = parked::due(&mut lease.connection, name, version, at).await?;
            lease.give_back();
            Ok::<_, store::Error>(due)
        };
        let due = store::bounded(look).await.map_err(|error| self.broken(error))?;
        self.parked.set_due(due);
        Ok(())
    }

    /// One transaction of the lane whose turn it is.
    pub(super) async fn drain(&mut self) -> Result<(), Broken> {
        let Some(lane) = self.parked.next_due() else { return Ok(()) };
        let mut rows = self.read(lane).await?;
        rows.truncate(applicable(lane, &rows));
        if rows.is_empty() {
            self.parked.rest(lane);
            return Ok(());
        }
        let chunk = chunk(&rows);
        let mut most = self.limit.of(rows.len());
        loop {
            match self.step(lane, &rows[..most], &chunk).await? {
                Step::Done => return Ok(()),
                Step::Fewer(fewer) => most = fewer,
                Step::Failed(fault) => return self.set_back(lane, &rows[0], &chunk, fault).await,
            }
        }
    }

    async fn read(&self, lane: Lane) -> Result<Vec<SetAside>, Broken> {
        let read = async {
            let mut lease = self.engine.sessions.control().await?;
            let (name, version, at) = (self.engine.projection.as_str(), self.engine.version, &self.partition.at);
            let most = (self.engine.bounds.max_records, self.engine.bounds.max_bytes);
            let rows = parked::read(&mut lease.connection, (name, version), at, lane, most).await?;
            lease.give_back();
            Ok::<_, store::Error>(rows)
        };
        store::bounded(read).await.map_err(|error| self.broken(error))
    }

    /// Tries to settle `rows`.
    async fn step(&mut self, lane: Lane, rows: &[SetAside], chunk: &Chunk) -> Result<Step, Broken> {
        if let Some(fault) = self.watch(rows[0].offset, rows.len()).await? {
            return Ok(Step::Failed(fault));
        }
        let passed_over = |(index, row): (usize, &SetAside)| (row.wanted == Some(Wish::Discard)).then_some(index);
        let aside: BTreeSet<usize> = rows.iter().enumerate().filter_map(passed_over).collect();
        let at = &self.partition.at;
        let prepared = match self.engine.preparer.prepare(&at.topic, at.partition, chunk, 0..rows.len(), &aside) {
            Ok(prepared) => prepared,
            Err(unknown) => return self.unknown_aside(lane, unknown).await,
        };
        if let Some((index, fault)) = prepared.faults.first() {
            self.outlived().await.map_err(|error| self.broken(error))?;
            return Ok(if *index == 0 { Step::Failed(fault.clone()) } else { Step::Fewer(*index) });
        }
        if prepared.end < rows.len() {
            return Ok(Step::Fewer(prepared.end));
        }
        let applied = rows.len() - aside.len() - prepared.skipped;
        let tally =
            Tally { applied, skipped: rows.len() - applied, repeated: 0, parked: 0, dead: 0, classes: Vec::new() };
        match self.transact_drained(Drained { lane, outcome: Outcome::Settled(rows) }, chunk, prepared, tally).await {
            Ok(()) => Ok(Step::Done),
            Err(Failure::Record(offset, mut fault)) => {
                let index = rows.partition_point(|row| row.offset < offset).min(rows.len() - 1);
                fault.record_type = self.engine.preparer.record_type(chunk, &chunk.records[index]);
                Ok(if index == 0 { Step::Failed(fault) } else { Step::Fewer(index) })
            }
            Err(Failure::Store(error)) if error.is_too_slow() => {
                self.limit.too_slow(rows.len());
                if error.sqlstate().is_none() || rows.len() == 1 {
                    return Err(self.broken(error));
                }
                Ok(Step::Fewer(rows.len() / 2))
            }
            Err(Failure::Store(error)) if error.class() == Class::Record => {
                if rows.len() > 1 {
                    return Ok(Step::Fewer(rows.len() / 2));
                }
                let record_type = self.engine.preparer.record_type(chunk, &chunk.records[0]);
                Ok(Step::Failed(Fault { class: "refused_by_postgres", reason: error.to_string(), record_type }))
            }
            Err(Failure::Store(error)) => Err(self.broken(error)),
        }
    }

    async fn transact_drained(
        &mut self,
        drained: Drained<'_>,
        chunk: &Chunk,
        prepared: Prepared,
        tally: Tally,
    ) -> Result<(), Failure> {
        let Some(claim) = self.claim.clone() else { return Ok(()) };
        let (lane, released, goes_on) = (drained.lane, drained.is_released(), drained.goes_on());
        let (records, started) = (tally.applied + tally.skipped, Instant::now());
        // The record that the fence speaks of is the last one of the log.
        let mut work = Work::new(&claim, chunk, claim.next_offset, Prepared { last: None, ..prepared });
        work.watched = self.guard.turn();
        work.drained = Some(drained);
        let committed = self.commit(work).await?;
        self.parked.set_attempts(lane, 0);
        if !goes_on {
            self.parked.rest(lane);
        }
        if let (Lane::Key(parked_at), true) = (lane, released) {
            debug!(consumer = %self.engine.projection, partition = %self.partition.at, parked_at, "released a parked key");
            self.parked.release(parked_at);
        }
        self.done(records, committed.took);
        tally.report(&self.engine.label(), committed.refused, started);
        Ok(())
    }

    /// Writes down that the first record of a lane has failed again, and what follows from it.
    async fn set_back(&mut self, lane: Lane, row: &SetAside, chunk: &Chunk, fault: Fault) -> Result<(), Broken> {
        let attempts = self.parked.attempts(lane) + 1;
        let asked = fault.class == RETRY;
        let retries = asked && lane != Lane::Dead && attempts < ATTEMPTS;
        let given_up = asked && lane != Lane::Dead && !retries;
        let fault = if asked && !retries { rejected(fault, given_up) } else { fault };
        let policy = self.engine.on_error;
        if !retries && policy == OnError::Halt && lane != Lane::Dead {
            return Err(Broken::Halt(halts::poison(self.name(), &self.partition.at, row.offset, &fault)));
        }
        let what = match policy {
            _ if retries => SetBack::Retried(attempts),
            OnError::Skip => SetBack::Dead,
            OnError::ParkKey | OnError::Halt => SetBack::Waits,
        };
        let Some(claim) = self.claim.clone() else { return Ok(()) };
        let started = Instant::now();
        let letter = DeadLetter { record: &chunk.records[0], fault: &fault, place: Place::Alone };
        let drained = Drained { lane, outcome: Outcome::SetBack { row, letter, what } };
        let (released, goes_on) = (drained.is_released(), drained.goes_on());
        let prepared = Prepared::nothing(&self.engine.compiled, 1);
        let mut work = Work::new(&claim, chunk, claim.next_offset, prepared);
        // Another reading of the log might get past it, or end a process.
        if fault.class == CRASH || given_up {
            work.decisions.push(Decision::dead_letter(chunk, &chunk.records[0], &fault));
        }
        work.drained = Some(drained);
        match self.commit(work).await {
            Ok(_) => {}
            Err(Failure::Store(error)) => return Err(self.broken(error)),
            Err(Failure::Record(_, fault)) => return Err(Broken::Retry(fault.reason)),
        }
        if row.class == WAITS {
            let dead = usize::from(what == SetBack::Dead);
            let tally = Tally { applied: 0, skipped: 0, repeated: 0, parked: 0, dead, classes: vec![fault.class] };
            tally.report(&self.engine.label(), 0, started);
        }
        self.parked.set_attempts(lane, if retries { attempts } else { 0 });
        if !goes_on {
            self.parked.rest(lane);
        }
        if let (Lane::Key(parked_at), true) = (lane, released) {
            self.parked.release(parked_at);
        }
        Ok(())
    }

    /// The record waits for its schema in its lane; what comes from the log does not wait with it.
    async fn unknown_aside(&mut self, lane: Lane, unknown: UnknownSchema) -> Result<Step, Broken> {
        self.outlived().await.map_err(|error| self.broken(error))?;
        let since = *self.unknown_aside.entry(unknown.0).or_insert_with(Instant::now);
        self.partition.note_error(&unknown.to_string());
        if since.elapsed() > SCHEMA_PATIENCE {
            self.unknown_aside.remove(&unknown.0);
            if let Err(error) = self.engine.preparer.give_up(unknown.0).await {
                self.partition.note_error(&format!("{unknown}; the registry cannot be read now: {error}"));
            }
        }
        self.parked.rest(lane);
        Ok(Step::Done)
    }
}

/// How many of the first records of a lane may be applied: the key waits before the first one that has failed and about
/// which nobody has decided.
fn applicable(lane: Lane, rows: &[SetAside]) -> usize {
    let goes = |row: &SetAside| lane == Lane::Dead || row.wanted.is_some() || row.class == WAITS || row.retry;
    rows.iter().position(|row| !goes(row)).unwrap_or(rows.len())
}

/// The records as they came, but for those that were edited.
fn chunk(rows: &[SetAside]) -> Chunk {
    let mut chunk = Chunk::default();
    for (index, row) in rows.iter().enumerate() {
        let headers = headers::from_json(&row.headers);
        let mut headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let (key, payload) = (row.key.as_deref(), row.payload.as_deref());
        chunk.push(Incoming { offset: row.offset, timestamp: row.timestamp, key, payload, headers: &mut headers });
        if let Some(edited) = &row.edited {
            chunk.edit(index, edited);
        }
    }
    chunk
}

/// A fault that is not tried again by itself, as if the handler had rejected the record.
fn rejected(fault: Fault, given_up: bool) -> Fault {
    let told = if given_up { format!(" (given up after {ATTEMPTS} attempts)") } else { String::new() };
    Fault { class: "handler", reason: fault.reason + &told, ..fault }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(offset: i64, class: &str, wanted: Option<Wish>) -> SetAside {
        SetAside {
            offset,
            timestamp: 5,
            key: Some(b"k".to_vec()),
            headers: json!([["mp-event-id", "aWQ="], ["none", null]]),
            payload: Some(b"logged".to_vec()),
            edited: (wanted == Some(Wish::Edit)).then(|| b"edited".to_vec()),
            class: class.to_owned(),
            reason: String::new(),
            wanted,
            wanted_by: None,
            revision: 0,
            retry: false,
            next: None,
            next_goes_on: false,
        }
    }

    #[test]
    fn key_is_drained_up_to_the_first_failure_that_nobody_has_decided_on() {
        let lane = Lane::Key(1);
        let rows = |classes: &[(&str, Option<Wish>)]| -> Vec<SetAside> {
            (1..).zip(classes).map(|(offset, (class, wanted))| row(offset, class, *wanted)).collect()
        };
        let decided = rows(&[("decode", Some(Wish::Apply)), ("waits", None), ("decode", None), ("waits", None)]);
        assert_eq!(applicable(lane, &decided), 2);
        assert_eq!(applicable(lane, &rows(&[("decode", None), ("waits", Some(Wish::Discard))])), 0);
        assert_eq!(applicable(lane, &rows(&[("waits", None), ("decode", Some(Wish::Discard))])), 2);
        let mut retry = rows(&[("retry", None), ("waits", None)]);
        assert_eq!(applicable(lane, &retry), 0);
        retry[0].retry = true;
        assert_eq!(applicable(lane, &retry), 2);
        assert_eq!(applicable(Lane::Dead, &rows(&[("decode", Some(Wish::Apply)), ("crash", Some(Wish::Edit))])), 2);
    }

    #[test]
    fn record_that_was_set_aside_comes_back_as_it_was() {
        let chunk = chunk(&[row(7, "waits", None), row(9, "decode", Some(Wish::Edit))]);
        let (first, second) = (&chunk.records[0], &chunk.records[1]);
        assert_eq!((first.offset, first.timestamp, chunk.key(first)), (7, 5, Some(&b"k"[..])));
        assert_eq!((chunk.payload(first), chunk.payload(second)), (Some(&b"logged"[..]), Some(&b"edited"[..])));
        assert_eq!(chunk.slice(first.event_id.as_ref().unwrap()), b"id");
        assert_eq!(
            chunk.headers(second),
            [("mp-event-id".to_owned(), Some(b"id".to_vec())), ("none".to_owned(), None)]
        );
    }
}
