//! The hot path to Kafka: batches of encoded records in, receipts out.
//!
//! Owns the idempotent producer, which partition a record goes to, the accounting of every record, and whether the
//! brokers are well enough to take more. Must not wait: a batch is queued, or refused at once with the reason.
//! Must not send a record twice: what is unknown stays so, and is said.

mod in_flight;
#[cfg(test)]
mod mock_tests;
#[cfg(test)]
mod order_tests;
mod placement;
mod producer;
mod run;
mod topics;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, PoisonError, RwLock, TryLockError},
    time::{Duration, Instant},
};

use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord},
    types::RDKafkaErrorCode as Code,
};
use tokio::sync::watch;

pub use in_flight::PendingReceipt;

use self::{
    in_flight::{Fate, InFlight, Ticket},
    producer::Context,
    run::State,
    topics::{Lookup, Topic},
};
use super::{Error, Options, murmur2};
use crate::{
    domain::{HEADER_EVENT_ID, HEADER_FINGERPRINT, Position, TopicPartition},
    telemetry::metrics::kafka as metrics,
};

/// What a record costs beside its bytes: librdkafka's message, its headers' nodes, our slot.
pub(super) const RECORD_COST: usize = 256;
/// What the wire format adds to a record at most: varints, attributes, header lengths.
const RECORD_OVERHEAD: usize = 70;

/// Records for one topic, encoded into one buffer.
#[derive(Debug, Clone)]
pub struct EncodedBatch {
    pub topic: Arc<str>,
    /// Keys, payloads, event ids and fingerprints, in any order; the records say where.
    pub bytes: Vec<u8>,
    pub records: Vec<EncodedRecord>,
    /// Headers that every record of the batch gets: name, value or null.
    pub headers: Vec<(Cow<'static, str>, Option<Vec<u8>>)>,
}

/// One record, as ranges of its batch's bytes.
#[derive(Debug, Clone)]
pub struct EncodedRecord {
    pub key: Option<Range<u32>>,
    /// `None` is a tombstone.
    pub payload: Option<Range<u32>>,
    /// UTF-8; empty for none.
    pub event_id: Range<u32>,
    /// Of a record whose id is its client's: [`Fingerprint`](crate::domain::Fingerprint) in hex; empty for none.
    pub fingerprint: Range<u32>,
}

/// Why no record of a batch was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    #[error("{in_flight} of {limit} bytes wait for acknowledgement by kafka; try again in a moment")]
    Full { in_flight: usize, limit: usize },
    #[error("kafka cannot take records now: {why}")]
    Unavailable { why: Arc<str> },
    #[error(
        "partition {topic}/{partition} cannot take records now: it has no leader, too few replicas in sync, or acknowledges nothing"
    )]
    PartitionUnavailable { topic: Arc<str>, partition: i32 },
    #[error("topic `{topic}` does not exist in this cluster")]
    UnknownTopic { topic: Arc<str> },
    #[error("record {index} has {bytes} bytes where {limit} are allowed")]
    RecordTooLarge { index: usize, bytes: usize, limit: usize },
    #[error("the batch needs {bytes} bytes where {limit} are allowed; send it in parts")]
    BatchTooLarge { bytes: usize, limit: usize },
    #[error("record {index} names bytes outside of its batch")]
    Malformed { index: usize },
}

impl NotSent {
    /// Name of the reason in metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::Full { .. } => "full",
            Self::Unavailable { .. } => "unavailable",
            Self::PartitionUnavailable { .. } => "partition_unavailable",
            Self::UnknownTopic { .. } => "unknown_topic",
            Self::RecordTooLarge { .. } => "record_too_large",
            Self::BatchTooLarge { .. } => "batch_too_large",
            Self::Malformed { .. } => "malformed",
        }
    }
}

/// What became of the records of a batch, in the batch's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub topic: Arc<str>,
    pub deliveries: Vec<Delivery>,
}

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// On every in-sync replica, and the broker has said where.
    Written { partition: i32, offset: i64 },
    /// Certainly not in the log.
    NotWritten(Reason),
    /// Perhaps in the log: nobody can tell but a reader of it. Never sent again by us.
    Unknown(Reason),
}

impl Receipt {
    pub fn all_written(&self) -> bool {
        self.deliveries.iter().all(|d| matches!(d, Delivery::Written { .. }))
    }

