//! The fingerprint of a document: equal for equal JSON values, however they are written.
//!
//! The order of members counts for nothing, as do white space, escapes in texts and the spelling of numbers (`1.50`, `15e-1`);
//! texts count as they are. It is of the JSON and not of the Avro, because the same document sent again may meet a newer
//! version of its schema. It stands in the log and is compared with others years later, so it must never change. It tells
//! mistakes apart, and does not withstand malice: who wants two documents with one fingerprint may well find them.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::scan::{Scanner, Syntax};

/// The fingerprint of a record of that type: SipHash-2-4 with 128 bits over the parts of the value. None for what is not
/// JSON. Allocates only for texts with escapes.
pub fn fingerprint(record_type: &str, json: &[u8]) -> Option<u128> {
    let mut scan = Scanner::new(std::str::from_utf8(json).ok()?);
    let mut hash = SipHasher24::new();
    part(&mut hash, b't', record_type.as_bytes());
    value(&mut scan, &mut hash).and_then(|()| scan.end()).ok()?;
    Some(hash.finish128().into())
}

/// Bytes with their kind and length, so that no two sequences of parts are the same bytes.
fn part(hash: &mut SipHasher24, kind: u8, bytes: &[u8]) {
    hash.write(&[kind]);
    hash.write(&(bytes.len() as u64).to_le_bytes());
    hash.write(bytes);
}

fn value(scan: &mut Scanner<'_>, hash: &mut SipHasher24) -> Result<(), Syntax> {
    match scan.next_byte() {
        Some(b'"') => part(hash, b's', &scan.string()?.text()),
        Some(b'-' | b'0'..=b'9') => number(hash, scan.number()?.bytes),
        Some(b'{') => object(scan, hash)?,
        Some(b'[') => array(scan, hash)?,
        _ => part(hash, b'l', scan.literal()?.as_bytes()),
    }
    Ok(())
}

/// The sum of what the members are by themselves is the same in any order.
fn object(scan: &mut Scanner<'_>, hash: &mut SipHasher24) -> Result<(), Syntax> {
    scan.open()?;
    let (mut members, mut sum) = (0_u64, 0_u128);
    let mut more = !scan.close_empty(b'}');
    while more {
        let mut member = SipHasher24::new();
        part(&mut member, b'm', &scan.field_name()?.text());
        scan.colon()?;
        value(scan, &mut member)?;
        members += 1;
        sum = sum.wrapping_add(member.finish128().into());
        more = scan.more(b'}')?;
    }
    hash.write(b"{");
    hash.write(&members.to_le_bytes());
    hash.write(&sum.to_le_bytes());
    Ok(())
}

fn array(scan: &mut Scanner<'_>, hash: &mut SipHasher24) -> Result<(), Syntax> {
    scan.open()?;
    hash.write(b"[");
    let mut more = !scan.close_empty(b']');
    while more {
        value(scan, hash)?;
        more = scan.more(b']')?;
    }
    hash.write(b"]");
    Ok(())
}

/// Sign, power of ten, and digits without the zeros at both ends; zero has none of them.
fn number(hash: &mut SipHasher24, text: &[u8]) {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let cut = |text: &[u8], at: Option<usize>| at.map_or(text.len(), |at| at);
    let end = cut(text, text.iter().position(|byte| matches!(byte, b'e' | b'E')));
    let (mantissa, power) = (&text[..end], text.get(end + 1..).map_or(0, power_of));
    let point = cut(mantissa, mantissa.iter().position(|byte| *byte == b'.'));
    let (whole, fraction) = (&mantissa[..point], mantissa.get(point + 1..).unwrap_or_default());

    let fraction = without_zeros_behind(fraction);
    let (mut whole, mut power) = (without_zeros_before(whole), power.saturating_sub(length(fraction)));
    if fraction.is_empty() {
        let digits = without_zeros_behind(whole);
        power = power.saturating_add(length(whole) - length(digits));
        whole = digits;
    }
    let fraction = if whole.is_empty() { without_zeros_before(fraction) } else { fraction };
    let digits = whole.len() + fraction.len();
    let (negative, power) = if digits == 0 { (false, 0) } else { (negative, power) };
    hash.write(&[b'n', u8::from(negative)]);
    hash.write(&power.to_le_bytes());
    hash.write(&(digits as u64).to_le_bytes());
    hash.write(whole);
    hash.write(fraction);
}

