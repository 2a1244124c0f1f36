//! The judge of the small Millpond on trial: a world in which all is right or excused, and worlds with one thing wrong.

use std::time::{Duration, Instant};

use super::judge::{Excused, Rows, compare, expected};
use super::writer::{self, Sent};
use crate::checker::log::{Note, Placed};
use crate::workload::history::Outcome;

/// Notes of a world, in requests of twelve, on two partitions.
const NOTES: i64 = 120;
const REQUEST: i64 = 12;

struct World {
    log: Vec<Placed<Note>>,
    sent: Vec<Sent>,
    rows: Rows,
    excused: Excused,
}

/// What is done to a world, and whether it has to be found.
type Case = (&'static str, bool, fn(&mut World));

const CASES: &[Case] = &[
    ("nothing_wrong", false, |_| {}),
    ("acknowledged_note_not_in_the_log", true, |world| {
        let note = world.log.remove(3).value.n;
        world.rows.remove(&note);
    }),
    ("note_that_the_brokers_lost", false, |world| {
        let note = world.log.remove(3).value.n;
        world.rows.remove(&note);
        world.excused.lost = Some(Box::new(|sent| sent.first == 1));
    }),
    ("note_that_was_lost_in_silence", true, |world| {
        // The table still has it: nobody noticed.
        world.log.remove(3);
        world.excused.lost = Some(Box::new(|sent| sent.first == 1));
    }),
    ("refused_note_in_the_log", true, |world| world.sent[2].outcome = Outcome::Fail),
    ("note_that_nobody_sent", true, |world| drop(world.sent.pop())),
    ("note_of_another_key", true, |world| world.log[5].value.key = "another".into()),
    ("note_applied_twice", true, |world| world.rows.get_mut(&7).expect("a row").0 = 2),
    ("note_not_applied", true, |world| drop(world.rows.remove(&7))),
    ("note_skipped_by_an_operator", false, |world| {
        let at = place(world, 7);
        world.rows.remove(&7);
        world.excused.skipped.insert(at.0, (at.1, at.1 + 1));
    }),
    ("note_skipped_by_nobody", true, |world| {
        let at = place(world, 7);
        world.rows.remove(&7);
        world.excused.skipped.insert(at.0, (at.1 + 1, at.1 + 2));
    }),
    ("note_applied_and_then_removed_from_the_log", false, |world| {
        let index = world.log.iter().position(|placed| placed.value.n == 7).expect("a note");
        let removed = world.log.remove(index);
        world.excused.removed.push(removed);
    }),
    ("new_field_lost", true, |world| {
        world.log[5].value.extra = Some(writer::extra(world.log[5].value.n));
    }),
];

/// Each case with what is wrong about the judge, if anything.
pub fn run() -> Vec<(String, Option<String>)> {
    let judged = |(name, is_wrong, change): &Case| {
        let mut world = world();
        change(&mut world);
        let found = compare(&world.log, &world.sent, &world.rows, true, &world.excused);
        let mistaken = found.is_empty() == *is_wrong;
        (format!("judge_beside_of_{name}"), mistaken.then(|| format!("it has found {found:?}")))
    };
    CASES.iter().map(judged).collect()
}

fn place(world: &World, n: i64) -> (i32, i64) {
    let found = world.log.iter().find(|placed| placed.value.n == n).expect("a note");
    (found.partition, found.offset)
}

fn world() -> World {
    let note = |n: i64| Placed {
        partition: i32::from(n % 2 == 1),
        offset: (n - 1) / 2,
        event_id: n.to_string(),
        fingerprint: None,
        timestamp: 0,
        value: Note { key: writer::key(n), n, extra: None },
    };
    let log: Vec<_> = (1..=NOTES).map(note).collect();
    let begun = Instant::now();
    let request = |number: i64| Sent {
        first: number * REQUEST + 1,
        count: REQUEST,
        outcome: Outcome::Ok,
        invoked: begun + Duration::from_millis(number.unsigned_abs()),
        position: String::new(),
        newer: false,
    };
    let sent = (0..NOTES / REQUEST).map(request).collect();
    let excused = Excused::default();
    let rows = expected(&log, &excused, true);
    World { log, sent, rows, excused }
}