    /// The position that covers every record written.
    pub fn position(&self) -> Position {
        let mut position = Position::new();
        for delivery in &self.deliveries {
            if let Delivery::Written { partition, offset } = delivery {
                position.include(TopicPartition::new(self.topic.clone(), *partition), *offset);
            }
        }
        position
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $definite:literal, $text:literal;)*) => {
        /// Why a record was not written, or is not known to be. A bounded set, for answers and metrics.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            fn from_code(code: u8) -> Self {
                match code { $($code => Self::$name,)* _ => Self::Other }
            }

            /// Whether the record is certainly not in the log.
            pub fn is_definite(self) -> bool {
                match self { $(Self::$name => $definite,)* }
            }

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    QueueFull = 0, true, "the queue to kafka was full before this record";
    RecordTooLarge = 1, true, "the record is larger than the topic allows";
    UnknownTopic = 2, true, "the topic or partition does not exist";
    Unauthorized = 3, true, "the cluster does not let us write this topic";
    /// The broker looked at the record and refused it: a compacted topic and no key, a bad timestamp.
    Rejected = 4, true, "the broker refused the record";
    NotQueued = 5, true, "the producer did not take the record";
    TimedOut = 6, false, "no acknowledgement came in time";
    NotEnoughReplicas = 7, false, "too few replicas are in sync";
    Closed = 8, false, "millpond was stopped before the acknowledgement came";
    ProducerLost = 9, false, "the producer failed and was replaced";
    /// Acknowledged only with one that was sent after it.
    NotPlaced = 11, false, "kafka did not say where the record is";
    Other = 10, false, "kafka reported an error that leaves open whether the record was written";
}

impl Reason {
    /// Of a delivery report. Definite are only the refusals that depend on the record or the topic alone; whatever
    /// may follow a first try with a lost answer is not.
    pub(super) fn of_report(code: Code) -> Self {
        match code {
            Code::MessageSizeTooLarge | Code::InvalidMessageSize => Self::RecordTooLarge,
            Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition | Code::InvalidTopic => {
                Self::UnknownTopic
            }
            Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => Self::Unauthorized,
            Code::InvalidRecord | Code::InvalidTimestamp | Code::PolicyViolation => Self::Rejected,
            Code::MessageTimedOut | Code::RequestTimedOut | Code::OperationTimedOut => Self::TimedOut,
            Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => Self::NotEnoughReplicas,
            Code::PurgeQueue | Code::PurgeInflight => Self::Closed,
            Code::Fatal | Code::OutOfOrderSequenceNumber | Code::UnknownProducerId | Code::InvalidProducerEpoch => {
                Self::ProducerLost
            }
            _ => Self::Other,
        }
    }

    /// Of a record that librdkafka did not take: it is not sent, whatever the reason.
    fn of_refusal(code: Code) -> Self {
        match (code, Self::of_report(code)) {
            (Code::QueueFull, _) => Self::QueueFull,
            (_, reason) if reason.is_definite() => reason,
            _ => Self::NotQueued,
        }
    }
}

/// Whether the publisher takes records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Ready,
    Degraded { since: Instant, why: Arc<str> },
}

/// The running publisher. Share it behind an `Arc`; one per process is enough.
pub struct Publisher {
    shared: Arc<Shared>,
}

/// What the publisher's threads and its callers share.
struct Shared {
    state: Arc<State>,
    options: Options,
    /// Read to queue, written to replace: who holds it for writing knows that nobody is queueing.
    live: RwLock<Option<BaseProducer<Context>>>,
}

