//! Tests against real servers, in one binary.

mod harness;
mod ingest;
mod publisher;
mod registry;
mod topics;
