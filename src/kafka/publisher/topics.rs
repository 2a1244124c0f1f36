//! What the publisher knows of topics: how many partitions, which of them can be written now, where keyless records go.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering},
    },
};

use prometheus::IntCounter;

use super::NotSent;
use crate::telemetry::metrics::kafka as metrics;

/// Keyless batches stay on one partition for so many bytes: few partitions make full requests, many make small ones.
const STICKY_BYTES: usize = 64 << 10;

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub has_leader: bool,
    /// Nothing was acknowledged here for too long, while other partitions went on.
    pub stalled: AtomicBool,
    trust: AtomicU8,
}

/// Nothing speaks against the partition.
const TRUSTED: u8 = 0;
/// A record's time ran out here, and nothing was acknowledged since: too few replicas may be in sync, which metadata does
/// not tell. One batch may try.
const DOUBTED: u8 = 1;
/// It is trying; the others need not learn the hard way.
const TRIED: u8 = 2;
/// It was not seen under way: perhaps it was about to be, so it is looked for once more.
const MISSED: u8 = 3;

impl Default for Partition {
    fn default() -> Self {
        Self { has_leader: true, stalled: AtomicBool::new(false), trust: AtomicU8::new(TRUSTED) }
    }
}

impl Partition {
    pub fn is_open(&self) -> bool {
        self.has_leader && !self.stalled.load(Ordering::Relaxed) && self.trust.load(Ordering::Relaxed) <= DOUBTED
    }

    /// Whether a batch may be sent here; of a doubted partition only one at a time.
    pub fn enter(&self) -> bool {
        self.is_open()
            && (self.trust.load(Ordering::Relaxed) == TRUSTED
                || self.trust.compare_exchange(DOUBTED, TRIED, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }
}

/// One topic, as the last metadata had it.
pub(super) struct Topic {
    pub name: Arc<str>,
    pub partitions: Vec<Partition>,
    sticky: AtomicU32,
    sticky_bytes: AtomicUsize,
    written: IntCounter,
    not_written: IntCounter,
    unknown: IntCounter,
}

impl Topic {
    pub fn new(name: Arc<str>, partitions: Vec<Partition>) -> Self {
        let counter = |outcome: &str| metrics::PUBLISHED_RECORDS.with_label_values(&[&*name, outcome]);
        let (written, not_written, unknown) = (counter("written"), counter("not_written"), counter("unknown"));
        // Processes should not all begin with partition 0.
        let sticky = AtomicU32::new(std::process::id());
        Self { name, partitions, sticky, sticky_bytes: AtomicUsize::new(0), written, not_written, unknown }
    }

    pub fn count(&self, written: u64, not_written: u64, unknown: u64) {
        self.written.inc_by(written);
        if not_written > 0 {
            self.not_written.inc_by(not_written);
        }
        if unknown > 0 {
            self.unknown.inc_by(unknown);
        }
    }

    /// The partition for a keyless batch of `bytes`: the same for a while, then the next that can be written.
    pub fn sticky(&self, bytes: usize) -> i32 {
        if self.sticky_bytes.fetch_add(bytes, Ordering::Relaxed) >= STICKY_BYTES {
            self.sticky_bytes.store(0, Ordering::Relaxed);
            self.sticky.fetch_add(1, Ordering::Relaxed);
        }
        let (start, n) = (self.sticky.load(Ordering::Relaxed) as usize, self.partitions.len());
        let at = (0..n).map(|i| (start.wrapping_add(i)) % n).find(|at| self.partitions[*at].is_open());
        at.unwrap_or(start % n) as i32
    }

    /// Says that a partition takes nothing now.
    pub fn closed(&self, partition: i32) -> NotSent {
        NotSent::PartitionUnavailable { topic: self.name.clone(), partition }
    }

    fn has_same_shape(&self, leaders: &[bool]) -> bool {
        self.partitions.iter().map(|p| p.has_leader).eq(leaders.iter().copied())
    }
}

/// What is known of a topic that was asked for.
#[derive(Clone)]
pub(super) enum Lookup {
    /// Not looked up yet.
    Asked,
    Absent,
    Known(Arc<Topic>),
}

/// The topics that were asked for.
#[derive(Default)]
pub(super) struct Topics {
    by_name: RwLock<HashMap<Arc<str>, Lookup>>,
    /// How many partitions keys are placed on, where a topic has more.
    declared: BTreeMap<String, u32>,
    /// Topics of which it was said that they have more.
    told: Mutex<HashSet<Arc<str>>>,
    /// Whether any partition is doubted; else nobody looks.
    any_doubted: AtomicBool,
}

impl Topics {
    /// Those of topics that are in `declared` have so many partitions at most.
    pub fn declared_as(declared: &BTreeMap<String, u32>) -> Self {
        Self { declared: declared.clone(), ..Self::default() }
    }

    /// The partitions that keys are placed on. A topic that was given more than is declared keeps its keys where they are:
    /// else records of a key would be on two partitions, in no order.
    fn as_declared<'a>(&self, name: &Arc<str>, leaders: &'a [bool]) -> &'a [bool] {
        let Some(declared) = self.declared.get(&**name).filter(|n| (**n as usize) < leaders.len()) else {
            return leaders;
        };
        if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
            tracing::warn!(
                topic = &**name,
                partitions = leaders.len(),
                declared,
                "the topic has more partitions than its producer folder declares; keys stay on the declared ones until the \
                 folder says the new number (docs/operating.md, partitions_added)"
            );
        }
        &leaders[..*declared as usize]
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Lookup>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Arc<str>, Lookup>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topic, if it is known and exists.
    pub fn get(&self, name: &str) -> Option<Arc<Topic>> {
        match self.read().get(name) {
            Some(Lookup::Known(topic)) => Some(topic.clone()),
            _ => None,
        }
    }

