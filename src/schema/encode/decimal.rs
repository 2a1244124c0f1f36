//! Decimal numbers as people write them, and as Avro keeps them: the unscaled integer in two's complement, big-endian.

use crate::schema::limits::MAX_DECIMAL_DIGITS;

/// Why a text is not a decimal that the schema can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecimalFault {
    /// Not digits with at most one point, after an optional minus sign.
    Form,
    /// More digits after the point than the scale, and not zeros.
    Scale,
    /// More digits than the precision.
    Precision,
}

/// Appends the unscaled integer of `text` at `scale` digits after the point, in as few bytes as hold it.
pub(super) fn unscaled(text: &[u8], precision: usize, scale: usize, out: &mut Vec<u8>) -> Result<(), DecimalFault> {
    let (negative, whole, fraction) = split(text)?;
    let kept = fraction.len().min(scale);
    if fraction[kept..].iter().any(|&digit| digit != b'0') {
        return Err(DecimalFault::Scale);
    }
    let padding = scale - kept;
    let digits = || whole.iter().chain(&fraction[..kept]).map(|digit| digit - b'0').skip_while(|&digit| digit == 0);
    let significant = digits().count();
    if significant > 0 && significant + padding > precision {
        return Err(DecimalFault::Precision);
    }
    let digits = digits().chain(std::iter::repeat_n(0, padding));
    if significant == 0 {
        out.push(0);
    } else if precision <= 38 {
        let magnitude = digits.fold(0_i128, |number, digit| number * 10 + i128::from(digit));
        write_i128(if negative { -magnitude } else { magnitude }, out);
    } else {
        write_wide(negative, digits, out);
    }
    Ok(())
}

/// The unscaled integer with the scale that the text itself has, for the type that leaves it open.
pub(super) fn with_own_scale(text: &[u8], out: &mut Vec<u8>) -> Result<usize, DecimalFault> {
    let (_, _, fraction) = split(text)?;
    if fraction.len() > MAX_DECIMAL_DIGITS {
        return Err(DecimalFault::Scale);
    }
    unscaled(text, MAX_DECIMAL_DIGITS, fraction.len(), out)?;
    Ok(fraction.len())
}

/// Sign, digits before the point, digits after it.
fn split(text: &[u8]) -> Result<(bool, &[u8], &[u8]), DecimalFault> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match memchr::memchr(b'.', text) {
        Some(at) if at + 1 < text.len() => (&text[..at], &text[at + 1..]),
        Some(_) => return Err(DecimalFault::Form),
        None => (text, &[][..]),
    };
    let digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(DecimalFault::Form);
    }
    Ok((negative, whole, fraction))
}

fn write_i128(number: i128, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    let sign = if number < 0 { 0xFF } else { 0 };
    // A leading byte says nothing when it only repeats the sign that the next one shows.
    let idle = (0..15).take_while(|&at| bytes[at] == sign && (bytes[at + 1] ^ sign) < 0x80).count();
    out.extend_from_slice(&bytes[idle..]);
}

/// Schoolbook: the magnitude in base 256, least byte first, then negated if need be.
fn write_wide(negative: bool, digits: impl Iterator<Item = u8>, out: &mut Vec<u8>) {
    let mut magnitude: Vec<u8> = Vec::with_capacity(32);
    for digit in digits {
        let mut carry = u16::from(digit);
        for byte in &mut magnitude {
            let sum = u16::from(*byte) * 10 + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        if carry > 0 {
            magnitude.push(carry as u8);
        }
    }
    // Room for the sign bit.
    if magnitude.last().is_some_and(|byte| *byte >= 0x80) {
        magnitude.push(0);
    }
    if negative {
        let mut carry = true;
        for byte in &mut magnitude {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
        // -128 fits one byte, although 128 does not.
        while let [.., before, 0xFF] = magnitude[..]
            && before >= 0x80
        {
            magnitude.pop();
        }
    }
    out.extend(magnitude.iter().rev());
}

/// Reads an unscaled integer of at most 16 bytes.
pub(super) fn read_i128(bytes: &[u8]) -> Option<i128> {
    if bytes.len() > 16 {
        return None;
    }
    let sign = if bytes.first().is_some_and(|byte| *byte >= 0x80) { -1 } else { 0 };
    Some(bytes.iter().fold(sign, |number, &byte| number << 8 | i128::from(byte)))
}

/// Appends the number in its shortest exact form with all digits of its scale: `12.30`.
pub(super) fn write_text(unscaled: i128, scale: usize, out: &mut String) {
    if unscaled < 0 {
        out.push('-');
    }
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    out.push_str(whole);
    if scale > 0 {
        out.push('.');
        out.push_str(fraction);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(text: &str, precision: usize, scale: usize) -> Result<Vec<u8>, DecimalFault> {
        let mut out = Vec::new();
        unscaled(text.as_bytes(), precision, scale, &mut out).map(|()| out)
    }

    #[test]
    fn decimals_keep_every_digit() {
        for (text, expected) in [
            ("0", vec![0]),
            ("-0.00", vec![0]),
            ("1.27", vec![127]),
            ("1.28", vec![0, 128]),
            ("-1.28", vec![128]),
            ("-1.29", vec![0xFF, 0x7F]),
            ("12.3", vec![4, 206]),
            ("0012.300", vec![4, 206]),
        ] {
            assert_eq!(encoded(text, 10, 2), Ok(expected.clone()), "{text}");
            assert_eq!(encoded(text, 100, 2), Ok(expected), "{text}, wide");
        }
    }

    #[test]
    fn unsound_decimals_are_refused_with_the_reason() {
        use DecimalFault::{Form, Precision, Scale};
        for (text, fault) in [
            ("", Form),
            ("-", Form),
            ("1.", Form),
            (".5", Form),
            ("+1", Form),
            ("1e3", Form),
            ("1,5", Form),
            ("1.2.3", Form),
            ("--1", Form),
            ("1.234", Scale),
            ("1000", Precision),
            ("-999.999", Scale),
        ] {
            assert_eq!(encoded(text, 5, 2), Err(fault), "{text}");
        }
        assert!(encoded("999.99", 5, 2).is_ok());
    }

    proptest! {
        #[test]
        fn wide_and_narrow_agree(number in any::<i64>(), scale in 0..5_usize) {
            let text = number.to_string();
            let bytes = encoded(&text, 38, scale).unwrap();
            prop_assert_eq!(&bytes, &encoded(&text, 60, scale).unwrap());
            prop_assert_eq!(read_i128(&bytes), Some(i128::from(number) * 10_i128.pow(scale as u32)));
            let mut shown = String::new();
            write_text(i128::from(number), scale, &mut shown);
            prop_assert_eq!(read_i128(&encoded(&shown, 38, scale).unwrap()), Some(i128::from(number)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[-+0-9.eé]{0,60}", precision in 1..60_usize, scale in 0..40_usize) {
            let _ = encoded(&text, precision.max(scale), scale);
            let _ = with_own_scale(text.as_bytes(), &mut Vec::new());
        }
    }
}
