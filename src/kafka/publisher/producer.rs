//! The producer of the publisher: its callbacks, how it is made, and how it is replaced. There is one at a time.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseProducer, Producer, ProducerContext},
    types::RDKafkaErrorCode as Code,
};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    Reason, Shared,
    in_flight::{Fate, Ticket},
    run::{STALL, State, TICK},
};
use crate::{
    kafka::{
        Error, Options,
        client::{self, MESSAGE_TIMEOUT},
    },
    planted::{self, Bug},
    telemetry::metrics::kafka as metrics,
};

/// Why a publisher without a producer takes no records.
const LOST: &str = "the producer failed and is being replaced";
/// Why one that holds records without an acknowledgement for too long takes no more.
const LATE: &str = "records were not acknowledged in time; their producer is being replaced";
/// What other partitions get to acknowledge what they have before a producer is given up: a round trip takes milliseconds.
const GRACE: Duration = Duration::from_millis(500);

/// The producer's callbacks.
pub(super) struct Context {
    state: Arc<State>,
    /// The producer's epoch, as it last told. It begins with 0.
    epoch: AtomicI64,
}

/// The part of librdkafka's statistics that we read.
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    msg_cnt: i64,
    eos: Option<Idempotence>,
}

#[derive(Deserialize)]
struct Idempotence {
    idemp_state: String,
    #[serde(default)]
    producer_epoch: i64,
    #[serde(flatten)]
    _rest: HashMap<String, IgnoredAny>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn stats_raw(&self, json: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(json) else { return };
        metrics::QUEUED_RECORDS.set(statistics.msg_cnt);
        let has_id = statistics.eos.as_ref().is_some_and(|eos| eos.idemp_state == "Assigned");
        if has_id || planted::is(Bug::AcksOne) {
            self.state.has_producer_id.store(true, Ordering::Relaxed);
        }
        self.note_epoch(statistics.eos.map_or(0, |eos| eos.producer_epoch));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka logs it, too.
        tracing::debug!(%error, "{reason}");
        match error.rdkafka_error_code() {
            Some(Code::Fatal) => self.state.doubt_producer(),
            Some(Code::AllBrokersDown) => self.state.suspect("no broker can be reached".to_owned()),
            _ => {}
        }
    }
}

impl Context {
    /// Counts epochs. Records give a producer no reason for a new one as long as none is given up or refused by a broker,
    /// but one that meets a gap in a partition's sequence takes one, too.
    fn note_epoch(&self, epoch: i64) {
        let more = epoch - self.epoch.swap(epoch.max(0), Ordering::Relaxed);
        if more > 0 {
            metrics::PRODUCER_EPOCHS.inc_by(more.unsigned_abs());
            tracing::warn!(
                epoch,
                "the producer goes on under a new epoch; a record that waited for a second try may be in the log twice"
            );
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let fate = match result {
            Ok(message) => {
                self.state.written.store(true, Ordering::Relaxed);
                if self.state.topics.any_doubted() {
                    self.state.topics.note(message.topic(), message.partition(), true);
                }
                Fate::reported(message.offset())
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                let reason = match Reason::of_report(code) {
                    // Nobody has ended it: it has failed for good, and throws away what it has.
                    Reason::Closed if self.state.closing().is_none() => Reason::ProducerLost,
                    reason => reason,
                };
                tracing::debug!(topic = message.topic(), partition = message.partition(), %error, "record not acknowledged");
                match reason {
                    Reason::ProducerLost => self.state.doubt_producer(),
                    Reason::TimedOut | Reason::NotEnoughReplicas => {
                        self.state.topics.note(message.topic(), message.partition(), false);
                        self.state.suspect(reason.as_str().into());
                    }
                    _ => {}
                }
                Fate::failed(reason)
            }
        };
        self.state.window.settle(Ticket::from_opaque(opaque), fate);
    }
}

pub(super) fn create(options: &Options, state: &Arc<State>) -> Result<BaseProducer<Context>, Error> {
    let mut config = options.producer()?;
    // Statistics are how librdkafka tells that the producer has its id.
    config.set("statistics.interval.ms", "500");
    if planted::is(Bug::AcksOne) {
        config.set("enable.idempotence", "false").set("acks", "1");
    }
    client::create(&config, Context { state: state.clone(), epoch: AtomicI64::new(0) }, "producer")
}

/// Replaces a producer that ended in a fatal error.
pub(super) fn replace(shared: &Shared) {
    let state = &shared.state;
    state.set_health(Err(LOST.into()));
    let mut live = shared.live.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(old) = &*live {
        let cause = old.client().fatal_error().map(|(_, text)| text);
        tracing::error!(cause, "producer failed for good; replacing it");
        let deadline = Instant::now() + MESSAGE_TIMEOUT;
        while !state.window.is_empty() && Instant::now() < deadline {
            old.poll(TICK);
        }
    }
    state.window.abandon(Reason::ProducerLost);
    renew(shared, &mut live);
}

/// Replaces a producer that holds a record whose time is over: it is given up, so it must not be sent any more, and a
/// producer cannot take one record out of a sequence. What it has of partitions that acknowledge gets a moment more.
pub(super) fn give_up(shared: &Shared) {
    let state = &shared.state;
    state.set_health(Err(LATE.into()));
    let grace = Instant::now() + GRACE;
    while Instant::now() < grace && state.window.youngest().is_some_and(|since| since.elapsed() < STALL) {
        if let Some(old) = &*shared.live() {
            old.poll(GRACE / 10);
        }
    }
    let left = state.window.older_than(Instant::now(), usize::MAX);
    for (topic, partition) in left.iter().flat_map(|batch| batch.waiting()) {
        state.topics.note(topic, partition, false);
    }
    state.suspect(Reason::TimedOut.as_str().into());
    // At once: the lock may take a while, since the scout may be asking silent brokers.
    state.window.abandon(Reason::TimedOut);
    let mut live = shared.live.write().unwrap_or_else(PoisonError::into_inner);
    tracing::warn!(batches = left.len(), "given up what was not acknowledged in time, with its producer");
    renew(shared, &mut live);
    // What was being queued when the publisher was closed.
    state.window.abandon(Reason::TimedOut);
}

/// Ends the producer and makes a new one. The old one is gone, with all its reports in, before the new one is made: two
/// at once could change the order of a key's records.
fn renew(shared: &Shared, live: &mut Option<BaseProducer<Context>>) {
    let state = &shared.state;
    metrics::PRODUCERS_REPLACED.inc();
    drop(live.take());
    state.has_producer_id.store(false, Ordering::Relaxed);
    state.fatal.store(false, Ordering::Relaxed);
    while state.closing().is_none() {
        match create(&shared.options, state) {
            Ok(producer) => {
                *live = Some(producer);
                return;
            }
            // Settings were good at the start: threads or memory are short.
            Err(error) => {
                tracing::error!(%error, "cannot replace the producer; trying again");
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_librdkafka_tell_the_producer_id() {
        let json = br#"{"name":"x","msg_cnt":3,"brokers":{},"eos":{"idemp_state":"Assigned","producer_id":4,"producer_epoch":2}}"#;
        let statistics: Statistics = serde_json::from_slice(json).unwrap();
        let eos = statistics.eos.unwrap();
        assert_eq!((statistics.msg_cnt, eos.idemp_state.as_str(), eos.producer_epoch), (3, "Assigned", 2));
    }
}