fn length(digits: &[u8]) -> i64 {
    i64::try_from(digits.len()).unwrap_or(i64::MAX)
}

/// What stands behind the `e`; beyond 64 bits all are the same.
fn power_of(text: &[u8]) -> i64 {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let power =
        digits.iter().fold(0_i64, |power, digit| power.saturating_mul(10).saturating_add((digit - b'0').into()));
    if negative { -power } else { power }
}

fn without_zeros_before(digits: &[u8]) -> &[u8] {
    &digits[digits.iter().take_while(|digit| **digit == b'0').count()..]
}

fn without_zeros_behind(digits: &[u8]) -> &[u8] {
    &digits[..digits.len() - digits.iter().rev().take_while(|digit| **digit == b'0').count()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn of(json: &str) -> u128 {
        fingerprint("Paid", json.as_bytes()).unwrap_or_else(|| panic!("{json}"))
    }

    /// It is in the log of whoever has used Millpond: one that comes out otherwise is a broken promise.
    #[test]
    fn fingerprint_is_for_ever() {
        let json = r#"{"account": "é\n", "amount": -12.50, "tags": [1e3, null, true, {}], "more": {"a": "", "b": []}}"#;
        assert_eq!(format!("{:032x}", of(json)), "89eebc4b37139a1f7775cdc266a65c68");
    }

    #[test]
    fn spelling_of_numbers_does_not_count() {
        let same = [
            &["1", "1.0", "1e0", "10e-1", "0.1E+1", "1.000e000", "0.01e2"][..],
            &["0", "-0", "0.0", "0e9", "-0.000e-5", "0E+0"],
            &["-1200", "-12e2", "-1.2e3", "-0.0012E6", "-1200.00"],
            &["12.5", "12.50", "125e-1", "0.125e2"],
            &["100000000000000000000000001", "1.00000000000000000000000001e26"],
            &["0.001", "1e-3", "0.00100"],
        ];
        for (at, spellings) in same.iter().enumerate() {
            let of_group: Vec<u128> = spellings.iter().map(|text| of(text)).collect();
            assert!(of_group.iter().all(|hash| *hash == of_group[0]), "{spellings:?}");
            for other in &same[at + 1..] {
                assert_ne!(of_group[0], of(other[0]), "{spellings:?} and {other:?}");
            }
        }
        let distinct = ["1", "-1", "10", "0.1", "101", "11", "1e400", "1e401", "\"1\"", "1.01"];
        let mut found: Vec<u128> = distinct.iter().map(|text| of(text)).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), distinct.len());
    }

    #[test]
    fn what_differs_in_meaning_differs() {
        let documents = [
            "{}",
            "[]",
            "null",
            "\"\"",
            "false",
            "true",
            "\"null\"",
            "[[]]",
            "[[],[]]",
            "[{}]",
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"b":1}"#,
            r#"{"a":1,"b":1}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"a":null}"#,
            r#"{"a":[1,2]}"#,
            r#"{"a":[2,1]}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":1,"b":2}"#,
            r#"["a","b"]"#,
            r#"["ab"]"#,
            r#"["a",["b"]]"#,
            r#"{"ab":""}"#,
            r#"{"a":"b"}"#,
        ];
        for (at, one) in documents.iter().enumerate() {
            for other in &documents[at + 1..] {
                assert_ne!(of(one), of(other), "{one} and {other}");
            }
        }
        assert_ne!(fingerprint("Paid", b"{}"), fingerprint("Refunded", b"{}"));
        assert_eq!(fingerprint("Paid", b"{"), None);
        assert_eq!(fingerprint("Paid", b"\xff"), None);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-2000..2000_i64).prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c\\\\\"/\n\u{e9}\u{1F600}]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-d\"]{0,2}", inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    /// The value as text: every choice that JSON leaves is made by the bytes of `choices`, taken in turn.
    fn written(value: &Value, choices: &mut impl Iterator<Item = u8>, out: &mut String) {
        let mut choice = |of: u8| choices.next().unwrap_or_default() % of;
        out.push_str(["", " ", "\n\t", "  "][usize::from(choice(4))]);
        match value {
            Value::Number(number) => {
                let text = number.to_string();
                out.push_str(&match choice(4) {
                    0 => text,
                    1 => format!("{text}.0"),
                    2 if text != "0" => format!("{text}0e-1"),
                    _ => format!("{text}.00E+0"),
                });
            }
            Value::String(text) => string(text, choice(2) == 0, out),
            Value::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    written(item, choices, out);
                }
                out.push(']');
            }
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                let by = usize::from(choice(8)).min(members.len());
                members.rotate_left(by);
                if choice(2) == 0 {
                    members.reverse();
                }
                let escaped = choice(2) == 0;
                out.push('{');
                for (at, (name, member)) in members.into_iter().enumerate() {
                    out.push_str(if at > 0 { " ," } else { "" });
                    string(name, escaped, out);
                    out.push_str(" :");
                    written(member, choices, out);
                }
                out.push('}');
            }
            plain => out.push_str(&plain.to_string()),
        }
    }

    fn string(text: &str, escaped: bool, out: &mut String) {
        if !escaped {
            return out.push_str(&Value::from(text).to_string());
        }
        let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
        out.push_str(&format!("\"{}\"", units.collect::<String>()));
    }

    proptest! {
        #[test]
        fn same_value_has_the_same_fingerprint_however_it_is_written(
            value in value(), one in prop::collection::vec(any::<u8>(), 0..60), other in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let text = |choices: Vec<u8>| {
                let mut out = String::new();
                written(&value, &mut choices.into_iter(), &mut out);
                out
            };
            let (one, other) = (text(one), text(other));
            prop_assert_eq!(of(&one), of(&other), "{} and {}", one, other);
        }

        #[test]
        fn other_values_have_other_fingerprints(one in value(), other in value()) {
            // `null` and no member are two things, and so are 1 and "1": as serde_json compares.
            prop_assert_eq!(one == other, of(&one.to_string()) == of(&other.to_string()), "{} and {}", one, other);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), text in r#"[-0-9.eE+\[\]{}",: ]{0,30}"#) {
            let _ = fingerprint("", &bytes);
            let _ = fingerprint("", text.as_bytes());
        }

        #[test]
        fn numbers_count_by_their_value(digits in 0..100_000_i64, scale in 0..6_u32, more in 0..4_usize) {
            let ten = 10_i64.pow(scale);
            let width = scale as usize;
            let plain = format!("{}.{:0width$}{}", digits / ten, digits % ten, "0".repeat(more));
            let plain = if scale == 0 { format!("{digits}.0") } else { plain };
            prop_assert_eq!(of(&plain), of(&format!("{digits}e-{scale}")), "{}", plain);
            prop_assert_ne!(of(&plain), of(&format!("{}e-{scale}", digits + 1)));
        }
    }

    #[test]
    fn member_given_twice_is_not_what_it_is_once() {
        // No such document gets past the encoder; the fingerprint must not make one of it all the same.
        assert_ne!(of(r#"{"a":1,"a":1}"#), of(r#"{"a":1}"#));
        assert_eq!(of(&json!({"a": 1, "b": [1, 2]}).to_string()), of(r#"{"b":[1,2.0],"a":1}"#));
    }
}
