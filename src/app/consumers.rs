//! Consumers as the application sees them: compiled, versioned, started, reloaded; and the commands about them.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::{
    folder::{compile, inputs},
    project::Project,
    scaffold,
    stopped::Stopped,
    trial, wiring,
};
use crate::{
    cli::args::Consumer,
    cli::say::say,
    config::Config,
    consume::{Bounds, Emitter, Engine, Handlers, Member, Preparer, Sessions, Vitals},
    domain::nearest,
    kafka::{self, Admin, Reader, Registry},
    projection::Compiled,
    schema::encode::Encoder,
    spec::{ConsumerSpec, SpecFault, UnknownType},
    store::{
        self, PgConnection, status,
        versions::{self, Definition, Dropped, Ensured, OnChange},
    },
};

/// What every consumer of a process needs.
pub struct Context {
    config: Config,
    kafka: kafka::Options,
    registry: Arc<Registry>,
    reader: Arc<Mutex<Reader>>,
    handlers: Arc<Handlers>,
    on_change: OnChange,
}

impl Context {
    pub fn new(
        config: &Config,
        registry: Arc<Registry>,
        handlers: Arc<Handlers>,
        on_change: OnChange,
    ) -> anyhow::Result<Self> {
        let kafka = wiring::kafka_options(config);
        let reader = Arc::new(Mutex::new(Reader::open(&kafka)?));
        Ok(Self { config: config.clone(), kafka, registry, reader, handlers, on_change })
    }

    async fn prepare(
        &self,
        project: &Project,
        spec: &ConsumerSpec,
        connection: &mut PgConnection,
    ) -> anyhow::Result<Compiled> {
        self.check_topics(project, spec).await?;
        let compiled = compile(project, spec, connection).await?;
        if compiled.is_handler() && !self.handlers.contains_key(&spec.name) {
            bail!(
                "consumer {0} says handler = \"rust\", but no handler is registered under that name: add \
                 .handler(\"{0}\", …) to the application's main",
                spec.name
            );
        }
        Ok(compiled)
    }

