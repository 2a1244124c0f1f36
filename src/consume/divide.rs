//! How a batch is divided: what is applied, what is set aside, what waits behind it, what is passed over.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{
    buffer::{Chunk, RawRecord},
    dead_letter::{DeadLetter, Place},
    dedupe::Repeats,
    engine::OnError,
    halts,
    parked::{CRASH, RETRY, WAITS},
    prepare::{self, Fault, Prepared, UnknownSchema},
    tally::Tally,
    verdict::Decision,
    worker::{Broken, Worker},
};
use crate::{projection::Compiled, store::parked::ParkedKey};

/// A part of a chunk, with what becomes of each record; by their indexes in the chunk.
pub struct Division {
    /// What is applied, decoded.
    pub prepared: Prepared,
    /// Those that cannot be applied.
    faults: BTreeMap<usize, Fault>,
    /// Those whose key is parked, and where that was.
    waiting: BTreeMap<usize, i64>,
    /// Faults that an earlier reading of the log has decided on: nobody is asked again.
    decided: BTreeSet<usize>,
    /// Those whose id stands for another record: dead letters, whose keys go on, for nothing of them could be mended.
    conflicts: BTreeMap<usize, Fault>,
    /// Repeats of records that have taken effect, or will with their key.
    repeated: usize,
    /// Passed over, for so it was decided.
    discarded: usize,
    pub decisions: Vec<Decision>,
}

impl Division {
    /// A single record that cannot be applied.
    pub fn alone(compiled: &Compiled, chunk: &Chunk, index: usize, fault: Fault) -> Self {
        let record = &chunk.records[index];
        let mut prepared = Prepared::nothing(compiled, index + 1);
        prepared.last = Some(prepare::last_applied(chunk, record));
        // Another reading might get past it, or end a process.
        let own = (fault.class == CRASH).then(|| Decision::dead_letter(chunk, record, &fault));
        Self {
            prepared,
            faults: BTreeMap::from([(index, fault)]),
            waiting: BTreeMap::new(),
            decided: BTreeSet::new(),
            conflicts: BTreeMap::new(),
            repeated: 0,
            discarded: 0,
            decisions: own.into_iter().collect(),
        }
    }

    /// The first fault that halts the partition.
    pub fn halting(&self, on_error: OnError) -> Option<(usize, Fault)> {
        if on_error != OnError::Halt {
            return None;
        }
        let mut faults = self.faults.iter().filter(|(index, _)| !self.decided.contains(index));
        faults.next().map(|(index, fault)| (*index, fault.clone()))
    }

    /// Faults that nobody has known of before.
    pub fn failures(&self) -> usize {
        self.faults.len() - self.decided.len()
    }

    /// What becomes of so many records, `parked` heads of keys among them.
    pub fn tally(&self, records: usize, heads: usize) -> Tally {
        let skipped = self.prepared.skipped + self.discarded;
        let faulty = self.faults.len() + self.conflicts.len();
        Tally {
            applied: records - faulty - self.waiting.len() - self.repeated - skipped,
            skipped,
            repeated: self.repeated,
            parked: self.waiting.len() + heads,
            dead: faulty - heads,
            classes: self.faults.values().chain(self.conflicts.values()).map(|fault| fault.class).collect(),
        }
    }
}

/// The records of a batch that are set aside, in the order of the log.
pub struct Aside<'c>(Vec<(&'c RawRecord, Fault, Place)>);

impl Aside<'_> {
    pub fn letters(&self) -> Vec<DeadLetter<'_>> {
        self.0.iter().map(|(record, fault, place)| DeadLetter { record, fault, place: *place }).collect()
    }

    /// The keys that are parked with it.
    pub fn heads(&self, chunk: &Chunk) -> Vec<ParkedKey> {
        let heads = self.0.iter().filter(|(.., place)| *place == Place::Head);
        let key = |(record, fault, _): &(&RawRecord, Fault, Place)| ParkedKey {
            parked_at: record.offset,
            key: chunk.key(record).map(<[u8]>::to_vec),
            attempts: i32::from(fault.class == RETRY),
        };
        heads.map(key).collect()
    }
}

