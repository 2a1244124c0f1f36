//! Runs one hot path many times, for callgrind to count the instructions of: `.ci/instructions` runs it for each case.
//!
//! Only what happens in [`measured`] is counted. The figure is independent of how busy the machine is, so that 2 % more of
//! it is a fact about the code.

#[path = "../../src/domain/nearest.rs"]
#[allow(dead_code, reason = "only faults ask for it")]
mod nearest;
#[path = "../../src/domain/quote.rs"]
#[allow(dead_code, reason = "only the bound of a name is asked for")]
mod quote;
/// What `schema` has of `domain`.
mod domain {
    pub use super::{nearest::nearest, quote::MAX_IDENTIFIER_BYTES};
}
#[path = "../../src/schema/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only the hot paths of it are used here")]
mod schema;

use std::hint::black_box;

use schema::{
    Schema, Scratch, Transcoder,
    encode::{BodyShape, Captured, Encoder, fingerprint, split_values},
};

/// How often a case is run: the cost of a record is the count divided by this.
const TIMES: usize = 1000;

const SCHEDULE: &str = include_str!("../../schemas/ScheduleFlight/v1.avsc");
const DEPARTURE: &str = include_str!("../../schemas/RecordDeparture/v1.avsc");
const SCHEDULE_JSON: &str = r#"{"flight_id":"UA1545-EWR-20130101-0515","carrier":"UA","flight_number":1545,"origin":"EWR","destination":"IAH","scheduled_at":"2013-01-01T10:15:00Z","distance_miles":1400}"#;
const DEPARTURE_JSON: &str = r#"{"flight_id":"UA1545-EWR-20130101-0515","carrier":"UA","origin":"EWR","destination":"IAH","scheduled_at":"2013-01-01T10:15:00Z","departed_at":"2013-01-01T10:17:00Z","delay_minutes":2,"tail_number":"N14228"}"#;
/// As a program writes it that sorts its fields by name.
const DEPARTURE_SORTED_JSON: &str = r#"{"carrier":"UA","delay_minutes":2,"departed_at":"2013-01-01T10:17:00Z","destination":"IAH","flight_id":"UA1545-EWR-20130101-0515","origin":"EWR","scheduled_at":"2013-01-01T10:15:00Z","tail_number":"N14228"}"#;

fn main() {
    let Some(case) = std::env::args().nth(1) else {
        println!(
            "encode_schedule encode_departure encode_departure_sorted fingerprint_departure split_ndjson transcode_schedule \
             transcode_departure"
        );
        return;
    };
    match case.as_str() {
        "encode_schedule" => encode(SCHEDULE, SCHEDULE_JSON),
        "encode_departure" => encode(DEPARTURE, DEPARTURE_JSON),
        "encode_departure_sorted" => encode(DEPARTURE, DEPARTURE_SORTED_JSON),
        "fingerprint_departure" => measured(&mut || {
            black_box(fingerprint("RecordDeparture", black_box(DEPARTURE_JSON.as_bytes())));
        }),
        "split_ndjson" => split(),
        "transcode_schedule" => transcode(SCHEDULE, SCHEDULE_JSON),
        "transcode_departure" => transcode(DEPARTURE, DEPARTURE_JSON),
        other => panic!("there is no case {other}"),
    }
    println!("{TIMES}");
}

/// Callgrind counts from entering this function to leaving it.
#[inline(never)]
fn measured(run: &mut dyn FnMut()) {
    for _ in 0..TIMES {
        run();
    }
}

fn parsed(text: &str) -> Schema {
    schema::parse(text).expect("invariant: the schemas of the repository parse").schema
}

fn encoder(text: &str) -> Encoder {
    Encoder::compile(&parsed(text), &["flight_id".to_owned()])
        .expect("invariant: the schemas of the repository compile")
}

/// JSON to Avro, with the key captured, as for every event that is posted.
fn encode(schema: &str, json: &str) {
    let encoder = encoder(schema);
    let (mut out, mut captured) = (Vec::with_capacity(4096), Captured::default());
    measured(&mut || {
        out.clear();
        encoder.encode(black_box(json.as_bytes()), &mut out, &mut captured).expect("invariant: the record is valid");
        black_box(&out);
    });
}

/// The lines of a bulk request: the count is that of one line.
fn split() {
    let lines = [SCHEDULE_JSON, DEPARTURE_JSON].repeat(TIMES / 2).join("\n");
    let mut values = split_values(lines.as_bytes(), BodyShape::NdJson);
    measured(&mut || {
        black_box(values.next().expect("invariant: there is a line for each turn").expect("invariant: it is sound"));
    });
}

/// Avro to the fields of a binary COPY, as for every record that is applied.
fn transcode(schema: &str, json: &str) {
    let mut avro = Vec::new();
    encoder(schema)
        .encode(json.as_bytes(), &mut avro, &mut Captured::default())
        .expect("invariant: the record is valid");
    let transcoder = Transcoder::compile(&parsed(schema), &parsed(schema)).expect("invariant: a schema reads itself");
    let (mut out, mut scratch) = (Vec::with_capacity(4096), Scratch::default());
    measured(&mut || {
        out.clear();
        transcoder.append(black_box(&avro), &mut scratch, &mut out).expect("invariant: the record is sound");
        black_box(&out);
    });
}
