//! `tests/<case>/events.jsonl`: the records of a case, as they would stand in Kafka.
//!
//! A line is `{"type": …, "key": …, "body": {…}}`, or what `topic cat --format jsonl` prints. A record is on partition 0
//! where no line says otherwise of it or its key; offsets count from 0 in each partition, in the order of the lines. An
//! `event_id` is the client's own: with it a line may repeat another.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};

use super::codec::Codec;
use crate::{
    app::Project,
    consume::Chunk,
    domain::{Fingerprint, HEADER_EVENT_ID, HEADER_FINGERPRINT, TopicPartition, nearest},
    kafka::subscription::Incoming,
    schema::encode::fingerprint,
    spec::{ConsumerSpec, SpecFault},
    store::trial::Place,
};

pub const EVENTS: &str = "events.jsonl";
/// Timestamp of line 0 where lines say none, in milliseconds since 1970: 2000-01-01. Each line is a second later.
const EPOCH_MILLIS: i64 = 946_684_800_000;

/// One record.
#[derive(Debug)]
pub struct Event {
    /// Line in the file, from 1.
    pub line: usize,
    /// Which of [`Case::partitions`] it is on.
    pub slot: usize,
    pub offset: i64,
    pub timestamp: i64,
    /// None for a tombstone.
    pub record_type: Option<String>,
    pub key: Option<String>,
    pub event_id: Option<String>,
    /// Of a record whose id is its client's.
    pub fingerprint: Option<Fingerprint>,
    pub payload: Option<Vec<u8>>,
    /// The body as it was written.
    pub body: String,
}

/// A folder below `tests/`.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    pub folder: PathBuf,
    pub events: Vec<Event>,
    pub partitions: Vec<TopicPartition>,
}

/// A line as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(rename = "type")]
    record_type: Option<String>,
    key: Option<String>,
    topic: Option<String>,
    partition: Option<i32>,
    timestamp: Option<Value>,
    event_id: Option<String>,
    #[serde(borrow, alias = "value")]
    body: Option<&'a RawValue>,
    /// In what `topic cat` prints; offsets are counted here.
    #[serde(rename = "offset")]
    _offset: Option<IgnoredAny>,
    headers: Option<Headers>,
}

/// The headers that have an effect, as `topic cat` prints them.
#[derive(Deserialize, Default)]
struct Headers {
    #[serde(rename = "mp-event-id")]
    event_id: Option<Value>,
    #[serde(rename = "mp-fingerprint")]
    fingerprint: Option<Value>,
}

impl Line<'_> {
    /// The id that the record's client gave it; one that was made for it has no effect.
    fn id_of_client(&self) -> Option<String> {
        let of_record = self.headers.as_ref().filter(|headers| headers.fingerprint.is_some());
        let printed = of_record.and_then(|headers| headers.event_id.as_ref()?.as_str());
        self.event_id.clone().or_else(|| printed.map(str::to_owned))
    }
}

/// The folders of a consumer's cases, by name.
pub fn folders(spec: &ConsumerSpec) -> std::io::Result<Vec<PathBuf>> {
    let tests = spec.folder.join("tests");
    if !tests.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(tests)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut folders: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(|path| path.is_dir()).collect();
    folders.retain(|path| !name_of(path).starts_with('.'));
    folders.sort();
    Ok(folders)
}

