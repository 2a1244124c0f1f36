//! Random schemas with random values: what we write, apache_avro reads; what we accept, serde_json accepts.

use apache_avro::{Decimal, Duration, types::Value};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

/// A type, a value of it as a client writes it, and the same as apache_avro decodes it.
#[derive(Debug, Clone)]
struct Case {
    schema: Json,
    json: Json,
    value: Value,
}

fn case(schema: impl Into<Json>, json: impl Into<Json>, value: Value) -> Case {
    Case { schema: schema.into(), json: json.into(), value }
}

fn logical(base: &str, logical: &str) -> Json {
    json!({"type": base, "logicalType": logical})
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{0,12}", any::<String>()].prop_map(|text| text.replace('\0', "0"))
}

fn name() -> impl Strategy<Value = String> {
    "[A-Z][a-z]{3}[0-9a-z_]{12}"
}

fn number() -> impl Strategy<Value = Case> {
    prop_oneof![
        any::<i32>().prop_map(|n| case("int", n, Value::Int(n))),
        prop_oneof![any::<i64>(), -70..70_i64].prop_map(|n| case("long", n, Value::Long(n))),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| case("double", n, Value::Double(n))),
        any::<f32>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| case("float", n, Value::Float(n))),
        (any::<i64>(), 0..6_usize).prop_map(|(n, scale)| {
            let mut shown = String::new();
            crate::schema::encode::decimal::write_text(i128::from(n), scale, &mut shown);
            let bytes: Vec<u8> = n.to_be_bytes().to_vec();
            let schema = json!({"type": "bytes", "logicalType": "decimal", "precision": 25, "scale": scale});
            case(schema, shown, Value::Decimal(Decimal::from(bytes)))
        }),
    ]
}

fn time() -> impl Strategy<Value = Case> {
    let at = || {
        (-62_135_596_800_000_000_i64..253_402_300_800_000_000)
            .prop_map(|n| chrono::DateTime::from_timestamp_micros(n).unwrap())
    };
    let of_day = || (0..86_400_u32, 0..1_000_000_u32);
    let clock = |s, us| chrono::NaiveTime::from_num_seconds_from_midnight_opt(s, us * 1000).unwrap().to_string();
    prop_oneof![
        at().prop_map(|t| case(
            logical("long", "timestamp-micros"),
            t.to_rfc3339(),
            Value::TimestampMicros(t.timestamp_micros())
        )),
        at().prop_map(|t| case(
            logical("long", "timestamp-millis"),
            t.to_rfc3339(),
            Value::TimestampMillis(t.timestamp_millis())
        )),
        at().prop_map(|t| {
            let local = t.naive_utc().format("%Y-%m-%dT%H:%M:%S%.f").to_string();
            case(logical("long", "local-timestamp-micros"), local, Value::LocalTimestampMicros(t.timestamp_micros()))
        }),
        (-719_162..2_932_897_i32).prop_map(|days| {
            case(
                logical("int", "date"),
                chrono::NaiveDate::from_epoch_days(days).unwrap().to_string(),
                Value::Date(days),
            )
        }),
        of_day().prop_map(move |(s, us)| {
            case(
                logical("long", "time-micros"),
                clock(s, us),
                Value::TimeMicros(i64::from(s) * 1_000_000 + i64::from(us)),
            )
        }),
        of_day().prop_map(move |(s, us)| {
            case(logical("int", "time-millis"), clock(s, us), Value::TimeMillis((s * 1000 + us / 1000) as i32))
        }),
    ]
}

fn leaf() -> impl Strategy<Value = Case> {
    prop_oneof![
        number(),
        time(),
        text().prop_map(|text| case("string", text.clone(), Value::String(text))),
        any::<bool>().prop_map(|yes| case("boolean", yes, Value::Boolean(yes))),
        Just(case("null", Json::Null, Value::Null)),
        any::<u128>().prop_map(|n| {
            let id = uuid::Uuid::from_u128(n);
            case(logical("string", "uuid"), id.to_string().to_uppercase(), Value::Uuid(id))
        }),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| {
            use base64::Engine as _;
            case("bytes", base64::engine::general_purpose::STANDARD.encode(&bytes), Value::Bytes(bytes))
        }),
        (name(), 0..3_usize).prop_map(|(name, at)| {
            let symbols = ["RED", "GREEN", "BLUE"];
            case(
                json!({"type": "enum", "name": name, "symbols": symbols}),
                symbols[at],
                Value::Enum(at as u32, symbols[at].into()),
            )
        }),
        (name(), any::<[u16; 3]>()).prop_map(|(name, [months, days, seconds])| {
            let schema = json!({"type": "fixed", "name": name, "size": 12, "logicalType": "duration"});
            let mut bytes = [0; 12];
            let parts = [u32::from(months), u32::from(days), u32::from(seconds) * 1000];
            bytes.chunks_mut(4).zip(parts).for_each(|(chunk, part)| chunk.copy_from_slice(&part.to_le_bytes()));
            case(schema, format!("P{months}M{days}DT{seconds}S"), Value::Duration(Duration::from(bytes)))
        }),
    ]
}

