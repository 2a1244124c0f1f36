//! Transactional producers, as states: a producer is idle or in a transaction, and any failure destroys it.
//!
//! librdkafka does not have the epochs per transaction of KIP-890: after a timeout or an unknown outcome, a late
//! `EndTxn` could end the *next* transaction of the same producer. So no method here gives a producer back after an
//! error; the next one is made anew under the same id, which settles what the last one left.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
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
    Error, Options,
    client::{self, TRANSACTION_TIMEOUT},
};

/// What init, commit and abort may take: until then the coordinator has ended the transaction anyway.
const LIMIT: Duration = TRANSACTION_TIMEOUT.saturating_add(Duration::from_secs(5));
/// How often the polling thread looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

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
pub struct Transaction(Running);

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
        let failed = Error::request(format!("start transactions of `{id}`"));
        running.producer.init_transactions(LIMIT).map_err(failed)?;
        Ok(Self(running))
    }

    pub fn begin(self) -> Result<Transaction, Error> {
        self.0.producer.begin_transaction().map_err(Error::request("begin a transaction"))?;
        Ok(Transaction(self.0))
    }
}

impl Transaction {
    /// Queues a record. Whether it was written is known from [`Self::commit`].
    pub fn send(&mut self, record: &OutgoingRecord<'_>) -> Result<(), Error> {
        let insert =
            |headers: OwnedHeaders, (key, value): &(&str, Option<&[u8]>)| headers.insert(Header { key, value: *value });
        let headers = record.headers.iter().fold(OwnedHeaders::new_with_capacity(record.headers.len()), insert);
        let mut outgoing = BaseRecord::<[u8], [u8], ()>::to(record.topic).headers(headers);
        outgoing.partition = record.partition;
        outgoing.key = record.key;
        outgoing.payload = record.payload;
        let sent = self.0.producer.send(outgoing).map_err(|(error, _)| error);
        sent.map_err(Error::request(format!("queue a record for `{}`", record.topic)))
    }

    /// Waits for the records and commits. After an error the outcome is unknown, unless it [fenced](Error::is_fenced)
    /// this producer: a producer started later under the same id knows it.
    pub fn commit(self) -> Result<Idle, Error> {
        let committed = self.0.producer.commit_transaction(LIMIT);
        committed.map_err(|error| self.0.cause(error, "commit a transaction"))?;
        Ok(Idle(self.0))
    }

    /// Gives the transaction up.
    pub fn abort(self) -> Result<Idle, Error> {
        self.0.producer.abort_transaction(LIMIT).map_err(Error::request("abort a transaction"))?;
        Ok(Idle(self.0))
    }
}

impl Error {
    /// Whether another producer of the same transactional id has taken over.
    pub fn is_fenced(&self) -> bool {
        matches!(self.code(), Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch))
    }
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

    /// The reason behind a failed commit: a fatal error or the first record's, which say more.
    fn cause(&self, error: KafkaError, action: &str) -> Error {
        let first = self.producer.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
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

/// Keeps the first error of a record.
#[derive(Default)]
struct Context(Mutex<Option<KafkaError>>);

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
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            tracing::debug!(topic = message.topic(), %error, "record of a transaction not written");
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
    }
}
