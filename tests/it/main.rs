//! Tests against real servers, in one binary.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod ingest;
mod projection;
mod publisher;
mod registry;
mod registry_routes;
mod topics;
