//! Ingest: HTTP in, Kafka out.
//!
//! Owns the native write API: who may send what, whether it is valid, what became of it. A 202 is sent only after Kafka has
//! acknowledged every record. Must not import `store` or any client of Postgres, directly or through another module: a slow
//! database must never slow a write, and this is what makes it so.
//!
//! The path of a request: `auth` says who it is, `contract` what may be sent, `negotiate` what the head asks for; then
//! `strict` or `lenient` reads the `body`, encodes it into one `batch`, hands it to Kafka (`publish`) and makes the `answer`.

mod admission;
mod answer;
mod batch;
mod body;
mod contract;
mod event_id;
mod lenient;
mod list;
mod negotiate;
pub mod problems;
mod publish;
pub mod registry_routes;
mod routes;
mod stream;
mod strict;
mod turns;

use std::{sync::Arc, time::Duration};

use axum::body::Body;

pub use batch::key_of;
pub use contract::{Contract, Contracts};
pub use routes::router;

use self::{
    admission::{Budget, Limited},
    batch::{Encoded, Place, RecordLimits},
    body::{Limits, Reader},
    contract::Producer,
    negotiate::{Encoding, Format, Preferences},
    problems::{NO_TURN, NOT_WRITTEN},
    publish::{UnderWay, retry_seconds},
    turns::{TooMany, Turn, Turns},
};
use crate::{
    http::{Auth, Health, Principal, Problem, TraceContext},
    kafka::{self, NotSent, Publisher},
};

/// How much ingest takes, and how long it waits.
#[derive(Debug, Clone)]
pub struct Options {
    /// Largest body as sent, in bytes, in strict handling; lenient handling streams and has no such limit.
    pub max_body_bytes: usize,
    /// Largest body as decompressed, in bytes, in strict handling.
    pub max_json_bytes: usize,
    /// Largest request as Avro with keys and ids, in bytes, in strict handling.
    pub max_strict_bytes: usize,
    /// Largest record as Avro with its key, in bytes; below Kafka's `max.message.bytes` with room for headers.
    pub max_record_bytes: usize,
    /// Most decompressed bytes for each compressed one, beyond the first MiB.
    pub max_ratio: usize,
    /// Bytes of requests that the process holds at once; beyond them requests are refused with 503.
    pub in_flight_bytes: usize,
    /// Bytes of requests that are encoded, or wait for Kafka's acknowledgement, at once; beyond them clients take turns.
    /// Requests of a few records have as much again for themselves.
    pub window_bytes: usize,
    /// Longest wait for a turn.
    pub turn_timeout: Duration,
    /// JSON of a lenient request that is encoded and sent together, in bytes.
    pub chunk_bytes: usize,
    /// Chunks of a lenient request that wait for acknowledgement at once.
    pub chunks_in_flight: usize,
    /// Most records that an answer lists.
    pub max_listed_records: usize,
    /// Longest wait for the acknowledgement; a little above the publisher's own, whose answer is more exact.
    pub ack_timeout: Duration,
    /// How long a client may keep its body from us, beyond what the least rate allows.
    pub body_patience: Duration,
    /// Least rate of a body, in bytes a second, over the time in which it was awaited.
    pub least_body_rate: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_json_bytes: 32 << 20,
            max_strict_bytes: 8 << 20,
            max_record_bytes: 1_000_000,
            max_ratio: 100,
            in_flight_bytes: 256 << 20,
            window_bytes: 4 << 20,
            turn_timeout: Duration::from_secs(10),
            chunk_bytes: 256 << 10,
            chunks_in_flight: 4,
            max_listed_records: 100_000,
            ack_timeout: Duration::from_secs(20),
            body_patience: Duration::from_secs(10),
            least_body_rate: 1024,
        }
    }
}

/// What all requests share. Cheap to clone.
#[derive(Clone)]
pub struct IngestState(Arc<Shared>);

struct Shared {
    contracts: Contracts,
    publisher: Arc<Publisher>,
    auth: Arc<Auth>,
    budget: Budget,
    turns: Turns,
    options: Options,
}

impl IngestState {
    /// Takes no record of a type until its schema has an id: see [`Contract::set_schema_id`].
    pub fn new(contracts: Contracts, publisher: Arc<Publisher>, auth: Arc<Auth>, options: Options) -> Self {
        let (budget, turns) = (Budget::new(options.in_flight_bytes), Turns::new(options.window_bytes));
        Self(Arc::new(Shared { contracts, publisher, auth, budget, turns, options }))
    }

