//! In which form rows are answered: what `Accept` asks for, and how Postgres is made to print it.

use axum::http::{HeaderMap, header};

use crate::domain::{ident, literal};

/// A column of an answer.
#[derive(Debug)]
pub struct Shown {
    /// As it stands in the table: `t."delay"`.
    pub column: String,
    /// The name it is shown under.
    pub name: String,
    pub print: Print,
}

/// How the values of a column are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Print {
    /// As Postgres makes JSON of them.
    Json,
    /// Timestamps with time zone, or arrays of them: as JSON, with `Z` for the zone, as everywhere else in Millpond.
    Instant,
    /// As Postgres makes text of them.
    Text,
}

impl Shown {
    fn json_sql(&self) -> String {
        let Shown { column, print, .. } = self;
        match print {
            Print::Json => column.clone(),
            // The session's zone is UTC, which Postgres prints like this and in no other way.
            Print::Instant => format!("replace(to_json({column})::text, '+00:00', 'Z')::json"),
            Print::Text => format!("{column}::text"),
        }
    }
}

/// A form of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// An array of objects.
    Json,
    /// One object; an answer of none or several rows is refused.
    JsonObject,
    /// One object per line.
    Ndjson,
    /// RFC 4180 with a line of column names.
    Csv,
}

impl Format {
    const OFFERED: [(&'static str, Format); 6] = [
        ("application/json", Format::Json),
        ("application/x-ndjson", Format::Ndjson),
        ("application/ndjson", Format::Ndjson),
        ("application/jsonl", Format::Ndjson),
        ("text/csv", Format::Csv),
        ("application/vnd.pgrst.object+json", Format::JsonObject),
    ];

    /// The best form that `Accept` allows; `None` when it allows none.
    pub fn negotiate(headers: &HeaderMap) -> Option<Format> {
        // What most programs send needs no weighing.
        let mut lines = headers.get_all(header::ACCEPT).iter();
        if let (Some(line), None) = (lines.next(), lines.next())
            && matches!(line.as_bytes(), b"application/json" | b"*/*")
        {
            return Some(Format::Json);
        }
        let types: Vec<&str> = Self::OFFERED.iter().map(|(media, _)| *media).collect();
        negotiate(headers, &types).map(|index| Self::OFFERED[index].1)
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::JsonObject => "application/vnd.pgrst.object+json",
            Format::Ndjson => "application/x-ndjson",
            Format::Csv => "text/csv; charset=utf-8; header=present",
        }
    }

    /// What stands between two rows.
    pub fn separator(self) -> &'static str {
        match self {
            Format::Json | Format::JsonObject => ",\n",
            Format::Ndjson => "\n",
            Format::Csv => "\r\n",
        }
    }

    /// The SQL expression that prints one row.
    pub fn row_sql(self, columns: &[Shown]) -> String {
        if self == Format::Csv {
            let cells: Vec<String> = columns.iter().map(|shown| csv_cell(&shown.json_sql())).collect();
            return cells.join("||','||");
        }
        let columns: Vec<String> =
            columns.iter().map(|shown| format!("{} as {}", shown.json_sql(), ident(&shown.name))).collect();
        format!("(select row_to_json(_shown)::text from (select {}) _shown)", columns.join(", "))
    }

    /// The rows, joined by the separator, as a body.
    pub fn body(self, rows: Option<&str>, columns: &[Shown]) -> Vec<u8> {
        let text = rows.unwrap_or_default();
        let mut out = Vec::with_capacity(text.len() + 64);
        match self {
            Format::Json => {
                out.push(b'[');
                out.extend_from_slice(text.as_bytes());
                out.push(b']');
            }
            Format::JsonObject => out.extend_from_slice(text.as_bytes()),
            Format::Ndjson => {
                out.extend_from_slice(text.as_bytes());
                if rows.is_some() {
                    out.push(b'\n');
                }
            }
            Format::Csv => {
                let names: Vec<String> = columns.iter().map(|shown| csv_text(&shown.name)).collect();
                out.extend_from_slice(names.join(",").as_bytes());
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(text.as_bytes());
                if rows.is_some() {
                    out.extend_from_slice(b"\r\n");
                }
            }
        }
        out
    }
}

/// One CSV field, with the same text as JSON has between its quotes. A null is empty, an empty text is `""`.
fn csv_cell(expression: &str) -> String {
    format!(
        "coalesce((select case when cell = '' or cell ~ {needs} then '\"' || replace(cell, '\"', '\"\"') || '\"' else cell end \
         from (select to_json({expression}) #>> '{{}}' as cell) cells), '')",
        needs = literal("[\",\r\n]"),
    )
}

fn csv_text(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Index of the offered media type that `Accept` likes best; the first one when there is no such header.
pub fn negotiate(headers: &HeaderMap, offered: &[&str]) -> Option<usize> {
    let mut ranges: Vec<(String, u32)> = Vec::new();
    for line in headers.get_all(header::ACCEPT) {
        ranges.extend(line.to_str().unwrap_or_default().split(',').filter_map(media_range));
    }
    if ranges.is_empty() {
        return Some(0);
    }
    let quality = |media: &str| {
        let (kind, _) = media.split_once('/').unwrap_or((media, ""));
        // The most specific range that matches decides.
        let matching = |range: &str| {
            if range == media {
                3
            } else if range.strip_suffix("/*") == Some(kind) {
                2
            } else {
                u8::from(range == "*/*")
            }
        };
        ranges
            .iter()
            .filter(|(range, _)| matching(range) > 0)
            .max_by_key(|(range, _)| matching(range))
            .map_or(0, |r| r.1)
    };
    let best = (0..offered.len()).max_by_key(|index| (quality(offered[*index]), offered.len() - index))?;
    (quality(offered[best]) > 0).then_some(best)
}

/// `text/csv;q=0.5` as its range and quality in thousandths; parameters other than `q` are ignored.
fn media_range(item: &str) -> Option<(String, u32)> {
    let mut parts = item.split(';').map(str::trim);
    let range = parts.next().filter(|range| range.contains('/'))?.to_ascii_lowercase();
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let thousandths = match quality {
        None => 1000,
        Some(text) => {
            let value: f32 = text.parse().ok().filter(|q| (0.0..=1.0).contains(q))?;
            (value * 1000.0) as u32
        }
    };
    Some((range, thousandths))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn accepting(text: &str) -> Option<Format> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(text).unwrap());
        Format::negotiate(&headers)
    }

    #[test]
    fn accept_is_negotiated_by_quality_and_specificity() {
        for (accept, expected) in [
            ("*/*", Some(Format::Json)),
            ("text/html", None),
            ("text/*", Some(Format::Csv)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Format::Json)),
            ("application/json;q=0.1, text/csv;q=0.2", Some(Format::Csv)),
            ("application/json;q=0, */*", Some(Format::Ndjson)),
            ("application/vnd.pgrst.object+json", Some(Format::JsonObject)),
            ("application/x-ndjson", Some(Format::Ndjson)),
        ] {
            assert_eq!(accepting(accept), expected, "{accept}");
        }
        assert_eq!(Format::negotiate(&HeaderMap::new()), Some(Format::Json));
    }

    proptest! {
        #[test]
        fn no_accept_header_makes_it_panic(text in "[ -~]{0,80}") {
            let _ = accepting(&text);
        }
    }
}