fn any_case() -> impl Strategy<Value = Case> {
    leaf().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            (inner.clone(), any::<bool>()).prop_map(|(of, null)| nullable(of, null)),
            (inner.clone(), 0..70_usize).prop_map(|(of, count)| {
                let schema = json!({"type": "array", "items": of.schema});
                case(schema, vec![of.json; count], Value::Array(vec![of.value; count]))
            }),
            (inner.clone(), prop::collection::btree_set(text(), 0..5)).prop_map(|(of, keys)| {
                let json: serde_json::Map<String, Json> =
                    keys.iter().map(|key| (key.clone(), of.json.clone())).collect();
                let value = keys.into_iter().map(|key| (key, of.value.clone())).collect();
                case(json!({"type": "map", "values": of.schema}), json, Value::Map(value))
            }),
            (name(), prop::collection::vec(inner, 0..6), any::<u64>())
                .prop_map(|(name, of, seed)| record_of(&name, of, seed)),
        ]
    })
}

fn nullable(of: Case, null: bool) -> Case {
    if matches!(of.value, Value::Null | Value::Union(..)) {
        return of;
    }
    let schema = json!(["null", of.schema]);
    match null {
        true => case(schema, Json::Null, Value::Union(0, Box::new(Value::Null))),
        false => case(schema, of.json, Value::Union(1, Box::new(of.value))),
    }
}

/// The document has its fields in an order drawn from `seed`, sometimes without those that are null.
fn record_of(name: &str, of: Vec<Case>, seed: u64) -> Case {
    let fields: Vec<Json> =
        of.iter().enumerate().map(|(at, case)| json!({"name": format!("f{at}"), "type": case.schema})).collect();
    let mut entries: Vec<(String, Json)> =
        of.iter().enumerate().map(|(at, case)| (format!("f{at}"), case.json.clone())).collect();
    if seed.is_multiple_of(5) {
        entries.retain(|(_, json)| !json.is_null());
    }
    if !seed.is_multiple_of(3) && !entries.is_empty() {
        let turn = seed as usize % entries.len();
        entries.rotate_left(turn);
        if seed.is_multiple_of(2) {
            entries.reverse();
        }
    }
    let value = of.into_iter().enumerate().map(|(at, case)| (format!("f{at}"), case.value)).collect();
    let json: serde_json::Map<String, Json> = entries.into_iter().collect();
    case(json!({"type": "record", "name": name, "fields": fields}), json, Value::Record(value))
}

fn any_record() -> impl Strategy<Value = Case> {
    (prop::collection::vec(any_case(), 0..8), any::<u64>()).prop_map(|(of, seed)| record_of("Top", of, seed))
}

proptest! {
    #[test]
    fn apache_avro_reads_what_we_write(case in any_record(), pretty in any::<bool>()) {
        // Two types of one name are no schema.
        let Ok(schema) = Schema::parse(&case.schema) else { return Ok(()) };
        let json = if pretty { serde_json::to_string_pretty(&case.json) } else { serde_json::to_string(&case.json) }.unwrap();
        let bytes = encode(&schema, &json).map_err(|faults| TestCaseError::fail(format!("{faults:?}")))?;
        prop_assert_eq!(decode(&schema, &bytes), case.value);
    }

    #[test]
    fn no_change_to_a_document_makes_the_encoder_panic(
        case in any_record(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let Ok(schema) = Schema::parse(&case.schema) else { return Ok(()) };
        let mut json = serde_json::to_vec(&case.json).unwrap();
        for (at, byte) in changes {
            let at = at.index(json.len());
            match byte % 4 {
                0 => json[at] = byte,
                1 => json[at] = b"\"\\{}[],:0-enu"[usize::from(byte) % 13],
                2 => json.truncate(at.max(1)),
                _ => json.insert(at, b"\"\\{}[],:0-enu"[usize::from(byte) % 13]),
            }
        }
        let mut out = Vec::new();
        let encoder = Encoder::compile(&schema, &[]).unwrap();
        match encoder.encode(&json, &mut out, &mut Captured::new()) {
            Ok(()) => {
                prop_assert!(serde_json::from_slice::<Json>(&json).is_ok());
                decode(&schema, &out);
            }
            Err(faults) => prop_assert!(!faults.is_empty() && out.is_empty()),
        }
    }

    #[test]
    fn no_bytes_make_the_encoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let encoder = Encoder::compile(&holder(r#"["null","string"]"#), &[]).unwrap();
        let _ = encoder.encode(&bytes, &mut Vec::new(), &mut Captured::new());
    }
}
