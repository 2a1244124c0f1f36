//! Checks on what clients were told: nothing lost, nothing doubled, nothing made up, in order, and reads never early.

use std::collections::{BTreeMap, HashMap};

use super::log::Placed;
use super::{Case, Finding, Model, Violation, position};
use crate::values::{self, Append, Money};
use crate::workload::history::{Kind, Outcome, Request};

/// Where every value of a kind stands in the log, by client and number.
type Places = HashMap<(i32, i64), Vec<(i32, i64)>>;

/// Checks 1 to 3: what was acknowledged is there, once, and nothing is there that was refused or never sent.
pub fn lost_and_phantom(case: &Case<'_>, violations: &mut Vec<Violation>) {
    let (mut lost, mut doubled) = (Finding::new(1, "lost"), Finding::new(2, "doubled in the log"));
    let mut phantom = Finding::new(3, "phantom");
    let appends = places(case.log.appends.iter().map(|placed| (placed, placed.value.client, placed.value.n)));
    let money = places(case.log.money.iter().map(|placed| (placed, placed.value.client, placed.value.n)));
    let mut known: HashMap<(Kind, i32, i64), Outcome> = HashMap::new();
    for request in case.requests {
        let places = if request.kind == Kind::Append { &appends } else { &money };
        for (place, n) in (0..request.count).zip(request.first..) {
            let outcome = request.outcome_at(place);
            known.insert((request.kind, request.client, n), outcome);
            let found = places.get(&(request.client, n)).map_or(&[][..], Vec::as_slice);
            match (outcome, found) {
                (Outcome::Ok, []) => lost.add(|| format!("{} is in no partition", told(request, n))),
                (Outcome::Fail, [place, ..]) => {
                    phantom.add(|| format!("{} is at {place:?}, but was refused", told(request, n)));
                }
                _ => {}
            }
            if found.len() > 1 {
                doubled.add(|| format!("{} is at {found:?}", told(request, n)));
            }
        }
    }
    for Placed { partition, offset, value, .. } in &case.log.appends {
        let sent = known.contains_key(&(Kind::Append, value.client, value.n));
        if !sent || values::append(case.seed, value.client, value.n) != *value {
            phantom.add(|| format!("{value:?} at {partition}@{offset} was never sent"));
        }
    }
    for Placed { partition, offset, value, .. } in &case.log.money {
        let sent = known.contains_key(&(Kind::Money, value.client, value.n));
        if !sent || values::money(case.seed, value.client, value.n) != *value {
            phantom.add(|| format!("{value:?} at {partition}@{offset} was never sent"));
        }
    }
    for finding in [lost, doubled, phantom] {
        finding.end(violations);
    }
}

fn places<'a, T: 'a>(records: impl Iterator<Item = (&'a Placed<T>, i32, i64)>) -> Places {
    let mut places = Places::new();
    for (placed, client, n) in records {
        places.entry((client, n)).or_default().push((placed.partition, placed.offset));
    }
    places
}

fn told(request: &Request, n: i64) -> String {
    let Request { kind, client, first, count, invoked, completed, answer, .. } = request;
    let (from, to) = (*invoked as f64 / 1e9, *completed as f64 / 1e9);
    format!("{kind:?} {client}/{n} (of {count} from {first}, {from:.3} s to {to:.3} s, {answer})")
}

/// Check 4: of one client and key, what was acknowledged before another was sent stands before it.
///
/// Clients send one request after another, so it is enough that no acknowledged value stands behind a later one; within a
/// request that was acknowledged whole the order is that of its body.
pub fn order(case: &Case<'_>, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(4, "order of a key");
    let mut outcomes: HashMap<(Kind, i32), Vec<&Request>> = HashMap::new();
    for request in case.requests {
        outcomes.entry((request.kind, request.client)).or_default().push(request);
    }
    for requests in outcomes.values_mut() {
        requests.sort_by_key(|request| request.first);
    }
    let acknowledged = |kind: Kind, client: i32, n: i64| {
        let requests = outcomes.get(&(kind, client))?;
        let request = requests[requests.partition_point(|request| request.first <= n).checked_sub(1)?];
        let place = usize::try_from(n - request.first).ok()?;
        (place < request.count && request.outcome_at(place) == Outcome::Ok).then_some(())
    };
    let append = |value: &Append| (Kind::Append, value.client, value.n, value.key.clone());
    let money = |value: &Money| (Kind::Money, value.client, value.n, value.account.clone());
    let appends = case.log.appends.iter().map(|placed| (placed.partition, placed.offset, append(&placed.value)));
    let moneys = case.log.money.iter().map(|placed| (placed.partition, placed.offset, money(&placed.value)));
    // The greatest number of each client and key so far, and where it stands.
    let mut greatest: HashMap<(Kind, i32, String), (i64, i32, i64)> = HashMap::new();
    for (partition, offset, (kind, client, n, key)) in appends.chain(moneys) {
        let seen = greatest.entry((kind, client, key.clone())).or_insert((n, partition, offset));
        if seen.1 != partition {
            finding.add(|| format!("{kind:?} of key {key} is on partitions {} and {partition}", seen.1));
        }
        if n < seen.0 && acknowledged(kind, client, n).is_some() {
            finding.add(|| {
                format!(
                    "{kind:?} {client}/{n} of key {key} was acknowledged, and stands at {partition}@{offset} behind \
                     the later {client}/{} at {}@{}",
                    seen.0, seen.1, seen.2
                )
            });
        }
        if n >= seen.0 {
            *seen = (n, partition, offset);
        }
    }
    finding.end(violations);
}

/// Checks 6 and 7: a read shows what its position says, all of it and nothing else, and never less than was asked for.
pub fn reads(case: &Case<'_>, model: &Model, violations: &mut Vec<Violation>) -> usize {
    let (mut prefix, mut early) = (Finding::new(6, "read is no prefix"), Finding::new(7, "read is too early"));
    let mut judged = 0;
    for read in case.reads.iter().filter(|read| read.status == 200) {
        judged += 1;
        let shown: BTreeMap<i32, i64> = position(&read.position);
        let behind = |(partition, wanted): (&i32, &i64)| shown.get(partition).is_none_or(|shown| shown < wanted);
        if position(&read.wanted).iter().any(behind) {
            early.add(|| format!("{} asked for {} and was shown {}", read.key, read.wanted, read.position));
        }
        let Some(expected) = model.list_at(&read.key, &shown) else {
            prefix.add(|| format!("{} was shown {}, which has no partition of its key", read.key, read.position));
            continue;
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
    prefix.end(violations);
    early.end(violations);
    judged
}
