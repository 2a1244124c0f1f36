//! A batch applied range by range: the parts that a transaction takes, the halves of one that Postgres refuses, and what
//! stands before and after a record that is set aside.

use std::ops::Range;

use super::{
    buffer::Chunk,
    dedupe::Repeats,
    divide::Division,
    engine::OnError,
    halts,
    parked::RETRY,
    partition::Stop,
    prepare::Fault,
    transaction::Failure,
    worker::{Broken, Worker},
};
use crate::{
    planted::{self, Bug},
    store::{self, Class},
    telemetry::metrics::consume as metrics,
};

impl Worker {
    /// Applies what of a batch is above the fence, in order. What it leaves undone when it is stopped stays above.
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
            self.apply_range(chunk, &repeats, &mut ranges, range).await?;
        }
        Ok(())
    }

    /// Applies a range of records, as many of them as a transaction takes; what it leaves is pushed to `ranges`, which are
    /// applied from the last one on.
    async fn apply_range(
        &mut self,
        chunk: &Chunk,
        repeats: &Repeats,
        ranges: &mut Vec<Range<usize>>,
        range: Range<usize>,
    ) -> Result<(), Broken> {
        let wanted = range.start..range.start + self.limit.of(range.len());
        let wanted = self.below_bound(chunk, wanted)?;
        let blamed = self.watch(chunk.records[wanted.start].offset, wanted.len()).await?;
        if let Some(fault) = blamed.filter(|_| !repeats.aside.contains(&range.start)) {
            return self.around(chunk, repeats, ranges, range.clone(), range.start, fault).await;
        }
        let division = match self.divide(chunk, wanted, repeats) {
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
            return self.around(chunk, repeats, ranges, range, index, fault).await;
        }
        let aside = self.aside(chunk, &division);
        let heads = aside.heads(chunk);
        if range.len() > 1 && self.parked.is_full_for(heads.len()) {
            // As many are parked as there is room for, so that each one that is decided about makes room for another.
            ranges.extend(halves(&range));
            return Ok(());
        }
        self.check_room(heads.len())?;
        let (failures, appends) = (division.failures(), self.engine.vitals.appends());
        match self.transact(chunk, &range, division, (&aside, heads), repeats).await {
            Ok(()) => self.count(range.len(), failures),
            Err(Failure::Record(offset, mut fault)) => {
                let index = chunk.records.partition_point(|r| r.offset < offset).clamp(range.start, range.end - 1);
                fault.record_type = self.engine.preparer.record_type(chunk, &chunk.records[index]);
                self.around(chunk, repeats, ranges, range, index, fault).await
            }
            Err(Failure::Store(error)) => self.refused(chunk, repeats, ranges, range, error, appends).await,
        }
    }

    /// What follows when Postgres has not taken a range: it is tried again in another way, divided, set aside, or the
    /// claim is given up. `appends`: whether its rows were appended rather than merged.
    async fn refused(
        &mut self,
        chunk: &Chunk,
        repeats: &Repeats,
        ranges: &mut Vec<Range<usize>>,
        range: Range<usize>,
        error: store::Error,
        appends: bool,
    ) -> Result<(), Broken> {
        if error.is_too_slow() {
            self.limit.too_slow(range.len());
            // Whether one without an answer was committed is known only from a new claim.
            if error.sqlstate().is_none() || range.len() == 1 {
                return Err(self.broken(error));
            }
            ranges.push(range);
            return Ok(());
        }
        if error.class() != Class::Record {
            return Err(self.broken(error));
        }
        // Another partition may have stopped it meanwhile: what counts is what this transaction was begun with.
        if appends {
            self.engine.vitals.stop_appending();
            tracing::debug!(consumer = %self.engine.projection, error = %error, "rows are merged from now on, for a key is not new");
            ranges.push(range);
            return Ok(());
        }
        metrics::BATCHES.with_label_values(&[self.engine.label().as_str(), "record_error"]).inc();
        let blamed = planted::is(Bug::DeadLetterOnDeadlock) && error.sqlstate() == Some("40P01");
        if range.len() > 1 && !blamed {
            // Bisect: each half is a transaction of its own that advances the fence.
            ranges.extend(halves(&range));
            return Ok(());
        }
        let record_type = self.engine.preparer.record_type(chunk, &chunk.records[range.start]);
        let fault = Fault { class: "refused_by_postgres", reason: error.to_string(), record_type };
        self.around(chunk, repeats, ranges, range.clone(), range.start, fault).await
    }

    /// Applies what is before a faulty record, sets it aside, leaves the rest to do.
    async fn around(
        &mut self,
        chunk: &Chunk,
        repeats: &Repeats,
        ranges: &mut Vec<Range<usize>>,
        range: Range<usize>,
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
fn halves(range: &Range<usize>) -> [Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [middle..range.end, range.start..middle]
}
