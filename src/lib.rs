//! Millpond: an event-driven backend in one binary.

pub mod app;
pub mod cli;
pub mod config;
pub mod consume;
pub mod dev;
pub mod domain;
pub mod http;
pub mod ingest;
pub mod kafka;
pub mod projection;
pub mod publish;
pub mod schema;
pub mod serve;
pub mod spec;
pub mod store;
pub mod telemetry;

pub use app::Application;

/// What a crate with handlers of its own needs.
pub mod handler {
    pub use async_trait::async_trait;

    pub use crate::consume::handler::{Effects, Handler, HandlerError, Record, State};
}
