//! A record that cannot be applied, as a row of `millpond.dead_letters`, which has all of it, and as a record of the topic
//! `<consumer>.dlq`, which has what fits.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    buffer::{Chunk, RawRecord},
    engine::Engine,
    prepare::Fault,
};
use crate::{
    domain::{Fingerprint, HEADER_DLQ_FINGERPRINT, HEADER_FINGERPRINT, TopicPartition, bytea, literal},
    schema::encode::fingerprint,
    store::CopyBuffer,
};

/// Room for what a mirror gets on top of its record: coordinates, ids, and the reason.
const OVERHEAD: usize = 16 * 1024;
/// Longest reason in a mirror, in bytes.
const LONGEST_REASON: usize = 8 * 1024;

/// A dead letter that goes with a batch.
pub struct DeadLetter<'a> {
    pub record: &'a RawRecord,
    pub fault: &'a Fault,
}

impl DeadLetter<'_> {
    /// The statement that keeps it.
    pub fn sql(&self, engine: &Engine, chunk: &Chunk, at: &TopicPartition) -> String {
        format!(
            "insert into millpond.dead_letters (projection, version, topic, partition, \"offset\", record_type, key,
                headers, payload, recorded_at, reason_class, reason)
             values ({}, {}, {}, {}, {}, {}, {}, {}::jsonb, {}, to_timestamp({} / 1000.0), {}, {}) on conflict do \
             nothing;\n",
            literal(&engine.projection),
            engine.version,
            literal(&at.topic),
            at.partition,
            self.record.offset,
            self.fault.record_type.as_deref().map_or("null".to_owned(), literal),
            bytea(chunk.key(self.record)),
            literal(&Value::from(self.headers(chunk)).to_string()),
            bytea(chunk.payload(self.record)),
            self.record.timestamp,
            literal(self.fault.class),
            literal(&self.fault.reason),
        )
    }

    /// Adds the mirror to the rows of the outbox, under its number and id. What would make it larger than a topic takes is
    /// left out, and a header says so: a mirror that cannot be sent would hold up all that follows it.
    pub fn stage_mirror(
        &self,
        engine: &Engine,
        chunk: &Chunk,
        at: &TopicPartition,
        (seq, id): (i64, Uuid),
        rows: &mut CopyBuffer,
    ) {
        let mut own = vec![
            ("mp-dlq-topic", at.topic.to_string()),
            ("mp-dlq-partition", at.partition.to_string()),
            ("mp-dlq-offset", self.record.offset.to_string()),
            ("mp-dlq-class", self.fault.class.to_owned()),
            ("mp-dlq-reason", cut(&self.fault.reason).to_owned()),
        ];
        let mut room = engine.max_record_bytes.saturating_sub(OVERHEAD);
        let mut fits = |bytes: usize, omitted: &'static str| {
            let fits = bytes <= room;
            if fits {
                room -= bytes;
            } else {
                own.push((omitted, format!("{bytes} bytes")));
            }
            fits
        };
        let (key, payload) = (chunk.key(self.record), chunk.payload(self.record));
        let key = key.filter(|key| fits(key.len(), "mp-dlq-key-omitted"));
        let headers = fits(chunk.header_bytes(self.record), "mp-dlq-headers-omitted");
        let payload = payload.filter(|payload| fits(payload.len(), "mp-dlq-payload-omitted"));
        let mut headers = if headers { self.headers(chunk) } else { Vec::new() };
        // The mirror is a record of its own: what it came with goes by another name.
        for name in headers.iter_mut().filter_map(|pair| pair.get_mut(0)).filter(|name| **name == HEADER_FINGERPRINT) {
            *name = HEADER_DLQ_FINGERPRINT.into();
        }
        let place = json!([&*at.topic, at.partition, self.record.offset]).to_string();
        if let Some(hash) = fingerprint("dead letter", place.as_bytes()) {
            headers.push(json!([HEADER_FINGERPRINT, base64(&Fingerprint::from(hash).to_hex())]));
        }
        headers.extend(own.into_iter().map(|(name, value)| json!([name, base64(value.as_bytes())])));

        rows.begin_row(9);
        rows.int8(seq);
        rows.int8(self.record.offset);
        rows.int4(-1);
        rows.bytes(id.as_bytes());
        rows.bytes(format!("{}.dlq", engine.projection).as_bytes());
        rows.bytes(self.fault.record_type.as_deref().unwrap_or_default().as_bytes());
        rows.bytes_or_null(key);
        rows.bytes_or_null(payload);
        rows.jsonb(&Value::from(headers).to_string());
    }

    /// Pairs of name and value. JSON in Postgres has no NUL.
    fn headers(&self, chunk: &Chunk) -> Vec<Value> {
        let headers = chunk.headers(self.record).into_iter();
        headers.map(|(name, value)| json!([name.replace('\0', ""), value.map(|v| base64(&v))])).collect()
    }
}

fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(LONGEST_REASON)]
}

/// How bytes stand in JSON.
pub(super) fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
