//! Checks on what follows from commands: money, downstream events, dead letters.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::log::{Credit, DeadFrom, Place, Placed};
use super::model::WAITS;
use super::{Case, Finding, Model, Violation};
use crate::values::Append;

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

/// Check 10: every event that has to leave has left, no other has, an id stands for one event, first occurrences are in the
/// order of their source, and nothing was committed to Kafka twice, unless Postgres forgot that it had left. How many were
/// repeated is the result.
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
            if !case.went_back {
                finding.add(|| format!("event {} was committed again at {at}: {credit:?}", placed.event_id));
            }
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

/// Check 11: what is not applied is a dead letter, of the class that it has to be; what is one is not applied; whatever has
/// failed has its mirror in Kafka, and nothing else has; and all of it together is the log.
pub fn dead_letters(case: &Case<'_>, model: &Model, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(11, "dead letters");
    let (expected, actual) = (&model.tables.dead_letters, &case.actual.tables.dead_letters);
    for (place, class) in expected {
        match actual.get(place) {
            None => finding.add(|| format!("{} is {class}, and not in the table of dead letters", told(place))),
            Some(found) if found != class => {
                finding.add(|| format!("{} is {class}, and in the table of dead letters as {found}", told(place)));
            }
            Some(_) => {}
        }
    }
    for (place, class) in actual.iter().filter(|(place, _)| !expected.contains_key(*place)) {
        finding.add(|| format!("{} is in the table of dead letters as {class}, and has not to be", told(place)));
    }
    let mirror = |dead: &Placed<DeadFrom>| {
        let DeadFrom { consumer, partition, offset, .. } = dead.value;
        (consumer.to_owned(), partition, offset)
    };
    let mirrored: BTreeSet<Place> = case.log.dead.iter().map(mirror).collect();
    for place in model.failed.difference(&mirrored) {
        finding.add(|| format!("{} has failed and is not in the topic of dead letters", told(place)));
    }
    // Where Postgres went back, what was told before then may have been decided before it failed the second time.
    let untold = |place: &&Place| !case.went_back && !failed_in_another(case, place);
    for place in mirrored.difference(&model.failed).filter(untold) {
        finding.add(|| {
            format!("{} has not failed and is in the topic of dead letters{}", told(place), history(case, place))
        });
    }
    adds_up(case, model, &mut finding);
    finding.end(violations);
}

fn told((consumer, partition, offset): &Place) -> String {
    format!("{partition}@{offset} of {consumer}")
}

/// Whether a record may have failed in a version that was live in turn, and was decided about there, before another one in
/// which it still waited did what was decided.
fn failed_in_another(case: &Case<'_>, place: &Place) -> bool {
    let (consumer, partition, offset) = place;
    let of_lane = case.log.lanes.iter().filter(|_| consumer == "lanes");
    let is_poison = |it: &Placed<Append>| (it.partition, it.offset) == (*partition, *offset) && it.value.poison != 0;
    let waited = case.verdicts().get(place).is_some_and(|decided| decided.class == WAITS);
    waited && case.actual.swapped.contains(consumer) && of_lane.into_iter().any(is_poison)
}

/// What is known of a record of a lane and of the poison before it, with what was decided.
fn history(case: &Case<'_>, (consumer, partition, offset): &Place) -> String {
    let is_it = |placed: &&Placed<Append>| (placed.partition, placed.offset) == (*partition, *offset);
    let Some(it) = case.log.lanes.iter().find(is_it).filter(|_| consumer == "lanes") else { return String::new() };
    let of_lane = case.log.lanes.iter().filter(|placed| placed.value.key == it.value.key && placed.offset <= *offset);
    let poison = of_lane.filter(|placed| placed.value.poison != 0 || placed.offset == *offset);
    let decided = |placed: &Placed<Append>| {
        let verdict = case.verdicts().get(&(consumer.clone(), placed.partition, placed.offset));
        let verdict = verdict.map_or("nothing".to_owned(), |v| format!("{} of {} by {}", v.what, v.class, v.by));
        format!("@{} {} poison {}: {verdict}", placed.offset, placed.event_id, placed.value.poison)
    };
    format!(" ({})", poison.map(decided).collect::<Vec<_>>().join("; "))
}

/// What was applied, set aside and passed over is all that there is, record by record.
fn adds_up(case: &Case<'_>, model: &Model, finding: &mut Finding) {
    let tables = &case.actual.tables;
    let appended: i64 = tables.appends.values().map(|row| row.times).sum();
    let chained: i64 = tables.chains.values().map(|row| row.length).sum();
    let queued: i64 = tables.lanes.values().map(|(row, _)| row.length).sum();
    let moved: i64 = tables.amounts.values().sum();
    let credited: i64 = tables.credits.values().map(|row| row.times).sum();
    for (consumer, applied, records) in [
        ("appends", appended, case.log.appends.len()),
        ("chains", chained, case.log.appends.len()),
        ("lanes", queued, case.log.lanes.len()),
        ("amounts", moved, case.log.money.len()),
        ("credits", credited, case.log.credits.len()),
    ] {
        let aside = tables.dead_letters.keys().filter(|(of, ..)| of == consumer).count();
        let discarded =
            case.verdicts().iter().filter(|((of, ..), decided)| of == consumer && decided.what == "discard");
        let discarded = discarded.count();
        let repeats = model.repeats.get(consumer).copied().unwrap_or_default();
        let applied = usize::try_from(applied).unwrap_or_default();
        if applied + aside + discarded + repeats != records {
            finding.add(|| {
                format!(
                    "{consumer}: {applied} applied, {aside} set aside, {discarded} given up and {repeats} repeats of \
                     {records} records in the log"
                )
            });
        }
    }
}
