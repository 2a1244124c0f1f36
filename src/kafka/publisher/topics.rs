//! What the publisher knows of topics: how many partitions, which of them can be written now, where keyless records go.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use prometheus::IntCounter;

use crate::telemetry::metrics::kafka as metrics;

/// Keyless batches stay on one partition for so many bytes: few partitions make full requests, many make small ones.
const STICKY_BYTES: usize = 64 << 10;

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub has_leader: bool,
    /// Nothing was acknowledged here for too long, while other partitions went on.
    pub stalled: AtomicBool,
}

impl Default for Partition {
    fn default() -> Self {
        Self { has_leader: true, stalled: AtomicBool::new(false) }
    }
}

impl Partition {
    pub fn is_open(&self) -> bool {
        self.has_leader && !self.stalled.load(Ordering::Relaxed)
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
pub(super) struct Topics(RwLock<HashMap<Arc<str>, Lookup>>);

impl Topics {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Lookup>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Arc<str>, Lookup>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
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
