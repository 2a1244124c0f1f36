//! One field: the binary value of a column, behind its length.

use super::numeric::Decimal;
use crate::schema::{
    columns::PgType,
    reader::{Cursor, Problem, fault, utf8, within},
    resolve::{Blob, Integer, Items, Node, Unit, refused},
    to_json::{Nul, Writer, duration_of, nul_in_text, time_out_of_range, uuid_of_bytes, uuid_of_text},
};

/// The only version of `jsonb`'s binary form.
const JSONB_VERSION: u8 = 1;
const NULL: [u8; 4] = (-1_i32).to_be_bytes();

/// Days from 1970-01-01 to 2000-01-01, where Postgres counts from.
const EPOCH_DAYS: i64 = 10_957;
const DAY_MICROS: i64 = 86_400_000_000;
const EPOCH_MICROS: i64 = EPOCH_DAYS * DAY_MICROS;
/// 4714-11-24 BC, the first day Postgres knows, and the day after the last, 5874897-12-31; counted from 2000.
const DATES: std::ops::Range<i64> = -2_451_545..2_145_031_949;
/// The same first day at midnight, and the end of the year 294276; counted from 2000.
const TIMESTAMPS: std::ops::Range<i64> = -2_451_545 * DAY_MICROS..9_223_371_331_200_000_000;

/// How a column's values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Scalar,
    /// An array of items of this object id.
    Array {
        item_oid: u32,
    },
    Jsonb,
}

impl Form {
    pub(super) fn of(pg_type: &PgType) -> Self {
        match pg_type {
            PgType::Array(item) => Form::Array { item_oid: item.oid() },
            PgType::Jsonb => Form::Jsonb,
            _ => Form::Scalar,
        }
    }
}

/// Appends the field that the cursor stands at.
#[inline]
pub(super) fn append(form: Form, node: &Node, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
    if form == Form::Scalar {
        return scalar(node, cursor, out);
    }
    let mut node = node;
    while let Node::Union(branches) = node {
        node = &branches[cursor.index(branches.len(), "branch")?];
    }
    match (node, form) {
        (Node::Null, _) => out.extend_from_slice(&NULL),
        (Node::Array(items), Form::Array { item_oid }) => return array(items, item_oid, cursor, out),
        _ => {
            let start = begin(out);
            out.push(JSONB_VERSION);
            Writer::new(out, Nul::Refused).value(node, cursor)?;
            end(start, out);
        }
    }
    Ok(())
}

fn scalar(node: &Node, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
    match node {
        Node::Null => out.extend_from_slice(&NULL),
        Node::Boolean => out.extend_from_slice(&[0, 0, 0, 1, u8::from(cursor.boolean()?)]),
        Node::Integer { wire, to } => return integer(wire.read(cursor)?, *to, out),
        Node::Float(wire) => put4(wire.read_f32(cursor)?.to_bits(), out),
        Node::Double(wire) => put8(wire.read_f64(cursor)?.to_bits(), out),
        Node::Blob { wire, to } => return blob(wire.read(cursor)?, *to, out),
        Node::Enum(symbols) => {
            let symbol = symbols[cursor.index(symbols.len(), "symbol")?].resolved()?;
            put(symbol.as_bytes(), out);
        }
        Node::Union(branches) => {
            let branch = &branches[cursor.index(branches.len(), "branch")?];
            return scalar(branch, cursor, out);
        }
        Node::Refused(kind) => return Err(refused(kind)),
        Node::Array(_) | Node::Map(_) | Node::Record(_) => {
            unreachable!("invariant: the column of a scalar is read from a scalar")
        }
    }
    Ok(())
}

#[inline]
fn integer(value: i64, to: Integer, out: &mut Vec<u8>) -> Result<(), Problem> {
    match to {
        Integer::Int => put4(value as u32, out), // read from an int
        Integer::Long => put8(value.cast_unsigned(), out),
        Integer::Timestamp(unit) | Integer::LocalTimestamp(unit) => {
            put8(timestamp(value, unit)?.cast_unsigned(), out);
        }
        Integer::Date => {
            let days = value - EPOCH_DAYS;
            if !DATES.contains(&days) {
                return Err(date_out_of_range(value));
            }
            put4(days as u32, out);
        }
        Integer::Time(unit) => {
            let micros = value.checked_mul(1_000_000 / unit.per_second());
            match micros.filter(|micros| (0..=DAY_MICROS).contains(micros)) {
                Some(micros) => put8(micros.cast_unsigned(), out),
                None => return Err(time_out_of_range(value)),
            }
        }
    }
    Ok(())
}

