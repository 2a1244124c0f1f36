//! Where a log goes on without records: offsets of transaction markers and of what was aborted or compacted away.
//!
//! That nothing comes is no proof: a leader that was just elected may for a moment show less of the log than the last
//! one did. What proves it is how far the client has fetched, which librdkafka tells in its statistics alone.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
};

use super::{
    Error, Options,
    client::{self, Isolation},
};
use crate::domain::TopicPartition;

/// How long it is looked. Some connections and some fetches take far less; the next look is a second away.
const LIMIT: Duration = Duration::from_secs(3);
/// How often it is told how far was fetched, and a fraction of that: long enough to be handed all that waits.
const STATISTICS_MS: &str = "40";
const TICK: Duration = Duration::from_millis(20);

/// Offsets of one partition from `from` to before `to`, which is not beyond its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub at: TopicPartition,
    pub from: i64,
    pub to: i64,
}

/// Those of the gaps in which there certainly is no committed record, of one partition at most one. Blocks for up to 3 s.
pub fn without_records(options: &Options, gaps: Vec<Gap>) -> Result<Vec<Gap>, Error> {
    without(options, Isolation::Committed, gaps)
}

/// [`without_records`] as a reader of the given kind sees them.
pub(super) fn without(options: &Options, isolation: Isolation, gaps: Vec<Gap>) -> Result<Vec<Gap>, Error> {
    let mut config = options.reader(isolation)?;
    config.set("statistics.interval.ms", STATISTICS_MS);
    // A client of its own each time: what it has fetched it has fetched since.
    let consumer: BaseConsumer<Fetched> = client::create(&config, Fetched::default(), "reader")?;
    let failed = || Error::request("look for records at the ends of partitions");
    let mut assignment = TopicPartitionList::new();
    for Gap { at, from, .. } in &gaps {
        assignment.add_partition_offset(&at.topic, at.partition, Offset::Offset(*from)).map_err(failed())?;
    }
    consumer.assign(&assignment).map_err(failed())?;
    let mut open = gaps;
    let mut empty = Vec::new();
    let started = Instant::now();
    while !open.is_empty() && started.elapsed() < LIMIT {
        match consumer.poll(TICK) {
            // The first record from `from` on tells by itself.
            Some(Ok(message)) => {
                if let Some(index) = open.iter().position(|gap| gap.is_of(message.topic(), message.partition())) {
                    let gap = open.swap_remove(index);
                    if message.offset() >= gap.to {
                        empty.push(gap);
                    }
                }
            }
            Some(Err(_)) => {}
            // A poll that has called back returns nothing, though more may be waiting.
            None if consumer.context().served.swap(false, Ordering::Relaxed) => {}
            // All that was fetched has been handed over.
            None => {
                let fetched = consumer.context().ends.lock().unwrap_or_else(PoisonError::into_inner);
                let done = |gap: &mut Gap| fetched.get(&gap.at).is_some_and(|end| *end >= gap.to);
                empty.extend(open.extract_if(.., done));
            }
        }
    }
    Ok(empty)
}

impl Gap {
    fn is_of(&self, topic: &str, partition: i32) -> bool {
        &*self.at.topic == topic && self.at.partition == partition
    }
}

/// The ends of partitions that were reached, from the statistics.
#[derive(Default)]
struct Fetched {
    ends: Mutex<HashMap<TopicPartition, i64>>,
    served: AtomicBool,
}

impl ClientContext for Fetched {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "millpond::kafka", %error, "{reason}");
    }

    fn stats(&self, statistics: Statistics) {
        self.served.store(true, Ordering::Relaxed);
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, statistics) in &statistics.topics {
            for (partition, statistics) in &statistics.partitions {
                ends.insert(TopicPartition::new(topic.as_str(), *partition), statistics.eof_offset);
            }
        }
    }
}

impl ConsumerContext for Fetched {}
