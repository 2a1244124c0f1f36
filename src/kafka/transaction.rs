//! Transactional producers, as states: a producer is idle or in a transaction, and any failure destroys it.
//!
//! librdkafka does not have the epochs per transaction of KIP-890: after a timeout or an unknown outcome, a late
//! `EndTxn` could end the *next* transaction of the same producer. So no method here gives a producer back after an
//! error; the next one is made anew under the same id, which settles what the last one left.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
    types::RDKafkaErrorCode as Code,
};

use super::{
    Error, Options, Reason,
    client::{self, TRANSACTION_TIMEOUT},
};
use crate::planted::{self, Bug};

/// What init, commit and abort may take: until then the coordinator has ended the transaction anyway.
const LIMIT: Duration = TRANSACTION_TIMEOUT.saturating_add(Duration::from_secs(5));
/// How long a broker is waited for that says where a partition ends: without it, what was sent is looked for in all of it.
const ANSWER: Duration = Duration::from_secs(2);
/// How often the polling thread looks whether it should end.
const TICK: Duration = Duration::from_millis(100);
/// Between two tries to queue a record where the queue was full.
const ROOM: Duration = Duration::from_millis(5);

/// One record to send in a transaction.
#[derive(Debug, Clone)]
pub struct OutgoingRecord<'a> {
    pub topic: &'a str,
    /// `None` places the key as the Java client does.
    pub partition: Option<i32>,
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// A transactional producer without an open transaction. All methods block; call them from a thread of their own.
pub struct Idle(Running);

/// A producer with an open transaction. Dropped, it is destroyed, and the transaction ends with its timeout (10 s) or
/// when the next producer of the same id starts.
pub struct Transaction {
    running: Running,
    sent: usize,
}

/// A transaction that did not commit, as far as is known; its producer is gone.
#[derive(Debug)]
pub struct Failed {
    pub error: Error,
    /// The records that were refused or not acknowledged, each by its number in the order of sending. Those that were
    /// only given up with the others are not among them.
    pub records: Vec<(usize, Reason)>,
    /// How many were acknowledged.
    pub written: usize,
}

struct Running {
    producer: Arc<BaseProducer<Context>>,
    stop: Arc<AtomicBool>,
    poller: Option<JoinHandle<()>>,
}

impl Idle {
    /// Starts a producer under `id`. From its return on, no other producer of that id can write or commit, and
    /// whatever they had open is committed or aborted.
    pub fn start(options: &Options, id: &str) -> Result<Self, Error> {
        let config = options.transactional(id)?;
        let producer: BaseProducer<Context> = client::create(&config, Context::default(), "transactional producer")?;
        let running = Running::new(producer)?;
        let started = running.producer.init_transactions(LIMIT);
        started.map_err(|error| running.cause(error, format!("start transactions of `{id}`")))?;
        Ok(Self(running))
    }

    /// An offset of a partition that no record stands before which is sent from now on. Asks the brokers only before the
    /// first record; where the partition has no leader that answers soon, 0, for others need not wait for it.
    pub fn reached(&self, topic: &str, partition: i32) -> i64 {
        if let Some(known) = self.0.reports().reached.get(topic).and_then(|of| of.get(&partition)) {
            return *known;
        }
        match client::watermarks_within(self.0.producer.client(), topic, partition, ANSWER) {
            Ok((_, end)) => {
                self.0.reports().reached.entry(topic.to_owned()).or_default().insert(partition, end);
                end
            }
            Err(error) => {
                tracing::debug!(topic, partition, %error, "where it ends is not known");
                0
            }
        }
    }

    pub fn begin(self) -> Result<Transaction, Error> {
        self.0.reports().begin();
        self.0.producer.begin_transaction().map_err(Error::request("begin a transaction"))?;
        Ok(Transaction { running: self.0, sent: 0 })
    }
}

impl Transaction {
    /// Queues a record. Whether it was written is known from [`Self::commit`].
    pub fn send(&mut self, record: &OutgoingRecord<'_>) -> Result<(), Error> {
        let insert =
            |headers: OwnedHeaders, (key, value): &(&str, Option<&[u8]>)| headers.insert(Header { key, value: *value });
        let headers = record.headers.iter().fold(OwnedHeaders::new_with_capacity(record.headers.len()), insert);
        let mut outgoing = BaseRecord::<[u8], [u8], usize>::with_opaque_to(record.topic, self.sent).headers(headers);
        outgoing.partition = record.partition;
        outgoing.key = record.key;
        outgoing.payload = record.payload;
        let started = Instant::now();
        loop {
            match self.running.producer.send(outgoing) {
                Ok(()) => break,
                // The poller makes room as the brokers acknowledge.
                Err((error, back)) if is_full(&error) && started.elapsed() < LIMIT => outgoing = back,
                Err((error, _)) => return Err(Error::request(format!("queue a record for `{}`", record.topic))(error)),
            }
            thread::sleep(ROOM);
        }
        self.sent += 1;
        Ok(())
    }

    /// Waits for the records and commits. After an error the outcome is unknown, unless it [fenced](Error::is_fenced)
    /// this producer: a producer started later under the same id knows it.
    pub fn commit(self) -> Result<Idle, Error> {
        self.finish().map_err(|failed| failed.error)
    }

