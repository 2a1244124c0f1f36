//! A small world in which everything is right: what was sent, what the log has of it, what was decided, and what came out.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::super::actual::Step;
use super::super::log::{CONSUMERS, DeadFrom, Decided, Place, Placed, Verdicts};
use super::super::model::{REFUSED, WAITS, list_below};
use super::super::{Actual, Log, Model, position, tables};
use super::{PARTITIONS, SEED, TOPIC, VALUES};
use crate::values::{self, Append};
use crate::workload::history::{Choice, Decision, Kind, Outcome, Read, Request, View};

/// Values of lanes.
pub const QUEUED: i64 = 3000;
/// The first of the appended values that went out under an id, a second time, and a third time as something else.
const UNDER_AN_ID: i64 = 401;

/// A small world, in which everything is right at first.
pub struct World {
    pub requests: Vec<Request>,
    pub reads: Vec<Read>,
    pub log: Log,
    pub actual: Actual,
    pub decisions: Vec<Decision>,
    pub bank: Vec<String>,
    pub parked: Vec<String>,
    pub went_back: bool,
}

/// Makes one.
pub fn world() -> World {
    let requests = requests();
    let mut log = Log { appends: listed(&requests, Kind::Append, values::append), ..Log::default() };
    log.lanes = listed(&requests, Kind::Lane, values::enqueue);
    for n in 1..=400 {
        let value = values::money(SEED, 100, n);
        log.money.push(placed(0, n - 1, format!("money {n}"), None, value));
    }
    let emitted = Model::fold(&log, &BTreeMap::new()).emitted;
    for (offset, emitted) in (0..).zip(emitted) {
        let id = emitted.credit.transfer_id.clone();
        log.credits.push(placed(0, offset, id.clone(), Some(id), emitted.credit));
    }
    let decisions = decide(&mut log);
    let model = Model::fold(&log, &log.verdicts);
    for (offset, (consumer, partition, at)) in (0..).zip(&model.failed) {
        let consumer = CONSUMERS.into_iter().find(|name| name == consumer).expect("a consumer");
        let value = DeadFrom { consumer, topic: TOPIC.into(), partition: *partition, offset: *at };
        log.dead.push(placed(0, offset, String::new(), None, value));
    }
    let reads = reads(&log, &model);
    let steps = steps(&log);
    let actual = Actual { tables: model.tables, verdicts: log.verdicts.clone(), steps, ..Actual::default() };
    World { requests, reads, log, actual, decisions, bank: Vec::new(), parked: Vec::new(), went_back: false }
}

fn requests() -> Vec<Request> {
    let request = |kind, client, first, count: i64| Request {
        kind,
        client,
        first,
        count: usize::try_from(count).expect("few"),
        id: None,
        altered: false,
        outcome: Outcome::Ok,
        others: Vec::new(),
        invoked: u64::try_from(first).expect("positive") * 1000,
        completed: u64::try_from(first).expect("positive") * 1000 + 500,
        answer: "202".into(),
        position: None,
    };
    let mut requests: Vec<Request> = (0..VALUES / 100).map(|at| request(Kind::Append, 0, at * 100 + 1, 100)).collect();
    let known = requests.iter_mut().find(|request| request.first == UNDER_AN_ID).expect("it was made");
    known.id = Some("id".into());
    let later = u64::try_from(VALUES).expect("positive") * 1000;
    let again = Request { invoked: later + 1000, completed: later + 1500, ..known.clone() };
    let other = Request { altered: true, invoked: later + 2000, completed: later + 2500, ..known.clone() };
    requests.extend([again, other]);
    requests.push(request(Kind::Lane, 200, 1, QUEUED));
    requests.push(request(Kind::Money, 100, 1, 400));
    requests
}

/// The records of all requests of a kind, one request after another.
fn listed(requests: &[Request], kind: Kind, of: fn(u64, i32, i64) -> Append) -> Vec<Placed<Append>> {
    let mut ends = [0; PARTITIONS as usize];
    let mut records = Vec::new();
    for request in requests.iter().filter(|request| request.kind == kind) {
        for place in 0..request.count {
            let value = of(SEED, request.client, request.number(place));
            let partition = i32::from(value.key.bytes().map(u32::from).sum::<u32>() % 2 == 1);
            let offset = ends[partition as usize];
            ends[partition as usize] += 1;
            let of_client = request.id.as_ref().map(|id| (format!("{id}/{place}"), format!("{value:?}")));
            let (id, fingerprint) = match of_client {
                Some((id, fingerprint)) => (id, Some(fingerprint)),
                None => (format!("{kind:?} {}", value.n), None),
            };
            records.push(placed(partition, offset, id, fingerprint, value));
        }
    }
    records.sort_by_key(|placed| (placed.partition, placed.offset));
    records
}

fn placed<T>(partition: i32, offset: i64, event_id: String, fingerprint: Option<String>, value: T) -> Placed<T> {
    Placed { partition, offset, event_id, fingerprint, timestamp: 1_000_000 + offset, value }
}

