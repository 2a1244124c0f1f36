//! Consumers compiled and run on a real Postgres.

mod append;
mod cut;
mod declared;
mod lab;
mod laws;
mod modes;
mod refusals;
