//! Registration: how an id is given once, although anyone may register at any time and die at any point.
//!
//! One round: start a transactional producer (from then on no rival of the same id can write or commit, and what they
//! left open is decided), read the topic to its end, look the schema up, take an id above every id that was ever
//! written, write one record, commit. Why no id is given twice: a record of ours is accepted only while no rival
//! has started after us; so every record of a rival either was in the log before our start, and we have read it, or
//! is refused. Records of aborted transactions count for ids, since other registries read uncommitted records and may
//! have cached them.
//!
//! A round that fails leaves nothing that the next one would not find: rounds are repeated, with a pause that grows
//! and is random, so that rivals do not fence each other for ever.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};

use super::{
    PARTITION, Registered, RegistryOptions,
    record::{self, Entry, SchemaValue},
    view::View,
};
use crate::{
    kafka::{Error, Idle, Options, OutgoingRecord, client::Isolation, reader::Reader},
    telemetry::metrics::kafka as metrics,
};

/// How long a registration is tried. A rival's round takes about a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Says why a schema does not go with the earlier versions of its subject, which are given oldest first.
pub type Check<'a> = dyn Fn(&[Arc<Registered>]) -> Result<(), String> + 'a;

/// Why a schema was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("schema of subject `{subject}` refused: {why}")]
    Incompatible { subject: String, why: String },
    #[error(
        "schema of subject `{subject}` not registered after {rounds} rounds: {source}; register it again, that is safe"
    )]
    Kafka { subject: String, rounds: usize, source: Box<Error> },
}

/// The writing side of the registry.
pub(super) struct Registrar {
    options: Options,
    registry: RegistryOptions,
    /// Kept while all goes well: a rival that started in between fences it, and the round is repeated.
    producer: Option<Idle>,
    committed: Option<Follower>,
    uncommitted: Option<Follower>,
    view: View,
    /// Highest id ever seen, aborted ones too.
    highest_id: i32,
    /// What was written last, and is committed: alone in its transaction, so that a marker stands behind it.
    written: Option<SchemaValue>,
}

impl Registrar {
    pub fn new(options: Options, registry: RegistryOptions) -> Self {
        let view = View::default();
        let (producer, committed, uncommitted, written) = (None, None, None, None);
        Self { options, registry, producer, committed, uncommitted, view, highest_id: 0, written }
    }

    /// The schema's place, and the record if one was written.
    pub fn register(
        &mut self,
        subject: &str,
        text: &str,
        check: &Check<'_>,
    ) -> Result<(Arc<Registered>, Option<Entry>), RegisterError> {
        let started = Instant::now();
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(2))
            .without_max_times()
            .with_jitter();
        let mut pauses = pauses.build();
        for rounds in 1.. {
            let error = match self.round(subject, text, check) {
                Ok(registered) => return Ok(registered),
                Err(Stop::Refused(why)) => {
                    count("refused");
                    return Err(RegisterError::Incompatible { subject: subject.into(), why });
                }
                Err(Stop::Failed(error)) => error,
            };
            count(if error.is_fenced() { "fenced" } else { "failed" });
            if !error.is_fenced() {
                self.forget();
            }
            tracing::debug!(subject, rounds, %error, "registration round failed");
            let permanent = matches!(error, Error::OwnedSetting { .. } | Error::Create { .. } | Error::NoTopic { .. });
            if permanent || started.elapsed() > LIMIT {
                return Err(RegisterError::Kafka { subject: subject.into(), rounds, source: Box::new(error) });
            }
            thread::sleep(pauses.next().unwrap_or(Duration::from_secs(2)));
        }
        unreachable!("the rounds end by time")
    }

    /// Reads everything again next time: whatever went wrong, it may be that what was read is not what is there.
    fn forget(&mut self) {
        (self.committed, self.uncommitted, self.view) = (None, None, View::default());
    }

    fn round(
        &mut self,
        subject: &str,
        text: &str,
        check: &Check<'_>,
    ) -> Result<(Arc<Registered>, Option<Entry>), Stop> {
        // Taken out: any `?` below destroys it.
        let producer = match self.producer.take() {
            Some(producer) => producer,
            None => Idle::start(&self.options, &self.registry.transactional_id)?,
        };
        self.catch_up()?;
        if let Some(found) = self.view.lookup(subject, text).cloned() {
            self.producer = Some(producer);
            count("found");
            return Ok((found, None));
        }
        let earlier: Vec<Arc<Registered>> = self.view.versions(subject).cloned().collect();
        if let Err(why) = check(&earlier) {
            self.producer = Some(producer);
            return Err(Stop::Refused(why));
        }
        let value = SchemaValue {
            subject: subject.into(),
            version: self.view.next_version(subject),
            id: self.view.id_of(text).unwrap_or(self.highest_id + 1),
            schema_type: None,
            schema: text.into(),
            deleted: false,
        };
        self.producer = Some(self.write(producer, &value)?);
        self.written = Some(value.clone());
        count("written");
        let (version, entry) =
            (value.version, Entry::Schema { subject: subject.into(), version: value.version, value: Some(value) });
        self.view.apply(entry.clone());
        let registered = self.view.version(subject, version).cloned().expect("invariant: just applied");
        Ok((registered, Some(entry)))
    }

    fn write(&self, producer: Idle, value: &SchemaValue) -> Result<Idle, Error> {
        let (key, payload) = record::schema_record(value);
        let mut transaction = producer.begin()?;
        transaction.send(&OutgoingRecord {
            topic: &self.registry.topic,
            partition: Some(PARTITION),
            key: Some(&key),
            payload: Some(&payload),
            headers: &[],
        })?;
        transaction.commit()
    }

    /// Reads both sides of the topic to its end: what is committed is the registry, what is not still takes its id.
    fn catch_up(&mut self) -> Result<(), Error> {
        let (options, topic) = (&self.options, &self.registry.topic);
        let (highest, written) = (&mut self.highest_id, &self.written);
        let is_own = |entry: &Entry| matches!(entry, Entry::Schema { value: Some(value), .. } if Some(value) == written.as_ref());
        follower(&mut self.uncommitted, options, Isolation::Uncommitted)?.catch_up(topic, |entry| {
            let own = is_own(&entry);
            if let Entry::Schema { value: Some(value), .. } = entry {
                *highest = (*highest).max(value.id);
            }
            own
        })?;
        let view = &mut self.view;
        follower(&mut self.committed, options, Isolation::Committed)?.catch_up(topic, |entry| {
            let own = is_own(&entry);
            view.apply(entry);
            own
        })
    }
}

enum Stop {
    Refused(String),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A reader of the topic that remembers where it stands.
struct Follower {
    reader: Reader,
    next: Option<i64>,
}

fn follower<'a>(
    slot: &'a mut Option<Follower>,
    options: &Options,
    isolation: Isolation,
) -> Result<&'a mut Follower, Error> {
    match slot {
        Some(follower) => Ok(follower),
        None => Ok(slot.insert(Follower { reader: Reader::with(options, isolation)?, next: None })),
    }
}

impl Follower {
    fn catch_up(&mut self, topic: &str, mut each: impl FnMut(Entry) -> bool) -> Result<(), Error> {
        let apply = |key: Option<&[u8]>, payload: Option<&[u8]>| each(record::parse(key, payload));
        self.next = Some(self.reader.catch_up(topic, PARTITION, self.next, apply)?);
        Ok(())
    }
}

fn count(outcome: &str) {
    metrics::REGISTRATION_ROUNDS.with_label_values(&[outcome]).inc();
}
