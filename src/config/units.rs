//! Durations and sizes as people write them: `20ms`, `10s`, `4MiB`.

use std::time::Duration;

/// A duration: a whole number and `ms`, `s`, `min` or `h`.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "min" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

/// A number of bytes: a whole number and `B`, `KiB`, `MiB` or `GiB`.
pub fn bytes(text: &str) -> Option<usize> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    usize::try_from(number.checked_mul(factor)?).ok()
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_anything_else_is_refused() {
        assert_eq!(duration("20ms"), Some(Duration::from_millis(20)));
        assert_eq!(duration("2 min"), Some(Duration::from_secs(120)));
        assert_eq!(bytes("4MiB"), Some(4 << 20));
        for text in ["", "20", "ms", "-1s", "1 fortnight", "99999999999999999999s", "18446744073709551615GiB"] {
            assert_eq!((duration(text), bytes(text)), (None, None), "{text}");
        }
    }
}
