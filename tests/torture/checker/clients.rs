//! Checks on what clients were told when they wrote: nothing lost, nothing doubled, nothing made up, in order.

use std::collections::HashMap;

use super::log::Placed;
use super::{Case, Finding, Violation};
use crate::values::{self, ALTERED, Append, Money};
use crate::workload::history::{Kind, Outcome, Request};

/// A value: kind, client and number.
type Value = (Kind, i32, i64);

/// All that is known of a value from those who sent it: once, or under an id more than once.
struct Attempts<'a> {
    /// The request that was the first, and the place in it.
    first: &'a Request,
    place: usize,
    /// Requests by what they were told of the value.
    acknowledged: usize,
    unknown: usize,
    refused: usize,
    /// When it was first known to be in the log.
    since: Option<u64>,
    /// When a request with it first began.
    invoked: u64,
}

impl Attempts<'_> {
    fn add(&mut self, outcome: Outcome, request: &Request) {
        self.invoked = self.invoked.min(request.invoked);
        match outcome {
            Outcome::Ok => {
                self.acknowledged += 1;
                self.since = Some(self.since.map_or(request.completed, |since| since.min(request.completed)));
            }
            Outcome::Info => self.unknown += 1,
            Outcome::Fail => self.refused += 1,
        }
    }

    fn count(&self) -> usize {
        self.acknowledged + self.unknown + self.refused
    }

    fn told(&self, kind: Kind, n: i64) -> String {
        let Request { client, first, count, id, invoked, completed, answer, .. } = self.first;
        let (from, to) = (*invoked as f64 / 1e9, *completed as f64 / 1e9);
        let (acknowledged, unknown, refused) = (self.acknowledged, self.unknown, self.refused);
        let id = id.as_ref().map_or_else(String::new, |id| {
            format!(", under the id {id} {acknowledged} times acknowledged, {unknown} unknown, {refused} refused")
        });
        format!("{kind:?} {client}/{n} (of {count} from {first}, {from:.3} s to {to:.3} s, {answer}{id})")
    }
}

/// What was sent, by value.
pub struct Sent<'a>(HashMap<Value, Attempts<'a>>);

impl<'a> Sent<'a> {
    pub fn of(requests: &'a [Request]) -> Self {
        let mut sent: HashMap<Value, Attempts<'a>> = HashMap::new();
        for request in requests {
            for place in 0..request.count {
                let value = (request.kind, request.client, request.number(place));
                let none = || Attempts {
                    first: request,
                    place,
                    acknowledged: 0,
                    unknown: 0,
                    refused: 0,
                    since: None,
                    invoked: request.invoked,
                };
                sent.entry(value).or_insert_with(none).add(request.outcome_at(place), request);
            }
        }
        Self(sent)
    }
}

/// A record of a client's, without what it says.
struct Stands<'a> {
    value: Value,
    key: &'a str,
    at: (i32, i64),
    id: &'a str,
    marked: bool,
    /// Whether it says what was to be said.
    sound: bool,
}

/// All records of clients, each topic in the order of its partitions.
fn stand<'a>(case: &Case<'a>) -> impl Iterator<Item = Stands<'a>> + use<'a> {
    let seed = case.seed;
    let listed = move |kind: Kind, of: fn(u64, i32, i64) -> Append| {
        move |placed: &'a Placed<Append>| {
            let Append { key, client, n, .. } = &placed.value;
            stands(placed, (kind, *client, *n), key, of(seed, *client, *n) == placed.value)
        }
    };
    let money = move |placed: &'a Placed<Money>| {
        let Money { account, client, n, .. } = &placed.value;
        stands(placed, (Kind::Money, *client, *n), account, values::money(seed, *client, *n) == placed.value)
    };
    let appends = case.log.appends.iter().map(listed(Kind::Append, values::append));
    let lanes = case.log.lanes.iter().map(listed(Kind::Lane, values::enqueue));
    appends.chain(lanes).chain(case.log.money.iter().map(money))
}