pub fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Case {
    /// # Errors
    /// Everything that is wrong with the file, with lines and JSON pointers.
    pub fn load(project: &Project, spec: &ConsumerSpec, codec: &Codec, folder: &Path) -> Result<Self, Vec<SpecFault>> {
        let path = folder.join(EVENTS);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            vec![SpecFault::new(&path, None, format!("cannot be read: {error}; a case needs it, one record a line"))]
        })?;
        let mut reader = Reader { spec, codec, topics: project.record_topics(), path, faults: Vec::new() };
        let mut events = Vec::new();
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            events.extend(reader.event(line, text));
        }
        if events.is_empty() && reader.faults.is_empty() {
            let message = "has no records; write one a line, or take some: millpond topic cat TOPIC --format jsonl";
            reader.faults.push(SpecFault::new(&reader.path, None, message));
        }
        let partitions = Partitions::new(&events, &mut reader);
        if !reader.faults.is_empty() {
            return Err(reader.faults);
        }
        let (events, partitions) = partitions.place(events);
        Ok(Self { name: name_of(folder), folder: folder.to_owned(), events, partitions })
    }

    /// The partition of every event.
    pub fn slots(&self) -> Vec<usize> {
        self.events.iter().map(|event| event.slot).collect()
    }

    pub fn line_at(&self, place: &Place) -> usize {
        let is_there = |event: &&Event| event.offset == place.offset && self.partitions[event.slot] == place.at;
        self.events.iter().find(is_there).map_or(0, |event| event.line)
    }

    /// Events of one partition as a batch that continues at `from`.
    pub fn chunk(&self, from: i64, events: &[usize]) -> Chunk {
        let mut chunk = Chunk::beginning_at(from);
        for event in events.iter().map(|at| &self.events[*at]) {
            let hex = event.fingerprint.map(Fingerprint::to_hex);
            let id = event.event_id.as_ref().map(|id| (HEADER_EVENT_ID, Some(id.as_bytes())));
            let fingerprint = hex.as_ref().map(|hex| (HEADER_FINGERPRINT, Some(&hex[..])));
            let mut headers = id.into_iter().chain(fingerprint);
            chunk.push(Incoming {
                offset: event.offset,
                timestamp: event.timestamp,
                key: event.key.as_deref().map(str::as_bytes),
                payload: event.payload.as_deref(),
                headers: &mut headers,
            });
        }
        chunk
    }
}

/// An event that has no place yet.
struct Unplaced {
    event: Event,
    topic: String,
    partition: Option<i32>,
}

struct Reader<'a> {
    spec: &'a ConsumerSpec,
    codec: &'a Codec,
    topics: BTreeMap<String, Vec<String>>,
    path: PathBuf,
    faults: Vec<SpecFault>,
}

impl Reader<'_> {
    fn fault(&mut self, line: usize, message: impl Into<String>) {
        self.faults.push(SpecFault::new(&self.path, u32::try_from(line).ok(), message));
    }

    fn event(&mut self, number: usize, text: &str) -> Option<Unplaced> {
        let line: Line<'_> = match serde_json::from_str(text) {
            Ok(line) => line,
            Err(error) => {
                let error = error.to_string();
                // The line it names is always the first of the text.
                let what = error.split(" at line ").next().unwrap_or_default();
                let column = error.rsplit(' ').next().unwrap_or_default();
                self.fault(number, format!("not a record: {what} (column {column})"));
                return None;
            }
        };
        let before = self.faults.len();
        let topic = self.topic(number, &line);
        let timestamp = self.timestamp(number, line.timestamp.as_ref());
        let (payload, derived) = self.payload(number, &line);
        if self.faults.len() > before {
            return None;
        }
        let body = line.body.map_or("null", RawValue::get).to_owned();
        let event_id = line.id_of_client();
        let says = |_: &String| fingerprint(line.record_type.as_deref().unwrap_or_default(), body.as_bytes());
        let event = Event {
            line: number,
            slot: 0,
            offset: 0,
            timestamp,
            fingerprint: event_id.as_ref().and_then(says).map(Fingerprint::from),
            record_type: line.record_type,
            key: line.key.or(derived),
            event_id,
            payload,
            body,
        };
        Some(Unplaced { event, topic, partition: line.partition })
    }

    /// The framed value and the key that the contract makes of it.
    fn payload(&mut self, number: usize, line: &Line<'_>) -> (Option<Vec<u8>>, Option<String>) {
        match (&line.record_type, line.body) {
            (None, None) => return (None, None),
            (None, Some(_)) => {
                self.fault(number, "a `body` needs a `type`, the name of its record type");
            }
            (Some(_), None) => {
                self.fault(number, "a `type` needs a `body`; for a tombstone, which has no value, leave both out");
            }
            (Some(name), Some(_)) if !self.codec.knows(name) => {
                let near = nearest(name, self.codec.names()).map(|near| format!("; did you mean {near}?"));
                self.fault(number, format!("there is no schemas/{name}{}", near.unwrap_or_default()));
            }
            (Some(name), Some(body)) => match self.codec.encode(name, body.get()) {
                Ok(encoded) => return (Some(encoded.payload), encoded.key),
                Err(faults) => faults.into_iter().for_each(|fault| self.fault(number, format!("{name}: {fault}"))),
            },
        }
        (None, None)
    }

    /// The one that is named, else the one of the consumer's to which records of the type go.
    fn topic(&mut self, number: usize, line: &Line<'_>) -> String {
        let own = &self.spec.topics;
        if let Some(topic) = &line.topic {
            if !own.contains(topic) {
                self.fault(number, format!("consumer {} does not read topic {topic}", self.spec.name));
            }
            return topic.clone();
        }
        let of_type = line.record_type.as_ref().and_then(|name| self.topics.get(name));
        let Some(topics) = of_type else { return own.first().cloned().unwrap_or_default() };
        let Some(topic) = topics.iter().find(|topic| own.contains(topic)) else {
            let (name, topics) = (line.record_type.clone().unwrap_or_default(), topics.join(", "));
            self.fault(number, format!("{name} goes to {topics}, which consumer {} does not read; name a `topic` of its own to try it all the same", self.spec.name));
            return String::new();
        };
        topic.clone()
    }

    fn timestamp(&mut self, number: usize, value: Option<&Value>) -> i64 {
        let line = i64::try_from(number).unwrap_or_default();
        let given = match value {
            None => return EPOCH_MILLIS + line * 1000,
            Some(Value::Number(millis)) => millis.as_i64(),
            Some(Value::String(text)) => text.parse::<DateTime<Utc>>().ok().map(|time| time.timestamp_millis()),
            Some(_) => None,
        };
        given.unwrap_or_else(|| {
            self.fault(
                number,
                "`timestamp` is not a time such as \"2013-01-01T10:15:00Z\", or milliseconds since 1970",
            );
            0
        })
    }
}

