//! The log as any consumer sees it: read from its start, records decoded by hand.
//!
//! Shares no code with what is under test, the client library aside: its own reading, its own Avro.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;

use crate::arena::Topics;
use crate::values::{Append, Money};

/// How long a topic may take to be read to its end.
const WITHIN: Duration = Duration::from_secs(120);
/// How long a partition may be without a leader once everything is mended.
const ELECTED_WITHIN: Duration = Duration::from_secs(30);
/// The consumers of a run. Their dead letters are in topics of their names, those of all runs on these servers in one.
pub const CONSUMERS: [&str; 6] = ["appends", "chains", "accounts", "amounts", "credits", "lanes"];
/// Verdicts of all runs on these servers.
const VERDICTS: &str = "millpond.verdicts";

/// A record, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed<T> {
    pub partition: i32,
    pub offset: i64,
    pub event_id: String,
    /// Of what a client has sent under an id of its own.
    pub fingerprint: Option<String>,
    /// Milliseconds since the Unix epoch, as the broker says.
    pub timestamp: i64,
    pub value: T,
}

/// What an accepted transfer brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credit {
    pub account: String,
    pub transfer_id: String,
    pub amount: i64,
}

/// A note of the small Millpond beside the one under load, with what only the newer schema has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub key: String,
    pub n: i64,
    pub extra: Option<String>,
}

/// Where a dead letter was before it died.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadFrom {
    pub consumer: &'static str,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// What was decided about a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// `apply`, `edit`, `discard` or `dead_letter`.
    pub what: String,
    /// Why it had not been applied.
    pub class: String,
    pub by: String,
    /// What an edit has put in its place.
    pub value: Option<Append>,
}

/// Consumer, partition and offset of a record.
pub type Place = (String, i32, i64);
/// The last word about each record.
pub type Verdicts = BTreeMap<Place, Decided>;

/// Everything that was written, each topic in the order of its partitions and offsets.
#[derive(Debug, Default)]
pub struct Log {
    pub appends: Vec<Placed<Append>>,
    pub money: Vec<Placed<Money>>,
    pub credits: Vec<Placed<Credit>>,
    pub lanes: Vec<Placed<Append>>,
    pub verdicts: Verdicts,
    pub dead: Vec<Placed<DeadFrom>>,
}

impl Log {
    /// Reads all topics of a run to their ends.
    pub fn read(brokers: &str, topics: &Topics) -> anyhow::Result<Self> {
        let (mut log, reader) = (Self::default(), Reader::open(brokers)?);
        reader.read(&topics.appends, |at| {
            log.appends.push(at.place(decode_append)?);
            Ok(())
        })?;
        // The one topic with two types: which it is, the schema's id says.
        let ids = schema_ids(&reader)?;
        reader.read(&topics.transfers, |at| {
            let deposit = ids.get(&schema_id(at.payload)?).is_some_and(|name| name.ends_with("Deposit"));
            log.money.push(at.place(|avro| decode_money(avro, deposit))?);
            Ok(())
        })?;
        reader.read(&topics.credits, |at| {
            log.credits.push(at.place(decode_credit)?);
            Ok(())
        })?;
        reader.read(&topics.lanes, |at| {
            log.lanes.push(at.place(decode_append)?);
            Ok(())
        })?;
        let own = [&topics.appends, &topics.transfers, &topics.credits, &topics.lanes];
        for consumer in CONSUMERS {
            let dead = format!("{consumer}.dlq");
            if reader.exists(&dead)? {
                reader.read(&dead, |at| {
                    log.dead.extend(Some(at.dead(consumer)?).filter(|dead| own.contains(&&dead.value.topic)));
                    Ok(())
                })?;
            }
        }
        reader.read(VERDICTS, |at| {
            log.verdicts.extend(at.verdict(&own)?);
            Ok(())
        })?;
        Ok(log)
    }
}

/// From this id on there are no schemas: what says so cannot be read, and is left out.
pub const NO_SCHEMA: u32 = 1_000_000;

/// All notes of a topic that can be read.
pub fn notes(brokers: &str, topic: &str) -> anyhow::Result<Vec<Placed<Note>>> {
    let mut notes = Vec::new();
    Reader::open(brokers)?.read(topic, |at| {
        if schema_id(at.payload)? < NO_SCHEMA {
            notes.push(at.place(decode_note)?);
        }
        Ok(())
    })?;
    Ok(notes)
}