    /// [`Self::commit`] that also tells which records it failed over.
    pub fn finish(self) -> Result<Idle, Failed> {
        let running = self.running;
        match running.producer.commit_transaction(LIMIT) {
            Ok(()) => {
                let records = running.reports().not_placed;
                // Committed, perhaps without them: who comes next looks for what is in the log.
                if records > 0 { Err(Error::NotPlaced { records }.into()) } else { Ok(Idle(running)) }
            }
            Err(_) if planted::is(Bug::ProducerGoesOn) => Ok(Idle(running)),
            Err(error) => {
                let error = running.cause(error, "commit a transaction");
                let mut reports = running.reports();
                let (records, written) = (std::mem::take(&mut reports.failed), reports.written);
                drop(reports);
                Err(Failed { error, records, written })
            }
        }
    }

    /// Gives the transaction up.
    pub fn abort(self) -> Result<Idle, Error> {
        self.running.producer.abort_transaction(LIMIT).map_err(Error::request("abort a transaction"))?;
        Ok(Idle(self.running))
    }
}

impl From<Error> for Failed {
    /// Of a transaction that did not come to its end.
    fn from(error: Error) -> Self {
        Self { error, records: Vec::new(), written: 0 }
    }
}

impl Error {
    /// Whether another producer of the same transactional id has taken over.
    pub fn is_fenced(&self) -> bool {
        matches!(self.code(), Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch))
    }

    /// Whether the cluster does not let us use transactions, now or a second later: it has none, or forbids them to our
    /// account. What a moment's patience may mend is not among it.
    pub fn forbids_transactions(&self) -> bool {
        matches!(
            self.code(),
            Some(
                Code::UnsupportedFeature
                    | Code::UnsupportedVersion
                    | Code::InvalidTransactionTimeout
                    | Code::TransactionalIdAuthorizationFailed
                    | Code::ClusterAuthorizationFailed
                    | Code::TopicAuthorizationFailed
            )
        )
    }

    /// Why the cluster certainly does not take a record, where that is what it said.
    pub fn refusal(&self) -> Option<Reason> {
        self.code().map(Reason::of_report).filter(|reason| reason.is_definite())
    }
}

fn is_full(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(Code::QueueFull)
}

impl Running {
    fn new(producer: BaseProducer<Context>) -> Result<Self, Error> {
        let (producer, stop) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, stopped) = (producer.clone(), stop.clone());
        // Nobody else takes events while init, commit and abort wait for them.
        let poll = move || {
            while !stopped.load(Ordering::Relaxed) {
                polled.poll(TICK);
            }
        };
        let poller = thread::Builder::new().name("kafka-txn".into()).spawn(poll);
        let failed = |error: std::io::Error| Error::Create { what: "transaction's thread", why: error.to_string() };
        Ok(Self { producer, stop, poller: Some(poller.map_err(failed)?) })
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.producer.context().0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason behind a failure: a fatal error or the first record's, which say more.
    fn cause(&self, error: KafkaError, action: impl Into<String>) -> Error {
        let first = self.reports().first.take();
        let fatal = self.producer.client().fatal_error().map(|(code, _)| KafkaError::Global(code));
        Error::Request { action: action.into(), source: fatal.or(first).unwrap_or(error) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(poller) = self.poller.take() {
            // It holds the other reference: once it has ended, the producer goes with this one.
            let _ = poller.join();
        }
    }
}

/// What became of the records of a transaction so far.
#[derive(Default)]
struct Reports {
    first: Option<KafkaError>,
    failed: Vec<(usize, Reason)>,
    written: usize,
    /// Written, as librdkafka has it, but the broker did not say where; see `Fate::reported` of the publisher.
    not_placed: usize,
    /// Behind the last record written, over all transactions; an earlier offset where none was.
    reached: HashMap<String, HashMap<i32, i64>>,
}

impl Reports {
    fn begin(&mut self) {
        *self = Self { reached: std::mem::take(&mut self.reached), ..Self::default() };
    }

    fn written(&mut self, topic: &str, partition: i32, offset: i64) {
        if offset < 0 {
            self.not_placed += 1;
            return;
        }
        self.written += 1;
        // What was not asked for is not kept.
        if let Some(reached) = self.reached.get_mut(topic).and_then(|of| of.get_mut(&partition)) {
            // Less than before where the leader has lost records.
            *reached = offset + 1;
        }
    }
}

#[derive(Default)]
struct Context(Mutex<Reports>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Being fenced is how rivals take turns.
        tracing::debug!(%error, "{reason}");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (error, message) = match result {
            Ok(message) => return reports.written(message.topic(), message.partition(), message.offset()),
            Err(failure) => failure,
        };
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        // Given up because of another, or of what ended the producer.
        if !matches!(code, Code::PurgeQueue | Code::PurgeInflight) {
            tracing::debug!(topic = message.topic(), %error, "record of a transaction not written");
            reports.failed.push((number, Reason::of_report(code)));
            reports.first.get_or_insert_with(|| error.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        mocking::MockCluster,
        types::{RDKafkaApiKey, RDKafkaRespErr as Answer},
    };

    use super::*;

    fn refused(answer: Answer) -> Error {
        let cluster = MockCluster::new(1).unwrap();
        let options = Options { brokers: cluster.bootstrap_servers(), ..Options::default() };
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[answer; 100]);
        Idle::start(&options, "refused").err().expect("it is refused")
    }

    #[test]
    fn cluster_that_forbids_transactions_is_told_from_one_that_is_not_ready() {
        let error = refused(Answer::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED);
        assert!(error.forbids_transactions(), "{error:?}");
        let error = refused(Answer::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS);
        assert!(!error.forbids_transactions(), "{error:?}");
    }
}
