//! From raw records to rows ready for COPY: framing, schema id, relation, columns. Pure but for the registry's cache.
//!
//! Everything that can be known to be faulty before Postgres sees it is found here, record by record.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use super::{
    buffer::{Chunk, RawRecord},
    handler::{Effects, Record},
    only::Only,
};
use crate::{
    kafka::{
        self,
        registry::{Registered, Registry},
    },
    projection::{Compiled, Relation, TOMBSTONES},
    schema::{self, JsonDecoder, Schema, Scratch, Transcoder, framing, parse_registered, record_name},
    store::{CopyBuffer, fence::LastApplied},
};

/// Occurrences of one key that one batch may hold when it is applied in rounds: each round is a set of statements.
const MAX_ROUNDS: u32 = 64;

/// What a schema id stands for in this projection.
enum Route {
    /// A type that the projection does not read, by its full name.
    Skip(String),
    Rows {
        relation: usize,
        staged: Staged,
        record_type: String,
        transcoder: Box<Transcoder>,
    },
    Json {
        record_type: String,
        decoder: Box<JsonDecoder>,
    },
    /// The schema cannot be read as the pinned one.
    Unreadable {
        /// None for a schema that is not known.
        record_type: Option<String>,
        reason: String,
    },
}

/// The columns that rows of one relation are staged with.
#[derive(Debug, Clone, Copy)]
struct Staged {
    metadata: &'static [&'static str],
    columns: i16,
}

impl Staged {
    fn of(compiled: &Compiled, relation: &Relation) -> Self {
        let metadata = compiled.staged_metadata(relation);
        let columns = metadata.len() + relation.columns.len();
        Self { metadata, columns: i16::try_from(columns).expect("invariant: a schema has at most 1,000 fields") }
    }
}

/// Why a record cannot be applied.
#[derive(Debug, Clone)]
pub struct Fault {
    pub class: &'static str,
    pub reason: String,
    pub record_type: Option<String>,
}

/// A batch, decoded.
pub struct Prepared {
    /// One body per relation, in the projection's order.
    pub relations: Vec<CopyBuffer>,
    /// Index of the record in its chunk, and what is wrong with it.
    pub faults: Vec<(usize, Fault)>,
    pub records: Vec<Record>,
    pub rounds: u32,
    pub skipped: usize,
    pub last: Option<LastApplied>,
    /// Index after the last record that is part of this batch; less than asked for when rounds ran out, or before a
    /// record of an unknown schema.
    pub end: usize,
    /// Filled by a Rust handler.
    pub effects: Effects,
}

/// Why a batch cannot be decoded yet.
#[derive(Debug, thiserror::Error)]
#[error("schema id {0} is not in the registry (yet): its records wait; `millpond doctor` checks the registry")]
pub struct UnknownSchema(pub i32);

/// A record type that a projection reads.
pub struct Input {
    /// Simple name: `RecordDeparture`.
    pub record_type: String,
    /// As it stands in the schema, `flights.RecordDeparture`: what its records are known by.
    pub full_name: String,
    /// The version that the projection pins.
    pub reader: Schema,
}

/// Where the schemas are found that records were written with.
pub enum WriterSchemas {
    Registry(Arc<Registry>),
    /// By id; for records that no registry has seen.
    Known(HashMap<i32, Arc<Registered>>),
}

impl WriterSchemas {
    pub(super) fn by_id(&self, id: i32) -> Option<Arc<Registered>> {
        match self {
            Self::Registry(registry) => registry.schema_by_id(id),
            Self::Known(schemas) => schemas.get(&id).cloned(),
        }
    }

    /// As [`Self::by_id`], but asks Kafka now.
    async fn hold(&self, id: i32) -> Result<bool, kafka::Error> {
        let Self::Registry(registry) = self else { return Ok(self.by_id(id).is_some()) };
        let registry = Arc::clone(registry);
        // Without an answer it is not known to be absent.
        tokio::task::spawn_blocking(move || registry.holds(id)).await.unwrap_or(Ok(true))
    }
}

impl From<Arc<Registry>> for WriterSchemas {
    fn from(registry: Arc<Registry>) -> Self {
        Self::Registry(registry)
    }
}

