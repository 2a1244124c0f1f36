//! Tests against real servers, in one binary.

mod harness;
mod ingest;
mod projection;
mod publisher;
mod registry;
mod topics;
