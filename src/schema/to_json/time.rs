//! Instants, dates and times of day as text: RFC 3339, the fraction of a second whole or not at all.
//!
//! Total: every 64-bit value has a text. Years outside 0000–9999, which RFC 3339 has no place for, are written with
//! their sign, as ISO 8601 does.

use crate::schema::resolve::Unit;

const DAY_SECONDS: i64 = 86_400;

impl Unit {
    /// How many there are in a second.
    pub(in crate::schema) const fn per_second(self) -> i64 {
        match self {
            Unit::Millis => 1_000,
            Unit::Micros => 1_000_000,
            Unit::Nanos => 1_000_000_000,
        }
    }
}

/// Appends `2013-01-01T10:15:00.250` for a count of `unit` since 1970.
pub(super) fn timestamp(count: i64, unit: Unit, out: &mut Vec<u8>) {
    let seconds = count.div_euclid(unit.per_second());
    date(seconds.div_euclid(DAY_SECONDS), out);
    out.push(b'T');
    clock(seconds.rem_euclid(DAY_SECONDS), count.rem_euclid(unit.per_second()), unit, out);
}

/// Appends `10:15:00.250` for a count of `unit` since midnight.
pub(super) fn time_of_day(count: i64, unit: Unit, out: &mut Vec<u8>) {
    clock(count.div_euclid(unit.per_second()), count.rem_euclid(unit.per_second()), unit, out);
}

fn clock(seconds: i64, fraction: i64, unit: Unit, out: &mut Vec<u8>) {
    let two = |value: i64| [b'0' + (value / 10) as u8, b'0' + (value % 10) as u8];
    let ([h1, h2], [m1, m2], [s1, s2]) = (two(seconds / 3600), two(seconds / 60 % 60), two(seconds % 60));
    out.extend_from_slice(&[h1, h2, b':', m1, m2, b':', s1, s2]);
    decimals(fraction, unit.per_second(), out);
}

/// Appends `.250` for 250 of 1000, and nothing for 0.
pub(super) fn decimals(fraction: i64, whole: i64, out: &mut Vec<u8>) {
    if fraction == 0 {
        return;
    }
    out.push(b'.');
    let mut place = whole / 10;
    while place > 0 {
        out.push(b'0' + (fraction / place % 10) as u8);
        place /= 10;
    }
}

/// Appends `2013-01-01` for days since 1970, in the proleptic Gregorian calendar.
pub(super) fn date(days: i64, out: &mut Vec<u8>) {
    // Counted from 0000-03-01: the leap day is the last day of a year, and 400 years always have as many days.
    const ERA_DAYS: i64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // from March
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + 400 * era + i64::from(month <= 2);
    write_year(year, out);
    let two = |value: i64| [b'-', b'0' + (value / 10) as u8, b'0' + (value % 10) as u8];
    out.extend_from_slice(&two(month));
    out.extend_from_slice(&two(day_of_month));
}

fn write_year(year: i64, out: &mut Vec<u8>) {
    if !(0..=9_999).contains(&year) {
        out.push(if year < 0 { b'-' } else { b'+' });
    }
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(year.unsigned_abs()).as_bytes();
    out.extend_from_slice(&b"0000"[digits.len().min(4)..]);
    out.extend_from_slice(digits);
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, NaiveDate, SecondsFormat};
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fraction_is_written_whole_or_not_at_all() {
        assert_eq!(text(|out| timestamp(0, Unit::Millis, out)), "1970-01-01T00:00:00");
        assert_eq!(text(|out| timestamp(-1, Unit::Millis, out)), "1969-12-31T23:59:59.999");
        assert_eq!(text(|out| timestamp(1, Unit::Nanos, out)), "1970-01-01T00:00:00.000000001");
        assert_eq!(text(|out| timestamp(1_357_035_300_250_000, Unit::Micros, out)), "2013-01-01T10:15:00.250000");
        assert_eq!(text(|out| time_of_day(86_399_999, Unit::Millis, out)), "23:59:59.999");
        assert_eq!(text(|out| time_of_day(86_400_000, Unit::Millis, out)), "24:00:00");
    }

    #[test]
    fn every_integer_has_a_text() {
        assert_eq!(text(|out| timestamp(i64::MAX, Unit::Millis, out)), "+292278994-08-17T07:12:55.807");
        assert_eq!(text(|out| timestamp(i64::MIN, Unit::Millis, out)), "-292275055-05-16T16:47:04.192");
        assert_eq!(text(|out| date(-719_529, out)), "-0001-12-31");
        assert_eq!(text(|out| date(-719_528, out)), "0000-01-01");
        assert_eq!(text(|out| date(2_932_896, out)), "9999-12-31");
        assert_eq!(text(|out| date(2_932_897, out)), "+10000-01-01");
        assert_eq!(text(|out| date(i64::from(i32::MIN), out)), "-5877641-06-23");
        assert_eq!(text(|out| date(i64::from(i32::MAX), out)), "+5881580-07-11");
    }

    proptest! {
        #[test]
        fn timestamps_are_read_back_as_they_were(micros in -62_000_000_000_000_000..250_000_000_000_000_000_i64) {
            let shown = text(|out| timestamp(micros, Unit::Micros, out)) + "Z";
            let read = DateTime::parse_from_rfc3339(&shown).unwrap();
            prop_assert_eq!(read.timestamp_micros(), micros);
            let theirs = read.to_utc().to_rfc3339_opts(SecondsFormat::Secs, true);
            prop_assert_eq!(&shown[..19], &theirs[..19]);
        }

        #[test]
        fn dates_are_those_of_chrono(days in -719_528..2_932_897_i32) {
            let theirs = NaiveDate::from_epoch_days(days).unwrap().to_string();
            prop_assert_eq!(text(|out| date(i64::from(days), out)), theirs);
        }
    }
}