/// Microseconds since 2000. Postgres keeps no nanoseconds: they are cut off towards the past, which keeps the order.
#[inline]
fn timestamp(value: i64, unit: Unit) -> Result<i64, Problem> {
    let micros = match unit {
        // In this order: the last of Postgres' years do not fit in microseconds since 1970.
        Unit::Millis => value.checked_sub(EPOCH_MICROS / 1_000).and_then(|millis| millis.checked_mul(1_000)),
        Unit::Micros => value.checked_sub(EPOCH_MICROS),
        Unit::Nanos => Some(value.div_euclid(1_000) - EPOCH_MICROS),
    };
    micros.filter(|micros| TIMESTAMPS.contains(micros)).ok_or_else(|| timestamp_out_of_range(value, unit))
}

#[inline]
fn blob(bytes: &[u8], to: Blob, out: &mut Vec<u8>) -> Result<(), Problem> {
    match to {
        Blob::Text => {
            let text = utf8(bytes)?;
            if memchr::memchr(0, text.as_bytes()).is_some() {
                return Err(nul_in_text());
            }
            put(bytes, out);
        }
        Blob::Bytes => put(bytes, out),
        Blob::UuidText => put(uuid_of_text(bytes)?.as_bytes(), out),
        Blob::UuidBytes => put(uuid_of_bytes(bytes)?.as_bytes(), out),
        Blob::Decimal { precision, scale } => decimal(&Decimal::of(bytes, precision, scale)?, out),
        Blob::BigDecimal => decimal(&Decimal::of_big(bytes)?, out),
        Blob::Duration => interval(bytes, out)?,
    }
    Ok(())
}

fn decimal(decimal: &Decimal, out: &mut Vec<u8>) {
    let start = begin(out);
    decimal.write_binary(out);
    end(start, out);
}

fn interval(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
    let duration = duration_of(bytes)?;
    let fit = |number: u32| i32::try_from(number).map_err(|_| interval_out_of_range(number));
    let (months, days) = (fit(duration.months)?, fit(duration.days)?);
    out.extend_from_slice(&16_i32.to_be_bytes());
    out.extend_from_slice(&(i64::from(duration.millis) * 1_000).to_be_bytes());
    out.extend_from_slice(&days.to_be_bytes());
    out.extend_from_slice(&months.to_be_bytes());
    Ok(())
}

/// An array: dimensions (0 when empty), whether nulls are in it, the items' type; then length, lower bound and items.
fn array(items: &Items, item_oid: u32, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
    let start = begin(out);
    let dimensions = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&item_oid.to_be_bytes());
    let length = out.len();
    let (mut index, mut nulls) = (0_u32, false);
    loop {
        let count = cursor.block(items.free)?;
        if count == 0 {
            break;
        }
        if index == 0 {
            out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
        }
        for _ in 0..count {
            let at = out.len();
            scalar(&items.node, cursor, out).map_err(|problem| within(problem, index))?;
            nulls |= out[at..] == NULL;
            index += 1;
        }
    }
    if index > 0 {
        out[dimensions + 3] = 1;
        out[dimensions + 7] = u8::from(nulls);
        out[length..length + 4].copy_from_slice(&index.to_be_bytes());
    }
    end(start, out);
    Ok(())
}

/// Leaves room for a length; [`end`] fills it in.
#[inline]
fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    start
}

#[inline]
fn end(start: usize, out: &mut [u8]) {
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Lengths fit in 31 bits, for payloads are bounded.
#[inline]
fn put(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[inline]
fn put4(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&(4 << 32 | u64::from(value)).to_be_bytes());
}

#[inline]
fn put8(value: u64, out: &mut Vec<u8>) {
    let field = (8_u128 << 64 | u128::from(value)).to_be_bytes();
    out.extend_from_slice(&field[4..]);
}

#[cold]
fn timestamp_out_of_range(value: i64, unit: Unit) -> Problem {
    let unit = format!("{unit:?}").to_lowercase();
    fault("a timestamp from 4714-11-24 BC to 294276-12-31, which Postgres can store", format_args!("{value} {unit}"))
}

#[cold]
fn date_out_of_range(days: i64) -> Problem {
    fault("a date from 4714-11-24 BC to 5874897-12-31, which Postgres can store", format_args!("day {days} from 1970"))
}

#[cold]
fn interval_out_of_range(number: u32) -> Problem {
    fault(format_args!("a duration of at most {} months and days each, which Postgres can store", i32::MAX), number)
}
