//! The schema registry that lives in a compacted topic, in Confluent's format, so that every Kafka tool can read it.
//!
//! Owns which schema has which id. Reading needs no one's leave: a thread follows the committed records of the topic.
//! Writing is serialised by Kafka (`register`). Must not know Avro: what is compatible, the caller says.

mod record;
mod register;
mod view;

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use tokio::sync::watch;

use register::Registrar;
pub use register::{Check, RegisterError};
pub use view::Registered;
use view::View;

use super::{
    Error, Options, TopicSpec,
    client::{self, Isolation, Logging, is_passing},
    reader::Reader,
};
use crate::telemetry::metrics::kafka as metrics;

/// The registry's topic has one partition: its order is the order of registration.
const PARTITION: i32 = 0;
/// How often the reading thread looks whether it should end.
const TICK: Duration = Duration::from_millis(100);
/// Wait before the topic is asked for again, when it is not there or cannot be read.
const PAUSE: Duration = Duration::from_millis(500);

/// Where the registry lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryOptions {
    pub topic: String,
    /// Registrants of one topic must share it: it is what keeps them from writing at the same time.
    pub transactional_id: String,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self { topic: "_schemas".into(), transactional_id: "millpond-schemas".into() }
    }
}

impl RegistryOptions {
    /// The topic to create before the registry can start.
    pub fn topic_spec(&self) -> TopicSpec {
        TopicSpec::compacted(&self.topic, 1)
    }
}

/// The running registry. Share it behind an `Arc`.
pub struct Registry {
    options: Options,
    shared: Arc<Shared>,
    registrar: Mutex<Registrar>,
}

struct Shared {
    topic: String,
    view: RwLock<View>,
    /// Grows with every record taken; 0 until the topic was read to its end once.
    revision: watch::Sender<u64>,
    stopping: AtomicBool,
}

impl Registry {
    /// Starts reading. Does not wait for the brokers; see [`Self::wait_ready`].
    pub fn start(options: &Options, registry: &RegistryOptions) -> Result<Self, Error> {
        let mut config = options.reader(Isolation::Committed)?;
        // This one waits at the end for months: an empty answer every half second is enough, news come at once.
        config.set("fetch.wait.max.ms", "500");
        let consumer: BaseConsumer<Logging> = client::create(&config, Logging, "registry's reader")?;
        let shared = Arc::new(Shared {
            topic: registry.topic.clone(),
            view: RwLock::default(),
            revision: watch::Sender::new(0),
            stopping: AtomicBool::new(false),
        });
        let reading = shared.clone();
        let spawned = thread::Builder::new().name("kafka-registry".into()).spawn(move || reading.follow(&consumer));
        let failed = |error: std::io::Error| Error::Create { what: "registry's thread", why: error.to_string() };
        spawned.map_err(failed)?;
        let registrar = Mutex::new(Registrar::new(options.clone(), registry.clone()));
        Ok(Self { options: options.clone(), shared, registrar })
    }

    pub async fn wait_ready(&self) {
        let _ = self.shared.revision.subscribe().wait_for(|revision| *revision > 0).await;
    }

    /// Changes whenever the registry does.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// The schema of an id. Ids of deleted versions are served too: the log has records of them.
    pub fn schema_by_id(&self, id: i32) -> Option<Arc<Registered>> {
        self.shared.view().by_id(id).cloned()
    }

    /// Whether the topic has a schema of this id now: reads it anew to its end, for whoever is about to decide that a
    /// record can never be read. Blocks.
    pub fn holds(&self, id: i32) -> Result<bool, Error> {
        let reader = Reader::with(&self.options, Isolation::Committed)?;
        let mut view = View::default();
        reader.catch_up(&self.shared.topic, PARTITION, None, |key, payload| {
            view.apply(record::parse(key, payload));
            false
        })?;
        Ok(view.by_id(id).is_some())
    }

