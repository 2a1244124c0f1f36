//! From a consumer's folder to its engine: checked, compiled, versioned.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::{sources, told_of_lock};
use crate::{
    app::{
        folder::{compile, inputs},
        project::Project,
        wiring,
    },
    config::Config,
    consume::{Bounds, Emitter, Engine, Handlers, Member, Pace, Preparer, Sessions, Vitals},
    domain::{TopicPartition, nearest},
    kafka::{self, Admin, Reader, Registry},
    projection::Compiled,
    schema::encode::Encoder,
    spec::{ConsumerSpec, SpecFault, UnknownType},
    store::{
        PgConnection,
        indexes::{self, Difference},
        versions::{self, Definition, Ensured, OnChange},
    },
};

/// A batch of a build: nobody waits for its rows, and a transaction costs the same for many.
const BUILD_BOUNDS: Bounds = Bounds { max_records: 50_000, max_bytes: 16 << 20 };
/// Bytes of one batch of each partition together, and what a batch may have all the same.
const BUILD_BYTES: usize = 128 << 20;
const LEAST_BUILD_BYTES: usize = 1 << 20;
/// How long such a batch waits to fill up.
const BUILD_MAX_AGE: Duration = Duration::from_millis(50);

/// What every consumer of a process needs.
pub struct Context {
    pub config: Config,
    pub kafka: kafka::Options,
    registry: Arc<Registry>,
    reader: Arc<Mutex<Reader>>,
    handlers: Arc<Handlers>,
    pub on_change: OnChange,
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

    /// Compiles a folder whose topics and handler are there.
    pub async fn prepare(
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
    pub fn definition_hash(&self, spec: &ConsumerSpec, compiled: &Compiled) -> String {
        let Some(handler) = self.handlers.get(&spec.name).filter(|_| compiled.is_handler()) else {
            return compiled.hash().to_owned();
        };
        let text = format!("{} handler revision {} emits {:?}", compiled.hash(), handler.revision(), spec.emits);
        hex::encode(Sha256::digest(text.as_bytes()))
    }

    /// Has something done with all that a folder decides about a version.
    pub async fn defined<T>(
        &self,
        project: &Project,
        spec: &ConsumerSpec,
        compiled: &Compiled,
        work: impl AsyncFnOnce(&Definition<'_>) -> T,
    ) -> anyhow::Result<T> {
        let (hash, files) = (self.definition_hash(spec, compiled), sources::collect(&project.dir, spec)?);
        let definition = Definition {
            projection: &spec.name,
            hash: &hash,
            topics: &spec.topics,
            tables: &compiled.tables(),
            commutes: compiled.commutes(),
            create: &|version| compiled.create_sql(version),
            live_views: &|version| compiled.live_views_sql(version),
            grants: &compiled.grants_sql(),
            files: &files,
        };
        Ok(work(&definition).await)
    }

    /// Starts what a folder stands for; no member for a version that is only being built.
    pub async fn start(
        &self,
        project: &Project,
        spec: &ConsumerSpec,
        compiled: Compiled,
        connection: &mut PgConnection,
    ) -> anyhow::Result<(Option<Member>, Ensured)> {
        let ensure = async |definition: &Definition<'_>| versions::ensure(connection, definition, self.on_change).await;
        let ensured = self.defined(project, spec, &compiled, ensure).await?;
        let ensured = ensured.map_err(|error| told_of_lock(&spec.name, error))?;
        match &ensured {
            Ensured::Unchanged(version) => {
                info!(consumer = %spec.name, version, "starting");
                self.bring_in_indexes(&compiled, *version);
            }
            Ensured::Created(version) => info!(consumer = %spec.name, version, "created"),
            Ensured::Building { version, live } => {
                info!(consumer = %spec.name, version, live, "changed: building a version beside the live one");
                let partitions = self.partitions(&spec.topics).await?;
                let engine = self.engine(project, spec, compiled, *version)?;
                return Ok((Some(self.follow(engine, partitions)?), ensured));
            }
            Ensured::Beside(version) => {
                info!(consumer = %spec.name, version, "another version is live; going on with that one until a swap");
                return Ok((None, ensured));
            }
        }
        let engine = self.engine(project, spec, compiled, ensured.version())?;
        let member = Member::start(&self.kafka, &spec.topics, engine);
        Ok((Some(member.with_context(|| format!("cannot start consumer {}", spec.name))?), ensured))
    }

    /// Makes the indexes that a folder asks for and its version does not have, and removes the others, beside all else.
    fn bring_in_indexes(&self, compiled: &Compiled, version: i32) {
        let (url, schema, wanted) =
            (self.config.postgres.url.clone(), compiled.schema_name(version), compiled.indexes());
        tokio::spawn(async move {
            match indexes::bring_in(&url, &schema, &wanted).await {
                Ok(None) => {}
                Ok(Some(Difference { missing, left })) => {
                    for index in missing {
                        info!(schema, table = index.table, index = index.name, "index made");
                    }
                    for index in left {
                        info!(schema, index, "index removed, for nobody asks for it");
                    }
                }
                Err(error) => warn!(schema, %error, "indexes cannot be brought in; the next start tries again"),
            }
        });
    }

    /// All partitions of these topics.
    pub async fn partitions(&self, topics: &[String]) -> anyhow::Result<Vec<TopicPartition>> {
        let admin = Admin::connect(&self.kafka)?;
        let mut all = Vec::new();
        for topic in topics {
            let ends = admin.watermarks(topic).await.with_context(|| format!("the topic {topic} cannot be read"))?;
            all.extend((0..ends.len()).map(|partition| TopicPartition::new(topic.as_str(), partition as i32)));
        }
        Ok(all)
    }

    /// Refuses topics whose first records are not there any more: a version could not have what they made.
    pub async fn check_whole(&self, consumer: &str, topics: &[String]) -> anyhow::Result<()> {
        let admin = Admin::connect(&self.kafka)?;
        for topic in topics {
            let ends = admin.watermarks(topic).await.with_context(|| format!("the topic {topic} cannot be read"))?;
            if let Some((partition, (low, _))) = ends.iter().enumerate().find(|(_, (low, _))| *low > 0) {
                bail!(
                    "{topic}/{partition} begins at offset {low}: the records before it were removed, and a rebuild of {consumer} \
                     could not have what they made. `millpond replay {consumer}` tries a folder on what is left"
                );
            }
        }
        Ok(())
    }

    /// Fills a version that nobody reads yet, from all of these partitions, without a group, as fast as it goes.
    pub fn follow(&self, mut engine: Engine, partitions: Vec<TopicPartition>) -> anyhow::Result<Member> {
        // Of each partition three may be in memory: one that is applied, one that is full, one that fills.
        let max_bytes = (BUILD_BYTES / partitions.len().max(1)).clamp(LEAST_BUILD_BYTES, BUILD_BOUNDS.max_bytes);
        (engine.bounds, engine.max_age) = (Bounds { max_bytes, ..BUILD_BOUNDS }, BUILD_MAX_AGE);
        engine.vitals.append();
        Member::follow(&self.kafka, partitions, engine).context("the log cannot be read")
    }

    /// The engine of a version.
    pub fn engine(
        &self,
        project: &Project,
        spec: &ConsumerSpec,
        compiled: Compiled,
        version: i32,
    ) -> anyhow::Result<Engine> {
        let definition = self.definition_hash(spec, &compiled);
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
            pace: Pace::default(),
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
