//! Verdicts: what was decided about single records and could not be found out again from the log. Each is a row beside its
//! effect, in one transaction, and a record of a compacted topic; whoever reads the log again acts by them.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{SecondsFormat, Utc};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tracing::warn;
use uuid::Uuid;

use super::{
    buffer::{Chunk, RawRecord},
    engine::Engine,
    parked::CRASH,
    prepare::Fault,
};
use crate::{
    domain::{TopicPartition, bytea, literal},
    store::{
        CopyBuffer,
        parked::SetAside,
        parked::Wish,
        verdicts::{Decided, Verdict},
    },
};

/// The compacted topic that has them all: what a backup of Kafka needs to have for rebuilds to come out the same.
pub const TOPIC: &str = "millpond.verdicts";
/// Longest reason in the topic, in bytes; the table has all of it.
const LONGEST_REASON: usize = 8 * 1024;
/// What a verdict's record has beside its payload, at most.
const OVERHEAD: usize = 16 * 1024;
/// In the place of an event's number among those of its record. What was decided leaves whichever version writes it down: of
/// a compacted topic the last one counts.
pub const INDEX: i32 = -2;
/// Who decides where nobody was asked.
const OWN: &str = "millpond";

/// A decision that is written down with its effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub offset: i64,
    what: &'static str,
    class: String,
    reason: String,
    by: String,
    payload: Option<Vec<u8>>,
    checksum: Vec<u8>,
}

/// What a record is recognised by when the log is read again, as `millpond.settle` computes it.
fn checksum(key: Option<&[u8]>, payload: Option<&[u8]>) -> Vec<u8> {
    let length = key.map_or("-1/".to_owned(), |key| format!("{}/", key.len()));
    let mut hash = Sha256::new();
    for part in [length.as_bytes(), key.unwrap_or_default(), payload.unwrap_or_default()] {
        hash.update(part);
    }
    hash.finalize().to_vec()
}

impl Decision {
    /// What was wanted of a record that is settled; none for one that had only waited.
    pub fn of(row: &SetAside) -> Option<Self> {
        let what = match (row.wanted, &row.edited) {
            (Some(Wish::Discard), _) => Wish::Discard,
            (_, Some(_)) => Wish::Edit,
            (Some(_), None) => Wish::Apply,
            (None, None) => return None,
        };
        Some(Self {
            offset: row.offset,
            what: what.as_str(),
            class: row.class.clone(),
            reason: row.reason.clone(),
            by: row.wanted_by.clone().unwrap_or_else(|| OWN.to_owned()),
            payload: row.edited.clone().filter(|_| what == Wish::Edit),
            checksum: checksum(row.key.as_deref(), row.payload.as_deref()),
        })
    }

    /// A record that is given up for a reason that another reading of the log might not come upon.
    pub fn dead_letter(chunk: &Chunk, record: &RawRecord, fault: &Fault) -> Self {
        Self {
            offset: record.offset,
            what: "dead_letter",
            class: fault.class.to_owned(),
            reason: fault.reason.clone(),
            by: OWN.to_owned(),
            payload: None,
            checksum: checksum(chunk.key(record), chunk.logged(record)),
        }
    }

    /// What its record in the topic is known by, beside the record that it is about and its number in the outbox. All of it is
    /// part of that: a database that went back in time gives the number anew, perhaps to another decision, which has not left.
    pub fn identity(&self, seq: i64) -> String {
        let payload = self.payload.as_deref().map(|payload| hex::encode(Sha256::digest(payload)));
        format!("{}/verdict/{seq}/{}/{}/{}", self.offset, self.what, payload.unwrap_or_default(), self.by)
    }

    /// The statement that writes down a decision of the engine's own; wishes are written down by `millpond.settle`.
    pub fn sql(&self, engine: &Engine, at: &TopicPartition) -> String {
        format!(
            "select millpond.decide({}, {}, {}, {}, {}, {}, null, {}, {}, {});\n",
            literal(&engine.projection),
            literal(&at.topic),
            at.partition,
            self.offset,
            bytea(Some(&self.checksum)),
            literal(self.what),
            literal(&self.class),
            literal(&self.reason),
            literal(&self.by),
        )
    }