fn stands<'a, T>(placed: &'a Placed<T>, value: Value, key: &'a str, sound: bool) -> Stands<'a> {
    let at = (placed.partition, placed.offset);
    Stands { value, key, at, id: &placed.event_id, marked: placed.fingerprint.is_some(), sound }
}

/// Checks 1 to 3: what was acknowledged is there, as often as it was and no more often than it may be, and nothing is there that
/// was refused or never sent, or under another id than it was sent.
pub fn lost_and_phantom(case: &Case<'_>, sent: &Sent<'_>, violations: &mut Vec<Violation>) {
    let (mut lost, mut doubled) = (Finding::new(1, "lost"), Finding::new(2, "doubled in the log"));
    let mut phantom = Finding::new(3, "phantom");
    let mut places: HashMap<Value, Vec<(i32, i64)>> = HashMap::new();
    for Stands { value, at, id, marked, sound, .. } in stand(case) {
        places.entry(value).or_default().push(at);
        let Some(attempts) = sent.0.get(&value).filter(|_| sound) else {
            phantom.add(|| format!("{value:?} at {at:?} was never sent"));
            continue;
        };
        let wanted = attempts.first.id.as_ref().map(|stem| format!("{stem}/{}", attempts.place));
        if marked != wanted.is_some() || wanted.as_ref().is_some_and(|wanted| wanted != id) {
            let told = || attempts.told(value.0, value.2);
            phantom.add(|| format!("{} is at {at:?} under the id {id}, marked as the client's: {marked}", told()));
        }
    }
    for (value @ (kind, _, n), attempts) in &sent.0 {
        let found = places.get(value).map_or(&[][..], Vec::as_slice);
        let Attempts { acknowledged, unknown, .. } = attempts;
        if found.len() < *acknowledged {
            lost.add(|| format!("{} is at {found:?} only", attempts.told(*kind, *n)));
        } else if !found.is_empty() && acknowledged + unknown == 0 {
            phantom.add(|| format!("{} is at {found:?}, but was refused", attempts.told(*kind, *n)));
        }
        if found.len() > (acknowledged + unknown).max(1) {
            doubled.add(|| format!("{} is at {found:?}", attempts.told(*kind, *n)));
        }
    }
    for finding in [lost, doubled, phantom] {
        finding.end(violations);
    }
}

/// Check 4: of a client and key, what was acknowledged before another was sent stands before it; of what stands there more than
/// once the first counts, and what went out under an id that stands for something else does not.
///
/// It is enough to look at the greatest number so far; within a request that was acknowledged whole the order is that of its
/// body.
pub fn order(case: &Case<'_>, sent: &Sent<'_>, violations: &mut Vec<Violation>) {
    let mut finding = Finding::new(4, "order of a key");
    // The greatest number of each client and key so far, and where it stands.
    let mut greatest: HashMap<(Kind, i32, &str), (i64, i32, i64)> = HashMap::new();
    let mut met = std::collections::HashSet::new();
    for Stands { value, key, at: (partition, offset), .. } in stand(case) {
        let (kind, client, n) = value;
        if n >= ALTERED || !met.insert(value) {
            continue;
        }
        let seen = greatest.entry((kind, client, key)).or_insert((n, partition, offset));
        if seen.1 != partition {
            finding.add(|| format!("{kind:?} of key {key} is on partitions {} and {partition}", seen.1));
        }
        if n < seen.0 && sent.is_late(value, (kind, client, seen.0)) {
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

impl Sent<'_> {
    /// Whether a value that stands behind another one has to stand before it.
    fn is_late(&self, value: Value, other: Value) -> bool {
        let (Some(value), Some(other)) = (self.0.get(&value), self.0.get(&other)) else { return false };
        // Whoever sent one of them has sent both.
        let together = value.first.invoked == other.first.invoked && value.count() == other.count();
        let whole = together && value.unknown + value.refused == 0;
        whole || value.since.is_some_and(|since| since < other.invoked)
    }
}
