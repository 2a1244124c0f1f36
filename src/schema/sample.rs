//! A first schema from sample events, for a person to look over.
//!
//! A guess, written so that the samples encode with it: text that is a timestamp, date or UUID in every sample becomes
//! that type, numbers become `long` or `double`, and what is null or missing in one sample is nullable with null as
//! default.

use serde_json::{Map, Value, json};

use super::{
    encode,
    limits::{MAX_FAULTS, MAX_SCHEMA_DEPTH},
    parse,
    repeated::repeated_fields,
};

/// What the samples show of one value.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    /// Nothing yet: null, or the items of an empty array.
    Unknown,
    Boolean,
    Long,
    Double,
    Text,
    Timestamp,
    LocalTimestamp,
    Date,
    Uuid,
    Array(Box<Field>),
    Record(Vec<(String, Field)>),
}

#[derive(Debug, Clone, PartialEq)]
struct Field {
    shape: Shape,
    nullable: bool,
}

/// The text of a schema, indented, for a record of that full name; `json` is one event, or an array of several.
///
/// # Errors
/// What in the sample cannot be part of a schema.
pub fn infer(full_name: &str, json: &[u8]) -> Result<String, Vec<String>> {
    let not_json = |error: serde_json::Error| vec![format!("the sample is not JSON: {error}")];
    let repeated = repeated_fields(json).map_err(not_json)?;
    if !repeated.is_empty() {
        let fault = |pointer: &String| format!("{pointer}: the field is given twice: give it once");
        return Err(repeated.iter().take(MAX_FAULTS).map(fault).collect());
    }
    let value: Value = serde_json::from_slice(json).map_err(not_json)?;
    let samples = match value {
        Value::Array(samples) => samples,
        single => vec![single],
    };
    let mut shape = Shape::Unknown;
    for (at, sample) in samples.iter().enumerate() {
        if !sample.is_object() {
            return Err(vec![format!("sample {at} is not a JSON object: an event is an object with named fields")]);
        }
        shape = field_of(sample, 0).and_then(|field| merged_shape(shape, field.shape)).map_err(|fault| vec![fault])?;
    }
    let Shape::Record(fields) = shape else { return Err(vec!["there is no event in the sample".to_owned()]) };
    let simple = full_name.rsplit('.').next().unwrap_or(full_name);
    let schema = record(full_name, simple, &fields);
    let text = serde_json::to_string_pretty(&schema).expect("invariant: a JSON value can be written");
    parse(&text).map(|_| text)
}

fn field_of(value: &Value, depth: usize) -> Result<Field, String> {
    // Room for the array or map around a type.
    if depth > MAX_SCHEMA_DEPTH / 2 {
        return Err(format!("the sample is nested deeper than {} levels: flatten it", MAX_SCHEMA_DEPTH / 2));
    }
    let shape = match value {
        Value::Null => return Ok(Field { shape: Shape::Unknown, nullable: true }),
        Value::Bool(_) => Shape::Boolean,
        Value::Number(number) if number.is_i64() => Shape::Long,
        Value::Number(_) => Shape::Double,
        Value::String(text) => text_shape(text),
        Value::Array(items) => {
            let mut field = Field { shape: Shape::Unknown, nullable: false };
            for item in items {
                field = merged(field, field_of(item, depth + 1)?)?;
            }
            Shape::Array(Box::new(field))
        }
        Value::Object(entries) => {
            let mut fields = Vec::with_capacity(entries.len());
            for (name, value) in entries {
                fields.push((name.clone(), field_of(value, depth + 1).map_err(|fault| format!("`{name}`: {fault}"))?));
            }
            Shape::Record(fields)
        }
    };
    Ok(Field { shape, nullable: false })
}

fn text_shape(text: &str) -> Shape {
    match encode::guess_text(text) {
        encode::TextKind::Timestamp => Shape::Timestamp,
        encode::TextKind::LocalTimestamp => Shape::LocalTimestamp,
        encode::TextKind::Date => Shape::Date,
        encode::TextKind::Uuid => Shape::Uuid,
        encode::TextKind::Other => Shape::Text,
    }
}

fn merged(a: Field, b: Field) -> Result<Field, String> {
    Ok(Field { nullable: a.nullable || b.nullable, shape: merged_shape(a.shape, b.shape)? })
}

fn merged_shape(a: Shape, b: Shape) -> Result<Shape, String> {
    use Shape::{Array, Date, Double, LocalTimestamp, Long, Record, Text, Timestamp, Unknown, Uuid};
    Ok(match (a, b) {
        (Unknown, other) | (other, Unknown) => other,
        (a, b) if a == b => a,
        (Long, Double) | (Double, Long) => Double,
        (Text | Timestamp | LocalTimestamp | Date | Uuid, Text | Timestamp | LocalTimestamp | Date | Uuid) => Text,
        (Array(a), Array(b)) => Array(Box::new(merged(*a, *b)?)),
        (Record(a), Record(b)) => Record(merged_fields(a, b)?),
        _ => return Err("its values are of different kinds: make them one kind, or use a field for each".to_owned()),
    })
}