    /// Adds its record to the rows of the outbox, under its number and id.
    pub fn stage(&self, engine: &Engine, at: &TopicPartition, (seq, id): (i64, Uuid), rows: &mut CopyBuffer) {
        let (consumer, offset) = (&engine.projection, self.offset);
        let reason = &self.reason[..self.reason.floor_char_boundary(LONGEST_REASON)];
        let mut value = json!({
            "consumer": consumer, "topic": &*at.topic, "partition": at.partition, "offset": offset, "what": self.what,
            "class": self.class, "reason": reason, "by": self.by, "record_sha256": hex::encode(&self.checksum),
            "at": Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
        });
        if let Some(payload) = &self.payload {
            // One that cannot be sent would hold up all that follows it.
            let text = STANDARD.encode(payload);
            if text.len() <= engine.max_record_bytes.saturating_sub(OVERHEAD) {
                value["payload"] = json!(text);
            } else {
                value["payload_omitted"] = json!(format!("{} bytes", payload.len()));
            }
        }
        rows.begin_row(9);
        rows.int8(seq);
        rows.int8(offset);
        rows.int4(INDEX);
        rows.bytes(id.as_bytes());
        rows.bytes(TOPIC.as_bytes());
        rows.bytes(b"Verdict");
        rows.bytes(format!("{consumer}/{at}/{offset}").as_bytes());
        rows.bytes(value.to_string().as_bytes());
        rows.jsonb("[]");
    }
}

/// The statement that writes down which verdicts are void. Another version may find the same at the same time.
pub fn review_sql(engine: &Engine, at: &TopicPartition, reviewed: &[(i64, bool)]) -> String {
    let rows: Vec<String> = reviewed.iter().map(|(offset, void)| format!("({offset}, {void})")).collect();
    format!(
        "update millpond.verdicts v set void = r.void from (values {}) as r(\"offset\", void)
          where (v.projection, v.topic, v.partition) = ({}, {}, {}) and v.\"offset\" = r.\"offset\";\n",
        rows.join(", "),
        literal(&engine.projection),
        literal(&at.topic),
        at.partition,
    )
}

/// What earlier readings of the log have decided about the records of a batch.
#[derive(Debug, Default)]
pub struct Recalled {
    /// By offset.
    acts: BTreeMap<i64, Verdict>,
    /// Whether verdicts are void of which the table says otherwise.
    reviewed: BTreeMap<i64, bool>,
}

impl Recalled {
    /// Puts edited values where they were edited, and keeps the rest for the batch. What was decided about a record that
    /// is not there any more, for the topic was made anew, says nothing about the one that has its offset now.
    pub fn of(found: Vec<Decided>, chunk: &mut Chunk) -> Self {
        let mut recalled = Self::default();
        for Decided { offset, checksum: expected, void, verdict } in found {
            let index = chunk.records.partition_point(|record| record.offset < offset);
            let Some(record) = chunk.records.get(index).filter(|record| record.offset == offset) else { continue };
            let another = checksum(chunk.key(record), chunk.logged(record)) != expected;
            if another != void {
                recalled.reviewed.insert(offset, another);
            }
            if another {
                if !void {
                    warn!(offset, "a verdict is about another record than the log has there now; not acting by it");
                }
                continue;
            }
            match verdict {
                Verdict::Edit(value) => {
                    chunk.edit(index, &value);
                    recalled.acts.insert(offset, Verdict::Apply);
                }
                verdict => drop(recalled.acts.insert(offset, verdict)),
            }
        }
        recalled
    }

    /// Verdicts from offset `from` to before `to` that the table has to be put right about.
    pub fn reviewed(&self, from: i64, to: i64) -> Vec<(i64, bool)> {
        self.reviewed.range(from..to).map(|(offset, void)| (*offset, *void)).collect()
    }

    /// Those of `range` that are passed over, and those that are set aside without a look.
    pub fn within(&self, chunk: &Chunk, range: std::ops::Range<usize>) -> (BTreeSet<usize>, BTreeMap<usize, Fault>) {
        let (mut discarded, mut faulty) = (BTreeSet::new(), BTreeMap::new());
        if self.acts.is_empty() {
            return (discarded, faulty);
        }
        for index in range {
            match self.acts.get(&chunk.records[index].offset) {
                Some(Verdict::Discard) => drop(discarded.insert(index)),
                Some(Verdict::DeadLetter { class, reason }) => {
                    let class = if class == CRASH { CRASH } else { "handler" };
                    drop(faulty.insert(index, Fault { class, reason: reason.clone(), record_type: None }));
                }
                Some(Verdict::Edit(_) | Verdict::Apply) | None => {}
            }
        }
        (discarded, faulty)
    }

