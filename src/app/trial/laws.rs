//! The three laws, tried on the events of a case, and the smallest plan that breaks one.
//!
//! 1. Any cut into batches and any interleaving of partitions gives the same rows, events, refusals and dead letters.
//! 2. A version built anew from the log equals the one that followed it.
//! 3. Records that are delivered again change nothing.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    time::{Duration, Instant},
};

use super::{
    case::Case,
    lab::{FIRST, Lab, REBUILT},
    plan::{Plan, Random},
    sheet::Outcome,
};
use crate::kafka::murmur2::murmur2;

/// Random plans tried per case, beside the regular ones.
const RANDOM_PLANS: usize = 10;
/// How long a plan that breaks a law is made smaller.
const SHRINK_FOR: Duration = Duration::from_secs(10);
/// Longest body printed of a record.
const MAX_BODY: usize = 160;

/// What came of the laws.
pub enum Verdict {
    /// All hold, by so many plans.
    Hold(usize),
    /// One does not; the text says by what.
    Broken(String),
}

/// Tries the laws; `base` is the outcome one by one.
pub async fn check(lab: &mut Lab<'_>, case: &Case, base: &Outcome) -> anyhow::Result<Verdict> {
    let plans = plans(case);
    let slots = case.slots();
    for plan in &plans {
        if let Some(text) = broken(lab, case, base, FIRST, plan, LAW_1).await? {
            return Ok(Verdict::Broken(text));
        }
    }
    let rebuild = Plan::whole(&slots);
    if let Some(text) = broken(lab, case, base, REBUILT, &rebuild, LAW_2).await? {
        return Ok(Verdict::Broken(text));
    }
    let redelivered = Plan::one_by_one(0..case.events.len()).redelivered();
    if let Some(text) = broken(lab, case, base, FIRST, &redelivered, LAW_3).await? {
        return Ok(Verdict::Broken(text));
    }
    Ok(Verdict::Hold(plans.len() + 2))
}

const LAW_1: &str = "law 1 is broken: the cut into batches or the interleaving of partitions changes what comes out";
const LAW_2: &str = "law 2 is broken: a version built anew differs from the one that followed the log";
const LAW_3: &str = "law 3 is broken: records that are delivered again change what comes out";

/// The plans of law 1, without the one that all are compared with.
fn plans(case: &Case) -> BTreeSet<Plan> {
    let slots = case.slots();
    // The same plans in every run.
    let mut random = Random::new(murmur2(case.name.as_bytes()).into());
    let mut plans = BTreeSet::from([Plan::of_size(&slots, 2), Plan::whole(&slots)]);
    plans.extend((0..RANDOM_PLANS).map(|_| Plan::random(&slots, &mut random)));
    plans.remove(&Plan::one_by_one(0..slots.len()));
    plans
}

async fn broken(
    lab: &mut Lab<'_>,
    case: &Case,
    base: &Outcome,
    version: i32,
    plan: &Plan,
    law: &str,
) -> anyhow::Result<Option<String>> {
    match lab.run(version, case, plan).await? {
        Ok(outcome) if outcome == *base => return Ok(None),
        _ => {}
    }
    let smallest = shrink(lab, case, version, plan).await?;
    Ok(Some(describe(lab, case, version, &smallest, law).await?))
}

/// Whether a plan comes out otherwise than its events one by one.
async fn differs(lab: &mut Lab<'_>, case: &Case, version: i32, plan: &Plan) -> anyhow::Result<bool> {
    let one_by_one = lab.run(FIRST, case, &Plan::one_by_one(plan.events())).await?;
    let Ok(one_by_one) = one_by_one else { return Ok(false) };
    Ok(lab.run(version, case, plan).await? != Ok(one_by_one))
}

/// Leaves out what is not needed to break the law: events first, then what the plan does beyond one by one.
async fn shrink(lab: &mut Lab<'_>, case: &Case, version: i32, plan: &Plan) -> anyhow::Result<Plan> {
    let until = Instant::now() + SHRINK_FOR;
    let mut smallest = plan.clone();
    let mut size = smallest.events().len().div_ceil(2);
    while size > 0 {
        let mut found = false;
        for part in smallest.events().chunks(size) {
            let smaller = smallest.without(part);
            if Instant::now() < until && differs(lab, case, version, &smaller).await? {
                smallest = smaller;
                found = true;
            }
        }
        // One event less may make another dispensable.
        size = if found && size == 1 { 1 } else { size / 2 };
    }
    'tame: loop {
        for tamer in smallest.tamer() {
            if Instant::now() < until && differs(lab, case, version, &tamer).await? {
                smallest = tamer;
                continue 'tame;
            }
        }
        return Ok(smallest);
    }
}

/// The batches, and what they change.
async fn describe(lab: &mut Lab<'_>, case: &Case, version: i32, plan: &Plan, law: &str) -> anyhow::Result<String> {
    let one_by_one = lab.run(FIRST, case, &Plan::one_by_one(plan.events())).await?;
    let other = lab.run(version, case, plan).await?;
    let mut text = format!("      {law}\n");
    let again = if plan.redeliver { ", each delivered again with the next and at the end" } else { "" };
    let _ = writeln!(text, "      the smallest batches that show it{again}:");
    for (number, batch) in (1..).zip(&plan.batches) {
        let _ = writeln!(text, "        batch {number}");
        for event in batch.iter().map(|at| &case.events[*at]) {
            let mut body: String = event.body.chars().take(MAX_BODY).collect();
            if body.len() < event.body.len() {
                body.push('…');
            }
            let _ = writeln!(
                text,
                "          line {}: {} {} key {} {body}",
                event.line,
                case.partitions[event.slot],
                event.record_type.as_deref().unwrap_or("tombstone"),
                event.key.as_deref().unwrap_or("-"),
            );
        }
    }
    match (one_by_one, other) {
        (Ok(left), Ok(right)) if left == right => {
            text.push_str("      the same batches gave another result before: what comes out is left to chance\n");
        }
        (Ok(left), Ok(right)) => text.push_str(&left.compare(&right, 6)),
        (Err(stopped), _) => drop(writeln!(text, "      one by one they stop: {stopped}")),
        (_, Err(stopped)) => drop(writeln!(text, "      so they stop, one by one they do not: {stopped}")),
    }
    Ok(text)
}
