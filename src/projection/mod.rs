//! From a consumer folder to the SQL that applies its batches.
//!
//! Owns: which SQL is accepted, how columns merge, the tables and views of a version, and every statement that runs
//! between a batch's fence and its COMMIT. Must not do: read Kafka, decode records, run a batch, or know of versions
//! beyond their number. Its invariant are the three laws: whatever the cut of the input into batches and the
//! interleaving of partitions, the rows are the same; a rebuild gives the same rows; what is applied twice is the
//! business of the fence, not of the SQL.

mod append;
mod apply;
mod compile;
mod compiled;
mod declared;
mod fingerprint;
mod from;
mod input;
mod judge;
mod latest;
mod names;
mod plan;
mod reads;
mod reference;
mod relation;
mod rewrite;
mod scratch;
mod select;
mod session;
mod statements;
mod tables;
mod types;
mod upsert;
mod uses;

pub use append::Append;
pub use compile::{Error, compile};
pub use compiled::Compiled;
pub use names::{LIVE_SCHEMA, live_view};
pub use relation::{METADATA_COLUMNS, Relation, RelationColumn, TOMBSTONES};
pub use statements::{SqlStatement, split};
