//! The rule of markers, over made-up histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

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

fn in_log(record: &MarkerRecord) -> Record {
    let (key, payload) = (Some(record.key.clone()), record.payload.clone());
    Record { topic: TOPIC.into(), partition: 0, offset: 0, timestamp: None, key, payload, headers: Vec::new() }
}

/// Sends the rows that have not left in one transaction, through the log and back; returns those.
fn send(markers: &mut Markers, rows: &[OutboxRow]) -> Vec<u128> {
    let leave: Vec<(&OutboxRow, i32)> = rows.iter().filter(|row| !markers.has(row)).map(|row| (row, 0)).collect();
    let mut step = Step::default();
    markers.step(&leave, &mut step);
    let mut read = markers.clone();
    for record in step.records() {
        apply(&mut read.of, read.installation, &in_log(&record));
    }
    let ids = leave.iter().map(|(row, _)| row.event_id.as_u128()).collect();
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
fn rows_of_several_versions_in_one_transaction_have_a_marker_each() {
    let mut markers = Markers::new(Uuid::from_u128(1));
    send(&mut markers, &[row(1, 7, 1, 5)]);
    let (old, new) = (row(1, 7, 2, 6), row(3, 9, 1, 7));
    send(&mut markers, &[old.clone(), new.clone()]);
    assert!(markers.has(&old) && markers.has(&new));
}

#[test]
fn records_of_others_are_passed_over() {
    let mut markers = Markers::new(Uuid::from_u128(1));
    let mut other = Step::default();
    Markers::new(Uuid::from_u128(2)).step(&[(&row(1, 7, 1, 5), 0)], &mut other);
    for record in other.records().into_iter().chain([greeting(Uuid::from_u128(1), "now")]) {
        apply(&mut markers.of, markers.installation, &in_log(&record));
    }
    let strange = MarkerRecord { key: b"\xff".to_vec(), payload: None };
    apply(&mut markers.of, markers.installation, &in_log(&strange));
    apply(&mut markers.of, markers.installation, &Record { key: None, ..in_log(&strange) });
    assert!(markers.of.is_empty());
}

/// A marker as earlier releases have written it.
fn of_earlier_release(place: &Place, out_seq: i64, ids: &[Uuid]) -> Record {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
    let ids = BASE64.encode(bytes);
    let value = serde_json::json!({ "made": 7, "out_seq": out_seq, "event_id": Uuid::nil(), "ids": ids });
    in_log(&MarkerRecord { key: json(place), payload: Some(json(&value)) })
}

/// Takes up all these records as attempts, and those that are committed.
fn read(markers: &mut Markers, records: &[(Record, bool)]) {
    let mut attempted = HashMap::new();
    for (record, is_committed) in records {
        apply(&mut attempted, markers.installation, record);
        if *is_committed {
            apply(&mut markers.of, markers.installation, record);
        }
    }
    markers.believe(attempted);
}

#[test]
fn marker_of_an_earlier_release_is_believed_where_it_is_committed() {
    let mut markers = Markers::new(Uuid::from_u128(1));
    let (first, second) = (row(1, 7, 1, 5), row(1, 7, 2, 6));
    let place = markers.place(&first);
    let committed = of_earlier_release(&place, 1, &[first.event_id]);
    let aborted = of_earlier_release(&place, 2, &[first.event_id, second.event_id]);
    read(&mut markers, &[(committed, true), (aborted, false)]);
    assert!(markers.has(&first) && !markers.has(&second));
    assert!(markers.doubts([&first, &second]).is_empty());
}

#[test]
fn what_an_attempt_has_sent_is_looked_for_also_after_others_have_left() {
    let rows = [row(1, 7, 1, 5), row(1, 7, 2, 6)];
    let mut step = Step::default();
    Markers::new(Uuid::from_u128(1)).step(&[(&rows[0], 0), (&rows[1], 0)], &mut step);
    let mut markers = Markers::new(Uuid::from_u128(1));
    read(&mut markers, &[(in_log(&step.records()[0]), false)]);
    // Postgres went back, and something else comes first.
    assert_eq!(send(&mut markers, &[row(1, 7, 1, 99)]), [99]);
    let doubts = markers.doubts(&rows);
    assert_eq!((doubts.len(), doubts[0].ids.len(), doubts[0].is_committed), (1, 2, false));
    assert!(markers.settle(&doubts[0], &HashSet::from([rows[0].event_id])));
    assert!(markers.has(&row(1, 7, 1, 99)), "what left since is not forgotten");
}

#[test]
fn targets_are_the_partitions_written_to_and_where_they_stood() {
    let rows = [row(1, 7, 1, 5), row(1, 7, 2, 6), row(1, 7, 3, 7)];
    let mut step = Step::default();
    Markers::new(Uuid::from_u128(1)).step(&[(&rows[0], 4), (&rows[1], 2), (&rows[2], 4)], &mut step);
    step.begin_at(|topic, partition| if topic == "e" { 100 + i64::from(partition) } else { 0 });
    let target = |partition, from| Target { topic: "e".into(), partition, from };
    assert_eq!(step.set[0].1.targets, [target(4, 104), target(2, 102)]);
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

/// A relay that begins anew, sees that many rows, sends some of them, and does not see the outcome; and where Kafka commits
/// it.
#[derive(Debug, Clone)]
struct Torn {
    seen: u8,
    rows: u8,
    committed: [bool; 3],
    marker: bool,
}

fn torn() -> impl Strategy<Value = Torn> {
    let committed = prop_oneof![Just([true; 3]), Just([false; 3]), any::<[bool; 3]>()];
    (1..30_u8, 0..20_u8, committed, any::<bool>()).prop_map(|(seen, rows, committed, marker)| Torn {
        seen,
        rows,
        committed,
        marker,
    })
}

/// Kafka, as far as it is committed: ids of events, and all markers, committed or not.
#[derive(Default)]
struct Topics {
    events: Vec<Uuid>,
    markers: Vec<(Record, bool)>,
}

impl Topics {
    /// A relay that begins anew removes what has left of these rows.
    fn begin_anew(&self, waiting: &mut Vec<OutboxRow>, seen: usize) -> Markers {
        let mut markers = Markers::new(Uuid::from_u128(1));
        read(&mut markers, &self.markers);
        let rows: Vec<OutboxRow> = waiting.iter().take(seen).cloned().collect();
        for doubt in markers.doubts(&rows) {
            let found: HashSet<Uuid> = self.events.iter().filter(|id| doubt.ids.contains(id)).copied().collect();
            waiting.retain(|row| !found.contains(&row.event_id));
            markers.settle(&doubt, &found);
        }
        waiting.retain(|row| rows.iter().all(|seen| seen.out_seq != row.out_seq) || !markers.has(row));
        markers
    }
}

proptest! {
    #[test]
    fn every_event_leaves_once_however_kafka_tears_transactions(history in prop::collection::vec(torn(), 1..12)) {
        let mut waiting: Vec<OutboxRow> = (1..=60).map(|n| row(1, 7, n, n as u128)).collect();
        let mut topics = Topics::default();
        for Torn { seen, rows, committed, marker } in history {
            let seen_of: Vec<i64> = waiting.iter().take(usize::from(seen)).map(|row| row.out_seq).collect();
            let markers = topics.begin_anew(&mut waiting, seen_of.len());
            let leave = waiting.iter().filter(|row| seen_of.contains(&row.out_seq)).take(usize::from(rows));
            let sent: Vec<(&OutboxRow, i32)> = leave.map(|row| (row, (row.out_seq % 3) as i32)).collect();
            let mut step = Step::default();
            markers.step(&sent, &mut step);
            topics.markers.extend(step.records().iter().map(|record| (in_log(record), marker)));
            let is_committed = |(_, at): &&(&OutboxRow, i32)| committed[*at as usize];
            topics.events.extend(sent.iter().filter(is_committed).map(|(row, _)| row.event_id));
        }
        let all = waiting.len();
        topics.begin_anew(&mut waiting, all);
        let mut events = topics.events;
        events.extend(waiting.iter().map(|row| row.event_id));
        events.sort_unstable();
        prop_assert_eq!(events, (1..=60).map(Uuid::from_u128).collect::<Vec<_>>());
    }

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
