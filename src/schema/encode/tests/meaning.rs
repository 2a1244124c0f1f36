//! What JSON means for each type: orders of fields, defaults, unions, captured texts.

use apache_avro::types::Value;

use super::*;
use crate::schema::encode::Error;

#[test]
fn fields_in_any_order_give_the_same_bytes() {
    let schema = record(
        r#"{"name":"a","type":"int"},{"name":"b","type":{"type":"record","name":"B","fields":[
            {"name":"c","type":"string"},{"name":"d","type":["null","int"]}]}},{"name":"e","type":"string","default":"z"}"#,
    );
    let expected = encode(&schema, r#"{"a":1,"b":{"c":"x","d":2},"e":"y"}"#).unwrap();
    for json in [
        r#"{"e":"y","b":{"d":2,"c":"x"},"a":1}"#,
        r#"{"b":{"d":2,"c":"x"},"e":"y","a":1}"#,
        r#"{"e":"y","a":1,"b":{"c":"x","d":2}}"#,
        " {\n \"b\" : { \"c\" : \"x\" , \"d\" : 2 } , \"a\" : 1 , \"e\" : \"y\" } ",
        r#"{"\u0061":1,"b":{"\u0063":"x","d":2},"e":"\u0079"}"#,
    ] {
        assert_eq!(encode(&schema, json).as_ref(), Ok(&expected), "{json}");
    }
}

