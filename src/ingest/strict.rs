//! Strict handling: the whole request is checked and encoded before its first record is sent.

use std::time::Instant;

use axum::{body::Body, http::StatusCode, response::Response};
use serde_json::json;

use super::{
    Intake,
    answer::{self, Accepted},
    batch::{Encoded, Encoder, Faults, Place},
    body::Reader,
    event_id::EventIds,
    negotiate::Format,
    problems::{EMPTY_BODY, TOO_LARGE_FOR_STRICT},
    publish::{self, Listing, Tally},
};
use crate::{
    http::Problem,
    schema::encode::{BodyShape, split_values},
    telemetry::metrics::ingest::{BODY_BYTES, ENCODE_SECONDS, INVALID_RECORDS},
};

/// Bytes of JSON after which other requests get their turn on the thread: about a quarter of a millisecond.
pub(super) const YIELD_BYTES: usize = 64 * 1024;
/// Records that a dry run shows.
const MAX_SHOWN_RECORDS: usize = 100;

/// Reads, checks and sends a request, all of it or nothing.
pub(super) async fn handle(intake: Intake, body: Body, schema_id: u32) -> Result<Response, Problem> {
    let options = &intake.state.options;
    let mut reader = intake.reader(body, options.max_body_bytes, options.max_json_bytes)?;
    let body = reader.whole().await?;
    let shape = match intake.format {
        Format::Json => BodyShape::of_json(&body),
        Format::Ndjson => BodyShape::NdJson,
    };
    finish(intake, reader, &body, shape, schema_id).await
}

/// As [`handle`], for a body that has been read.
pub(super) async fn finish(
    intake: Intake,
    mut reader: Reader,
    body: &[u8],
    shape: BodyShape,
    schema_id: u32,
) -> Result<Response, Problem> {
    BODY_BYTES.with_label_values(&["json"]).inc_by(body.len() as u64);
    let single = shape == BodyShape::Object;
    let turn = intake.turn(body.len()).await?;
    let encoded = encode(&intake, body, shape, schema_id).await?;
    if intake.validate_only {
        return Ok(dry_run(&intake, &encoded));
    }
    reader.held().grow(encoded.bytes.len())?;
    reader.held().keep(turn);
    let under_way = intake
        .state
        .send(&intake, encoded, Some(reader.into_held()))
        .map_err(|(reason, places)| publish::refused(&reason, &places))?;

    let event_id = single.then(|| under_way.first_event_id().to_owned());
    let options = &intake.state.options;
    let listing = Listing::new(intake.preferences.wants_representation(), options.max_listed_records);
    let mut tally = Tally::new();
    under_way.settle(options.ack_timeout, &mut tally, listing).await;
    if !tally.is_complete() {
        return Err(answer::unfinished(&tally, single));
    }
    let body = Accepted {
        event_id: event_id.as_deref(),
        count: (!single).then_some(tally.written),
        position: tally.position.to_string(),
        records: listing.all.then_some(&tally.records),
        records_omitted: tally.omitted,
        ..Accepted::default()
    };
    Ok(answer::accepted(StatusCode::ACCEPTED, &body, &tally.position))
}

async fn encode(intake: &Intake, body: &[u8], shape: BodyShape, schema_id: u32) -> Result<Encoded, Problem> {
    let _encoder = intake.state.turns.encoder(body.len()).await;
    let started = Instant::now();
    let single = shape == BodyShape::Object;
    let limit = intake.state.options.max_strict_bytes;
    let ids = EventIds::new(intake.idempotency_key.clone());
    let mut encoder = Encoder::new(&intake.contract, schema_id, intake.record_limits(), single, ids);
    encoder.reserve(body.len().min(limit) + 64);
    let (mut faults, mut count, mut next_yield) = (Faults::default(), 0, YIELD_BYTES);
    for value in split_values(body, shape) {
        count += 1;
        match value {
            Ok(value) => {
                if let Err(found) =
                    encoder.add(Place { index: value.index, line: value.line }, &body[value.range.clone()])
                {
                    faults.add(value.index, value.line, found);
                }
                if value.range.end >= next_yield {
                    next_yield = value.range.end + YIELD_BYTES;
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => faults.add(error.index, None, vec![error.fault]),
        }
        if encoder.bytes.len() > limit {
            return Err(TOO_LARGE_FOR_STRICT
                .problem(format!(
                    "the records take more than {limit} bytes as Avro: send Prefer: handling=lenient, or several requests"
                ))
                .with("outcome", "not_written"));
        }
    }
    ENCODE_SECONDS.observe(started.elapsed().as_secs_f64());
    if count == 0 {
        return Err(EMPTY_BODY.problem("the body holds no record").with("outcome", "not_written"));
    }
    intake.take_rate(count).map_err(|(problem, _)| problem)?;
    if !faults.is_empty() {
        INVALID_RECORDS.inc_by(faults.records as u64);
        return Err(answer::invalid(&faults, count));
    }
    Ok(encoder.take())
}

/// What would be written, for `?validate=only`.
fn dry_run(intake: &Intake, encoded: &Encoded) -> Response {
    let show = |(record, place): (&_, &Place)| json!({ "index": place.index, "key": encoded.key(record), "event_id": encoded.event_id(record) });
    let records: Vec<_> = encoded.records.iter().zip(&encoded.places).take(MAX_SHOWN_RECORDS).map(show).collect();
    let body = json!({
        "valid": encoded.records.len(),
        "topic": intake.contract.topic.as_ref(),
        "bytes": encoded.bytes.len(),
        "records": records,
    });
    answer::json(StatusCode::OK, body.to_string())
}
