//! The rule of markers, over made-up histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::store::outbox::Lane;

fn row(version: i32, made: i64, out_seq: i64, event: u128) -> OutboxRow {
    OutboxRow {
        lane: Lane { projection: "p".into(), topic: "t".into(), partition: 3 },
        version,
        made,
        out_seq,
        event_id: Uuid::from_u128(event),
        target_topic: "e".into(),
        key: None,
        payload: None,
        headers: serde_json::json!([]),
    }
}

/// Sends the rows that have not left in one transaction, through the log and back; returns those.
fn send(markers: &mut Markers, rows: &[OutboxRow]) -> Vec<u128> {
    let leave: Vec<&OutboxRow> = rows.iter().filter(|row| !markers.has(row)).collect();
    let mut step = Step::default();
    markers.step(&leave, &mut step);
    let mut read = markers.clone();
    for record in step.records() {
        apply(&mut read.of, read.installation, Some(&record.key), record.payload.as_deref());
    }
    let ids = leave.iter().map(|row| row.event_id.as_u128()).collect();
    markers.take(step);
    assert_eq!(read.of, markers.of, "what is read is what was taken up");
    ids
}

#[test]
fn row_that_was_not_removed_after_its_commit_does_not_leave_again() {
    let mut markers = Markers::new(Uuid::from_u128(1));
    let rows: Vec<OutboxRow> = (1..=500).map(|n| row(1, 7, n, n as u128)).collect();
    assert_eq!(send(&mut markers, &rows).len(), 500);
    assert!(rows.iter().all(|row| markers.has(row)), "more than are kept, but of one transaction");
    assert_eq!(send(&mut markers, &[row(1, 7, 501, 501)]), [501]);
}

#[test]
fn other_event_under_a_number_that_has_left_leaves() {
    let mut markers = Markers::new(Uuid::from_u128(1));
    send(&mut markers, &(1..=10).map(|n| row(1, 7, n, n as u128)).collect::<Vec<_>>());
    // Postgres went back to 5, and what came then came in another order and with another event in its midst.
    let again =
        [row(1, 7, 6, 7), row(1, 7, 7, 99), row(1, 7, 8, 6), row(1, 7, 9, 8), row(1, 7, 10, 9), row(1, 7, 11, 10)];
    // The last one's number is above: for that it leaves again, once.
    assert_eq!(send(&mut markers, &again), [99, 10]);
    assert!(again.iter().all(|row| markers.has(row)));
    assert_eq!(send(&mut markers, &[row(1, 7, 12, 12)]), [12]);
}

#[test]
fn version_that_is_another_begins_anew_whatever_its_number() {
    let mut markers = Markers::new(Uuid::from_u128(1));
    for (version, made) in [(1, 7), (2, 8), (1, 9)] {
        assert_eq!(
            send(&mut markers, &[row(version, made, 1, 5), row(version, made, 2, 6)]),
            [5, 6],
            "{version} {made}"
        );
    }
    assert!(markers.has(&row(1, 9, 2, 6)) && !markers.has(&row(1, 7, 2, 6)) && markers.has(&row(2, 8, 1, 5)));
}

#[test]
fn markers_of_versions_before_the_last_are_forgotten() {
    let mut markers = Markers::new(Uuid::from_u128(1));
    for version in 1..=4 {
        send(&mut markers, &[row(version, 7, 1, 5)]);
    }
    let mut versions: Vec<i32> = markers.of.keys().map(|place| place.version).collect();
    versions.sort_unstable();
    assert_eq!(versions, [3, 4]);
}

#[test]
fn records_of_others_are_passed_over() {
    let mut markers = Markers::new(Uuid::from_u128(1));
    let mut other = Step::default();
    Markers::new(Uuid::from_u128(2)).step(&[&row(1, 7, 1, 5)], &mut other);
    for record in other.records().into_iter().chain([greeting(Uuid::from_u128(1), "now")]) {
        apply(&mut markers.of, markers.installation, Some(&record.key), record.payload.as_deref());
    }
    apply(&mut markers.of, markers.installation, None, Some(b"{}"));
    apply(&mut markers.of, markers.installation, Some(b"\xff"), None);
    assert!(markers.of.is_empty());
}

/// What happens to an outbox.
#[derive(Debug, Clone)]
enum Event {
    /// So many events are committed.
    Commit(u8),
    /// The relay sends at most so many and removes them; or it dies between the two.
    Send(u8, bool),
    /// Postgres loses so many of the last commits and removals.
    Rewind(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..20_u8).prop_map(Event::Commit),
        4 => (1..30_u8, any::<bool>()).prop_map(|(most, removed)| Event::Send(most, removed)),
        1 => (0..12_u8).prop_map(Event::Rewind),
    ]
}

/// Postgres: how many events were committed, and which wait.
type State = (i64, BTreeMap<i64, u128>);

/// Plays a history. The events of a source are always the same ones in the same order. Returns how often each left.
fn play(events: &[Event]) -> (BTreeMap<u128, usize>, i64, bool) {
    let mut markers = Markers::new(Uuid::from_u128(1));
    let mut states: Vec<State> = vec![(0, BTreeMap::new())];
    let mut left: BTreeMap<u128, usize> = BTreeMap::new();
    let (mut order, mut in_order) = (0, true);
    let flush = vec![Event::Send(u8::MAX, true); 6];
    for event in events.iter().chain(&flush) {
        let (count, waiting) = states.last().unwrap().clone();
        match event {
            Event::Commit(more) => {
                let mut waiting = waiting;
                let now = count + i64::from(*more);
                waiting.extend((count + 1..=now).map(|n| (n, n as u128)));
                states.push((now, waiting));
            }
            Event::Send(most, removed) => {
                let rows: Vec<OutboxRow> =
                    waiting.iter().take(usize::from(*most)).map(|(n, id)| row(1, 7, *n, *id)).collect();
                for id in send(&mut markers, &rows) {
                    let times = left.entry(id).or_default();
                    *times += 1;
                    // First occurrences stand in their order.
                    in_order &= *times > 1 || id > order;
                    order = order.max(id);
                }
                if *removed {
                    let mut waiting = waiting;
                    waiting.retain(|number, _| rows.iter().all(|row| row.out_seq != *number));
                    states.push((count, waiting));
                }
            }
            Event::Rewind(lost) => {
                states.truncate(states.len().saturating_sub(usize::from(*lost)).max(1));
            }
        }
    }
    let count = states.last().unwrap().0;
    (left, count, in_order)
}

proptest! {
    #[test]
    fn every_event_leaves_once_whenever_the_relay_dies(events in prop::collection::vec(event(), 0..60)) {
        let events: Vec<Event> = events.into_iter().filter(|event| !matches!(event, Event::Rewind(_))).collect();
        let (left, count, in_order) = play(&events);
        prop_assert!(in_order);
        let ids: BTreeSet<u128> = left.keys().copied().collect();
        prop_assert_eq!(ids, (1..=count as u128).collect::<BTreeSet<_>>());
        prop_assert!(left.values().all(|times| *times == 1), "{:?}", left);
    }

    #[test]
    fn no_event_is_lost_and_none_repeated_within_what_markers_keep_when_postgres_goes_back(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let (left, count, in_order) = play(&events);
        prop_assert!(in_order);
        for id in 1..=count as u128 {
            prop_assert!(left.contains_key(&id), "{} is lost", id);
        }
        // With at most 128 events in all, every id is kept.
        let all = left.keys().max().copied().unwrap_or_default();
        if all <= KEPT as u128 {
            prop_assert!(left.values().all(|times| *times == 1), "{:?}", left);
        }
    }
}
