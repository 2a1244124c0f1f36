//! Checks on tables and fences: row by row what the model says, and every offset stepped over once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::actual::Step;
use super::model::Tables;
use super::{Case, Finding, Violation};

/// Checks 1, 2 and 5 on tables: row by row the fold of the log.
pub fn compare(expected: &Tables, actual: &Tables, violations: &mut Vec<Violation>) {
    rows("table appends", &expected.appends, &actual.appends, violations);
    rows("table chains", &expected.chains, &actual.chains, violations);
    rows("table lanes", &expected.lanes, &actual.lanes, violations);
    rows("table accounts", &expected.accounts, &actual.accounts, violations);
    rows("table credits", &expected.credits, &actual.credits, violations);
    rows("table amounts", &expected.amounts, &actual.amounts, violations);
    places("refusals", &expected.refusals, &actual.refusals, violations);
}

fn rows<K: Ord + Debug, V: PartialEq + Debug>(
    name: &'static str,
    expected: &BTreeMap<K, V>,
    actual: &BTreeMap<K, V>,
    violations: &mut Vec<Violation>,
) {
    let mut finding = Finding::new(5, name);
    for (key, row) in expected {
        match actual.get(key) {
            None => finding.add(|| format!("{key:?} is missing; it has to be {row:?}")),
            Some(found) if found != row => finding.add(|| format!("{key:?} has to be {row:?} and is {found:?}")),
            Some(_) => {}
        }
    }
    for (key, row) in actual.iter().filter(|(key, _)| !expected.contains_key(key)) {
        finding.add(|| format!("{key:?} must not be there; it is {row:?}"));
    }
    finding.end(violations);
}

fn places(
    name: &'static str,
    expected: &BTreeSet<(i32, i64)>,
    actual: &BTreeSet<(i32, i64)>,
    violations: &mut Vec<Violation>,
) {
    let mut finding = Finding::new(5, name);
    for (partition, offset) in expected.difference(actual) {
        finding.add(|| format!("{partition}@{offset} is missing"));
    }
    for (partition, offset) in actual.difference(expected) {
        finding.add(|| format!("{partition}@{offset} must not be there"));
    }
    finding.end(violations);
}

/// Check 9: the steps of each fence begin at 0, leave no gap, never go back, and each is one owner's of one epoch.
pub fn tiling(case: &Case<'_>, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(9, "tiling of the fence");
    let mut fences: BTreeMap<(&str, i32, &str, i32), Vec<&Step>> = BTreeMap::new();
    for step in &case.actual.steps {
        fences.entry((&step.projection, step.version, &step.topic, step.partition)).or_default().push(step);
    }
    for (fence, steps) in &fences {
        let (mut at, mut epoch, mut owner) = (0, 0, None);
        for step in steps {
            if step.from != at || step.to < step.from {
                finding.add(|| format!("{fence:?} stood at {at}; then {step:?}"));
            }
            if step.epoch < epoch {
                finding.add(|| format!("{fence:?} was at epoch {epoch}; then {step:?}"));
            }
            // Within an epoch an owner may only leave, and whoever moves the fence is its owner.
            let taken = step.epoch == epoch && step.owner != owner && step.owner.is_some();
            if taken || (step.to > step.from && step.owner.is_none()) {
                finding.add(|| format!("{fence:?} of {owner:?} in epoch {epoch} was moved: {step:?}"));
            }
            if let Some(by) = step.by.filter(|(owner, epoch)| Some(*owner) != step.owner || *epoch != step.epoch) {
                finding.add(|| format!("{fence:?} was moved by {by:?}, who had lost it: {step:?}"));
            }
            (at, epoch, owner) = (step.to, step.epoch, step.owner);
        }
    }
    for (projection, records) in
        [("appends", &ends(&case.log.appends)), ("chains", &ends(&case.log.appends))].into_iter().chain([
            ("accounts", &ends(&case.log.money)),
            ("amounts", &ends(&case.log.money)),
            ("credits", &ends(&case.log.credits)),
            ("lanes", &ends(&case.log.lanes)),
        ])
    {
        for (partition, end) in records {
            let of_live = |step: &&&Step| step.live && step.projection == projection && step.partition == *partition;
            let reached = case.actual.steps.iter().rev().find(|step| of_live(&step)).map_or(0, |step| step.to);
            if reached < *end {
                finding.add(|| format!("{projection} on partition {partition} ends at {reached} of {end}"));
            }
        }
    }
    finding.end(violations);
}

pub fn ends<T>(records: &[super::log::Placed<T>]) -> BTreeMap<i32, i64> {
    records.iter().map(|placed| (placed.partition, placed.offset + 1)).collect()
}