impl Worker {
    /// Decodes `wanted`, or its beginning, but for repeats, for what waits and for what was decided. A repeat waits with
    /// nobody: that it is one is decided where it stands in the log.
    ///
    /// A record that turns out faulty parks its key, so those of the key behind it must not be decoded as if it had been
    /// applied: then the rest is decoded once more.
    pub(super) fn divide(
        &self,
        chunk: &Chunk,
        wanted: Range<usize>,
        repeats: &Repeats,
    ) -> Result<Division, UnknownSchema> {
        let (engine, at) = (&self.engine, &self.partition.at);
        let parks = engine.on_error == OnError::ParkKey;
        let none = BTreeMap::new();
        let is_read = |record: &RawRecord| engine.preparer.may_read(chunk, record);
        let (mut discarded, mut decided) = self.recalled.within(chunk, wanted.clone());
        // Of one whose id stands for another record somebody may have decided that it counts, or that it is given up.
        let applied = self.recalled.wanted(chunk, wanted.clone());
        let settled = |index: &usize| applied.contains(index) || discarded.contains(index);
        let conflicts: BTreeMap<usize, Fault> = repeats.conflicts(&wanted).iter().cloned().collect();
        let (undone, conflicts): (BTreeMap<_, _>, BTreeMap<_, _>) =
            conflicts.into_iter().partition(|(index, _)| settled(index));
        let passed_over: BTreeSet<usize> =
            repeats.aside.range(wanted.clone()).filter(|index| !undone.contains_key(*index)).copied().collect();
        discarded.retain(|index| !passed_over.contains(index));
        decided.retain(|index, _| !passed_over.contains(index));
        let waiting = |faults: &BTreeMap<usize, Fault>| {
            let mut waits = self.parked.waiting(chunk, wanted.clone(), if parks { faults } else { &none }, is_read);
            waits.retain(|index, _| !discarded.contains(index) && !passed_over.contains(index));
            waits
        };
        let mut waits = waiting(&decided);
        loop {
            let aside = waits.keys().chain(&discarded).chain(decided.keys()).chain(&passed_over);
            let aside: BTreeSet<usize> = aside.copied().collect();
            let mut prepared = engine.preparer.prepare(&at.topic, at.partition, chunk, wanted.clone(), &aside)?;
            let end = prepared.end;
            let mut faults: BTreeMap<usize, Fault> = std::mem::take(&mut prepared.faults).into_iter().collect();
            faults.extend(decided.iter().map(|(index, fault)| (*index, fault.clone())));
            let more = waiting(&faults);
            if more.len() > waits.len() {
                waits = more;
                continue;
            }
            faults.retain(|index, _| *index < end);
            // Of a parked key, one that was decided on does not only wait: it will not be applied with the others.
            let waiting = waits.into_iter().filter(|(index, _)| *index < end && !decided.contains_key(index)).collect();
            return Ok(Division {
                prepared,
                faults,
                waiting,
                decided: decided.into_keys().filter(|index| *index < end).collect(),
                conflicts: conflicts.into_iter().filter(|(index, _)| *index < end).collect(),
                repeated: repeats.count(&(wanted.start..end)),
                discarded: discarded.range(..end).count(),
                decisions: Vec::new(),
            });
        }
    }

    /// What is set aside of a batch, each with its place.
    pub(super) fn aside<'c>(&self, chunk: &'c Chunk, division: &Division) -> Aside<'c> {
        let mut aside: BTreeMap<usize, (&RawRecord, Fault, Place)> = BTreeMap::new();
        let mut newly: BTreeMap<&[u8], i64> = BTreeMap::new();
        for (index, fault) in &division.faults {
            let record = &chunk.records[*index];
            let key = chunk.key(record);
            let known = self.parked.at(key).or_else(|| newly.get(key?).copied());
            let parks = fault.class == RETRY || (self.engine.on_error == OnError::ParkKey && key.is_some());
            let place = match known {
                Some(parked_at) => Place::Behind(parked_at),
                None if parks => Place::Head,
                None => Place::Alone,
            };
            if let (Place::Head, Some(key)) = (place, key) {
                newly.insert(key, record.offset);
            }
            aside.insert(*index, (record, fault.clone(), place));
        }
        for (index, fault) in &division.conflicts {
            aside.insert(*index, (&chunk.records[*index], fault.clone(), Place::Alone));
        }
        for (index, parked_at) in &division.waiting {
            let record = &chunk.records[*index];
            let reason = format!("its key was parked with the record at offset {parked_at}");
            let fault = Fault { class: WAITS, reason, record_type: self.engine.preparer.record_type(chunk, record) };
            aside.insert(*index, (record, fault, Place::Behind(*parked_at)));
        }
        Aside(aside.into_values().collect())
    }

    /// Halts before there are more parked keys than are kept in memory.
    pub(super) fn check_room(&self, heads: usize) -> Result<(), Broken> {
        if heads == 0 || !self.parked.is_full_for(heads) {
            return Ok(());
        }
        Err(Broken::Halt(halts::too_many_parked_keys(self.name(), &self.partition.at)))
    }
}