    /// Refuses topics that no folder declares and the cluster does not have: a misspelt one would be waited for in
    /// silence. A cluster that cannot be asked now has them, for all that is known.
    async fn check_topics(&self, project: &Project, spec: &ConsumerSpec) -> anyhow::Result<()> {
        let declared = project.known_topics();
        let mut missing: Vec<&String> = spec.topics.iter().filter(|topic| !declared.contains(*topic)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let Ok(found) = Admin::connect(&self.kafka)?.list().await else { return Ok(()) };
        missing.retain(|topic| found.iter().all(|there| there.name != **topic));
        let fault = |topic: &&String| {
            let known = declared.iter().map(String::as_str).chain(found.iter().map(|there| there.name.as_str()));
            let advice = match nearest(topic, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "declare it in a producers/*/producer.toml, or create it".to_owned(),
            };
            let message =
                format!("no folder declares the topic `{topic}`, and this cluster does not have it; {advice}");
            SpecFault::new(spec.manifest_path(), None, message).to_string()
        };
        let faults: Vec<String> = missing.iter().map(fault).collect();
        if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n")) }
    }

    /// What decides rows and emitted events beyond the folder: the handler's own revision.
    fn definition_hash(&self, spec: &ConsumerSpec, compiled: &Compiled) -> String {
        let Some(handler) = self.handlers.get(&spec.name).filter(|_| compiled.is_handler()) else {
            return compiled.hash().to_owned();
        };
        let text = format!("{} handler revision {} emits {:?}", compiled.hash(), handler.revision(), spec.emits);
        hex::encode(Sha256::digest(text.as_bytes()))
    }

    async fn start(
        &self,
        project: &Project,
        spec: &ConsumerSpec,
        compiled: Compiled,
        connection: &mut PgConnection,
    ) -> anyhow::Result<(Member, Ensured)> {
        let hash = self.definition_hash(spec, &compiled);
        let definition = Definition {
            projection: &spec.name,
            hash: &hash,
            topics: &spec.topics,
            tables: &compiled.tables(),
            commutes: compiled.commutes(),
            create: &|version| compiled.create_sql(version),
            live_views: &|version| compiled.live_views_sql(version),
            grants: &compiled.grants_sql(),
        };
        let ensured = versions::ensure(connection, &definition, self.on_change).await;
        let ensured = ensured.map_err(|error| told_of_lock(&spec.name, error))?;
        match &ensured {
            Ensured::Unchanged(version) => info!(consumer = %spec.name, version, "starting"),
            Ensured::Created(version) => info!(consumer = %spec.name, version, "created"),
            Ensured::StartedOver { version, retired } => {
                info!(consumer = %spec.name, version, retired, "changed: reading the log again from its start");
            }
        }
        let engine = self.engine(project, spec, compiled, ensured.version(), hash)?;
        let member = Member::start(&self.kafka, &spec.topics, engine);
        Ok((member.with_context(|| format!("cannot start consumer {}", spec.name))?, ensured))
    }

    fn engine(
        &self,
        project: &Project,
        spec: &ConsumerSpec,
        compiled: Compiled,
        version: i32,
        definition: String,
    ) -> anyhow::Result<Engine> {
        let compiled = Arc::new(compiled);
        let defaults = &self.config.consume;
        let setup = compiled.session_sql(version);
        let application = format!("millpond consume {}", spec.name);
        let strict = spec.unknown == UnknownType::DeadLetter;
        let preparer = Preparer::new(Arc::clone(&compiled), inputs(project, spec)?, strict, Arc::clone(&self.registry));
        Ok(Engine {
            schema: compiled.schema_name(version),
            vitals: Vitals::default(),
            projection: spec.name.clone(),
            version,
            definition,
            handler: self.handlers.get(&spec.name).filter(|_| compiled.is_handler()).cloned(),
            preparer,
            sessions: Sessions::new(&self.config.postgres.url, &application, &setup, defaults.connections),
            bounds: Bounds {
                max_records: spec.batch.max_records.unwrap_or(defaults.max_records),
                max_bytes: spec.batch.max_bytes.unwrap_or(defaults.max_bytes),
            },
            max_age: spec.batch.max_age.unwrap_or(defaults.max_age),
            on_error: spec.on_error,
            dedupe_window: spec.dedupe_window,
            emitters: self.emitters(project, spec)?,
            max_record_bytes: self.config.ingest.max_record,
            declared_partitions: project.declared_partitions(),
            reader: Some(Arc::clone(&self.reader)),
            compiled,
        })
    }

    fn emitters(&self, project: &Project, spec: &ConsumerSpec) -> anyhow::Result<HashMap<String, Emitter>> {
        let mut emitters = HashMap::new();
        for (record_type, topic) in &spec.emits {
            let record = project.schemas.get(record_type).with_context(|| {
                format!("consumer {} emits {record_type}, but there is no schemas/{record_type}/v1.avsc", spec.name)
            })?;
            let latest = record.latest();
            let registered = self.registry.lookup(&record.subject, &latest.text).with_context(|| {
                format!("the schema of {record_type} is not registered: run `millpond schema push`")
            })?;
            let emitter = Emitter {
                topic: topic.clone(),
                schema_id: u32::try_from(registered.id)?,
                encoder: Encoder::compile(&latest.schema, &[])?,
            };
            emitters.insert(record_type.clone(), emitter);
        }
        Ok(emitters)
    }
}

/// The consumers at work in this process.
pub struct Members {
    context: Context,
    /// Held while a folder is taken in.
    running: tokio::sync::Mutex<BTreeMap<String, Started>>,
    stopped: Stopped,
}

/// A consumer at work, and the folder that it was started from.
struct Started {
    member: Member,
    spec: ConsumerSpec,
}

impl Started {
    /// Whether a folder asks for the rows that are built now, by the same policies.
    fn is_as(&self, spec: &ConsumerSpec, definition: &str) -> bool {
        let own = &self.spec;
        let grants = |spec: &ConsumerSpec| spec.tables.values().map(|table| table.grants.clone()).collect::<Vec<_>>();
        self.builds(definition)
            && (own.on_error, own.unknown, own.batch) == (spec.on_error, spec.unknown, spec.batch)
            && grants(own) == grants(spec)
    }

