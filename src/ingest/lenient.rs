//! Lenient handling: records are sent while the body still arrives; bad ones are reported, good ones written.
//!
//! Memory is bounded by the chunks under way, whatever the size of the body.

use std::{collections::VecDeque, time::Instant};

use axum::{body::Body, http::StatusCode, response::Response};

use super::{
    Intake,
    admission::Limited,
    answer::{self, Accepted},
    batch::{Encoder, Faults, Place},
    body::Reader,
    event_id::EventIds,
    negotiate::Format,
    problems::{BODY_TOO_LARGE, EMPTY_BODY, PARTLY_WRITTEN},
    publish::{self, Listing, Tally, UnderWay, retry_seconds},
    stream::{Chunk, Cutter},
    strict,
    turns::Turn,
};
use crate::{
    http::Problem,
    kafka::NotSent,
    schema::encode::{BodyShape, split_values},
    telemetry::metrics::ingest::{BODY_BYTES, ENCODE_SECONDS, INVALID_RECORDS},
};

/// Most records in a batch, so that one of tiny records stays small too.
const MAX_BATCH_RECORDS: usize = 10_000;

/// Streams the request. A body that turns out to be one record is handled as strictly as it would be anyway.
pub(super) async fn handle(intake: Intake, body: Body, schema_id: u32) -> Result<Response, Problem> {
    let mut reader = intake.reader(body, usize::MAX, usize::MAX)?;
    let Some((shape, first)) = begin(&intake, &mut reader).await? else {
        return Err(EMPTY_BODY.problem("the body holds no record").with("outcome", "not_written"));
    };
    if shape == BodyShape::Object {
        let body = rest_of_record(&intake, &mut reader, first).await?;
        return strict::finish(intake, reader, &body, shape, schema_id).await;
    }
    let mut stream = Stream::new(&intake, shape, schema_id);
    let end = stream.run(&mut reader, &first).await;
    stream.settle_all().await;
    stream.answer(end)
}

/// Reads until the shape of the body shows: that far it is white space.
async fn begin(intake: &Intake, reader: &mut Reader) -> Result<Option<(BodyShape, Vec<u8>)>, Problem> {
    let mut first = Vec::new();
    while let Some(piece) = reader.next().await? {
        first.extend_from_slice(&piece);
        if !first.trim_ascii().is_empty() {
            let shape = match intake.format {
                Format::Json => BodyShape::of_json(&first),
                Format::Ndjson => BodyShape::NdJson,
            };
            return Ok(Some((shape, first)));
        }
        intake.check_record_bytes(first.len())?;
    }
    Ok(None)
}

async fn rest_of_record(intake: &Intake, reader: &mut Reader, mut body: Vec<u8>) -> Result<Vec<u8>, Problem> {
    while let Some(piece) = reader.next().await? {
        body.extend_from_slice(&piece);
        intake.check_record_bytes(body.len())?;
    }
    Ok(body)
}

/// Why the reading of a stream ended.
enum End {
    /// At the body's end.
    Whole,
    /// Before it; the problem is that of the rest.
    Stopped(Problem),
    /// Before it, for records that were sent did not arrive.
    Failed,
}

/// One request on its way.
struct Stream<'a> {
    intake: &'a Intake,
    shape: BodyShape,
    listing: Listing,
    cutter: Cutter,
    encoder: Encoder<'a>,
    /// Batches handed to Kafka, oldest first, and their bytes.
    under_way: VecDeque<(UnderWay, usize)>,
    bytes_under_way: usize,
    tally: Tally,
    faults: Faults,
    /// Documents met so far.
    documents: usize,
    /// All documents before this one were sent or reported.
    handled: usize,
}

impl<'a> Stream<'a> {
    fn new(intake: &'a Intake, shape: BodyShape, schema_id: u32) -> Self {
        let ids = EventIds::new(intake.idempotency_key.clone());
        let limit = intake.state.options.max_listed_records;
        Self {
            intake,
            shape,
            listing: Listing::new(intake.preferences.wants_representation(), limit),
            cutter: Cutter::new(shape),
            encoder: Encoder::new(&intake.contract, schema_id, intake.record_limits(), false, ids),
            under_way: VecDeque::new(),
            bytes_under_way: 0,
            tally: Tally::new(),
            faults: Faults::default(),
            documents: 0,
            handled: 0,
        }
    }

