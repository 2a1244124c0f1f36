//! One batch, one transaction: stage, then fence, rows, dead letters, outbox and commit in a single flush. Before it, what a
//! handler decides.
//!
//! Rows are staged before the fence row is touched, so that its lock is never held while the server waits for us:
//! from the compare-and-set to COMMIT there is one message and one answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use uuid::Uuid;

use super::{
    buffer::Chunk,
    dead_letter::{self, DeadLetter},
    drained::Drained,
    engine::Engine,
    guard::{Attempt, Turn},
    handler::{self, HandlerError, State},
    overdue::Overdue,
    parked::RETRY,
    partition::Partition,
    prepare::{Fault, Prepared},
    verdict::{self, Decision},
};
use crate::{
    domain::{Fingerprint, HEADER_EVENT_ID, HEADER_FINGERPRINT, literal},
    planted::{self, Bug},
    projection::Append,
    schema::encode::fingerprint,
    store::{
        self, CopyBuffer, Session,
        fence::{Advance, Claim},
        headers,
        seen::{self, Entry},
    },
};

/// Namespace of the ids of emitted events (UUIDv5 over version lineage and source).
const EVENT_NAMESPACE: Uuid = Uuid::from_u128(0x6d69_6c6c_706f_6e64_8f2b_6f75_7462_6f78);

/// Rows of handlers on their way to the tables. This and [`OUTBOX_STAGE`] are made in the first transaction of a session
/// that needs them: Postgres empties every temporary table at each commit, used or not.
const ROWS_STAGE: &str = "create temp table if not exists _rows
    (tbl text, ord int8, deleted bool, row jsonb) on commit delete rows";
/// What goes to the outbox, counted before the fence moves.
const OUTBOX_STAGE: &str = "create temp table if not exists _outbox (out_seq int8, source_offset int8, index int4,
    event_id uuid, target_topic text, record_type text, key bytea, payload bytea, headers jsonb) on commit delete rows";

/// Everything one transaction does.
pub struct Work<'a> {
    pub claim: &'a Claim,
    pub chunk: &'a Chunk,
    pub from: i64,
    pub to: i64,
    pub prepared: Prepared,
    /// While the crash guard watches, the turn to be at work: it wants to know when nothing is any more.
    pub watched: Option<Turn>,
    pub dead: Vec<DeadLetter<'a>>,
    /// Ids to be remembered from now on.
    pub ids: BTreeMap<&'a str, Entry>,
    /// Repeats, each with the offset of the record that it repeats.
    pub repeats: Vec<(i64, i64)>,
    /// Greatest timestamp of its records.
    pub log_time: Option<i64>,
    /// What the engine itself has decided about records of the batch.
    pub decisions: Vec<Decision>,
    /// Offsets of verdicts that turn out to be about another record than the log has (true), or about the one it has again.
    pub reviewed: Vec<(i64, bool)>,
    /// What becomes of records that were set aside before; the fence stays where it is then.
    pub drained: Option<Drained<'a>>,
}

impl<'a> Work<'a> {
    /// Moves the fence, and nothing else.
    pub fn new(claim: &'a Claim, chunk: &'a Chunk, to: i64, prepared: Prepared) -> Self {
        let from = claim.next_offset;
        let (dead, decisions) = (Vec::new(), Vec::new());
        Self {
            claim,
            chunk,
            from,
            to,
            prepared,
            watched: None,
            dead,
            ids: BTreeMap::new(),
            repeats: Vec::new(),
            log_time: None,
            decisions,
            reviewed: Vec::new(),
            drained: None,
        }
    }
}

/// Why a transaction did not commit.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A record that can never be applied, by its offset.
    #[error("{}", .1.reason)]
    Record(i64, Fault),
}

/// What a committed transaction did.
pub struct Committed {
    /// The outbox number it ends at.
    pub out_seq: i64,
    /// Commands that the handler refused.
    pub refused: usize,
    /// From the moment on at which a session was there for it.
    pub took: Duration,
}

