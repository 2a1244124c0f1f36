//! Avro to plain JSON: the very form that producers send.
//!
//! Owns the JSON of every Avro type, for the command line, for Rust handlers and for `jsonb` columns. Writes text
//! straight from the bytes; there is no tree. Knows nothing of columns.

mod time;

use apache_avro::Schema;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use uuid::Uuid;

use super::{
    Fault,
    pg::numeric::Decimal,
    reader::{Cursor, Problem, fault, utf8, within},
    resolve::{Blob, Integer, Items, Node, Record, ResolveError, compile, refused, skip},
};

/// Longest JSON text of one value: within what Postgres takes as `jsonb`, and far above what a Kafka record holds.
const MAX_JSON_BYTES: usize = 32 << 20;
/// End of the day, which ISO 8601 and Postgres write as 24:00.
const DAY_SECONDS: i64 = 86_400;

/// Decodes records of one schema, read as another, into JSON text.
#[derive(Debug)]
pub struct JsonDecoder {
    node: Node,
}

impl JsonDecoder {
    /// Compiles the way from records of `writer` to JSON as `reader` has it.
    ///
    /// # Errors
    /// When values of the one cannot be read as the other.
    pub fn compile(writer: &Schema, reader: &Schema) -> Result<Self, ResolveError> {
        Ok(Self { node: compile(writer, reader)? })
    }

    /// Appends the JSON of one value: Avro binary without framing. Fields come in the writer's order, then the reader's
    /// own.
    ///
    /// # Errors
    /// When the bytes are no such value, with a pointer to the place; `out` is then as long as it was.
    pub fn append_json(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let before = out.len();
        let mut cursor = Cursor::new(payload);
        let written = Writer::new(out, Nul::Escaped).value(&self.node, &mut cursor);
        written.and_then(|()| cursor.finish()).map_err(|problem| {
            out.truncate(before);
            *problem
        })
    }
}

/// What becomes of U+0000 in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nul {
    Escaped,
    /// Postgres has no place for it, not even in `jsonb`.
    Refused,
}

/// Appends JSON to a buffer.
pub(super) struct Writer<'o> {
    out: &'o mut Vec<u8>,
    nul: Nul,
    limit: usize,
}

