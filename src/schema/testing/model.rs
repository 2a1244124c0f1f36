//! What a value should look like, written the slow and obvious way.

use apache_avro::types::Value;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use tokio_postgres::types::{FromSql, Type};

use super::Shape;
use crate::schema::{columns::PgType, resolve::Unit};

/// The plain JSON of a value.
pub(in crate::schema) fn json(shape: &Shape, value: &Value) -> String {
    match (shape, value) {
        (_, Value::Null) => "null".into(),
        (_, Value::Boolean(flag)) => flag.to_string(),
        (_, Value::Int(number)) => number.to_string(),
        (_, Value::Long(number)) => number.to_string(),
        (_, Value::Float(number)) => float(f64::from(*number), serde_json::to_string(number).unwrap()),
        (_, Value::Double(number)) => float(*number, serde_json::to_string(number).unwrap()),
        (_, Value::Bytes(bytes) | Value::Fixed(_, bytes)) => format!("\"{}\"", STANDARD.encode(bytes)),
        (_, Value::String(text)) => serde_json::to_string(text).unwrap(),
        (_, Value::Enum(_, symbol)) => format!("\"{symbol}\""),
        (Shape::Decimal(_, scale, _), Value::Decimal(_)) => format!("\"{}\"", decimal_text(unscaled(value), *scale)),
        (_, Value::BigDecimal(number)) => format!("\"{}\"", number.to_plain_string()),
        (_, Value::Uuid(uuid)) => format!("\"{uuid}\""),
        (_, Value::Date(days)) => format!("\"{}\"", NaiveDate::from_epoch_days(*days).unwrap()),
        (Shape::Time(unit), _) => format!("\"{}\"", clock(integer(value), *unit)),
        (Shape::Timestamp(unit), _) => format!("\"{}Z\"", timestamp(integer(value), *unit)),
        (Shape::LocalTimestamp(unit), _) => format!("\"{}\"", timestamp(integer(value), *unit)),
        (_, Value::Duration(duration)) => {
            let (months, days, millis) =
                (u32::from(duration.months()), u32::from(duration.days()), u32::from(duration.millis()));
            let part = |number: u32, unit: &str| if number > 0 { format!("{number}{unit}") } else { String::new() };
            let fraction = if millis % 1000 > 0 { format!(".{:03}", millis % 1000) } else { String::new() };
            let seconds = format!("T{}{fraction}S", millis / 1000);
            let seconds = if millis > 0 || (months, days) == (0, 0) { seconds } else { String::new() };
            format!("\"P{}{}{seconds}\"", part(months, "M"), part(days, "D"))
        }
        (Shape::Array(item), Value::Array(values)) => {
            let items: Vec<String> = values.iter().map(|value| json(item, value)).collect();
            format!("[{}]", items.join(","))
        }
        (Shape::Map(item), Value::Map(entries)) => {
            let entry = |(key, value)| format!("{}:{}", serde_json::to_string(key).unwrap(), json(item, value));
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
        }
        (Shape::Record(shapes), Value::Record(fields)) => {
            let field =
                |(shape, (name, value)): (&Shape, &(String, Value))| format!("\"{name}\":{}", json(shape, value));
            format!("{{{}}}", shapes.iter().zip(fields).map(field).collect::<Vec<_>>().join(","))
        }
        (Shape::Union(branches), Value::Union(index, value)) => json(&branches[*index as usize], value),
        other => panic!("no such pair: {other:?}"),
    }
}

fn float(value: f64, text: String) -> String {
    match value {
        _ if value.is_nan() => "\"NaN\"".into(),
        f64::INFINITY => "\"Infinity\"".into(),
        f64::NEG_INFINITY => "\"-Infinity\"".into(),
        _ => text,
    }
}