impl Work<'_> {
    /// The batch is decoded, and waits for a session: that ends no process.
    pub async fn wait(&self, engine: &Engine) -> Result<(), store::Error> {
        let Some(turn) = &self.watched else { return Ok(()) };
        let attempt = Attempt { engine, claim: self.claim, turn };
        if self.has_handler(engine) { attempt.pause().await } else { attempt.end().await }
    }

    fn has_handler(&self, engine: &Engine) -> bool {
        engine.handler.is_some() && !self.prepared.records.is_empty()
    }
}

/// Has a handler decide what a batch does, before its transaction: however long that takes, no lock is held meanwhile, and
/// Postgres does not end the session of a transaction that stands still. What it has read is of no use once the fence has
/// moved; then the transaction fails.
pub async fn decide(
    engine: &Arc<Engine>,
    partition: &Arc<Partition>,
    session: &Session,
    work: &mut Work<'_>,
) -> Result<(), Failure> {
    let Some(handler) = engine.handler.as_ref().filter(|_| work.has_handler(engine)) else { return Ok(()) };
    let turn = work.watched.clone();
    let attempt = turn.as_ref().map(|turn| Attempt { engine: engine.as_ref(), claim: work.claim, turn });
    if let Some(attempt) = attempt {
        attempt.resume().await?;
    }
    let records = std::mem::take(&mut work.prepared.records);
    let mut state = State { session, schema: &engine.schema, attempt };
    let overdue = Overdue::watch(engine, partition, &records);
    handler.apply(&records, &mut state, &mut work.prepared.effects).await.map_err(|e| match e {
        HandlerError::Store(e) => Failure::Store(e),
        HandlerError::Reject { offset, reason } => {
            Failure::Record(offset, Fault { class: "handler", reason, record_type: None })
        }
        HandlerError::Retry { offset, reason } => {
            Failure::Record(offset, Fault { class: RETRY, reason, record_type: None })
        }
    })?;
    drop(overdue);
    work.prepared.effects.check(&engine.compiled)?;
    if let Some(attempt) = attempt {
        attempt.end().await?;
    }
    Ok(())
}

/// Runs the transaction to its commit, with what [`decide`] left in `work`.
pub async fn run(engine: &Engine, session: &mut Session, mut work: Work<'_>) -> Result<Committed, Failure> {
    session.run("begin").await?;
    let with_rows = stage_rows(engine, session, &mut work).await?;
    stage_dead(session, &work).await?;
    let outbox = stage_outbox(engine, session, &work).await?;
    let tables = stage_effects(session, &work).await?;
    if !work.ids.is_empty() {
        seen::stage(session, work.ids.iter().map(|(id, entry)| (*id, *entry))).await?;
    }
    let mut flush = flush_sql(engine, &work, outbox, &with_rows, &tables);
    if planted::is(Bug::OffsetApart)
        && let Some((fence, rows)) = flush.split_once('\n')
    {
        session.run(rows).await?;
        flush = format!("begin;\n{fence}\ncommit");
    }
    session.run(&flush).await?;
    let refused = work.prepared.effects.refusals.len();
    Ok(Committed { out_seq: work.claim.out_seq + outbox, refused, took: Duration::ZERO })
}