    async fn run(&mut self, reader: &mut Reader, first: &[u8]) -> End {
        self.cutter.push(first);
        let ended = loop {
            if self.cutter.whole_bytes() >= self.intake.state.options.chunk_bytes {
                let chunk = self.cutter.take(false);
                if let Err(end) = self.send(chunk).await {
                    break Err(end);
                }
                reader.held().shrink_to(self.cutter.bytes() + self.bytes_under_way);
            }
            if let Err(problem) = self.intake.check_record_bytes(self.cutter.partial_bytes()) {
                break Err(End::Stopped(problem));
            }
            match reader.next().await {
                Ok(Some(piece)) => self.cutter.push(&piece),
                Ok(None) => break Ok(()),
                Err(problem) => break Err(End::Stopped(problem)),
            }
        };
        let last = match ended {
            Ok(()) => {
                let chunk = self.cutter.take(true);
                self.send(chunk).await
            }
            Err(end) => Err(end),
        };
        last.err().unwrap_or(End::Whole)
    }

    /// Encodes a chunk and sends what is good of it.
    async fn send(&mut self, chunk: Chunk) -> Result<(), End> {
        BODY_BYTES.with_label_values(&["json"]).inc_by(chunk.bytes.len() as u64);
        let turns = &self.intake.state.turns;
        let mut encoder = turns.encoder(chunk.bytes.len()).await;
        let (started, base, mut next_yield) = (Instant::now(), self.documents, strict::YIELD_BYTES);
        let most = self.intake.rate_burst().min(MAX_BATCH_RECORDS);
        for value in split_values(&chunk.bytes, self.shape) {
            self.documents += 1;
            match value {
                Ok(value) => {
                    if value.range.end >= next_yield {
                        next_yield = value.range.end + strict::YIELD_BYTES;
                        tokio::task::yield_now().await;
                    }
                    let place =
                        Place { index: base + value.index, line: value.line.map(|line| line + chunk.lines_before) };
                    if let Err(found) = self.encoder.add(place, &chunk.bytes[value.range]) {
                        self.faults.add(place.index, place.line, found);
                        INVALID_RECORDS.inc();
                    }
                }
                Err(error) => {
                    self.faults.add(base + error.index, None, vec![error.fault]);
                    INVALID_RECORDS.inc();
                }
            }
            if self.encoder.records.len() == most {
                drop(encoder.take());
                self.flush().await?;
                encoder = turns.encoder(chunk.bytes.len()).await;
            }
        }
        drop(encoder);
        ENCODE_SECONDS.observe(started.elapsed().as_secs_f64());
        self.flush().await
    }

    /// Hands what is encoded to Kafka, then waits until few enough batches are under way.
    async fn flush(&mut self) -> Result<(), End> {
        if self.encoder.records.is_empty() {
            self.handled = self.documents;
            return Ok(());
        }
        self.wait_for_rate(self.encoder.records.len()).await?;
        // What is known of earlier batches is looked at first: after one that failed nothing more is sent.
        while self.under_way.front().is_some_and(|(batch, _)| batch.is_settled()) {
            self.settle_one().await?;
        }
        let bytes = self.encoder.bytes.len();
        let encoded = self.encoder.take();
        let sent = loop {
            let mut held = self.intake.state.budget.hold(&self.intake.principal.client);
            held.keep(self.turn(bytes).await?);
            match self.intake.state.send(self.intake, encoded.clone(), Some(held)) {
                // Our own batches fill the queue: once one is settled there is room.
                Err((NotSent::Full { .. }, _)) if !self.under_way.is_empty() => self.settle_one().await?,
                other => break other,
            }
        };
        let under_way = sent.map_err(|(reason, places)| End::Stopped(publish::refused(&reason, &places)))?;
        self.handled = self.documents;
        self.under_way.push_back((under_way, bytes));
        self.bytes_under_way += bytes;
        while self.under_way.len() > self.intake.state.options.chunks_in_flight {
            self.settle_one().await?;
        }
        Ok(())
    }

    /// Whoever waits for a turn has none: others may wait for those of our own batches.
    async fn turn(&mut self, bytes: usize) -> Result<Turn, End> {
        loop {
            if let Some(turn) = self.intake.state.turns.try_take(bytes) {
                return Ok(turn);
            }
            if self.under_way.is_empty() {
                return self.intake.turn(bytes).await.map_err(End::Stopped);
            }
            self.settle_one().await?;
        }
    }

    /// The first records of a request meet the limit as those of any other; later ones wait, and so does the client.
    async fn wait_for_rate(&self, records: usize) -> Result<(), End> {
        loop {
            match self.intake.take_rate(records) {
                Ok(()) => return Ok(()),
                Err((_, Limited::For(wait))) if self.handled > 0 => tokio::time::sleep(wait).await,
                Err((problem, _)) => return Err(End::Stopped(problem)),
            }
        }
    }

