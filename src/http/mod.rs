//! What every HTTP listener of Millpond shares: the accept loop, problems, health, authentication, observation.
//!
//! Owns nothing of any role: roles hand their `axum::Router` to [`app`] and [`serve`]. Must not import `ingest`, `serve`,
//! `kafka`, `store` or any other module above `domain` and `telemetry`.

mod activity;
mod answer;
pub mod auth;
mod client;
mod connections;
pub mod health;
pub mod observe;
pub mod problem;
mod server;
pub mod trace;

pub use auth::{Auth, Principal};
pub use client::Client;
pub use health::Health;
pub use observe::app;
pub use problem::{Kind, Problem};
pub use server::{Connection, Options, serve};
pub use trace::TraceContext;
