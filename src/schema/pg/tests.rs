use apache_avro::{Schema, types::Value};
use proptest::prelude::*;

use super::*;
use crate::schema::{
    Column, PgType,
    testing::{Shape, encoded, model, record_with_value, schema_of},
};

/// The fields of one row, as they are in `out`.
fn fields(mut out: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut fields = Vec::new();
    while let Some((length, rest)) = out.split_first_chunk::<4>() {
        let length = i32::from_be_bytes(*length);
        let (field, rest) = match usize::try_from(length) {
            Ok(length) => (Some(rest[..length].to_vec()), &rest[length..]),
            Err(_) => {
                assert_eq!(length, -1);
                (None, rest)
            }
        };
        fields.push(field);
        out = rest;
    }
    assert!(out.is_empty());
    fields
}

fn transcode(writer: &Schema, reader: &Schema, payload: &[u8]) -> Result<Vec<Option<String>>, Fault> {
    let transcoder = Transcoder::compile(writer, reader).unwrap();
    let mut out = b"before".to_vec();
    let done = transcoder.append(payload, &mut Scratch::default(), &mut out);
    assert!(out.starts_with(b"before"));
    if let Err(fault) = done {
        assert_eq!(out, b"before");
        return Err(fault);
    }
    let fields = fields(&out[6..]);
    let columns = columns_of(reader).unwrap();
    assert_eq!(fields.len(), columns.len());
    let shown =
        |(column, field): (&Column, &Option<Vec<u8>>)| field.as_ref().map(|raw| model::seen(&column.pg_type, raw));
    Ok(columns.iter().zip(&fields).map(shown).collect())
}

