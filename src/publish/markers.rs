//! Markers: what the log itself says has left the outbox.
//!
//! A marker goes in the same transaction as the records it speaks of, so one is in the log exactly when the others are.
//! There is one for each version of a projection on each source partition, in a compacted topic. It has the highest number
//! (`out_seq`) that has left, and the ids of what left last.
//!
//! The rule: *a row has left if its number is not above the marker's and its id is among the marker's.* As long as Postgres
//! forgets nothing, the numbers alone would do, for rows leave in their order and a row is removed before the next leave.
//! The ids are for a Postgres that went back in time (a failover to a standby that lagged). Then numbers are given anew:
//! to the same events, which must not leave again, or to others, which must leave. What is not known to have left leaves:
//! beyond the ids that a marker keeps, an event may be repeated, but none is lost.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    kafka::{Error, Options, Reader, TopicSpec},
    store::outbox::OutboxRow,
};

/// The topic of all relays on a cluster.
pub const TOPIC: &str = "millpond.relay";
/// It has one partition: a transaction should touch few, and a relay that starts reads them all.
pub(super) const PARTITION: i32 = 0;
/// How many ids a marker keeps at least; it has all those of its own transaction.
const KEPT: usize = 128;

/// The topic as it is declared.
pub fn topic_spec() -> TopicSpec {
    let mut spec = TopicSpec::compacted(TOPIC, 1);
    // What is not compacted yet is read by every relay that starts: a segment of 1 GiB, the default, would take long.
    spec.config.insert("segment.bytes".into(), "16777216".into());
    spec
}

/// What a marker speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Place {
    /// Whose it is: several databases may have one Kafka.
    installation: Uuid,
    projection: String,
    version: i32,
    topic: String,
    partition: i32,
}

/// How far one version of a projection has left on one source partition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Marker {
    /// Of the version: what is made anew under its number begins anew.
    made: i64,
    out_seq: i64,
    /// Of what left last, oldest first.
    ids: Vec<Uuid>,
}

/// A marker's value in the log.
#[derive(Serialize, Deserialize)]
struct Value {
    made: i64,
    out_seq: i64,
    /// The last of the ids, for people.
    event_id: Uuid,
    /// All of them, 16 bytes each, in base64.
    ids: String,
}

/// A record of the topic, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerRecord {
    pub key: Vec<u8>,
    pub payload: Option<Vec<u8>>,
}

/// The markers of one installation.
#[derive(Debug, Clone)]
pub struct Markers {
    installation: Uuid,
    of: HashMap<Place, Marker>,
    /// Where to read on.
    next: Option<i64>,
}

/// Markers of rows that are about to leave, to be taken up once they have.
#[derive(Debug, Default)]
pub struct Step {
    set: Vec<(Place, Marker)>,
    forgotten: Vec<Place>,
}

impl Markers {
    pub fn new(installation: Uuid) -> Self {
        Self { installation, of: HashMap::new(), next: None }
    }

    /// Takes up what the topic has by now. Blocks, also for transactions of other installations that are open.
    pub fn catch_up(&mut self, options: &Options) -> Result<(), Error> {
        let (installation, of) = (self.installation, &mut self.of);
        let each = |key: Option<&[u8]>, payload: Option<&[u8]>| apply(of, installation, key, payload);
        self.next = Some(Reader::read_decided(options, TOPIC, PARTITION, self.next, each)?);
        Ok(())
    }

    /// Whether the row has left, by the rule.
    pub fn has(&self, row: &OutboxRow) -> bool {
        self.of.get(&self.place(row)).is_some_and(|marker| marker.has(row))
    }

    /// The step that goes with rows of a source partition, all of one version, in their order.
    pub fn step(&self, rows: &[&OutboxRow], step: &mut Step) {
        let Some(first) = rows.first() else { return };
        let place = self.place(first);
        step.set.push((place.clone(), Marker::after(self.of.get(&place), rows)));
        // Those of the version before this one are kept, in case Postgres goes back to it.
        step.forgotten.extend(self.of.keys().filter(|old| old.is_long_before(&place)).cloned());
    }

    /// Takes up a step that is in the log.
    pub fn take(&mut self, step: Step) {
        for place in step.forgotten {
            self.of.remove(&place);
        }
        self.of.extend(step.set);
    }

    fn place(&self, row: &OutboxRow) -> Place {
        Place {
            installation: self.installation,
            projection: row.lane.projection.clone(),
            version: row.version,
            topic: row.lane.topic.clone(),
            partition: row.lane.partition,
        }
    }
}

impl Step {
    /// Its records for the log.
    pub fn records(&self) -> Vec<MarkerRecord> {
        let set =
            self.set.iter().map(|(place, marker)| MarkerRecord { key: json(place), payload: Some(marker.encode()) });
        let forgotten = self.forgotten.iter().map(|place| MarkerRecord { key: json(place), payload: None });
        set.chain(forgotten).collect()
    }
}

/// The first record of a relay that leads: whether it may write here is known before it has something to send.
pub fn greeting(installation: Uuid, now: &str) -> MarkerRecord {
    let key = json(&serde_json::json!({ "installation": installation }));
    MarkerRecord { key, payload: Some(json(&serde_json::json!({ "leads_since": now }))) }
}

impl Place {
    /// Whether it is of the same source partition and of a version before the last one.
    fn is_long_before(&self, other: &Self) -> bool {
        self.version < other.version - 1
            && (&self.projection, &self.topic, self.partition) == (&other.projection, &other.topic, other.partition)
    }
}

impl Marker {
    fn has(&self, row: &OutboxRow) -> bool {
        self.made == row.made && row.out_seq <= self.out_seq && self.ids.contains(&row.event_id)
    }

    fn after(earlier: Option<&Self>, rows: &[&OutboxRow]) -> Self {
        let made = rows.last().map_or(0, |row| row.made);
        let earlier = earlier.filter(|marker| marker.made == made);
        let mut out_seq = earlier.map_or(0, |marker| marker.out_seq);
        let kept = earlier.map_or(&[][..], |marker| &marker.ids);
        let kept = &kept[kept.len().saturating_sub(KEPT.saturating_sub(rows.len()))..];
        let mut ids = Vec::with_capacity(kept.len() + rows.len());
        ids.extend_from_slice(kept);
        for row in rows {
            out_seq = out_seq.max(row.out_seq);
            ids.push(row.event_id);
        }
        Self { made, out_seq, ids }
    }

    fn encode(&self) -> Vec<u8> {
        let ids: Vec<u8> = self.ids.iter().flat_map(|id| *id.as_bytes()).collect();
        json(&Value {
            made: self.made,
            out_seq: self.out_seq,
            event_id: self.ids.last().copied().unwrap_or_default(),
            ids: BASE64.encode(ids),
        })
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(payload).ok()?;
        let bytes = BASE64.decode(value.ids).ok()?;
        let ids = bytes.chunks_exact(16).filter_map(|id| Uuid::from_slice(id).ok()).collect();
        Some(Self { made: value.made, out_seq: value.out_seq, ids })
    }
}

/// Takes one record of the topic. What is not understood is not ours.
fn apply(of: &mut HashMap<Place, Marker>, installation: Uuid, key: Option<&[u8]>, payload: Option<&[u8]>) {
    let Some(place) = key.and_then(|key| serde_json::from_slice::<Place>(key).ok()) else { return };
    if place.installation != installation {
        return;
    }
    match payload.and_then(Marker::decode) {
        Some(marker) => drop(of.insert(place, marker)),
        None => drop(of.remove(&place)),
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: texts, numbers and ids are always JSON")
}

#[cfg(test)]
mod tests;
