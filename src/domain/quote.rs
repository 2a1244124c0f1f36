//! Names and values as SQL text. Everything that is spliced into a statement passes through here.

/// An identifier in double quotes.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal, safe with either setting of `standard_conforming_strings`; NUL, which Postgres cannot hold, is dropped.
pub fn literal(text: &str) -> String {
    let text = text.replace('\0', "");
    if text.contains('\\') {
        return format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    }
    format!("'{}'", text.replace('\'', "''"))
}

/// A `bytea` literal, or `null`.
pub fn bytea(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "null".to_owned(),
        Some(bytes) => format!("decode('{}', 'hex')", hex::encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_and_texts_stay_inside_their_quotes() {
        assert_eq!(ident(r#"a"; drop table x; --"#), r#""a""; drop table x; --""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\' or 1=1"), r"E'a\\'' or 1=1'");
        assert_eq!(literal("a\0b"), "'ab'");
        assert_eq!(bytea(Some(b"\x00'")), "decode('0027', 'hex')");
    }
}