/// Decodes the records of one projection.
pub struct Preparer {
    compiled: Arc<Compiled>,
    inputs: Vec<Input>,
    schemas: WriterSchemas,
    tombstones: Option<(usize, Staged)>,
    /// Records of types that the projection does not read are dead letters, not passed over.
    strict: bool,
    /// Which records are looked at; all without.
    only: Option<Only>,
    routes: RwLock<HashMap<i32, Arc<Route>>>,
    /// Schema ids that were waited for long enough: their records are faulty until the schema turns up.
    given_up: Mutex<HashSet<i32>>,
}

impl Preparer {
    pub fn new(compiled: Arc<Compiled>, inputs: Vec<Input>, strict: bool, schemas: impl Into<WriterSchemas>) -> Self {
        let relations = compiled.relations().iter().enumerate();
        let tombstones =
            relations.filter(|(_, r)| r.name == TOMBSTONES).map(|(at, r)| (at, Staged::of(&compiled, r))).next();
        Self {
            compiled,
            inputs,
            schemas: schemas.into(),
            tombstones,
            strict,
            only: None,
            routes: RwLock::default(),
            given_up: Mutex::default(),
        }
    }

    /// Looks at these records alone; the others are passed over.
    #[must_use]
    pub fn only(self, only: Only) -> Self {
        Self { only: Some(only).filter(|only| !only.is_all()), ..self }
    }

    fn is_wanted(&self, chunk: &Chunk, record: &RawRecord) -> bool {
        self.only.as_ref().is_none_or(|only| only.matches(&self.schemas, chunk.key(record), chunk.payload(record)))
    }

    /// Decodes `range` of a chunk, or its beginning: see `Prepared::end`. The records at the indexes `aside` are not looked
    /// at.
    pub fn prepare(
        &self,
        topic: &str,
        partition: i32,
        chunk: &Chunk,
        range: Range<usize>,
        aside: &BTreeSet<usize>,
    ) -> Result<Prepared, UnknownSchema> {
        let mut prepared = Prepared::nothing(&self.compiled, range.end);
        let mut scratch = Scratch::default();
        let mut seen: HashMap<&[u8], u32> = HashMap::new();
        for index in range.clone().filter(|index| !aside.contains(index)) {
            let record = &chunk.records[index];
            if !self.is_wanted(chunk, record) {
                prepared.skipped += 1;
                continue;
            }
            let mut round = 0;
            if self.compiled.needs_rounds() {
                let count = seen.entry(chunk.key(record).unwrap_or_default()).or_insert(0);
                round = *count;
                *count += 1;
                if round >= MAX_ROUNDS {
                    prepared.end = index;
                    break;
                }
                prepared.rounds = prepared.rounds.max(round + 1);
            }
            let meta = Meta { topic, partition, round };
            match self.record(&meta, chunk, record, &mut prepared, &mut scratch) {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => prepared.faults.push((index, fault)),
                // What is before it need not wait with it.
                Err(_) if index > range.start => {
                    prepared.end = index;
                    break;
                }
                Err(unknown) => return Err(unknown),
            }
        }
        for (relation, rows) in self.compiled.relations().iter().zip(&mut prepared.relations) {
            if let Some(key) = self.compiled.latest_by(relation).filter(|_| rows.rows() > 1) {
                rows.keep_last_by(key);
            }
        }
        prepared.last = chunk.records[range.start..prepared.end].last().map(|record| last_applied(chunk, record));
        Ok(prepared)
    }

    /// Whether a record is of a type that the projection reads, or may be: one that cannot be told yet is.
    pub fn may_read(&self, chunk: &Chunk, record: &RawRecord) -> bool {
        if !self.is_wanted(chunk, record) {
            return false;
        }
        let Some(payload) = chunk.payload(record) else { return self.tombstones.is_some() };
        let Ok((id, _)) = framing::split(payload) else { return true };
        match i32::try_from(id).ok().and_then(|id| self.route(id).ok()).as_deref() {
            Some(Route::Skip(_)) => self.strict,
            _ => true,
        }
    }

    /// The type of a record that was decoded before.
    pub fn record_type(&self, chunk: &Chunk, record: &RawRecord) -> Option<String> {
        let (id, _) = framing::split(chunk.payload(record)?).ok()?;
        match &*self.route(i32::try_from(id).ok()?).ok()? {
            Route::Skip(name) => Some(name.clone()),
            Route::Rows { record_type, .. } | Route::Json { record_type, .. } => Some(record_type.clone()),
            Route::Unreadable { record_type, .. } => record_type.clone(),
        }
    }

