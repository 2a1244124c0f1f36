//! How our clients speak to Kafka: one place for every setting of librdkafka, each with its reason.
//!
//! Owns the settings, the log bridge, and which of a user's settings are refused. Must not know topics or records.

use std::{
    collections::BTreeMap,
    fmt, thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    client::Client,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::ConsumerContext,
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};

use super::Error;

/// After this the publisher gives up a record that no broker acknowledged as *unknown*, and its producer with it. Longer
/// than a leader's election (some seconds), shorter than people wait for an answer over HTTP.
///
/// librdkafka's own `message.timeout.ms` must not do it: its producer goes on under a new epoch then, and records of other
/// partitions that the brokers have already, but not acknowledged, are sent once more under it. The brokers do not know
/// them again, so that they are in the log twice (librdkafka issue 4953).
pub(super) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(12);
/// What a request to a broker may take; below `MESSAGE_TIMEOUT`, so that one lost answer leaves time for a second try.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an open transaction may hold back `read_committed` readers when its producer has died.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the ends of a partition are asked for.
const WATERMARK_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries of a request that the cluster could not answer for a moment.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// How to reach Kafka and how much to put in flight.
#[derive(Clone)]
pub struct Options {
    /// `host:port`, several joined by commas.
    pub brokers: String,
    /// Settings passed to librdkafka as they are (`security.protocol`, `sasl.username`, `ssl.ca.location`, …).
    /// Those that Millpond's guarantees rest on are refused, with the reason.
    pub client: BTreeMap<String, String>,
    /// Shown in the brokers' logs and quotas.
    pub client_id: String,
    /// Replicas of the topics we create; `None` takes the cluster's `default.replication.factor`.
    pub replication: Option<u16>,
    /// Bytes of records that may wait for acknowledgement in one process before new ones are refused.
    pub in_flight_bytes: usize,
    /// Largest record (key, value and headers) in bytes; the topics' `max.message.bytes` should not be below it.
    pub max_record_bytes: usize,
    /// How many partitions topics have as the project declares them. A key's place follows from this number, also where a
    /// topic was given more since: keys must not move on nobody's word.
    pub declared_partitions: BTreeMap<String, u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            client: BTreeMap::new(),
            client_id: "millpond".into(),
            replication: None,
            in_flight_bytes: 64 << 20,
            // The brokers' own default, 1,048,588, counts the batch around the record.
            max_record_bytes: 1_000_000,
            declared_partitions: BTreeMap::new(),
        }
    }
}

/// Values may be passwords: only the names are shown.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("brokers", &self.brokers)
            .field("client", &self.client.keys())
            .field("client_id", &self.client_id)
            .field("replication", &self.replication)
            .field("in_flight_bytes", &self.in_flight_bytes)
            .field("max_record_bytes", &self.max_record_bytes)
            .field("declared_partitions", &self.declared_partitions)
            .finish()
    }
}

/// Settings that are ours, and why nobody else may set them.
const OWNED: &[(&[&str], &str)] = &[
    (&["bootstrap.servers", "metadata.broker.list"], "set the brokers in the kafka section instead"),
    (&["client.id"], "set client_id in the kafka section instead"),
    (
        &[
            "enable.idempotence",
            "acks",
            "request.required.acks",
            "retries",
            "message.send.max.retries",
            "max.in.flight.requests.per.connection",
            "max.in.flight",
            "enable.gapless.guarantee",
        ],
        "a 202 promises that the record is on every in-sync replica, once and in order",
    ),
    (
        &[
            "message.timeout.ms",
            "delivery.timeout.ms",
            "request.timeout.ms",
            "socket.timeout.ms",
            "transaction.timeout.ms",
        ],
        "answers over HTTP and the readers of transactions depend on these limits",
    ),
    (&["partitioner", "sticky.partitioning.linger.ms"], "keys are placed as the Java client places them"),
    (
        &["queue.buffering.max.messages", "queue.buffering.max.kbytes", "message.max.bytes"],
        "set in_flight_bytes or max_record_bytes instead",
    ),
    (&["allow.auto.create.topics"], "topics are created by `millpond schema push`, with their settings"),
    (&["delivery.report.only.error", "dr_cb", "dr_msg_cb"], "every record's fate is accounted for"),
    (
        &[
            "transactional.id",
            "group.id",
            "group.instance.id",
            "enable.auto.commit",
            "enable.auto.offset.store",
            "isolation.level",
            "auto.offset.reset",
            "enable.partition.eof",
            "check.crcs",
        ],
        "positions are kept in Postgres and transactions are opened by Millpond itself",
    ),
    (&["log_level", "log.queue", "statistics.interval.ms"], "logs and statistics are read by Millpond itself"),
];

