//! Types as they stand in SQL. The only place of `serve` that writes one.

/// Whether a type, as `format_type` prints it, may be written into SQL.
pub fn is_type(pg_type: &str) -> bool {
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '_' | ' ' | ',' | '(' | ')' | '[' | ']' | '.' | '"');
    !pg_type.is_empty()
        && pg_type.len() <= 200
        && pg_type.chars().all(legal)
        && pg_type.matches('"').count().is_multiple_of(2)
}

/// The type that a filter's value is read as: without length or precision, for a cast to `varchar(3)` or
/// `numeric(10,2)` would quietly cut the value and find rows that were not asked for.
pub fn value_type(pg_type: &str) -> String {
    let mut out = String::with_capacity(pg_type.len());
    let mut depth = 0_u32;
    for c in pg_type.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            c if depth == 0 => out.push(c),
            _ => {}
        }
    }
    let (element, dimensions) = out.split_at(out.find('[').unwrap_or(out.len()));
    // Bare `character` and `bit` mean a length of one, and an interval's fields are precision too.
    let element = match element {
        "character" => "bpchar",
        "bit" => "varbit",
        fields if fields.starts_with("interval") => "interval",
        other => other,
    };
    format!("{element}{dimensions}")
}

/// Whether values are moments, or arrays of them.
pub fn is_instant(pg_type: &str) -> bool {
    value_type(pg_type).trim_end_matches("[]") == "timestamp with time zone"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_types_lose_length_and_precision() {
        for (declared, read) in [
            ("numeric(10,2)", "numeric"),
            ("character varying(3)", "character varying"),
            ("character(3)", "bpchar"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("interval day to second(3)", "interval"),
            ("numeric(10,2)[]", "numeric[]"),
            ("bigint", "bigint"),
        ] {
            assert_eq!(value_type(declared), read);
        }
    }

    #[test]
    fn types_that_end_the_statement_are_refused() {
        for bad in ["", "int; drop table x", "int'", "int--", "int/**/", "\"a"] {
            assert!(!is_type(bad), "{bad}");
        }
        assert!(is_type("timestamp(3) with time zone") && is_type("p_flights_v1.\"State\"[]"));
    }
}
