//! One consumer at work in a scratch database: the engine's own worker, fence and transaction, records from elsewhere.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use uuid::Uuid;

use super::{
    case::Case,
    codec::Codec,
    plan::Plan,
    sheet::{Cell, Outcome, Sheet},
};
use crate::{
    app::{Project, folder},
    consume::{Bounds, Chunk, Engine, Handlers, Pace, Preparer, Sessions, Stopped, Trial, Vitals, WriterSchemas},
    domain::{TableInfo, TopicPartition},
    projection::Compiled,
    spec::{ConsumerSpec, OnError, UnknownType},
    store::{
        PgConnection,
        fence::{Claim, Claimed},
        scratch::ScratchDatabase,
        trial,
    },
};

/// The version that plans are tried on.
pub const FIRST: i32 = 1;
/// The version that is built anew.
pub const REBUILT: i32 = 2;

pub const EMITTED: &str = "emitted.jsonl";
pub const REFUSED: &str = "refused.jsonl";
pub const DEAD_LETTERS: &str = "dead_letters.jsonl";

/// A compiled consumer with versions to fill.
pub struct Lab<'a> {
    pub scratch: &'a mut ScratchDatabase,
    pub spec: &'a ConsumerSpec,
    pub tables: Vec<TableInfo>,
    pub codec: &'a Codec,
    versions: HashMap<i32, Arc<Engine>>,
    claims: HashMap<(i32, TopicPartition), Claim>,
}

/// Compiles the folder; what is wrong with it is the error, a line each with file and line.
pub async fn compile(
    project: &Project,
    spec: &ConsumerSpec,
    handlers: &Handlers,
    connection: &mut PgConnection,
) -> anyhow::Result<Compiled> {
    let compiled = folder::compile(project, spec, connection).await?;
    if compiled.is_handler() && !handlers.contains_key(&spec.name) {
        bail!(
            "{}: handler = \"rust\", but no handler is registered under the name {1}: add .handler(\"{1}\", …) to the \
             application's main, and run the command of that application",
            spec.manifest_path().display(),
            spec.name
        );
    }
    Ok(compiled)
}

impl<'a> Lab<'a> {
    /// Compiles the consumer and makes empty versions of it.
    pub async fn new(
        scratch: &'a mut ScratchDatabase,
        project: &Project,
        spec: &'a ConsumerSpec,
        handlers: &Handlers,
        codec: &'a Codec,
        schemas: impl Fn() -> WriterSchemas,
        versions: &[i32],
    ) -> anyhow::Result<Self> {
        let compiled = Arc::new(compile(project, spec, handlers, scratch.connection()).await?);
        let tables = compiled.tables();
        let mut lab = Self { scratch, spec, tables, codec, versions: HashMap::new(), claims: HashMap::new() };
        for version in versions {
            let (name, schema) = (&spec.name, compiled.schema_name(*version));
            let create = compiled.create_sql(*version);
            trial::create_version(lab.scratch.connection(), name, *version, &schema, &create).await?;
            let engine = lab.engine(project, handlers, &compiled, *version, schemas())?;
            lab.versions.insert(*version, Arc::new(engine));
        }
        Ok(lab)
    }

    fn engine(
        &self,
        project: &Project,
        handlers: &Handlers,
        compiled: &Arc<Compiled>,
        version: i32,
        schemas: WriterSchemas,
    ) -> anyhow::Result<Engine> {
        let spec = self.spec;
        let mut setup = compiled.session_sql(version);
        // What is written here need not outlive a crash of the machine.
        setup.push("set session synchronous_commit = off".to_owned());
        let inputs = folder::inputs(project, spec)?;
        let strict = spec.unknown == UnknownType::DeadLetter;
        Ok(Engine {
            schema: compiled.schema_name(version),
            vitals: Vitals::default(),
            projection: spec.name.clone(),
            version,
            definition: String::new(),
            compiled: Arc::clone(compiled),
            handler: handlers.get(&spec.name).filter(|_| compiled.is_handler()).cloned(),
            preparer: Preparer::new(Arc::clone(compiled), inputs, strict, schemas),
            sessions: Sessions::new(self.scratch.url(), "millpond trial", &setup, 1),
            // The caller makes the batches.
            bounds: Bounds { max_records: usize::MAX, max_bytes: usize::MAX },
            pace: Pace::default(),
            max_age: Duration::ZERO,
            // A record that cannot be applied shall be seen, and those after it too.
            on_error: if spec.on_error == OnError::ParkKey { OnError::ParkKey } else { OnError::Skip },
            dedupe_window: spec.dedupe_window,
            emitters: self.codec.emitters(project, spec)?,
            max_record_bytes: usize::MAX,
            declared_partitions: project.declared_partitions(),
            reader: None,
        })
    }

