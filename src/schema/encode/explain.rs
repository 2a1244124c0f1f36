//! Faults in words: what was expected, what came, what to do.

use super::{
    decimal::DecimalFault,
    plan::{Branch, Node, Record},
    scan::{Found, RawString, Syntax, Wanted},
};
use crate::{domain::nearest, schema::fault::Fault};

/// Longest piece of a client's document that is shown, in characters.
const SHOWN: usize = 40;
/// Most names listed in full.
const LISTED: usize = 10;

/// What a type asks for, in plain words.
fn expected(node: &Node) -> String {
    match node {
        Node::Null => "null".to_owned(),
        Node::Boolean => "true or false".to_owned(),
        Node::Int => "a 32-bit integer".to_owned(),
        Node::Long => "a 64-bit integer".to_owned(),
        Node::Float => "a 32-bit number".to_owned(),
        Node::Double => "a number".to_owned(),
        Node::Bytes => "bytes as base64 text".to_owned(),
        Node::String => "a string".to_owned(),
        Node::Fixed(size) => format!("{size} bytes as base64 text"),
        Node::Enum(symbols) => format!("one of {}", list(symbols.iter().map(AsRef::as_ref))),
        Node::Decimal(decimal) => format!(
            "a decimal as text, such as \"{}\", of at most {} digits, {} of them after the point",
            if decimal.scale == 0 { "12" } else { "12.5" },
            decimal.precision,
            decimal.scale
        ),
        Node::BigDecimal => "a decimal as text, such as \"12.5\"".to_owned(),
        Node::Uuid(_) => "a UUID such as 01941f29-7c00-7aaa-8000-0123456789ab".to_owned(),
        Node::Date => "a date such as 2013-01-31".to_owned(),
        Node::TimeMillis | Node::TimeMicros => "a time of day such as 10:15:00".to_owned(),
        Node::Timestamp(_) => "a timestamp such as 2013-01-01T10:15:00Z".to_owned(),
        Node::LocalTimestamp(_) => "a local timestamp such as 2013-01-01T10:15:00".to_owned(),
        Node::Duration => "a duration such as P1DT2H30M".to_owned(),
        Node::Array(_) => "an array".to_owned(),
        Node::Map(_) => "an object".to_owned(),
        Node::Record(record) => format!("an object ({})", record.name),
        Node::Nullable(nullable) => format!("{} or null", expected(&nullable.branch.node)),
        Node::Union(branches) => one_of(branches),
    }
}

fn one_of(branches: &[Branch]) -> String {
    let parts: Vec<String> = branches.iter().map(|branch| expected(&branch.node)).collect();
    parts.join(", or ")
}

/// `A, B, C`, cut short when there are many.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.get(..LISTED) {
        Some(first) if names.len() > LISTED => format!("{} and {} more", first.join(", "), names.len() - LISTED),
        _ => names.join(", "),
    }
}

fn got(found: Found<'_>) -> String {
    match found {
        Found::Text(raw) => format!("string {}", quoted(&String::from_utf8_lossy(&raw.text()))),
        Found::Number(raw) => format!("number {}", shortened(&String::from_utf8_lossy(raw.bytes))),
        Found::Literal(word) => word.to_owned(),
        Found::Object => "an object".to_owned(),
        Found::Array => "an array".to_owned(),
    }
}

/// The text in quotes, with control characters made visible.
fn quoted(text: &str) -> String {
    format!("\"{}\"", visible(&shortened(text)))
}

fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(c.escape_debug()),
            false => shown.push(c),
        }
    }
    shown
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A value of the wrong kind or form.
pub(super) fn mismatch(node: &Node, found: Found<'_>) -> Fault {
    let hint = match (node, found) {
        (Node::Int | Node::Long | Node::Float | Node::Double, Found::Text(raw)) if is_number(&raw.text()) => {
            Some("write the number without quotes")
        }
        (Node::Int | Node::Long, Found::Number(_)) => Some("write it without fraction and exponent"),
        (Node::Boolean, Found::Text(raw)) if matches!(&*raw.text(), b"true" | b"false") => {
            Some("write it without quotes")
        }
        (Node::String, Found::Number(_) | Found::Literal("true" | "false")) => Some("put it in quotes"),
        (Node::Decimal(_) | Node::BigDecimal, Found::Number(_)) => {
            Some("put it in quotes, so that no digit is lost on the way")
        }
        (Node::Timestamp(_) | Node::LocalTimestamp(_), Found::Number(_)) => {
            Some("write it as text: a bare number could count seconds or milliseconds")
        }
        _ => None,
    };
    Fault::new(expected(node), got(found)).hinted(hint)
}

fn is_number(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<f64>().is_ok_and(f64::is_finite))
}

