//! Holds `docs/avro-types.md` and the code together: the table there is the one written here.

use apache_avro::{Days, Decimal, Duration, Millis, Months, Schema, types::Value};

use super::encoded;
use crate::schema::{JsonDecoder, columns_of};

const BEGIN: &str = "<!-- types: begin -->\n";
const END: &str = "<!-- types: end -->";

/// A type's name in the document, its schema, and a value.
fn rows() -> Vec<(&'static str, &'static str, Value)> {
    let uuid = "6fa459ea-ee8a-4ca4-894e-db77e160355e".parse().unwrap();
    let text = |text: &str| Value::String(text.into());
    let union = |index, value| Value::Union(index, Box::new(value));
    let duration = Duration::new(Months::new(1), Days::new(2), Millis::new(3_500));
    let cents = || Value::Decimal(Decimal::from(1_999_i16.to_be_bytes()));
    vec![
        ("`null`", r#""null""#, Value::Null),
        ("`boolean`", r#""boolean""#, Value::Boolean(true)),
        ("`int`", r#""int""#, Value::Int(-7)),
        ("`long`", r#""long""#, Value::Long(9_007_199_254_740_993)),
        ("`float`", r#""float""#, Value::Float(0.1)),
        ("`double`", r#""double""#, Value::Double(0.1)),
        ("`float`, `double`: not a number, infinite", r#""double""#, Value::Double(f64::NEG_INFINITY)),
        ("`string`", r#""string""#, text("JFK")),
        ("`bytes`", r#""bytes""#, Value::Bytes(vec![0, 255])),
        ("`fixed`", r#"{"type":"fixed","name":"F","size":2}"#, Value::Fixed(2, vec![0, 255])),
        ("`enum`", r#"{"type":"enum","name":"E","symbols":["DELAYED"]}"#, Value::Enum(0, "DELAYED".into())),
        (
            "`decimal` (precision 10, scale 2) over `bytes`",
            r#"{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}"#,
            cents(),
        ),
        (
            "`decimal` (precision 10, scale 2) over `fixed`",
            r#"{"type":"fixed","name":"D","size":5,"logicalType":"decimal","precision":10,"scale":2}"#,
            cents(),
        ),
        (
            "`big-decimal`",
            r#"{"type":"bytes","logicalType":"big-decimal"}"#,
            Value::BigDecimal("1234.5678".parse().unwrap()),
        ),
        ("`uuid` over `string`", r#"{"type":"string","logicalType":"uuid"}"#, Value::Uuid(uuid)),
        ("`uuid` over `fixed`", r#"{"type":"fixed","name":"U","size":16,"logicalType":"uuid"}"#, Value::Uuid(uuid)),
        ("`date`", r#"{"type":"int","logicalType":"date"}"#, Value::Date(15_706)),
        ("`time-millis`", r#"{"type":"int","logicalType":"time-millis"}"#, Value::TimeMillis(36_900_250)),
        ("`time-micros`", r#"{"type":"long","logicalType":"time-micros"}"#, Value::TimeMicros(36_900_000_001)),
        (
            "`timestamp-millis`",
            r#"{"type":"long","logicalType":"timestamp-millis"}"#,
            Value::TimestampMillis(1_357_035_300_000),
        ),
        (
            "`timestamp-micros`",
            r#"{"type":"long","logicalType":"timestamp-micros"}"#,
            Value::TimestampMicros(1_357_035_300_250_000),
        ),
        (
            "`timestamp-nanos`",
            r#"{"type":"long","logicalType":"timestamp-nanos"}"#,
            Value::TimestampNanos(1_357_035_300_000_000_001),
        ),
        (
            "`local-timestamp-millis`",
            r#"{"type":"long","logicalType":"local-timestamp-millis"}"#,
            Value::LocalTimestampMillis(1_357_035_300_000),
        ),
        (
            "`local-timestamp-micros`",
            r#"{"type":"long","logicalType":"local-timestamp-micros"}"#,
            Value::LocalTimestampMicros(1_357_035_300_250_000),
        ),
        (
            "`local-timestamp-nanos`",
            r#"{"type":"long","logicalType":"local-timestamp-nanos"}"#,
            Value::LocalTimestampNanos(1_357_035_300_000_000_001),
        ),
        ("`duration`", r#"{"type":"fixed","name":"P","size":12,"logicalType":"duration"}"#, Value::Duration(duration)),
        ("`array` of scalars", r#"{"type":"array","items":"string"}"#, Value::Array(vec![text("a"), text("b")])),
        (
            "`array` of nullable scalars",
            r#"{"type":"array","items":["null","int"]}"#,
            Value::Array(vec![union(1, Value::Int(1)), union(0, Value::Null)]),
        ),
        (
            "`array` of anything else",
            r#"{"type":"array","items":{"type":"array","items":"int"}}"#,
            Value::Array(vec![Value::Array(vec![Value::Int(1)])]),
        ),
        ("`map`", r#"{"type":"map","values":"long"}"#, Value::Map([("JFK".into(), Value::Long(7))].into())),
        (
            "`record` inside a record",
            r#"{"type":"record","name":"R","fields":[{"name":"gate","type":"string"}]}"#,
            Value::Record(vec![("gate".into(), text("B22"))]),
        ),
        ("union of `null` and one type", r#"["null","long"]"#, union(1, Value::Long(7))),
        ("union of several types", r#"["null","string","long"]"#, union(2, Value::Long(7))),
    ]
}

fn table() -> String {
    let mut table = "| Avro | Postgres column | plain JSON |\n|---|---|---|\n".to_owned();
    for (name, field_type, value) in rows() {
        let schema = format!(r#"{{"type":"record","name":"T","fields":[{{"name":"f","type":{field_type}}}]}}"#);
        let schema = Schema::parse_str(&schema).unwrap();
        let column = columns_of(&schema).unwrap().remove(0);
        let payload = encoded(&schema, &Value::Record(vec![("f".into(), value)]));
        let mut json = Vec::new();
        JsonDecoder::compile(&schema, &schema).unwrap().append_json(&payload, &mut json).unwrap();
        let json = String::from_utf8(json).unwrap();
        let json = &json[r#"{"f":"#.len()..json.len() - 1];
        let nullable = if column.nullable { "" } else { " not null" };
        table += &format!("| {name} | `{}{nullable}` | `{json}` |\n", column.pg_type.sql());
    }
    table
}

#[test]
fn types_in_the_document_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/avro-types.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (_, rest) = document.split_once(BEGIN).expect("no begin of the table");
    let (written, _) = rest.split_once(END).expect("no end of the table");
    assert_eq!(written, table(), "put this into docs/avro-types.md:\n\n{}", table());
}