    async fn settle_one(&mut self) -> Result<(), End> {
        let Some((under_way, bytes)) = self.under_way.pop_front() else { return Ok(()) };
        under_way.settle(self.intake.state.options.ack_timeout, &mut self.tally, self.listing).await;
        self.bytes_under_way -= bytes;
        if self.tally.is_complete() { Ok(()) } else { Err(End::Failed) }
    }

    async fn settle_all(&mut self) {
        // One that failed does not change what became of the others.
        while !self.under_way.is_empty() {
            let _ = self.settle_one().await;
        }
    }

    fn answer(self, end: End) -> Result<Response, Problem> {
        if !self.tally.is_complete() {
            return Err(self.with_stand(answer::unfinished(&self.tally, false)));
        }
        match end {
            End::Stopped(problem) if self.tally.written == 0 && self.faults.is_empty() => Err(problem),
            End::Stopped(problem) => Err(self.stopped(problem)),
            _ if self.documents == 0 => {
                Err(EMPTY_BODY.problem("the body holds no record").with("outcome", "not_written"))
            }
            _ if self.tally.written == 0 => Err(answer::invalid(&self.faults, self.documents)),
            _ => Ok(self.accepted()),
        }
    }

    fn accepted(&self) -> Response {
        let (tally, faults) = (&self.tally, &self.faults);
        let status = if faults.is_empty() { StatusCode::ACCEPTED } else { StatusCode::MULTI_STATUS };
        let body = Accepted {
            event_id: None,
            count: Some(tally.written),
            position: tally.position.to_string(),
            failed: Some(faults.records),
            errors: &faults.listed,
            errors_omitted: faults.total - faults.listed.len(),
            records: self.listing.all.then_some(&tally.records),
            records_omitted: tally.omitted,
        };
        answer::accepted(status, &body, &tally.position)
    }

    /// The rest was not read or not taken: the problem says why, and how far the request came.
    fn stopped(&self, cause: Problem) -> Problem {
        let detail = format!("stopped before record {}: {}", self.handled, cause.detail);
        let mut problem = PARTLY_WRITTEN.problem(detail).status(cause.status).with("cause", cause.code);
        problem.retry_after = cause.retry_after.or((cause.status == 503).then(|| retry_seconds(2)));
        let outcome = if self.tally.written == 0 { "not_written" } else { "partly_written" };
        self.with_stand(problem.with("outcome", outcome))
    }

    /// What to send again. Under a key the ids count from the first record of a request, so that the rest under the same
    /// key would get ids that are taken, and all of it the ids that it had.
    fn advice(&self) -> &'static str {
        match (&self.intake.idempotency_key, self.tally.is_complete(), self.tally.unknown) {
            (Some(_), true, _) => {
                "send the rest, from the record in `stopped_before` on, under another Idempotency-Key, for under this one \
                 its ids are taken; or send all of the request again under this one, within the dedupe_window of the \
                 consumers: what is in the log already has no second effect"
            }
            (Some(_), false, _) => {
                "send all of the request again under the same Idempotency-Key, within the dedupe_window of the consumers: \
                 what is in the log already has no second effect"
            }
            (_, true, _) => {
                "send the rest, from the record in `stopped_before` on: all before it is written, or in `errors`"
            }
            (_, false, 0) => {
                "send the records listed in `records`, and the rest from the record in `stopped_before` on"
            }
            (None, false, _) if self.tally.failed_have_client_ids => {
                "send the rest, from the record in `stopped_before` on, and the records listed in `records`: their ids are \
                 yours, so that the unknown ones have no second effect, within the dedupe_window of the consumers"
            }
            (_, false, _) => {
                "send the rest, from the record in `stopped_before` on; of those in `records` the unknown ones may double if \
                 they are sent again"
            }
        }
    }

    /// Adds how far the request came.
    fn with_stand(&self, problem: Problem) -> Problem {
        let errors = serde_json::to_value(&self.faults.listed).unwrap_or_default();
        let problem = problem
            .with("written", self.tally.written)
            .with("failed", self.faults.records)
            .with("errors", errors)
            .with("stopped_before", self.handled)
            .with("advice", self.advice());
        if self.tally.position.is_empty() {
            return problem;
        }
        problem.with("position", self.tally.position.to_string())
    }
}

impl Intake {
    /// Refuses a record that is longer than its contract allows, before all of it is here.
    fn check_record_bytes(&self, bytes: usize) -> Result<(), Problem> {
        // The limit itself is the encoder's to check, with a pointer; here only memory is at stake.
        let limit = self.max_record_bytes.saturating_mul(2).saturating_add(1024);
        if bytes <= limit {
            return Ok(());
        }
        Err(BODY_TOO_LARGE
            .problem(format!("a record is longer than the {} bytes that its contract allows", self.max_record_bytes))
            .with("outcome", "not_written"))
    }
}
