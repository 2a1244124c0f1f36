//! Times as people write them in JSON: RFC 3339 timestamps, local timestamps, dates, times of day, ISO 8601 durations.
//!
//! The years are 0001 to 9999 (in UTC), which is what RFC 3339 can write and Postgres prints in the same form. Digits
//! beyond the precision of the schema's type are cut off, never rounded up: many clients print nanoseconds, and an
//! event must not move into the future. Leap seconds (`:60`) are refused, for nothing behind could hold them.

use std::fmt::Write as _;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};

const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 1970-01-01 to 0001-01-01 and to 9999-12-31.
const DAYS: std::ops::RangeInclusive<i64> = -719_162..=2_932_896;

/// Why a text is not the time that was asked for; says what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeFault {
    /// Not of that form at all.
    Form,
    /// No offset from UTC where one is needed.
    NoOffset,
    /// An offset where there must be none.
    Offset,
    /// Of the right form, but there is no such day or time.
    NoSuchTime,
    LeapSecond,
    /// Before the year 0001 or after 9999, in UTC.
    Years,
    /// Not within 1677-09-21 to 2262-04-11.
    Nanos,
}

impl TimeFault {
    pub(super) fn hint(self) -> Option<&'static str> {
        match self {
            Self::Form => None,
            Self::NoOffset => Some("add the offset from UTC, such as Z or +01:00"),
            Self::Offset => Some("leave the offset out: this field is a local time"),
            Self::NoSuchTime => Some("the calendar has no such day or time"),
            Self::LeapSecond => Some("leap seconds cannot be stored: write :59"),
            Self::Years => Some("years from 0001 to 9999 can be stored"),
            Self::Nanos => Some("a timestamp in nanoseconds can be from 1677-09-22 to 2262-04-11"),
        }
    }
}

/// Precision of a timestamp type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

impl Unit {
    fn per_second(self) -> i64 {
        match self {
            Self::Millis => 1_000,
            Self::Micros => 1_000_000,
            Self::Nanos => 1_000_000_000,
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Millis => 3,
            Self::Micros => 6,
            Self::Nanos => 9,
        }
    }
}

/// `2013-01-01T10:15:00.5+01:00` as units since the epoch.
pub(super) fn timestamp(text: &[u8], unit: Unit) -> Result<i64, TimeFault> {
    let (days, nanos, rest) = date_and_time(text)?;
    let offset = offset_seconds(rest)?;
    units(days, nanos, offset, unit)
}

/// `2013-01-01T10:15:00.5` as units since 1970-01-01T00:00:00 on the same clock.
pub(super) fn local_timestamp(text: &[u8], unit: Unit) -> Result<i64, TimeFault> {
    let (days, nanos, rest) = date_and_time(text)?;
    match rest {
        [] => units(days, nanos, 0, unit),
        _ if offset_seconds(rest).is_ok() => Err(TimeFault::Offset),
        _ => Err(TimeFault::Form),
    }
}

/// `2013-01-31` as days since the epoch.
pub(super) fn date(text: &[u8]) -> Result<i32, TimeFault> {
    match civil_day(text)? {
        // Within ±3,000,000, as `DAYS` says.
        (days, []) => Ok(days as i32),
        _ => Err(TimeFault::Form),
    }
}

/// `10:15` or `10:15:00.123` as nanoseconds since midnight.
pub(super) fn time_of_day(text: &[u8]) -> Result<i64, TimeFault> {
    match clock(text, true)? {
        (nanos, []) => Ok(nanos),
        (_, rest) if offset_seconds(rest).is_ok() => Err(TimeFault::Offset),
        _ => Err(TimeFault::Form),
    }
}

fn units(days: i64, nanos: i64, offset: i64, unit: Unit) -> Result<i64, TimeFault> {
    let seconds = days * SECONDS_PER_DAY + nanos / 1_000_000_000 - offset;
    if !DAYS.contains(&seconds.div_euclid(SECONDS_PER_DAY)) {
        return Err(TimeFault::Years);
    }
    let fraction = nanos % 1_000_000_000 / (1_000_000_000 / unit.per_second());
    seconds.checked_mul(unit.per_second()).and_then(|units| units.checked_add(fraction)).ok_or(TimeFault::Nanos)
}

fn date_and_time(text: &[u8]) -> Result<(i64, i64, &[u8]), TimeFault> {
    let (days, rest) = civil_day(text)?;
    let [b'T' | b't' | b' ', rest @ ..] = rest else { return Err(TimeFault::Form) };
    let (nanos, rest) = clock(rest, false)?;
    Ok((days, nanos, rest))
}