/// A record as it comes.
struct Raw<'a> {
    partition: i32,
    offset: i64,
    payload: &'a [u8],
    message: &'a BorrowedMessage<'a>,
}

impl Raw<'_> {
    fn place<T>(&self, decode: impl FnOnce(&mut Avro<'_>) -> anyhow::Result<T>) -> anyhow::Result<Placed<T>> {
        let place = || format!("the record at partition {} offset {}", self.partition, self.offset);
        schema_id(self.payload).with_context(place)?;
        let mut avro = Avro(&self.payload[5..]);
        let value = decode(&mut avro).with_context(place)?;
        ensure!(avro.0.is_empty(), "{} has {} bytes too many", place(), avro.0.len());
        let event_id = self.header("mp-event-id")?.with_context(place)?;
        let fingerprint = self.header("mp-fingerprint")?;
        let (partition, offset, timestamp) = (self.partition, self.offset, self.timestamp()?);
        Ok(Placed { partition, offset, event_id, fingerprint, timestamp, value })
    }

    fn timestamp(&self) -> anyhow::Result<i64> {
        self.message.timestamp().to_millis().context("a record without a timestamp")
    }

    /// The dead letter, by its headers.
    fn dead(&self, consumer: &'static str) -> anyhow::Result<Placed<DeadFrom>> {
        let header = |name| self.header(name)?.with_context(|| format!("a dead letter of {consumer} has no {name}"));
        let value = DeadFrom {
            consumer,
            topic: header("mp-dlq-topic")?,
            partition: header("mp-dlq-partition")?.parse()?,
            offset: header("mp-dlq-offset")?.parse()?,
        };
        let (partition, offset, timestamp) = (self.partition, self.offset, self.timestamp()?);
        Ok(Placed { partition, offset, event_id: String::new(), fingerprint: None, timestamp, value })
    }

    /// The verdict, when it is about a record of one of these topics.
    fn verdict(&self, topics: &[&String]) -> anyhow::Result<Option<(Place, Decided)>> {
        #[derive(Deserialize)]
        struct Told {
            consumer: String,
            topic: String,
            partition: i32,
            offset: i64,
            what: String,
            class: String,
            by: String,
            payload: Option<String>,
        }
        let told: Told = serde_json::from_slice(self.payload).context("a verdict is not JSON")?;
        if !topics.contains(&&told.topic) {
            return Ok(None);
        }
        let Told { consumer, partition, offset, what, class, by, payload, .. } = told;
        let bytes = payload.map(|text| base64::engine::general_purpose::STANDARD.decode(text)).transpose()?;
        let value = bytes.map(|bytes| decode_framed(&bytes)).transpose()?;
        Ok(Some(((consumer, partition, offset), Decided { what, class, by, value })))
    }

    fn header(&self, name: &str) -> anyhow::Result<Option<String>> {
        let header = self.message.headers().and_then(|all| all.iter().find(|header| header.key == name));
        Ok(header.map(|header| String::from_utf8(header.value.unwrap_or_default().to_vec())).transpose()?)
    }
}

