//! Tests against real servers, in one binary.

mod harness;
mod publisher;
mod registry;
mod topics;
