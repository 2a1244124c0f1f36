//! The commands of real flights, in the order in which they were given.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;

/// One command as it is posted.
#[derive(Debug, Clone)]
pub struct Command {
    pub record_type: String,
    pub flight_id: String,
    /// The JSON object.
    pub body: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    record_type: String,
    body: Box<RawValue>,
}

#[derive(Deserialize)]
struct Flight {
    flight_id: String,
}

impl Command {
    pub fn path(&self) -> String {
        format!("/v1/commands/{}", self.record_type)
    }

    /// An id that no other command has.
    pub fn id(&self) -> String {
        format!("{}/{}", self.flight_id, self.record_type)
    }

    /// The day of January for which the flight was scheduled: `AA1-JFK-20130104-0900`.
    fn day(&self) -> u32 {
        let date = self.flight_id.split('-').nth(2).expect("a flight's id has its day");
        date[6..].parse().expect("a day")
    }
}

/// All commands of the committed slice: six days.
pub fn all_days() -> Vec<Command> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/flights/commands.ndjson.gz");
    read(GzDecoder::new(std::fs::File::open(path).unwrap()))
}

/// The commands of the flights of these days of the slice.
pub fn days(days: &[u32]) -> Vec<Command> {
    all_days().into_iter().filter(|command| days.contains(&command.day())).collect()
}

/// Commands as `tools/nycflights.py` writes them.
pub fn read(lines: impl Read) -> Vec<Command> {
    let lines = BufReader::new(lines).lines().map(Result::unwrap);
    lines
        .map(|line| {
            let line: Line = serde_json::from_str(&line).unwrap();
            let flight: Flight = serde_json::from_str(line.body.get()).unwrap();
            Command { record_type: line.record_type, flight_id: flight.flight_id, body: line.body.get().to_owned() }
        })
        .collect()
}
