//! The settings files in `deploy/dev-servers/`: `name=value` lines and `#` comments.

/// The settings of such a file, in its order. A value keeps its blanks at the end: a log prefix may need one.
#[must_use]
pub fn parse(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_of_comments_and_settings_gives_settings() {
        assert_eq!(parse("# a=b\n\nc=d \n e.f=g=h\n"), [("c", "d "), ("e.f", "g=h")]);
    }
}
