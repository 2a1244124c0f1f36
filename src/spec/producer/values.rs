//! Sizes, times and rates as people write them in a contract.

use std::{num::NonZeroU32, time::Duration};

use toml::de::DeValue;

/// How long a topic keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retention {
    /// The log is read for ever, so that is the default.
    #[default]
    Forever,
    For(Duration),
}

impl Retention {
    pub(super) fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        let refuse =
            || format!("is not a retention: \"forever\", or a time such as \"30d\" or \"12h\"; found {}", shown(value));
        match value.as_str() {
            Some("forever") => Ok(Self::Forever),
            Some(text) => duration(text).map(Self::For).ok_or_else(refuse),
            None => Err(refuse()),
        }
    }

    /// As Kafka's `retention.ms`.
    pub fn as_retention_ms(self) -> i64 {
        match self {
            Self::Forever => -1,
            Self::For(time) => i64::try_from(time.as_millis()).unwrap_or(i64::MAX),
        }
    }
}

/// Most records in a time, written `10000/s`, `600/m` or `50/h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub records: NonZeroU32,
    pub per: Duration,
}

impl Rate {
    pub(super) fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        let parts = value.as_str().and_then(|text| text.split_once('/'));
        let parsed = parts.and_then(|(count, unit)| {
            let seconds = match unit.trim() {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return None,
            };
            Some(Self { records: count.trim().parse().ok()?, per: Duration::from_secs(seconds) })
        });
        parsed
            .ok_or_else(|| format!("is not a rate, such as \"10000/s\", \"600/m\" or \"50/h\"; found {}", shown(value)))
    }
}

/// A size in bytes: `65536`, `"64KiB"`, `"1MiB"`, at least 1.
pub(super) fn byte_size(value: &DeValue<'_>) -> Result<usize, String> {
    let parsed = match value {
        DeValue::Integer(integer) => integer.as_str().parse::<usize>().ok(),
        DeValue::String(text) => {
            let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
            let unit: Option<usize> = match text[digits.len()..].trim() {
                "" | "B" => Some(1),
                "KiB" => Some(1 << 10),
                "MiB" => Some(1 << 20),
                _ => None,
            };
            unit.and_then(|unit| digits.parse::<usize>().ok()?.checked_mul(unit))
        }
        _ => None,
    };
    parsed
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("is not a size, such as \"64KiB\" or \"1MiB\"; found {}", shown(value)))
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let seconds = match text[digits.len()..].trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let count: u64 = digits.parse().ok()?;
    (count > 0).then(|| count.checked_mul(seconds)).flatten().map(Duration::from_secs)
}

/// A value of the contract for a message.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
        DeValue::Integer(integer) => integer.as_str().to_owned(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        other => format!("a value of type {}", other.type_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> DeValue<'_> {
        DeValue::String(text.into())
    }

    #[test]
    fn sizes_are_read_in_bytes() {
        assert_eq!(byte_size(&text("64KiB")), Ok(65_536));
        assert_eq!(byte_size(&text("1 MiB")), Ok(1 << 20));
        assert_eq!(byte_size(&text("10")), Ok(10));
        for faulty in ["", "64KB", "-1", "0", "KiB", "99999999999999999999MiB"] {
            assert!(byte_size(&text(faulty)).is_err(), "{faulty}");
        }
    }

    #[test]
    fn retention_is_in_milliseconds_for_kafka() {
        assert_eq!(Retention::parse(&text("forever")).map(Retention::as_retention_ms), Ok(-1));
        assert_eq!(Retention::parse(&text("30d")).map(Retention::as_retention_ms), Ok(2_592_000_000));
        assert!(Retention::parse(&text("30 days")).is_err());
        assert!(Retention::parse(&text("0d")).is_err());
    }

    #[test]
    fn rates_are_records_in_a_time() {
        let rate = Rate::parse(&text("600/m")).unwrap();
        assert_eq!((rate.records.get(), rate.per), (600, Duration::from_secs(60)));
        for faulty in ["600", "0/s", "600/d", "x/s", "-1/s"] {
            assert!(Rate::parse(&text(faulty)).is_err(), "{faulty}");
        }
    }
}
