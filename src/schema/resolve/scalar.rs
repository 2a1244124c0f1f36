//! Which scalar is read as which.
//!
//! Beyond the specification's promotions: a logical type is read as its underlying type and the other way round;
//! times and timestamps of different units are the same thing in another unit; what would silently change the meaning
//! (a decimal of another scale, a timestamp as a local one) is refused.

use apache_avro::{
    Schema,
    schema::{DecimalSchema, InnerDecimalSchema, SchemaKind, UuidSchema},
};

use super::{Blob, BlobWire, Integer, IntegerWire, Node, NumberWire, Unit};

/// The plan for one scalar, or why there is none.
pub(super) fn node(written: &Schema, read: &Schema) -> Result<Node, String> {
    let found = match (written, read) {
        (Schema::Null, Schema::Null) => Some(Node::Null),
        (Schema::Boolean, Schema::Boolean) => Some(Node::Boolean),
        (_, Schema::Float) => number(written).filter(|wire| *wire != NumberWire::Double).map(Node::Float),
        (_, Schema::Double) => number(written).map(Node::Double),
        _ => integer(written, read).or_else(|| blob(written, read)),
    };
    found.ok_or_else(|| match (written, read) {
        (Schema::Decimal(written), Schema::Decimal(read)) if written.scale != read.scale => format!(
            "decimal of scale {} cannot be read with scale {}: every value would change",
            written.scale, read.scale
        ),
        _ => format!("{} cannot be read as {}", kind(written), kind(read)),
    })
}

fn number(written: &Schema) -> Option<NumberWire> {
    match written {
        Schema::Int => Some(NumberWire::Int),
        Schema::Long => Some(NumberWire::Long),
        Schema::Float => Some(NumberWire::Float),
        Schema::Double => Some(NumberWire::Double),
        _ => None,
    }
}

/// What an integer of this schema means, and how it is written.
fn meaning(schema: &Schema) -> Option<(Integer, IntegerWire)> {
    let meaning = match schema {
        Schema::Int => Integer::Int,
        Schema::Date => Integer::Date,
        Schema::TimeMillis => Integer::Time(Unit::Millis),
        Schema::Long => Integer::Long,
        Schema::TimeMicros => Integer::Time(Unit::Micros),
        Schema::TimestampMillis => Integer::Timestamp(Unit::Millis),
        Schema::TimestampMicros => Integer::Timestamp(Unit::Micros),
        Schema::TimestampNanos => Integer::Timestamp(Unit::Nanos),
        Schema::LocalTimestampMillis => Integer::LocalTimestamp(Unit::Millis),
        Schema::LocalTimestampMicros => Integer::LocalTimestamp(Unit::Micros),
        Schema::LocalTimestampNanos => Integer::LocalTimestamp(Unit::Nanos),
        _ => return None,
    };
    let wire = match meaning {
        Integer::Int | Integer::Date | Integer::Time(Unit::Millis) => IntegerWire::Int,
        _ => IntegerWire::Long,
    };
    Some((meaning, wire))
}

fn integer(written: &Schema, read: &Schema) -> Option<Node> {
    let ((from, wire), (to, read_wire)) = (meaning(written)?, meaning(read)?);
    let widens = wire == read_wire || wire == IntegerWire::Int;
    let to = match (from, to) {
        (Integer::Date, Integer::Date) => Integer::Date,
        // The same thing, perhaps in another unit: the writer's says what the number means.
        (Integer::Time(_), Integer::Time(_))
        | (Integer::Timestamp(_), Integer::Timestamp(_))
        | (Integer::LocalTimestamp(_), Integer::LocalTimestamp(_)) => from,
        (_, Integer::Int | Integer::Long) if widens => to,
        (Integer::Int | Integer::Long, _) if widens => to,
        _ => return None,
    };
    Some(Node::Integer { wire, to })
}

