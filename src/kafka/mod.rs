//! Kafka: everything that speaks to the brokers. The only importer of `rdkafka`.
//!
//! Owns the settings of all clients, publishing, transactions, topics, plain reads and the schema registry. Must not
//! know Postgres, HTTP or Avro.

mod admin;
mod client;
pub mod gaps;
mod headers;
pub mod murmur2;
pub mod publisher;
pub mod reader;
pub mod registry;
pub mod subscription;
mod transaction;

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode};

pub use admin::{Admin, Ensured, TopicDescription, TopicSpec};
pub use client::Options;
pub use publisher::{
    Delivery, EncodedBatch, EncodedRecord, Health, NotSent, PendingReceipt, Publisher, Reason, Receipt,
};
pub use reader::{Header, Reader, Record, Start, TopicRange};
pub use registry::Registry;
pub use transaction::{Failed, Idle, OutgoingRecord, Transaction};

use crate::domain::nearest;

/// Why something that Kafka was asked for was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("kafka client setting `{key}` cannot be set: {why}")]
    OwnedSetting { key: String, why: &'static str },
    #[error("cannot create the kafka {what}: {why}")]
    Create { what: &'static str, why: String },
    #[error("kafka did not {action}: {source}")]
    Request { action: String, source: KafkaError },
    #[error("topic `{topic}` does not exist in this cluster; {}", or_declare(.near.as_deref()))]
    NoTopic { topic: String, near: Option<String> },
    #[error("topic `{topic}` has no partition {partition}; it has {}", numbered(*.partitions))]
    NoPartition { topic: String, partition: i32, partitions: usize },
    #[error("topic `{topic}` has {found} partitions where {wanted} are declared; {advice}")]
    Partitions { topic: String, found: usize, wanted: usize, advice: &'static str },
    #[error(
        "{topic}/{partition} ends at offset {end}, and was read up to {read} before: the topic was made anew or cut"
    )]
    Shrunk { topic: String, partition: i32, end: i64, read: i64 },
    #[error(
        "transactions that are open in {topic}/{partition} did not end within {seconds} s; see who holds them open"
    )]
    Undecided { topic: String, partition: i32, seconds: u64 },
    #[error("kafka did not {action} within {seconds} s; see whether the brokers can be reached")]
    Timeout { action: String, seconds: u64 },
    #[error("kafka did not say where {records} records of a transaction are, and may not have them")]
    NotPlaced { records: usize },
}

/// What to do about a topic that is not there.
fn or_declare(near: Option<&str>) -> String {
    match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => "create it, or declare it so that Millpond does".to_owned(),
    }
}

/// The partitions of a topic that has so many.
fn numbered(partitions: usize) -> String {
    match partitions {
        1 => "partition 0 alone".to_owned(),
        _ => format!("partitions 0 to {}", partitions.saturating_sub(1)),
    }
}

impl Error {
    /// A topic that is not there, beside those that are.
    fn no_topic<'a>(topic: &str, others: impl IntoIterator<Item = &'a str>) -> Self {
        Self::NoTopic { topic: topic.to_owned(), near: nearest(topic, others).map(str::to_owned) }
    }

    fn request(action: impl Into<String>) -> impl FnOnce(KafkaError) -> Self {
        let action = action.into();
        move |source| Self::Request { action, source }
    }

    /// Kafka's own code, where it gave one.
    fn code(&self) -> Option<RDKafkaErrorCode> {
        match self {
            Self::Request { source, .. } => source.rdkafka_error_code(),
            _ => None,
        }
    }
}
