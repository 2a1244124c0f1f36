//! From tree to text: one canonical form, which parses to the same tree. It identifies a query in cursors.

use std::fmt::{self, Display, Formatter, Write};

use super::{Filter, Ordered, Query, Selected, Test};

impl Display for Selected {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(alias) = &self.alias {
            write!(f, "{}:", Word(alias))?;
        }
        write!(f, "{}", Word(&self.column))?;
        f.write_str(if self.as_text { "::text" } else { "" })
    }
}

impl Display for Ordered {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Word(&self.column), if self.descending { ".desc" } else { ".asc" })?;
        f.write_str(match self.nulls_first {
            None => "",
            Some(true) => ".nullsfirst",
            Some(false) => ".nullslast",
        })
    }
}

/// As inside a group; a group itself with its word, `and(…)`.
impl Display for Filter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Filter::All(items) => write!(f, "and({})", List(items)),
            Filter::Any(items) => write!(f, "or({})", List(items)),
            Filter::Not(inner) => match &**inner {
                Filter::Is { column, test } => write!(f, "{}.not.{test}", Word(column)),
                // `not.not.` is not in the grammar; a group of one says the same.
                Filter::Not(_) => write!(f, "not.and({inner})"),
                group => write!(f, "not.{group}"),
            },
            Filter::Is { column, test } => write!(f, "{}.{test}", Word(column)),
        }
    }
}

/// `op.value`, the value quoted where a group needs it.
impl Display for Test {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Test::Compare(comparison, value) => write!(f, "{}.{}", comparison.word(), Word(value)),
            Test::In(values) => {
                let words: Vec<Word<'_>> = values.iter().map(|value| Word(value)).collect();
                write!(f, "in.({})", List(&words))
            }
            Test::Like { pattern, ignore_case } => {
                write!(f, "{}.{}", if *ignore_case { "ilike" } else { "like" }, Word(pattern))
            }
            Test::Is(known) => write!(f, "is.{}", known.word()),
        }
    }
}

impl Query {
    /// The filters in canonical form, one group per parameter.
    pub fn filters_text(&self) -> String {
        let filters: Vec<&Filter> = self.filters.iter().map(|param| &param.filter).collect();
        List(&filters).to_string()
    }
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A name or value, quoted unless it is plain.
struct Word<'a>(&'a str);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '+' | '@' | '%' | '*');
        if !self.0.is_empty() && self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        f.write_char('"')
    }
}

struct List<'a, T>(&'a [T]);

impl<T: Display> Display for List<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
