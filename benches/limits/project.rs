//! The project that is measured: one record of 8 fields, about 300 bytes as JSON and 200 as Avro, and consumers of it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::bail;

use crate::{Bench, millpond::Running};

/// The command that clients post one by one and in bulk, and its topic.
pub const COMMAND: &str = "ScheduleFlight";
const COMMANDS_TOPIC: &str = "bench.commands.v1";
/// The same record as it waits for the sink.
pub struct Backlog {
    pub record: &'static str,
    pub topic: &'static str,
    /// Whether its clients give ids whatever the run says of others.
    pub ids: bool,
}

pub const BACKLOG: Backlog = Backlog { record: "RescheduleFlight", topic: "bench.backlog.v1", ids: false };
pub const BACKLOG_WITH_IDS: Backlog =
    Backlog { record: "RescheduleFlightOnce", topic: "bench.backlog_with_ids.v1", ids: true };
/// Where librdkafka alone writes.
pub const LIMIT_TOPIC: &str = "bench.limit.v1";
const PARTITIONS: u32 = 6;

/// The columns of the sink's table, with their types.
pub const COLUMNS: [(&str, &str); 8] = [
    ("flight_id", "text"),
    ("carrier", "text"),
    ("flight_number", "integer"),
    ("origin", "text"),
    ("destination", "text"),
    ("scheduled_at", "timestamptz"),
    ("distance_miles", "integer"),
    ("remarks", "text"),
];

/// A folder with `schemas/`, `producers/` and perhaps `consumers/`.
pub struct Project {
    pub folder: PathBuf,
}

impl Project {
    /// Writes the project without consumers.
    pub fn write(folder: &Path) -> anyhow::Result<Self> {
        fs::remove_dir_all(folder).ok();
        let mut contract = String::new();
        let backlogs = [BACKLOG, BACKLOG_WITH_IDS].map(|backlog| (backlog.record, backlog.topic));
        for (name, topic) in [(COMMAND, COMMANDS_TOPIC)].into_iter().chain(backlogs) {
            let schemas = folder.join("schemas").join(name);
            fs::create_dir_all(&schemas)?;
            fs::write(schemas.join("v1.avsc"), schema(name))?;
            write!(contract, "[commands.{name}]\ntopic = \"{topic}\"\nkey = \"flight_id\"\n\n")?;
        }
        for topic in [COMMANDS_TOPIC, BACKLOG.topic, BACKLOG_WITH_IDS.topic, LIMIT_TOPIC] {
            write!(contract, "[topics.\"{topic}\"]\npartitions = {PARTITIONS}\n\n")?;
        }
        fs::create_dir_all(folder.join("producers/airline"))?;
        fs::write(folder.join("producers/airline/producer.toml"), contract)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The same project with one consumer that keeps the latest record of each key, without SQL.
    pub fn with_consumer(&self, name: &str, of: &Backlog, on_error: &str) -> anyhow::Result<Self> {
        let project = Self::write(&self.folder.with_file_name(format!("project-{name}")))?;
        let folder = project.folder.join("consumers").join(name);
        fs::create_dir_all(&folder)?;
        let Backlog { record, topic, .. } = of;
        let manifest = format!("topics = [\"{topic}\"]\ntypes = [\"{record}\"]\non_error = \"{on_error}\"\n");
        fs::write(folder.join("consumer.toml"), manifest)?;
        Ok(project)
    }

    /// Creates the topics and registers the schemas.
    pub fn push_schemas(&self, bench: &Bench) -> anyhow::Result<()> {
        let output = Running::command(bench, self).args(["schema", "push"]).output()?;
        if !output.status.success() {
            bail!("`millpond schema push` failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// The Avro schema of a record.
pub fn schema(name: &str) -> String {
    let fields = COLUMNS.map(|(name, column)| {
        let avro = match column {
            _ if name == "origin" => r#"{"type":"enum","name":"Origin","symbols":["EWR","JFK","LGA"]}"#,
            "integer" => r#""int""#,
            "timestamptz" => r#"{"type":"long","logicalType":"timestamp-millis"}"#,
            _ => r#""string""#,
        };
        format!(r#"{{"name":"{name}","type":{avro}}}"#)
    });
    format!(r#"{{"type":"record","name":"{name}","namespace":"bench","fields":[{}]}}"#, fields.join(","))
}

/// One flight, different for each number.
#[derive(Debug, Clone)]
pub struct Flight {
    pub flight_id: String,
    pub carrier: &'static str,
    pub flight_number: i32,
    pub origin: &'static str,
    pub destination: &'static str,
    /// Minutes after midnight of 2013-01-01, UTC.
    pub minute: u32,
    pub distance_miles: i32,
    pub remarks: String,
}

impl Flight {
    /// The flight with the number `key`; everything but its id depends on `number`.
    pub fn new(key: u64, number: u64) -> Self {
        let mut random = Random(number);
        let pick = |words: &[&'static str], random: &mut Random| words[random.below(words.len() as u64) as usize];
        let mut remarks = String::new();
        while remarks.len() < 84 {
            remarks.push_str(pick(&WORDS, &mut random));
            remarks.push(' ');
        }
        Self {
            flight_id: flight_id(key),
            carrier: pick(&["UA", "AA", "B6", "DL", "EV", "MQ", "US", "WN"], &mut random),
            flight_number: random.below(9_000) as i32,
            origin: pick(&["EWR", "JFK", "LGA"], &mut random),
            destination: pick(&["IAH", "MIA", "BQN", "ATL", "ORD", "FLL", "LAX", "SFO"], &mut random),
            minute: random.below(1_440) as u32,
            distance_miles: random.below(3_000) as i32,
            remarks: remarks.trim_end().to_owned(),
        }
    }

    pub fn json(&self) -> String {
        format!(
            r#"{{"flight_id":"{}","carrier":"{}","flight_number":{},"origin":"{}","destination":"{}","scheduled_at":"2013-01-01T{:02}:{:02}:00Z","distance_miles":{},"remarks":"{}"}}"#,
            self.flight_id,
            self.carrier,
            self.flight_number,
            self.origin,
            self.destination,
            self.minute / 60,
            self.minute % 60,
            self.distance_miles,
            self.remarks
        )
    }
}

/// The key of a flight: `UA1545-EWR-20130101-00000042`.
pub fn flight_id(key: u64) -> String {
    format!("UA1545-EWR-20130101-{key:08}")
}

const WORDS: [&str; 16] = [
    "gate",
    "changed",
    "crew",
    "of",
    "incoming",
    "aircraft",
    "weather",
    "minimum",
    "connection",
    "waits",
    "for",
    "baggage",
    "de-icing",
    "slot",
    "assigned",
    "by",
];

/// A small generator of numbers that are random enough for data (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
