//! The judge: what has to come out is a fold of the log that knows nothing of batches, members or fences.

use std::collections::{BTreeMap, BTreeSet};

use crate::decide::EDITED;
use crate::log::{Kind, Log, PARTITIONS, Record};
use crate::rules::Rules;
use crate::store::{Database, EventId, Key, Place, Verdict, Why};
use crate::world::World;

/// What has to be there.
#[derive(Debug, Default)]
struct Expected {
    rows: BTreeMap<Key, Vec<(i64, u32)>>,
    aside: BTreeMap<Place, Why>,
    parked: BTreeSet<Key>,
    /// What has to leave: events of what is applied.
    events: BTreeSet<EventId>,
}

/// Record by record, up to an offset of each partition.
fn fold(log: &Log, ends: [i64; PARTITIONS], verdicts: &BTreeMap<Place, Verdict>, rules: Rules) -> Expected {
    let mut expected = Expected::default();
    for (partition, end) in ends.into_iter().enumerate() {
        let (mut log_time, mut ids) = (0, BTreeMap::<u8, (u32, i64)>::new());
        for record in log.written(partition).iter().filter(|record| record.offset < end) {
            log_time = log_time.max(record.time);
            if let Some(id) = record.id {
                if let Some((payload, _)) = ids.get(&id).filter(|(_, seen)| log_time - seen <= rules.window) {
                    if *payload != record.payload {
                        expected.aside.insert((partition, record.offset), Why::Conflict);
                    }
                    continue;
                }
                ids.insert(id, (record.payload, log_time));
            }
            expected.record(partition, record, verdicts.get(&(partition, record.offset)).copied(), rules);
        }
    }
    expected
}

impl Expected {
    fn record(&mut self, partition: usize, record: &Record, verdict: Option<Verdict>, rules: Rules) {
        let (place, key) = ((partition, record.offset), (partition, record.key));
        if self.parked.contains(&key) {
            self.aside.insert(place, Why::Waits);
            return;
        }
        let payload = match verdict {
            Some(Verdict::Discard) => return,
            Some(Verdict::Edit) => record.payload + EDITED,
            Some(Verdict::Apply) => record.payload,
            Some(Verdict::DeadLetter) => return self.fail(place, key, rules),
            None if record.kind == Kind::Good => record.payload,
            None => return self.fail(place, key, rules),
        };
        self.rows.entry(key).or_default().push((record.offset, payload));
        if record.emits {
            self.events.insert(EventId { place, mirror: false });
        }
    }

    fn fail(&mut self, place: Place, key: Key, rules: Rules) {
        self.aside.insert(place, Why::Failed);
        if rules.park {
            self.parked.insert(key);
        }
    }
}

/// One snapshot while all goes on: rows are those of everything below the position, of a key that is parked no more.
pub fn read(world: &World) -> Option<String> {
    let ends = [0, 1].map(|partition| world.db.fences[partition].next);
    let expected = fold(&world.log, ends, &world.db.verdicts, world.rules);
    for (key, rows) in &world.db.rows {
        let (none, parked) = (Vec::new(), world.db.parked.contains(key));
        let wanted = expected.rows.get(key).unwrap_or(&none);
        if wanted != rows && !(parked && wanted.starts_with(rows)) {
            return Some(format!("a read at {ends:?} shows {rows:?} of key {key:?}, and {wanted:?} was applied"));
        }
    }
    let missing = expected.rows.keys().find(|key| !world.db.rows.contains_key(key) && !world.db.parked.contains(key));
    missing.map(|key| format!("a read at {ends:?} shows nothing of key {key:?}"))
}

/// Brings a world to rest and judges it; the first thing that is wrong.
pub fn judge(world: &mut World) -> Option<String> {
    let rested = world.settle();
    let found = world.seen_wrong.take().or_else(|| tables(world, &world.db));
    let found = found.or_else(|| tiling(world)).or_else(|| guard(world)).or_else(|| downstream(world));
    let stuck = || (!rested).then(|| "it does not come to rest".to_owned());
    found.or_else(stuck).or_else(|| reread(world))
}