fn integer(value: &Value) -> i64 {
    match value {
        Value::TimeMillis(number) => i64::from(*number),
        Value::TimeMicros(number)
        | Value::TimestampMillis(number)
        | Value::TimestampMicros(number)
        | Value::TimestampNanos(number)
        | Value::LocalTimestampMillis(number)
        | Value::LocalTimestampMicros(number)
        | Value::LocalTimestampNanos(number) => *number,
        other => panic!("not an integer: {other:?}"),
    }
}

fn instant(count: i64, unit: Unit) -> DateTime<Utc> {
    match unit {
        Unit::Millis => DateTime::from_timestamp_millis(count).unwrap(),
        Unit::Micros => DateTime::from_timestamp_micros(count).unwrap(),
        Unit::Nanos => DateTime::from_timestamp_nanos(count),
    }
}

fn timestamp(count: i64, unit: Unit) -> String {
    let whole = count.rem_euclid(unit.per_second()) == 0;
    instant(count, unit).format(&format!("%Y-%m-%dT%H:%M:%S{}", if whole { "" } else { fraction(unit) })).to_string()
}

fn clock(count: i64, unit: Unit) -> String {
    timestamp(count, unit).split_off("1970-01-01T".len())
}

fn fraction(unit: Unit) -> &'static str {
    match unit {
        Unit::Millis => "%.3f",
        Unit::Micros => "%.6f",
        Unit::Nanos => "%.9f",
    }
}

fn unscaled(value: &Value) -> i128 {
    let Value::Decimal(decimal) = value else { panic!("no decimal: {value:?}") };
    let bytes = <Vec<u8>>::try_from(decimal).unwrap();
    let sign = if bytes[0] & 0x80 == 0 { 0 } else { -1 };
    bytes.iter().fold(sign, |number, byte| number << 8 | i128::from(*byte))
}