fn flush_sql(engine: &Engine, work: &Work<'_>, emitted: i64, with_rows: &BTreeSet<&str>, tables: &[String]) -> String {
    let advance = Advance {
        projection: &engine.projection,
        version: engine.version,
        claim: work.claim,
        from: work.from,
        to: work.to,
        last: work.prepared.last,
        emitted,
        log_time: work.log_time,
    };
    let mut sql = advance.sql();
    sql.push('\n');
    sql.push_str(&engine.compiled.apply_sql(engine.version, work.prepared.rounds, with_rows));
    for table in tables {
        // Every one is declared: `Effects::check`.
        if let Some(info) = engine.compiled.table(table) {
            let columns: Vec<String> = info.columns.iter().map(|c| c.name.clone()).collect();
            sql.push_str(&handler::write_rows_sql(&engine.schema, table, &columns, &info.key));
        }
    }
    if !work.ids.is_empty() {
        sql.push_str(&seen::insert_sql(&engine.schema, work.claim));
    }
    if !work.dead.is_empty() {
        sql.push_str(&dead_letter::insert_sql(engine, &work.claim.at, &work.dead));
    }
    if !work.repeats.is_empty() {
        sql.push_str(&dead_letter::repeats_sql(engine, &work.claim.at, &work.repeats));
    }
    if let Some(drained) = &work.drained {
        sql.push_str(&drained.sql(engine, &work.claim.at));
    }
    if !work.reviewed.is_empty() {
        sql.push_str(&verdict::review_sql(engine, &work.claim.at, &work.reviewed));
    }
    for decision in &work.decisions {
        sql.push_str(&decision.sql(engine, &work.claim.at));
    }
    for refusal in &work.prepared.effects.refusals {
        sql.push_str(&format!(
            "insert into millpond.refusals (projection, version, topic, partition, \"offset\", code, reason)
             values ({}, {}, {}, {}, {}, {}, {}) on conflict do nothing;\n",
            literal(&engine.projection),
            engine.version,
            literal(&work.claim.at.topic),
            work.claim.at.partition,
            refusal.offset,
            literal(&refusal.code),
            literal(&refusal.reason),
        ));
    }
    if emitted > 0 {
        sql.push_str(&format!(
            "insert into millpond.outbox (projection, version, topic, partition, out_seq, source_offset, index, event_id,
               target_topic, record_type, key, payload, headers, held)
             select v.projection, v.version, {2}, {3}, o.*, v.state not in ({5}) and o.index <> {4}
               from pg_temp._outbox o, millpond.versions v
              where v.projection = {0} and v.version = {1};\n",
            literal(&engine.projection),
            engine.version,
            literal(&work.claim.at.topic),
            work.claim.at.partition,
            verdict::INDEX,
            if planted::is(Bug::BuildSends) { "'live', 'building'" } else { "'live'" },
        ));
    }
    sql.push_str("commit");
    sql
}

/// Stages the rows of each relation, or appends them to its table; returns the relations that have staged ones.
async fn stage_rows<'a>(
    engine: &'a Engine,
    session: &mut Session,
    work: &mut Work<'_>,
) -> Result<BTreeSet<&'a str>, store::Error> {
    let rows = std::mem::take(&mut work.prepared.relations);
    let with_rows = || engine.compiled.relations().iter().zip(&rows).filter(|(_, rows)| rows.rows() > 0);
    let mut staged: BTreeSet<&str> = with_rows().map(|(relation, _)| relation.name.as_str()).collect();
    // What was set aside comes after rows of its key.
    let appends = engine.vitals.appends() && work.drained.is_none();
    for (relation, rows) in engine.compiled.relations().iter().zip(rows).filter(|(_, rows)| rows.rows() > 0) {
        let append = engine.compiled.append(engine.version, relation, &staged).filter(|_| appends);
        if let Some(Append { statement, fields }) = append {
            session.copy_in(&statement, rows.select(&fields).finish()).await?;
            staged.remove(relation.name.as_str());
        } else {
            let statement = engine.compiled.copy_sql(&relation.name).unwrap_or_default();
            session.copy_in(&statement, rows.finish()).await?;
        }
    }
    Ok(staged)
}

async fn stage_dead(session: &mut Session, work: &Work<'_>) -> Result<(), store::Error> {
    if work.dead.is_empty() {
        return Ok(());
    }
    let mut rows = CopyBuffer::default();
    work.dead.iter().for_each(|dead| dead.stage(work.chunk, &mut rows));
    session.run(dead_letter::STAGE).await?;
    session.copy_in(dead_letter::COPY, rows.finish()).await
}

