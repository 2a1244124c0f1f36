//! Defaults of fields, in the JSON that schemas use for them: bytes as code points, logical types as their plain type. Not
//! the plain JSON that producers send.

use apache_avro::{
    Schema,
    schema::{DecimalSchema, FixedSchema, InnerDecimalSchema, RecordField, RecordSchema, UnionSchema, UuidSchema},
};
use serde_json::{Map, Value};

use super::wire;
use crate::schema::{limits::MAX_SCHEMA_DEPTH, named_types::NamedTypes};

/// The encoding of a field that a document leaves out: that of its default, or of null if it may be null; none when the
/// field has to be there.
pub(in crate::schema) fn of_field(names: &NamedTypes<'_>, field: &RecordField) -> Result<Option<Vec<u8>>, String> {
    Writer { names, depth: 0 }.missing(field)
}

/// Appends defaults to a buffer.
#[derive(Clone, Copy)]
struct Writer<'a> {
    names: &'a NamedTypes<'a>,
    /// Of the value: a record that contains itself could have itself as the default.
    depth: usize,
}

impl Writer<'_> {
    fn missing(self, field: &RecordField) -> Result<Option<Vec<u8>>, String> {
        let mut out = Vec::new();
        match (&field.default, &field.schema) {
            (Some(value), schema) => self.value(schema, value, &mut out)?,
            (None, Schema::Null) => {}
            (None, Schema::Union(union)) => match union.variants().iter().position(|v| matches!(v, Schema::Null)) {
                Some(at) => wire::length(&mut out, at),
                None => return Ok(None),
            },
            (None, _) => return Ok(None),
        }
        Ok(Some(out))
    }

    /// Appends the encoded default, or says why it does not fit its type.
    fn value(mut self, schema: &Schema, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_SCHEMA_DEPTH {
            return Err(format!("nested deeper than {MAX_SCHEMA_DEPTH} levels"));
        }
        let mismatch = |expected: &str| format!("{value} is not {expected}");
        match (self.names.follow(schema)?, value) {
            (Schema::Null, Value::Null) => {}
            (Schema::Boolean, Value::Bool(yes)) => out.push(u8::from(*yes)),
            (Schema::Int | Schema::Date | Schema::TimeMillis, _) => {
                let number = value.as_i64().filter(|number| i32::try_from(*number).is_ok());
                wire::long(out, number.ok_or_else(|| mismatch("a 32-bit integer"))?);
            }
            (
                Schema::Long
                | Schema::TimeMicros
                | Schema::TimestampMillis
                | Schema::TimestampMicros
                | Schema::TimestampNanos
                | Schema::LocalTimestampMillis
                | Schema::LocalTimestampMicros
                | Schema::LocalTimestampNanos,
                _,
            ) => wire::long(out, value.as_i64().ok_or_else(|| mismatch("a 64-bit integer"))?),
            (Schema::Float, _) => {
                out.extend_from_slice(&(number(value).ok_or_else(|| mismatch("a number"))? as f32).to_le_bytes());
            }
            (Schema::Double, _) => {
                out.extend_from_slice(&number(value).ok_or_else(|| mismatch("a number"))?.to_le_bytes());
            }
            (Schema::Array(array), Value::Array(items)) => {
                if !items.is_empty() {
                    wire::length(out, items.len());
                    items.iter().try_for_each(|item| self.value(&array.items, item, out))?;
                }
                out.push(0);
            }
            (Schema::Map(map), Value::Object(entries)) => {
                if !entries.is_empty() {
                    wire::length(out, entries.len());
                    for (key, entry) in entries {
                        wire::bytes(out, key.as_bytes());
                        self.value(&map.types, entry, out)?;
                    }
                }
                out.push(0);
            }
            (Schema::Record(record), Value::Object(entries)) => self.record(record, entries, out)?,
            (Schema::Union(union), _) => self.union(union, value, out)?,
            (schema, Value::String(text)) => self::text(schema, text, out)?,
            _ => return Err(mismatch("of the field's type")),
        }
        Ok(())
    }

    fn record(self, record: &RecordSchema, entries: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), String> {
        for field in &record.fields {
            let written = match entries.get(&field.name) {
                Some(value) => self.value(&field.schema, value, out),
                None => match self.missing(field) {
                    Ok(Some(bytes)) => {
                        out.extend_from_slice(&bytes);
                        Ok(())
                    }
                    Ok(None) => return Err(format!("`{}` is missing", field.name)),
                    Err(reason) => Err(reason),
                },
            };
            written.map_err(|reason| format!("`{}`: {reason}", field.name))?;
        }
        Ok(())
    }

    /// The first branch that takes the value.
    fn union(self, union: &UnionSchema, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
        let start = out.len();
        for (at, branch) in union.variants().iter().enumerate() {
            wire::length(out, at);
            if self.value(branch, value, out).is_ok() {
                return Ok(());
            }
            out.truncate(start);
        }
        Err(format!("{value} is not of any of the union's types"))
    }
}

/// Numbers, and the words that Avro's libraries write where JSON has none.
fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        None => value.as_f64(),
        Some("NaN") => Some(f64::NAN),
        Some("INF" | "Infinity") => Some(f64::INFINITY),
        Some("-INF" | "-Infinity") => Some(f64::NEG_INFINITY),
        Some(_) => None,
    }
}

/// The types that defaults give as text.
fn text(schema: &Schema, text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let mismatch = |expected: &str| Err(format!("{} is not {expected}", Value::from(text)));
    match schema {
        Schema::String if text.contains('\0') => return mismatch("a string without \\u0000"),
        Schema::String => wire::bytes(out, text.as_bytes()),
        Schema::Uuid(UuidSchema::String) => match uuid::Uuid::try_parse(text) {
            Ok(id) => wire::bytes(out, id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).as_bytes()),
            Err(_) => return mismatch("a UUID"),
        },
        Schema::Bytes
        | Schema::BigDecimal
        | Schema::Uuid(UuidSchema::Bytes)
        | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Bytes, .. }) => {
            wire::bytes(out, &code_points(text)?);
        }
        Schema::Fixed(FixedSchema { size, .. })
        | Schema::Duration(FixedSchema { size, .. })
        | Schema::Uuid(UuidSchema::Fixed(FixedSchema { size, .. }))
        | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Fixed(FixedSchema { size, .. }), .. }) => {
            fixed(text, *size, out)?;
        }
        Schema::Enum(symbols) => match symbols.symbols.iter().position(|symbol| symbol == text) {
            Some(at) => wire::length(out, at),
            None => return mismatch("one of the enum's symbols"),
        },
        _ => return mismatch("of the field's type"),
    }
    Ok(())
}

fn fixed(text: &str, size: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let bytes = code_points(text)?;
    if bytes.len() != size {
        return Err(format!("{} bytes are not the {size} of the fixed type", bytes.len()));
    }
    out.extend_from_slice(&bytes);
    Ok(())
}

/// Avro writes bytes in JSON as characters up to `\u00ff`.
fn code_points(text: &str) -> Result<Vec<u8>, String> {
    text.chars()
        .map(|c| u8::try_from(u32::from(c)).map_err(|_| format!("{c:?} is above \\u00ff, so it is not a byte")))
        .collect()
}
