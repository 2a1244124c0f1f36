//! The name that was probably meant, for "did you mean". Only faults ask, so it is kept off the paths that they leave.

/// The best of [`near`].
#[cold]
pub fn nearest<'a>(name: &str, among: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    near(name, among).into_iter().next()
}

/// The names that may have been meant, the likeliest first: the same but for case and punctuation, a few letters off, or
/// longer ones that begin so.
#[cold]
pub fn near<'a>(name: &str, among: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    // Anything longer is not a slip of the finger, and the distance costs the product of both lengths.
    const LONGEST: usize = 100;
    // With less than that, too many names begin.
    const SHORTEST_BEGINNING: usize = 3;
    let plain =
        |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    let wanted = plain(name);
    if name.len() > LONGEST || wanted.is_empty() {
        return Vec::new();
    }
    let letters = wanted.chars().count();
    let allowed = (letters / 3).clamp(1, 3);
    let unlikeness = |candidate: &str| {
        let candidate = plain(candidate);
        let distance = strsim::damerau_levenshtein(&wanted, &candidate);
        // Two letters that are both wrong are two names.
        let slip = distance <= allowed && distance < letters.max(candidate.chars().count());
        let beginning = letters >= SHORTEST_BEGINNING && candidate.starts_with(&wanted);
        (slip || beginning).then_some((!slip, distance))
    };
    let mut found: Vec<_> = among
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .filter_map(|candidate| unlikeness(candidate).map(|unlikeness| (unlikeness, candidate)))
        .collect();
    found.sort_by_key(|(unlikeness, _)| *unlikeness);
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_of_a_slip_is_the_name_meant() {
        let fields = ["carrier", "flight_number", "scheduled_at", "flight_id", "x"];
        for (name, expected) in [
            ("carier", Some("carrier")),
            ("flightNumber", Some("flight_number")),
            ("SCHEDULED_AT", Some("scheduled_at")),
            ("sheduledat", Some("scheduled_at")),
            ("scheduled", Some("scheduled_at")),
            ("destination", None),
            ("y", None),
            ("xs", Some("x")),
            ("", None),
            ("_", None),
        ] {
            assert_eq!(nearest(name, fields), expected, "{name}");
        }
        assert_eq!(nearest(&"carrier".repeat(20), fields), None);
    }

    #[test]
    fn near_of_a_beginning_puts_the_shortest_first_and_slips_before() {
        assert_eq!(near("flight", ["flight_number", "flight_id", "fright"]), ["fright", "flight_id", "flight_number"]);
    }
}
