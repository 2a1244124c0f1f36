//! Producer folders: `producers/<name>/producer.toml` says which records a class of HTTP clients may send.
//!
//! Owns the contract as it is written: names, topics, key fields, limits, examples. Whether the fields exist in the schema is
//! found where the schema is compiled, in `ingest`. Reading collects every fault of every folder before it gives up.

mod examples;
mod values;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

pub use examples::{Example, Expectation, Outcome, Report, run_examples, valid_examples};
pub use values::{Rate, Retention};

use super::{Document, SpecFault, TableReader};
use crate::schema::is_name;

/// Name of the file in a producer's folder.
pub const FILE: &str = "producer.toml";
/// Longest JSON of one record unless the contract says otherwise; leaves room for headers under Kafka's own 1 MiB.
pub const DEFAULT_MAX_RECORD_BYTES: usize = 960 * 1024;

/// Most partitions of one topic; a typing error beyond it would take a cluster down.
const MAX_PARTITIONS: u64 = 10_000;

/// Whether a record asks for something or states that it has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// Imperative; may be refused later.
    Command,
    /// A fact, past tense.
    Event,
}

impl RecordKind {
    pub const ALL: [Self; 2] = [Self::Command, Self::Event];

    /// `command` or `event`.
    pub fn singular(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Event => "event",
        }
    }

    /// `commands` or `events`: the table of the contract and the word in the path.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Command => "commands",
            Self::Event => "events",
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.singular())
    }
}

/// One producer folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerSpec {
    /// The folder's name, and the word by which keys are granted.
    pub name: String,
    pub dir: PathBuf,
    /// What may be sent, by record type.
    pub records: BTreeMap<String, RecordSpec>,
    /// The topics that this folder declares; every topic of `records` is declared by some folder.
    pub topics: BTreeMap<String, TopicSpec>,
    /// Most records per client; none means no limit.
    pub rate: Option<Rate>,
}

/// What may be sent of one record type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSpec {
    /// Simple name of the Avro record, and of its folder in `schemas/`.
    pub name: String,
    pub kind: RecordKind,
    pub topic: String,
    /// Fields whose values, joined by `/`, are the record's key; at least one.
    pub key: Vec<String>,
    /// Field that holds the client's own id of the event.
    pub event_id: Option<String>,
    /// Longest JSON of one record, in bytes.
    pub max_bytes: usize,
    /// Line in the contract, for faults found later.
    pub line: Option<u32>,
}

/// How a topic is created where it does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    pub partitions: u32,
    pub retention: Retention,
    pub line: Option<u32>,
}

impl ProducerSpec {
    /// Path of the contract.
    pub fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Reads one folder.
    pub fn load(dir: &Path) -> Result<Self, Vec<SpecFault>> {
        let path = dir.join(FILE);
        let text = fs::read_to_string(&path)
            .map_err(|error| vec![SpecFault { path: path.clone(), line: None, message: missing(dir, &error) }])?;
        Self::parse(dir, &text)
    }

    /// Reads the text of a contract; `dir` gives the name.
    pub fn parse(dir: &Path, text: &str) -> Result<Self, Vec<SpecFault>> {
        let document = Document::new(dir.join(FILE), text);
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut faults = Vec::new();
        if let Some(why) = name_fault(&name) {
            faults.push(SpecFault::new(document.path(), None, format!("folder name `{name}` {why}")));
        }
        let mut spec =
            Self { name, dir: dir.to_owned(), records: BTreeMap::new(), topics: BTreeMap::new(), rate: None };
        let read = document.read(|root| {
            spec.read(root);
            Some(())
        });
        if let Err(found) = read {
            faults.extend(found);
        } else if spec.records.is_empty() {
            let message = "no [commands.<type>] and no [events.<type>]: nothing may be sent";
            faults.push(SpecFault::new(document.path(), None, message));
        }
        if faults.is_empty() { Ok(spec) } else { Err(faults) }
    }