    pub fn version(&self, version: i32) -> anyhow::Result<Arc<Engine>> {
        self.versions.get(&version).cloned().context("invariant: the version was made")
    }

    pub fn connection(&mut self) -> &mut PgConnection {
        self.scratch.connection()
    }

    /// A worker of a partition whose fence stands at `next_offset`.
    pub async fn worker(&mut self, version: i32, at: &TopicPartition, next_offset: i64) -> anyhow::Result<Trial> {
        let engine = self.version(version)?;
        let known = (version, at.clone());
        if !self.claims.contains_key(&known) {
            let Claimed::Mine(claim) = engine.claim(at, Uuid::new_v4()).await? else {
                bail!("the fence of {at} in the scratch database is closed");
            };
            self.claims.insert(known.clone(), claim);
        }
        if next_offset > 0 {
            trial::stand_at(self.scratch.connection(), &engine.projection, version, at, next_offset).await?;
        }
        let claim = Claim { next_offset, out_seq: 0, last: None, log_time: None, ..self.claims[&known].clone() };
        Ok(Trial::new(engine, claim))
    }

    /// Fills an emptied version by a plan. The inner error is the consumer's: what stopped it.
    pub async fn run(&mut self, version: i32, case: &Case, plan: &Plan) -> anyhow::Result<Result<Outcome, Stopped>> {
        let engine = self.version(version)?;
        trial::rewind(self.scratch.connection(), &self.spec.name, version, &engine.schema, &self.tables).await?;
        let slots = case.slots();
        let mut workers: HashMap<usize, (Trial, i64, Vec<usize>)> = HashMap::new();
        for batch in &plan.batches {
            let slot = slots[batch[0]];
            let (worker, next, done) = match workers.entry(slot) {
                Entry::Occupied(at_work) => at_work.into_mut(),
                Entry::Vacant(place) => {
                    place.insert((self.worker(version, &case.partitions[slot], 0).await?, 0, Vec::new()))
                }
            };
            done.extend(batch);
            let chunk = if plan.redeliver { case.chunk(0, done) } else { case.chunk(*next, batch) };
            if let Err(stopped) = apply(worker, &chunk).await {
                return Ok(Err(stopped));
            }
            *next = batch.last().map_or(*next, |last| case.events[*last].offset + 1);
        }
        for (worker, _, done) in workers.values_mut().filter(|_| plan.redeliver) {
            if let Err(stopped) = apply(worker, &case.chunk(0, done)).await {
                return Ok(Err(stopped));
            }
        }
        Ok(Ok(self.outcome(version, case).await?))
    }

    /// The rows of a table.
    pub async fn sheet(&mut self, version: i32, table: &TableInfo) -> anyhow::Result<Sheet> {
        let schema = self.version(version)?.schema.clone();
        let columns = table.columns.iter().map(|column| column.name.clone()).collect();
        let mut sheet = Sheet::new(columns, &table.key);
        for row in trial::rows(self.scratch.connection(), &schema, table).await? {
            sheet.insert(row.into_iter().map(Cell::from).collect());
        }
        Ok(sheet)
    }

