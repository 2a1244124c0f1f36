//! Avro: everything that knows the format. The only importer of `apache_avro`.

mod columns;
pub mod encode;
mod fault;
pub mod limits;
mod nearest;
mod pg;
mod reader;
mod resolve;
#[cfg(test)]
mod testing;
mod to_json;

pub use columns::{Column, PgType, columns_of};
pub use fault::Fault;
pub use pg::{Scratch, Transcoder};
pub use resolve::ResolveError;
pub use to_json::JsonDecoder;