    /// The contracts in force.
    pub fn contracts(&self) -> &Contracts {
        &self.0.contracts
    }

    /// The checks that decide whether this process takes records: Kafka, and an id for every schema.
    pub fn health(&self) -> Health {
        let (kafka, schemas) = (self.clone(), self.clone());
        // Clients are told why, too, but not what to type.
        let check = move || kafka.0.check_kafka().map_err(|why| format!("{why}; run `millpond doctor`"));
        Health::new().with("kafka", check).with("schemas", move || {
            let contracts = schemas.contracts();
            match contracts.unregistered()[..] {
                [] => Ok(()),
                ref types => Err(format!("no id in the registry for {}: run `millpond schema push`", types.join(", "))),
            }
        })
    }
}

impl Shared {
    fn check_kafka(&self) -> Result<(), String> {
        match self.publisher.health() {
            kafka::Health::Ready => Ok(()),
            kafka::Health::Degraded { why, .. } => Err(why.to_string()),
        }
    }

    /// Hands a batch to Kafka; an error has the reason and where the records stand in the body.
    fn send(
        &self,
        intake: &Intake,
        encoded: Encoded,
        held: Option<admission::Held>,
    ) -> Result<UnderWay, (NotSent, Vec<Place>)> {
        let headers = publish::record_headers(&intake.producer.name, intake.trace.as_ref());
        publish::send(&self.publisher, &intake.contract, headers, encoded, held)
    }
}

/// A request whose head is understood and whose sender is known; its body is not read yet.
struct Intake {
    state: Arc<Shared>,
    contract: Arc<Contract>,
    producer: Arc<Producer>,
    principal: Principal,
    /// Longest JSON of one record, by the producer's contract.
    max_record_bytes: usize,
    format: Format,
    encoding: Encoding,
    preferences: Preferences,
    idempotency_key: Option<String>,
    validate_only: bool,
    trace: Option<TraceContext>,
}

impl Intake {
    /// A reader of the body with limits on what is sent and what it unfolds to.
    fn reader(&self, body: Body, wire: usize, json: usize) -> Result<Reader, Problem> {
        let options = &self.state.options;
        let limits = Limits {
            wire,
            json,
            ratio: options.max_ratio,
            patience: options.body_patience,
            least_rate: options.least_body_rate,
        };
        Reader::new(body, self.encoding, limits, self.state.budget.hold(&self.principal.client))
    }

    /// The client's turn to have so many bytes of JSON encoded and sent.
    async fn turn(&self, bytes: usize) -> Result<Turn, Problem> {
        match self.state.turns.try_take(bytes) {
            Some(turn) => Ok(turn),
            None => self.wait_for_turn(bytes).await,
        }
    }

    async fn wait_for_turn(&self, bytes: usize) -> Result<Turn, Problem> {
        let Shared { publisher, turns, options, .. } = &*self.state;
        let mut health = publisher.watch_health();
        let problem = tokio::select! {
            turn = turns.take(&self.principal.client, bytes) => match turn {
                Ok(turn) => return Ok(turn),
                Err(TooMany) => NO_TURN.problem("too many requests of the client wait for their turn"),
            },
            // What is under way may take its time to fail; nobody should wait behind it.
            _ = health.wait_for(|health| *health != kafka::Health::Ready) => {
                NOT_WRITTEN.problem("kafka takes no records any more")
            }
            () = tokio::time::sleep(options.turn_timeout) => {
                NO_TURN.problem(format!("no turn came in {} s", options.turn_timeout.as_secs()))
            }
        };
        Err(problem.with("outcome", "not_written").retry_after(retry_seconds(1)))
    }

    fn record_limits(&self) -> RecordLimits {
        RecordLimits { json: self.max_record_bytes, encoded: self.state.options.max_record_bytes }
    }

    /// Counts records against the client's limit.
    fn take_rate(&self, records: usize) -> Result<(), (Problem, Limited)> {
        let Some(rate) = &self.producer.rate else { return Ok(()) };
        let name = &self.principal.client.name;
        rate.take(name, records).map_err(|limited| (rate.problem(name, records, limited), limited))
    }

    /// Most records that the client's limit ever lets in at once.
    fn rate_burst(&self) -> usize {
        self.producer.rate.as_ref().map_or(usize::MAX, admission::ClientRate::burst)
    }
}

#[cfg(test)]
mod broker_tests;
#[cfg(test)]
mod tests;