fn refusal(key: &str, value: &str) -> Option<&'static str> {
    // A switched-off check would let anyone between us and the broker read and forge records.
    match (key, value.to_ascii_lowercase().as_str()) {
        ("enable.ssl.certificate.verification", "false" | "f" | "0") => {
            return Some("it would accept any broker; point ssl.ca.location at the right authority instead");
        }
        ("ssl.endpoint.identification.algorithm", "none") => {
            return Some("it would accept any broker; use the name that is in the broker's certificate instead");
        }
        _ => {}
    }
    OWNED.iter().find(|(keys, _)| keys.contains(&key)).map(|(_, why)| *why)
}

impl Options {
    /// What every client of ours has in common.
    fn base(&self) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", &self.client_id)
            .set("socket.timeout.ms", millis(SOCKET_TIMEOUT))
            // A dead peer behind a firewall that drops silently is noticed by the kernel.
            .set("socket.keepalive.enable", "true")
            // Answers of brokers come in small frames; Nagle's algorithm would hold them back.
            .set("socket.nagle.disable", "true")
            // Reconnect fast at first: a broker's restart takes seconds, and requests are waiting.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "2000")
            // A misspelt topic must be an error, not a new topic with default settings.
            .set("allow.auto.create.topics", "false");
        for (key, value) in &self.client {
            if let Some(why) = refusal(key, value) {
                return Err(Error::OwnedSetting { key: key.clone(), why });
            }
            config.set(key, value);
        }
        Ok(config)
    }

    /// An idempotent producer: each record once and in order per partition, acknowledged by all in-sync replicas.
    pub(super) fn producer(&self) -> Result<ClientConfig, Error> {
        let mut config = self.base()?;
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // Never: see `MESSAGE_TIMEOUT`.
            .set("message.timeout.ms", "0")
            // Records name their partition; for those that do not, the Java client's placement.
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", self.max_record_bytes.to_string())
            // Our own budget of bytes is what fills first; librdkafka's queue is larger, so that it never does.
            .set("queue.buffering.max.kbytes", (self.in_flight_bytes / 512).clamp(1024, 2_097_151).to_string())
            .set("queue.buffering.max.messages", queue_messages(self.in_flight_bytes).to_string());
        // Measured: 1 ms fills batches at load, 5 ms starves few clients, 0 floods the broker with requests.
        default(&mut config, &["linger.ms", "queue.buffering.max.ms"], "1");
        // Cheaper than none over the whole path for keyed records, and a third of the bytes on disk.
        default(&mut config, &["compression.type", "compression.codec"], "lz4");
        Ok(config)
    }

    /// A producer of transactions under `id`.
    pub(super) fn transactional(&self, id: &str) -> Result<ClientConfig, Error> {
        let mut config = self.producer()?;
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", millis(TRANSACTION_TIMEOUT))
            // librdkafka wants it at most the transaction's.
            .set("message.timeout.ms", millis(TRANSACTION_TIMEOUT - Duration::from_secs(2)))
            // Whoever sends bounds what is in one transaction: the queue is there to hold it.
            .set("queue.buffering.max.kbytes", "65536")
            .set("queue.buffering.max.messages", "100000");
        // The broker weighs a whole batch against the topic's `max.message.bytes`: small ones fit where a large record
        // would not.
        default(&mut config, &["batch.size"], "65536");
        Ok(config)
    }

    /// A consumer that is told what to read (`assign`), and commits nothing.
    pub(super) fn reader(&self, isolation: Isolation) -> Result<ClientConfig, Error> {
        let mut config = self.base()?;
        config
            // librdkafka wants a name even of a consumer that never joins a group.
            .set("group.id", format!("{}-reader", self.client_id))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", isolation.as_str())
            // To start below the log's start is an error to tell, never a silent jump.
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            // The end of a partition is learned from an empty answer: do not let the broker sit on it.
            .set("fetch.wait.max.ms", "10")
            .set("check.crcs", "true");
        Ok(config)
    }

    /// One that reads all partitions of its topics from their start on, without a group: as fast as it gets.
    pub(super) fn follower(&self, reader: &str, partitions: usize) -> Result<ClientConfig, Error> {
        let mut config = self.member(reader)?;
        // A batch is larger than a member's, and the next one is fetched while it is applied. A queue is of one partition.
        let kbytes = (128 * 1024 / partitions.max(1)).clamp(1024, 16 * 1024);
        config
            .set("queued.min.messages", "50000")
            .set("queued.max.messages.kbytes", kbytes.to_string())
            .set("fetch.message.max.bytes", "1048576");
        Ok(config)
    }

    /// A member of a consumer group; see `subscription` for what it does.
    pub(super) fn member(&self, group: &str) -> Result<ClientConfig, Error> {
        let mut config = self.base()?;
        config
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            // Positions live in Postgres: Kafka neither commits nor resets anything by itself.
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            // A broken batch is an error, never a record.
            .set("check.crcs", "true")
            // The poll thread never waits longer than about 10 s; five minutes would only hide a fault.
            .set("max.poll.interval.ms", "60000")
            // Prefetch is memory: for each partition a batch, or 4 MiB, and what one fetch brings on top.
            .set("queued.min.messages", "5000")
            .set("queued.max.messages.kbytes", "4096")
            .set("fetch.message.max.bytes", "262144")
            // The default is a second: of a backlog, a partition's queue is empty again after some 50 ms.
            .set("fetch.queue.backoff.ms", "5")
            // A new record ends the wait at the broker at once. But there is one fetch at a time, and it may ask for
            // partitions without news only, the queues of the others being full just then: those wait as long.
            .set("fetch.wait.max.ms", "100")
            .set("fetch.error.backoff.ms", "100")
            .set("topic.metadata.refresh.interval.ms", "10000");
        // A dead member is replaced after 10 s; above the 8 s after which Postgres ends a stopped transaction. Whoever
        // sets less has partitions taken over sooner and waits for such a transaction instead; fences hold either way.
        default(&mut config, &["session.timeout.ms"], "10000");
        default(&mut config, &["heartbeat.interval.ms"], "3000");
        Ok(config)
    }

    pub(super) fn admin(&self) -> Result<ClientConfig, Error> {
        self.base()
    }
}

