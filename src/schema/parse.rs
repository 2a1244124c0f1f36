//! From the text of a schema to one that Millpond takes, with every reason why not.
//!
//! Avro ignores what it does not understand of logical types: a decimal without a precision is bytes, and a misspelt
//! `timestamp-milis` is a bare number. Here that is refused, for its author meant something by it.

use apache_avro::Schema;
use serde_json::{Map, Value};

use super::{
    encode::Encoder,
    limits::{self, MAX_SCHEMA_BYTES},
};
use crate::domain::nearest;

/// The logical types and what each can be kept in.
const LOGICAL_TYPES: [(&str, &[&str]); 13] = [
    ("decimal", &["bytes", "fixed"]),
    ("big-decimal", &["bytes"]),
    ("uuid", &["string", "fixed"]),
    ("date", &["int"]),
    ("time-millis", &["int"]),
    ("time-micros", &["long"]),
    ("timestamp-millis", &["long"]),
    ("timestamp-micros", &["long"]),
    ("timestamp-nanos", &["long"]),
    ("local-timestamp-millis", &["long"]),
    ("local-timestamp-micros", &["long"]),
    ("local-timestamp-nanos", &["long"]),
    ("duration", &["fixed"]),
];

/// A schema as it is registered, and parsed.
#[derive(Debug, Clone)]
pub struct ParsedSchema {
    /// The JSON without white space, otherwise as it was given.
    pub text: String,
    /// A record within the limits.
    pub schema: Schema,
}

/// Parses and checks the schema of a record type of ours. Each fault says what to do.
pub fn parse(text: &str) -> Result<ParsedSchema, Vec<String>> {
    let parsed = parse_registered(text)?;
    let faults = limits::column_faults(&parsed.schema);
    if faults.is_empty() { Ok(parsed) } else { Err(faults) }
}

/// As [`parse`], for what is registered already, by whichever program: its fields need not be able to be columns.
pub fn parse_registered(text: &str) -> Result<ParsedSchema, Vec<String>> {
    if text.len() > MAX_SCHEMA_BYTES {
        return Err(vec![format!(
            "the schema has {} bytes, above the limit of {MAX_SCHEMA_BYTES}: split the record",
            text.len()
        )]);
    }
    let json: Value = serde_json::from_str(text).map_err(|error| vec![format!("not JSON: {error}")])?;
    let mut faults = Vec::new();
    lint(&json, &mut Vec::new(), &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    let schema = Schema::parse(&json).map_err(|error| vec![format!("not an Avro schema: {error}")])?;
    let faults = limits::faults(&schema);
    if !faults.is_empty() {
        return Err(faults);
    }
    // Finds defaults that do not fit their type.
    Encoder::compile(&schema, &[]).map_err(|error| vec![error.to_string()])?;
    Ok(ParsedSchema { text: json.to_string(), schema })
}

/// The full name of the record that a schema describes; none where it describes none.
///
/// Looks at nothing else, so that it names what others have registered too, which need not be what [`parse`] takes.
pub fn record_name(text: &str) -> Option<String> {
    let json: Value = serde_json::from_str(text).ok()?;
    let mut schema = &json;
    // A type in the place of a type's name stands for itself.
    while schema.get("type")?.is_object() {
        schema = &schema["type"];
    }
    if schema["type"] != "record" {
        return None;
    }
    let name = schema.get("name")?.as_str()?;
    let namespace = schema.get("namespace").and_then(Value::as_str).filter(|namespace| !namespace.is_empty());
    Some(match namespace {
        Some(namespace) if !name.contains('.') => format!("{namespace}.{name}"),
        // A dot ahead of the name says that it is in no namespace.
        _ => name.strip_prefix('.').unwrap_or(name).to_owned(),
    })
}

/// Looks at each type of the schema for logical types that Avro would ignore, and at names of fields, which Avro refuses
/// without saying what it takes. serde_json bounds the depth.
fn lint<'a>(schema: &'a Value, path: &mut Vec<&'a str>, faults: &mut Vec<String>) {
    match schema {
        Value::Array(branches) => branches.iter().for_each(|branch| lint(branch, path, faults)),
        Value::Object(object) => {
            if let Some(fault) = logical_fault(object) {
                faults.push(format!("{}: {fault}", place(path)));
            }
            for field in object.get("fields").and_then(Value::as_array).into_iter().flatten() {
                let Some(field) = field.as_object() else { continue };
                let name = field.get("name").and_then(Value::as_str);
                path.push(name.unwrap_or("?"));
                if name.is_some_and(|name| !is_name(name)) {
                    faults.push(format!(
                        "{}: a name has letters (a-z, A-Z), digits and underscores, and does not begin with a digit: \
                         rename it",
                        place(path)
                    ));
                }
                if let Some(logical) = field.get("logicalType") {
                    let base = field.get("type").unwrap_or(&Value::Null);
                    faults.push(format!(
                        "{}: \"logicalType\" beside the type of a field is ignored: \
                         write \"type\": {{\"type\": {base}, \"logicalType\": {logical}}}",
                        place(path)
                    ));
                }
                field.get("type").iter().for_each(|inner| lint(inner, path, faults));
                path.pop();
            }
            for key in ["type", "items", "values"] {
                object.get(key).iter().for_each(|inner| lint(inner, path, faults));
            }
        }
        _ => {}
    }
}

