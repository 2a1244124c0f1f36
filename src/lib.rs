//! Millpond: an event-driven backend in one binary.

pub mod cli;
pub mod config;
pub mod consume;
pub mod dev;
pub mod domain;
pub mod http;
pub mod ingest;
pub mod kafka;
pub mod projection;
pub mod schema;
pub mod serve;
pub mod spec;
pub mod store;
pub mod telemetry;
