//! Avro: everything that knows the format. The only importer of `apache_avro`.

mod fault;

pub use fault::Fault;
