//! Which keys of a partition are parked, and which records of a batch wait with them. In memory, without I/O.
//!
//! What is here is what `millpond.parked_keys` holds: it is read after each claim, and the fence makes its worker the only
//! writer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::Duration,
};

use super::{
    buffer::{Chunk, RawRecord},
    prepare::Fault,
};
use crate::store::parked::{Lane, ParkedKey};

/// Parked keys of one partition. More are a faulty deploy or a key that is no key; each takes memory of its worker.
pub const MAX_KEYS: usize = 10_000;
/// Bytes of all of them together: a key may be as long as a record.
pub const MAX_KEY_BYTES: usize = 16 << 20;

/// Class of a record that is at fault for nothing but standing behind another one.
pub const WAITS: &str = "waits";
/// Class of a record that its handler wants to have tried again.
pub const RETRY: &str = "retry";
/// Class of a record over which processes have ended.
pub const CRASH: &str = "crash";

/// Attempts that a record gets whose handler asks for more, the first one among them.
pub const ATTEMPTS: i32 = 10;

/// Longest pause before the attempt that follows so many: 1 s, doubled each time, up to 5 min. The pause is drawn from
/// nothing up to it, so that what failed together is not tried together.
pub fn longest_pause(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts - 1).unwrap_or_default().min(16);
    Duration::from_secs(1_u64 << doublings).min(Duration::from_secs(300))
}

/// The parked keys of one partition.
#[derive(Debug, Default)]
pub struct Parked {
    lanes: BTreeMap<i64, ParkedKey>,
    by_key: HashMap<Vec<u8>, i64>,
    key_bytes: usize,
    due: BTreeSet<Lane>,
    last: Option<Lane>,
}

impl Parked {
    /// What was found at a claim.
    pub fn of(found: Vec<ParkedKey>) -> Self {
        let mut parked = Self::default();
        found.into_iter().for_each(|key| parked.park(key));
        parked
    }

    /// Adds a key; one that is known stays as it is.
    pub fn park(&mut self, key: ParkedKey) {
        if let Some(bytes) = &key.key {
            if self.by_key.contains_key(bytes) {
                return;
            }
            self.key_bytes += bytes.len();
            self.by_key.insert(bytes.clone(), key.parked_at);
        }
        self.lanes.insert(key.parked_at, key);
    }

    /// Removes a key: nothing of it waits any more.
    pub fn release(&mut self, parked_at: i64) {
        self.due.remove(&Lane::Key(parked_at));
        let Some(ParkedKey { key: Some(key), .. }) = self.lanes.remove(&parked_at) else { return };
        self.key_bytes -= key.len();
        self.by_key.remove(&key);
    }

    /// Where the key of a record was parked, if it is.
    pub fn at(&self, key: Option<&[u8]>) -> Option<i64> {
        // Most partitions have none, and then nothing is hashed.
        if self.by_key.is_empty() { None } else { self.by_key.get(key?).copied() }
    }

    /// Whether there is no room for so many more.
    pub fn is_full_for(&self, more: usize) -> bool {
        self.lanes.len() + more > MAX_KEYS || (more > 0 && self.key_bytes > MAX_KEY_BYTES)
    }

    /// Attempts of applying the head of a key.
    pub fn attempts(&self, lane: Lane) -> i32 {
        let Lane::Key(parked_at) = lane else { return 0 };
        self.lanes.get(&parked_at).map_or(0, |key| key.attempts)
    }

    pub fn set_attempts(&mut self, lane: Lane, attempts: i32) {
        if let Lane::Key(parked_at) = lane
            && let Some(key) = self.lanes.get_mut(&parked_at)
        {
            key.attempts = attempts;
        }
    }

    /// Takes note of what there is to do.
    pub fn set_due(&mut self, due: Vec<Lane>) {
        let known = |lane: &Lane| !matches!(lane, Lane::Key(at) if !self.lanes.contains_key(at));
        self.due = due.into_iter().filter(known).collect();
    }

    /// There is nothing to do in a lane until somebody says so.
    pub fn rest(&mut self, lane: Lane) {
        self.due.remove(&lane);
    }

    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The lane whose turn it is: one after the other, so that a long one does not hold up all others.
    pub fn next_due(&mut self) -> Option<Lane> {
        let behind = self.last.and_then(|last| self.due.range(last..).find(|lane| **lane != last));
        let next = behind.or_else(|| self.due.first()).copied();
        self.last = next;
        next
    }