/// Two digits at the start of `text`.
#[inline]
fn two(text: &[u8]) -> Option<i64> {
    let [tens @ b'0'..=b'9', ones @ b'0'..=b'9', ..] = text else { return None };
    Some(i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

/// The day at the start of `text`, in days since the epoch, and what follows it.
fn civil_day(text: &[u8]) -> Result<(i64, &[u8]), TimeFault> {
    let [_, _, _, _, b'-', _, _, b'-', _, _, rest @ ..] = text else { return Err(TimeFault::Form) };
    let (Some(century), Some(year), Some(month), Some(day)) =
        (two(text), two(&text[2..]), two(&text[5..]), two(&text[8..]))
    else {
        return Err(TimeFault::Form);
    };
    let year = century * 100 + year;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        1..=12 => 31,
        _ => return Err(TimeFault::NoSuchTime),
    };
    if day == 0 || day > length {
        return Err(TimeFault::NoSuchTime);
    }
    if year == 0 {
        return Err(TimeFault::Years);
    }
    Ok((days_since_epoch(year, month, day), rest))
}

/// Counts in years that begin in March, so that the leap day is a year's last, from year 0 of the Gregorian calendar.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    // (153 m + 2) / 5 are the days of the m months since the first of March.
    let in_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + in_year - 719_468
}

/// The time of day at the start of `text`, in nanoseconds, and what follows it.
fn clock(text: &[u8], seconds_optional: bool) -> Result<(i64, &[u8]), TimeFault> {
    let [_, _, b':', _, _, rest @ ..] = text else { return Err(TimeFault::Form) };
    let (Some(hour), Some(minute)) = (two(text), two(&text[3..])) else { return Err(TimeFault::Form) };
    if hour > 23 || minute > 59 {
        return Err(TimeFault::NoSuchTime);
    }
    let minutes = hour * 60 + minute;
    let [b':', rest @ ..] = rest else {
        return if seconds_optional { Ok((minutes * 60_000_000_000, rest)) } else { Err(TimeFault::Form) };
    };
    let second = two(rest).ok_or(TimeFault::Form)?;
    match second {
        0..=59 => {}
        60 => return Err(TimeFault::LeapSecond),
        _ => return Err(TimeFault::NoSuchTime),
    }
    let nanos = (minutes * 60 + second) * 1_000_000_000;
    let [b'.', rest @ ..] = &rest[2..] else { return Ok((nanos, &rest[2..])) };
    let (fraction, digits) = fraction(rest, 9);
    if digits == 0 {
        return Err(TimeFault::Form);
    }
    Ok((nanos + fraction, &rest[digits..]))
}

/// The digits at the start of `text` as a fraction, in units of the last of `places` places, and how many there are.
fn fraction(text: &[u8], places: usize) -> (i64, usize) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let kept = text[..digits].iter().map(|digit| i64::from(digit - b'0')).chain(std::iter::repeat(0)).take(places);
    (kept.fold(0, |number, digit| number * 10 + digit), digits)
}

/// `Z`, `+01:00` or `-05:30`, being all of `text`.
fn offset_seconds(text: &[u8]) -> Result<i64, TimeFault> {
    let (sign, rest) = match text {
        [b'Z' | b'z'] => return Ok(0),
        [] => return Err(TimeFault::NoOffset),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return Err(TimeFault::Form),
    };
    let [_, _, b':', _, _] = rest else { return Err(TimeFault::Form) };
    match (two(rest), two(&rest[3..])) {
        (Some(hours @ 0..=23), Some(minutes @ 0..=59)) => Ok(sign * (hours * 3600 + minutes * 60)),
        (Some(_), Some(_)) => Err(TimeFault::NoSuchTime),
        _ => Err(TimeFault::Form),
    }
}

