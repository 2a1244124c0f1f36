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
//!
//! Of the last transaction before a relay began, a marker is believed in nothing. Kafka may tear a transaction when most of
//! its brokers die at once: a coordinator that comes back acts on what only it has of its own log (it loads it to its end,
//! replicated or not) and commits on some partitions; then another one leads, to whom the transaction was open, and aborts it
//! on the rest. So a marker also says which ids its own transaction has sent and from which offsets on they can stand, and
//! rows that wait under one of these ids are looked for there (`evidence`), whether the marker was committed or not.

use std::collections::{BTreeMap, HashMap, HashSet};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    kafka::{Error, Options, Reader, Record, TopicSpec},
    store::outbox::{Lane, OutboxRow},
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
    /// How many of them, the last ones, its own transaction has sent.
    own: usize,
    /// Where these can stand.
    targets: Vec<Target>,
}

/// A partition that a transaction has written to, and an offset that none of its records there stands before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub topic: String,
    pub partition: i32,
    pub from: i64,
}

impl Target {
    pub fn place(&self) -> (String, i32) {
        (self.topic.clone(), self.partition)
    }
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
    /// Not in those of earlier releases.
    #[serde(default)]
    own: usize,
    #[serde(default)]
    targets: Vec<Target>,
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
    /// The last transaction of each place that another relay began, until it is certain what of it is in the log.
    attempts: HashMap<Place, Attempt>,
    /// Where to read on.
    next: Option<i64>,
}

/// A transaction with an outcome that no relay has seen.
#[derive(Debug, Clone)]
struct Attempt {
    marker: Marker,
    sent: HashSet<Uuid>,
    is_committed: bool,
}

/// What a transaction has sent of one version of a projection and one source partition, where nobody knows what of it is in
/// the log.
#[derive(Debug)]
pub struct Doubt {
    place: Place,
    pub lane: Lane,
    pub version: i32,
    pub ids: HashSet<Uuid>,
    pub targets: Vec<Target>,
    /// Its marker is in the log.
    pub is_committed: bool,
}

/// Markers of rows that are about to leave, to be taken up once they have.
#[derive(Debug, Default)]
pub struct Step {
    set: Vec<(Place, Marker)>,
    forgotten: Vec<Place>,
}

impl Markers {
    pub fn new(installation: Uuid) -> Self {
        Self { installation, of: HashMap::new(), attempts: HashMap::new(), next: None }
    }

    /// Takes up what the topic has by now. Blocks, also for transactions of other installations that are open.
    pub fn catch_up(&mut self, options: &Options) -> Result<(), Error> {
        let (installation, of, mut attempted) = (self.installation, &mut self.of, HashMap::new());
        let each = |record: Record| apply(&mut attempted, installation, &record);
        Reader::read_attempted(options, TOPIC, PARTITION, self.next, each)?;
        let decided = |record: Record| apply(of, installation, &record);
        self.next = Some(Reader::read_decided(options, TOPIC, PARTITION, self.next, decided)?);
        self.believe(attempted);
        Ok(())
    }

    /// Whoever made the last attempt knew all that had left before, perhaps more than the last committed marker says: that one
    /// may be of a transaction that was torn. Of the attempt's own ids none has left, as far as is known, if it was aborted.
    fn believe(&mut self, attempted: HashMap<Place, Marker>) {
        for (place, marker) in attempted {
            if marker.own == 0 {
                // Of an earlier release, which does not say what it has sent: an aborted one says nothing then.
                self.attempts.remove(&place);
                continue;
            }
            let is_committed = self.of.get(&place) == Some(&marker);
            if !is_committed {
                self.of.insert(place.clone(), marker.clone().but(&HashSet::new()));
            }
            let sent = marker.sent().iter().copied().collect();
            self.attempts.insert(place, Attempt { marker, sent, is_committed });
        }
    }