    fn record(
        &self,
        meta: &Meta<'_>,
        chunk: &Chunk,
        record: &RawRecord,
        prepared: &mut Prepared,
        scratch: &mut Scratch,
    ) -> Result<Result<(), Fault>, UnknownSchema> {
        let Some(payload) = chunk.payload(record) else {
            return Ok(self.tombstone(meta, chunk, record, prepared));
        };
        let (id, body) = match framing::split(payload) {
            Ok(split) => split,
            Err(error) => return Ok(Err(Fault { class: "decode", reason: error.to_string(), record_type: None })),
        };
        let id = i32::try_from(id).unwrap_or(i32::MAX);
        let route = self.route(id)?;
        match &*route {
            Route::Skip(name) if self.strict => {
                let reason = format!("records of type {name} are not expected here (unknown = \"dead_letter\")");
                return Ok(Err(Fault { class: "decode", reason, record_type: Some(name.clone()) }));
            }
            Route::Skip(_) => prepared.skipped += 1,
            Route::Unreadable { record_type, reason } => {
                return Ok(Err(Fault { class: "decode", reason: reason.clone(), record_type: record_type.clone() }));
            }
            Route::Rows { relation, staged, record_type, transcoder } => {
                let rows = &mut prepared.relations[*relation];
                let appended = row(rows, *staged, |rows| {
                    meta.append(staged.metadata, rows, chunk, record)?;
                    transcoder.append(body, scratch, rows.tail()).map_err(|fault| undecoded(record_type, &fault))
                });
                if let Err(fault) = appended {
                    return Ok(Err(Fault { record_type: Some(record_type.clone()), ..fault }));
                }
            }
            Route::Json { record_type, decoder } => {
                let mut json = Vec::new();
                if let Err(fault) = decoder.append_json(body, &mut json) {
                    return Ok(Err(undecoded(record_type, &fault)));
                }
                prepared.records.push(Record {
                    record_type: record_type.clone(),
                    key: chunk.key(record).map(|k| String::from_utf8_lossy(k).into_owned()),
                    topic: meta.topic.to_owned(),
                    partition: meta.partition,
                    offset: record.offset,
                    timestamp: record.timestamp,
                    json,
                });
            }
        }
        Ok(Ok(()))
    }

    /// A record without a payload: a row for the projections that read them.
    fn tombstone(
        &self,
        meta: &Meta<'_>,
        chunk: &Chunk,
        record: &RawRecord,
        prepared: &mut Prepared,
    ) -> Result<(), Fault> {
        let Some((relation, staged)) = self.tombstones else {
            prepared.skipped += 1;
            return Ok(());
        };
        row(&mut prepared.relations[relation], staged, |rows| meta.append(staged.metadata, rows, chunk, record))
    }

    fn route(&self, id: i32) -> Result<Arc<Route>, UnknownSchema> {
        if let Some(route) = self.routes.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(Arc::clone(route));
        }
        let Some(registered) = self.schemas.by_id(id) else {
            if !self.given_up.lock().unwrap_or_else(PoisonError::into_inner).contains(&id) {
                return Err(UnknownSchema(id));
            }
            let reason =
                format!("schema id {id} is not in the registry, and did not get there while it was waited for");
            return Ok(Arc::new(Route::Unreadable { record_type: None, reason }));
        };
        let route = Arc::new(self.compile_route(&registered));
        self.routes.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&route));
        Ok(route)
    }

    /// Ends the waiting for a schema, unless the registry has it after all: its records are faulty now. Should it be
    /// registered later, they no longer are.
    pub async fn give_up(&self, id: i32) -> Result<(), kafka::Error> {
        if !self.schemas.hold(id).await? {
            self.given_up.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        Ok(())
    }

    /// The schema itself says which type it is of: its subjects are whatever those who registered it called them, and
    /// one id may have several.
    fn compile_route(&self, registered: &Registered) -> Route {
        let text = &registered.text;
        let name = record_name(text).unwrap_or_else(|| registered.subject.clone());
        let Some(input) = self.inputs.iter().find(|input| input.full_name == name) else {
            return Route::Skip(name);
        };
        let record_type = input.record_type.clone();
        let unreadable = |reason: String| Route::Unreadable { record_type: Some(record_type.clone()), reason };
        let writer = match parse_registered(text) {
            Ok(writer) => writer,
            Err(error) => return unreadable(format!("the registered schema does not parse: {}", error.join("; "))),
        };
        if self.compiled.is_handler() {
            return match JsonDecoder::compile(&writer.schema, &input.reader) {
                Ok(decoder) => Route::Json { record_type, decoder: Box::new(decoder) },
                Err(error) => unreadable(error.to_string()),
            };
        }
        let relations = self.compiled.relations();
        let Some(relation) = relations.iter().position(|r| r.record_type == record_type) else {
            return Route::Skip(name);
        };
        let staged = Staged::of(&self.compiled, &relations[relation]);
        let wanted = |field: &str| relations[relation].column(field).is_some();
        match Transcoder::compile_columns(&writer.schema, &input.reader, &wanted) {
            Ok(transcoder) => Route::Rows { relation, staged, record_type, transcoder: Box::new(transcoder) },
            Err(error) => unreadable(error.to_string()),
        }
    }
}

