//! From encoded records to what became of them.
//!
//! Nothing is ever sent twice: an outcome that is not known stays unknown, and the answer says so.

use std::borrow::Cow;
use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    admission::Held,
    batch::{Encoded, IdList, Place},
    contract::Contract,
    problems::{INVALID_RECORDS, NOT_WRITTEN, TOO_LARGE_FOR_STRICT},
};
use crate::{
    domain::{HEADER_PRODUCER, HEADER_TRACEPARENT, HEADER_TRACESTATE, Position},
    http::{Problem, TraceContext, problem::INTERNAL},
    kafka::{Delivery, EncodedBatch, NotSent, PendingReceipt, Publisher, Receipt},
    planted::{self, Bug},
    telemetry::metrics::ingest::{BODY_BYTES, DEPARTED_CLIENTS, UNFINISHED_RECORDS},
};

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Written,
    NotWritten,
    Unknown,
}

/// One record for an answer.
#[derive(Debug, Serialize)]
pub(super) struct RecordOutcome {
    pub(super) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<usize>,
    pub(super) event_id: String,
    pub(super) outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
}

/// What became of the records of one request, or of its chunks so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) written: usize,
    pub(super) not_written: usize,
    pub(super) unknown: usize,
    pub(super) position: Position,
    /// Text of the first failure.
    pub(super) reason: Option<&'static str>,
    /// Whether every record that is not written carries an id of the client's.
    pub(super) failed_have_client_ids: bool,
    /// Every record, or only those not written, up to a bound.
    pub(super) records: Vec<RecordOutcome>,
    /// Records that would have been listed beyond the bound.
    pub(super) omitted: usize,
}

/// What a tally lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listing {
    /// List written records too.
    pub(super) all: bool,
    /// Most records listed.
    pub(super) limit: usize,
}

impl Listing {
    /// Lists every record, or those that were not written.
    pub(super) fn new(all: bool, limit: usize) -> Self {
        Self { all, limit }
    }
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { failed_have_client_ids: true, ..Self::default() }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.not_written == 0 && self.unknown == 0
    }

    fn add(&mut self, receipt: &Receipt, sent: &Sent, listing: Listing) {
        self.position.merge(&receipt.position());
        for (at, delivery) in receipt.deliveries.iter().enumerate() {
            let (outcome, partition, offset, reason) = match *delivery {
                Delivery::Written { partition, offset } => (Outcome::Written, Some(partition), Some(offset), None),
                Delivery::NotWritten(reason) => (Outcome::NotWritten, None, None, Some(reason.as_str())),
                Delivery::Unknown(_) if planted::is(Bug::UnknownAsWritten) => (Outcome::Written, None, None, None),
                Delivery::Unknown(reason) => (Outcome::Unknown, None, None, Some(reason.as_str())),
            };
            self.count(outcome, reason, sent.has_client_ids);
            if outcome != Outcome::Written || listing.all {
                self.list(sent, at, listing, |index, line, event_id| RecordOutcome {
                    index,
                    line,
                    event_id,
                    outcome,
                    partition,
                    offset,
                    reason,
                });
            }
        }
    }

    /// Counts every record of `sent` as unknown: no answer came in time.
    fn add_unknown(&mut self, sent: &Sent, listing: Listing) {
        const REASON: &str = "no acknowledgement came in time";
        let outcome = if planted::is(Bug::AnsweredEarly) { Outcome::Written } else { Outcome::Unknown };
        for at in 0..sent.places.len() {
            self.count(outcome, Some(REASON), sent.has_client_ids);
            self.list(sent, at, listing, |index, line, event_id| RecordOutcome {
                index,
                line,
                event_id,
                outcome,
                partition: None,
                offset: None,
                reason: Some(REASON),
            });
        }
    }

    fn count(&mut self, outcome: Outcome, reason: Option<&'static str>, has_client_ids: bool) {
        match outcome {
            Outcome::Written => self.written += 1,
            Outcome::NotWritten => self.not_written += 1,
            Outcome::Unknown => self.unknown += 1,
        }
        if outcome != Outcome::Written {
            self.failed_have_client_ids &= has_client_ids;
            self.reason = self.reason.or(reason);
        }
    }

    fn list(
        &mut self,
        sent: &Sent,
        at: usize,
        listing: Listing,
        record: impl FnOnce(usize, Option<usize>, String) -> RecordOutcome,
    ) {
        let (Some(place), Some(event_id)) = (sent.places.get(at), sent.event_ids.get(at)) else { return };
        if self.records.len() == listing.limit {
            self.omitted += 1;
            return;
        }
        self.records.push(record(place.index, place.line, event_id.to_owned()));
    }
}

/// What an answer needs to know of records that were handed to Kafka.
#[derive(Debug)]
struct Sent {
    places: Vec<Place>,
    event_ids: IdList,
    has_client_ids: bool,
}

/// Records handed to Kafka and not acknowledged yet.
///
/// A client that leaves drops this: the records are then seen to their end all the same, for the books.
pub(super) struct UnderWay {
    contract: Arc<Contract>,
    pending: Option<PendingReceipt>,
    sent: Sent,
    held: Option<Held>,
}

