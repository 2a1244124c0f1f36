//! Consumers compiled and run on a real Postgres.

mod lab;
mod laws;
mod modes;
mod refusals;