    /// Every subject and version that has this id.
    pub fn places_of(&self, id: i32) -> Vec<Arc<Registered>> {
        self.shared.view().places_of(id).cloned().collect()
    }

    /// The version of a subject that has this schema, whatever its whitespace.
    pub fn lookup(&self, subject: &str, text: &str) -> Option<Arc<Registered>> {
        self.shared.view().lookup(subject, text).cloned()
    }

    pub fn latest(&self, subject: &str) -> Option<Arc<Registered>> {
        self.shared.view().versions(subject).last().cloned()
    }

    /// Versions of a subject, oldest first; empty if there is no such subject.
    pub fn versions(&self, subject: &str) -> Vec<Arc<Registered>> {
        self.shared.view().versions(subject).cloned().collect()
    }

    pub fn version(&self, subject: &str, version: i32) -> Option<Arc<Registered>> {
        self.shared.view().version(subject, version).cloned()
    }

    pub fn subjects(&self) -> Vec<String> {
        self.shared.view().subjects().map(str::to_owned).collect()
    }

    /// Registers a schema as the next version of its subject, if `check` finds it compatible with those it is given,
    /// oldest first. A schema that is there already is returned as it is. Blocks for a second or so, longer while
    /// others register at the same time; call it where blocking is allowed.
    pub fn register(&self, subject: &str, text: &str, check: &Check<'_>) -> Result<Arc<Registered>, RegisterError> {
        if let Some(found) = self.lookup(subject, text) {
            return Ok(found);
        }
        let mut registrar = self.registrar.lock().unwrap_or_else(PoisonError::into_inner);
        let (registered, entry) = registrar.register(subject, text, check)?;
        // The follower will see it too, a moment later: the caller should be able to look it up now.
        if let Some(entry) = entry {
            self.shared.apply([entry]);
        }
        Ok(registered)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, entries: impl IntoIterator<Item = record::Entry>) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        entries.into_iter().for_each(|entry| view.apply(entry));
        metrics::REGISTRY_SCHEMAS.set(view.len() as i64);
        drop(view);
        // Before the first end nobody is told: half a registry answers wrongly.
        self.revision.send_if_modified(|revision| {
            *revision += u64::from(*revision > 0);
            *revision > 0
        });
    }

    /// Reads the topic from its beginning and goes on until the registry is dropped.
    fn follow(&self, consumer: &BaseConsumer<Logging>) {
        let mut next = None;
        while !self.stopping.load(Ordering::Relaxed) {
            if let Err(error) = self.read(consumer, &mut next) {
                tracing::warn!(topic = self.topic, %error, "schema registry's topic cannot be read; trying again");
                // The topic was made anew or cut: what stands at the offset we are at is not what we have read.
                if error.code() == Some(Code::AutoOffsetReset) {
                    next = None;
                    *self.view.write().unwrap_or_else(PoisonError::into_inner) = View::default();
                }
            }
            thread::sleep(PAUSE);
        }
    }

    /// Reads on from `next` (`None`: the beginning) until an error or the end of the registry.
    fn read(&self, consumer: &BaseConsumer<Logging>, next: &mut Option<i64>) -> Result<(), Error> {
        let failed = || Error::request(format!("read topic `{}`", self.topic));
        let mut assignment = TopicPartitionList::new();
        let first = next.map_or(Offset::Beginning, Offset::Offset);
        assignment.add_partition_offset(&self.topic, PARTITION, first).map_err(failed())?;
        consumer.assign(&assignment).map_err(failed())?;
        while !self.stopping.load(Ordering::Relaxed) {
            match consumer.poll(TICK) {
                Some(Ok(message)) => {
                    *next = Some(message.offset() + 1);
                    self.apply([record::parse(message.key(), message.payload())]);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.revision.send_if_modified(|revision| {
                        let first = *revision == 0;
                        *revision += u64::from(first);
                        first
                    });
                }
                Some(Err(error)) if !is_passing(&error) => return Err(failed()(error)),
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }
}