/// Stages emitted events, the mirrors of dead letters and verdicts; returns how many rows the outbox gets.
async fn stage_outbox(engine: &Engine, session: &mut Session, work: &Work<'_>) -> Result<i64, Failure> {
    let mut rows = CopyBuffer::default();
    let first = if planted::is(Bug::SharedSequence) { planted::shared_number() } else { work.claim.out_seq };
    let mut seq = first;
    // A handler may come back to a record after others; its events are numbered through all the same.
    let mut emitted_of: HashMap<i64, i32> = HashMap::new();
    for event in &work.prepared.effects.emitted {
        let next = emitted_of.entry(event.source_offset).or_insert(0);
        let index = *next;
        *next += 1;
        let encoded = engine.emit(event).map_err(|fault| Failure::Record(event.source_offset, fault))?;
        seq += 1;
        let id = event_id(engine, work.claim, event.source_offset, index);
        // By it those who read the event know it when they meet it again: sent twice by the relay, or emitted anew by a
        // version that reads the log from its start. Of every event: who will read the log, and when, is not known here, and
        // the one that comes first has to carry it.
        let said = fingerprint(&event.record_type, event.json.as_bytes()).map(|hash| Fingerprint::from(hash).to_hex());
        let said = said.map(|said| headers::to_json(HEADER_FINGERPRINT, Some(&said)));
        let headers = std::iter::once(headers::to_json(HEADER_EVENT_ID, Some(id.to_string().as_bytes()))).chain(said);
        let headers = Value::from_iter(headers).to_string();
        rows.begin_row(9);
        rows.int8(seq);
        rows.int8(event.source_offset);
        rows.int4(index);
        rows.bytes(id.as_bytes());
        rows.bytes(encoded.topic.as_bytes());
        rows.bytes(event.record_type.as_bytes());
        rows.text_or_null(event.key.as_deref());
        rows.bytes(&encoded.payload);
        rows.jsonb(&headers);
    }
    let setback = work.drained.iter().filter_map(Drained::mirror);
    for dead in work.dead.iter().chain(setback).filter(|dead| dead.is_mirrored()) {
        seq += 1;
        let id = event_id(engine, work.claim, dead.record.offset, -1);
        dead.stage_mirror(engine, work.chunk, &work.claim.at, (seq, id), &mut rows);
    }
    let drained = work.drained.iter().flat_map(Drained::decisions);
    for decision in work.decisions.iter().cloned().chain(drained) {
        seq += 1;
        let id = verdict_id(engine, work.claim, &decision.identity(seq));
        decision.stage(engine, &work.claim.at, (seq, id), &mut rows);
    }
    let emitted = seq - first;
    if emitted > 0 {
        session.run(OUTBOX_STAGE).await?;
        session.copy_in("copy pg_temp._outbox from stdin (format binary)", rows.finish()).await?;
    }
    Ok(emitted)
}

/// The same source and index give the same id, in every version and after every crash.
fn event_id(engine: &Engine, claim: &Claim, offset: i64, index: i32) -> Uuid {
    let name = format!("{}/{}/{}/{offset}/{index}", engine.projection, claim.at.topic, claim.at.partition);
    Uuid::new_v5(&EVENT_NAMESPACE, name.as_bytes())
}

/// A record may be decided about more than once: each time is an event of its own.
fn verdict_id(engine: &Engine, claim: &Claim, identity: &str) -> Uuid {
    let (name, version) = (&engine.projection, engine.version);
    let name = format!("{name}/v{version}/{}/{}/{identity}", claim.at.topic, claim.at.partition);
    Uuid::new_v5(&EVENT_NAMESPACE, name.as_bytes())
}

async fn stage_effects(session: &mut Session, work: &Work<'_>) -> Result<Vec<String>, store::Error> {
    let effects = &work.prepared.effects.rows;
    if effects.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows = CopyBuffer::default();
    let mut tables: Vec<String> = Vec::new();
    for (order, effect) in (0_i64..).zip(effects) {
        rows.begin_row(4);
        rows.bytes(effect.table.as_bytes());
        rows.int8(order);
        rows.bytes(&[u8::from(effect.deleted)]);
        rows.jsonb(&effect.row);
        if !tables.contains(&effect.table) {
            tables.push(effect.table.clone());
        }
    }
    tables.sort();
    session.run(ROWS_STAGE).await?;
    session.copy_in("copy pg_temp._rows from stdin (format binary)", rows.finish()).await?;
    Ok(tables)
}
