//! The nearest of some names, for "did you mean".

/// The name that was probably meant: the same but for case and underscores, or a few letters off.
pub(super) fn nearest<'a>(name: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Anything longer is not a slip of the finger, and the distance costs the product of both lengths.
    const LONGEST: usize = 100;
    if name.len() > LONGEST {
        return None;
    }
    let plain =
        |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    let wanted = plain(name);
    let allowed = (wanted.chars().count() / 3).clamp(1, 3);
    among
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let fields = ["carrier", "flight_number", "scheduled_at"];
        for (name, expected) in [
            ("carier", Some("carrier")),
            ("flightNumber", Some("flight_number")),
            ("SCHEDULED_AT", Some("scheduled_at")),
            ("sheduledat", Some("scheduled_at")),
            ("destination", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, fields.into_iter()), expected, "{name}");
        }
    }
}
