//! Plain JSON to Avro, straight from the bytes of a request, by a plan compiled from the schema.
//!
//! Owns what JSON means for each Avro type, and the words in which a client is told what is wrong. Does no I/O, and
//! builds no tree of the document. The header of the wire format is not its business ([`super::framing`]).
//!
//! | Avro | JSON |
//! |---|---|
//! | null, boolean, string | the same |
//! | int, long | a number without fraction and exponent |
//! | float, double | a number, or `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | bytes, fixed | base64 text (RFC 4648, padding optional) |
//! | enum | the symbol |
//! | array, map, record | array, object, object |
//! | union | the value itself; the first branch in the schema's order that takes it |
//! | decimal, big-decimal | text such as `"12.50"`, or an integer; digits beyond the scale are refused unless they are zeros |
//! | uuid | the form with hyphens |
//! | timestamp-millis, -micros, -nanos | RFC 3339 with an offset; digits beyond the precision are cut off |
//! | local-timestamp-… | the same without an offset |
//! | date, time-millis, time-micros | `2013-01-31`, `10:15:00.123` |
//! | duration | ISO 8601 such as `P1DT2H30M` |
//!
//! A missing field takes the schema's default; without one it is null if it may be, and else a fault. Fields that the
//! schema does not have are refused, as are fields given twice and `\u0000` in text, which Postgres cannot hold.

mod captured;
mod decimal;
pub(super) mod default;
mod explain;
mod fingerprint;
mod plan;
mod scalar;
mod scan;
mod session;
mod split;
#[cfg(test)]
mod tests;
mod time;
mod union;
mod wire;

use apache_avro::Schema;

pub use captured::Captured;
pub use fingerprint::fingerprint;
pub use split::{BodyShape, SplitError, Value, Values, split_values};

use self::{
    plan::Record,
    scan::Scanner,
    session::{Session, Stop},
};
use super::fault::Fault;
use crate::domain::nearest;

/// Why a schema cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the schema is not a record: wrap it in one")]
    NotARecord,
    #[error("the schema is beyond what Millpond takes: {}", .0.join("; "))]
    Limits(Vec<String>),
    #[error("the schema refers to `{name}`, which it does not define: define it where it is first used")]
    UnknownType { name: String },
    #[error("the default of field `{field}` of {record} does not fit its type: {reason}")]
    Default { record: String, field: String, reason: String },
    #[error("{record} has no field `{field}`{}", .nearest.as_ref().map(|name| format!(": did you mean `{name}`?")).unwrap_or_default())]
    NoSuchField { record: String, field: String, nearest: Option<String> },
    #[error(
        "field `{field}` of {record} cannot be a key or an id: choose a string, integer, boolean, enum, uuid, date, time, \
         timestamp, or a decimal of at most 38 digits"
    )]
    NoText { record: String, field: String },
}

/// A compiled schema. Compile once, share between threads.
#[derive(Debug)]
pub struct Encoder {
    record: Record,
    /// Field numbers in the order asked for; the same number as slots.
    captures: Box<[usize]>,
}

impl Encoder {
    /// Compiles the schema of a record. The texts of the fields in `capture` (top-level names) can be had from
    /// [`Captured`] after each document, by their index in that list.
    pub fn compile(schema: &Schema, capture: &[String]) -> Result<Self, Error> {
        let mut record = plan::compile(schema)?;
        let mut captures = Vec::with_capacity(capture.len());
        for name in capture {
            let Some(at) = record.find(name.as_bytes()) else {
                let nearest = nearest(name, record.fields.iter().map(|field| field.name())).map(str::to_owned);
                return Err(Error::NoSuchField { record: record.name.to_string(), field: name.clone(), nearest });
            };
            if !captured::has_text(&record.fields[at].node) {
                return Err(Error::NoText { record: record.name.to_string(), field: name.clone() });
            }
            // A field asked for twice has one slot, numbered by itself.
            let slots = captures.len();
            record.fields[at].captured.get_or_insert(slots);
            captures.push(at);
        }
        Ok(Self { record, captures: captures.into() })
    }

    /// Appends the Avro encoding of one JSON object to `out`, without a header.
    ///
    /// # Errors
    /// All that is wrong with the document, up to [`MAX_FAULTS`](super::limits::MAX_FAULTS) faults; `out` is as it was,
    /// and `captured` is empty.
    pub fn encode(&self, json: &[u8], out: &mut Vec<u8>, captured: &mut Captured) -> Result<(), Vec<Fault>> {
        captured.clear(self.captures.len());
        let text = match std::str::from_utf8(json) {
            Ok(text) if u32::try_from(text.len()).is_ok_and(|length| length != u32::MAX) => text,
            Ok(_) => return Err(vec![Fault::new("less than 4 GiB", "more")]),
            Err(error) => {
                return Err(vec![Fault::new("UTF-8 text", format!("other bytes from byte {}", error.valid_up_to()))]);
            }
        };
        let start = out.len();
        let mut session = Session {
            scan: Scanner::new(text),
            out,
            scratch: &mut captured.scratch,
            faults: Vec::new(),
            quiet: false,
            in_order: true,
        };
        let result = session.document(&self.record);
        let faults = session.faults;
        if result.is_err() || !faults.is_empty() {
            out.truncate(start);
            captured.forget();
            return Err(faults);
        }
        for &at in &self.captures {
            let field = &self.record.fields[at];
            let slot = field.captured.expect("invariant: every captured field has a slot");
            let value = captured.scratch.starts[slot];
            captured.push(&field.node, &out[value..]);
        }
        Ok(())
    }
}

impl Session<'_> {
    /// The whole text is one record.
    fn document(&mut self, record: &Record) -> Result<(), Stop> {
        let value = match self.scan.next_byte() {
            Some(b'{') => self.record(record),
            _ => self.not_an_object(record),
        };
        let end = match value {
            Ok(()) | Err(Stop::Value) => self.scan.end().map_err(Stop::from),
            Err(stop) => Err(stop),
        };
        end.map_err(|stop| self.note_syntax(stop)).and(value)
    }

    fn not_an_object(&mut self, record: &Record) -> Result<(), Stop> {
        let found = self.scan.skip()?;
        Err(self.note(|| explain::no_object(&record.name, found)))
    }
}

/// What a text looks like, for guessing a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextKind {
    Timestamp,
    LocalTimestamp,
    Date,
    Uuid,
    Other,
}

/// The most particular type that takes the text.
pub(super) fn guess_text(text: &str) -> TextKind {
    let bytes = text.as_bytes();
    if time::timestamp(bytes, time::Unit::Micros).is_ok() {
        TextKind::Timestamp
    } else if time::local_timestamp(bytes, time::Unit::Micros).is_ok() {
        TextKind::LocalTimestamp
    } else if time::date(bytes).is_ok() {
        TextKind::Date
    } else if scalar::uuid_of(bytes).is_some() {
        TextKind::Uuid
    } else {
        TextKind::Other
    }
}
