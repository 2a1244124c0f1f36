//! Repeats: which records of a batch have taken effect before, by the ids that their clients gave them.
//!
//! Owns the decision, which is pure: it follows from the records of the partition in their order, and from nothing else, so
//! that it is the same however the log is cut into batches, after a crash, and in a version that reads the log again. Of
//! records without a fingerprint nothing is asked and nothing kept.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::Duration,
};

use super::{
    buffer::{Chunk, RawRecord},
    engine::Engine,
    prepare::Fault,
};
use crate::{
    domain::Fingerprint,
    planted::{self, Bug},
    store::{
        self,
        fence::Claim,
        seen::{self, Entry},
    },
};

/// Longest id that is remembered, in bytes. Those of ingest are far shorter; Postgres' indexes take no more than 2,704.
const MAX_ID_BYTES: usize = 1024;

/// What was decided about the records of a chunk, by their indexes in it.
#[derive(Debug, Default)]
pub struct Repeats {
    /// Those that have no effect: repeats, and conflicts.
    pub aside: BTreeSet<usize>,
    /// Those whose id stands for another record. They become dead letters, whatever the consumer says of errors: nothing
    /// could be mended, for the record that came first stands.
    conflicts: Vec<(usize, Fault)>,
    /// Those that repeat a record, and its offset.
    repeated: Vec<(usize, i64)>,
    /// Those whose ids are to be remembered, and how late it is in the log there.
    fresh: Vec<(usize, i64)>,
}

impl Repeats {
    /// Asks what is known of the ids in a chunk from index `first` on, where the claim stands, and decides.
    pub async fn find(engine: &Engine, claim: &Claim, chunk: &Chunk, first: usize) -> Result<Self, store::Error> {
        let asked = chunk.has_fingerprints && !planted::is(Bug::SeenSkipped);
        let Some(window) = engine.dedupe_window.filter(|_| asked) else { return Ok(Self::default()) };
        let mut ids: Vec<&str> =
            chunk.records[first..].iter().filter_map(|record| identity(chunk, record)).map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut lease = engine.sessions.batch().await?;
        let known = store::bounded(seen::known(&mut lease.connection, &engine.schema, claim, &ids)).await?;
        lease.give_back();
        let mut repeats = decide(chunk, first, window, claim.log_time, &known);
        for (index, fault) in &mut repeats.conflicts {
            fault.record_type = engine.preparer.record_type(chunk, &chunk.records[*index]);
        }
        Ok(repeats)
    }

    /// Dead letters among `range`.
    pub fn conflicts(&self, range: &Range<usize>) -> &[(usize, Fault)] {
        within(&self.conflicts, range)
    }

    /// Repeats among `range` that are no conflicts.
    pub fn count(&self, range: &Range<usize>) -> usize {
        self.aside.range(range.clone()).count() - self.conflicts(range).len()
    }

    /// Offsets of the repeats among `range`, each with that of the record that it repeats.
    pub fn first_met(&self, chunk: &Chunk, range: &Range<usize>) -> Vec<(i64, i64)> {
        within(&self.repeated, range).iter().map(|(index, first)| (chunk.records[*index].offset, *first)).collect()
    }

    /// What is to be remembered of `range`, by id: of one that occurs twice, the window apart, the second.
    pub fn entries<'a>(&self, chunk: &'a Chunk, range: &Range<usize>) -> BTreeMap<&'a str, Entry> {
        let entry = |(index, log_time): &(usize, i64)| {
            let record = &chunk.records[*index];
            let (id, fingerprint) = identity(chunk, record)?;
            Some((id, Entry { fingerprint, offset: record.offset, log_time: *log_time }))
        };
        within(&self.fresh, range).iter().filter_map(entry).collect()
    }
}

/// The part of a list by index that is of `range`.
fn within<'a, T>(list: &'a [(usize, T)], range: &Range<usize>) -> &'a [(usize, T)] {
    let place = |at: usize| list.partition_point(|(index, _)| *index < at);
    &list[place(range.start)..place(range.end)]
}

/// The id and the fingerprint of a record that has both. An id that no column could hold is none.
fn identity<'a>(chunk: &'a Chunk, record: &RawRecord) -> Option<(&'a str, Fingerprint)> {
    let fingerprint = record.fingerprint?;
    let id = std::str::from_utf8(chunk.slice(record.event_id.as_ref()?)).ok()?;
    let sound = !id.is_empty() && id.len() <= MAX_ID_BYTES && !id.contains('\0');
    sound.then_some((id, fingerprint))
}

