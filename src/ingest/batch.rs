//! From JSON documents to one encoded batch: validate, encode, key, id, all in one buffer.

use std::ops::Range;

use serde::Serialize;

use super::{contract::Contract, event_id::EventIds, negotiate::MAX_EVENT_ID_BYTES};
use crate::{
    domain::Fingerprint,
    kafka::EncodedRecord,
    schema::{
        Fault,
        encode::{Captured, fingerprint},
        framing,
    },
};

/// Faults that an answer lists; further ones are counted.
pub(super) const MAX_LISTED_FAULTS: usize = 100;
/// Between the parts of a key; inside of a part it is written `%2F`, so that different fields make different keys.
const KEY_SEPARATOR: u8 = b'/';

/// A fault, and the record it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct RecordFault {
    /// From 0, over all records of the body.
    pub(super) index: usize,
    /// From 1; only in NDJSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<usize>,
    #[serde(flatten)]
    pub(super) fault: Fault,
}

/// The faults of a request: the first ones in full, all of them in number.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) listed: Vec<RecordFault>,
    /// Faults in all.
    pub(super) total: usize,
    /// Records that have at least one.
    pub(super) records: usize,
}

impl Faults {
    pub(super) fn add(&mut self, index: usize, line: Option<usize>, faults: Vec<Fault>) {
        self.records += 1;
        self.total += faults.len();
        let room = MAX_LISTED_FAULTS.saturating_sub(self.listed.len());
        self.listed.extend(faults.into_iter().take(room).map(|fault| RecordFault { index, line, fault }));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }
}

/// Where a record stands in its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// From 0, over all records of the body.
    pub(super) index: usize,
    /// From 1; only in NDJSON.
    pub(super) line: Option<usize>,
}

/// Limits on one record, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordLimits {
    /// Longest JSON, by the contract.
    pub(super) json: usize,
    /// Longest key and payload together, by Kafka.
    pub(super) encoded: usize,
}

/// Encodes the records of one request, or of one chunk of it.
///
/// Each record's payload, key, event id and fingerprint follow one another in one buffer: nothing is allocated per record.
pub(super) struct Encoder<'a> {
    contract: &'a Contract,
    schema_id: u32,
    limits: RecordLimits,
    single: bool,
    ids: EventIds,
    /// Records whose id the client has given.
    client_ids: usize,
    captured: Captured,
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<EncodedRecord>,
    pub(super) places: Vec<Place>,
}

