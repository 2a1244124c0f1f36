//! Millpond: an event-driven backend in one binary. HTTP → Avro → Kafka → exactly-once batches → Postgres → HTTP.
//!
//! # The path of an event
//!
//! 1. A client posts it. [`http::serve`] takes the connection, [`http::auth`] says whose key it is, and [`ingest::Contracts`]
//!    what that producer may send.
//! 2. [`ingest`] checks the JSON and writes it as Avro in one go, by a plan compiled from the schema
//!    ([`schema::encode::Encoder`]), straight from the request's bytes. Every fault is reported with its JSON pointer.
//! 3. [`kafka::Publisher`] writes it to its topic, in Confluent's framing with the id that [`kafka::Registry`] has for the
//!    schema; its key decides the partition ([`kafka::murmur2`]). The client is answered 202 with the [`domain::Position`] when
//!    every in-sync replica has it.
//! 4. A consumer's [`consume::Member`] is given the partition, claims its [`store::fence`], and reads from where that stands.
//! 5. [`consume::Preparer`] turns a batch of records into rows for binary COPY ([`schema::Transcoder`]); what cannot be decoded
//!    is known here, record by record.
//! 6. One transaction stages the rows, then sends fence, the statements of the [`projection::Compiled`] folder, outbox, dead
//!    letters and COMMIT as one message. The fence is compared and set ([`store::fence::Advance`]), so a batch is applied once
//!    or not at all.
//! 7. [`publish`] relays what handlers have emitted from the outbox ([`store::outbox`]) to Kafka, in order.
//! 8. [`serve`] answers reads: one statement gives rows, position and age from one snapshot. A read that carries the
//!    position of a write waits until the rows show it.
//!
//! `docs/ARCHITECTURE.md` tells the same with file names, and what happens when any of it dies.
//!
//! # An application of one's own
//!
//! Schemas, contracts and projections in SQL are folders, and the `millpond` binary is all they need. Rules in Rust are
//! registered under the name of their consumer's folder:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use millpond::handler::{Effects, Handler, HandlerError, Record, State, async_trait};
//!
//! struct Greetings;
//!
//! #[async_trait]
//! impl Handler for Greetings {
//!     /// Raised whenever the same records would give other rows or events.
//!     fn revision(&self) -> u32 {
//!         1
//!     }
//!
//!     async fn apply(
//!         &self,
//!         records: &[Record],
//!         _state: &mut State<'_>,
//!         effects: &mut Effects,
//!     ) -> Result<(), HandlerError> {
//!         for record in records {
//!             effects.refuse(record, "nobody", "there is nobody to greet");
//!         }
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     millpond::Application::new().handler("greetings", Greetings).main()
//! }
//! ```
//!
//! The result is the whole program, with every command and role. `millpond new DIR --rust` writes such a crate.
//!
//! # What the modules are for
//!
//! [`Application`] and [`handler`] are for everyone, and what changes there is in the changelog. The other modules are public for
//! this repository's own tests and benchmarks, and may change in any release. From the ground up: [`domain`]; [`telemetry`],
//! [`schema`], [`dev`]; [`spec`]; [`config`], [`kafka`], [`store`], [`http`], [`projection`], [`cli`]; the roles
//! [`ingest`], [`consume`], [`publish`], [`serve`]; [`app`]. Imports point down, and a test holds that.

/// Records and their headers are allocated by one thread and freed by another, which glibc's allocator is slow at: see
/// docs/performance.md.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub mod app;
pub mod cli;
pub mod config;
pub mod consume;
pub mod dev;
pub mod domain;
pub mod http;
pub mod ingest;
pub mod kafka;
pub mod planted;
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