/// Where the records of a case go.
struct Partitions {
    /// Where a line says that a key is, and which.
    said: HashMap<(String, String), (i32, usize)>,
}

impl Partitions {
    fn new(events: &[Unplaced], reader: &mut Reader<'_>) -> Self {
        let mut said: HashMap<(String, String), (i32, usize)> = HashMap::new();
        for unplaced in events {
            let (Some(partition), line) = (unplaced.partition, unplaced.event.line) else { continue };
            if partition < 0 {
                reader.fault(line, format!("there is no partition {partition}; they count from 0"));
            }
            let Some(key) = unplaced.event.key.clone() else { continue };
            let (known, first) = *said.entry((unplaced.topic.clone(), key.clone())).or_insert((partition, line));
            if known != partition {
                reader.fault(line, format!("key {key} is on partition {partition}, but on {known} in line {first}: in Kafka a key has one partition, which is what keeps its records in order"));
            }
        }
        Self { said }
    }

    fn of(&self, unplaced: &Unplaced) -> i32 {
        let key = unplaced.event.key.as_ref().map(|key| (unplaced.topic.clone(), key.clone()));
        let said = key.and_then(|key| self.said.get(&key)).map(|(partition, _)| *partition);
        said.or(unplaced.partition).unwrap_or(0)
    }

    /// Gives every event its partition and offset.
    fn place(&self, events: Vec<Unplaced>) -> (Vec<Event>, Vec<TopicPartition>) {
        let mut topics: HashMap<String, Arc<str>> = HashMap::new();
        let mut partitions: Vec<TopicPartition> = Vec::new();
        let mut ends: Vec<i64> = Vec::new();
        let mut placed = Vec::with_capacity(events.len());
        for unplaced in events {
            let topic = topics.entry(unplaced.topic.clone()).or_insert_with(|| unplaced.topic.as_str().into());
            let at = TopicPartition::new(Arc::clone(topic), self.of(&unplaced));
            let slot = partitions.iter().position(|known| *known == at).unwrap_or_else(|| {
                partitions.push(at);
                ends.push(0);
                ends.len() - 1
            });
            placed.push(Event { slot, offset: ends[slot], ..unplaced.event });
            ends[slot] += 1;
        }
        (placed, partitions)
    }
}