impl<'a> Encoder<'a> {
    /// `single` where the body is one record and no list.
    pub(super) fn new(
        contract: &'a Contract,
        schema_id: u32,
        limits: RecordLimits,
        single: bool,
        ids: EventIds,
    ) -> Self {
        Self {
            contract,
            schema_id,
            limits,
            single,
            ids,
            client_ids: 0,
            captured: Captured::new(),
            bytes: Vec::new(),
            records: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Makes room for so much JSON; Avro is seldom longer, and the keys and ids make up for most of the difference.
    pub(super) fn reserve(&mut self, json_bytes: usize) {
        self.bytes.reserve(json_bytes);
    }

    /// Adds one record, or says what is wrong with it and leaves the buffer as it was.
    pub(super) fn add(&mut self, place: Place, json: &[u8]) -> Result<(), Vec<Fault>> {
        if json.len() > self.limits.json {
            return Err(vec![too_long("JSON", self.limits.json, json.len())]);
        }
        let start = self.bytes.len();
        framing::write_header(self.schema_id, &mut self.bytes);
        let encoded = self.contract.encoder.encode(json, &mut self.bytes, &mut self.captured);
        let added = encoded.and_then(|()| self.add_key_and_id(start, place, json));
        if added.is_err() {
            self.bytes.truncate(start);
        }
        added
    }

    fn add_key_and_id(&mut self, start: usize, place: Place, json: &[u8]) -> Result<(), Vec<Fault>> {
        let (payload_end, mut faults) = (self.bytes.len(), Vec::new());
        append_key(&mut self.bytes, &self.contract.key, &self.captured, &mut faults);
        let key_end = self.bytes.len();
        let own_id = match &self.contract.event_id {
            Some(field) => match self.captured.get(self.contract.key.len()) {
                Some(id) => check_id(field, id, &mut faults).then_some(id),
                None => None,
            },
            None => None,
        };
        match own_id {
            Some(id) => self.bytes.extend_from_slice(id.as_bytes()),
            None => self.ids.append(&mut self.bytes, place.index, self.single),
        }
        if key_end - start > self.limits.encoded {
            faults.push(too_long("Avro and key", self.limits.encoded, key_end - start));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let id_end = self.bytes.len();
        if own_id.is_some() || self.ids.are_the_clients() {
            self.client_ids += 1;
            let hash = fingerprint(&self.contract.name, json).expect("invariant: what was encoded is JSON");
            self.bytes.extend_from_slice(&Fingerprint::from(hash).to_hex());
        }
        self.records.push(EncodedRecord {
            key: Some(range(payload_end, key_end)),
            payload: Some(range(start, payload_end)),
            event_id: range(key_end, id_end),
            fingerprint: range(id_end, self.bytes.len()),
        });
        self.places.push(place);
        Ok(())
    }

    /// Whether a repeat of the request would carry the same ids.
    pub(super) fn has_client_ids(&self) -> bool {
        self.client_ids == self.records.len()
    }

    /// Takes what was encoded so far, to be sent; the next records begin a new batch.
    pub(super) fn take(&mut self) -> Encoded {
        let has_client_ids = self.has_client_ids();
        self.client_ids = 0;
        let next = (self.bytes.len(), self.records.len());
        Encoded {
            bytes: std::mem::replace(&mut self.bytes, Vec::with_capacity(next.0)),
            records: std::mem::replace(&mut self.records, Vec::with_capacity(next.1)),
            places: std::mem::take(&mut self.places),
            has_client_ids,
        }
    }
}

/// Records that are ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<EncodedRecord>,
    /// Where each stands in the body.
    pub(super) places: Vec<Place>,
    /// Whether every id is the client's own.
    pub(super) has_client_ids: bool,
}

impl Encoded {
    fn text(&self, range: &Range<u32>) -> &str {
        let bytes = self.bytes.get(range.start as usize..range.end as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    pub(super) fn key(&self, record: &EncodedRecord) -> &str {
        record.key.as_ref().map_or("", |range| self.text(range))
    }

    pub(super) fn event_id(&self, record: &EncodedRecord) -> &str {
        self.text(&record.event_id)
    }

    /// A copy of the event ids, for the answer: the batch itself is handed on.
    pub(super) fn event_ids(&self) -> IdList {
        let mut list = IdList { text: String::new(), ends: Vec::with_capacity(self.records.len()) };
        for record in &self.records {
            list.text.push_str(self.event_id(record));
            list.ends.push(list.text.len());
        }
        list
    }
}

/// The event ids of a batch, in one text.
#[derive(Debug, Default)]
pub(super) struct IdList {
    text: String,
    ends: Vec<usize>,
}

impl IdList {
    pub(super) fn get(&self, at: usize) -> Option<&str> {
        let start = at.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.text.get(start..*self.ends.get(at)?)
    }
}

/// What would be wrong with one record, without ids or limits of Kafka: for examples and the like.
pub(super) fn check_record(contract: &Contract, max_bytes: usize, json: &[u8]) -> Result<(), Vec<Fault>> {
    let limits = RecordLimits { json: max_bytes, encoded: usize::MAX };
    let ids = EventIds::new(Some("example".into()));
    Encoder::new(contract, 0, limits, true, ids).add(Place { index: 0, line: None }, json)
}

/// The key of a record with these fields, captured in this order; none when one of them cannot be in a key.
pub fn key_of(fields: &[String], captured: &Captured) -> Option<Vec<u8>> {
    let (mut key, mut faults) = (Vec::new(), Vec::new());
    append_key(&mut key, fields, captured, &mut faults);
    faults.is_empty().then_some(key)
}

fn append_key(out: &mut Vec<u8>, fields: &[String], captured: &Captured, faults: &mut Vec<Fault>) {
    for (at, field) in fields.iter().enumerate() {
        if at > 0 {
            out.push(KEY_SEPARATOR);
        }
        match captured.get(at) {
            None => faults.push(of_field(field, "a value, for the field is part of the record's key", "null")),
            Some("") => faults.push(of_field(
                field,
                "a text that is not empty, for the field is part of the record's key",
                "\"\"",
            )),
            Some(text) if fields.len() == 1 => out.extend_from_slice(text.as_bytes()),
            Some(text) => append_escaped(out, text),
        }
    }
}

fn append_escaped(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match byte {
            KEY_SEPARATOR => out.extend_from_slice(b"%2F"),
            b'%' => out.extend_from_slice(b"%25"),
            other => out.push(other),
        }
    }
}

fn check_id(field: &str, id: &str, faults: &mut Vec<Fault>) -> bool {
    let sound = !id.is_empty() && id.len() <= MAX_EVENT_ID_BYTES;
    if !sound {
        let got = if id.is_empty() { "\"\"".to_owned() } else { format!("{} bytes", id.len()) };
        faults.push(of_field(field, "an event id of 1 to 255 bytes", &got));
    }
    sound
}

fn of_field(field: &str, expected: &str, got: &str) -> Fault {
    // Avro's names need no escapes in a pointer.
    Fault { pointer: format!("/{field}"), ..Fault::new(expected, got) }
}

fn too_long(what: &str, limit: usize, got: usize) -> Fault {
    Fault::new(format!("a record of at most {limit} bytes of {what}"), format!("{got} bytes"))
}

/// Batches are far below 4 GiB: strict ones are bounded by `Options::max_strict_bytes`, lenient ones by their chunk.
fn range(start: usize, end: usize) -> Range<u32> {
    let narrow = |at| u32::try_from(at).expect("invariant: a batch is smaller than 4 GiB");
    narrow(start)..narrow(end)
}