    /// Whether its version is the one of `definition`, and still live.
    fn builds(&self, definition: &str) -> bool {
        self.member.engine.definition == definition && !self.member.engine.vitals.is_superseded()
    }
}

/// How often it is looked whether another version has become the live one, and what is stopped is tried again.
const FOLLOW: Duration = Duration::from_secs(1);

impl Members {
    /// Starts every consumer of a project; all faults of all of them in one error, before any runs.
    pub async fn start(context: Context, project: &Project) -> anyhow::Result<Self> {
        let mut connection = store::connect(&context.config.postgres.url, "millpond compile").await?;
        let (mut ready, mut faults) = (Vec::new(), Vec::new());
        for spec in &project.consumers {
            match context.prepare(project, spec, &mut connection).await {
                Ok(compiled) => ready.push((spec, compiled)),
                Err(error) => faults.push(format!("{error:#}")),
            }
        }
        if !faults.is_empty() {
            bail!("consumers cannot be started:\n  {}", faults.join("\n").replace('\n', "\n  "));
        }
        let mut running = BTreeMap::new();
        for (spec, compiled) in ready {
            let (member, _) = context.start(project, spec, compiled, &mut connection).await?;
            running.insert(spec.name.clone(), Started { member, spec: spec.clone() });
        }
        Ok(Self { context, running: tokio::sync::Mutex::new(running), stopped: Stopped::default() })
    }

    /// Takes a new, changed or removed folder in.
    pub async fn reload(&self, project: &Project, name: &str) -> anyhow::Result<()> {
        let mut running = self.running.lock().await;
        let taken_in = self.take_in(&mut running, project, name).await;
        if let Err(error) = &taken_in {
            self.stopped.fail(name, &format!("{error:#}"));
        }
        taken_in
    }

    async fn take_in(
        &self,
        running: &mut BTreeMap<String, Started>,
        project: &Project,
        name: &str,
    ) -> anyhow::Result<()> {
        let Some(spec) = project.consumers.iter().find(|c| c.name == name) else {
            self.stopped.end(name);
            if let Some(started) = running.remove(name) {
                started.member.stop().await;
                self.tell(name, "its folder is gone; stopped, its tables stay");
            }
            return Ok(());
        };
        let mut connection = store::connect(&self.context.config.postgres.url, "millpond compile").await?;
        let compiled = self.context.prepare(project, spec, &mut connection).await?;
        let definition = self.context.definition_hash(spec, &compiled);
        // A README or a test case changes nothing.
        if running.get(name).is_some_and(|started| started.is_as(spec, &definition)) {
            return Ok(());
        }
        // From here on it is wanted and does not run, whatever happens: also if this future is dropped.
        let runs = running.get(name).map(|started| started.member.engine.version);
        let ran = self.stopped.begin(name, runs);
        if let Some(started) = running.remove(name) {
            started.member.stop().await;
        }
        let (member, ensured) = self.context.start(project, spec, compiled, &mut connection).await?;
        let version = ensured.version();
        match (&ensured, ran) {
            (Ensured::Unchanged(_), Some(ran)) if ran == version => {
                let next = format!("if it has halted: millpond consumer restart {name}");
                self.tell(name, &format!("version {version} goes on with the changed settings; {next}"));
            }
            // The folder is back.
            (Ensured::Unchanged(_), None) => self.tell(name, &format!("version {version} goes on")),
            // Made by us or, after `consumer restart --from-zero`, by another process.
            _ => self.tell(name, &format!("version {version} reads the log from its start")),
        }
        running.insert(name.to_owned(), Started { member, spec: spec.clone() });
        self.stopped.end(name);
        Ok(())
    }

    /// The consumers that should run and do not; they are tried again every second.
    pub fn stopped(&self) -> Vec<String> {
        self.stopped.names()
    }