#[test]
fn a_field_taken_for_missing_may_still_come() {
    let schema = record(
        r#"{"name":"a","type":["null","int"]},{"name":"b","type":{"type":"record","name":"B","fields":[
            {"name":"c","type":"string","default":"x"},{"name":"d","type":["null","int"]}]}},{"name":"e","type":"string"}"#,
    );
    let expected = encode(&schema, r#"{"a":1,"b":{"c":"y","d":2},"e":"z"}"#).unwrap();
    for json in [r#"{"b":{"d":2,"c":"y"},"e":"z","a":1}"#, r#"{"b":{"d":2,"c":"y"},"a":1,"e":"z"}"#] {
        assert_eq!(encode(&schema, json).as_ref(), Ok(&expected), "{json}");
    }
    let mixed = record(
        r#"{"name":"a","type":["null","int"]},{"name":"b","type":"int"},{"name":"c","type":"int"},{"name":"d","type":"int"}"#,
    );
    assert_eq!(encode(&mixed, r#"{"b":2,"d":4,"a":1,"c":3}"#), encode(&mixed, r#"{"a":1,"b":2,"c":3,"d":4}"#));
    assert_eq!(
        faults(&schema, r#"{"b":{"d":"2","c":7},"e":"z","a":true,"b":{}}"#),
        [
            "/a: expected a 32-bit integer or null, got true",
            "/b/c: expected a string, got number 7 (put it in quotes)",
            "/b/d: expected a 32-bit integer or null, got string \"2\" (write the number without quotes)",
            "/b: expected each field once, got field \"b\" again",
        ]
    );
}

#[test]
fn missing_fields_take_their_default_or_null() {
    let schema = record(
        r#"{"name":"a","type":"string","default":"none"},{"name":"b","type":["null","int"]},{"name":"c","type":["int","null"],"default":7},
           {"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":4,"scale":2},"default":"\u0001\u00ff"},
           {"name":"e","type":{"type":"array","items":"int"},"default":[1,2]},{"name":"f","type":["string","null","long"]},
           {"name":"g","type":{"type":"record","name":"G","fields":[{"name":"h","type":"int"},{"name":"i","type":"int","default":3}]},"default":{"h":2}},
           {"name":"j","type":{"type":"long","logicalType":"timestamp-micros"},"default":0},
           {"name":"k","type":{"type":"map","values":"double"},"default":{"x":1.5}},
           {"name":"l","type":"G","default":{"h":-1,"i":4}},{"name":"m","type":"double","default":"Infinity"}"#,
    );
    let Value::Record(fields) = decode(&schema, &encode(&schema, "{}").unwrap()) else { panic!() };
    let values: Vec<Value> = fields.into_iter().map(|(_, value)| value).collect();
    assert_eq!(
        values,
        [
            Value::String("none".into()),
            Value::Union(0, Box::new(Value::Null)),
            Value::Union(0, Box::new(Value::Int(7))),
            Value::Decimal(vec![1, 0xFF].into()),
            Value::Array(vec![Value::Int(1), Value::Int(2)]),
            Value::Union(1, Box::new(Value::Null)),
            Value::Record(vec![("h".into(), Value::Int(2)), ("i".into(), Value::Int(3))]),
            Value::TimestampMicros(0),
            Value::Map([("x".to_owned(), Value::Double(1.5))].into()),
            Value::Record(vec![("h".into(), Value::Int(-1)), ("i".into(), Value::Int(4))]),
            Value::Double(f64::INFINITY),
        ]
    );
}

#[test]
fn unions_take_the_first_branch_that_fits() {
    let schema = holder(
        r#"["null","int",{"type":"long","logicalType":"timestamp-millis"},"string","double",{"type":"array","items":"int"},
            {"type":"record","name":"A","fields":[{"name":"a","type":"int"}]},{"type":"record","name":"B","fields":[{"name":"a","type":"string"}]}]"#,
    );
    for (json, branch) in [
        ("null", 0),
        ("1", 1),
        ("\"1970-01-01T00:00:00Z\"", 2),
        ("\"later\"", 3),
        ("4000000000", 4),
        ("1.5", 4),
        ("[1]", 5),
        (r#"{"a":1}"#, 6),
        (r#"{"a":"1"}"#, 7),
    ] {
        match x(&schema, &format!(r#"{{"x":{json}}}"#)) {
            Value::Union(at, _) => assert_eq!(at, branch, "{json}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_union_behind_its_turn_is_written_in_its_place() {
    let schema = record(
        r#"{"name":"x","type":["string",{"type":"record","name":"A","fields":[{"name":"p","type":"int"},{"name":"q","type":"int"}]},
            {"type":"record","name":"B","fields":[{"name":"p","type":"int"},{"name":"q","type":"string"}]}]},{"name":"y","type":"int"}"#,
    );
    let expected = encode(&schema, r#"{"x":{"p":1,"q":"2"},"y":3}"#).unwrap();
    assert_eq!(encode(&schema, r#"{"y":3,"x":{"q":"2","p":1}}"#), Ok(expected));
}

#[test]
fn numbers_keep_to_their_range() {
    for (ty, json, value) in [
        ("\"int\"", "-2147483648", Value::Int(i32::MIN)),
        ("\"int\"", "-0", Value::Int(0)),
        ("\"long\"", "9223372036854775807", Value::Long(i64::MAX)),
        ("\"long\"", "-9223372036854775808", Value::Long(i64::MIN)),
        ("\"long\"", "999999999999999999", Value::Long(999_999_999_999_999_999)),
        ("\"double\"", "1e308", Value::Double(1e308)),
        ("\"double\"", "1e-400", Value::Double(0.0)),
        ("\"double\"", "\"-Infinity\"", Value::Double(f64::NEG_INFINITY)),
        ("\"float\"", "0.1", Value::Float(0.1)),
        ("\"float\"", "\"Infinity\"", Value::Float(f32::INFINITY)),
    ] {
        assert_eq!(x(&holder(ty), &format!(r#"{{"x":{json}}}"#)), value, "{ty} {json}");
    }
    for (ty, json) in [
        ("\"int\"", "2147483648"),
        ("\"long\"", "9223372036854775808"),
        ("\"long\"", "-9223372036854775809"),
        ("\"long\"", "1e3"),
        ("\"double\"", "1e309"),
        ("\"float\"", "1e39"),
    ] {
        assert!(encode(&holder(ty), &format!(r#"{{"x":{json}}}"#)).is_err(), "{ty} {json}");
    }
    assert!(matches!(x(&holder("\"double\""), r#"{"x":"NaN"}"#), Value::Double(number) if number.is_nan()));
}

#[test]
fn long_arrays_and_maps_are_counted_right() {
    for count in [0, 1, 63, 64, 8191, 8192, 20_000] {
        let items: Vec<String> = (0..count).map(|n| n.to_string()).collect();
        let array = x(&holder(r#"{"type":"array","items":"long"}"#), &format!(r#"{{"x":[{}]}}"#, items.join(",")));
        assert_eq!(array, Value::Array((0..count).map(Value::Long).collect()));
        let entries: Vec<String> = (0..count).map(|n| format!(r#""k{n}":{n}"#)).collect();
        let map = x(&holder(r#"{"type":"map","values":"long"}"#), &format!(r#"{{"x":{{{}}}}}"#, entries.join(",")));
        assert_eq!(map, Value::Map((0..count).map(|n| (format!("k{n}"), Value::Long(n))).collect()));
    }
}

#[test]
fn types_used_by_name_are_written_out() {
    let schema = record(
        r#"{"name":"from","type":{"type":"enum","name":"Airport","aliases":["Field"],"symbols":["JFK","LGA"]}},{"name":"to","type":"Airport"},
           {"name":"id","type":{"type":"fixed","name":"Id","size":16,"logicalType":"uuid"}},{"name":"other","type":["null","test.Id"]}"#,
    );
    let json = r#"{"from":"LGA","to":"JFK","id":"01941F29-7C00-7AAA-8000-0123456789AB","other":"01941f29-7c00-7aaa-8000-0123456789ab"}"#;
    let bytes = encode(&schema, json).unwrap();
    assert_eq!(bytes.len(), 1 + 1 + 16 + 1 + 16);
    assert_eq!(bytes[2..18], bytes[19..]);
}

#[test]
fn durations_are_twelve_bytes() {
    let schema = holder(r#"{"type":"fixed","name":"Took","size":12,"logicalType":"duration"}"#);
    assert_eq!(encode(&schema, r#"{"x":"P1M2DT0.003S"}"#).unwrap(), [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
}

#[test]
fn decimals_are_kept_as_apache_avro_reads_them() {
    let fixed = holder(r#"{"type":"fixed","name":"Fare","size":4,"logicalType":"decimal","precision":8,"scale":2}"#);
    assert_eq!(encode(&fixed, r#"{"x":"-1.29"}"#).unwrap(), [0xFF, 0xFF, 0xFF, 0x7F]);
    assert_eq!(encode(&fixed, r#"{"x":3}"#).unwrap(), [0, 0, 1, 0x2C]);
    let open = holder(r#"{"type":"bytes","logicalType":"big-decimal"}"#);
    for text in ["12.50", "-0.001", "123456789012345678901234567890123456789012345"] {
        match x(&open, &format!(r#"{{"x":"{text}"}}"#)) {
            Value::BigDecimal(number) => assert_eq!(number.to_plain_string(), text),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn captured_texts_are_the_same_however_they_were_written() {
    let schema = record(
        r#"{"name":"s","type":"string"},{"name":"n","type":["null","long"]},{"name":"u","type":{"type":"string","logicalType":"uuid"}},
           {"name":"t","type":{"type":"long","logicalType":"timestamp-micros"}},{"name":"d","type":{"type":"int","logicalType":"date"}},
           {"name":"p","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},
           {"name":"b","type":"boolean"},{"name":"c","type":{"type":"int","logicalType":"time-millis"}},{"name":"z","type":"string","default":"end"}"#,
    );
    let names: Vec<String> = ["t", "s", "n", "u", "d", "p", "e", "b", "c", "z", "s"].map(str::to_owned).to_vec();
    let encoder = Encoder::compile(&schema, &names).unwrap();
    let mut captured = Captured::new();
    for (json, number) in [
        (
            r#"{"s":"é\n","n":-5,"u":"01941F29-7C00-7AAA-8000-0123456789AB","t":"2013-01-01T11:15:00.5+01:00","d":"2013-01-31","p":"-0.5","e":"B","b":true,"c":"10:15"}"#,
            Some("-5"),
        ),
        (
            r#"{"c":"10:15:00.0001","b":true,"e":"B","p":"-00.500","d":"2013-01-31","t":"2013-01-01T10:15:00.500Z","u":"01941f29-7c00-7aaa-8000-0123456789ab","s":"\u00e9\u000a"}"#,
            None,
        ),
    ] {
        encoder.encode(json.as_bytes(), &mut b"header".to_vec(), &mut captured).unwrap();
        let texts: Vec<Option<&str>> = (0..names.len()).map(|index| captured.get(index)).collect();
        let expected = [
            Some("2013-01-01T10:15:00.500000Z"),
            Some("é\n"),
            number,
            Some("01941f29-7c00-7aaa-8000-0123456789ab"),
            Some("2013-01-31"),
            Some("-0.50"),
            Some("B"),
            Some("true"),
            Some("10:15:00"),
            Some("end"),
            Some("é\n"),
        ];
        assert_eq!(texts, expected, "{json}");
    }
    assert_eq!(captured.get(names.len()), None);
    encoder.encode(b"{}", &mut Vec::new(), &mut captured).unwrap_err();
    assert_eq!(captured.get(0), None);
}

#[test]
fn fields_that_cannot_be_captured_are_refused() {
    let schema = record(r#"{"name":"carrier","type":"string"},{"name":"weight","type":"double"}"#);
    let error = |field: &str| Encoder::compile(&schema, &[field.to_owned()]).unwrap_err();
    assert_eq!(error("carier").to_string(), "test.Event has no field `carier`: did you mean `carrier`?");
    assert!(matches!(error("weight"), Error::NoText { .. }));
}

#[test]
fn defaults_that_do_not_fit_are_refused_with_the_field() {
    let schema = record(r#"{"name":"x","type":"string","default":"a\u0000"}"#);
    assert_eq!(
        Encoder::compile(&schema, &[]).unwrap_err().to_string(),
        "the default of field `x` of test.Event does not fit its type: \"a\\u0000\" is not a string without \\u0000"
    );
}
