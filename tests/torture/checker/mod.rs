//! The judge: what clients were told, what the log holds and what Postgres holds have to agree.
//!
//! Pure over what it is given, so that a faulty world can be made up and has to be caught. The numbers of the checks are
//! those of the list in `docs/torture.md`.

pub mod actual;
mod clients;
pub mod log;
pub mod model;
mod outcome;
mod tables;
pub mod trial;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::actual::Actual;
pub use self::log::Log;
pub use self::model::Model;
use crate::workload::history::{Read, Request};

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
    /// What was seen of the bank while the run went on.
    pub bank: &'a [String],
    /// Whether Postgres itself went back in time: what had left by then leaves again.
    pub went_back: bool,
}

/// What was found, and what there was to find it in.
#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub reads_judged: usize,
    /// Credits that Kafka holds more than once.
    pub repeated_credits: usize,
}

/// Applies all checks.
pub fn judge(case: &Case<'_>) -> Verdict {
    let model = Model::fold(case.log);
    let mut violations = Vec::new();
    clients::lost_and_phantom(case, &mut violations);
    clients::order(case, &mut violations);
    let reads_judged = clients::reads(case, &model, &mut violations);
    tables::compare(&model.tables, &case.actual.tables, &mut violations);
    tables::tiling(case, &mut violations);
    outcome::bank(case, &mut violations);
    let repeated_credits = outcome::outbox(case, &model, &mut violations);
    outcome::dead_letters(case, &model, &mut violations);
    violations.sort_by_key(|violation| violation.check);
    Verdict { violations, reads_judged, repeated_credits }
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
