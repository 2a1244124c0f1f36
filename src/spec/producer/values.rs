//! Times and rates as people write them in a contract.

use std::{num::NonZeroU32, time::Duration};

/// How long a topic keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retention {
    /// The log is read for ever, so that is the default.
    #[default]
    Forever,
    For(Duration),
}

impl Retention {
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

pub(super) fn retention(text: &str) -> Result<Retention, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = (text[..split].parse::<u64>().ok().filter(|count| *count > 0), text[split..].trim());
    let seconds = |factor: u64| count.and_then(|count| count.checked_mul(factor));
    let found = match unit {
        "forever" if split == 0 => return Ok(Retention::Forever),
        "h" => seconds(3_600),
        "d" => seconds(86_400),
        _ => None,
    };
    let time = found.map(|seconds| Retention::For(Duration::from_secs(seconds)));
    time.ok_or_else(|| format!("must be \"forever\", or a time such as \"30d\" or \"12h\", but is {text:?}"))
}

pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let found = text.split_once('/').and_then(|(count, unit)| {
        let seconds = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            _ => return None,
        };
        Some(Rate { records: count.trim().parse().ok()?, per: Duration::from_secs(seconds) })
    });
    found.ok_or_else(|| {
        format!("must be records in a time, such as \"10000/s\", \"600/m\" or \"50/h\", but is {text:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_in_milliseconds_for_kafka() {
        assert_eq!(retention("forever").map(Retention::as_retention_ms), Ok(-1));
        assert_eq!(retention("30d").map(Retention::as_retention_ms), Ok(2_592_000_000));
        for faulty in ["30 days", "0d", "", "d", "1forever", "99999999999999999999d", "18446744073709551615d"] {
            assert!(retention(faulty).is_err(), "{faulty}");
        }
    }

    #[test]
    fn rates_are_records_in_a_time() {
        let minute = rate("600/m").unwrap();
        assert_eq!((minute.records.get(), minute.per), (600, Duration::from_secs(60)));
        for faulty in ["600", "0/s", "600/d", "x/s", "-1/s"] {
            assert!(rate(faulty).is_err(), "{faulty}");
        }
    }
}