/// Confluent's framing: a zero, four bytes of schema id, Avro.
fn schema_id(payload: &[u8]) -> anyhow::Result<u32> {
    match payload {
        [0, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => bail!("not in Confluent's framing: {payload:?}"),
    }
}

/// Names of records by the id of their schema, from the topic of the registry.
fn schema_ids(reader: &Reader) -> anyhow::Result<BTreeMap<u32, String>> {
    let mut ids = BTreeMap::new();
    reader.read("_schemas", |at| {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(at.payload) else { return Ok(()) };
        if let (Some(id), Some(subject)) = (value["id"].as_u64(), value["subject"].as_str()) {
            ids.insert(u32::try_from(id)?, subject.to_owned());
        }
        Ok(())
    })?;
    Ok(ids)
}

fn consumer(brokers: &str) -> anyhow::Result<BaseConsumer> {
    let consumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("client.id", "rig")
        .set("group.id", "rig")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        // The end of a partition is told when a fetch comes back empty.
        .set("fetch.wait.max.ms", "50")
        .create()?;
    Ok(consumer)
}

/// The ends of a topic's partitions.
pub fn ends(brokers: &str, topic: &str) -> anyhow::Result<BTreeMap<i32, i64>> {
    Reader::open(brokers)?.ends(topic)
}

/// One client for all that is read, for to make one and to end it takes longer than to read a topic.
pub struct Reader(BaseConsumer);

impl Reader {
    pub fn open(brokers: &str) -> anyhow::Result<Self> {
        Ok(Self(consumer(brokers)?))
    }

    /// The ends of a topic's partitions.
    pub fn ends(&self, topic: &str) -> anyhow::Result<BTreeMap<i32, i64>> {
        let limit = Duration::from_secs(10);
        let metadata = self.0.fetch_metadata(Some(topic), limit)?;
        let found = metadata.topics().first().with_context(|| format!("no topic {topic}"))?;
        found.partitions().iter().map(|partition| Ok((partition.id(), self.end(topic, partition.id())?))).collect()
    }

    /// Where a partition ends. Who has just lost its leadership says so, and the client asks anew.
    fn end(&self, topic: &str, partition: i32) -> anyhow::Result<i64> {
        let deadline = Instant::now() + ELECTED_WITHIN;
        loop {
            match self.0.fetch_watermarks(topic, partition, Duration::from_secs(10)) {
                Ok((_, end)) => return Ok(end),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn exists(&self, topic: &str) -> anyhow::Result<bool> {
        let metadata = self.0.fetch_metadata(None, WITHIN)?;
        Ok(metadata.topics().iter().any(|found| found.name() == topic))
    }

    /// Hands every committed record of a topic to `take`.
    fn read(&self, topic: &str, mut take: impl FnMut(&Raw<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        let mut open = self.ends(topic)?;
        for partition in open.keys() {
            list.add_partition_offset(topic, *partition, Offset::Beginning)?;
        }
        self.0.assign(&list)?;
        let deadline = Instant::now() + WITHIN;
        while !open.is_empty() {
            ensure!(Instant::now() < deadline, "{topic} could not be read to its end within {WITHIN:?}");
            match self.0.poll(Duration::from_millis(200)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                // A broker that is away for a moment.
                Some(Err(KafkaError::MessageConsumption(_))) => {}
                Some(Err(error)) => return Err(error).with_context(|| format!("cannot read {topic}")),
                Some(Ok(message)) => {
                    ensure!(message.topic() == topic, "{topic} was asked for, and {} came", message.topic());
                    let payload = message.payload().unwrap_or_default();
                    let (partition, offset) = (message.partition(), message.offset());
                    take(&Raw { partition, offset, payload, message: &message })?;
                }
            }
        }
        // What comes late of this topic is not to be taken for something of the next.
        self.0.unassign()?;
        Ok(())
    }
}

/// What is left of an Avro value.
struct Avro<'a>(&'a [u8]);

impl Avro<'_> {
    /// A whole number: seven bits a byte, the lowest first, the sign in the lowest bit.
    fn long(&mut self) -> anyhow::Result<i64> {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let (first, rest) = self.0.split_first().context("a number is cut off")?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
            shift += 7;
            ensure!(shift < 64, "a number is too long");
        }
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn int(&mut self) -> anyhow::Result<i32> {
        Ok(i32::try_from(self.long()?)?)
    }

    fn string(&mut self) -> anyhow::Result<String> {
        let length = usize::try_from(self.long()?)?;
        let (text, rest) = self.0.split_at_checked(length).context("a text is cut off")?;
        self.0 = rest;
        Ok(std::str::from_utf8(text)?.to_owned())
    }
}

/// A value that was appended or put into a lane, with the framing around it.
pub fn decode_framed(payload: &[u8]) -> anyhow::Result<Append> {
    schema_id(payload)?;
    decode_append(&mut Avro(&payload[5..]))
}

fn decode_append(avro: &mut Avro<'_>) -> anyhow::Result<Append> {
    Ok(Append { key: avro.string()?, client: avro.int()?, n: avro.long()?, poison: avro.int()? })
}

fn decode_money(avro: &mut Avro<'_>, deposit: bool) -> anyhow::Result<Money> {
    let account = avro.string()?;
    let target = if deposit { None } else { Some(avro.string()?) };
    Ok(Money { account, target, amount: avro.long()?, client: avro.int()?, n: avro.long()? })
}

fn decode_credit(avro: &mut Avro<'_>) -> anyhow::Result<Credit> {
    Ok(Credit { account: avro.string()?, transfer_id: avro.string()?, amount: avro.long()? })
}

/// The newer schema has one field more, a union of null and text.
fn decode_note(avro: &mut Avro<'_>) -> anyhow::Result<Note> {
    let (key, n) = (avro.string()?, avro.long()?);
    let extra = if avro.0.is_empty() || avro.long()? == 0 { None } else { Some(avro.string()?) };
    Ok(Note { key, n, extra })
}
