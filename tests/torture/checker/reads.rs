//! Checks on reads: they show what their position says, never less than was asked for, and tell when it was set aside.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Grown, list_below};
use super::{Case, Finding, Model, Violation, position, spans};
use crate::workload::history::{Read, View};

/// Problems of reads that wait for a record which was set aside, and for one whose key is parked.
const DEAD_LETTERED: &str = "MP6010";
const PARKED: &str = "MP6020";

/// Checks 6, 7 and 15: a read shows what its position says, all of it and nothing else, and never less than was asked for; of a
/// lane, which may have to wait, what came before and no gap. What was asked for is told when it was set aside, and only then.
pub fn judge(case: &Case<'_>, model: &Model, violations: &mut Vec<Violation>) -> usize {
    let (mut prefix, mut early) = (Finding::new(6, "read is no prefix"), Finding::new(7, "read is too early"));
    let mut told = Finding::new(15, "what reads are told of records set aside");
    let aside = Aside::of(case, model);
    let mut judged = 0;
    for read in case.reads {
        aside.judge(read, &mut told);
        if read.status != 200 {
            continue;
        }
        judged += 1;
        let shown: BTreeMap<i32, i64> = position(&read.position);
        let behind = |(partition, wanted): (&i32, &i64)| shown.get(partition).is_none_or(|shown| shown < wanted);
        if position(&read.wanted).iter().any(behind) {
            early.add(|| format!("{} asked for {} and was shown {}", read.key, read.wanted, read.position));
        }
        match read.view {
            View::Chains => list(read, &shown, model, &mut prefix),
            // What was decided, shown and taken back with the database is decided anew.
            View::Lanes if !case.went_back => lane(read, &shown, model, &mut prefix),
            View::Lanes => {}
        }
    }
    for finding in [prefix, early, told] {
        finding.end(violations);
    }
    judged
}

fn list(read: &Read, shown: &BTreeMap<i32, i64>, model: &Model, prefix: &mut Finding) {
    let Some(expected) = model.list_at(&read.key, shown) else {
        prefix.add(|| format!("{} was shown {}, which has no partition of its key", read.key, read.position));
        return;
    };
    if (expected.length, &expected.chain) != (read.length, &read.chain) {
        prefix.add(|| {
            format!(
                "{} at {} had {} values ({}…), and {} ({}…) were shown",
                read.key,
                read.position,
                expected.length,
                expected.chain.get(..8).unwrap_or_default(),
                read.length,
                read.chain.get(..8).unwrap_or_default()
            )
        });
    }
}

/// A lane may be behind the position from the first record that had to wait on; before it is all of it.
fn lane(read: &Read, shown: &BTreeMap<i32, i64>, model: &Model, prefix: &mut Finding) {
    let none: Grown = (0, Vec::new());
    let (partition, grown) = model.lane_growth.get(&read.key).unwrap_or(&none);
    let Some(below) = shown.get(partition).copied().or(grown.is_empty().then_some(0)) else {
        prefix.add(|| format!("{} was shown {}, which has no partition of its key", read.key, read.position));
        return;
    };
    let waits = model.lane_waits.get(&read.key).copied().unwrap_or(i64::MAX);
    let (least, most) = (list_below(grown, below.min(waits)).length, list_below(grown, below).length);
    let length = usize::try_from(read.length).unwrap_or_default();
    let chain = length.checked_sub(1).map_or(Some(""), |last| grown.get(last).map(|(_, row)| row.chain.as_str()));
    if !(least..=most).contains(&read.length) || chain != Some(read.chain.as_str()) {
        prefix.add(|| {
            format!(
                "{} at {} had between {least} and {most} values, and {} ({}…) were shown, where {}… was next",
                read.key,
                read.position,
                read.length,
                read.chain.get(..8).unwrap_or_default(),
                chain.and_then(|chain| chain.get(..8)).unwrap_or_default(),
            )
        });
    }
}

/// Records whose readers are told that they were set aside.
struct Aside<'a> {
    /// By view, partition and offset: for good, and perhaps for a while.
    dead: BTreeSet<(bool, i32, i64)>,
    may_wait: &'a BTreeSet<(i32, i64)>,
    went_back: bool,
}

impl<'a> Aside<'a> {
    fn of(case: &Case<'_>, model: &'a Model) -> Self {
        let given_up = case.verdicts().iter().filter(|(_, decided)| decided.what == "discard").map(|(place, _)| place);
        let dead = model.tables.dead_letters.keys().chain(given_up);
        let dead = dead.filter_map(|(consumer, partition, offset)| match consumer.as_str() {
            "chains" => Some((false, *partition, *offset)),
            "lanes" => Some((true, *partition, *offset)),
            _ => None,
        });
        Self { dead: dead.collect(), may_wait: &model.may_wait, went_back: case.went_back }
    }

    fn judge(&self, read: &Read, told: &mut Finding) {
        let lanes = read.view == View::Lanes;
        let spans = spans(&read.wanted);
        let dead = spans.iter().find_map(|(partition, span)| {
            let span = (lanes, *partition, span.start)..(lanes, *partition, span.end);
            self.dead.range(span).next()
        });
        let waits = spans.iter().any(|(partition, span)| {
            lanes && self.may_wait.range((*partition, span.start)..(*partition, span.end)).next().is_some()
        });
        let Read { key, wanted, code, .. } = read;
        match (read.status, code.as_str()) {
            (200, _) if !(lanes && self.went_back) => {
                let Some((_, partition, offset)) = dead else { return };
                told.add(|| format!("{key} at {wanted} was shown, and not that {partition}@{offset} was set aside"));
            }
            (_, DEAD_LETTERED) if dead.is_none() && !(lanes && self.went_back) => {
                told.add(|| format!("{key} at {wanted} was told of a dead letter, and there is none"));
            }
            (_, PARKED) if !waits => told.add(|| format!("{key} at {wanted} was told to wait, and nothing has to")),
            _ => {}
        }
    }
}
