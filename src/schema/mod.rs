//! Avro: everything that knows the format. The only importer of `apache_avro`.

mod columns;
pub mod compat;
mod definition;
pub mod encode;
mod fault;
pub mod framing;
pub mod limits;
mod named_types;
mod parse;
mod pg;
mod reader;
mod repeated;
mod resolve;
mod sample;
mod set;
#[cfg(test)]
mod testing;
mod to_json;

pub use apache_avro::Schema;
pub use columns::{Column, PgType, columns_of};
pub use definition::definitions_of;
pub use fault::Fault;
pub use parse::{ParsedSchema, is_name, parse, parse_registered, record_name};
pub use pg::{Scratch, Transcoder};
pub use resolve::ResolveError;
pub use sample::infer;
pub use set::{RecordType, SchemaFault, SchemaSet, SchemaVersion, relation_fault, relation_name};
pub use to_json::JsonDecoder;