    pub fn lookup(&self, name: &str) -> Option<Lookup> {
        self.read().get(name).cloned()
    }

    /// Asks for a topic (again, if it was absent).
    pub fn ask(&self, name: &str) {
        let mut topics = self.write();
        match topics.get_mut(name) {
            Some(Lookup::Known(_)) => {}
            Some(other) => *other = Lookup::Asked,
            None => drop(topics.insert(name.into(), Lookup::Asked)),
        }
    }

    pub fn names(&self) -> Vec<Arc<str>> {
        self.read().keys().cloned().collect()
    }

    /// Takes what metadata said: for each partition, in order, whether it has a leader. `None`: no such topic.
    pub fn update(&self, name: &Arc<str>, leaders: Option<&[bool]>) {
        let leaders = leaders.map(|leaders| self.as_declared(name, leaders));
        if let (Some(old), Some(leaders)) = (self.get(name), leaders)
            && old.has_same_shape(leaders)
        {
            return;
        }
        let partition = |has_leader: &bool| Partition { has_leader: *has_leader, ..Partition::default() };
        let new = match leaders {
            Some(leaders) if !leaders.is_empty() => {
                Lookup::Known(Arc::new(Topic::new(name.clone(), leaders.iter().map(partition).collect())))
            }
            _ => Lookup::Absent,
        };
        self.write().insert(name.clone(), new);
    }

    /// Marks exactly these partitions as stalled.
    pub fn mark_stalled(&self, stalled: &HashSet<(Arc<str>, i32)>) {
        for lookup in self.read().values() {
            let Lookup::Known(topic) = lookup else { continue };
            for (at, partition) in topic.partitions.iter().enumerate() {
                let is = !stalled.is_empty() && stalled.contains(&(topic.name.clone(), at as i32));
                partition.stalled.store(is, Ordering::Relaxed);
            }
        }
    }

    pub fn any_doubted(&self) -> bool {
        self.any_doubted.load(Ordering::Relaxed)
    }

    /// A record of the partition was acknowledged, or its time ran out.
    pub fn note(&self, topic: &str, partition: i32, acknowledged: bool) {
        let Some(topic) = self.get(topic) else { return };
        let Some(partition) = usize::try_from(partition).ok().and_then(|at| topic.partitions.get(at)) else { return };
        partition.trust.store(if acknowledged { TRUSTED } else { DOUBTED }, Ordering::Relaxed);
        if !acknowledged {
            self.any_doubted.store(true, Ordering::Relaxed);
        }
    }