pub(super) fn out_of_range(node: &Node, found: Found<'_>) -> Fault {
    let hint = match node {
        Node::Int => format!("the range is {} to {}", i32::MIN, i32::MAX),
        Node::Long => format!("the range is {} to {}", i64::MIN, i64::MAX),
        _ => "it is too large for the type".to_owned(),
    };
    Fault::new(expected(node), got(found)).hinted(Some(hint))
}

pub(super) fn decimal(node: &Node, found: Found<'_>, fault: DecimalFault) -> Fault {
    let hint = match (fault, node) {
        (DecimalFault::Form, _) => None,
        (DecimalFault::Scale, Node::Decimal(decimal)) => Some(match decimal.scale {
            0 => "leave out what is after the point: nothing is rounded for you".to_owned(),
            scale => format!("round it to {scale} digits after the point: nothing is rounded for you"),
        }),
        (DecimalFault::Precision, Node::Decimal(decimal)) => {
            Some(format!("at most {} digits can stand before the point", decimal.precision - decimal.scale))
        }
        _ => Some("it has too many digits".to_owned()),
    };
    Fault::new(expected(node), got(found)).hinted(hint)
}

pub(super) fn unknown_symbol(node: &Node, symbols: &[Box<str>], raw: RawString<'_>) -> Fault {
    let text = String::from_utf8_lossy(&raw.text()).into_owned();
    let hint = nearest(&text, symbols.iter().map(AsRef::as_ref)).map(|symbol| format!("did you mean \"{symbol}\"?"));
    Fault::new(expected(node), got(Found::Text(raw))).hinted(hint)
}

pub(super) fn wrong_length(node: &Node, bytes: usize) -> Fault {
    Fault::new(expected(node), format!("{bytes} bytes"))
}

pub(super) fn nul() -> Fault {
    Fault::new("text without \\u0000", "text that holds \\u0000").hinted(Some("Postgres cannot store it: take it out"))
}

pub(super) fn missing(node: &Node) -> Fault {
    Fault::new(expected(node), "nothing")
}

pub(super) fn twice(name: &str) -> Fault {
    Fault::new("each field once", format!("field {} again", quoted(name)))
}

pub(super) fn unknown_field(record: &Record, name: &str) -> Fault {
    let fields = || record.fields.iter().map(|field| field.name());
    let hint = match nearest(name, fields()) {
        Some(field) => format!("did you mean \"{field}\"?"),
        None if record.fields.is_empty() => "it has none".to_owned(),
        None => format!("its fields are {}", list(fields())),
    };
    Fault::new(format!("a field of {}", record.name), format!("field {}", quoted(name))).hinted(Some(hint))
}

/// A value wrapped in the name of its branch, as Avro's own JSON has it.
pub(super) fn wrapped(branches: &[Branch], nullable: bool, tag: &str) -> Fault {
    let expected = format!("{}{}", one_of(branches), if nullable { " or null" } else { "" });
    Fault::new(expected, format!("an object with the field \"{tag}\""))
        .hinted(Some(format!("write the value itself, not wrapped in {{\"{tag}\": …}}")))
}

pub(super) fn no_branch(branches: &[Branch], found: Found<'_>) -> Fault {
    Fault::new(one_of(branches), got(found))
}

/// The first fault of the branch that came nearest.
pub(super) fn closest(tag: &str, fault: &Fault) -> String {
    format!("as {tag}, {fault}")
}

/// A break of JSON's grammar.
pub(super) fn syntax(input: &[u8], syntax: Syntax) -> Fault {
    let at = syntax.at as usize;
    let rest = String::from_utf8_lossy(&input[at..input.len().min(at + 64)]).into_owned();
    let got = match rest.chars().next() {
        None => "the end of the text".to_owned(),
        Some(c) => format!("`{}` at byte {at}", visible(c.encode_utf8(&mut [0; 4]))),
    };
    let hint = match (syntax.wanted, rest.as_bytes().first()) {
        (Wanted::End, Some(b'{')) => Some("send several events as an array, or one to a line as application/x-ndjson"),
        (Wanted::FieldName, Some(b'}')) | (Wanted::Value, Some(b']' | b'}')) => {
            Some("take out the comma before it, or add what is missing")
        }
        (Wanted::FieldName | Wanted::Value, Some(b'\'')) => Some("use double quotes"),
        (Wanted::Value, Some(b'N' | b'I')) => Some("write \"NaN\", \"Infinity\" or \"-Infinity\", in quotes"),
        _ => None,
    };
    Fault::new(syntax.wanted.text(), got).hinted(hint)
}

/// A document that is not an object at all.
pub(super) fn no_object(record: &str, found: Found<'_>) -> Fault {
    Fault::new(format!("an object ({record})"), got(found))
}