    /// Says what has changed: to the person at `millpond dev`, elsewhere to the log.
    fn tell(&self, consumer: &str, what: &str) {
        match self.context.on_change {
            OnChange::StartOver => eprintln!("consumer {consumer}: {what}"),
            OnChange::Refuse => info!(consumer, "{what}"),
        }
    }

    /// Compiles every consumer of a project, and starts none.
    pub async fn check_folders(&self, project: &Project) -> anyhow::Result<()> {
        let mut connection = store::connect(&self.context.config.postgres.url, "millpond compile").await?;
        let mut faults = Vec::new();
        for spec in &project.consumers {
            if let Err(error) = self.context.prepare(project, spec, &mut connection).await {
                faults.push(format!("{error:#}"));
            }
        }
        if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n  ")) }
    }

    /// Starts consumers anew whose version is no longer the live one, as after `consumer restart --from-zero`.
    pub async fn follow(self: Arc<Self>, dir: PathBuf) {
        let mut told: HashMap<String, String> = HashMap::new();
        loop {
            tokio::time::sleep(FOLLOW).await;
            let waiting: Vec<String> = {
                let running = self.running.lock().await;
                let superseded = running.iter().filter(|(_, s)| s.member.engine.vitals.is_superseded());
                superseded.map(|(name, _)| name.clone()).chain(self.stopped.names()).collect()
            };
            told.retain(|name, _| waiting.contains(name));
            for name in waiting {
                let reloaded = match Project::load(&dir) {
                    Ok(project) => self.reload(&project, &name).await,
                    Err(error) => {
                        self.stopped.fail(&name, &format!("{error:#}"));
                        Err(error)
                    }
                };
                let Err(error) = reloaded else { continue };
                let error = format!("{error:#}");
                if told.get(&name) != Some(&error) {
                    warn!(consumer = %name, error, "cannot be started anew; trying again every second");
                    told.insert(name, error);
                }
            }
        }
    }

    /// Ready when every consumer has lately seen both Postgres and the ends of its partitions.
    pub fn check(&self) -> Result<(), String> {
        if let Some((name, why)) = self.stopped.failed() {
            return Err(format!("consumer {name} is stopped and tried again every second: {why}"));
        }
        // Held while a folder is taken in, which is no reason to be taken out of service.
        let Ok(running) = self.running.try_lock() else { return Ok(()) };
        if let Some(name) = self.stopped.names().first() {
            return Err(format!("consumer {name} is stopped, and is started anew within seconds"));
        }
        for (name, started) in running.iter() {
            if let Some(panic) = started.member.engine.vitals.panic() {
                return Err(format!("consumer {name} panicked while it polled Kafka, and joins anew: {panic}"));
            }
        }
        let silent = running.iter().filter(|(_, started)| !started.member.engine.vitals.has_reported());
        let silent: Vec<&str> = silent.map(|(name, _)| name.as_str()).collect();
        if silent.is_empty() {
            return Ok(());
        }
        Err(format!("no contact with Postgres or Kafka for consumers {}; run `millpond doctor`", silent.join(", ")))
    }