/// An ISO 8601 duration such as `P1Y2M10DT2H30M1.5S`: months, days, milliseconds, as Avro keeps them apart.
pub(super) fn duration(text: &[u8]) -> Option<[u32; 3]> {
    let mut rest = text.strip_prefix(b"P")?;
    let mut parts = [0_u64; 3];
    let mut in_time = false;
    // Designators come in this order, each at most once.
    let mut allowed: &[u8] = b"YMWD";
    let mut some = false;
    loop {
        if !in_time && let Some(time) = rest.strip_prefix(b"T") {
            (rest, in_time, allowed, some) = (time, true, b"HMS", false);
        }
        if rest.is_empty() {
            break;
        }
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number: u64 = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        rest = &rest[digits..];
        let mut millis = 0;
        if in_time && let Some(fraction) = rest.strip_prefix(b".") {
            let (thousandths, digits) = self::fraction(fraction, 3);
            millis = thousandths;
            rest = &fraction[digits..];
            if digits == 0 || rest.first() != Some(&b'S') {
                return None;
            }
        }
        let (&designator, after) = rest.split_first()?;
        let at = allowed.iter().position(|&byte| byte == designator)?;
        (rest, allowed, some) = (after, &allowed[at + 1..], true);
        let (part, factor) = match (in_time, designator) {
            (false, b'Y') => (0, 12),
            (false, b'M') => (0, 1),
            (false, b'W') => (1, 7),
            (false, _) => (1, 1),
            (true, b'H') => (2, 3_600_000),
            (true, b'M') => (2, 60_000),
            (true, _) => (2, 1_000),
        };
        parts[part] = number.checked_mul(factor)?.checked_add(millis as u64)?.checked_add(parts[part])?;
    }
    let [months, days, millis] = parts.map(|part| u32::try_from(part).ok());
    some.then_some([months?, days?, millis?])
}

/// Appends the timestamp in UTC: `2013-01-01T10:15:00Z`, the fraction whole or not at all.
pub(super) fn write_timestamp(units: i64, unit: Unit, zone: &str, out: &mut String) {
    let seconds = units.div_euclid(unit.per_second());
    let fraction = units.rem_euclid(unit.per_second());
    let at = DateTime::from_timestamp(seconds, 0).map(|at| at.naive_utc()).unwrap_or(NaiveDateTime::MIN);
    // Writing to a string cannot fail.
    let _ = write!(out, "{}", at.format("%Y-%m-%dT%H:%M:%S"));
    write_fraction(fraction, unit, out);
    out.push_str(zone);
}

/// Appends the date: `2013-01-31`.
pub(super) fn write_date(days: i32, out: &mut String) {
    let _ = write!(out, "{}", NaiveDate::from_epoch_days(days).unwrap_or(NaiveDate::MIN));
}

/// Appends the time of day: `10:15:00.123`, the fraction whole or not at all.
pub(super) fn write_time_of_day(units: i64, unit: Unit, out: &mut String) {
    let seconds = u32::try_from(units / unit.per_second()).unwrap_or(u32::MAX);
    let at = NaiveTime::from_num_seconds_from_midnight_opt(seconds, 0).unwrap_or(NaiveTime::MIN);
    let _ = write!(out, "{}", at.format("%H:%M:%S"));
    write_fraction(units % unit.per_second(), unit, out);
}

