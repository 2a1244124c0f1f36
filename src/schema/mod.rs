//! Avro: everything that knows the format. The only importer of `apache_avro`.

pub mod encode;
mod fault;
pub mod limits;
mod nearest;

pub use fault::Fault;
