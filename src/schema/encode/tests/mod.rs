//! Tests of the encoder as a whole.

mod gallery;
mod meaning;
mod round_trip;

use apache_avro::{Schema, reader::datum::GenericDatumReader, types::Value};

use super::{Captured, Encoder};
use crate::schema::Fault;

/// A record `test.Event` with these fields.
fn record(fields: &str) -> Schema {
    let text = format!(r#"{{"type":"record","name":"Event","namespace":"test","fields":[{fields}]}}"#);
    Schema::parse_str(&text).unwrap()
}

/// A record with the one field `x` of that type.
fn holder(x: &str) -> Schema {
    record(&format!(r#"{{"name":"x","type":{x}}}"#))
}

fn encode(schema: &Schema, json: &str) -> Result<Vec<u8>, Vec<Fault>> {
    let mut out = b"before".to_vec();
    let result = Encoder::compile(schema, &[]).unwrap().encode(json.as_bytes(), &mut out, &mut Captured::new());
    assert!(out.starts_with(b"before"));
    match result {
        Ok(()) => Ok(out.split_off(6)),
        Err(faults) => {
            assert_eq!(out, b"before", "a refused document leaves nothing behind");
            assert!(!faults.is_empty());
            Err(faults)
        }
    }
}

/// What apache_avro makes of our bytes; all of them must be used.
fn decode(schema: &Schema, bytes: &[u8]) -> Value {
    let mut rest = bytes;
    let value = GenericDatumReader::builder(schema).build().unwrap().read_value(&mut rest).unwrap();
    assert!(rest.is_empty(), "{} bytes are left over", rest.len());
    value
}

/// The one field `x` of the document, decoded.
fn x(schema: &Schema, json: &str) -> Value {
    match decode(schema, &encode(schema, json).unwrap_or_else(|faults| panic!("{json}: {faults:?}"))) {
        Value::Record(mut fields) => fields.remove(0).1,
        other => panic!("{other:?}"),
    }
}

/// The faults as texts.
fn faults(schema: &Schema, json: &str) -> Vec<String> {
    encode(schema, json).expect_err(json).iter().map(Fault::to_string).collect()
}
