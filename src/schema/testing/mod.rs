//! Random schemas and values, encoded by `apache_avro`, and what they should look like on our side.

pub(super) mod model;
mod types_doc;

use std::collections::HashMap;

use apache_avro::{Days, Decimal, Duration, Millis, Months, Schema, types::Value, writer::datum::GenericDatumWriter};
use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::resolve::Unit;

/// A schema without names; [`schema_of`] gives them.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    Enum(usize),
    /// Precision, scale, and size when fixed.
    Decimal(u32, u32, Option<usize>),
    BigDecimal,
    UuidText,
    UuidFixed,
    Date,
    Time(Unit),
    Timestamp(Unit),
    LocalTimestamp(Unit),
    Duration,
    Array(Box<Shape>),
    Map(Box<Shape>),
    Record(Vec<Shape>),
    /// Of different types.
    Union(Vec<Shape>),
}

pub(super) fn scalar_shape() -> BoxedStrategy<Shape> {
    prop_oneof![
        Just(Shape::Boolean),
        Just(Shape::Int),
        Just(Shape::Long),
        Just(Shape::Float),
        Just(Shape::Double),
        Just(Shape::Bytes),
        Just(Shape::Text),
        (1..20_usize).prop_map(Shape::Fixed),
        (1..5_usize).prop_map(Shape::Enum),
        (1..38_u32)
            .prop_flat_map(|precision| (Just(precision), 0..=precision, prop::option::of(Just(16))))
            .prop_map(|(precision, scale, fixed)| Shape::Decimal(precision, scale, fixed)),
        Just(Shape::BigDecimal),
        Just(Shape::UuidText),
        Just(Shape::UuidFixed),
        Just(Shape::Date),
        prop::sample::select(vec![Unit::Millis, Unit::Micros]).prop_map(Shape::Time),
        unit().prop_map(Shape::Timestamp),
        unit().prop_map(Shape::LocalTimestamp),
        Just(Shape::Duration),
    ]
    .boxed()
}

fn unit() -> impl Strategy<Value = Unit> {
    prop::sample::select(vec![Unit::Millis, Unit::Micros, Unit::Nanos])
}

pub(super) fn any_shape() -> BoxedStrategy<Shape> {
    let leaf = prop_oneof![9 => scalar_shape(), 1 => Just(Shape::Null)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let not_null =
            inner.clone().prop_filter("null or a union", |shape| !matches!(shape, Shape::Null | Shape::Union(_)));
        prop_oneof![
            inner.clone().prop_map(|item| Shape::Array(Box::new(item))),
            inner.clone().prop_map(|item| Shape::Map(Box::new(item))),
            vec(inner, 0..4).prop_map(Shape::Record),
            not_null.clone().prop_map(|shape| Shape::Union(vec![Shape::Null, shape])),
            not_null.prop_map(|shape| Shape::Union(vec![shape, Shape::Null])),
            Just(Shape::Union(vec![Shape::Text, Shape::Null, Shape::Long, Shape::Record(vec![Shape::Int])])),
            Just(Shape::Union(vec![Shape::Double, Shape::Bytes, Shape::Enum(2), Shape::Array(Box::new(Shape::Int))])),
        ]
    })
    .boxed()
}

pub(super) fn record_shape() -> BoxedStrategy<Shape> {
    vec(any_shape(), 1..8).prop_map(Shape::Record).boxed()
}

/// A record's shape with a value of it.
pub(super) fn record_with_value() -> BoxedStrategy<(Shape, Value)> {
    record_shape().prop_flat_map(|shape| (Just(shape.clone()), value_of(&shape))).boxed()
}

pub(super) fn schema_of(shape: &Shape) -> Schema {
    Schema::parse_str(&schema_json(shape, &mut 0).to_string()).unwrap()
}

