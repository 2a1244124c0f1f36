//! Values without parts: numbers, texts and the logical types over them.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{
    decimal::{self, DecimalFault},
    explain,
    plan::{Decimal, Node, UuidForm},
    scan::{Found, RawString},
    session::{Session, Stop},
    time, wire,
};

/// The standard alphabet; padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl<'a> Session<'a> {
    /// The scanner stands at the value's first byte, which is `first`.
    pub(super) fn scalar(&mut self, node: &Node, first: Option<u8>) -> Result<(), Stop> {
        match (node, first) {
            (_, Some(b'"')) => self.text(node),
            (_, Some(b'-' | b'0'..=b'9')) => self.number(node),
            (Node::Boolean, Some(b't')) if self.scan.eat(b"true") => {
                self.out.push(1);
                Ok(())
            }
            (Node::Boolean, Some(b'f')) if self.scan.eat(b"false") => {
                self.out.push(0);
                Ok(())
            }
            (Node::Null, Some(b'n')) if self.scan.eat(b"null") => Ok(()),
            _ => self.mismatch(node),
        }
    }

    fn number(&mut self, node: &Node) -> Result<(), Stop> {
        let raw = self.scan.number()?;
        let found = Found::Number(raw);
        match node {
            Node::Int | Node::Long if raw.integer => match integer(raw.bytes) {
                Some(number) if matches!(node, Node::Long) || i32::try_from(number).is_ok() => {
                    wire::long(self.out, number)
                }
                _ => return Err(self.note(|| explain::out_of_range(node, found))),
            },
            Node::Float => match parse::<f32>(raw.bytes) {
                Some(number) if number.is_finite() => self.out.extend_from_slice(&number.to_le_bytes()),
                _ => return Err(self.note(|| explain::out_of_range(node, found))),
            },
            Node::Double => match parse::<f64>(raw.bytes) {
                Some(number) if number.is_finite() => self.out.extend_from_slice(&number.to_le_bytes()),
                _ => return Err(self.note(|| explain::out_of_range(node, found))),
            },
            Node::Decimal(_) | Node::BigDecimal if raw.integer => return self.decimal(node, raw.bytes, found),
            _ => return Err(self.note(|| explain::mismatch(node, found))),
        }
        Ok(())
    }

    fn text(&mut self, node: &Node) -> Result<(), Stop> {
        let raw = self.scan.string()?;
        if raw.nul {
            return Err(self.note(explain::nul));
        }
        if let Node::String = node {
            self.string(&raw);
            return Ok(());
        }
        let text = raw.text();
        let found = Found::Text(raw);
        match node {
            Node::Decimal(_) | Node::BigDecimal => return self.decimal(node, &text, found),
            Node::Bytes | Node::Fixed(_) => return self.base64(node, &text, found),
            Node::Enum(symbols) => match symbols.iter().position(|symbol| symbol.as_bytes() == &*text) {
                Some(at) => wire::length(self.out, at),
                None => return Err(self.note(|| explain::unknown_symbol(node, symbols, raw))),
            },
            Node::Uuid(form) => match uuid_of(&text) {
                Some(id) => self.uuid(*form, id),
                None => return Err(self.note(|| explain::mismatch(node, found))),
            },
            Node::Float | Node::Double => match not_finite(&text) {
                Some(number) if matches!(node, Node::Float) => {
                    self.out.extend_from_slice(&(number as f32).to_le_bytes())
                }
                Some(number) => self.out.extend_from_slice(&number.to_le_bytes()),
                None => return Err(self.note(|| explain::mismatch(node, found))),
            },
            Node::Duration => match time::duration(&text) {
                Some(parts) => parts.iter().for_each(|part| self.out.extend_from_slice(&part.to_le_bytes())),
                None => return Err(self.note(|| explain::mismatch(node, found))),
            },
            _ => return self.time(node, &text, found),
        }
        Ok(())
    }

    fn string(&mut self, raw: &RawString<'a>) {
        if !raw.escaped {
            wire::bytes(self.out, raw.bytes);
            return;
        }
        self.scratch.text.clear();
        raw.unescape(&mut self.scratch.text);
        wire::bytes(self.out, &self.scratch.text);
    }

    fn time(&mut self, node: &Node, text: &[u8], found: Found<'_>) -> Result<(), Stop> {
        let number = match node {
            Node::Timestamp(unit) => time::timestamp(text, *unit),
            Node::LocalTimestamp(unit) => time::local_timestamp(text, *unit),
            Node::Date => time::date(text).map(i64::from),
            Node::TimeMillis => time::time_of_day(text).map(|nanos| nanos / 1_000_000),
            Node::TimeMicros => time::time_of_day(text).map(|nanos| nanos / 1_000),
            _ => return Err(self.note(|| explain::mismatch(node, found))),
        };
        match number {
            Ok(number) => {
                wire::long(self.out, number);
                Ok(())
            }
            Err(fault) => Err(self.note(|| explain::mismatch(node, found).hinted(fault.hint()))),
        }
    }

    fn decimal(&mut self, node: &Node, text: &[u8], found: Found<'_>) -> Result<(), Stop> {
        let bytes = &mut self.scratch.text;
        bytes.clear();
        let result = match node {
            Node::Decimal(Decimal { precision, scale, .. }) => {
                decimal::unscaled(text, *precision, *scale, bytes).map(|()| *scale)
            }
            _ => decimal::with_own_scale(text, bytes),
        };
        let fits = |size: usize| bytes.len() <= size;
        match (result, node) {
            (Ok(_), Node::Decimal(Decimal { fixed: Some(size), .. })) if fits(*size) => {
                let sign = if bytes[0] >= 0x80 { 0xFF } else { 0 };
                self.out.extend(std::iter::repeat_n(sign, size - bytes.len()));
                self.out.extend_from_slice(bytes);
            }
            (Ok(_), Node::Decimal(Decimal { fixed: None, .. })) => wire::bytes(self.out, bytes),
            (Ok(scale), Node::BigDecimal) => {
                let digits = bytes.len();
                wire::length(bytes, digits);
                let head = bytes.len() - digits;
                bytes.rotate_right(head);
                wire::length(bytes, scale);
                wire::bytes(self.out, bytes);
            }
            (Ok(_), _) => return Err(self.note(|| explain::decimal(node, found, DecimalFault::Precision))),
            (Err(fault), _) => return Err(self.note(|| explain::decimal(node, found, fault))),
        }
        Ok(())
    }

    fn base64(&mut self, node: &Node, text: &[u8], found: Found<'_>) -> Result<(), Stop> {
        let bytes = &mut self.scratch.text;
        bytes.clear();
        let decoded = BASE64.decode_vec(text, bytes);
        match node {
            _ if decoded.is_err() => return Err(self.note(|| explain::mismatch(node, found))),
            Node::Fixed(size) if bytes.len() != *size => {
                let came = bytes.len();
                return Err(self.note(|| explain::wrong_length(node, came)));
            }
            Node::Fixed(_) => self.out.extend_from_slice(bytes),
            _ => wire::bytes(self.out, bytes),
        }
        Ok(())
    }

    fn uuid(&mut self, form: UuidForm, id: uuid::Uuid) {
        match form {
            UuidForm::Text => {
                wire::bytes(self.out, id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).as_bytes());
            }
            UuidForm::Bytes => wire::bytes(self.out, id.as_bytes()),
            UuidForm::Fixed => self.out.extend_from_slice(id.as_bytes()),
        }
    }
}

/// Only the form with hyphens.
pub(super) fn uuid_of(text: &[u8]) -> Option<uuid::Uuid> {
    if text.len() != 36 {
        return None;
    }
    uuid::Uuid::try_parse_ascii(text).ok()
}

fn not_finite(text: &[u8]) -> Option<f64> {
    match text {
        b"NaN" => Some(f64::NAN),
        b"Infinity" => Some(f64::INFINITY),
        b"-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// The scanner checked the digits.
#[inline]
fn integer(bytes: &[u8]) -> Option<i64> {
    let (negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        _ => (false, bytes),
    };
    if digits.len() < 19 {
        let number = digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
        return Some(if negative { -number } else { number });
    }
    parse(bytes)
}

fn parse<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