    /// Lets another batch try where the one that was to try is not under way: it may have been refused for what it is.
    pub fn end_tries(&self, under_way: &HashSet<(Arc<str>, i32)>) {
        let mut any = false;
        for lookup in self.read().values() {
            let Lookup::Known(topic) = lookup else { continue };
            for (at, partition) in topic.partitions.iter().enumerate() {
                let trust = partition.trust.load(Ordering::Relaxed);
                if trust >= TRIED {
                    let next = match trust {
                        _ if under_way.contains(&(topic.name.clone(), at as i32)) => TRIED,
                        TRIED => MISSED,
                        _ => DOUBTED,
                    };
                    // Unless an acknowledgement has come meanwhile.
                    let _ = partition.trust.compare_exchange(trust, next, Ordering::Relaxed, Ordering::Relaxed);
                }
                any |= partition.trust.load(Ordering::Relaxed) != TRUSTED;
            }
        }
        self.any_doubted.store(any, Ordering::Relaxed);
    }

    /// Forgets a topic that does not exist: names may come from outside, and are not to be kept.
    pub fn forget_absent(&self, name: &str) {
        let mut topics = self.write();
        if matches!(topics.get(name), Some(Lookup::Absent)) {
            topics.remove(name);
        }
    }

    /// Whether something may be different soon: a topic is not there (yet), or a partition has no leader.
    pub fn need_another_look(&self) -> bool {
        self.read().values().any(|lookup| match lookup {
            Lookup::Asked | Lookup::Absent => true,
            Lookup::Known(topic) => topic.partitions.iter().any(|p| !p.has_leader),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(leaders: &[bool]) -> Arc<Topic> {
        let topics = Topics::default();
        topics.update(&"topics-test".into(), Some(leaders));
        topics.get("topics-test").unwrap()
    }

    #[test]
    fn keyless_batches_stay_until_enough_bytes_then_move_on() {
        let topic = topic(&[true; 3]);
        let first = topic.sticky(STICKY_BYTES - 1);
        assert_eq!(topic.sticky(1), first);
        assert_ne!(topic.sticky(1), first);
    }

    #[test]
    fn keyless_batches_avoid_partitions_that_cannot_be_written() {
        let topic = topic(&[false, true, true]);
        topic.partitions[2].stalled.store(true, Ordering::Relaxed);
        let all: HashSet<i32> = (0..10).map(|_| topic.sticky(STICKY_BYTES)).collect();
        assert_eq!(all, HashSet::from([1]));
    }

    #[test]
    fn doubted_partition_takes_one_batch_until_it_acknowledges() {
        let topics = Topics::default();
        topics.update(&"topics-test".into(), Some(&[true, true]));
        let topic = topics.get("topics-test").unwrap();
        let enter = || topic.partitions[0].enter();
        assert!(enter() && enter() && !topics.any_doubted());
        topics.note("topics-test", 0, false);
        assert!(topics.any_doubted() && enter() && !enter() && !topic.partitions[0].is_open());
        let under_way = HashSet::from([("topics-test".into(), 0)]);
        topics.end_tries(&under_way);
        assert!(!enter(), "it is still trying");
        topics.end_tries(&HashSet::new());
        assert!(!enter(), "it may be about to");
        topics.end_tries(&HashSet::new());
        assert!(enter() && !enter(), "that one was never sent");
        topics.note("topics-test", 0, true);
        topics.end_tries(&HashSet::new());
        assert!(enter() && enter() && !topics.any_doubted());
        topics.note("topics-test", 7, false);
        topics.note("another", 0, false);
    }

    #[test]
    fn partitions_that_are_not_declared_take_no_keys() {
        let topics = Topics::declared_as(&BTreeMap::from([("topics-test".to_owned(), 3)]));
        let partitions = |name: &str, leaders: &[bool]| {
            topics.update(&name.into(), Some(leaders));
            topics.get(name).unwrap().partitions.len()
        };
        assert_eq!(partitions("topics-test", &[true; 3]), 3);
        assert_eq!(partitions("topics-test", &[true, true, false, true, true]), 3);
        assert!(!topics.get("topics-test").unwrap().partitions[2].has_leader);
        // Fewer are what there is, and of another topic nothing is declared.
        assert_eq!((partitions("topics-test", &[true; 2]), partitions("another", &[true; 5])), (2, 5));
    }

    #[test]
    fn unchanged_metadata_keeps_the_topic() {
        let topics = Topics::default();
        let name: Arc<str> = "topics-test".into();
        topics.update(&name, Some(&[true, true]));
        let before = topics.get("topics-test").unwrap();
        topics.update(&name, Some(&[true, true]));
        assert!(Arc::ptr_eq(&before, &topics.get("topics-test").unwrap()));
        topics.update(&name, None);
        assert!(topics.get("topics-test").is_none());
        assert_eq!(topics.names().len(), 1);
    }
}