/// Hands a batch to Kafka. `held` is kept until the batch is settled; an error
/// means that nothing was sent, and says where the records stand in the body.
pub(super) fn send(
    publisher: &Publisher,
    contract: &Arc<Contract>,
    headers: Vec<(&'static str, Vec<u8>)>,
    encoded: Encoded,
    held: Option<Held>,
) -> Result<UnderWay, (NotSent, Vec<Place>)> {
    let headers = headers.into_iter().map(|(name, value)| (Cow::Borrowed(name), Some(value))).collect();
    BODY_BYTES.with_label_values(&["avro"]).inc_by(encoded.bytes.len() as u64);
    let sent = Sent { event_ids: encoded.event_ids(), has_client_ids: encoded.has_client_ids, places: encoded.places };
    let batch =
        EncodedBatch { topic: Arc::clone(&contract.topic), bytes: encoded.bytes, records: encoded.records, headers };
    match publisher.publish(batch) {
        Ok(pending) => Ok(UnderWay { contract: Arc::clone(contract), pending: Some(pending), sent, held }),
        Err(reason) => Err((reason, sent.places)),
    }
}

impl UnderWay {
    /// Event id of the first record.
    pub(super) fn first_event_id(&self) -> &str {
        self.sent.event_ids.get(0).unwrap_or_default()
    }

    /// Whether nothing has to be waited for.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.as_ref().is_none_or(PendingReceipt::is_ready)
    }

    /// Waits for every acknowledgement, at most for `limit`, and adds what became of the records to `tally`.
    pub(super) async fn settle(mut self, limit: Duration, tally: &mut Tally, listing: Listing) {
        let Some(pending) = self.pending.as_mut() else { return };
        let limit = if planted::is(Bug::AnsweredEarly) { Duration::from_millis(300) } else { limit };
        match tokio::time::timeout(limit, pending).await {
            Ok(receipt) => {
                self.pending = None;
                count(&self.contract, &receipt);
                tally.add(&receipt, &self.sent, listing);
            }
            Err(_) => {
                tally.add_unknown(&self.sent, listing);
                self.finish_alone();
            }
        }
    }

    /// Sees the records to their end without anybody waiting; gives whether there were any to see to.
    fn finish_alone(&mut self) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        let (contract, held) = (Arc::clone(&self.contract), self.held.take());
        // Outside of a runtime the process is ending, and so are the books.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                count(&contract, &pending.await);
                drop(held);
            });
        }
        true
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.finish_alone() {
            DEPARTED_CLIENTS.inc();
        }
    }
}

fn count(contract: &Contract, receipt: &Receipt) {
    let (mut written, mut not_written, mut unknown) = (0, 0, 0);
    for delivery in &receipt.deliveries {
        match delivery {
            Delivery::Written { .. } => written += 1,
            Delivery::NotWritten(_) => not_written += 1,
            Delivery::Unknown(_) => unknown += 1,
        }
    }
    contract.accepted.inc_by(written);
    for (outcome, records) in [("not_written", not_written), ("unknown", unknown)] {
        if records > 0 {
            UNFINISHED_RECORDS.with_label_values(&[outcome]).inc_by(records);
        }
    }
}

/// The headers that every record of a request carries. A trace that began here would be 66 bytes in every record that
/// lead nowhere: only the caller's is handed on.
pub(super) fn record_headers(producer: &str, trace: Option<&TraceContext>) -> Vec<(&'static str, Vec<u8>)> {
    let mut headers = vec![(HEADER_PRODUCER, producer.as_bytes().to_vec())];
    if let Some(trace) = trace.filter(|trace| trace.is_from_caller()) {
        headers.push((HEADER_TRACEPARENT, trace.traceparent().into_bytes()));
        if let Some(state) = trace.tracestate() {
            headers.push((HEADER_TRACESTATE, state.to_vec()));
        }
    }
    headers
}

/// The problem of a batch that was refused whole; `places` says where its records stand in the body.
pub(super) fn refused(reason: &NotSent, places: &[Place]) -> Problem {
    let text = reason.to_string();
    let problem = match reason {
        NotSent::Full { .. } => NOT_WRITTEN.problem(text).retry_after(retry_seconds(1)),
        NotSent::Unavailable { .. } | NotSent::PartitionUnavailable { .. } => {
            NOT_WRITTEN.problem(text).retry_after(retry_seconds(2))
        }
        NotSent::UnknownTopic { .. } => NOT_WRITTEN
            .problem(format!("{text}: create it, or restart Millpond, which creates what the folders declare"))
            .retry_after(retry_seconds(5)),
        NotSent::RecordTooLarge { index, bytes, limit } => {
            let place = places.get(*index);
            let error = serde_json::json!({
                "index": place.map_or(*index, |place| place.index),
                "line": place.and_then(|place| place.line),
                "pointer": "",
                "expected": format!("a record of at most {limit} bytes with its headers"),
                "got": format!("{bytes} bytes"),
            });
            INVALID_RECORDS
                .problem("a record is larger than Kafka takes; nothing was written")
                .with("errors", vec![error])
        }
        NotSent::BatchTooLarge { .. } => TOO_LARGE_FOR_STRICT.problem(text),
        NotSent::Malformed { .. } => INTERNAL.problem(text),
    };
    problem.with("outcome", "not_written")
}

/// Spread between `least` and twice as much, so that clients refused together do not come back together.
pub(super) fn retry_seconds(least: u32) -> u32 {
    let spread = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    least + spread % (least + 1)
}
