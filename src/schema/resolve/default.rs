//! A field's default, from the JSON of the schema to the Avro that the reader would have written.
//!
//! The JSON here is that of the specification's defaults (bytes as characters of one byte each, timestamps as
//! numbers), not the plain JSON that producers send.

use apache_avro::{
    Schema,
    schema::{DecimalSchema, FixedSchema, InnerDecimalSchema, UuidSchema},
};
use serde_json::Value;

use super::{At, MAX_DEPTH, Names, follow};

/// Appends `value` as `at` encodes it; an error says what the schema wants.
pub(super) fn encode<'s>(
    names: &'s Names<'s>,
    at: At<'s>,
    value: &Value,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("the default nests deeper than {MAX_DEPTH} levels"));
    }
    let at = follow(names, at).map_err(|stop| stop.reason)?;
    let wrong = || format!("the default {value} is not {}", super::scalar::kind(at.schema));
    match at.schema {
        Schema::Null => value.as_null().ok_or_else(wrong),
        Schema::Boolean => value.as_bool().map(|flag| out.push(flag.into())).ok_or_else(wrong),
        Schema::Int | Schema::Date | Schema::TimeMillis => {
            let number = value.as_i64().filter(|number| i32::try_from(*number).is_ok());
            number.map(|number| long(number, out)).ok_or_else(wrong)
        }
        Schema::Float => number(value).map(|n| out.extend((n as f32).to_le_bytes())).ok_or_else(wrong),
        Schema::Double => number(value).map(|n| out.extend(n.to_le_bytes())).ok_or_else(wrong),
        Schema::String | Schema::Uuid(UuidSchema::String) => {
            let text = value.as_str().filter(|text| !text.contains('\0')).ok_or_else(wrong)?;
            blob(text.as_bytes(), out);
            Ok(())
        }
        Schema::Bytes
        | Schema::BigDecimal
        | Schema::Uuid(UuidSchema::Bytes)
        | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Bytes, .. }) => {
            blob(&latin1(value).ok_or_else(wrong)?, out);
            Ok(())
        }
        Schema::Fixed(FixedSchema { size, .. })
        | Schema::Duration(FixedSchema { size, .. })
        | Schema::Uuid(UuidSchema::Fixed(FixedSchema { size, .. }))
        | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Fixed(FixedSchema { size, .. }), .. }) => {
            out.extend(latin1(value).filter(|bytes| bytes.len() == *size).ok_or_else(wrong)?);
            Ok(())
        }
        Schema::Enum(symbols) => {
            let index = symbols.symbols.iter().position(|symbol| Some(symbol.as_str()) == value.as_str());
            index.map(|index| long(index as i64, out)).ok_or_else(wrong)
        }
        Schema::Array(_) | Schema::Map(_) | Schema::Record(_) | Schema::Union(_) => {
            encode_nested(names, at, value, out, depth)
        }
        _ => value.as_i64().map(|number| long(number, out)).ok_or_else(wrong), // long and its logical types
    }
}

fn encode_nested<'s>(
    names: &'s Names<'s>,
    at: At<'s>,
    value: &Value,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), String> {
    let wrong = || format!("the default {value} is not {}", super::scalar::kind(at.schema));
    match at.schema {
        Schema::Array(array) => {
            let items = value.as_array().ok_or_else(wrong)?;
            if !items.is_empty() {
                long(items.len() as i64, out);
            }
            for item in items {
                encode(names, at.child(&array.items), item, out, depth + 1)?;
            }
            out.push(0);
            Ok(())
        }
        Schema::Map(map) => {
            let entries = value.as_object().ok_or_else(wrong)?;
            if !entries.is_empty() {
                long(entries.len() as i64, out);
            }
            for (key, entry) in entries {
                blob(key.as_bytes(), out);
                encode(names, at.child(&map.types), entry, out, depth + 1)?;
            }
            out.push(0);
            Ok(())
        }
        Schema::Record(record) => {
            let fields = value.as_object().ok_or_else(wrong)?;
            for field in &record.fields {
                let value = fields.get(&field.name).or(field.default.as_ref()).ok_or_else(wrong)?;
                encode(names, at.child(&field.schema), value, out, depth + 1)?;
            }
            Ok(())
        }
        Schema::Union(union) => {
            let before = out.len();
            for (index, variant) in union.variants().iter().enumerate() {
                long(index as i64, out);
                if encode(names, at.child(variant), value, out, depth + 1).is_ok() {
                    return Ok(());
                }
                out.truncate(before);
            }
            Err(wrong())
        }
        _ => Err(wrong()),
    }
}

fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        None => value.as_f64(),
        Some("NaN") => Some(f64::NAN),
        Some("INF" | "Infinity") => Some(f64::INFINITY),
        Some("-INF" | "-Infinity") => Some(f64::NEG_INFINITY),
        Some(_) => None,
    }
}

fn latin1(value: &Value) -> Option<Vec<u8>> {
    value.as_str()?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

fn blob(bytes: &[u8], out: &mut Vec<u8>) {
    long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

fn long(value: i64, out: &mut Vec<u8>) {
    let mut rest = (value << 1 ^ value >> 63).cast_unsigned();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
