//! Checks on parked keys and on what was decided about them: nothing passes what waits before it, nothing waits for ever, and
//! every verdict is somebody's decision, kept in the table and in the topic alike.

use super::log::{Decided, Place};
use super::model::{CONFLICT, CRASH, REFUSED, WAITS};
use super::{Case, Finding, Model, Violation};
use crate::workload::history::{Choice, Decision, Outcome};

/// Check 16: nothing of a parked key is applied before what it waits for, and in the end no key is parked.
pub fn parked(case: &Case<'_>, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(16, "parked keys");
    for seen in case.parked {
        finding.add(|| seen.clone());
    }
    for key in &case.actual.parked {
        finding.add(|| format!("{key} wait still"));
    }
    finding.end(violations);
}

/// Check 17: what the table has of verdicts the topic has, and nothing else; each is about a record that was set aside, and is
/// the decision of an operator, the last one that was acknowledged; and what was decided so that it can be done is done.
pub fn verdicts(case: &Case<'_>, model: &Model, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(17, "verdicts");
    let (table, topic) = (&case.actual.verdicts, &case.log.verdicts);
    for (place, decided) in table {
        match topic.get(place) {
            None => finding.add(|| format!("{place:?} is decided in the table, and not in the topic: {decided:?}")),
            Some(told) if told != decided => {
                finding.add(|| format!("{place:?} is {decided:?} in the table, and {told:?} in the topic"));
            }
            Some(_) => {}
        }
        let waits = place.0 == "lanes" && model.may_wait.contains(&(place.1, place.2));
        if !waits && !model.failed.contains(place) {
            finding.add(|| format!("{place:?} was never set aside, and is decided: {decided:?}"));
        }
        // A wish that was given and taken back with the database may stand beside one that was not.
        if !case.went_back
            && !is_the_crash_guards(model, place, decided)
            && let Err(why) = is_somebodys(case.decisions, place, decided)
        {
            finding.add(|| format!("{place:?} is {decided:?}: {why}"));
        }
    }
    if !case.went_back {
        for (place, told) in topic.iter().filter(|(place, _)| !table.contains_key(*place)) {
            finding.add(|| format!("{place:?} is decided in the topic, and not in the table: {told:?}"));
        }
        let done = |decision: &&Decision| {
            let Some((partition, offset)) = decision.record else { return true };
            table.contains_key(&(decision.consumer.to_owned(), partition, offset))
        };
        // While nobody is there to carry out a wish, another may take its place: the last one counts.
        let replaced = |decision: &&Decision| {
            let about = |other: &&Decision| {
                other.consumer == decision.consumer && (other.record.is_none() || other.record == decision.record)
            };
            let later = |other: &Decision| other.outcome != Outcome::Fail && other.invoked > decision.invoked;
            case.decisions.iter().filter(about).any(later)
        };
        let acknowledged = case.decisions.iter().filter(|one| one.mends && one.outcome == Outcome::Ok);
        let acknowledged = acknowledged.filter(|decision| !replaced(decision));
        for decision in acknowledged.filter(|decision| !done(decision)) {
            finding.add(|| format!("nothing came of {decision:?}"));
        }
    }
    finding.end(violations);
}

/// Whether the engine itself has given up a record over which processes end: another reading of the log must not try it.
fn is_the_crash_guards(model: &Model, place: &Place, decided: &Decided) -> bool {
    let deadly = model.tables.dead_letters.get(place).is_some_and(|class| class == CRASH);
    deadly && decided.what == "dead_letter" && decided.class == CRASH
}

/// Whether a verdict is the decision whose name it bears.
fn is_somebodys(decisions: &[Decision], place: &Place, decided: &Decided) -> Result<(), String> {
    let about = |decision: &&Decision| {
        decision.consumer == place.0 && decision.record.is_none_or(|record| record == (place.1, place.2))
    };
    let Some(decision) = decisions.iter().filter(about).find(|one| one.by == decided.by) else {
        return Err("nobody of that name has decided about it".to_owned());
    };
    if decision.outcome == Outcome::Fail {
        return Err(format!("the decision was refused: {decision:?}"));
    }
    // A record that was edited to no avail and is tried again keeps the new value.
    let alike = match decided.what.as_str() {
        "discard" => decision.what == Choice::Discard,
        "edit" => matches!(decision.what, Choice::Edit | Choice::Redrive) && decided.value.is_some(),
        "apply" => decision.what == Choice::Redrive,
        _ => false,
    };
    let class = [REFUSED, CONFLICT, WAITS].contains(&decided.class.as_str());
    if !alike || !class {
        return Err(format!("what was decided is {decision:?}"));
    }
    // What was acknowledged about the record alone after that was met by a row that was not settled yet. When a command was
    // killed, nobody knows when its wish was written.
    let later = |other: &&Decision| {
        other.record.is_some() && other.outcome == Outcome::Ok && other.invoked > decision.completed
    };
    match decisions.iter().filter(about).find(later) {
        Some(other) if decision.outcome == Outcome::Ok => Err(format!("it was decided anew: {other:?}")),
        _ => Ok(()),
    }
}
