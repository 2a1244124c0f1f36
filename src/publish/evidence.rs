//! What of a transaction is in the log: looked for among the records themselves, where they can stand.
//!
//! Only after a relay began anew, and only for rows that wait although they were sent: on every other day a marker does.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::markers::{Doubt, Target};
use crate::{
    domain::HEADER_EVENT_ID,
    kafka::{Error, Options, Reader, Record},
};

/// What the log says about transactions.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Ids under which committed records are in the log.
    pub found: HashSet<Uuid>,
    /// Partitions in which a transaction of others is open and does not end.
    open: HashSet<(String, i32)>,
    /// First offset that is kept of each partition that is there.
    kept: HashMap<(String, i32), i64>,
}

impl Evidence {
    /// Whether it does not say what is in the log of a transaction, because others are open there.
    pub fn is_open(&self, doubt: &Doubt) -> bool {
        doubt.targets.iter().any(|target| self.open.contains(&target.place()))
    }

    /// Whether records may be gone that a transaction has written there.
    fn is_cut(&self, target: &Target) -> bool {
        !self.open.contains(&target.place()) && self.kept.get(&target.place()).is_none_or(|kept| *kept > target.from)
    }
}

/// Looks for the ids of these transactions. Where retention has removed records that one of them may have written, a marker
/// that is committed is believed in all of its ids: nothing else is left to ask, and a transaction is seldom torn. Blocks,
/// also for transactions of others that are open there.
pub fn find(options: &Options, doubts: &[Doubt]) -> Result<Evidence, Error> {
    let ids: HashSet<Uuid> = doubts.iter().flat_map(|doubt| &doubt.ids).copied().collect();
    let mut places: HashMap<(String, i32), i64> = HashMap::new();
    for target in doubts.iter().flat_map(|doubt| &doubt.targets) {
        let first = places.entry(target.place()).or_insert(target.from);
        *first = (*first).min(target.from);
    }
    let mut evidence = Evidence::default();
    for (place, from) in places {
        let mut each = |record: Record| evidence.found.extend(id_of(&record).filter(|id| ids.contains(id)));
        let kept = match read(options, &place, Some(from), &mut each) {
            // Its leader has lost records: what was written then may stand before.
            Err(Error::Shrunk { .. }) => read(options, &place, None, &mut each),
            kept => kept,
        };
        match kept {
            Ok(kept) => drop(evidence.kept.insert(place, kept)),
            // What is gone has taken its records along.
            Err(Error::NoTopic { .. } | Error::NoPartition { .. }) => {}
            Err(Error::Undecided { .. }) => drop(evidence.open.insert(place)),
            Err(error) => return Err(error),
        }
    }
    let is_cut = |doubt: &&Doubt| doubt.is_committed && doubt.targets.iter().any(|target| evidence.is_cut(target));
    let believed: Vec<Uuid> = doubts.iter().filter(is_cut).flat_map(|doubt| &doubt.ids).copied().collect();
    evidence.found.extend(believed);
    Ok(evidence)
}

/// Reads a partition; returns the first offset that it has kept.
fn read(
    options: &Options,
    (topic, partition): &(String, i32),
    from: Option<i64>,
    each: &mut impl FnMut(Record),
) -> Result<i64, Error> {
    Reader::read_decided(options, topic, *partition, from, each)?;
    // Asked last: what is removed meanwhile counts.
    Ok(Reader::open(options)?.watermarks(topic, *partition)?.0)
}

fn id_of(record: &Record) -> Option<Uuid> {
    Uuid::try_parse_ascii(record.header(HEADER_EVENT_ID)?).ok()
}
