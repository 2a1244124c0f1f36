//! Avro: everything that knows the format. The only importer of `apache_avro`.

pub mod compat;
pub mod encode;
mod fault;
pub mod framing;
pub mod limits;
mod nearest;

pub use fault::Fault;