    fn read(&mut self, root: &TableReader<'_>) {
        root.allow(&["commands", "events", "topics", "limits"]);
        for kind in RecordKind::ALL {
            for (name, parent, table) in tables(root, kind.plural()) {
                self.add_record(&parent, kind, name, &table);
            }
        }
        for (name, parent, table) in tables(root, "topics") {
            self.topics.insert(name.to_owned(), topic(&parent, name, &table));
        }
        if let Some(limits) = root.table("limits") {
            limits.allow(&["rate"]);
            self.rate = parsed(&limits, "rate", values::rate);
        }
    }

    fn add_record(&mut self, parent: &TableReader<'_>, kind: RecordKind, name: &str, table: &TableReader<'_>) {
        table.allow(&["topic", "key", "event_id", "max_bytes"]);
        if let Some(why) = record_name_fault(name) {
            parent.fault(name, format!("`{name}` {why}"));
        }
        if !table.has("topic") {
            parent.fault(
                name,
                format!("{name} has no topic: name the Kafka topic it goes to, such as \"flights.commands.v1\""),
            );
        }
        let topic = table.string("topic").unwrap_or_default();
        if table.word("topic").is_some_and(|topic| !is_topic(topic)) {
            table.fault("topic", topic_fault(&topic));
        }
        let record = RecordSpec {
            name: name.to_owned(),
            kind,
            topic,
            key: key(parent, name, table),
            event_id: table.string("event_id"),
            max_bytes: table.bytes("max_bytes").unwrap_or(DEFAULT_MAX_RECORD_BYTES),
            line: Some(table.line()),
        };
        if let Some(other) = self.records.insert(name.to_owned(), record) {
            parent.fault(
                name,
                format!("{name} stands under {} and {}: it can be one of them", other.kind.plural(), kind.plural()),
            );
        }
    }
}

/// The tables below `key`, each with its name and, for faults at the name, its parent.
fn tables<'a>(root: &TableReader<'a>, key: &str) -> Vec<(&'a str, TableReader<'a>, TableReader<'a>)> {
    let names = root.table(key).map(|parent| parent.keys()).unwrap_or_default();
    names
        .into_iter()
        .filter_map(|name| {
            let parent = root.table(key)?;
            let table = parent.table(name)?;
            Some((name, parent, table))
        })
        .collect()
}

/// One field or several; at least one.
fn key(parent: &TableReader<'_>, name: &str, table: &TableReader<'_>) -> Vec<String> {
    if !table.has("key") {
        parent.fault(name, format!("{name} has no key: name the field, or the fields, that order is kept by"));
        return Vec::new();
    }
    let fields = match table.word("key") {
        Some(field) => vec![field.to_owned()],
        None => table.strings("key").unwrap_or_default(),
    };
    if table.is_empty_list("key") || fields.iter().any(String::is_empty) {
        table.fault("key", "`key` is empty: name at least one field");
    }
    fields
}

fn topic(parent: &TableReader<'_>, name: &str, table: &TableReader<'_>) -> TopicSpec {
    table.allow(&["partitions", "retention"]);
    if !is_topic(name) {
        parent.fault(name, topic_fault(name));
    }
    if !table.has("partitions") {
        parent.fault(name, format!("topic `{name}` has no partitions: say how many, such as partitions = 6"));
    }
    let partitions = table.whole("partitions", 1).unwrap_or(1);
    if partitions > MAX_PARTITIONS {
        table.fault("partitions", format!("`partitions` is {partitions}, above the limit of {MAX_PARTITIONS}"));
    }
    TopicSpec {
        partitions: partitions.min(MAX_PARTITIONS) as u32,
        retention: parsed(table, "retention", values::retention).unwrap_or_default(),
        line: Some(table.line()),
    }
}

/// What `parse` makes of the text under `key`; its error follows the key's name.
fn parsed<T>(table: &TableReader<'_>, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
    let text = table.string(key)?;
    parse(&text).map_err(|fault| table.fault(key, format!("`{key}` {fault}"))).ok()
}

