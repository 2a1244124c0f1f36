use apache_avro::{Schema, reader::datum::GenericDatumReader, types::Value};
use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::*;
use crate::schema::{
    JsonDecoder,
    testing::{Shape, encoded, model, scalar_shape, schema_json, schema_of, value_of},
};

fn parse(schema: serde_json::Value) -> Schema {
    Schema::parse_str(&schema.to_string()).unwrap()
}

fn record(fields: serde_json::Value) -> Schema {
    parse(json!({"type": "record", "name": "Thing", "namespace": "a", "fields": fields}))
}

fn read(writer: &Schema, reader: &Schema, value: Value) -> Result<String, String> {
    let decoder = JsonDecoder::compile(writer, reader).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    let done = decoder.append_json(&encoded(writer, &value), &mut out);
    done.map_err(|fault| format!("{}: {} for {}", fault.pointer, fault.got, fault.expected))?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn alias_of_the_reader_finds_the_field_of_the_writer() {
    let writer = record(json!([{"name": "old", "type": "int"}, {"name": "kept", "type": "int"}]));
    let reader = record(json!([
        {"name": "new", "type": "int", "aliases": ["older", "old"]},
        {"name": "kept", "type": "long"}
    ]));
    let value = Value::Record(vec![("old".into(), Value::Int(1)), ("kept".into(), Value::Int(2))]);
    assert_eq!(read(&writer, &reader, value).unwrap(), r#"{"new":1,"kept":2}"#);
}

#[test]
fn field_without_default_must_be_written() {
    let writer = record(json!([{"name": "a", "type": "int"}]));
    let reader = record(json!([{"name": "b", "type": "int"}]));
    assert_eq!(
        compile(&writer, &reader).unwrap_err().to_string(),
        "a.Thing at /b: the writer has no such field and the reader gives no default: add one"
    );
}

#[test]
fn unknown_symbol_becomes_the_default_or_a_fault() {
    let symbols = |symbols: &[&str], default: Option<&str>| {
        let mut schema = json!({"type": "enum", "name": "E", "symbols": symbols});
        if let Some(default) = default {
            schema["default"] = json!(default);
        }
        record(json!([{"name": "e", "type": schema}]))
    };
    let writer = symbols(&["A", "B"], None);
    let value = || Value::Record(vec![("e".into(), Value::Enum(1, "B".into()))]);
    assert_eq!(read(&writer, &symbols(&["B", "A"], None), value()).unwrap(), r#"{"e":"B"}"#);
    assert_eq!(read(&writer, &symbols(&["A", "OTHER"], Some("OTHER")), value()).unwrap(), r#"{"e":"OTHER"}"#);
    assert_eq!(
        read(&writer, &symbols(&["A"], None), value()).unwrap_err(),
        "/e: \"B\" for a symbol that the reader's schema has"
    );
}

#[test]
fn branch_that_the_reader_lacks_is_a_fault_only_when_it_occurs() {
    let writer = record(json!([{"name": "u", "type": ["null", "string", "int"]}]));
    let reader = record(json!([{"name": "u", "type": ["null", "int"]}]));
    let value = |index, value| Value::Record(vec![("u".into(), Value::Union(index, Box::new(value)))]);
    assert_eq!(read(&writer, &reader, value(2, Value::Int(1))).unwrap(), r#"{"u":1}"#);
    assert_eq!(
        read(&writer, &reader, value(1, Value::String("x".into()))).unwrap_err(),
        "/u: string for a branch that the reader's schema has"
    );
}

#[test]
fn branch_of_the_same_type_goes_before_a_promotion() {
    let writer = record(json!([{"name": "u", "type": "int"}]));
    let reader = record(json!([{"name": "u", "type": ["double", "int"]}]));
    assert_eq!(read(&writer, &reader, Value::Record(vec![("u".into(), Value::Int(1))])).unwrap(), r#"{"u":1}"#);
}

#[test]
fn named_branch_is_found_by_name_and_not_by_its_fields() {
    let named = |name: &str| json!({"type": "record", "name": name, "fields": [{"name": "x", "type": "int"}]});
    let union = |names: &[&str]| {
        let branches: Vec<_> = names.iter().map(|name| named(name)).collect();
        record(json!([{"name": "u", "type": branches}]))
    };
    let writer = union(&["b.A", "b.B"]);
    let value = |index| {
        Value::Record(vec![(
            "u".into(),
            Value::Union(index, Box::new(Value::Record(vec![("x".into(), Value::Int(7))]))),
        )])
    };
    assert_eq!(read(&writer, &union(&["c.B"]), value(1)).unwrap(), r#"{"u":{"x":7}}"#);
    assert!(read(&writer, &union(&["c.B"]), value(0)).is_err());
    let mut renamed = named("c.New");
    renamed["aliases"] = json!(["b.A"]);
    let reader = record(json!([{"name": "u", "type": ["null", renamed]}]));
    assert_eq!(read(&writer, &reader, value(0)).unwrap(), r#"{"u":{"x":7}}"#);
}

#[test]
fn logical_types_are_read_as_their_underlying_types_and_back() {
    let long = |logical: &str| json!({"type": "long", "logicalType": logical});
    let int = |logical: &str| json!({"type": "int", "logicalType": logical});
    let bytes =
        |logical: &str, scale: u32| json!({"type": "bytes", "logicalType": logical, "precision": 9, "scale": scale});
    let fits = |writer: &serde_json::Value, reader: &serde_json::Value| {
        compile(&parse(writer.clone()), &parse(reader.clone())).is_ok()
    };
    for (writer, reader) in [
        (long("timestamp-millis"), json!("long")),
        (json!("long"), long("timestamp-micros")),
        (json!("int"), long("timestamp-micros")),
        (long("timestamp-millis"), long("timestamp-nanos")),
        (long("timestamp-nanos"), long("timestamp-millis")),
        (int("time-millis"), long("time-micros")),
        (int("date"), json!("int")),
        (json!("int"), int("date")),
        (bytes("decimal", 2), json!("bytes")),
        (json!("bytes"), bytes("decimal", 2)),
        (json!({"type": "string", "logicalType": "uuid"}), json!("string")),
        (json!("string"), json!({"type": "string", "logicalType": "uuid"})),
    ] {
        assert!(fits(&writer, &reader), "{writer} as {reader}");
    }
    for (writer, reader) in [
        (long("timestamp-millis"), long("local-timestamp-millis")),
        (int("date"), int("time-millis")),
        (int("date"), long("timestamp-millis")),
        (json!("long"), json!("int")),
        (json!("double"), json!("float")),
        (json!("boolean"), json!("int")),
        (json!("long"), int("date")),
        (bytes("decimal", 2), bytes("decimal", 3)),
        (bytes("decimal", 2), bytes("big-decimal", 0)),
        (json!({"type": "fixed", "name": "F", "size": 3}), json!({"type": "fixed", "name": "F", "size": 4})),
    ] {
        assert!(!fits(&writer, &reader), "{writer} as {reader}");
    }
}

#[test]
fn unit_of_the_writer_says_what_a_time_means() {
    let field = |logical: &str| record(json!([{"name": "t", "type": {"type": "long", "logicalType": logical}}]));
    let value = Value::Record(vec![("t".into(), Value::TimestampMillis(1_500))]);
    let shown = read(&field("timestamp-millis"), &field("timestamp-micros"), value).unwrap();
    assert_eq!(shown, r#"{"t":"1970-01-01T00:00:01.500Z"}"#);
}

#[test]
fn defaults_of_every_type_are_read() {
    let writer = record(json!([]));
    let reader = record(json!([
        {"name": "a", "type": "null", "default": null},
        {"name": "b", "type": "boolean", "default": true},
        {"name": "c", "type": "float", "default": 1.5},
        {"name": "d", "type": "double", "default": "NaN"},
        {"name": "e", "type": "bytes", "default": "\u{0}\u{ff}"},
        {"name": "f", "type": {"type": "fixed", "name": "F", "size": 2}, "default": "\u{e9}a"},
        {"name": "g", "type": {"type": "enum", "name": "G", "symbols": ["X", "Y"]}, "default": "Y"},
        {"name": "h", "type": {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "default": "\u{1}"},
        {"name": "i", "type": ["null", "F"], "default": null},
        {"name": "j", "type": ["int", "null"], "default": 3},
        {"name": "k", "type": {"type": "map", "values": "long"}, "default": {"x": 1, "y": 2}},
        {"name": "l", "type": {"type": "record", "name": "L", "fields": [
            {"name": "p", "type": "int"}, {"name": "q", "type": "string", "default": "z"}]}, "default": {"p": 5}},
        {"name": "m", "type": {"type": "array", "items": "L"}, "default": [{"p": 1, "q": "w"}]},
        {"name": "n", "type": {"type": "string", "logicalType": "uuid"}, "default": "6fa459ea-ee8a-4ca4-894e-db77e160355e"}
    ]));
    assert_eq!(
        read(&writer, &reader, Value::Record(vec![])).unwrap(),
        r#"{"a":null,"b":true,"c":1.5,"d":"NaN","e":"AP8=","f":"6WE=","g":"Y","h":"0.01","i":null,"j":3,"k":{"x":1,"y":2},"l":{"p":5,"q":"z"},"m":[{"p":1,"q":"w"}],"n":"6fa459ea-ee8a-4ca4-894e-db77e160355e"}"#
    );
}

#[test]
fn default_of_another_type_is_refused() {
    // `Schema::parse` checks most defaults, but not their range nor U+0000.
    for (field_type, default) in [(json!("string"), json!("\u{0}")), (json!("int"), json!(1_i64 << 40))] {
        let reader = json!({"type": "record", "name": "Thing", "fields": [{"name": "a", "type": field_type, "default": default}]});
        if let Ok(reader) = Schema::parse_str(&reader.to_string()) {
            assert!(compile(&record(json!([])), &reader).is_err(), "{default}");
        }
    }
}

#[test]
fn recursive_and_exploding_schemas_are_refused() {
    let list = parse(json!({"type": "record", "name": "List", "fields": [{"name": "next", "type": ["null", "List"]}]}));
    assert!(compile(&list, &list).unwrap_err().reason.contains("nests deeper than 32 levels"));
    let level = |index: usize| {
        let below = if index == 0 { json!("int") } else { json!(format!("L{}", index - 1)) };
        json!({"name": format!("l{index}"), "type": {"type": "record", "name": format!("L{index}"),
            "fields": [{"name": "a", "type": below}, {"name": "b", "type": below}]}})
    };
    let bomb = record((0..25).map(level).collect());
    assert!(compile(&bomb, &bomb).unwrap_err().reason.contains("more than 65536"));
}

#[test]
fn names_are_found_in_the_namespace_they_are_used_in() {
    let schema = parse(json!({"type": "record", "name": "Outer", "namespace": "x.y", "fields": [
        {"name": "a", "type": {"type": "record", "name": "z.Inner", "fields": [
            {"name": "e", "type": {"type": "enum", "name": "Kind", "symbols": ["K"]}},
            {"name": "again", "type": "Kind"}]}},
        {"name": "b", "type": "z.Kind"}]}));
    assert!(compile(&schema, &schema).is_ok());
}

/// A writer's shape and one of the reader's that it can, or perhaps cannot, be read as.
fn pair() -> BoxedStrategy<(Shape, Shape)> {
    let same = scalar_shape()
        .prop_filter("apache_avro cannot resolve short decimals", |shape| !matches!(shape, Shape::Decimal(..)));
    let leaf = prop_oneof![
        same.prop_map(|shape| (shape.clone(), shape)),
        prop::sample::select(vec![
            (Shape::Int, Shape::Long),
            (Shape::Int, Shape::Float),
            (Shape::Int, Shape::Double),
            (Shape::Long, Shape::Float),
            (Shape::Long, Shape::Double),
            (Shape::Float, Shape::Double),
            (Shape::Text, Shape::Bytes),
            (Shape::Bytes, Shape::Text),
            (Shape::Enum(4), Shape::Enum(2)),
            (Shape::Enum(2), Shape::Enum(4)),
            (Shape::Int, Shape::Union(vec![Shape::Text, Shape::Double, Shape::Long])),
            (Shape::Union(vec![Shape::Int, Shape::Text]), Shape::Union(vec![Shape::Text, Shape::Long])),
        ]),
    ];
    let null = |shape| Shape::Union(vec![Shape::Null, shape]);
    let plain = leaf.clone().prop_filter("a union", |(writer, reader)| {
        !matches!(writer, Shape::Union(_)) && !matches!(reader, Shape::Union(_))
    });
    prop_oneof![
        4 => leaf.clone(),
        1 => plain.clone().prop_map(move |(writer, reader)| (writer, null(reader))),
        1 => plain.clone().prop_map(move |(writer, reader)| (null(writer), reader)),
        1 => plain.prop_map(move |(writer, reader)| (null(writer), null(reader))),
        1 => leaf.clone().prop_map(|(writer, reader)| (Shape::Array(writer.into()), Shape::Array(reader.into()))),
        1 => leaf.prop_map(|(writer, reader)| (Shape::Map(writer.into()), Shape::Map(reader.into()))),
    ]
    .boxed()
}

/// The reader's schema: the fields that are kept, turned round, and one more. Names of types are not the writer's, for
/// the two number them apart, so nothing here is found by them.
fn reader_of(shapes: &[(String, Shape)]) -> Schema {
    let mut next = 100;
    let field = |(name, shape): &(String, Shape)| json!({"name": name, "type": schema_json(shape, &mut next)});
    let mut fields: Vec<serde_json::Value> = shapes.iter().map(field).collect();
    fields.push(json!({"name": "added", "type": "string", "default": "d"}));
    record(json!(fields))
}

proptest! {
    #[test]
    fn resolution_is_that_of_apache_avro(
        (pairs, value) in vec(pair(), 1..6).prop_flat_map(|pairs| {
            let writer = Shape::Record(pairs.iter().map(|(writer, _)| writer.clone()).collect());
            (Just(pairs), value_of(&writer))
        }),
        keep in vec(any::<bool>(), 6),
    ) {
        let writer = schema_of(&Shape::Record(pairs.iter().map(|(writer, _)| writer.clone()).collect()));
        let mut shapes: Vec<(String, Shape)> = pairs.iter().enumerate().filter(|(index, _)| keep[*index])
            .map(|(index, (_, reader))| (format!("f{index}"), reader.clone())).collect();
        shapes.reverse();
        // A fixed or an enum in a union is found by its name; apache_avro goes by its size.
        let by_name = |shape: &Shape| matches!(shape,
            Shape::Fixed(_) | Shape::Enum(_));
        prop_assume!(!shapes.iter().any(|(_, shape)| match shape {
            Shape::Union(branches) => branches.iter().any(by_name),
            _ => false,
        }));
        let reader = reader_of(&shapes);
        let payload = encoded(&writer, &value);
        let theirs = GenericDatumReader::builder(&writer).reader_schema(&reader).build().unwrap()
            .read_value(&mut payload.as_slice());
        let ours = read(&writer, &reader, value);
        match theirs {
            Err(_) => prop_assert!(ours.is_err(), "only we read {ours:?}"),
            Ok(Value::Record(fields)) => {
                let mut wanted = serde_json::Map::new();
                for (name, value) in fields {
                    let shape = shapes.iter().find(|(known, _)| *known == name).map_or(Shape::Text, |(_, shape)| shape.clone());
                    wanted.insert(name, serde_json::from_str(&model::json(&shape, &value)).unwrap());
                }
                let ours: serde_json::Value = serde_json::from_str(&ours.unwrap()).unwrap();
                prop_assert_eq!(ours, serde_json::Value::Object(wanted));
            }
            Ok(other) => panic!("no record: {other:?}"),
        }
    }
}
