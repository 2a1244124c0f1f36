//! A record that is set aside, as a row of `millpond.dead_letters`, which has all of it, and, where it is itself at fault,
//! as a record of the topic `<consumer>.dlq`, which has what fits.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    buffer::{Chunk, RawRecord},
    engine::Engine,
    parked::{RETRY, WAITS, longest_pause},
    prepare::Fault,
};
use crate::{
    domain::{Fingerprint, HEADER_DLQ_FINGERPRINT, HEADER_FINGERPRINT, TopicPartition, literal},
    schema::encode::fingerprint,
    store::{CopyBuffer, headers},
};

/// Room for what a mirror gets on top of its record: coordinates, ids, and the reason.
const OVERHEAD: usize = 16 * 1024;
/// Longest reason in a mirror, in bytes.
const LONGEST_REASON: usize = 8 * 1024;

/// Rows on their way to the table. A hot key may bring thousands in one batch, so they are copied.
pub const STAGE: &str =
    "create temp table if not exists _dead (\"offset\" int8, record_type text, key bytea, headers jsonb,
    payload bytea, edited bytea, recorded_at timestamptz, reason_class text, reason text, parked_at int8) on commit \
    delete rows";
pub const COPY: &str = "copy pg_temp._dead from stdin (format binary)";

/// What becomes of a record that is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It holds nothing up.
    Alone,
    /// Its key is parked with it.
    Head,
    /// Its key was parked at this offset.
    Behind(i64),
}

/// A record that is set aside with a batch.
pub struct DeadLetter<'a> {
    pub record: &'a RawRecord,
    pub fault: &'a Fault,
    pub place: Place,
}

impl DeadLetter<'_> {
    fn parked_at(&self) -> Option<i64> {
        match self.place {
            Place::Alone => None,
            Place::Head => Some(self.record.offset),
            Place::Behind(parked_at) => Some(parked_at),
        }
    }

    /// Whether the topic of dead letters gets it: what only waits may be applied yet, and is not told there.
    pub fn is_mirrored(&self) -> bool {
        self.fault.class != WAITS
    }

    /// Adds its row to a body of [`COPY`].
    pub fn stage(&self, chunk: &Chunk, rows: &mut CopyBuffer) {
        let text = |text: &str| text.replace('\0', "");
        rows.begin_row(10);
        rows.int8(self.record.offset);
        rows.text_or_null(self.fault.record_type.as_deref().map(text).as_deref());
        rows.bytes_or_null(chunk.key(self.record));
        rows.jsonb(&Value::from(self.headers(chunk)).to_string());
        rows.bytes_or_null(chunk.logged(self.record));
        rows.bytes_or_null(chunk.edited(self.record));
        rows.timestamp_millis(self.record.timestamp);
        rows.bytes(self.fault.class.as_bytes());
        rows.bytes(text(&self.fault.reason).as_bytes());
        match self.parked_at() {
            Some(parked_at) => rows.int8(parked_at),
            None => rows.null(),
        }
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
        let (key, payload) = (chunk.key(self.record), chunk.logged(self.record));
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
            headers.push(headers::to_json(HEADER_FINGERPRINT, Some(&Fingerprint::from(hash).to_hex())));
        }
        headers.extend(own.into_iter().map(|(name, value)| headers::to_json(name, Some(value.as_bytes()))));

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

    /// As they stand in the tables.
    fn headers(&self, chunk: &Chunk) -> Vec<Value> {
        chunk.headers(self.record).iter().map(|(name, value)| headers::to_json(name, value.as_deref())).collect()
    }
}

/// What the repeat of a record says that was set aside and holds nothing up: it has no effect, as the record has none.
pub const REPEAT: &str = "repeat_of_dead_letter";

/// Tells of repeats whose record has no effect. Of one whose record waits nothing is said yet: it may still have its effect.
pub fn repeats_sql(engine: &Engine, at: &TopicPartition, repeats: &[(i64, i64)]) -> String {
    let rows: Vec<String> = repeats.iter().map(|(offset, first)| format!("({offset}, {first})")).collect();
    format!(
        "insert into millpond.refusals (projection, version, topic, partition, \"offset\", code, reason)
         select d.projection, d.version, d.topic, d.partition, r.at, '{REPEAT}',
                'it repeats the record at offset ' || r.first || ', which was set aside: ' || d.reason
           from (values {}) as r(at, first) join millpond.dead_letters d
             on d.projection = {} and d.version = {} and d.topic = {} and d.partition = {} and d.\"offset\" = r.first
          where d.parked_at is null on conflict do nothing;\n",
        rows.join(", "),
        literal(&engine.projection),
        engine.version,
        literal(&at.topic),
        at.partition,
    )
}

/// The statements that put staged rows into the table, and their keys among the parked ones.
pub fn insert_sql(engine: &Engine, at: &TopicPartition, dead: &[DeadLetter<'_>]) -> String {
    let place =
        format!("{}, {}, {}, {}", literal(&engine.projection), engine.version, literal(&at.topic), at.partition);
    let mut sql = format!(
        "insert into millpond.dead_letters (projection, version, topic, partition, \"offset\", record_type, key, headers,
            payload, edited, recorded_at, reason_class, reason, parked_at)
         select {place}, d.* from pg_temp._dead d on conflict do nothing;\n"
    );
    if dead.iter().any(|letter| letter.place == Place::Head) {
        sql.push_str(&format!(
            "insert into millpond.parked_keys (projection, version, topic, partition, parked_at, key, head, records, state,
                attempts, retry_at)
             select {place}, d.parked_at, d.key, d.\"offset\", 0, 'parked', (d.reason_class = '{RETRY}')::int4,
                    case when d.reason_class = '{RETRY}' then {} end
               from pg_temp._dead d where d.parked_at = d.\"offset\";\n",
            retry_at_sql(1)
        ));
    }
    if dead.iter().any(|letter| letter.place != Place::Alone) {
        sql.push_str(&format!(
            "update millpond.parked_keys k set records = k.records + d.records
               from (select parked_at, count(*) as records from pg_temp._dead where parked_at is not null group by 1) d
              where (k.projection, k.version, k.topic, k.partition) = ({place}) and k.parked_at = d.parked_at;\n"
        ));
    }
    sql
}

/// When the attempt after so many is made: full jitter.
pub fn retry_at_sql(attempts: i32) -> String {
    format!("clock_timestamp() + random() * interval '{} s'", longest_pause(attempts).as_secs())
}

fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(LONGEST_REASON)]
}