/// `next`: number of the next named type.
pub(super) fn schema_json(shape: &Shape, next: &mut usize) -> serde_json::Value {
    let mut name = || {
        *next += 1;
        format!("T{next}")
    };
    match shape {
        Shape::Null => json!("null"),
        Shape::Boolean => json!("boolean"),
        Shape::Int => json!("int"),
        Shape::Long => json!("long"),
        Shape::Float => json!("float"),
        Shape::Double => json!("double"),
        Shape::Bytes => json!("bytes"),
        Shape::Text => json!("string"),
        Shape::Fixed(size) => json!({"type": "fixed", "name": name(), "size": size}),
        Shape::Enum(count) => {
            let symbols: Vec<String> = (0..*count).map(|index| format!("S{index}")).collect();
            json!({"type": "enum", "name": name(), "symbols": symbols})
        }
        Shape::Decimal(precision, scale, None) => {
            json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
        }
        Shape::Decimal(precision, scale, Some(size)) => json!({"type": "fixed", "name": name(), "size": size,
            "logicalType": "decimal", "precision": precision, "scale": scale}),
        Shape::BigDecimal => json!({"type": "bytes", "logicalType": "big-decimal"}),
        Shape::UuidText => json!({"type": "string", "logicalType": "uuid"}),
        Shape::UuidFixed => json!({"type": "fixed", "name": name(), "size": 16, "logicalType": "uuid"}),
        Shape::Date => json!({"type": "int", "logicalType": "date"}),
        Shape::Time(Unit::Millis) => json!({"type": "int", "logicalType": "time-millis"}),
        Shape::Time(unit) => json!({"type": "long", "logicalType": logical("time", *unit)}),
        Shape::Timestamp(unit) => json!({"type": "long", "logicalType": logical("timestamp", *unit)}),
        Shape::LocalTimestamp(unit) => json!({"type": "long", "logicalType": logical("local-timestamp", *unit)}),
        Shape::Duration => json!({"type": "fixed", "name": name(), "size": 12, "logicalType": "duration"}),
        Shape::Array(item) => json!({"type": "array", "items": schema_json(item, next)}),
        Shape::Map(item) => json!({"type": "map", "values": schema_json(item, next)}),
        Shape::Union(branches) => branches.iter().map(|branch| schema_json(branch, next)).collect(),
        Shape::Record(fields) => {
            let name = name();
            let field = |(index, shape)| json!({"name": format!("f{index}"), "type": schema_json(shape, next)});
            let fields: Vec<serde_json::Value> = fields.iter().enumerate().map(field).collect();
            json!({"type": "record", "name": name, "fields": fields})
        }
    }
}

fn logical(kind: &str, unit: Unit) -> String {
    format!("{kind}-{}", format!("{unit:?}").to_lowercase())
}

/// Seconds from 1900 to 2100, for nanoseconds reach no further, and times that chrono and Postgres both know.
const SECONDS: std::ops::Range<i64> = -2_208_988_800..4_102_444_800;

