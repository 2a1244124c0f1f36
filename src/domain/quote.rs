//! Names and values as SQL text. Everything that is spliced into a statement passes through here.

/// Words that mean something else where a name may stand (`pg_get_keywords()` of Postgres 15 to 18: all but the
/// unreserved ones).
#[rustfmt::skip]
const KEYWORDS: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "between",
    "bigint", "binary", "bit", "boolean", "both", "case", "cast", "char", "character", "check", "coalesce", "collate",
    "collation", "column", "concurrently", "constraint", "create", "cross", "current_catalog", "current_date",
    "current_role", "current_schema", "current_time", "current_timestamp", "current_user", "dec", "decimal",
    "default", "deferrable", "desc", "distinct", "do", "else", "end", "except", "exists", "extract", "false", "fetch",
    "float", "for", "foreign", "freeze", "from", "full", "grant", "greatest", "group", "grouping", "having", "ilike",
    "in", "initially", "inner", "inout", "int", "integer", "intersect", "interval", "into", "is", "isnull", "join",
    "json", "json_array", "json_arrayagg", "json_exists", "json_object", "json_objectagg", "json_query",
    "json_scalar", "json_serialize", "json_table", "json_value", "lateral", "leading", "least", "left", "like",
    "limit", "localtime", "localtimestamp", "merge_action", "national", "natural", "nchar", "none", "normalize",
    "not", "notnull", "null", "nullif", "numeric", "offset", "on", "only", "or", "order", "out", "outer", "overlaps",
    "overlay", "placing", "position", "precision", "primary", "real", "references", "returning", "right", "row",
    "select", "session_user", "setof", "similar", "smallint", "some", "substring", "symmetric", "system_user",
    "table", "tablesample", "then", "time", "timestamp", "to", "trailing", "treat", "trim", "true", "union", "unique",
    "user", "using", "values", "varchar", "variadic", "verbose", "when", "where", "window", "with", "xmlattributes",
    "xmlconcat", "xmlelement", "xmlexists", "xmlforest", "xmlnamespaces", "xmlparse", "xmlpi", "xmlroot",
    "xmlserialize", "xmltable",
];

/// An identifier in double quotes.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Longest identifier that Postgres keeps whole, in bytes.
pub const MAX_IDENTIFIER_BYTES: usize = 63;

/// Identifiers in double quotes, with commas between them.
pub fn ident_list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| ident(name)).collect::<Vec<_>>().join(", ")
}

/// [`ident`] for people to read: bare where that is the same name.
pub fn plain_ident(name: &str) -> String {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let bare = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && name.chars().all(legal);
    if bare && KEYWORDS.binary_search(&name).is_err() { name.to_owned() } else { ident(name) }
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
        assert_eq!(plain_ident(r#"a"; drop table x; --"#), r#""a""; drop table x; --""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\' or 1=1"), r"E'a\\'' or 1=1'");
        assert_eq!(literal("a\0b"), "'ab'");
        assert_eq!(bytea(Some(b"\x00'")), "decode('0027', 'hex')");
    }

    #[test]
    fn name_for_people_is_quoted_only_where_it_would_be_another() {
        assert!(KEYWORDS.is_sorted(), "they are searched by halves");
        for name in ["carrier", "_key", "name", "a1", "users"] {
            assert_eq!(plain_ident(name), name);
        }
        for name in ["user", "order", "end", "timestamp", "left", "flightId", "1a", "", "é", "a b"] {
            assert_eq!(plain_ident(name), ident(name));
        }
    }
}
