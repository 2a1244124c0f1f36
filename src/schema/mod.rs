//! Avro: everything that knows the format. The only importer of `apache_avro`.

pub mod compat;
pub mod encode;
mod fault;
pub mod framing;
pub mod limits;
mod nearest;
mod parse;
mod sample;
mod set;

pub use fault::Fault;
pub use parse::{ParsedSchema, parse};
pub use sample::infer;
pub use set::{RecordType, SchemaFault, SchemaSet, SchemaVersion, relation_name};