impl Prepared {
    /// Nothing to apply: for a record that only becomes a dead letter.
    pub fn nothing(compiled: &Compiled, end: usize) -> Self {
        Self {
            relations: compiled.relations().iter().map(|_| CopyBuffer::default()).collect(),
            faults: Vec::new(),
            records: Vec::new(),
            rounds: 1,
            skipped: 0,
            last: None,
            end,
            effects: Effects::default(),
        }
    }
}

/// What identifies the last record of a batch when it is read again.
pub fn last_applied(chunk: &Chunk, record: &RawRecord) -> LastApplied {
    let checksum = checksum(chunk.key(record), chunk.logged(record));
    LastApplied { offset: record.offset, timestamp: record.timestamp, checksum }
}

/// CRC-32 over key and payload, each with its length.
pub fn checksum(key: Option<&[u8]>, payload: Option<&[u8]>) -> i64 {
    let mut crc = flate2::Crc::new();
    for part in [key, payload] {
        crc.update(&part.map_or(u64::MAX, |p| p.len() as u64).to_be_bytes());
        crc.update(part.unwrap_or_default());
    }
    i64::from(crc.sum())
}

/// Adds a row to a relation, or nothing.
fn row(
    rows: &mut CopyBuffer,
    staged: Staged,
    append: impl FnOnce(&mut CopyBuffer) -> Result<(), Fault>,
) -> Result<(), Fault> {
    rows.begin_row(staged.columns);
    append(rows).inspect_err(|_| rows.undo_row())
}

fn undecoded(record_type: &str, fault: &schema::Fault) -> Fault {
    Fault {
        class: "decode",
        reason: format!("{record_type}{}: expected {}, got {}", fault.pointer, fault.expected, fault.got),
        record_type: Some(record_type.to_owned()),
    }
}

struct Meta<'a> {
    topic: &'a str,
    partition: i32,
    round: u32,
}

impl Meta<'_> {
    /// The engine's own columns that the relation is staged with.
    fn append(&self, columns: &[&str], rows: &mut CopyBuffer, chunk: &Chunk, record: &RawRecord) -> Result<(), Fault> {
        let fault = |what: &str| Fault {
            class: "decode",
            reason: format!("{what} is not UTF-8 text without NUL"),
            record_type: None,
        };
        let text = |bytes| std::str::from_utf8(bytes).ok().filter(|t| !t.contains('\0'));
        for column in columns {
            match *column {
                "_key" => match chunk.key(record) {
                    None => rows.null(),
                    Some(key) => rows.bytes(text(key).ok_or_else(|| fault("the record's key"))?.as_bytes()),
                },
                "_partition" => rows.int4(self.partition),
                "_timestamp" => rows.timestamp_millis(record.timestamp),
                "_event_id" => match record.event_id.as_ref() {
                    Some(id) => rows.bytes(text(chunk.slice(id)).ok_or_else(|| fault("the event id"))?.as_bytes()),
                    // A record that did not come through ingest is identified by where it is.
                    None => rows.bytes(format!("{}/{}/{}", self.topic, self.partition, record.offset).as_bytes()),
                },
                // Offsets order the records of a batch over all relations: a batch is of one partition.
                "_offset" | "_seq" => rows.int8(record.offset),
                "_round" => rows.int4(i32::try_from(self.round).unwrap_or(i32::MAX)),
                _ => rows.null(),
            }
        }
        Ok(())
    }
}
