//! The judge: what clients were told, what the log holds and what Postgres holds have to agree.
//!
//! Pure over what it is given, so that a faulty world can be made up and has to be caught. The numbers of the checks are
//! those of the list in `docs/torture.md`.

pub mod actual;
mod clients;
mod decisions;
pub mod log;
pub mod model;
mod outcome;
mod reads;
mod repeats;
mod tables;
pub mod trial;

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use self::actual::Actual;
pub use self::log::Log;
use self::log::Verdicts;
pub use self::model::Model;
use crate::workload::history::{Decision, Read, Request};

/// Witnesses that are told of one check; the rest is counted.
const TOLD: usize = 3;

/// A check that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Number of the check.
    pub check: u8,
    pub name: String,
    /// How often.
    pub count: usize,
    /// The smallest evidence, of the first few.
    pub witness: Vec<String>,
}

/// Evidence against one check, as it is gathered.
struct Finding {
    check: u8,
    name: &'static str,
    count: usize,
    witness: Vec<String>,
}

impl Finding {
    fn new(check: u8, name: &'static str) -> Self {
        Self { check, name, count: 0, witness: Vec::new() }
    }

    fn add(&mut self, witness: impl FnOnce() -> String) {
        if self.witness.len() < TOLD {
            self.witness.push(witness());
        }
        self.count += 1;
    }

    fn end(self, violations: &mut Vec<Violation>) {
        if self.count > 0 {
            let Self { check, name, count, witness } = self;
            violations.push(Violation { check, name: name.into(), count, witness });
        }
    }
}

/// All that is judged.
pub struct Case<'a> {
    pub seed: u64,
    pub requests: &'a [Request],
    pub reads: &'a [Read],
    pub log: &'a Log,
    pub actual: &'a Actual,
    /// What the operator has decided.
    pub decisions: &'a [Decision],
    /// What was seen of the bank while the run went on, and of records that were applied before what they wait for.
    pub bank: &'a [String],
    pub parked: &'a [String],
    /// Whether Postgres went back in time: what was decided and told before then may have been decided anew.
    pub went_back: bool,
}

impl Case<'_> {
    /// What was decided, as whoever reads the log again would learn it; from the table, where the topic may know of more
    /// than that.
    fn verdicts(&self) -> &Verdicts {
        if self.went_back { &self.actual.verdicts } else { &self.log.verdicts }
    }
}

/// What was found, and what there was to find it in.
#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub reads_judged: usize,
    /// Credits that Kafka holds more than once.
    pub repeated_credits: usize,
    /// Records that were passed over as repeats, and those under ids of others, over all consumers.
    pub repeats: usize,
    pub conflicts: usize,
    /// Records that were decided about.
    pub verdicts: usize,
}

/// Applies all checks.
pub fn judge(case: &Case<'_>) -> Verdict {
    let model = Model::fold(case.log, case.verdicts());
    let mut violations = Vec::new();
    let sent = clients::Sent::of(case.requests);
    clients::lost_and_phantom(case, &sent, &mut violations);
    clients::order(case, &sent, &mut violations);
    let reads_judged = reads::judge(case, &model, &mut violations);
    tables::compare(&model.tables, &case.actual.tables, &mut violations);
    tables::tiling(case, &mut violations);
    outcome::bank(case, &mut violations);
    let repeated_credits = outcome::outbox(case, &model, &mut violations);
    outcome::dead_letters(case, &model, &mut violations);
    repeats::once(case, &mut violations);
    decisions::parked(case, &mut violations);
    decisions::verdicts(case, &model, &mut violations);
    violations.sort_by_key(|violation| violation.check);
    let conflicts = model.tables.dead_letters.values().filter(|class| *class == model::CONFLICT).count();
    let (repeats, verdicts) = (model.repeats.values().sum(), case.actual.verdicts.len());
    Verdict { violations, reads_judged, repeated_credits, repeats, conflicts, verdicts }
}

/// The offsets of a position's entries on one topic: `topic/0@12,topic/1@3..9`.
pub fn position(text: &str) -> BTreeMap<i32, i64> {
    let entry = |entry: &str| {
        let (place, offset) = entry.rsplit_once('@')?;
        let (_, partition) = place.rsplit_once('/')?;
        let end = offset.rsplit_once("..").map_or(offset, |(_, end)| end);
        Some((partition.parse().ok()?, end.parse().ok()?))
    };
    text.split(',').filter_map(entry).collect()
}

/// The records that a position was given for, on each partition: `topic/0@12` for one, `topic/1@3..9` for several.
fn spans(text: &str) -> BTreeMap<i32, Range<i64>> {
    let entry = |entry: &str| {
        let (place, offsets) = entry.rsplit_once('@')?;
        let (_, partition) = place.rsplit_once('/')?;
        let end = |text: &str| text.parse::<i64>().ok();
        let span = match offsets.split_once("..") {
            Some((first, next)) => end(first)?..end(next)?,
            None => end(offsets)? - 1..end(offsets)?,
        };
        Some((partition.parse().ok()?, span))
    };
    text.split(',').filter_map(entry).collect()
}
