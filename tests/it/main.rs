//! The integration tests: one binary, one real Kafka and one real Postgres for all of them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test says no")]

mod architecture;
mod changes;
mod clients;
mod cluster;
mod command_line;
mod compose;
mod consumers;
mod dev_servers;
mod docs;
mod embedding;
mod faults;
mod flights;
mod harness;
mod ingest;
mod projection;
mod publisher;
mod reads;
mod rebuild;
mod registry;
mod registry_routes;
mod relay;
mod seen;
mod serve;
mod siege;
mod startup;
mod subscription;
mod topics;
mod transcode;