/// Goes through the records from index `first` on, with `log_time` and what is `known` as of the record before it.
///
/// The time of the log is the greatest timestamp so far: timestamps may go back, as after a change of leader, and a
/// decision must not.
fn decide(
    chunk: &Chunk,
    first: usize,
    window: Duration,
    log_time: Option<i64>,
    known: &HashMap<String, Entry>,
) -> Repeats {
    let window = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
    let mut now = log_time.unwrap_or(i64::MIN);
    let (mut repeats, mut met) = (Repeats::default(), HashMap::<&str, Entry>::new());
    for (index, record) in chunk.records.iter().enumerate().skip(first) {
        now = now.max(record.timestamp);
        let Some((id, fingerprint)) = identity(chunk, record) else { continue };
        let before = met.get(id).or_else(|| known.get(id));
        let Some(before) = before.filter(|before| now.saturating_sub(before.log_time) <= window) else {
            met.insert(id, Entry { fingerprint, offset: record.offset, log_time: now });
            repeats.fresh.push((index, now));
            continue;
        };
        repeats.aside.insert(index);
        if before.fingerprint == fingerprint {
            repeats.repeated.push((index, before.offset));
        } else {
            repeats.conflicts.push((index, conflict(before.offset)));
        }
    }
    repeats
}

fn conflict(with: i64) -> Fault {
    Fault {
        class: "id_conflict",
        reason: format!(
            "its event id stands for another record, the one at offset {with} of this partition, which came first; what is new \
             has to be sent under an id of its own"
        ),
        record_type: None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        domain::{HEADER_EVENT_ID, HEADER_FINGERPRINT},
        kafka::subscription::Incoming,
    };

    const WINDOW: Duration = Duration::from_millis(50);

    /// A record: id, what it says, timestamp.
    type Sent = (Option<u8>, u8, i64);

    fn chunk(first: usize, records: &[Sent]) -> Chunk {
        let mut chunk = Chunk::default();
        for (offset, (id, says, timestamp)) in (first..).zip(records) {
            let id = id.map(|id| format!("id {id}"));
            let fingerprint = Fingerprint::from(u128::from(*says)).to_hex();
            let of_client = [
                id.as_ref().map(|id| (HEADER_EVENT_ID, Some(id.as_bytes()))),
                id.as_ref().map(|_| (HEADER_FINGERPRINT, Some(&fingerprint[..]))),
            ];
            let offset = i64::try_from(offset).unwrap();
            let mut headers = of_client.into_iter().flatten();
            let timestamp = *timestamp;
            chunk.push(Incoming { offset, timestamp, key: None, payload: Some(b"x"), headers: &mut headers });
        }
        chunk
    }

    /// What became of a record.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fate {
        Applied,
        Repeat,
        Conflict,
    }

    fn fates(repeats: &Repeats, records: usize) -> Vec<Fate> {
        let fate = |index: usize| match repeats.conflicts(&(index..index + 1)) {
            [_] => Fate::Conflict,
            _ if repeats.aside.contains(&index) => Fate::Repeat,
            _ => Fate::Applied,
        };
        (0..records).map(fate).collect()
    }

    /// Applies the records in batches of these sizes, as a worker does: what is remembered is read and written once a
    /// batch, and now and then what is too old is removed.
    fn in_batches(records: &[Sent], sizes: &[usize], purging: bool) -> Vec<Fate> {
        let (mut table, mut log_time, mut done) = (HashMap::new(), None, 0);
        let mut found = Vec::new();
        let mut sizes = sizes.iter().copied().chain(std::iter::repeat(records.len()));
        while done < records.len() {
            let batch = &records[done..(done + sizes.next().unwrap_or(1)).min(records.len())];
            let chunk = chunk(done, batch);
            let repeats = decide(&chunk, 0, WINDOW, log_time, &table);
            found.extend(fates(&repeats, batch.len()));
            table.extend(repeats.entries(&chunk, &(0..batch.len())).into_iter().map(|(id, e)| (id.to_owned(), e)));
            log_time = batch.iter().map(|record| record.2).max().max(log_time);
            if purging {
                table.retain(|_, entry| {
                    entry.log_time >= log_time.unwrap() - i64::try_from(WINDOW.as_millis()).unwrap()
                });
            }
            done += batch.len();
        }
        found
    }

    /// As it is told to people: against the last record of the id that was not set aside, by the time of the log.
    fn told(records: &[Sent]) -> Vec<Fate> {
        let mut found: Vec<Fate> = Vec::new();
        let log_time = |at: usize| records[..=at].iter().map(|record| record.2).max().unwrap();
        for (at, (id, says, _)) in records.iter().enumerate() {
            let of_id = |before: &usize| records[*before].0 == *id && found[*before] == Fate::Applied;
            let fate = match id.and((0..at).rev().find(of_id)) {
                Some(before) if log_time(at) - log_time(before) <= 50 => {
                    if records[before].1 == *says {
                        Fate::Repeat
                    } else {
                        Fate::Conflict
                    }
                }
                _ => Fate::Applied,
            };
            found.push(fate);
        }
        found
    }

    fn sent() -> impl Strategy<Value = Vec<Sent>> {
        // Time goes on by some milliseconds a record, and sometimes back.
        let record = (prop::option::weighted(0.8, 0_u8..5), 0_u8..2, -15_i64..25);
        prop::collection::vec(record, 1..60).prop_map(|records| {
            let mut now = 1000;
            let next = |(id, says, by): Sent| {
                now += by;
                (id, says, now)
            };
            records.into_iter().map(next).collect()
        })
    }

    proptest! {
        #[test]
        fn decision_is_as_told_under_every_cut(records in sent(), sizes in prop::collection::vec(1_usize..9, 0..30)) {
            let told = told(&records);
            prop_assert_eq!(&in_batches(&records, &[], false), &told);
            prop_assert_eq!(&in_batches(&records, &sizes, false), &told);
            prop_assert_eq!(&in_batches(&records, &sizes, true), &told);
        }

        #[test]
        fn parts_of_a_chunk_are_what_they_are_of_the_whole(records in sent(), cut in 0_usize..60) {
            let chunk = chunk(0, &records);
            let repeats = decide(&chunk, 0, WINDOW, None, &HashMap::new());
            let (all, cut) = (0..records.len(), cut.min(records.len()));
            let (head, tail) = (0..cut, cut..records.len());
            prop_assert_eq!(repeats.count(&head) + repeats.count(&tail), repeats.count(&all));
            prop_assert_eq!(repeats.conflicts(&head).len() + repeats.conflicts(&tail).len(), repeats.conflicts.len());
            let mut entries = repeats.entries(&chunk, &head);
            entries.extend(repeats.entries(&chunk, &tail));
            prop_assert_eq!(entries, repeats.entries(&chunk, &all));
        }
    }

    #[test]
    fn what_is_known_from_before_is_not_looked_at_again() {
        let records = [(Some(1), 0, 10), (Some(1), 0, 20), (Some(1), 1, 30)];
        let all = chunk(0, &records);
        let (_, known) = (all.from, decide(&all, 0, WINDOW, None, &HashMap::new()).entries(&all, &(0..1)));
        let known: HashMap<String, Entry> = known.into_iter().map(|(id, entry)| (id.to_owned(), entry)).collect();
        let repeats = decide(&all, 1, WINDOW, Some(10), &known);
        assert_eq!(fates(&repeats, 3), [Fate::Applied, Fate::Repeat, Fate::Conflict]);
        assert!(repeats.fresh.is_empty());
        assert!(repeats.conflicts[0].1.reason.contains("offset 0"), "{:?}", repeats.conflicts);
    }

    #[test]
    fn ids_that_no_column_could_hold_are_none() {
        let hex = Fingerprint::from(7).to_hex();
        let long = [b'x'; MAX_ID_BYTES + 1];
        let mut chunk = Chunk::default();
        for id in [&b"\xff"[..], b"a\0b", b"", &long, b"sound"] {
            let mut headers = [(HEADER_EVENT_ID, Some(id)), (HEADER_FINGERPRINT, Some(&hex[..]))].into_iter();
            chunk.push(Incoming { offset: 0, timestamp: 0, key: None, payload: None, headers: &mut headers });
        }
        let ids: Vec<&str> = chunk.records.iter().filter_map(|record| Some(identity(&chunk, record)?.0)).collect();
        assert_eq!(ids, ["sound"]);
    }
}