impl Publisher {
    /// Starts the producer and its threads, and asks for `topics`; does not wait for the brokers (see
    /// [`Self::wait_ready`]). Fails on faulty settings only.
    pub fn start<'a>(options: &Options, topics: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let state = Arc::new(State::new(options));
        topics.into_iter().for_each(|topic| state.topics.ask(topic));
        let producer = producer::create(options, &state)?;
        let live = RwLock::new(Some(producer));
        let shared = Arc::new(Shared { state, options: options.clone(), live });
        run::spawn(&shared)?;
        Ok(Self { shared })
    }

    /// Queues a batch, or refuses it whole. Never waits.
    pub fn publish(&self, batch: EncodedBatch) -> Result<PendingReceipt, NotSent> {
        let refused = |reason: &NotSent| metrics::REFUSED_BATCHES.with_label_values(&[reason.label()]).inc();
        self.shared.publish(&batch).inspect_err(refused)
    }

    /// Number of partitions of a topic, looked up if it is not known yet.
    pub async fn partitions_of(&self, topic: &str) -> Result<usize, Error> {
        let state = &self.shared.state;
        let mut rounds = state.rounds.subscribe();
        if state.topics.get(topic).is_none() {
            state.topics.ask(topic);
            state.wake_scout();
        }
        let looked_up = async {
            loop {
                match state.topics.lookup(topic) {
                    Some(Lookup::Known(known)) => return Ok(known.partitions.len()),
                    Some(Lookup::Absent) => {
                        state.topics.forget_absent(topic);
                        return Err(Error::no_topic(topic, []));
                    }
                    // The sender lives in `state`, which we hold.
                    Some(Lookup::Asked) | None => drop(rounds.changed().await),
                }
            }
        };
        const LIMIT: Duration = Duration::from_secs(10);
        let timeout = || Error::Timeout { action: format!("describe topic `{topic}`"), seconds: LIMIT.as_secs() };
        tokio::time::timeout(LIMIT, looked_up).await.unwrap_or_else(|_| Err(timeout()))
    }

    pub fn health(&self) -> Health {
        self.shared.state.health.borrow().clone()
    }

    /// Follows [`Self::health`].
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.shared.state.health.subscribe()
    }

    /// Waits until records are taken: the producer has its id and the topics are looked up.
    pub async fn wait_ready(&self) {
        let mut health = self.watch_health();
        let _ = health.wait_for(|health| *health == Health::Ready).await;
    }

    /// Bytes under way, as the budget counts them.
    pub fn in_flight_bytes(&self) -> usize {
        self.shared.state.budget.used()
    }

    /// Refuses new batches, waits for those under way at most for `limit`, and ends the producer. Returns the number
    /// of records whose fate stays unknown. Called twice, the second call waits for the first.
    pub async fn close(&self, limit: Duration) -> usize {
        let state = &self.shared.state;
        state.close(Instant::now() + limit);
        let mut closed = state.closed.subscribe();
        let abandoned = closed.wait_for(Option::is_some).await;
        abandoned.ok().and_then(|n| *n).unwrap_or(0)
    }
}

/// Without [`Publisher::close`] what is under way is given up.
impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.state.close(Instant::now());
    }
}

impl Shared {
    fn publish(&self, batch: &EncodedBatch) -> Result<PendingReceipt, NotSent> {
        self.state.admit()?;
        let unknown = || NotSent::UnknownTopic { topic: batch.topic.clone() };
        let topic = self.state.topics.get(&batch.topic).ok_or_else(unknown)?;
        let cost = self.check(batch)?;
        let partitions = place(batch, &topic)?;
        if self.state.topics.any_doubted() {
            enter(&partitions, &topic)?;
        }
        // Fails only while the producer is being replaced or closed.
        let live = match self.live.try_read() {
            Ok(live) => live,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(replaced()),
        };
        let producer = live.as_ref().ok_or_else(replaced)?;
        let budget = &self.state.budget;
        budget.take(cost).map_err(|in_flight| NotSent::Full { in_flight, limit: budget.limit })?;
        let flight = Arc::new(InFlight::new(partitions.into_iter(), topic, cost, budget.clone()));
        let number = self.state.window.insert(flight.clone());
        self.queue(producer, batch, &flight, number);
        self.state.window.queued(number);
        Ok(PendingReceipt(flight))
    }

    /// Everything that would make a record fail for what it is, before the first is sent. Returns the batch's cost.
    fn check(&self, batch: &EncodedBatch) -> Result<usize, NotSent> {
        let length = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        let common: usize = batch.headers.iter().map(|(name, value)| name.len() + length(value)).sum();
        let limit = self.options.max_record_bytes;
        let mut cost = batch.bytes.len();
        for (index, record) in batch.records.iter().enumerate() {
            let ranges =
                [record.key.as_ref(), record.payload.as_ref(), Some(&record.event_id), Some(&record.fingerprint)];
            let mut bytes = common + HEADER_EVENT_ID.len() + RECORD_OVERHEAD;
            if !record.fingerprint.is_empty() {
                bytes += HEADER_FINGERPRINT.len();
            }
            for range in ranges.into_iter().flatten() {
                bytes += slice(&batch.bytes, range).ok_or(NotSent::Malformed { index })?.len();
            }
            if bytes > limit {
                return Err(NotSent::RecordTooLarge { index, bytes, limit });
            }
            cost += common + RECORD_COST;
        }
        let limit = self.state.budget.limit;
        if cost > limit { Err(NotSent::BatchTooLarge { bytes: cost, limit }) } else { Ok(cost) }
    }