pub(in crate::schema) fn decimal_text(unscaled: i128, scale: u32) -> String {
    let scale = scale as usize;
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if unscaled < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// What a column should hold, in the notation of [`seen`]; `None` is null.
pub(in crate::schema) fn wanted(shape: &Shape, value: &Value, pg_type: &PgType) -> Option<String> {
    Some(match (shape, value) {
        (Shape::Union(branches), Value::Union(index, value)) => {
            return wanted(&branches[*index as usize], value, pg_type);
        }
        (_, Value::Null) => return None,
        _ if *pg_type == PgType::Jsonb => json(shape, value),
        (_, Value::Float(number)) => number.to_bits().to_string(),
        (_, Value::Double(number)) => number.to_bits().to_string(),
        (_, Value::String(text)) => text.clone(),
        (_, Value::Enum(_, symbol)) => symbol.clone(),
        (_, Value::Bytes(bytes) | Value::Fixed(_, bytes)) => hex::encode(bytes),
        (Shape::Time(_), Value::TimeMillis(millis)) => (i64::from(*millis) * 1000).to_string(),
        (Shape::Time(_), Value::TimeMicros(micros)) => micros.to_string(),
        (Shape::Timestamp(unit) | Shape::LocalTimestamp(unit), _) => {
            instant(integer(value), *unit).timestamp_micros().to_string()
        }
        (_, Value::Duration(duration)) => {
            let (months, days, millis) =
                (u32::from(duration.months()), u32::from(duration.days()), u32::from(duration.millis()));
            format!("{months} {days} {}", i64::from(millis) * 1000)
        }
        (Shape::Array(item), Value::Array(values)) => {
            let PgType::Array(item_type) = pg_type else { panic!("array in {pg_type:?}") };
            let items = values.iter().map(|value| wanted(item, value, item_type));
            format!("{:?}", items.collect::<Vec<_>>())
        }
        _ => json(shape, value).trim_matches('"').to_owned(),
    })
}

/// The value of a column as the client library reads its binary form.
pub(in crate::schema) fn seen(pg_type: &PgType, raw: &[u8]) -> String {
    fn read<'a, T: FromSql<'a>>(pg_type: &PgType, raw: &'a [u8]) -> T {
        let library = Type::from_oid(pg_type.oid()).unwrap();
        assert!(T::accepts(&library), "{pg_type:?}");
        T::from_sql(&library, raw).unwrap()
    }
    match pg_type {
        PgType::Boolean => read::<bool>(pg_type, raw).to_string(),
        PgType::Int4 => read::<i32>(pg_type, raw).to_string(),
        PgType::Int8 => read::<i64>(pg_type, raw).to_string(),
        PgType::Float4 => read::<f32>(pg_type, raw).to_bits().to_string(),
        PgType::Float8 => read::<f64>(pg_type, raw).to_bits().to_string(),
        PgType::Text => read::<String>(pg_type, raw),
        PgType::Bytea => hex::encode(read::<Vec<u8>>(pg_type, raw)),
        PgType::Uuid => read::<uuid::Uuid>(pg_type, raw).to_string(),
        PgType::Date => read::<NaiveDate>(pg_type, raw).to_string(),
        PgType::Time => {
            let time = read::<NaiveTime>(pg_type, raw).signed_duration_since(NaiveTime::MIN);
            time.num_microseconds().unwrap().to_string()
        }
        PgType::Timestamp => {
            let time = read::<chrono::NaiveDateTime>(pg_type, raw);
            time.and_utc().timestamp_micros().to_string()
        }
        PgType::Timestamptz => read::<DateTime<Utc>>(pg_type, raw).timestamp_micros().to_string(),
        PgType::Interval => {
            let (micros, rest) = raw.split_first_chunk::<8>().unwrap();
            let (days, months) = rest.split_first_chunk::<4>().unwrap();
            let months = i32::from_be_bytes(months.try_into().unwrap());
            format!("{months} {} {}", i32::from_be_bytes(*days), i64::from_be_bytes(*micros))
        }
        PgType::Jsonb => {
            read::<serde_json::Value>(pg_type, raw);
            String::from_utf8(raw[1..].to_vec()).unwrap()
        }
        PgType::Decimal { .. } | PgType::Numeric => numeric(raw),
        PgType::Array(item) => {
            let items: Vec<Option<Raw<'_>>> = read(pg_type, raw);
            format!("{:?}", items.iter().map(|raw| raw.as_ref().map(|raw| seen(item, raw.0))).collect::<Vec<_>>())
        }
    }
}

/// The bytes of an array's item as they are.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A binary `numeric` as text, checked for being in the form that Postgres itself would give it.
fn numeric(raw: &[u8]) -> String {
    let words: Vec<u16> = raw.chunks(2).map(|pair| u16::from_be_bytes(pair.try_into().unwrap())).collect();
    let [count, weight, sign, scale, groups @ ..] = words.as_slice() else { panic!("short: {words:?}") };
    assert_eq!(usize::from(*count), groups.len());
    assert!(groups.iter().all(|group| *group < 10_000), "{groups:?}");
    assert!(groups.first() != Some(&0) && groups.last() != Some(&0), "not normalised: {groups:?}");
    assert!([0, 0x4000].contains(sign) && (*sign == 0 || !groups.is_empty()));
    let group = |power: i32| {
        let index = usize::try_from(i32::from(*weight as i16) - power).ok();
        index.and_then(|index| groups.get(index)).copied().unwrap_or(0)
    };
    let whole: String =
        (0..=(*weight as i16).max(0)).rev().map(|power| format!("{:04}", group(power.into()))).collect();
    let fraction: String = (1..=i32::from(scale.div_ceil(4))).map(|place| format!("{:04}", group(-place))).collect();
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let (shown, cut) = fraction.split_at(usize::from(*scale));
    assert!(cut.bytes().all(|digit| digit == b'0'), "digits beyond the scale: {fraction}");
    let point = if shown.is_empty() { "" } else { "." };
    format!("{}{whole}{point}{shown}", if *sign == 0 { "" } else { "-" })
}