/// Whether Avro takes it as the name of a field, or as the simple name of a record.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn place(path: &[&str]) -> String {
    if path.is_empty() { "the schema".to_owned() } else { format!("field `{}`", path.join(".")) }
}

fn logical_fault(object: &Map<String, Value>) -> Option<String> {
    let logical = match object.get("logicalType")? {
        Value::String(name) => name.as_str(),
        other => return Some(format!("\"logicalType\" is {other}, which is not a name")),
    };
    let Some((_, bases)) = LOGICAL_TYPES.iter().find(|(name, _)| *name == logical) else {
        let meant = nearest(logical, LOGICAL_TYPES.iter().map(|(name, _)| *name));
        return Some(match meant {
            Some(name) => format!("there is no logical type `{logical}`: did you mean `{name}`?"),
            None => format!("there is no logical type `{logical}`: leave it out to have the plain type"),
        });
    };
    let base = object.get("type").and_then(Value::as_str).unwrap_or("another type");
    if !bases.contains(&base) {
        return Some(format!("{logical} is kept in {}, not in {base}", bases.join(" or ")));
    }
    let number = |key: &str| {
        object.get(key).map(|value| value.as_u64().ok_or_else(|| format!("its {key} is {value}, not a number")))
    };
    let size = number("size").transpose();
    match (logical, base) {
        ("uuid", "fixed") if size != Ok(Some(16)) => Some("a uuid takes a fixed of size 16".to_owned()),
        ("duration", _) if size != Ok(Some(12)) => Some("a duration takes a fixed of size 12".to_owned()),
        ("decimal", _) => match (number("precision").transpose(), number("scale").transpose()) {
            (Err(fault), _) | (_, Err(fault)) => Some(fault),
            (Ok(None | Some(0)), _) => Some("a decimal needs a precision of at least 1".to_owned()),
            (Ok(Some(precision)), Ok(Some(scale))) if scale > precision => Some(format!(
                "a decimal of {precision} digits cannot have {scale} of them after the point: raise the precision"
            )),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Transcoder;

    fn faults(fields: &str) -> Vec<String> {
        parse(&format!(r#"{{"type":"record","name":"Flight","fields":[{fields}]}}"#)).err().unwrap_or_default()
    }

    #[test]
    fn logical_types_that_avro_would_ignore_are_refused() {
        for (field, expected) in [
            (
                r#"{"name":"x","type":"long","logicalType":"timestamp-micros"}"#,
                r#"field `x`: "logicalType" beside the type of a field is ignored: write "type": {"type": "long", "logicalType": "timestamp-micros"}"#,
            ),
            (
                r#"{"name":"x","type":{"type":"long","logicalType":"timestamp-milis"}}"#,
                "field `x`: there is no logical type `timestamp-milis`: did you mean `timestamp-millis`?",
            ),
            (
                r#"{"name":"x","type":["null",{"type":"int","logicalType":"timestamp-millis"}]}"#,
                "field `x`: timestamp-millis is kept in long, not in int",
            ),
            (
                r#"{"name":"x","type":{"type":"bytes","logicalType":"decimal"}}"#,
                "field `x`: a decimal needs a precision of at least 1",
            ),
            (
                r#"{"name":"x","type":{"type":"array","items":{"type":"bytes","logicalType":"decimal","precision":2,"scale":3}}}"#,
                "field `x`: a decimal of 2 digits cannot have 3 of them after the point: raise the precision",
            ),
            (
                r#"{"name":"x","type":{"type":"fixed","name":"F","size":15,"logicalType":"uuid"}}"#,
                "field `x`: a uuid takes a fixed of size 16",
            ),
            (
                r#"{"name":"x","type":{"type":"record","name":"P","fields":[{"name":"y","type":{"type":"string","logicalType":"money"}}]}}"#,
                "field `x.y`: there is no logical type `money`: leave it out to have the plain type",
            ),
        ] {
            assert_eq!(faults(field), [expected]);
        }
        assert_eq!(
            faults(r#"{"name":"x","type":{"type":"bytes","logicalType":"decimal","precision":8,"scale":2}}"#),
            [""; 0]
        );
    }

    #[test]
    fn record_is_named_as_the_parser_names_it() {
        for (names, expected) in [
            (r#""name":"Flight""#, "Flight"),
            (r#""name":"Flight","namespace":"""#, "Flight"),
            (r#""name":"Flight","namespace":"a.b""#, "a.b.Flight"),
            (r#""name":"c.Flight","namespace":"a.b""#, "c.Flight"),
            (r#""name":".Flight","namespace":"a.b""#, "Flight"),
        ] {
            let text = format!(r#"{{"type":"record",{names},"fields":[]}}"#);
            for text in [format!(r#"{{"type":{text}}}"#), text] {
                let parsed = parse(&text).unwrap().schema;
                assert_eq!(parsed.name().unwrap().fullname(None), expected, "{text}");
                assert_eq!(record_name(&text).as_deref(), Some(expected), "{text}");
            }
        }
    }

    #[test]
    fn record_is_named_also_where_its_schema_would_not_be_taken() {
        let field = r#"{"name":"x","type":{"type":"long","logicalType":"money"}}"#;
        let text = format!(r#"{{"type":"record","name":"a.B","fields":[{field}]}}"#);
        assert!(parse(&text).is_err());
        assert_eq!(record_name(&text).as_deref(), Some("a.B"));
    }

    #[test]
    fn what_is_no_record_has_no_name() {
        for text in [
            "",
            "{",
            "5",
            "\"string\"",
            r#"[{"type":"record","name":"F","fields":[]}]"#,
            r#"{"type":"enum","name":"F","symbols":["A"]}"#,
            r#"{"type":{"name":"F"}}"#,
            r#"{"type":"record","fields":[]}"#,
            r#"{"type":"object","title":"F"}"#,
            "message F {}",
        ] {
            assert_eq!(record_name(text), None, "{text}");
        }
    }

    #[test]
    fn schemas_are_kept_as_written_but_compact() {
        let text = "{\n \"type\": \"record\", \"name\": \"Flight\",\n \"fields\": [], \"doc\": \"a b\" }";
        assert_eq!(parse(text).unwrap().text, r#"{"type":"record","name":"Flight","fields":[],"doc":"a b"}"#);
    }

    #[test]
    fn names_that_avro_does_not_take_are_told_with_what_it_takes() {
        for name in ["a b", "1a", "", "é", "a.b", "a-b", "_", "_1", "Z9"] {
            let text = format!(r#"{{"type":"record","name":"F","fields":[{{"name":"{name}","type":"int"}}]}}"#);
            assert_eq!(Schema::parse_str(&text).is_ok(), is_name(name), "{name}");
        }
        assert_eq!(
            faults(r#"{"name":"a b","type":"int"},{"name":"1","type":"int"}"#),
            ["a b", "1"].map(|name| format!(
                "field `{name}`: a name has letters (a-z, A-Z), digits and underscores, and does not begin with a digit: rename it"
            ))
        );
    }

    #[test]
    fn field_that_cannot_be_a_column_is_refused_in_ours_and_passed_over_in_a_writers() {
        let schema = |fields: &str| format!(r#"{{"type":"record","name":"F","fields":[{fields}]}}"#);
        let writer = schema(r#"{"name":"x","type":"int"},{"name":"xmin","type":"int"},{"name":"_x","type":"int"}"#);
        let faults = parse(&writer).unwrap_err();
        assert!(faults.len() == 2 && faults[0].starts_with("field `xmin`: every table"), "{faults:?}");

        let writer = parse_registered(&writer).unwrap().schema;
        let reader = parse(&schema(r#"{"name":"x","type":"int"}"#)).unwrap().schema;
        Transcoder::compile_columns(&writer, &reader, &|_| true).unwrap();
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        for (text, expected) in [
            ("{", "not JSON: EOF"),
            ("5", "not an Avro schema: "),
            ("\"string\"", "the schema is not a record"),
            (r#"{"type":"record","name":"F","fields":[{"name":"x","type":"strnig"}]}"#, "not an Avro schema: "),
            (
                r#"{"type":"record","name":"F","fields":[{"name":"x","type":"string","default":"\u0000"}]}"#,
                "the default of field `x`",
            ),
        ] {
            let faults = parse(text).unwrap_err();
            assert!(faults.len() == 1 && faults[0].starts_with(expected), "{faults:?}");
        }
        assert!(parse(&" ".repeat(MAX_SCHEMA_BYTES + 1)).unwrap_err()[0].contains("above the limit"));
    }
}