impl<'o> Writer<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>, nul: Nul) -> Self {
        let limit = out.len().saturating_add(MAX_JSON_BYTES);
        Self { out, nul, limit }
    }

    /// Appends the value that the cursor stands at.
    pub(super) fn value(&mut self, node: &Node, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
        match node {
            Node::Null => self.raw(b"null"),
            Node::Boolean => {
                let text: &[u8] = if cursor.boolean()? { b"true" } else { b"false" };
                self.raw(text);
            }
            Node::Integer { wire, to } => self.integer(wire.read(cursor)?, *to)?,
            Node::Float(wire) => {
                let value = wire.read_f32(cursor)?;
                self.float(f64::from(value), value);
            }
            Node::Double(wire) => {
                let value = wire.read_f64(cursor)?;
                self.float(value, value);
            }
            Node::Blob { wire, to } => self.blob(wire.read(cursor)?, *to)?,
            Node::Enum(symbols) => {
                let symbol = symbols[cursor.index(symbols.len(), "symbol")?].resolved()?;
                self.string(symbol)?;
            }
            Node::Union(branches) => {
                let branch = &branches[cursor.index(branches.len(), "branch")?];
                return self.value(branch, cursor);
            }
            Node::Array(items) => return self.array(items, cursor),
            Node::Map(items) => return self.map(items, cursor),
            Node::Record(record) => return self.record(record, cursor),
            Node::Refused(kind) => return Err(refused(kind)),
        }
        Ok(())
    }

    #[inline]
    fn raw(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn check_length(&self) -> Result<(), Problem> {
        if self.out.len() > self.limit {
            return Err(fault(format_args!("a value of at most {MAX_JSON_BYTES} bytes of JSON"), "a longer one"));
        }
        Ok(())
    }

    fn integer(&mut self, value: i64, to: Integer) -> Result<(), Problem> {
        match to {
            Integer::Int | Integer::Long => {
                self.raw(itoa::Buffer::new().format(value).as_bytes());
                return Ok(());
            }
            _ => self.out.push(b'"'),
        }
        match to {
            Integer::Date => time::date(value, self.out),
            Integer::Time(unit) => {
                if !(0..=DAY_SECONDS * unit.per_second()).contains(&value) {
                    return Err(time_out_of_range(value));
                }
                time::time_of_day(value, unit, self.out);
            }
            Integer::Timestamp(unit) => {
                time::timestamp(value, unit, self.out);
                self.out.push(b'Z');
            }
            Integer::LocalTimestamp(unit) => time::timestamp(value, unit, self.out),
            Integer::Int | Integer::Long => {}
        }
        self.out.push(b'"');
        Ok(())
    }

    /// JSON has no word for what is no number: those are strings. `shortest` is the value in its own precision.
    fn float(&mut self, value: f64, shortest: impl serde::Serialize) {
        if value.is_finite() {
            self.serialize(&shortest);
        } else if value.is_nan() {
            self.raw(b"\"NaN\"");
        } else {
            let text: &[u8] = if value > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" };
            self.raw(text);
        }
    }

    fn serialize(&mut self, scalar: &(impl serde::Serialize + ?Sized)) {
        serde_json::to_writer(&mut *self.out, scalar).expect("invariant: writing a scalar to memory cannot fail");
    }

    fn string(&mut self, text: &str) -> Result<(), Problem> {
        if self.nul == Nul::Refused && memchr::memchr(0, text.as_bytes()).is_some() {
            return Err(nul_in_text());
        }
        self.serialize(text);
        Ok(())
    }

    fn blob(&mut self, bytes: &[u8], to: Blob) -> Result<(), Problem> {
        if to == Blob::Text {
            return self.string(utf8(bytes)?);
        }
        self.out.push(b'"');
        match to {
            Blob::Text => {}
            Blob::Bytes => {
                let start = self.out.len();
                self.out.resize(start + bytes.len().div_ceil(3) * 4, 0);
                let written = STANDARD.encode_slice(bytes, &mut self.out[start..]);
                written.expect("invariant: base64 takes four bytes for each three");
            }
            Blob::UuidText => self.uuid(uuid_of_text(bytes)?),
            Blob::UuidBytes => self.uuid(uuid_of_bytes(bytes)?),
            Blob::Decimal { precision, scale } => Decimal::of(bytes, precision, scale)?.write_text(self.out),
            Blob::BigDecimal => Decimal::of_big(bytes)?.write_text(self.out),
            Blob::Duration => self.duration(&duration_of(bytes)?),
        }
        self.out.push(b'"');
        Ok(())
    }

    fn uuid(&mut self, uuid: Uuid) {
        let mut buffer = Uuid::encode_buffer();
        self.out.extend_from_slice(uuid.hyphenated().encode_lower(&mut buffer).as_bytes());
    }

    /// ISO 8601: `P1M2DT3.5S`.
    fn duration(&mut self, duration: &Duration) {
        let Duration { months, days, millis } = *duration;
        self.out.push(b'P');
        for (number, unit) in [(months, b'M'), (days, b'D')] {
            if number > 0 {
                self.raw(itoa::Buffer::new().format(number).as_bytes());
                self.out.push(unit);
            }
        }
        if millis > 0 || (months, days) == (0, 0) {
            self.out.push(b'T');
            self.raw(itoa::Buffer::new().format(millis / 1_000).as_bytes());
            time::decimals(i64::from(millis % 1_000), 1_000, self.out);
            self.out.push(b'S');
        }
    }

    fn array(&mut self, items: &Items, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
        self.out.push(b'[');
        let mut index = 0_u64;
        loop {
            let count = cursor.block(items.free)?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                if index > 0 {
                    self.out.push(b',');
                }
                self.value(&items.node, cursor).map_err(|problem| within(problem, index))?;
                self.check_length()?;
                index += 1;
            }
        }
        self.out.push(b']');
        Ok(())
    }

    fn map(&mut self, items: &Items, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
        self.out.push(b'{');
        let mut first = true;
        loop {
            let count = cursor.block(items.free)?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                if !std::mem::take(&mut first) {
                    self.out.push(b',');
                }
                let key = cursor.text()?;
                self.string(key)?;
                self.out.push(b':');
                self.value(&items.node, cursor).map_err(|problem| within(problem, key))?;
                self.check_length()?;
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    fn record(&mut self, record: &Record, cursor: &mut Cursor<'_>) -> Result<(), Problem> {
        self.out.push(b'{');
        let mut first = true;
        for step in &record.steps {
            let done = if step.reader.is_some() {
                self.key(&step.name, &mut first);
                self.value(&step.node, cursor)
            } else {
                skip(&step.node, cursor)
            };
            done.map_err(|problem| within(problem, &step.name))?;
        }
        for default in &record.defaults {
            self.key(&default.name, &mut first);
            let done = self.value(&default.node, &mut Cursor::new(&default.avro));
            done.map_err(|problem| within(problem, &default.name))?;
        }
        self.out.push(b'}');
        Ok(())
    }

    /// Avro's names need no escapes.
    fn key(&mut self, name: &str, first: &mut bool) {
        let opening: &[u8] = if std::mem::take(first) { b"\"" } else { b",\"" };
        self.raw(opening);
        self.raw(name.as_bytes());
        self.raw(b"\":");
    }
}

/// Parts of Avro's `duration`.
pub(super) struct Duration {
    pub(super) months: u32,
    pub(super) days: u32,
    pub(super) millis: u32,
}

pub(super) fn duration_of(bytes: &[u8]) -> Result<Duration, Problem> {
    let Ok([a, b, c, d, e, f, g, h, i, j, k, l]) = <[u8; 12]>::try_from(bytes) else {
        return Err(fault("a duration of 12 bytes", format_args!("{} bytes", bytes.len())));
    };
    Ok(Duration {
        months: u32::from_le_bytes([a, b, c, d]),
        days: u32::from_le_bytes([e, f, g, h]),
        millis: u32::from_le_bytes([i, j, k, l]),
    })
}

#[inline]
pub(super) fn uuid_of_text(bytes: &[u8]) -> Result<Uuid, Problem> {
    Uuid::try_parse_ascii(bytes).map_err(|_| {
        fault("a UUID such as 6fa459ea-ee8a-4ca4-894e-db77e160355e", quoted(&String::from_utf8_lossy(bytes)))
    })
}

#[inline]
pub(super) fn uuid_of_bytes(bytes: &[u8]) -> Result<Uuid, Problem> {
    Uuid::from_slice(bytes).map_err(|_| fault("a UUID of 16 bytes", format_args!("{} bytes", bytes.len())))
}

#[cold]
pub(super) fn nul_in_text() -> Problem {
    fault("text without U+0000, which Postgres cannot store", "text with it")
}

#[cold]
pub(super) fn time_out_of_range(value: i64) -> Problem {
    fault("a time of day from 00:00 to 24:00", value)
}

/// A text as a message shows it: quoted and cut short.
pub(super) fn quoted(text: &str) -> String {
    const MOST: usize = 60;
    let cut: String = text.chars().take(MOST).collect();
    format!("{cut:?}{}", if cut.len() < text.len() { "…" } else { "" })
}

#[cfg(test)]
mod tests;