fn write_fraction(fraction: i64, unit: Unit, out: &mut String) {
    if fraction != 0 {
        let _ = write!(out, ".{fraction:0width$}", width = unit.digits());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(text: &str) -> Result<i64, TimeFault> {
        timestamp(text.as_bytes(), Unit::Micros)
    }

    #[test]
    fn timestamps_of_every_sound_form_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:00.000001z", 1),
            ("1970-01-01 01:00:00+01:00", 0),
            ("1969-12-31T23:59:59.999999Z", -1),
            ("1969-12-31T23:59:59.9999999Z", -1),
            ("2013-01-01T10:15:00Z", 1_357_035_300_000_000),
            ("2013-01-01T10:15:00.5-00:30", 1_357_037_100_500_000),
            ("2012-02-29T23:59:59.123456789Z", 1_330_559_999_123_456),
        ] {
            assert_eq!(micros(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn unsound_timestamps_are_refused_with_the_reason() {
        use TimeFault::{Form, LeapSecond, NoOffset, NoSuchTime, Years};
        for (text, fault) in [
            ("", Form),
            ("yesterday", Form),
            ("2013-01-01", Form),
            ("2013-01-01T10:15Z", Form),
            ("2013-01-01T10:15:00", NoOffset),
            ("2013-01-01T10:15:00.Z", Form),
            ("2013-01-01T10:15:00+0100", Form),
            ("2013-01-01T10:15:00Zz", Form),
            ("2013-01-01T10:15:00+24:00", NoSuchTime),
            ("2013-02-29T10:15:00Z", NoSuchTime),
            ("1900-02-29T10:15:00Z", NoSuchTime),
            ("2013-13-01T10:15:00Z", NoSuchTime),
            ("2013-00-01T10:15:00Z", NoSuchTime),
            ("2013-01-00T10:15:00Z", NoSuchTime),
            ("2013-01-01T24:00:00Z", NoSuchTime),
            ("2016-12-31T23:59:60Z", LeapSecond),
            ("0000-06-01T00:00:00Z", Years),
            ("0001-01-01T00:00:00+00:01", Years),
            ("9999-12-31T23:59:59-00:01", Years),
            ("-2013-01-01T10:15:00Z", Form),
        ] {
            assert_eq!(micros(text), Err(fault), "{text}");
        }
        assert_eq!(timestamp(b"2262-04-12T00:00:00Z", Unit::Nanos), Err(TimeFault::Nanos));
        assert_eq!(local_timestamp(b"2013-01-01T10:15:00Z", Unit::Micros), Err(TimeFault::Offset));
        assert_eq!(time_of_day(b"10:15:00+01:00"), Err(TimeFault::Offset));
    }

    #[test]
    fn durations_keep_months_days_and_milliseconds_apart() {
        assert_eq!(duration(b"P1Y2M1W3DT4H5M6.7S"), Some([14, 10, 14_706_700]));
        assert_eq!(duration(b"PT0S"), Some([0, 0, 0]));
        assert_eq!(duration(b"P0D"), Some([0, 0, 0]));
        for text in [
            "",
            "P",
            "PT",
            "P1",
            "1D",
            "P1DT",
            "P1D1Y",
            "P-1D",
            "PT1.5H",
            "P1.5D",
            "PT1.S",
            "P5000000000D",
            "P1D ",
            "PT1S1S",
        ] {
            assert_eq!(duration(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn timestamps_mean_what_chrono_says(
            seconds in -62_135_500_000_i64..253_402_200_000, nanos in 0..1_000_000_000_u32, offset in -1439..1440_i32, digits in 0..10_usize) {
            let zone = chrono::FixedOffset::east_opt(offset * 60).unwrap();
            let at = DateTime::from_timestamp(seconds, nanos).unwrap().with_timezone(&zone);
            let fraction = if digits == 0 { String::new() } else { format!(".{nanos:09}")[..=digits].to_owned() };
            let text = format!("{}{fraction}{}", at.format("%Y-%m-%dT%H:%M:%S"), at.format("%:z"));
            let chrono = DateTime::parse_from_rfc3339(&text).unwrap();
            prop_assert_eq!(timestamp(text.as_bytes(), Unit::Micros), Ok(chrono.timestamp_micros()));
            prop_assert_eq!(timestamp(text.as_bytes(), Unit::Millis), Ok(chrono.timestamp_millis()));
            prop_assert_eq!(timestamp(text.as_bytes(), Unit::Nanos).ok(), chrono.timestamp_nanos_opt());
            let local = format!("{}{fraction}", at.format("%Y-%m-%dT%H:%M:%S"));
            prop_assert_eq!(
                local_timestamp(local.as_bytes(), Unit::Micros), Ok(chrono.naive_local().and_utc().timestamp_micros()));
        }

        #[test]
        fn what_is_accepted_chrono_accepts(text in "[0-2][0-9]{3}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,3})?(Z|[+-][0-2][0-9]:[0-6][0-9]|)") {
            if let Ok(micros) = micros(&text) {
                let chrono = DateTime::parse_from_rfc3339(&text).unwrap();
                prop_assert_eq!(micros, chrono.timestamp_micros());
            }
        }

        #[test]
        fn dates_and_times_mean_what_chrono_says(days in -719_162..2_932_897_i32, seconds in 0..86_400_u32, nanos in 0..1_000_000_000_u32) {
            let day = NaiveDate::from_epoch_days(days).unwrap();
            prop_assert_eq!(date(day.to_string().as_bytes()), Ok(days));
            let time = NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanos).unwrap();
            let expected = i64::from(seconds) * 1_000_000_000 + i64::from(nanos);
            prop_assert_eq!(time_of_day(time.to_string().as_bytes()), Ok(expected));
        }

        #[test]
        fn what_is_written_is_read(micros in -62_135_596_800_000_000_i64..253_402_300_800_000_000) {
            let mut text = String::new();
            write_timestamp(micros, Unit::Micros, "Z", &mut text);
            prop_assert_eq!(timestamp(text.as_bytes(), Unit::Micros), Ok(micros));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "[0-9TZPYMWDHSt:. +é-]{0,30}") {
            let text = text.as_bytes();
            let _ = (timestamp(text, Unit::Nanos), local_timestamp(text, Unit::Nanos), date(text), time_of_day(text), duration(text));
        }
    }
}
