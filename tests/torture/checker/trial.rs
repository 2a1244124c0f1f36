//! The judge on trial: worlds with one thing wrong, each of which it has to condemn, and one without.

use uuid::Uuid;

use super::actual::Step;
use super::log::{Credit, DeadFrom, Placed};
use super::{Actual, Case, Log, Model, judge};
use crate::values;
use crate::workload::history::{Kind, Outcome, Read, Request};

const SEED: u64 = 11;
const VALUES: i64 = 6000;
const PARTITIONS: i32 = 2;
const TOPIC: &str = "appends";

/// A small world, in which everything is right at first.
struct World {
    requests: Vec<Request>,
    reads: Vec<Read>,
    log: Log,
    actual: Actual,
    bank: Vec<String>,
}

/// What is wrong, how, and the check that has to find it.
type Wrong = (&'static str, u8, fn(&mut World));

const WRONG: &[Wrong] = &[
    ("acknowledged_value_not_in_the_log", 1, |world| {
        let last = world.log.appends.pop().expect("values");
        world.requests.retain(|request| request.first <= last.value.n);
    }),
    ("value_twice_in_the_log", 2, |world| {
        let mut again = world.log.appends[0].clone();
        again.offset = end(world, again.partition);
        world.log.appends.push(again);
    }),
    ("refused_value_in_the_log", 3, |world| world.requests[0].outcome = Outcome::Fail),
    ("value_that_nobody_sent", 3, |world| world.log.appends[5].value.n = VALUES + 77),
    ("value_changed_on_its_way", 3, |world| world.log.appends[5].value.poison ^= 1),
    ("two_values_of_a_key_exchanged", 4, |world| {
        let (a, b) = pair_of_a_key(world);
        let first = world.log.appends[a].value.clone();
        world.log.appends[a].value = std::mem::replace(&mut world.log.appends[b].value, first);
    }),
    ("row_lost", 5, |world| drop(world.actual.tables.appends.pop_last())),
    ("value_applied_twice", 5, |world| {
        let mut row = world.actual.tables.appends.first_entry().expect("rows");
        row.get_mut().times = 2;
    }),
    ("list_in_another_order", 5, |world| {
        let mut row = world.actual.tables.chains.first_entry().expect("rows");
        row.get_mut().chain.replace_range(..1, "x");
    }),
    ("row_out_of_nothing", 5, |world| {
        let row = world.actual.tables.accounts.first_key_value().expect("rows").1.clone();
        world.actual.tables.accounts.insert("nobody".into(), row);
    }),
    ("refusal_forgotten", 5, |world| {
        world.actual.tables.refusals.pop_first();
    }),
    ("read_of_a_torn_list", 6, |world| world.reads[0].length += 1),
    ("read_before_its_position", 7, |world| world.reads[0].wanted = format!("{TOPIC}/0@{}", VALUES * 2)),
    ("money_made", 8, |world| {
        world.actual.tables.credits.first_entry().expect("rows").get_mut().amount += 1;
    }),
    ("snapshot_with_a_credit_before_its_debit", 8, |world| world.bank.push("more credited than debited".into())),
    ("offset_stepped_over", 9, |world| drop(world.actual.steps.remove(2))),
    ("batch_applied_twice", 9, |world| {
        let again = world.actual.steps[2].clone();
        world.actual.steps.insert(3, again);
    }),
    ("epoch_gone_back", 9, |world| world.actual.steps[3].epoch = 0),
    ("fence_moved_by_another_owner", 9, |world| world.actual.steps[3].owner = Some(Uuid::from_u128(99))),
    ("fence_behind_the_log", 9, |world| drop(world.actual.steps.pop())),
    ("event_never_published", 10, |world| drop(world.log.credits.pop())),
    ("event_under_two_ids", 10, |world| {
        let mut again = world.log.credits[0].clone();
        again.event_id = "another".into();
        world.log.credits.push(again);
    }),
    ("events_of_a_source_exchanged", 10, |world| {
        let first = world.log.credits[0].clone();
        let second = world.log.credits[1].clone();
        world.log.credits[0] = Placed { offset: first.offset, ..second.clone() };
        world.log.credits[1] = Placed { offset: second.offset, ..first };
    }),
    ("dead_letter_of_a_healthy_record", 11, |world| {
        world.actual.tables.dead_letters.insert(("appends".to_owned(), 0, 0));
    }),
    ("dead_letter_without_a_mirror", 11, |world| drop(world.log.dead.pop())),
];

/// Tries the judge; for each trial its name, and what went wrong with it.
pub fn run() -> Vec<(String, Option<String>)> {
    let mut results = Vec::new();
    let found = checks(&world());
    let wrong = (!found.is_empty()).then(|| format!("a world in which all is right is condemned by {found:?}"));
    results.push(("judge_of_a_world_without_fault_finds_nothing".to_owned(), wrong));
    for (name, check, spoil) in WRONG {
        let mut world = world();
        spoil(&mut world);
        let found = checks(&world);
        let wrong = (!found.contains(check)).then(|| format!("check {check} did not find it; found by {found:?}"));
        results.push((format!("judge_of_{name}_finds_it"), wrong));
    }
    results
}

fn checks(world: &World) -> Vec<u8> {
    let World { requests, reads, log, actual, bank } = world;
    let verdict = judge(&Case { seed: SEED, requests, reads, log, actual, bank });
    verdict.violations.iter().map(|violation| violation.check).collect()
}

fn world() -> World {
    let mut log = Log::default();
    let mut ends = [0; PARTITIONS as usize];
    for n in 1..=VALUES {
        let value = values::append(SEED, 0, n);
        let partition = i32::from(value.key.bytes().map(u32::from).sum::<u32>() % 2 == 1);
        let offset = ends[partition as usize];
        ends[partition as usize] += 1;
        log.appends.push(Placed { partition, offset, event_id: format!("append {n}"), value });
    }
    log.appends.sort_by_key(|placed| (placed.partition, placed.offset));
    for n in 1..=400 {
        let value = values::money(SEED, 100, n);
        log.money.push(Placed { partition: 0, offset: n - 1, event_id: format!("money {n}"), value });
    }
    let emitted = Model::fold(&log).emitted;
    for (offset, emitted) in (0..).zip(&emitted) {
        let Credit { account, transfer_id, amount } = emitted.credit.clone();
        let value = Credit { account, transfer_id: transfer_id.clone(), amount };
        log.credits.push(Placed { partition: 0, offset, event_id: transfer_id, value });
    }
    let model = Model::fold(&log);
    for (at, (consumer, partition, offset)) in (0..).zip(&model.tables.dead_letters) {
        let consumer = consumer.clone();
        let value = DeadFrom { consumer, topic: TOPIC.into(), partition: *partition, offset: *offset };
        log.dead.push(Placed { partition: 0, offset: at, event_id: String::new(), value });
    }
    let position = format!("{TOPIC}/0@{},{TOPIC}/1@{}", ends[0] / 2, ends[1] / 2);
    let key = log.appends[0].value.key.clone();
    let row = model.list_at(&key, &super::position(&position)).expect("a position with the key's partition");
    let reads = vec![Read {
        key,
        wanted: format!("{TOPIC}/0@1..{}", ends[0] / 2),
        invoked: 0,
        completed: 1,
        status: 200,
        position,
        length: row.length,
        chain: row.chain,
    }];
    let steps = steps(&log);
    let actual = Actual { tables: model.tables, steps, ..Actual::default() };
    World { requests: requests(), reads, log, actual, bank: Vec::new() }
}

fn requests() -> Vec<Request> {
    let request = |kind, client, first, count: i64| Request {
        kind,
        client,
        first,
        count: usize::try_from(count).expect("few"),
        outcome: Outcome::Ok,
        others: Vec::new(),
        invoked: u64::try_from(first).expect("positive") * 1000,
        completed: u64::try_from(first).expect("positive") * 1000 + 500,
        answer: "202".into(),
        position: None,
    };
    let mut requests: Vec<Request> = (0..VALUES / 100).map(|at| request(Kind::Append, 0, at * 100 + 1, 100)).collect();
    requests.push(request(Kind::Money, 100, 1, 400));
    requests
}

/// Each fence: made, claimed, moved in two steps, claimed by another, moved to its end.
fn steps(log: &Log) -> Vec<Step> {
    let mut steps = Vec::new();
    let ends = |projection| match projection {
        "accounts" => super::tables::ends(&log.money),
        "credits" => super::tables::ends(&log.credits),
        _ => super::tables::ends(&log.appends),
    };
    for projection in ["appends", "chains", "accounts", "credits"] {
        for (partition, end) in ends(projection) {
            let mut step = |epoch: u128, from, to| {
                let owner = (epoch > 0).then(|| Uuid::from_u128(epoch));
                let (projection, topic, epoch) = (projection.to_owned(), TOPIC.to_owned(), epoch as i64);
                steps.push(Step { projection, topic, partition, epoch, owner, from, to });
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

/// Places in the log of two values of one key.
fn pair_of_a_key(world: &World) -> (usize, usize) {
    let appends = &world.log.appends;
    let pair = (0..appends.len()).find_map(|a| {
        let of_its_key = |b: &usize| appends[*b].value.key == appends[a].value.key;
        Some((a, (a + 1..appends.len()).find(of_its_key)?))
    });
    pair.expect("two values of one key")
}

fn end(world: &World, partition: i32) -> i64 {
    super::tables::ends(&world.log.appends)[&partition]
}
