use apache_avro::{Schema, types::Value};
use proptest::prelude::*;

use super::*;
use crate::schema::testing::{encoded, model, record_shape, record_with_value, schema_of};

fn decode(schema: &Schema, payload: &[u8]) -> Result<String, Fault> {
    let mut out = b"before".to_vec();
    let done = JsonDecoder::compile(schema, schema).unwrap().append_json(payload, &mut out);
    let text = String::from_utf8(out).unwrap();
    let text = text.strip_prefix("before").unwrap();
    assert!(done.is_ok() || text.is_empty());
    done.map(|()| text.to_owned())
}

fn scalar(schema: &str, payload: &[u8]) -> Result<String, Fault> {
    decode(&Schema::parse_str(schema).unwrap(), payload)
}

#[test]
fn what_is_no_number_is_a_string() {
    assert_eq!(scalar(r#""double""#, &f64::NAN.to_le_bytes()).unwrap(), r#""NaN""#);
    assert_eq!(scalar(r#""float""#, &f32::NEG_INFINITY.to_le_bytes()).unwrap(), r#""-Infinity""#);
    assert_eq!(scalar(r#""float""#, &0.1_f32.to_le_bytes()).unwrap(), "0.1");
}

#[test]
fn nul_is_shown_in_json_though_no_column_takes_it() {
    assert_eq!(scalar(r#""string""#, &[2, 0]).unwrap(), r#""\u0000""#);
}

#[test]
fn blocks_with_a_size_are_read() {
    let array = r#"{"type":"array","items":"int"}"#;
    assert_eq!(scalar(array, &[3, 4, 2, 4, 2, 6, 0]).unwrap(), "[1,2,3]");
    assert_eq!(scalar(array, &[3, 40, 2, 4, 0]).unwrap_err().expected, "a block of at most 3 bytes");
}

#[test]
fn big_decimals_are_written_out() {
    let schema = Schema::parse_str(r#"{"type":"bytes","logicalType":"big-decimal"}"#).unwrap();
    let long = format!("{}.{}", "9876543210".repeat(70), "0123456789".repeat(20));
    for text in [
        "0",
        "0.00",
        "-1",
        "10000",
        "123456789.000",
        "0.0000000001",
        "-0.9999",
        "340282366920938463463374607431768211456",
        &long,
    ] {
        let payload = encoded(&schema, &Value::BigDecimal(text.parse().unwrap()));
        assert_eq!(decode(&schema, &payload).unwrap(), format!("\"{text}\""));
    }
    for power in [32, 64, 96, 120] {
        let number = -(1_i128 << power);
        let payload = encoded(&schema, &Value::BigDecimal(number.to_string().parse().unwrap()));
        assert_eq!(decode(&schema, &payload).unwrap(), format!("\"{number}\""));
    }
    // 12 with a scale of -5 is 12 and five zeros.
    assert_eq!(decode(&schema, &[6, 2, 12, 9]).unwrap(), "\"1200000\"");
    let fault = decode(&schema, &[8, 2, 12, 0x80, 0x7d]).unwrap_err();
    assert_eq!(fault.got, "scale 8000");
    let too_long = encoded(&schema, &Value::BigDecimal("9".repeat(1001).parse().unwrap()));
    assert_eq!(decode(&schema, &too_long).unwrap_err().expected, "a decimal of at most 1000 digits");
    let longest = "9".repeat(1000);
    let payload = encoded(&schema, &Value::BigDecimal(longest.parse().unwrap()));
    assert_eq!(decode(&schema, &payload).unwrap(), format!("\"{longest}\""));
}

#[test]
fn short_value_does_not_become_endless_text() {
    // Each item takes one byte, and the default of its other field a megabyte.
    let default = "x".repeat(1 << 20);
    let item =
        |fields: &str| format!(r#"{{"type":"array","items":{{"type":"record","name":"R","fields":[{fields}]}}}}"#);
    let writer = Schema::parse_str(&item(r#"{"name":"a","type":"int"}"#)).unwrap();
    let fields = format!(r#"{{"name":"a","type":"int"}},{{"name":"b","type":"string","default":"{default}"}}"#);
    let reader = Schema::parse_str(&item(&fields)).unwrap();
    let mut payload = vec![0x80, 0x01];
    payload.extend([0; 65]);
    let fault = JsonDecoder::compile(&writer, &reader).unwrap().append_json(&payload, &mut Vec::new()).unwrap_err();
    assert_eq!(fault.got, "a longer one");
}

proptest! {
    #[test]
    fn every_record_is_written_as_the_model_has_it((shape, value) in record_with_value()) {
        let schema = schema_of(&shape);
        let text = decode(&schema, &encoded(&schema, &value)).unwrap();
        prop_assert_eq!(&text, &model::json(&shape, &value));
        prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(shape in record_shape(), payload: Vec<u8>) {
        let _ = decode(&schema_of(&shape), &payload);
    }

    #[test]
    fn no_changed_byte_makes_the_decoder_panic(
        (shape, value) in record_with_value(), at: prop::sample::Index, byte: u8
    ) {
        let schema = schema_of(&shape);
        let mut payload = encoded(&schema, &value);
        if !payload.is_empty() {
            let index = at.index(payload.len());
            payload[index] = byte;
            if let Ok(text) = decode(&schema, &payload) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
            }
        }
    }
}
