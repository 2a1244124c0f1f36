//! Which records are repeats, and which stand under an id that another record has: told from the log alone, by a rule that is
//! written apart. What two records say is compared as it was decoded, not by their fingerprints; those are judged, too.

use std::collections::{HashMap, HashSet};

use super::log::Placed;
use super::{Case, Finding, Violation};
use crate::values::Append;

/// For how long most consumers remember ids, and `lanes`, in milliseconds.
pub const WEEK: i64 = 7 * 24 * 3600 * 1000;
pub const OF_LANES: i64 = 10_000;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// It counts.
    First,
    /// It says what another one has said under its id.
    Repeat,
    /// Its id stands for another record.
    Conflict,
}

/// What each of the records is, which are in the order of their partitions, where ids are remembered for so long.
pub fn sorts<T: PartialEq>(records: &[Placed<T>], window: i64) -> Vec<Sort> {
    // By partition, the time of the log: the greatest timestamp so far.
    let mut clocks: HashMap<i32, i64> = HashMap::new();
    // By partition and id, the record that counts and when that was.
    let mut known: HashMap<(i32, &str), (&T, i64)> = HashMap::new();
    let mut sorts = Vec::with_capacity(records.len());
    for Placed { partition, event_id, fingerprint, timestamp, value, .. } in records {
        let clock = clocks.entry(*partition).or_insert(*timestamp);
        *clock = (*clock).max(*timestamp);
        if fingerprint.is_none() {
            sorts.push(Sort::First);
            continue;
        }
        let before = known.get(&(*partition, event_id.as_str())).filter(|(_, at)| *clock - at <= window);
        sorts.push(match before {
            Some((first, _)) if *first == value => Sort::Repeat,
            Some(_) => Sort::Conflict,
            None => {
                known.insert((*partition, event_id), (value, *clock));
                Sort::First
            }
        });
    }
    sorts
}

/// Check 12: under one id fingerprints are the same exactly when the records say the same, and a value that went out
/// under an id has one; and nothing has its effect twice.
pub fn once(case: &Case<'_>, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(12, "repeats");
    fingerprints(&case.log.appends, &mut finding);
    fingerprints(&case.log.lanes, &mut finding);
    fingerprints(&case.log.money, &mut finding);
    fingerprints(&case.log.credits, &mut finding);
    // What an operator has had applied after all may be what was applied before.
    let decided = |placed: &&Placed<Append>| {
        let place = ("appends".to_owned(), placed.partition, placed.offset);
        case.verdicts().get(&place).is_some_and(|decided| decided.what != "discard")
    };
    let decided: HashSet<(i32, i64)> =
        case.log.appends.iter().filter(decided).map(|placed| (placed.value.client, placed.value.n)).collect();
    let twice = case.actual.tables.appends.iter().filter(|(value, row)| row.times > 1 && !decided.contains(value));
    for ((client, n), row) in twice {
        finding.add(|| format!("value {client}/{n} has taken effect {} times: {row:?}", row.times));
    }
    finding.end(violations);
}

fn fingerprints<T: PartialEq + std::fmt::Debug>(records: &[Placed<T>], finding: &mut Finding) {
    let mut by_id: HashMap<&str, Vec<&Placed<T>>> = HashMap::new();
    for placed in records {
        let Some(fingerprint) = &placed.fingerprint else { continue };
        let known = by_id.entry(&placed.event_id).or_default();
        match known.iter().find(|one| one.fingerprint.as_ref() == Some(fingerprint)) {
            Some(one) if one.value != placed.value => {
                finding.add(|| format!("{placed:?} has the fingerprint of {one:?}"));
            }
            Some(_) => {}
            None => {
                if let Some(one) = known.iter().find(|one| one.value == placed.value) {
                    finding.add(|| format!("{placed:?} has another fingerprint than {one:?}"));
                }
                known.push(placed);
            }
        }
    }
}