    /// Leaves all groups, each in order.
    pub async fn stop(&self) {
        let running = std::mem::take(&mut *self.running.lock().await);
        futures_util::future::join_all(running.into_values().map(|started| started.member.stop())).await;
    }
}

/// Tables and views are made and dropped under locks that any open transaction may be in the way of.
fn told_of_lock(consumer: &str, error: store::Error) -> anyhow::Error {
    let held = error.is_lock_timeout();
    let error = anyhow::Error::new(error);
    if !held {
        return error;
    }
    error.context(format!(
        "another session holds a lock on the tables or views of consumer {consumer}; end that transaction, such as one \
         that was left open in psql (select * from pg_stat_activity where state = 'idle in transaction')"
    ))
}

/// `millpond consumer …`
pub async fn command(config: &Config, command: Consumer, handlers: &Handlers) -> anyhow::Result<ExitCode> {
    match command {
        Consumer::New { name, from } => {
            scaffold::consumer(&Project::load(&config.project.dir)?, &name, &from)?;
        }
        Consumer::Show { name, records, limit } => {
            return trial::show(config, &name, records, limit, handlers).await;
        }
        Consumer::Test { name, accept } => {
            return trial::test(config, &trial::Options { consumer: name, accept }, handlers).await;
        }
        Consumer::Pause { name } => set_paused(config, &name, true).await?,
        Consumer::Resume { name } => set_paused(config, &name, false).await?,
        Consumer::Drop { name, discard_unsent } => drop_projection(config, &name, discard_unsent).await?,
        Consumer::Restart { name, from_zero, skip_removed, no_breaker } => {
            restart(config, &name, from_zero, skip_removed, no_breaker).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses while the folder is there: the next look at it would build the projection again.
async fn drop_projection(config: &Config, name: &str, discard_unsent: bool) -> anyhow::Result<()> {
    let folder = config.project.dir.join("consumers").join(name);
    if folder.exists() {
        bail!("{} is still there, and would be built again; remove the folder first", folder.display());
    }
    let mut connection = wiring::database(config, "millpond consumer").await?;
    let dropped = versions::drop_projection(&mut connection, name, discard_unsent).await;
    match dropped.map_err(|error| told_of_lock(name, error))? {
        Dropped::Done => {}
        Dropped::Unknown => bail!("there is no projection {name} in this database; see `millpond status`"),
        Dropped::Unsent(rows) => bail!(
            "{rows} downstream events of {name} have not been sent yet: have a process with the role publish send them \
             first, or give them up with `millpond consumer drop {name} --discard-unsent`"
        ),
    }
    say!("{name}: dropped; its topic {name}.dlq stays, as every topic does");
    Ok(())
}

/// Moves the fences of partitions whose log was cut to where the log starts now.
async fn skip_removed(config: &Config, name: &str, connection: &mut PgConnection) -> anyhow::Result<()> {
    let reader = Reader::open(&wiring::kafka_options(config))?;
    for at in status::cut_partitions(connection, name).await? {
        let (low, _) = reader.watermarks(&at.topic, at.partition)?;
        let from = status::skip_removed(connection, name, &at, low).await?;
        say!("{name}: {at} goes on at {low}; the records from {from} on to there are not in its tables");
    }
    Ok(())
}

async fn set_paused(config: &Config, name: &str, paused: bool) -> anyhow::Result<()> {
    let mut connection = wiring::database(config, "millpond consumer").await?;
    if !status::set_paused(&mut connection, name, paused).await? {
        bail!("there is no projection {name} in this database; see `millpond status`");
    }
    say!("{name}: {} within a second, in every process", if paused { "pauses" } else { "goes on" });
    Ok(())
}

async fn restart(config: &Config, name: &str, from_zero: bool, skip: bool, no_breaker: bool) -> anyhow::Result<()> {
    let mut connection = wiring::database(config, "millpond consumer").await?;
    if from_zero {
        let found = versions::start_over(&mut connection, name).await;
        if !found.map_err(|error| told_of_lock(name, error))? {
            bail!("there is no live version of {name} in this database; see `millpond status`");
        }
        say!(
            "{name}: its tables are gone; processes with the role consume make them anew and read the log from its start"
        );
        return Ok(());
    }
    if skip {
        skip_removed(config, name, &mut connection).await?;
    }
    if !status::projections(&mut connection).await?.iter().any(|p| p.projection == name) {
        bail!("there is no projection {name} in this database; see `millpond status`");
    }
    if no_breaker {
        status::rest_breaker(&mut connection, name).await?;
        say!("{name}: for ten minutes the breaker halts nothing, and what cannot be applied is set aside");
    }
    let ended = status::end_halts(&mut connection, name).await?;
    say!(
        "{name}: {ended} halted partition{} go{} on",
        if ended == 1 { "" } else { "s" },
        if ended == 1 { "es" } else { "" }
    );
    Ok(())
}