    /// Hands the records to librdkafka in order. The first it does not take ends the batch: later ones of the same
    /// key must not overtake it.
    fn queue(&self, producer: &BaseProducer<Context>, batch: &EncodedBatch, flight: &InFlight, number: u32) {
        // Copied for each record rather than built anew.
        let common = common_headers(batch);
        for (index, record) in batch.records.iter().enumerate() {
            let ticket = Ticket { batch: number, index: index as u32 };
            let mut outgoing = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&batch.topic, ticket.to_opaque())
                .partition(flight.partition(index))
                .headers(headers(batch, record, &common));
            outgoing.key = record.key.as_ref().and_then(|range| slice(&batch.bytes, range));
            outgoing.payload = record.payload.as_ref().and_then(|range| slice(&batch.bytes, range));
            if let Err((error, _)) = producer.send(outgoing) {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                tracing::warn!(topic = %batch.topic, index, %error, "record and the rest of its batch not queued");
                let fate = Fate::failed(Reason::of_refusal(code));
                for index in index..batch.records.len() {
                    self.state.window.settle(Ticket { index: index as u32, ..ticket }, fate);
                }
                return;
            }
        }
    }

    fn live(&self) -> std::sync::RwLockReadGuard<'_, Option<BaseProducer<Context>>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn replaced() -> NotSent {
    NotSent::Unavailable { why: "the producer is being replaced".into() }
}

/// A partition for each record; refused if one of them cannot be written now.
fn place(batch: &EncodedBatch, topic: &Topic) -> Result<Vec<i32>, NotSent> {
    let count = topic.partitions.len() as u32;
    let mut keyless = None;
    let partition_of = |record: &EncodedRecord| match &record.key {
        Some(range) => murmur2::partition_of(slice(&batch.bytes, range).unwrap_or_default(), count),
        None => *keyless.get_or_insert_with(|| topic.sticky(batch.bytes.len())),
    };
    let placed: Vec<i32> = batch.records.iter().map(partition_of).collect();
    match placed.iter().find(|at| !topic.partitions[**at as usize].is_open()) {
        Some(partition) => Err(topic.closed(*partition)),
        None => Ok(placed),
    }
}

/// Enters the partitions of a batch, some of which may be doubted.
fn enter(placed: &[i32], topic: &Topic) -> Result<(), NotSent> {
    let distinct: BTreeSet<i32> = placed.iter().copied().collect();
    match distinct.into_iter().find(|at| !topic.partitions[*at as usize].enter()) {
        Some(partition) => Err(topic.closed(partition)),
        None => Ok(()),
    }
}

/// The headers that all records of a batch share; none for a single record, which has them built in place.
fn common_headers(batch: &EncodedBatch) -> Option<OwnedHeaders> {
    (batch.records.len() > 1).then(|| add_common(batch, room_for(batch, &batch.records[0])))
}

/// Headers with room for those of the batch and of the record.
fn room_for(batch: &EncodedBatch, record: &EncodedRecord) -> OwnedHeaders {
    OwnedHeaders::new_with_capacity(batch.headers.len() + 1 + usize::from(!record.fingerprint.is_empty()))
}

fn add_common(batch: &EncodedBatch, headers: OwnedHeaders) -> OwnedHeaders {
    batch.headers.iter().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }))
}

fn headers(batch: &EncodedBatch, record: &EncodedRecord, common: &Option<OwnedHeaders>) -> OwnedHeaders {
    let headers = match common {
        Some(common) => common.clone(),
        None => add_common(batch, room_for(batch, record)),
    };
    if record.event_id.is_empty() {
        return headers;
    }
    let headers = headers.insert(Header { key: HEADER_EVENT_ID, value: slice(&batch.bytes, &record.event_id) });
    if record.fingerprint.is_empty() {
        return headers;
    }
    headers.insert(Header { key: HEADER_FINGERPRINT, value: slice(&batch.bytes, &record.fingerprint) })
}

fn slice<'a>(bytes: &'a [u8], range: &Range<u32>) -> Option<&'a [u8]> {
    bytes.get(range.start as usize..range.end as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_survives_its_code() {
        for code in 0..=10 {
            assert_eq!(Reason::from_code(code).code(), code);
        }
    }

    #[test]
    fn refused_before_sending_is_always_definite() {
        for code in [Code::QueueFull, Code::Fatal, Code::State, Code::MessageTimedOut, Code::Fail] {
            assert!(Reason::of_refusal(code).is_definite(), "{code:?}");
        }
    }

    #[test]
    fn report_that_may_follow_a_lost_answer_is_unknown() {
        for code in [Code::MessageTimedOut, Code::NotEnoughReplicas, Code::PurgeQueue, Code::Fatal, Code::Fail] {
            assert!(!Reason::of_report(code).is_definite(), "{code:?}");
        }
    }

    #[test]
    fn position_names_first_and_last_record_of_each_partition() {
        let written = |partition, offset| Delivery::Written { partition, offset };
        let deliveries = vec![written(0, 5), written(1, 9), written(0, 6), Delivery::Unknown(Reason::TimedOut)];
        let receipt = Receipt { topic: "t".into(), deliveries };
        assert_eq!(receipt.position().to_string(), "t/0@5..7,t/1@10");
        assert!(!receipt.all_written());
    }
}
