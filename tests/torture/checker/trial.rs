//! The judge on trial: worlds with one thing wrong, each of which it has to condemn, and one without.

mod world;

use uuid::Uuid;

use self::world::{World, world};
use super::actual::Step;
use super::log::{Credit, Decided, Placed};
use super::model::REFUSED;
use super::{Case, judge};
use crate::workload::history::{Choice, Outcome};

const SEED: u64 = 11;
const VALUES: i64 = 6000;
const PARTITIONS: i32 = 2;
const TOPIC: &str = "appends";

/// What is wrong, how, and the check that has to find it.
type Wrong = (&'static str, u8, fn(&mut World));

const WRONG: &[Wrong] = &[
    ("acknowledged_value_not_in_the_log", 1, |world| {
        world.log.appends.remove(7);
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
    ("event_committed_twice", 10, |world| {
        let again = repeat_an_event(world);
        world.log.credits.push(again);
    }),
    ("event_repeated_as_another_after_postgres_went_back", 10, |world| {
        world.went_back = true;
        let mut again = repeat_an_event(world);
        again.value.amount += 1;
        world.log.credits.push(again);
    }),
    ("events_of_a_source_exchanged", 10, |world| {
        let first = world.log.credits[0].clone();
        let second = world.log.credits[1].clone();
        world.log.credits[0] = Placed { offset: first.offset, ..second.clone() };
        world.log.credits[1] = Placed { offset: second.offset, ..first };
    }),
    ("dead_letter_of_a_healthy_record", 11, |world| {
        world.actual.tables.dead_letters.insert(("appends".into(), 0, 0), REFUSED.into());
    }),
    ("dead_letter_without_a_mirror", 11, |world| drop(world.log.dead.pop())),
    ("dead_letter_of_another_class", 11, |world| {
        world.actual.tables.dead_letters.first_entry().expect("dead letters").insert("decode".into());
    }),
    ("conflict_that_is_no_dead_letter", 11, |world| drop(world.actual.tables.dead_letters.pop_first())),
    ("record_that_nobody_accounts_for", 11, |world| {
        world.actual.tables.chains.first_entry().expect("rows").get_mut().length -= 1;
    }),
    ("acknowledged_repeat_not_in_the_log", 1, |world| drop(world.log.appends.remove(world.repeat()))),
    ("value_more_often_in_the_log_than_it_was_sent", 2, |world| {
        let mut again = world.log.appends[world.repeat()].clone();
        again.offset = end(world, again.partition);
        world.log.appends.push(again);
    }),
    ("record_under_the_id_of_another", 3, |world| {
        let at = world.repeat();
        world.log.appends[at].event_id = "id/0".into();
        world.log.appends[at + 1].event_id = "id/0".into();
    }),
    ("repeat_that_took_effect", 12, |world| {
        let value = &world.log.appends[world.repeat()].value;
        world.actual.tables.appends.get_mut(&(value.client, value.n)).expect("it was applied").times += 1;
    }),
    ("conflict_that_took_effect", 5, |world| {
        let value = &world.log.appends[world.conflict()].value;
        let row = world.actual.tables.appends.first_key_value().expect("rows").1.clone();
        world.actual.tables.appends.insert((value.client, value.n), row);
    }),
    ("one_fingerprint_of_two_records", 12, |world| {
        let at = world.conflict();
        let id = world.log.appends[at].event_id.clone();
        let first = world.log.appends.iter().find(|placed| placed.event_id == id).expect("it stands for another");
        world.log.appends[at].fingerprint = first.fingerprint.clone();
    }),
    ("two_fingerprints_of_one_record", 12, |world| {
        let at = world.repeat();
        world.log.appends[at].fingerprint = Some("another".into());
    }),
    ("lane_in_another_order", 5, |world| {
        let mut row = world.actual.tables.lanes.first_entry().expect("rows");
        row.get_mut().0.chain.replace_range(..1, "x");
    }),
    ("edit_without_effect", 5, |world| {
        world.decided_otherwise(|decided| decided.value.as_mut().expect("an edit").n += 1);
    }),
    ("discard_of_what_was_edited", 5, |world| world.decided_otherwise(|decided| decided.what = "discard".into())),
    ("record_applied_before_what_it_waits_for", 15, |world| world.parked.push("lane-00 has applied 7".into())),
    ("key_left_parked", 15, |world| world.actual.parked.push("lane-00".into())),
    ("read_of_a_lane_with_what_waits", 6, |world| world.reads[1].length += 400),
    ("read_that_is_not_told_of_a_dead_letter", 15, |world| world.reads[0].wanted = world.reads[3].wanted.clone()),
    ("read_that_is_told_of_a_dead_letter_where_none_is", 15, |world| world.reads[3].wanted = format!("{TOPIC}/0@1")),
    ("read_that_is_told_to_wait_for_nothing", 15, |world| world.reads[2].wanted = format!("{TOPIC}/0@1")),
    ("verdict_that_is_not_in_the_topic", 16, |world| drop(world.log.verdicts.pop_last())),
    ("verdict_in_the_topic_alone", 16, |world| drop(world.actual.verdicts.pop_last())),
    ("verdict_that_is_another_one_in_the_topic", 16, |world| {
        world.log.verdicts.first_entry().expect("verdicts").get_mut().by = "op-0".into();
    }),
    ("verdict_of_nobody", 16, |world| world.decision().by = "op-x".into()),
    ("verdict_of_a_refused_decision", 16, |world| world.decision().outcome = Outcome::Fail),
    ("verdict_that_is_not_what_was_decided", 16, |world| world.decision().what = Choice::Discard),
    ("verdict_of_a_decision_that_was_made_anew", 16, |world| {
        let mut anew = world.decision().clone();
        (anew.by, anew.invoked) = ("op-y".into(), anew.completed + 1);
        world.decisions.push(anew);
    }),
    ("decision_that_nothing_came_of", 16, |world| {
        let mut other = world.decision().clone();
        other.record = Some((0, VALUES * 2));
        world.decisions.push(other);
    }),
    ("verdict_about_a_healthy_record", 16, |world| {
        let decided =
            Decided { what: "discard".into(), ..world.log.verdicts.values().next().expect("verdicts").clone() };
        for verdicts in [&mut world.log.verdicts, &mut world.actual.verdicts] {
            verdicts.insert(("appends".into(), 0, 0), decided.clone());
        }
    }),
];

/// Tries the judge; for each trial its name, and what went wrong with it.
pub fn run() -> Vec<(String, Option<String>)> {
    let mut results = Vec::new();
    let found = checks(&world());
    let wrong = (!found.is_empty()).then(|| format!("a world in which all is right is condemned by {found:?}"));
    results.push(("judge_of_a_world_without_fault_finds_nothing".to_owned(), wrong));
    let mut forgetful = world();
    forgetful.went_back = true;
    let again = repeat_an_event(&mut forgetful);
    forgetful.log.credits.push(again);
    let found = checks(&forgetful);
    let wrong = (!found.is_empty()).then(|| format!("it is condemned by {found:?}"));
    results.push(("judge_of_an_event_repeated_after_postgres_went_back_finds_nothing".to_owned(), wrong));
    for (name, check, spoil) in WRONG {
        let mut world = world();
        spoil(&mut world);
        let found = checks(&world);
        let wrong = (!found.contains(check)).then(|| format!("check {check} did not find it; found by {found:?}"));
        results.push((format!("judge_of_{name}_finds_it"), wrong));
    }
    results.extend(crate::side::trial::run());
    results
}

fn checks(world: &World) -> Vec<u8> {
    let World { requests, reads, log, actual, decisions, bank, parked, went_back } = world;
    let went_back = *went_back;
    let case = Case { seed: SEED, requests, reads, log, actual, decisions, bank, parked, went_back };
    let verdict = judge(&case);
    verdict.violations.iter().map(|violation| violation.check).collect()
}

/// An event once more, at the end of its topic; the fences know of it, so that only its repetition is wrong.
fn repeat_an_event(world: &mut World) -> Placed<Credit> {
    let mut again = world.log.credits[0].clone();
    again.offset = super::tables::ends(&world.log.credits)[&again.partition];
    let last = world.actual.steps.iter().rfind(|step| step.projection == "credits").expect("steps").clone();
    world.actual.steps.push(Step { from: last.to, to: last.to + 1, ..last });
    again
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
