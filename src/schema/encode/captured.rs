//! Text of chosen fields of a document, read back from what was just written.

use std::ops::Range;

use super::{
    decimal,
    plan::{Node, UuidForm},
    time::{self, Unit},
    wire,
};

/// The text of the captured fields of the document encoded last, and the buffers that encoding needs. Make one per
/// thread or request and use it again: then encoding allocates nothing.
#[derive(Debug, Default)]
pub struct Captured {
    text: String,
    ranges: Vec<Option<Range<usize>>>,
    pub(super) scratch: Scratch,
}

/// Buffers of one encoding, kept for the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Where captured values begin in the output, by their slot.
    pub starts: Vec<usize>,
    /// Where values that came before their turn stand in the document.
    pub put_off: Vec<u32>,
    /// Place and length of the keys of the maps at hand, in the output.
    pub keys: Vec<(usize, usize)>,
    /// A text without its escapes, a decoded base64, an unscaled decimal.
    pub text: Vec<u8>,
}

impl Captured {
    pub fn new() -> Self {
        Self::default()
    }

    /// The text of the field named `index`-th when the encoder was compiled; none if it is null.
    ///
    /// Strings and symbols as they are, integers in digits, booleans as `true` or `false`, UUIDs in lower case,
    /// decimals with all digits of their scale, timestamps as RFC 3339 in UTC, other times as they are written in JSON.
    /// Equal values have equal texts, however they were written in the document.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.ranges.get(index)?.clone().map(|range| &self.text[range])
    }

    pub(super) fn clear(&mut self, slots: usize) {
        self.text.clear();
        self.ranges.clear();
        self.scratch.starts.clear();
        self.scratch.starts.resize(slots, 0);
        self.scratch.put_off.clear();
        self.scratch.keys.clear();
    }

    /// Adds the text of the value at the start of `bytes`.
    pub(super) fn push(&mut self, node: &Node, bytes: &[u8]) {
        let start = self.text.len();
        let some = append(node, bytes, &mut self.text).is_some();
        self.ranges.push(some.then_some(start..self.text.len()));
    }

    /// After a document that was refused.
    pub(super) fn forget(&mut self) {
        self.ranges.clear();
        self.text.clear();
    }
}

/// Whether values of this type have a text.
pub(super) fn has_text(node: &Node) -> bool {
    match node {
        Node::Nullable(nullable) => has_text(&nullable.branch.node),
        Node::Decimal(decimal) => decimal.precision <= 38,
        Node::Boolean
        | Node::Int
        | Node::Long
        | Node::String
        | Node::Enum(_)
        | Node::Uuid(_)
        | Node::Date
        | Node::TimeMillis
        | Node::TimeMicros
        | Node::Timestamp(_)
        | Node::LocalTimestamp(_) => true,
        _ => false,
    }
}

/// Appends the text of an encoded value; none if it is null.
fn append(node: &Node, bytes: &[u8], out: &mut String) -> Option<()> {
    let long = || wire::read_long(bytes).map(|(number, _)| number);
    match node {
        Node::Nullable(nullable) => {
            let (branch, rest) = bytes.split_first()?;
            if *branch == nullable.null {
                return None;
            }
            append(&nullable.branch.node, rest, out)?;
        }
        Node::Boolean => out.push_str(if bytes.first()? == &0 { "false" } else { "true" }),
        Node::Int | Node::Long => out.push_str(itoa::Buffer::new().format(long()?)),
        Node::String | Node::Uuid(UuidForm::Text) => out.push_str(std::str::from_utf8(counted(bytes)?).ok()?),
        Node::Enum(symbols) => out.push_str(symbols.get(usize::try_from(long()?).ok()?)?),
        Node::Uuid(form) => {
            let bytes = if let UuidForm::Bytes = form { counted(bytes)? } else { bytes.get(..16)? };
            let id = uuid::Uuid::from_slice(bytes).ok()?;
            out.push_str(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
        }
        Node::Date => time::write_date(i32::try_from(long()?).ok()?, out),
        Node::TimeMillis => time::write_time_of_day(long()?, Unit::Millis, out),
        Node::TimeMicros => time::write_time_of_day(long()?, Unit::Micros, out),
        Node::Timestamp(unit) => time::write_timestamp(long()?, *unit, "Z", out),
        Node::LocalTimestamp(unit) => time::write_timestamp(long()?, *unit, "", out),
        Node::Decimal(decimal) => {
            let unscaled = match decimal.fixed {
                Some(size) => fixed_i128(bytes.get(..size)?)?,
                None => decimal::read_i128(counted(bytes)?)?,
            };
            decimal::write_text(unscaled, decimal.scale, out);
        }
        _ => return None,
    }
    Some(())
}

/// What stands after its length at the start of `bytes`.
fn counted(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = wire::read_long(bytes)?;
    rest.get(..usize::try_from(length).ok()?)
}

/// A `fixed` may be wider than its digits need.
fn fixed_i128(bytes: &[u8]) -> Option<i128> {
    let idle = bytes.len().saturating_sub(16);
    decimal::read_i128(&bytes[idle..])
}
