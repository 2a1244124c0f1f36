//! Answers: what the client is told of its records.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;

use super::{
    batch::{Faults, MAX_LISTED_FAULTS, RecordFault},
    negotiate::Preferences,
    problems::{INVALID_RECORDS, NOT_WRITTEN, PARTLY_WRITTEN, UNKNOWN_OUTCOME},
    publish::{RecordOutcome, Tally, retry_seconds},
};
use crate::{domain::Position, http::Problem, telemetry::metrics::ingest::REJECTED_REQUESTS};

const MILLPOND_POSITION: HeaderName = HeaderName::from_static("millpond-position");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The body of a 202 or 207.
#[derive(Debug, Default, Serialize)]
pub(super) struct Accepted<'a> {
    /// Of a single record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) event_id: Option<&'a str>,
    /// Records written, in bulk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<usize>,
    /// Covers every record written.
    pub(super) position: String,
    /// Records that were refused, in lenient handling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<usize>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) errors: &'a [RecordFault],
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) errors_omitted: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) records: Option<&'a [RecordOutcome]>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) records_omitted: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The answer to records that were written: 202, or 207 where others of the request were refused.
pub(super) fn accepted(status: StatusCode, body: &Accepted<'_>, position: &Position) -> Response {
    let mut text = Vec::with_capacity(256);
    serde_json::to_writer(&mut text, body).expect("invariant: the answer is plain data");
    let mut response = json(status, text);
    if !position.is_empty() {
        let headers = response.headers_mut();
        // Positions are topic names and digits, all of them visible ASCII.
        if let Ok(value) = HeaderValue::from_str(&body.position) {
            headers.insert(MILLPOND_POSITION, value);
        }
        if let Ok(value) = HeaderValue::try_from(location(&body.position)) {
            headers.insert(header::LOCATION, value);
        }
    }
    response
}

/// Where the outcome of what was written can be read.
fn location(position: &str) -> String {
    const PATH: &str = "/v1/positions/";
    let mut location = String::with_capacity(PATH.len() + position.len() + 16);
    location.push_str(PATH);
    for (at, part) in position.split('/').enumerate() {
        if at > 0 {
            location.push_str("%2F");
        }
        location.push_str(part);
    }
    location
}

pub(super) fn json(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Says which preferences were followed.
pub(super) fn with_preferences(mut response: Response, preferences: Preferences) -> Response {
    let applied = preferences.applied();
    if !applied.is_empty() {
        response.headers_mut().insert(PREFERENCE_APPLIED, HeaderValue::from_static(applied));
    }
    response
}

/// A problem as an answer, counted.
pub(super) fn rejected(problem: Problem) -> Response {
    REJECTED_REQUESTS.with_label_values(&[problem.code]).inc();
    // RFC 9110 has the server say here what it would have taken.
    let accept = match problem.status {
        415 if problem.code == super::problems::MEDIA_TYPE.code => {
            Some((header::ACCEPT, "application/json, application/x-ndjson"))
        }
        415 => Some((header::ACCEPT_ENCODING, "gzip, zstd, identity")),
        // What is left of the body is not read, so the connection is of no more use.
        408 | 413 => Some((header::CONNECTION, "close")),
        _ => None,
    };
    let mut response = problem.into_response();
    if let Some((name, value)) = accept {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The 422 of a request in which records are at fault and none was written.
pub(super) fn invalid(faults: &Faults, records: usize) -> Problem {
    let detail = match (records, faults.records) {
        (1, _) => "the record is invalid; nothing was written".to_owned(),
        (all, bad) => format!("{bad} of {all} records are invalid; nothing was written"),
    };
    let problem = INVALID_RECORDS
        .problem(detail)
        .with("outcome", "not_written")
        .with("invalid", faults.records)
        .with("errors", to_value(&faults.listed));
    match faults.total.saturating_sub(faults.listed.len()) {
        0 => problem,
        omitted => problem.with("errors_omitted", omitted).with("errors_listed", MAX_LISTED_FAULTS),
    }
}

/// The problem of records that were sent and of which not all were written.
pub(super) fn unfinished(tally: &Tally, single: bool) -> Problem {
    let reason = tally.reason.unwrap_or("kafka did not say why");
    let total = tally.written + tally.not_written + tally.unknown;
    let (kind, outcome) = match (tally.written, tally.unknown) {
        (_, 1..) => (&UNKNOWN_OUTCOME, "unknown"),
        (0, 0) => (&NOT_WRITTEN, "not_written"),
        (1.., 0) => (&PARTLY_WRITTEN, "partly_written"),
    };
    let detail = match outcome {
        _ if single => format!("the record's outcome is {}: {reason}", outcome.replace('_', " ")),
        _ => format!(
            "{} of {total} records are written, {} are not, of {} nobody knows: {reason}",
            tally.written, tally.not_written, tally.unknown
        ),
    };
    let mut problem = kind.problem(detail).retry_after(retry_seconds(2)).with("outcome", outcome);
    if !single {
        problem = problem
            .with("written", tally.written)
            .with("not_written", tally.not_written)
            .with("unknown", tally.unknown);
    }
    if !tally.position.is_empty() {
        problem = problem.with("position", tally.position.to_string());
    }
    if tally.omitted > 0 {
        problem = problem.with("records_omitted", tally.omitted);
    }
    problem.with("records", to_value(&tally.records)).with("advice", advice(outcome, tally, single))
}

/// Whether a retry can double something, which is the question that the client has.
fn advice(outcome: &str, tally: &Tally, single: bool) -> String {
    let text = match (outcome, tally.failed_have_client_ids, single) {
        ("not_written", ..) => "retry the request: nothing of it is in the log",
        ("partly_written", true, _) => {
            "retry the request with the same ids: what is in the log already has no second effect, within the \
             dedupe_window of its consumers"
        }
        ("partly_written", false, _) => {
            "retry only the records that are listed: the others are in the log and would be doubled"
        }
        (_, true, true) => {
            "retry with the same id: should the record be in the log already, it takes effect once all the same, within \
             the dedupe_window of its consumers"
        }
        (_, true, false) => {
            "retry with the same ids: what is in the log already has no second effect, within the dedupe_window of its \
             consumers"
        }
        (_, false, true) => {
            "a retry may double the record, for its id was made here; with the event_id listed here as Idempotency-Key \
             both can be found in the log. Next time send an Idempotency-Key of your own: then a retry is safe"
        }
        (_, false, false) => {
            "a retry may double the records of unknown outcome; next time send an Idempotency-Key, or ids in the \
             records: then a retry is safe"
        }
    };
    text.to_owned()
}

fn to_value(list: &impl Serialize) -> Value {
    serde_json::to_value(list).expect("invariant: the answer is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_is_called_safe_exactly_where_ids_are_the_clients() {
        let mut tally = Tally::new();
        for (outcome, single) in [("unknown", true), ("unknown", false), ("partly_written", false)] {
            tally.failed_have_client_ids = true;
            let safe = advice(outcome, &tally, single);
            assert!(
                safe.starts_with("retry with the same id") || safe.starts_with("retry the request with the same ids"),
                "{safe}"
            );
            assert!(safe.contains("dedupe_window") && !safe.contains("may double"), "{safe}");
            tally.failed_have_client_ids = false;
            let doubtful = advice(outcome, &tally, single);
            assert!(doubtful.contains("double") && !doubtful.contains("dedupe_window"), "{doubtful}");
        }
        assert_eq!(advice("not_written", &tally, true), "retry the request: nothing of it is in the log");
    }
}