/// All fields of both; one that only one of them has is nullable.
fn merged_fields(a: Vec<(String, Field)>, mut b: Vec<(String, Field)>) -> Result<Vec<(String, Field)>, String> {
    let mut fields = Vec::with_capacity(a.len());
    for (name, mut field) in a {
        match b.iter().position(|(other, _)| *other == name) {
            Some(at) => field = merged(field, b.remove(at).1).map_err(|fault| format!("`{name}`: {fault}"))?,
            None => field.nullable = true,
        }
        fields.push((name, field));
    }
    fields.extend(b.into_iter().map(|(name, field)| (name, Field { nullable: true, ..field })));
    Ok(fields)
}

fn record(full_name: &str, prefix: &str, fields: &[(String, Field)]) -> Value {
    let fields: Vec<Value> = fields
        .iter()
        .map(|(name, field)| {
            let mut entry = Map::new();
            entry.insert("name".to_owned(), name.as_str().into());
            entry.insert("type".to_owned(), field_type(field, &format!("{prefix}{}", capitalised(name))));
            if field.nullable {
                entry.insert("default".to_owned(), Value::Null);
            }
            Value::Object(entry)
        })
        .collect();
    json!({ "type": "record", "name": full_name, "fields": fields })
}

/// `name` is for a record that is met on the way: the path to it, so that no two are the same.
fn field_type(field: &Field, name: &str) -> Value {
    let logical = |base: &str, logical: &str| json!({ "type": base, "logicalType": logical });
    let plain = match &field.shape {
        Shape::Unknown | Shape::Text => "string".into(),
        Shape::Boolean => "boolean".into(),
        Shape::Long => "long".into(),
        Shape::Double => "double".into(),
        Shape::Timestamp => logical("long", "timestamp-micros"),
        Shape::LocalTimestamp => logical("long", "local-timestamp-micros"),
        Shape::Date => logical("int", "date"),
        Shape::Uuid => logical("string", "uuid"),
        Shape::Array(items) => json!({ "type": "array", "items": field_type(items, &format!("{name}Item")) }),
        Shape::Record(fields) => record(name, name, fields),
    };
    if field.nullable { json!(["null", plain]) } else { plain }
}

/// `flight_number` as `FlightNumber`.
fn capitalised(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let mut chars = word.chars();
        chars.next().map(|first| first.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default()
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::encode::{Captured, Encoder};

    fn encodes(schema: &str, json: &str) {
        let encoder = Encoder::compile(&parse(schema).unwrap().schema, &[]).unwrap();
        encoder.encode(json.as_bytes(), &mut Vec::new(), &mut Captured::new()).unwrap();
    }

    #[test]
    fn a_sample_gives_a_schema_that_takes_it() {
        let sample = r#"{"id":"01941f29-7c00-7aaa-8000-0123456789ab","at":"2013-01-01T10:15:00Z","local":"2013-01-01T10:15:00","day":"2013-01-01",
            "carrier":"UA","seats":180,"fare":12.5,"late":false,"note":null,"legs":[{"from":"JFK","stops":[]},{"from":"LGA","gate":1}],"pilot":{"first_name":"Ada"}}"#;
        let schema = infer("flights.ScheduleFlight", sample.as_bytes()).unwrap();
        let expected = json!({"type":"record","name":"flights.ScheduleFlight","fields":[
            {"name":"id","type":{"type":"string","logicalType":"uuid"}},
            {"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
            {"name":"local","type":{"type":"long","logicalType":"local-timestamp-micros"}},
            {"name":"day","type":{"type":"int","logicalType":"date"}},
            {"name":"carrier","type":"string"},
            {"name":"seats","type":"long"},
            {"name":"fare","type":"double"},
            {"name":"late","type":"boolean"},
            {"name":"note","type":["null","string"],"default":null},
            {"name":"legs","type":{"type":"array","items":{"type":"record","name":"ScheduleFlightLegsItem","fields":[
                {"name":"from","type":"string"},
                {"name":"stops","type":["null",{"type":"array","items":"string"}],"default":null},
                {"name":"gate","type":["null","long"],"default":null}]}}},
            {"name":"pilot","type":{"type":"record","name":"ScheduleFlightPilot","fields":[{"name":"first_name","type":"string"}]}}]});
        assert_eq!(serde_json::from_str::<Value>(&schema).unwrap(), expected);
        encodes(&schema, sample);
    }

    #[test]
    fn several_samples_are_put_together() {
        let schema = infer("A", br#"[{"x":1,"y":"2013-01-01"},{"x":1.5,"y":"soon","z":true}]"#).unwrap();
        encodes(&schema, r#"{"x":7,"y":"later"}"#);
        encodes(&schema, r#"{"x":7.5,"y":"","z":null}"#);
    }

    #[test]
    fn what_cannot_be_a_schema_is_told() {
        for (sample, expected) in [
            ("{", "the sample is not JSON: "),
            ("5", "sample 0 is not a JSON object"),
            ("[]", "there is no event in the sample"),
            (r#"{"x":{"y":[1,"a"]}}"#, "`x`: `y`: its values are of different kinds"),
            (r#"{"a":1,"a":"x"}"#, "/a: the field is given twice: give it once"),
            (r#"[{"x":1},{"x":{"y":1,"y":2}}]"#, "/1/x/y: the field is given twice"),
            (r#"{"legs":[{"flight number":1}]}"#, "field `legs.flight number`: a name has letters (a-z, A-Z), digits"),
            (r#"{"_seq":1}"#, "field `_seq`: "),
        ] {
            let faults = infer("A", sample.as_bytes()).unwrap_err();
            assert!(faults[0].starts_with(expected), "{faults:?}");
        }
    }
}
