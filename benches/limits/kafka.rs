//! The limit of writing: librdkafka alone, with the settings of Millpond's own producer, fed from memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use rdkafka::{
    ClientConfig, ClientContext,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};

use ::millpond::schema::{
    self,
    encode::{Captured, Encoder},
    framing,
};

use crate::project::{self, COMMAND, Flight, LIMIT_TOPIC};

/// Records that differ, taken in turn.
const DIFFERENT: u64 = 20_000;

/// Whether records carry headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headers {
    None,
    /// As many and as long as those that ingest writes.
    AsIngest,
}

/// Key and framed Avro of the flights that are posted, too.
pub fn records() -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let parsed = schema::parse(&project::schema(COMMAND)).map_err(|faults| anyhow!(faults.join("; ")))?;
    let encoder = Encoder::compile(&parsed.schema, &[])?;
    let encode = |number| {
        let flight = Flight::new(number, number);
        let mut payload = Vec::new();
        framing::write_header(1, &mut payload);
        encoder
            .encode(flight.json().as_bytes(), &mut payload, &mut Captured::default())
            .map_err(|faults| anyhow!("{faults:?}"))?;
        Ok((flight.flight_id, payload))
    };
    (0..DIFFERENT).map(encode).collect()
}

#[derive(Clone, Default)]
struct Counter {
    delivered: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
}

impl ClientContext for Counter {}

impl ProducerContext for Counter {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.delivered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Records per second from the first that is handed over to the last acknowledgement.
pub fn produce(brokers: &str, records: &[(String, Vec<u8>)], count: usize, headers: Headers) -> anyhow::Result<f64> {
    let counter = Counter::default();
    let producer: ThreadedProducer<Counter> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "1")
        .set("queue.buffering.max.messages", "500000")
        .create_with_context(counter.clone())?;
    // Connections and the producer's id are there before the clock runs.
    producer.client().fetch_metadata(Some(LIMIT_TOPIC), Duration::from_secs(10))?;
    send(&producer, &records[..1], 1, headers)?;
    producer.flush(Duration::from_secs(10))?;

    let begun = Instant::now();
    send(&producer, records, count, headers)?;
    while counter.delivered.load(Ordering::Relaxed) <= count {
        if counter.failed.load(Ordering::Relaxed) > 0 || begun.elapsed() > Duration::from_secs(60) {
            bail!("librdkafka alone: records were not acknowledged");
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

fn send(
    producer: &ThreadedProducer<Counter>,
    records: &[(String, Vec<u8>)],
    count: usize,
    headers: Headers,
) -> anyhow::Result<()> {
    let id = [b'0'; 36];
    for (key, payload) in records.iter().cycle().take(count) {
        let mut record = BaseRecord::to(LIMIT_TOPIC).key(key).payload(payload);
        if headers == Headers::AsIngest {
            record = record.headers(
                OwnedHeaders::new_with_capacity(2)
                    .insert(Header { key: "mp-event-id", value: Some(&id) })
                    .insert(Header { key: "mp-producer", value: Some("airline") }),
            );
        }
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((error, back)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                    record = back;
                    thread::sleep(Duration::from_micros(500));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
