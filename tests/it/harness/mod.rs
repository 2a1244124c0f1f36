//! What every integration test stands on: real servers, names of its own, and waiting that has an end.
//!
//! The servers start with the first test that asks and end with the test process (by the parent-death signal: statics are
//! not dropped). Nothing here is cleaned up after a test, so that a failed one can be looked at; the next run does it.

mod answer;
mod database;
mod servers;

use std::future::Future;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

pub use answer::Answer;
pub use database::{Database, database, empty_database};
pub use servers::{brokers, own_folder, own_options, postgres_url};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A name that no other test has and no earlier run had: letters, digits and `_`, fit for topics, schemas and consumers.
pub fn unique(name: &str) -> String {
    format!("{name}_{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}

/// Waits until `condition` holds, and panics when `within` is over. The only way to wait in a test: no sleeps.
#[track_caller]
pub fn eventually(within: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "did not come true within {within:?}");
        std::thread::sleep(POLL);
    }
}

/// [`eventually`] for a condition that has to await.
pub async fn eventually_async<F: Future<Output = bool>>(within: Duration, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + within;
    while !condition().await {
        assert!(Instant::now() < deadline, "did not come true within {within:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// Removes the records of a partition before an offset, as retention does.
pub async fn remove_records(brokers: &str, topic: &str, partition: i32, before: i64) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let mut removed = TopicPartitionList::new();
    removed.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
    admin.delete_records(&removed, &AdminOptions::new()).await.unwrap();
}
