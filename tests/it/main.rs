//! The integration tests: one binary, one real Kafka and one real Postgres for all of them.

mod compose;
mod dev_servers;
mod harness;
