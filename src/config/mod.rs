//! Configuration: defaults ← file ← environment ← flags.
//!
//! Owns which keys exist and what is in force. Reads no other file than the configuration's own.

pub mod keys;
mod load;
pub mod units;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

pub use load::{DEV, Faults, Setting, Sources, load};

/// What is in force, typed.
#[derive(Debug, Clone)]
pub struct Config {
    pub project: Project,
    pub kafka: Kafka,
    pub postgres: Postgres,
    pub http: Http,
    pub ingest: Ingest,
    pub consume: Consume,
    pub publish: Publish,
    pub serve: Serve,
    pub log: Log,
    /// Every key with its value as text and where it came from, for `millpond config`.
    pub settings: Vec<Setting>,
}

#[derive(Debug, Clone)]
pub struct Project {
    pub dir: PathBuf,
}

#[derive(Clone)]
pub struct Kafka {
    pub brokers: String,
    pub client_id: String,
    /// None leaves the replication factor to the cluster.
    pub replication: Option<i32>,
    pub client: BTreeMap<String, String>,
}

impl std::fmt::Debug for Kafka {
    /// The client's settings hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

#[derive(Clone)]
pub struct Postgres {
    pub url: String,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub struct Http {
    pub listen: SocketAddr,
    pub keys_file: Option<PathBuf>,
    pub insecure: bool,
    pub max_connections: usize,
    pub max_connections_per_client: usize,
    pub max_requests: usize,
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
    pub write_timeout: Duration,
    pub max_head: usize,
    pub http2_streams: u32,
    pub http2_resets: u32,
    pub http2_ping: Duration,
    pub drain: Duration,
}

#[derive(Debug, Clone)]
pub struct Ingest {
    pub max_body: usize,
    pub max_record: usize,
    pub in_flight: usize,
    pub request_memory: usize,
    pub window: usize,
    pub turn_timeout: Duration,
    pub max_strict: usize,
    pub max_ratio: usize,
    pub body_patience: Duration,
    pub body_rate: usize,
    pub linger: Duration,
}

#[derive(Debug, Clone)]
pub struct Consume {
    pub connections: usize,
    pub max_records: usize,
    pub max_bytes: usize,
    pub max_age: Duration,
}

#[derive(Debug, Clone)]
pub struct Publish {
    /// `auto`, `required` or `off`.
    pub transactions: String,
}

#[derive(Debug, Clone)]
pub struct Serve {
    pub connections: usize,
    pub statement_timeout: Duration,
    pub max_wait: Duration,
    pub default_limit: usize,
    pub max_limit: usize,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub format: String,
    pub level: String,
}