    /// What has to be known before [`Self::has`] can be asked about these rows: transactions that have sent some of them,
    /// with an outcome that no relay has seen.
    pub fn doubts<'a>(&self, rows: impl IntoIterator<Item = &'a OutboxRow>) -> Vec<Doubt> {
        let mut doubts: HashMap<Place, Doubt> = HashMap::new();
        for row in rows {
            let place = self.place(row);
            let Some(attempt) = self.attempts.get(&place).filter(|attempt| attempt.has_sent(row)) else { continue };
            doubts.entry(place).or_insert_with_key(|place| Doubt {
                place: place.clone(),
                lane: row.lane.clone(),
                version: row.version,
                ids: attempt.sent.clone(),
                targets: attempt.marker.targets.clone(),
                is_committed: attempt.is_committed,
            });
        }
        doubts.into_values().collect()
    }

    /// Takes up which ids of a transaction are in the log, where rows under these were removed; whether Kafka has torn it.
    pub fn settle(&mut self, doubt: &Doubt, found: &HashSet<Uuid>) -> bool {
        let Some(Attempt { marker, is_committed, .. }) = self.attempts.remove(&doubt.place) else { return false };
        let kept = marker.sent().iter().filter(|id| found.contains(id)).count();
        let torn = if is_committed { kept < marker.own } else { kept > 0 };
        // What was taken up since knows all that this one knows, but for rows that are removed now.
        let now = self.of.get(&doubt.place);
        if now == Some(&marker) || now == Some(&marker.clone().but(&HashSet::new())) {
            self.of.insert(doubt.place.clone(), marker.but(found));
        }
        torn
    }

    /// Whether the row has left, by the rule.
    pub fn has(&self, row: &OutboxRow) -> bool {
        self.of.get(&self.place(row)).is_some_and(|marker| marker.has(row))
    }

    /// The step that goes with rows of a source partition, in their order, each with the partition that it goes to.
    pub fn step(&self, rows: &[(&OutboxRow, i32)], step: &mut Step) {
        let mut of_version: BTreeMap<i32, Vec<(&OutboxRow, i32)>> = BTreeMap::new();
        for (row, partition) in rows {
            of_version.entry(row.version).or_default().push((*row, *partition));
        }
        for rows in of_version.into_values() {
            let place = self.place(rows[0].0);
            step.set.push((place.clone(), Marker::after(self.of.get(&place), &rows)));
            // Those of the version before this one are kept, in case Postgres goes back to it.
            step.forgotten.extend(self.of.keys().filter(|old| old.is_long_before(&place)).cloned());
        }
        step.forgotten.retain(|old| step.set.iter().all(|(place, _)| place != old));
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
    /// Notes from which offset on its records will stand in each partition.
    pub fn begin_at(&mut self, mut reached: impl FnMut(&str, i32) -> i64) {
        for target in self.set.iter_mut().flat_map(|(_, marker)| &mut marker.targets) {
            target.from = reached(&target.topic, target.partition);
        }
    }

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

impl Attempt {
    fn has_sent(&self, row: &OutboxRow) -> bool {
        self.marker.made == row.made && self.sent.contains(&row.event_id)
    }
}

impl Marker {
    fn has(&self, row: &OutboxRow) -> bool {
        self.made == row.made && row.out_seq <= self.out_seq && self.ids.contains(&row.event_id)
    }

    /// The ids that its own transaction has sent.
    fn sent(&self) -> &[Uuid] {
        &self.ids[self.ids.len().saturating_sub(self.own)..]
    }

    /// The same, where of what its transaction has sent only this is in the log.
    fn but(mut self, found: &HashSet<Uuid>) -> Self {
        let sent = self.ids.split_off(self.ids.len().saturating_sub(self.own));
        self.ids.extend(sent.into_iter().filter(|id| found.contains(id)));
        Self { own: 0, targets: Vec::new(), ..self }
    }

    fn after(earlier: Option<&Self>, rows: &[(&OutboxRow, i32)]) -> Self {
        let made = rows.last().map_or(0, |(row, _)| row.made);
        let earlier = earlier.filter(|marker| marker.made == made);
        let mut out_seq = earlier.map_or(0, |marker| marker.out_seq);
        let kept = earlier.map_or(&[][..], |marker| &marker.ids);
        let kept = &kept[kept.len().saturating_sub(KEPT.saturating_sub(rows.len()))..];
        let mut ids = Vec::with_capacity(kept.len() + rows.len());
        ids.extend_from_slice(kept);
        let mut targets: Vec<Target> = Vec::new();
        for (row, partition) in rows {
            out_seq = out_seq.max(row.out_seq);
            ids.push(row.event_id);
            let is_there = |target: &Target| (&target.topic, target.partition) == (&row.target_topic, *partition);
            if !targets.iter().any(is_there) {
                targets.push(Target { topic: row.target_topic.clone(), partition: *partition, from: 0 });
            }
        }
        Self { made, out_seq, ids, own: rows.len(), targets }
    }

    fn encode(&self) -> Vec<u8> {
        let ids: Vec<u8> = self.ids.iter().flat_map(|id| *id.as_bytes()).collect();
        json(&Value {
            made: self.made,
            out_seq: self.out_seq,
            event_id: self.ids.last().copied().unwrap_or_default(),
            ids: BASE64.encode(ids),
            own: self.own,
            targets: self.targets.clone(),
        })
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(payload).ok()?;
        let bytes = BASE64.decode(value.ids).ok()?;
        let ids = bytes.chunks_exact(16).filter_map(|id| Uuid::from_slice(id).ok()).collect();
        let Value { made, out_seq, own, targets, .. } = value;
        Some(Self { made, out_seq, ids, own, targets })
    }
}

/// Takes one record of the topic. What is not understood is not ours.
fn apply(of: &mut HashMap<Place, Marker>, installation: Uuid, record: &Record) {
    let key = record.key.as_deref();
    let Some(place) = key.and_then(|key| serde_json::from_slice::<Place>(key).ok()) else { return };
    if place.installation != installation {
        return;
    }
    match record.payload.as_deref().and_then(Marker::decode) {
        Some(marker) => drop(of.insert(place, marker)),
        None => drop(of.remove(&place)),
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: texts, numbers and ids are always JSON")
}

#[cfg(test)]
mod tests;