/// Which records a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolation {
    Committed,
    /// Those of aborted and of open transactions too.
    Uncommitted,
}

impl Isolation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }
}

/// Records of no bytes at all still cost memory: see `publisher::RECORD_COST`, which this is the inverse of.
fn queue_messages(in_flight_bytes: usize) -> usize {
    (in_flight_bytes / super::publisher::RECORD_COST + 1000).min(10_000_000)
}

fn default(config: &mut ClientConfig, aliases: &[&str], value: &str) {
    if aliases.iter().all(|key| config.get(key).is_none()) {
        config.set(aliases[0], value);
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// Creates a client, with an error that names the setting at fault but never shows its value.
pub(super) fn create<C, T>(config: &ClientConfig, context: C, what: &'static str) -> Result<T, Error>
where
    T: FromClientConfigAndContext<C>,
    C: ClientContext,
{
    T::from_config_and_context(config, context).map_err(|error| Error::Create {
        what,
        why: match error {
            KafkaError::ClientConfig(_, _, key, _) => {
                format!("librdkafka does not take the setting `{key}` or its value; see its CONFIGURATION.md")
            }
            KafkaError::ClientCreation(text) => text,
            other => other.to_string(),
        },
    })
}

/// Errors that librdkafka, the cluster or a moment's patience mends.
pub(super) fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::Resolve
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::OffsetNotAvailable
        )
    )
}

/// The first offset kept and the first not written yet. A topic just made, or with a leader just elected, needs a moment.
pub(super) fn watermarks<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64), Error> {
    watermarks_within(client, topic, partition, WATERMARK_LIMIT)
}

