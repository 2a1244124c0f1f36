//! Defaults of fields, in the JSON that schemas use for them: bytes as code points, logical types as their plain type.

use serde_json::Value;

use super::plan::{Branch, Node, Record, UuidForm};
use super::wire;

/// Appends the encoded default, or says why it does not fit its type.
pub(super) fn encode(node: &Node, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let mismatch = |expected: &str| Err(format!("{value} is not {expected}"));
    match (node, value) {
        (Node::Null, Value::Null) => {}
        (Node::Boolean, Value::Bool(yes)) => out.push(u8::from(*yes)),
        (Node::Int | Node::Date | Node::TimeMillis, _) => match value.as_i64().filter(|n| i32::try_from(*n).is_ok()) {
            Some(number) => wire::long(out, number),
            None => return mismatch("a 32-bit integer"),
        },
        (Node::Long | Node::TimeMicros | Node::Timestamp(_) | Node::LocalTimestamp(_), _) => match value.as_i64() {
            Some(number) => wire::long(out, number),
            None => return mismatch("a 64-bit integer"),
        },
        (Node::Float, _) => match value.as_f64() {
            Some(number) => out.extend_from_slice(&(number as f32).to_le_bytes()),
            None => return mismatch("a number"),
        },
        (Node::Double, _) => match value.as_f64() {
            Some(number) => out.extend_from_slice(&number.to_le_bytes()),
            None => return mismatch("a number"),
        },
        (Node::Array(items), Value::Array(values)) => {
            if !values.is_empty() {
                wire::length(out, values.len());
                values.iter().try_for_each(|value| encode(items, value, out))?;
            }
            out.push(0);
        }
        (Node::Map(types), Value::Object(entries)) => {
            if !entries.is_empty() {
                wire::length(out, entries.len());
                for (key, value) in entries {
                    wire::bytes(out, key.as_bytes());
                    encode(types, value, out)?;
                }
            }
            out.push(0);
        }
        (Node::Record(nested), Value::Object(entries)) => record(nested, entries, out)?,
        (Node::Nullable(nullable), Value::Null) => out.push(nullable.null),
        (Node::Nullable(nullable), _) => {
            out.push(nullable.other);
            encode(&nullable.branch.node, value, out)?;
        }
        (Node::Union(branches), _) => return union(branches, value, out),
        (_, Value::String(text)) => return self::text(node, text, out),
        _ => return mismatch("of the field's type"),
    }
    Ok(())
}

/// The types that defaults give as text.
fn text(node: &Node, text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let mismatch = |expected: &str| Err(format!("{} is not {expected}", Value::from(text)));
    match node {
        Node::String if text.contains('\0') => return mismatch("a string without \\u0000"),
        Node::String => wire::bytes(out, text.as_bytes()),
        Node::Uuid(UuidForm::Text) => match uuid::Uuid::try_parse(text) {
            Ok(id) => wire::bytes(out, id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).as_bytes()),
            Err(_) => return mismatch("a UUID"),
        },
        Node::Bytes | Node::BigDecimal | Node::Uuid(UuidForm::Bytes) => wire::bytes(out, &code_points(text)?),
        Node::Fixed(size) => fixed(text, *size, out)?,
        Node::Uuid(UuidForm::Fixed) => fixed(text, 16, out)?,
        Node::Duration => fixed(text, 12, out)?,
        Node::Decimal(decimal) => match decimal.fixed {
            Some(size) => fixed(text, size, out)?,
            None => wire::bytes(out, &code_points(text)?),
        },
        Node::Enum(symbols) => match symbols.iter().position(|symbol| **symbol == *text) {
            Some(at) => wire::length(out, at),
            None => return mismatch("one of the enum's symbols"),
        },
        _ => return mismatch("of the field's type"),
    }
    Ok(())
}

/// The first branch that takes the value.
fn union(branches: &[Branch], value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    for (at, branch) in branches.iter().enumerate() {
        wire::length(out, at);
        if encode(&branch.node, value, out).is_ok() {
            return Ok(());
        }
        out.truncate(start);
    }
    Err(format!("{value} is not of any of the union's types"))
}

fn record(record: &Record, entries: &serde_json::Map<String, Value>, out: &mut Vec<u8>) -> Result<(), String> {
    for field in &record.fields {
        match (entries.get(field.name()), &field.missing) {
            (Some(value), _) => {
                encode(&field.node, value, out).map_err(|reason| format!("`{}`: {reason}", field.name()))?
            }
            (None, Some(bytes)) => out.extend_from_slice(bytes),
            (None, None) => return Err(format!("`{}` is missing", field.name())),
        }
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