    /// Those of `range` that somebody wanted to have applied.
    pub fn wanted(&self, chunk: &Chunk, range: std::ops::Range<usize>) -> BTreeSet<usize> {
        let wanted = |index: &usize| self.acts.get(&chunk.records[*index].offset) == Some(&Verdict::Apply);
        if self.acts.is_empty() { BTreeSet::new() } else { range.filter(wanted).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::subscription::Incoming;

    fn row(wanted: Option<Wish>, edited: Option<&[u8]>) -> SetAside {
        SetAside {
            offset: 7,
            timestamp: 0,
            key: None,
            headers: json!([]),
            payload: None,
            edited: edited.map(<[u8]>::to_vec),
            class: "decode".to_owned(),
            reason: "why".to_owned(),
            wanted,
            wanted_by: Some("ann".to_owned()),
            revision: 1,
            retry: false,
            next: None,
            next_goes_on: false,
        }
    }

    #[test]
    fn decision_is_what_a_rebuild_has_to_do() {
        let what = |wanted, edited| Decision::of(&row(wanted, edited)).map(|d| (d.what, d.payload));
        assert_eq!(what(None, None), None, "it only waited");
        assert_eq!(what(Some(Wish::Apply), None), Some(("apply", None)));
        assert_eq!(what(Some(Wish::Edit), Some(b"x")), Some(("edit", Some(b"x".to_vec()))));
        // An edit that failed before and is applied now, or that an earlier reading had made, is still an edit.
        assert_eq!(what(Some(Wish::Apply), Some(b"x")), Some(("edit", Some(b"x".to_vec()))));
        assert_eq!(what(None, Some(b"x")), Some(("edit", Some(b"x".to_vec()))));
        assert_eq!(what(Some(Wish::Discard), Some(b"x")), Some(("discard", None)));
    }

    #[test]
    fn decisions_about_one_record_under_one_number_are_told_apart() {
        let row = |wanted, edited, by: &str| SetAside { wanted_by: Some(by.to_owned()), ..row(Some(wanted), edited) };
        let decisions = [
            row(Wish::Discard, None, "ann"),
            row(Wish::Discard, None, "bob"),
            row(Wish::Apply, None, "ann"),
            row(Wish::Edit, Some(b"x"), "ann"),
            row(Wish::Edit, Some(b"y"), "ann"),
        ];
        let identities: BTreeSet<String> =
            decisions.iter().filter_map(Decision::of).map(|decision| decision.identity(3)).collect();
        assert_eq!(identities.len(), decisions.len(), "{identities:?}");
    }

    #[test]
    fn recalled_verdicts_meet_the_records_they_are_about_and_no_others() {
        let mut chunk = Chunk::default();
        for offset in [3, 5, 6, 9, 11] {
            let headers = &mut std::iter::empty();
            chunk.push(Incoming { offset, timestamp: 0, key: None, payload: Some(b"v"), headers });
        }
        let crash = Verdict::DeadLetter { class: "crash".to_owned(), reason: "r".to_owned() };
        let edit = |text: &[u8]| Verdict::Edit(text.to_vec());
        let about = |offset, payload: &[u8], void, verdict| {
            let checksum = checksum(None, Some(payload));
            Decided { offset, checksum, void, verdict }
        };
        let found = vec![
            about(3, b"v", false, edit(b"e")),
            about(4, b"v", false, edit(b"x")),
            about(5, b"v", true, Verdict::Discard),
            about(6, b"of another topic", false, Verdict::Discard),
            about(9, b"v", false, crash),
            about(11, b"of another topic", true, Verdict::Discard),
        ];
        let recalled = Recalled::of(found, &mut chunk);
        let payloads: Vec<_> = chunk.records.iter().map(|record| chunk.payload(record).unwrap()).collect();
        assert_eq!(payloads, [&b"e"[..], b"v", b"v", b"v", b"v"]);
        let (discarded, faulty) = recalled.within(&chunk, 0..5);
        assert_eq!(discarded, BTreeSet::from([1]));
        assert_eq!(faulty.into_iter().map(|(index, fault)| (index, fault.class)).collect::<Vec<_>>(), [(3, CRASH)]);
        assert_eq!(recalled.within(&chunk, 2..3).0, BTreeSet::new());
        assert_eq!(recalled.wanted(&chunk, 0..4), BTreeSet::from([0]));
        // The table learns of the record that is there again, and of the one that is not there any more.
        assert_eq!(recalled.reviewed(3, 12), [(5, false), (6, true)]);
        assert_eq!(recalled.reviewed(6, 9), [(6, true)]);
    }
}