/// [`watermarks`], tried for `limit`. A leader that does not answer may not be it any more: librdkafka asks the one that it
/// knows, for minutes if need be, so it is told anew in between. Where no leader answers this takes half as long again.
pub(super) fn watermarks_within<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
    limit: Duration,
) -> Result<(i64, i64), Error> {
    let started = Instant::now();
    loop {
        match client.fetch_watermarks(topic, partition, limit / 2) {
            Ok(watermarks) => return Ok(watermarks),
            Err(error) if is_passing(&error) && started.elapsed() < limit => {
                // Whether that could be had the next attempt says.
                let _ = client.fetch_metadata(Some(topic), limit / 2);
                thread::sleep(PAUSE);
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
                    check_exists(client, topic, partition)?;
                    if started.elapsed() >= limit {
                        return Err(Error::request(format!("tell the ends of {topic}/{partition}"))(error));
                    }
                    thread::sleep(PAUSE);
                }
                _ => return Err(Error::request(format!("tell the ends of {topic}/{partition}"))(error)),
            },
        }
    }
}

/// Asks the brokers. librdkafka by itself calls a partition unknown for a quarter of an hour once it has seen it without
/// a leader, as during a broker's restart; the answer to this also takes the place of what it remembers.
fn check_exists<C: ClientContext>(client: &Client<C>, topic: &str, partition: i32) -> Result<(), Error> {
    let metadata = client.fetch_metadata(Some(topic), WATERMARK_LIMIT);
    let metadata = metadata.map_err(Error::request(format!("describe topic `{topic}`")))?;
    match metadata.topics().iter().find(|t| t.name() == topic).map_or(&[][..], |t| t.partitions()) {
        [] => Err(Error::no_topic(topic, [])),
        found if found.iter().any(|p| p.id() == partition) => Ok(()),
        found => Err(Error::NoPartition { topic: topic.to_owned(), partition, partitions: found.len() }),
    }
}

/// Writes librdkafka's log lines to ours. What it calls an error is mostly a broker that is away for a moment.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "millpond::kafka", facility, "{message}");
        }
        // A setting for consumers in the shared list, seen by a producer: not worth a line each.
        _ if facility == "CONFWARN" => tracing::debug!(target: "millpond::kafka", facility, "{message}"),
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "millpond::kafka", facility, "{message}");
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(target: "millpond::kafka", facility, "{message}");
        }
        RDKafkaLogLevel::Debug => tracing::debug!(target: "millpond::kafka", facility, "{message}"),
    }
}

/// The context of clients that need no more than the log bridge.
#[derive(Clone, Default)]
pub(super) struct Logging;

impl ClientContext for Logging {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka logs it, too.
        tracing::debug!(target: "millpond::kafka", %error, "{reason}");
    }
}

impl ConsumerContext for Logging {}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;

    use super::*;

    fn with(key: &str, value: &str) -> Options {
        Options { client: BTreeMap::from([(key.into(), value.into())]), ..Options::default() }
    }

    #[test]
    fn setting_that_breaks_a_promise_is_refused_with_the_reason() {
        let error = with("acks", "1").producer().unwrap_err().to_string();
        assert!(error.contains("`acks`") && error.contains("in-sync replica"), "{error}");
        assert!(with("enable.ssl.certificate.verification", "False").producer().is_err());
        assert!(with("enable.ssl.certificate.verification", "true").producer().is_ok());
    }

    #[test]
    fn tunable_setting_wins_over_our_default() {
        let config = with("linger.ms", "5").producer().unwrap();
        assert_eq!(config.get("linger.ms"), Some("5"));
        assert_eq!(with("sasl.username", "x").producer().unwrap().get("linger.ms"), Some("1"));
    }

    #[test]
    fn every_config_is_taken_by_librdkafka() {
        let options = Options { brokers: "127.0.0.1:1".into(), ..Options::default() };
        for config in [
            options.producer().unwrap(),
            options.transactional("t").unwrap(),
            options.reader(Isolation::Committed).unwrap(),
            options.admin().unwrap(),
        ] {
            config.create_native_config().unwrap();
        }
    }

    #[test]
    fn secret_is_neither_in_debug_nor_in_errors() {
        assert!(!format!("{:?}", with("sasl.password", "hunter2")).contains("hunter2"));
        let mut with_key = with("ssl.key.pem", "hunter2");
        with_key.client.insert("security.protocol".into(), "ssl".into());
        for faulty in [with_key, with("security.protocol", "hunter2")] {
            let made: Result<BaseConsumer<Logging>, Error> =
                create(&faulty.reader(Isolation::Committed).unwrap(), Logging, "reader");
            let error = made.err().unwrap();
            assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