    async fn outcome(&mut self, version: i32, case: &Case) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        for table in self.tables.clone() {
            outcome.sheets.insert(format!("{}.csv", table.name), self.sheet(version, &table).await?);
        }
        let (name, connection) = (&self.spec.name, self.scratch.connection());
        let mut refused = refused_sheet();
        for refusal in trial::refusals(connection, name, version).await? {
            refused.insert(judged(case, &refusal));
        }
        outcome.sheets.insert(REFUSED.to_owned(), refused);
        let mut dead = dead_letters_sheet();
        for letter in trial::dead_letters(connection, name, version).await? {
            dead.insert(judged(case, &letter));
        }
        outcome.sheets.insert(DEAD_LETTERS.to_owned(), dead);
        let events = trial::outbox(connection, name, version).await?;
        let (emitted, order) = self.emitted(case, &events)?;
        outcome.sheets.insert(EMITTED.to_owned(), emitted);
        outcome.order = order;
        Ok(outcome)
    }

    /// The emitted events by their source, and in which order those of one key leave.
    fn emitted(&self, case: &Case, events: &[trial::OutboxEvent]) -> anyhow::Result<(Sheet, Sheet)> {
        let names = ["topic", "key", "partition"].map(str::to_owned);
        let mut order = Sheet::new([&names[..], &["lines".to_owned()]].concat(), &names);
        let mut sheet = emitted_sheet();
        for event in events {
            let line = case.line_at(&event.source);
            let key = event.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
            let body = event.payload.as_deref().map(|payload| self.codec.decode(payload)).transpose()?;
            sheet.insert(emitted_row(
                line,
                usize::try_from(event.index)?,
                event.target_topic.clone(),
                event.record_type.clone(),
                key.clone(),
                body.unwrap_or_default(),
            ));
            let partition = event.source.at.to_string();
            let of_key = [Cell::Text(event.target_topic.clone()), Cell::from(key), Cell::Text(partition)];
            let mark = format!("{line}.{}", event.index);
            let parts = of_key.iter().map(Into::into).collect::<Vec<_>>();
            match order.rows.get_mut(&parts).and_then(|row| row.last_mut()) {
                Some(Cell::Text(lines)) => *lines = format!("{lines} {mark}"),
                _ => drop(order.insert([&of_key[..], &[Cell::Text(mark)]].concat())),
            }
        }
        Ok((sheet, order))
    }
}

/// Applies a whole batch: the breaker, which guards a live table, must not keep the rest from being seen.
pub async fn apply(worker: &mut Trial, chunk: &Chunk) -> Result<(), Stopped> {
    loop {
        match worker.apply(chunk).await {
            // What was applied before it is below the fence now, so each turn gets further.
            Err(stopped) if stopped.code == "breaker" => {}
            result => return result,
        }
    }
}

fn judged(case: &Case, judged: &trial::Judged) -> Vec<Cell> {
    judged_row(case.line_at(&judged.place), judged.code.clone(), judged.reason.clone())
}

pub fn judged_row(line: usize, code: String, reason: String) -> Vec<Cell> {
    vec![Cell::Text(line.to_string()), Cell::Text(code), Cell::Text(reason)]
}

pub fn emitted_row(
    line: usize,
    index: usize,
    topic: String,
    record_type: String,
    key: Option<String>,
    body: serde_json::Value,
) -> Vec<Cell> {
    vec![
        Cell::Text(line.to_string()),
        Cell::Text(index.to_string()),
        Cell::Text(topic),
        Cell::Text(record_type),
        Cell::from(key),
        Cell::Json(body),
    ]
}

pub fn emitted_sheet() -> Sheet {
    let columns = ["line", "index", "topic", "type", "key", "body"].map(str::to_owned);
    Sheet::new(columns.to_vec(), &columns[..2])
}

pub fn refused_sheet() -> Sheet {
    judged_sheet("code")
}

pub fn dead_letters_sheet() -> Sheet {
    judged_sheet("class")
}

fn judged_sheet(code: &str) -> Sheet {
    Sheet::new(vec!["line".to_owned(), code.to_owned(), "reason".to_owned()], &["line".to_owned()])
}