/// Decides about all that holds up a lane, and about the first that waits behind one; as many ways as there are.
fn decide(log: &mut Log) -> Vec<Decision> {
    let (mut verdicts, mut decisions) = (Verdicts::new(), Vec::new());
    let mut waiting = None;
    for (number, at) in (0_u64..).zip(0..log.lanes.len()) {
        let Placed { partition, offset, value, .. } = &log.lanes[at];
        let behind = waiting.as_ref() == Some(&value.key);
        if value.poison == 0 && !behind {
            continue;
        }
        if value.poison != 0 && verdicts.is_empty() {
            waiting = Some(value.key.clone());
        } else if behind {
            waiting = None;
        }
        let (what, edited) = match (verdicts.len(), behind) {
            (0 | 2, _) => (Choice::Edit, Some(Append { poison: 0, n: -value.n, ..value.clone() })),
            _ => (Choice::Discard, None),
        };
        let by = format!("op-{number}");
        decisions.push(Decision {
            consumer: "lanes",
            record: Some((*partition, *offset)),
            what,
            mends: true,
            by: by.clone(),
            invoked: number * 1000,
            completed: number * 1000 + 500,
            outcome: Outcome::Ok,
            answer: "1 record".into(),
        });
        let place: Place = ("lanes".into(), *partition, *offset);
        let word = if what == Choice::Edit { "edit" } else { "discard" };
        let class = if value.poison == 0 { WAITS } else { REFUSED };
        verdicts.insert(place, Decided { what: word.into(), class: class.into(), by, value: edited });
    }
    assert!(verdicts.len() > 3, "too little poison");
    log.verdicts = verdicts;
    decisions
}

/// A list and a lane, each half-way; one that has to wait; one that waits for a conflict.
fn reads(log: &Log, model: &Model) -> Vec<Read> {
    let (ends, lanes) = (tables::ends(&log.appends), tables::ends(&log.lanes));
    let half = |ends: &BTreeMap<i32, i64>| format!("{TOPIC}/0@{},{TOPIC}/1@{}", ends[&0] / 4, ends[&1] / 4);
    let key = log.appends[0].value.key.clone();
    let row = model.list_at(&key, &position(&half(&ends))).expect("a position with the key's partition");
    let read = |view, key, wanted, status, code: &str| Read {
        view,
        key,
        wanted,
        invoked: 0,
        completed: 1,
        status,
        code: code.into(),
        position: String::new(),
        length: 0,
        chain: String::new(),
    };
    let list = Read {
        position: half(&ends),
        length: row.length,
        chain: row.chain,
        ..read(View::Chains, key.clone(), format!("{TOPIC}/0@1..{}", ends[&0] / 4), 200, "")
    };
    let (lane, (partition, grown)) = model.lane_growth.iter().min_by_key(|(lane, _)| *lane).expect("lanes");
    let row = list_below(grown, lanes[partition] / 4);
    let queued = Read {
        position: half(&lanes),
        length: row.length,
        chain: row.chain,
        ..read(View::Lanes, lane.clone(), String::new(), 200, "")
    };
    let (at, offset) = model.may_wait.first().expect("some wait");
    let waits = read(View::Lanes, lane.clone(), format!("{TOPIC}/{at}@{}", offset + 1), 409, "MP6020");
    let (_, at, offset) =
        model.tables.dead_letters.keys().find(|(consumer, ..)| consumer == "chains").expect("conflicts");
    let dead = read(View::Chains, key, format!("{TOPIC}/{at}@{}", offset + 1), 409, "MP6010");
    vec![list, queued, waits, dead]
}

/// Each fence: made, claimed, moved in two steps, claimed by another, moved to its end.
fn steps(log: &Log) -> Vec<Step> {
    let mut steps = Vec::new();
    let ends = |projection| match projection {
        "accounts" | "amounts" => tables::ends(&log.money),
        "credits" => tables::ends(&log.credits),
        "lanes" => tables::ends(&log.lanes),
        _ => tables::ends(&log.appends),
    };
    for projection in CONSUMERS {
        for (partition, end) in ends(projection) {
            let mut step = |epoch: u128, from, to| {
                let owner = (epoch > 0).then(|| Uuid::from_u128(epoch));
                let (projection, topic, epoch) = (projection.to_owned(), TOPIC.to_owned(), epoch as i64);
                let by = owner.filter(|_| to > from).map(|owner| (owner, epoch));
                let (version, live) = (1, true);
                steps.push(Step { projection, topic, partition, epoch, owner, from, to, by, version, live });
            };
            step(0, 0, 0);
            step(1, 0, 0);
            step(1, 0, end / 3);
            step(1, end / 3, end / 2);
            step(2, end / 2, end / 2);
            step(2, end / 2, end);
        }
    }
    steps
}

impl World {
    /// A record under an id that stands for another one.
    pub fn conflict(&self) -> usize {
        let altered = |placed: &Placed<Append>| placed.value.n >= values::ALTERED;
        self.log.appends.iter().position(altered).expect("conflicts")
    }

    /// The second of two records that say the same under one id.
    pub fn repeat(&self) -> usize {
        let appends = &self.log.appends;
        let known = |at: usize| appends[..at].iter().any(|placed| placed.value == appends[at].value);
        (0..appends.len()).find(|at| known(*at)).expect("repeats")
    }

    /// The lanes as they would be had something else been decided.
    pub fn decided_otherwise(&mut self, change: impl FnOnce(&mut Decided)) {
        let mut verdicts = self.log.verdicts.clone();
        change(verdicts.values_mut().next().expect("verdicts"));
        self.actual.tables.lanes = Model::fold(&self.log, &verdicts).tables.lanes;
    }

    /// Whose decision the first verdict is.
    pub fn decision(&mut self) -> &mut Decision {
        let by = &self.log.verdicts.values().next().expect("verdicts").by;
        self.decisions.iter_mut().find(|decision| decision.by == *by).expect("it was made")
    }
}