fn blob(written: &Schema, read: &Schema) -> Option<Node> {
    let wire = blob_wire(written)?;
    let size = |schema: &Schema| blob_wire(schema);
    let to = match (written, read) {
        (Schema::String | Schema::Bytes | Schema::Uuid(UuidSchema::String), Schema::String) => Blob::Text,
        (_, Schema::Bytes) if wire == BlobWire::Prefixed => Blob::Bytes,
        (_, Schema::Fixed(_)) if size(read) == Some(wire) => Blob::Bytes,
        (Schema::Uuid(UuidSchema::String), Schema::Uuid(_)) => Blob::UuidText,
        (Schema::String, Schema::Uuid(UuidSchema::String)) => Blob::UuidText,
        (Schema::Uuid(_), Schema::Uuid(_)) => Blob::UuidBytes,
        (Schema::Bytes, Schema::Uuid(UuidSchema::Bytes)) => Blob::UuidBytes,
        (Schema::Fixed(_), Schema::Uuid(UuidSchema::Fixed(_))) if size(read) == Some(wire) => Blob::UuidBytes,
        (Schema::Decimal(written), Schema::Decimal(read)) if written.scale == read.scale => decimal(read)?,
        (Schema::Bytes, Schema::Decimal(read)) if matches!(read.inner, InnerDecimalSchema::Bytes) => decimal(read)?,
        (Schema::Fixed(_), Schema::Decimal(decimal_read)) if size(read) == Some(wire) => decimal(decimal_read)?,
        (Schema::BigDecimal | Schema::Bytes, Schema::BigDecimal) => Blob::BigDecimal,
        (Schema::Duration(_), Schema::Duration(_)) => Blob::Duration,
        (Schema::Fixed(_), Schema::Duration(_)) if size(read) == Some(wire) => Blob::Duration,
        _ => return None,
    };
    Some(Node::Blob { wire, to })
}

fn decimal(schema: &DecimalSchema) -> Option<Blob> {
    Some(Blob::Decimal { precision: schema.precision.try_into().ok()?, scale: schema.scale.try_into().ok()? })
}

fn blob_wire(schema: &Schema) -> Option<BlobWire> {
    let size = match schema {
        Schema::String | Schema::Bytes | Schema::BigDecimal => None,
        Schema::Uuid(UuidSchema::String | UuidSchema::Bytes) => None,
        Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Bytes, .. }) => None,
        Schema::Fixed(fixed)
        | Schema::Duration(fixed)
        | Schema::Uuid(UuidSchema::Fixed(fixed))
        | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Fixed(fixed), .. }) => Some(fixed.size),
        _ => return None,
    };
    match size {
        None => Some(BlobWire::Prefixed),
        Some(size) => Some(BlobWire::Fixed(size.try_into().ok()?)),
    }
}

/// What messages call a type.
pub(super) fn kind(schema: &Schema) -> String {
    let word = match schema {
        Schema::Record(record) => return format!("record {}", record.name),
        Schema::Enum(symbols) => return format!("enum {}", symbols.name),
        Schema::Fixed(fixed) => return format!("fixed({}) {}", fixed.size, fixed.name),
        Schema::Ref { name } => return name.to_string(),
        Schema::Decimal(decimal) => return format!("decimal({},{})", decimal.precision, decimal.scale),
        Schema::BigDecimal => "big-decimal",
        Schema::TimeMillis => "time-millis",
        Schema::TimeMicros => "time-micros",
        Schema::TimestampMillis => "timestamp-millis",
        Schema::TimestampMicros => "timestamp-micros",
        Schema::TimestampNanos => "timestamp-nanos",
        Schema::LocalTimestampMillis => "local-timestamp-millis",
        Schema::LocalTimestampMicros => "local-timestamp-micros",
        Schema::LocalTimestampNanos => "local-timestamp-nanos",
        other => return format!("{:?}", SchemaKind::from(other)).to_lowercase(),
    };
    word.to_owned()
}