    /// The records of `range` that wait, by their index, each with the place at which its key was parked: those whose key
    /// is parked before the range, and those that follow a `faulty` one of their key.
    pub fn waiting(
        &self,
        chunk: &Chunk,
        range: Range<usize>,
        faulty: &BTreeMap<usize, Fault>,
        is_read: impl Fn(&RawRecord) -> bool,
    ) -> BTreeMap<usize, i64> {
        let mut waiting = BTreeMap::new();
        if self.by_key.is_empty() && faulty.is_empty() {
            return waiting;
        }
        let mut newly: HashMap<&[u8], i64> = HashMap::new();
        for index in range {
            let record = &chunk.records[index];
            let Some(key) = chunk.key(record) else { continue };
            match self.at(Some(key)).or_else(|| newly.get(key).copied()) {
                Some(parked_at) if is_read(record) => drop(waiting.insert(index, parked_at)),
                Some(_) => {}
                None if faulty.contains_key(&index) => drop(newly.insert(key, record.offset)),
                None => {}
            }
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kafka::subscription::Incoming;

    fn chunk(keys: &[Option<u8>]) -> Chunk {
        let mut chunk = Chunk::default();
        for (offset, key) in (0..).zip(keys) {
            let key = key.as_ref().map(std::slice::from_ref);
            chunk.push(Incoming { offset, timestamp: 0, key, payload: None, headers: &mut std::iter::empty() });
        }
        chunk
    }

    fn fault() -> Fault {
        Fault { class: "decode", reason: String::new(), record_type: None }
    }

    fn key(parked_at: i64, key: &[u8]) -> ParkedKey {
        ParkedKey { parked_at, key: Some(key.to_vec()), attempts: 0 }
    }

    /// What waits when batches end at `cuts`, and which keys are parked then.
    fn in_batches(keys: &[Option<u8>], faulty: &[bool], cuts: &[usize]) -> (BTreeMap<usize, i64>, Vec<i64>) {
        let chunk = chunk(keys);
        let mut parked = Parked::default();
        let mut all = BTreeMap::new();
        let ends = cuts.iter().copied().chain([keys.len()]);
        let mut start = 0;
        for end in ends {
            let end = end.clamp(start, keys.len());
            let faults: BTreeMap<usize, Fault> = (start..end).filter(|i| faulty[*i]).map(|i| (i, fault())).collect();
            let waiting = parked.waiting(&chunk, start..end, &faults, |_| true);
            for index in faults.keys().filter(|index| !waiting.contains_key(index)) {
                let record = &chunk.records[*index];
                if let Some(bytes) = chunk.key(record) {
                    parked.park(key(record.offset, bytes));
                }
            }
            all.extend(waiting);
            start = end;
        }
        (all, parked.lanes.keys().copied().collect())
    }

    proptest! {
        #[test]
        fn what_waits_does_not_depend_on_the_cut_into_batches(
            records in prop::collection::vec((prop::option::weighted(0.9, 0_u8..4), prop::bool::weighted(0.2)), 0..40),
            mut cuts in prop::collection::vec(0_usize..40, 0..6),
        ) {
            cuts.sort_unstable();
            let (keys, faulty): (Vec<_>, Vec<_>) = records.into_iter().unzip();
            let one_by_one: Vec<usize> = (0..keys.len()).collect();
            let expected = in_batches(&keys, &faulty, &one_by_one);
            prop_assert_eq!(in_batches(&keys, &faulty, &cuts), expected.clone());
            // And it is what was asked for: all that follows the first faulty record of its key.
            for (index, key) in keys.iter().enumerate() {
                let before = (0..index).find(|i| faulty[*i] && keys[*i] == *key).filter(|_| key.is_some());
                prop_assert_eq!(expected.0.get(&index).copied(), before.map(|i| i as i64));
            }
        }

        #[test]
        fn every_lane_that_is_due_has_its_turn(lanes in prop::collection::btree_set(0_i64..50, 1..12)) {
            let mut parked = Parked::of(lanes.iter().map(|at| key(*at, &at.to_be_bytes())).collect());
            let mut due: Vec<Lane> = lanes.iter().copied().map(Lane::Key).collect();
            due.push(Lane::Dead);
            parked.set_due(due.clone());
            let turns: BTreeSet<Lane> = due.iter().filter_map(|_| parked.next_due()).collect();
            prop_assert_eq!(turns.len(), due.len());
        }
    }

    #[test]
    fn key_that_was_released_is_free_and_records_of_other_types_never_wait() {
        let chunk = chunk(&[Some(1), Some(2)]);
        let mut parked = Parked::of(vec![key(7, &[1])]);
        let none = BTreeMap::new();
        assert_eq!(parked.waiting(&chunk, 0..2, &none, |_| true), BTreeMap::from([(0, 7)]));
        assert_eq!(parked.waiting(&chunk, 0..2, &none, |_| false), BTreeMap::new());
        parked.release(7);
        assert_eq!(parked.waiting(&chunk, 0..2, &none, |_| true), BTreeMap::new());
        assert_eq!((parked.lanes.len(), parked.key_bytes), (0, 0));
    }

    #[test]
    fn lanes_that_are_gone_are_not_due() {
        let mut parked = Parked::of(vec![key(7, &[1])]);
        parked.set_due(vec![Lane::Key(6), Lane::Key(7)]);
        assert_eq!((parked.next_due(), parked.next_due()), (Some(Lane::Key(7)), Some(Lane::Key(7))));
        parked.rest(Lane::Key(7));
        assert_eq!(parked.next_due(), None);
    }

    #[test]
    fn pauses_double_from_a_second_to_five_minutes() {
        let seconds: Vec<u64> = (1..=ATTEMPTS).map(|attempts| longest_pause(attempts).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    }
}