/// Reads every folder of `producers/` and checks them against one another.
///
/// Hidden folders are passed over; a missing `producers/` is an empty one. The specs come back in the order of their names.
pub fn load_all(producers: &Path) -> Result<Vec<ProducerSpec>, Vec<SpecFault>> {
    let (mut specs, mut faults) = (Vec::new(), Vec::new());
    for dir in folders(producers)
        .map_err(|error| vec![SpecFault { path: producers.to_owned(), line: None, message: error.to_string() }])?
    {
        match ProducerSpec::load(&dir) {
            Ok(spec) => specs.push(spec),
            Err(found) => faults.extend(found),
        }
    }
    // Where a folder is faulty its topics are unknown, and what the others lack could be there.
    if faults.is_empty() {
        faults = cross_check(&specs);
    }
    if faults.is_empty() { Ok(specs) } else { Err(faults) }
}

/// What the folders say of one another: a type and a topic mean the same thing wherever they stand.
fn cross_check(specs: &[ProducerSpec]) -> Vec<SpecFault> {
    let mut faults = Vec::new();
    let mut types: BTreeMap<&str, (&ProducerSpec, &RecordSpec)> = BTreeMap::new();
    let mut topics: BTreeMap<&str, (&ProducerSpec, &TopicSpec)> = BTreeMap::new();
    for spec in specs {
        for (name, topic) in &spec.topics {
            let (other, first) = *topics.entry(name).or_insert((spec, topic));
            if (first.partitions, first.retention) != (topic.partitions, topic.retention) {
                let message =
                    format!("topic {name:?} is declared otherwise in producer {}: declare it once", other.name);
                faults.push(SpecFault { path: spec.file(), line: topic.line, message });
            }
        }
        for (name, record) in &spec.records {
            let (other, first) = *types.entry(name).or_insert((spec, record));
            if let Some(what) = differing(first, record) {
                let message = format!("{name} has another {what} in producer {}: one type has one {what}", other.name);
                faults.push(SpecFault { path: spec.file(), line: record.line, message });
            }
        }
    }
    for spec in specs {
        for record in spec.records.values().filter(|record| !topics.contains_key(record.topic.as_str())) {
            let (name, topic) = (&record.name, &record.topic);
            let message = format!(
                "{name} goes to topic {topic:?}, which no producer declares: add [topics.{topic:?}] with partitions = 6"
            );
            faults.push(SpecFault { path: spec.file(), line: record.line, message });
        }
    }
    faults
}

/// What two folders may not say differently of one type; the size and rate limits are each folder's own.
fn differing(a: &RecordSpec, b: &RecordSpec) -> Option<&'static str> {
    let pairs = [
        (a.kind == b.kind, "kind"),
        (a.topic == b.topic, "topic"),
        (a.key == b.key, "key"),
        (a.event_id == b.event_id, "event_id"),
    ];
    pairs.into_iter().find_map(|(same, what)| (!same).then_some(what))
}

fn folders(producers: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(producers) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.path().is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
            dirs.push(entry.path());
        }
    }
    dirs.sort();
    Ok(dirs)
}

fn missing(dir: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("folder {} has no {FILE}: write one, or move the folder away", dir.display())
        }
        _ => format!("cannot be read: {error}"),
    }
}

/// Why a name of a producer is refused.
pub fn name_fault(name: &str) -> Option<&'static str> {
    let legal = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'));
    (!legal).then_some("must be made of a-z, 0-9, - and _, beginning with a letter")
}

/// Why a name of a record type is refused.
pub fn record_name_fault(name: &str) -> Option<&'static str> {
    (!is_name(name)).then_some("is not the simple name of an Avro record, such as ScheduleFlight")
}

fn is_topic(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !matches!(name, "" | "." | "..") && name.len() <= 249 && name.chars().all(legal)
}

fn topic_fault(name: &str) -> String {
    format!("`{name}` is not a topic name: up to 249 of a-z, A-Z, 0-9, dot, - and _")
}

#[cfg(test)]
mod tests;