pub(super) fn value_of(shape: &Shape) -> BoxedStrategy<Value> {
    let count = |unit: Unit| (SECONDS.start * unit.per_second()..SECONDS.end * unit.per_second()).boxed();
    match shape {
        Shape::Null => Just(Value::Null).boxed(),
        Shape::Boolean => any::<bool>().prop_map(Value::Boolean).boxed(),
        Shape::Int => any::<i32>().prop_map(Value::Int).boxed(),
        Shape::Long => any::<i64>().prop_map(Value::Long).boxed(),
        Shape::Float => prop_oneof![any::<f32>(), Just(f32::NAN), Just(f32::INFINITY)].prop_map(Value::Float).boxed(),
        Shape::Double => {
            prop_oneof![any::<f64>(), Just(f64::NAN), Just(f64::NEG_INFINITY)].prop_map(Value::Double).boxed()
        }
        Shape::Bytes => any::<Vec<u8>>().prop_map(Value::Bytes).boxed(),
        Shape::Text => "[^\u{0}]{0,20}".prop_map(Value::String).boxed(),
        Shape::Fixed(size) => vec(any::<u8>(), *size).prop_map(|bytes| Value::Fixed(bytes.len(), bytes)).boxed(),
        Shape::Enum(count) => (0..*count).prop_map(|index| Value::Enum(index as u32, format!("S{index}"))).boxed(),
        Shape::Decimal(precision, _, fixed) => decimal_of(*precision, *fixed),
        Shape::BigDecimal => (any::<i128>(), 0..40_u32)
            .prop_map(|(unscaled, scale)| Value::BigDecimal(model::decimal_text(unscaled, scale).parse().unwrap()))
            .boxed(),
        Shape::UuidText | Shape::UuidFixed => {
            any::<u128>().prop_map(|bits| Value::Uuid(uuid::Uuid::from_u128(bits))).boxed()
        }
        Shape::Date => (-719_162..2_932_896).prop_map(Value::Date).boxed(),
        Shape::Time(Unit::Millis) => (0..86_400_000).prop_map(Value::TimeMillis).boxed(),
        Shape::Time(_) => (0..86_400_000_000_i64).prop_map(Value::TimeMicros).boxed(),
        Shape::Timestamp(Unit::Millis) => count(Unit::Millis).prop_map(Value::TimestampMillis).boxed(),
        Shape::Timestamp(Unit::Micros) => count(Unit::Micros).prop_map(Value::TimestampMicros).boxed(),
        Shape::Timestamp(Unit::Nanos) => count(Unit::Nanos).prop_map(Value::TimestampNanos).boxed(),
        Shape::LocalTimestamp(Unit::Millis) => count(Unit::Millis).prop_map(Value::LocalTimestampMillis).boxed(),
        Shape::LocalTimestamp(Unit::Micros) => count(Unit::Micros).prop_map(Value::LocalTimestampMicros).boxed(),
        Shape::LocalTimestamp(Unit::Nanos) => count(Unit::Nanos).prop_map(Value::LocalTimestampNanos).boxed(),
        Shape::Duration => (0..=i32::MAX as u32, 0..=i32::MAX as u32, any::<u32>())
            .prop_map(|(months, days, millis)| {
                Value::Duration(Duration::new(Months::new(months), Days::new(days), Millis::new(millis)))
            })
            .boxed(),
        Shape::Array(item) => vec(value_of(item), 0..4).prop_map(Value::Array).boxed(),
        Shape::Map(item) => prop::collection::hash_map("[a-c\"/~é]{0,3}", value_of(item), 0..3)
            .prop_map(|entries: HashMap<String, Value>| Value::Map(entries))
            .boxed(),
        Shape::Record(fields) => {
            let fields: Vec<_> = fields.iter().map(value_of).collect();
            fields.prop_map(|values| Value::Record(named(values))).boxed()
        }
        Shape::Union(branches) => {
            let branch = |(index, shape): (usize, &Shape)| {
                value_of(shape).prop_map(move |value| Value::Union(index as u32, Box::new(value))).boxed()
            };
            proptest::strategy::Union::new(branches.iter().enumerate().map(branch)).boxed()
        }
    }
}

fn named(values: Vec<Value>) -> Vec<(String, Value)> {
    values.into_iter().enumerate().map(|(index, value)| (format!("f{index}"), value)).collect()
}

fn decimal_of(precision: u32, fixed: Option<usize>) -> BoxedStrategy<Value> {
    let most = 10_i128.pow(precision) - 1;
    let bytes = move |unscaled: i128| match fixed {
        Some(16) => unscaled.to_be_bytes().to_vec(),
        _ => {
            let bytes = unscaled.to_be_bytes();
            let redundant = |at: &usize| {
                let sign = if unscaled < 0 { 0xff } else { 0 };
                bytes[*at] == sign && bytes[*at + 1] & 0x80 == sign & 0x80
            };
            bytes[(0..15).take_while(redundant).count()..].to_vec()
        }
    };
    prop_oneof![-most..=most, -100..100_i128, Just(most), Just(-most)]
        .prop_map(move |unscaled: i128| Value::Decimal(Decimal::from(bytes(unscaled.clamp(-most, most)))))
        .boxed()
}

/// Avro binary as `apache_avro` writes it.
pub(super) fn encoded(schema: &Schema, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    GenericDatumWriter::builder(schema).build().unwrap().write_value_ref(&mut out, value).unwrap();
    out
}
