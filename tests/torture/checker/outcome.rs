//! Checks on what follows from commands: money, downstream events, dead letters.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::log::{Credit, DeadFrom};
use super::{Case, Finding, Model, Violation};

/// Check 8: no money is made or lost, and no balance is below zero; in every snapshot no credit is before its debit.
pub fn bank(case: &Case<'_>, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(8, "bank");
    let tables = &case.actual.tables;
    let deposited: i64 = tables.accounts.values().map(|row| row.deposited).sum();
    let debited: i64 = tables.accounts.values().map(|row| row.debited).sum();
    let credited: i64 = tables.credits.values().map(|row| row.amount).sum();
    if debited != credited {
        finding.add(|| format!("{debited} was debited and {credited} credited, of {deposited} deposited"));
    }
    for (account, row) in tables.accounts.iter().filter(|(_, row)| row.debited > row.deposited) {
        finding.add(|| format!("{account} is below zero: {row:?}"));
    }
    for seen in case.bank {
        finding.add(|| seen.clone());
    }
    finding.end(violations);
}

/// Check 10: every event that has to leave has left, no other has, an id stands for one event, and first occurrences are
/// in the order of their source. How many were repeated is the result.
pub fn outbox(case: &Case<'_>, model: &Model, violations: &mut Vec<Violation>) -> usize {
    let mut finding = Finding::new(10, "downstream events");
    if case.actual.outbox > 0 {
        finding.add(|| format!("{} rows are left in the outbox", case.actual.outbox));
    }
    let mut first: HashMap<&str, &Credit> = HashMap::new();
    let mut ids: HashMap<&str, &str> = HashMap::new();
    let mut repeated = 0;
    let sources: HashMap<&str, (i32, i64)> =
        model.emitted.iter().map(|e| (e.credit.transfer_id.as_str(), (e.partition, e.offset))).collect();
    // Per target and source partition, the offset of the last source whose event came for the first time.
    let mut last: BTreeMap<(i32, i32), i64> = BTreeMap::new();
    for placed in &case.log.credits {
        let credit = &placed.value;
        let at = format!("{}@{}", placed.partition, placed.offset);
        if let Some(known) = first.get(placed.event_id.as_str()) {
            repeated += 1;
            if *known != credit {
                finding.add(|| format!("event {} is {known:?}, and at {at} {credit:?}", placed.event_id));
            }
            continue;
        }
        first.insert(&placed.event_id, credit);
        if let Some(other) = ids.insert(&credit.transfer_id, &placed.event_id) {
            finding.add(|| format!("transfer {} has events {other} and {}", credit.transfer_id, placed.event_id));
        }
        let Some((partition, offset)) = sources.get(credit.transfer_id.as_str()) else {
            finding.add(|| format!("{credit:?} at {at} follows from nothing"));
            continue;
        };
        let before = last.entry((placed.partition, *partition)).or_insert(*offset);
        if *before > *offset {
            finding.add(|| {
                format!("{credit:?} of {partition}@{offset} came at {at}, after the event of {partition}@{before}")
            });
        }
        *before = (*before).max(*offset);
    }
    for emitted in model.emitted.iter().filter(|e| !ids.contains_key(e.credit.transfer_id.as_str())) {
        finding.add(|| format!("{:?} of {}@{} never came", emitted.credit, emitted.partition, emitted.offset));
    }
    finding.end(violations);
    repeated
}

/// Check 11: what is not applied is a dead letter, what is one is not applied, and each has its mirror in Kafka.
pub fn dead_letters(case: &Case<'_>, model: &Model, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(11, "dead letters");
    let (expected, actual) = (&model.tables.dead_letters, &case.actual.tables.dead_letters);
    let place = |dead: &DeadFrom| (dead.consumer.clone(), dead.partition, dead.offset);
    let mirrored: BTreeSet<_> = case.log.dead.iter().map(|dead| place(&dead.value)).collect();
    for (name, found) in [("the table", actual), ("the topic", &mirrored)] {
        for (consumer, partition, offset) in expected.difference(found) {
            finding.add(|| {
                format!("{partition}@{offset} cannot be applied by {consumer} and is not in {name} of dead letters")
            });
        }
        for (consumer, partition, offset) in found.difference(expected) {
            finding
                .add(|| format!("{partition}@{offset} can be applied by {consumer} and is in {name} of dead letters"));
        }
    }
    finding.end(violations);
}