fn schema(fields: &str) -> Schema {
    Schema::parse_str(&format!(r#"{{"type":"record","name":"Thing","fields":[{fields}]}}"#)).unwrap()
}

fn one(field_type: &str) -> Schema {
    schema(&format!(r#"{{"name":"f","type":{field_type}}}"#))
}

fn fault_of(field_type: &str, value: Value) -> Fault {
    let schema = one(field_type);
    let payload = encoded(&schema, &Value::Record(vec![("f".into(), value)]));
    transcode(&schema, &schema, &payload).unwrap_err()
}

#[test]
fn what_postgres_would_refuse_is_refused_with_the_field() {
    let day = 86_400_000_000_i64;
    let end_millis = 9_223_371_331_200_000 + 10_957 * day / 1_000;
    let cases = [
        (r#""string""#, Value::String("a\0b".into()), "/f"),
        (r#"{"type":"array","items":"string"}"#, Value::Array(vec![Value::String("\0".into())]), "/f/0"),
        (
            r#"{"type":"map","values":"string"}"#,
            Value::Map([("k/".into(), Value::String("\0".into()))].into()),
            "/f/k~1",
        ),
        (r#"{"type":"map","values":"int"}"#, Value::Map([("\0".into(), Value::Int(1))].into()), "/f"),
        (r#"{"type":"int","logicalType":"date"}"#, Value::Date(i32::MAX), "/f"),
        (r#"{"type":"int","logicalType":"date"}"#, Value::Date(-2_451_546 + 10_957), "/f"),
        (r#"{"type":"int","logicalType":"time-millis"}"#, Value::TimeMillis(-1), "/f"),
        (r#"{"type":"int","logicalType":"time-millis"}"#, Value::TimeMillis(86_400_001), "/f"),
        (r#"{"type":"long","logicalType":"time-micros"}"#, Value::TimeMicros(i64::MAX), "/f"),
        (r#"{"type":"long","logicalType":"timestamp-millis"}"#, Value::TimestampMillis(i64::MAX), "/f"),
        (r#"{"type":"long","logicalType":"timestamp-millis"}"#, Value::TimestampMillis(end_millis), "/f"),
        (r#"{"type":"long","logicalType":"timestamp-micros"}"#, Value::TimestampMicros(-2_440_588 * day - 1), "/f"),
        (r#"{"type":"long","logicalType":"timestamp-micros"}"#, Value::TimestampMicros(i64::MIN), "/f"),
        (r#"{"type":"long","logicalType":"local-timestamp-millis"}"#, Value::LocalTimestampMillis(i64::MIN), "/f"),
        (
            r#"{"type":"bytes","logicalType":"decimal","precision":3,"scale":1}"#,
            Value::Decimal(apache_avro::Decimal::from(1_000_i16.to_be_bytes())),
            "/f",
        ),
        (r#"{"type":"fixed","name":"D","size":12,"logicalType":"duration"}"#, Value::Fixed(12, vec![0xff; 12]), "/f"),
    ];
    for (field_type, value, pointer) in cases {
        assert_eq!(fault_of(field_type, value).pointer, pointer, "{field_type}");
    }
}

#[test]
fn last_day_and_instant_that_postgres_knows_are_taken() {
    let day = 86_400_000_000_i64;
    let end_millis = 9_223_371_331_200_000 + 10_957 * day / 1_000;
    for (field_type, value) in [
        (r#"{"type":"int","logicalType":"date"}"#, Value::Date(2_145_031_948 + 10_957)),
        (r#"{"type":"int","logicalType":"date"}"#, Value::Date(-2_451_545 + 10_957)),
        (r#"{"type":"int","logicalType":"time-millis"}"#, Value::TimeMillis(86_400_000)),
        (r#"{"type":"long","logicalType":"timestamp-micros"}"#, Value::TimestampMicros(-2_440_588 * day)),
        (r#"{"type":"long","logicalType":"timestamp-micros"}"#, Value::TimestampMicros(i64::MAX)),
        (r#"{"type":"long","logicalType":"timestamp-millis"}"#, Value::TimestampMillis(end_millis - 1)),
    ] {
        let schema = one(field_type);
        let payload = encoded(&schema, &Value::Record(vec![("f".into(), value)]));
        let transcoder = Transcoder::compile(&schema, &schema).unwrap();
        transcoder.append(&payload, &mut Scratch::default(), &mut Vec::new()).unwrap();
    }
}

#[test]
fn nanoseconds_are_cut_off_towards_the_past() {
    let schema = one(r#"{"type":"long","logicalType":"timestamp-nanos"}"#);
    for (nanos, micros) in [(1_999, "1"), (-1, "-1"), (-1_000, "-1"), (0, "0")] {
        let payload = encoded(&schema, &Value::Record(vec![("f".into(), Value::TimestampNanos(nanos))]));
        assert_eq!(transcode(&schema, &schema, &payload).unwrap(), [Some(micros.into())]);
    }
}

#[test]
fn bytes_that_do_not_fit_the_schema_are_refused_with_a_hint() {
    let schema = schema(r#"{"name":"a","type":"int"},{"name":"b","type":"string"}"#);
    let fault = transcode(&schema, &schema, &[2, 4, b'x']).unwrap_err();
    assert_eq!((fault.pointer.as_str(), fault.got.as_str()), ("/b", "the end of the record after 1"));
    assert!(fault.hint.is_some());
    let fault = transcode(&schema, &schema, &[2, 2, b'x', 0, 0]).unwrap_err();
    assert_eq!((fault.pointer.as_str(), fault.got.as_str()), ("", "2 more bytes"));
    let fault = transcode(&schema, &schema, &[2, 2, 0xff]).unwrap_err();
    assert_eq!((fault.pointer.as_str(), fault.expected.as_str()), ("/b", "UTF-8 text"));
}

#[test]
fn array_says_whether_nulls_are_in_it() {
    let schema = one(r#"{"type":"array","items":["null","int"]}"#);
    let transcoder = Transcoder::compile(&schema, &schema).unwrap();
    for (payload, dimensions, nulls) in [(&[0_u8] as &[u8], 0, 0), (&[2, 2, 2, 0], 1, 0), (&[2, 0, 2, 2, 2, 0], 1, 1)] {
        let mut out = Vec::new();
        transcoder.append(payload, &mut Scratch::default(), &mut out).unwrap();
        assert_eq!((out[7], out[11]), (dimensions, nulls), "{payload:?}");
    }
}

#[test]
fn entries_of_a_map_take_bytes_even_when_their_values_do_not() {
    let schema = one(r#"{"type":"map","values":"null"}"#);
    let fault = transcode(&schema, &schema, &[20, 0, 0, 0]).unwrap_err();
    assert_eq!(fault.expected, "a block of at most 3 items");
}

#[test]
fn items_without_bytes_do_not_fill_the_memory() {
    let schema = one(r#"{"type":"array","items":"null"}"#);
    let fault = transcode(&schema, &schema, &[0x80, 0x80, 0x80, 0x80, 0x10, 0]).unwrap_err();
    assert_eq!(fault.pointer, "/f");
}

/// Two versions of a record, each readable as the other.
fn versions() -> (Schema, Schema) {
    let first = schema(
        r#"{"name":"id","type":"string"},
           {"name":"count","type":"int"},
           {"name":"note","type":["null","string"],"default":null},
           {"name":"old","type":{"type":"array","items":"long"},"default":[7]}"#,
    );
    let second = schema(
        r#"{"name":"tags","type":{"type":"array","items":"string"},"default":["new"]},
           {"name":"count","type":"int"},
           {"name":"level","type":{"type":"enum","name":"Level","symbols":["LOW","HIGH"]},"default":"HIGH"},
           {"name":"remark","aliases":["note"],"type":["null","string"],"default":null},
           {"name":"id","type":"string"},
           {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"},"default":1000},
           {"name":"more","type":{"type":"map","values":"int"},"default":{"a":1}}"#,
    );
    (first, second)
}

#[test]
fn first_version_is_read_as_the_second() {
    let (first, second) = versions();
    let record = Value::Record(vec![
        ("id".into(), Value::String("x".into())),
        ("count".into(), Value::Int(-3)),
        ("note".into(), Value::Union(1, Box::new(Value::String("n".into())))),
        ("old".into(), Value::Array(vec![Value::Long(1)])),
    ]);
    let row = transcode(&first, &second, &encoded(&first, &record)).unwrap();
    let wanted = [r#"[Some("new")]"#, "-3", "HIGH", "n", "x", "1000000", r#"{"a":1}"#];
    assert_eq!(row, wanted.map(|text| Some(text.to_owned())));
}

#[test]
fn second_version_is_read_as_the_first() {
    let (first, second) = versions();
    let record = Value::Record(vec![
        ("tags".into(), Value::Array(vec![])),
        ("count".into(), Value::Int(5)),
        ("level".into(), Value::Enum(0, "LOW".into())),
        ("remark".into(), Value::Union(0, Box::new(Value::Null))),
        ("id".into(), Value::String("y".into())),
        ("at".into(), Value::TimestampMillis(0)),
        ("more".into(), Value::Map(Default::default())),
    ]);
    let row = transcode(&second, &first, &encoded(&second, &record)).unwrap();
    assert_eq!(row, [Some("y".into()), Some("5".into()), None, Some("[Some(\"7\")]".into())]);
}

#[test]
fn columns_that_are_not_wanted_are_passed_over_whatever_they_hold() {
    let writer = schema(
        r#"{"name":"a","type":"int"},{"name":"b","type":"string"},{"name":"gone","type":"string"},{"name":"c","type":"long"}"#,
    );
    let ordered = r#"{"name":"a","type":"int"},{"name":"new","type":"int","default":7},{"name":"b","type":"string"},
        {"name":"c","type":"long"}"#;
    let shuffled = r#"{"name":"c","type":"long"},{"name":"new","type":"int","default":7},{"name":"b","type":"string"},
        {"name":"last","type":"string","default":"x"},{"name":"a","type":"int"}"#;
    let record = |b: &str| {
        let text = |text: &str| Value::String(text.into());
        let fields = [("a", Value::Int(1)), ("b", text(b)), ("gone", text("\0")), ("c", Value::Long(3))];
        encoded(&writer, &Value::Record(fields.map(|(name, value)| (name.into(), value)).into()))
    };
    for reader in [schema(ordered), schema(shuffled)] {
        let all = columns_of(&reader).unwrap();
        let whole = transcode(&writer, &reader, &record("b")).unwrap();
        for mask in 0..1_usize << all.len() {
            let is_wanted = |name: &str| all.iter().position(|c| c.name == name).is_some_and(|at| mask >> at & 1 == 1);
            let transcoder = Transcoder::compile_columns(&writer, &reader, &is_wanted).unwrap();
            let kept: Vec<Column> = all.iter().filter(|column| is_wanted(&column.name)).cloned().collect();
            let mut out = Vec::new();
            transcoder.append(&record("b"), &mut Scratch::default(), &mut out).unwrap();
            let shown = kept.iter().zip(fields(&out)).map(|(c, raw)| raw.map(|raw| model::seen(&c.pg_type, &raw)));
            let of_whole = all.iter().zip(&whole).filter(|(column, _)| is_wanted(&column.name)).map(|(_, seen)| seen);
            assert!(shown.eq(of_whole.cloned()), "{mask:b}");
            let faulty = transcoder.append(&record("\0"), &mut Scratch::default(), &mut out);
            assert_eq!(faulty.is_err(), is_wanted("b"), "only what is read is judged");
        }
    }
    let newer = schema(r#"{"name":"a","type":"int"},{"name":"b","type":"int"}"#);
    assert!(Transcoder::compile(&writer, &newer).is_err());
    assert!(Transcoder::compile_columns(&writer, &newer, &|name| name == "a").is_ok());
}

#[test]
fn default_that_postgres_would_refuse_is_refused_when_compiled() {
    let writer = schema(r#"{"name":"a","type":"int"}"#);
    let reader = schema(r#"{"name":"t","type":{"type":"int","logicalType":"time-millis"},"default":-1}"#);
    let error = Transcoder::compile(&writer, &reader).unwrap_err();
    assert_eq!(error.pointer, "/t");
}

#[test]
fn record_in_order_is_appended_without_growing_any_buffer() {
    let fields = r#"{"name":"carrier","type":"string"},{"name":"flight","type":"int"},
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}},
        {"name":"tags","type":{"type":"array","items":"string"}},
        {"name":"detail","type":{"type":"map","values":"double"}}"#;
    let shuffled = r#"{"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"carrier","type":"string"}"#;
    let writer = schema(fields);
    let record = Value::Record(vec![
        ("carrier".into(), Value::String("UA".into())),
        ("flight".into(), Value::Int(1545)),
        ("at".into(), Value::TimestampMillis(1_357_035_300_000)),
        ("price".into(), Value::Decimal(apache_avro::Decimal::from([0x30, 0x39]))),
        ("tags".into(), Value::Array(vec![Value::String("a".into())])),
        ("detail".into(), Value::Map([("x".into(), Value::Double(0.1))].into())),
    ]);
    let payload = encoded(&writer, &record);
    for reader in [schema(fields), schema(shuffled)] {
        let transcoder = Transcoder::compile(&writer, &reader).unwrap();
        let (mut scratch, mut out) = (Scratch::default(), Vec::new());
        transcoder.append(&payload, &mut scratch, &mut out).unwrap();
        let buffers = |scratch: &Scratch, out: &Vec<u8>| {
            (scratch.bytes.as_ptr(), scratch.bytes.capacity(), scratch.ends.as_ptr(), out.as_ptr(), out.capacity())
        };
        let before = buffers(&scratch, &out);
        for _ in 0..100 {
            out.clear();
            transcoder.append(&payload, &mut scratch, &mut out).unwrap();
        }
        assert_eq!(buffers(&scratch, &out), before);
    }
}

/// A shape whose unions have a null branch only, and the reader made of it: fields moved, left out and added.
fn reordered(shape: &Shape, keep: &[bool], seed: usize) -> (Vec<usize>, Schema) {
    let Shape::Record(fields) = shape else { panic!("no record") };
    let mut order: Vec<usize> = (0..fields.len()).filter(|index| keep[*index % keep.len()]).collect();
    if !order.is_empty() {
        let middle = seed % order.len();
        order.rotate_left(middle);
    }
    let all = serde_json::to_value(schema_of(shape)).unwrap();
    let mut kept: Vec<serde_json::Value> = order.iter().map(|index| all["fields"][*index].clone()).collect();
    let added = serde_json::json!({"name": "added", "type": "int", "default": 42});
    kept.insert(seed % (kept.len() + 1), added);
    let reader = serde_json::json!({"type": "record", "name": "T1", "fields": kept});
    order.insert(seed % (order.len() + 1), usize::MAX);
    (order, Schema::parse_str(&reader.to_string()).unwrap())
}

proptest! {
    #[test]
    fn every_record_is_what_the_client_library_reads((shape, value) in record_with_value()) {
        let schema = schema_of(&shape);
        let row = transcode(&schema, &schema, &encoded(&schema, &value)).unwrap();
        let (Shape::Record(shapes), Value::Record(fields)) = (&shape, &value) else { panic!() };
        let columns = columns_of(&schema).unwrap();
        for (index, cell) in row.iter().enumerate() {
            let wanted = model::wanted(&shapes[index], &fields[index].1, &columns[index].pg_type);
            prop_assert_eq!(cell, &wanted, "{:?}", shapes[index]);
            prop_assert!(columns[index].nullable || cell.is_some());
        }
    }

    #[test]
    fn fields_moved_left_out_and_added_are_found(
        (shape, value) in record_with_value(), keep in prop::collection::vec(any::<bool>(), 8), seed in 0..8_usize
    ) {
        let writer = schema_of(&shape);
        let (order, reader) = reordered(&shape, &keep, seed);
        let row = transcode(&writer, &reader, &encoded(&writer, &value)).unwrap();
        let (Shape::Record(shapes), Value::Record(fields)) = (&shape, &value) else { panic!() };
        let columns = columns_of(&reader).unwrap();
        for ((source, cell), column) in order.iter().zip(&row).zip(&columns) {
            let wanted = match shapes.get(*source) {
                None => Some("42".to_owned()),
                Some(shape) => model::wanted(shape, &fields[*source].1, &column.pg_type),
            };
            prop_assert_eq!(cell, &wanted);
        }
    }

    #[test]
    fn no_bytes_make_the_transcoder_panic(shape in crate::schema::testing::record_shape(), payload: Vec<u8>) {
        let schema = schema_of(&shape);
        let _ = transcode_raw(&schema, &payload);
    }

    #[test]
    fn no_changed_byte_makes_the_transcoder_panic(
        (shape, value) in record_with_value(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index
    ) {
        let schema = schema_of(&shape);
        let mut payload = encoded(&schema, &value);
        if !payload.is_empty() {
            let length = payload.len();
            payload[at.index(length)] = byte;
            let _ = transcode_raw(&schema, &payload);
            let _ = transcode_raw(&schema, &payload[..cut.index(length)]);
        }
    }
}

fn transcode_raw(schema: &Schema, payload: &[u8]) -> Result<(), Fault> {
    let mut out = vec![1, 2, 3];
    let done = Transcoder::compile(schema, schema).unwrap().append(payload, &mut Scratch::default(), &mut out);
    match &done {
        Ok(()) => drop(fields(&out[3..])),
        Err(_) => assert_eq!(out, [1, 2, 3]),
    }
    done
}

#[test]
fn type_of_a_column_is_that_of_the_table() {
    let schema = one(r#"["null",{"type":"array","items":["null",{"type":"int","logicalType":"date"}]}]"#);
    assert_eq!(columns_of(&schema).unwrap()[0].pg_type, PgType::Array(Box::new(PgType::Date)));
    let dates =
        Value::Array(vec![Value::Union(0, Box::new(Value::Null)), Value::Union(1, Box::new(Value::Date(15_706)))]);
    let payload = encoded(&schema, &Value::Record(vec![("f".into(), Value::Union(1, Box::new(dates)))]));
    let row = transcode(&schema, &schema, &payload).unwrap();
    assert_eq!(row, [Some(r#"[None, Some("2013-01-01")]"#.to_owned())]);
}