/// Nothing lost, doubled or reordered; what stands aside stands aside for a reason.
fn tables(world: &World, db: &Database) -> Option<String> {
    let ends = [0, 1].map(|partition| world.log.end(partition));
    let expected = fold(&world.log, ends, &db.verdicts, world.rules);
    let keys: BTreeSet<&Key> = expected.rows.keys().chain(db.rows.keys()).collect();
    for key in keys {
        let none = Vec::new();
        let (wanted, found) = (expected.rows.get(key).unwrap_or(&none), db.rows.get(key).unwrap_or(&none));
        if wanted != found {
            return Some(format!("key {key:?} has to be {wanted:?} and is {found:?}"));
        }
    }
    let aside: BTreeMap<Place, Why> = db.aside.iter().map(|(place, aside)| (*place, aside.why)).collect();
    if aside != expected.aside {
        return Some(format!("aside have to stand {:?}, and do {aside:?}", expected.aside));
    }
    (db.parked != expected.parked).then(|| format!("parked have to be {:?}, and are {:?}", expected.parked, db.parked))
}

/// The steps of each fence follow one another and never go back, and neither do its epochs.
fn tiling(world: &World) -> Option<String> {
    for partition in 0..PARTITIONS {
        let (mut at, mut epoch) = (0, 0);
        for step in world.db.steps.iter().filter(|step| step.0 == partition) {
            let (_, now, from, to) = *step;
            if from != at || to < from || now < epoch {
                return Some(format!("the fence of {partition} stood at {at} in epoch {epoch}; then {step:?}"));
            }
            (at, epoch) = (to, now);
        }
    }
    None
}

/// The crash guard condemns what has ended three processes, and nothing else.
fn guard(world: &World) -> Option<String> {
    let condemned = world.db.verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::DeadLetter);
    let mut wrong = condemned.filter(|(place, _)| world.deaths.get(place).is_none_or(|deaths| *deaths < 3));
    // A count that Postgres has forgotten, or remembers again, is nobody's fault.
    let (place, _) = wrong.next().filter(|_| !world.went_back)?;
    Some(format!("{place:?} was condemned and has ended {:?} processes", world.deaths.get(place).unwrap_or(&0)))
}

/// Every event that has to leave has left and no other: once, in the order of the outbox. Where Postgres went back in time,
/// at least once.
fn downstream(world: &World) -> Option<String> {
    let left: BTreeSet<EventId> = world.kafka.committed.iter().map(|(_, id)| *id).collect();
    let ends = [0, 1].map(|partition| world.log.end(partition));
    let expected = fold(&world.log, ends, &world.db.verdicts, world.rules);
    let emitted: BTreeSet<EventId> = world.db.emitted.iter().map(|(_, id)| *id).collect();
    if let Some(id) = expected.events.union(&emitted).find(|id| !left.contains(id)) {
        return Some(format!("{id:?} never left"));
    }
    if world.went_back {
        return None;
    }
    let events: BTreeSet<EventId> = left.iter().copied().filter(|id| !id.mirror).collect();
    if let Some(id) = events.symmetric_difference(&expected.events).next() {
        return Some(format!("{id:?} left, and follows from nothing"));
    }
    (0..PARTITIONS).find_map(|partition| {
        let of = |all: &[(usize, EventId)]| -> Vec<EventId> {
            all.iter().filter(|(at, _)| *at == partition).map(|(_, id)| *id).collect()
        };
        let (left, wanted) = (of(&world.kafka.committed), of(&world.db.emitted));
        (left != wanted).then(|| format!("of partition {partition} {left:?} left, and {wanted:?} had to"))
    })
}

/// Reading the log again leads to the same tables.
fn reread(world: &World) -> Option<String> {
    let mut again = world.again();
    if !again.settle() {
        return Some("reading the log again does not come to rest".into());
    }
    let (live, again) = (&world.db, &again.db);
    let differs = live.rows != again.rows || live.parked != again.parked;
    let aside = |db: &Database| -> Vec<(Place, Why)> { db.aside.iter().map(|(at, aside)| (*at, aside.why)).collect() };
    (differs || aside(live) != aside(again)).then(|| {
        format!(
            "live are {:?} aside {:?}; reading again makes {:?} aside {:?}",
            live.rows,
            aside(live),
            again.rows,
            aside(again)
        )
    })
}
