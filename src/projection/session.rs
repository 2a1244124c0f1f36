//! What every session that applies batches pins, so that SQL means the same everywhere and at any time.

use crate::domain::ident;

/// Settings and their values as SQL.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    ("timezone", "'UTC'"),
    ("datestyle", "'ISO, YMD'"),
    ("intervalstyle", "'postgres'"),
    ("extra_float_digits", "1"),
    ("bytea_output", "'hex'"),
    ("lc_monetary", "'C'"),
    ("lc_numeric", "'C'"),
    ("lc_time", "'C'"),
    ("default_text_search_config", "'pg_catalog.simple'"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    ("xmloption", "'content'"),
    ("client_min_messages", "'warning'"),
    // Batches are short: compiling a plan costs more than running it.
    ("jit", "off"),
    ("default_transaction_isolation", "'read committed'"),
];

/// Where names resolve: types and functions to Postgres' own, whatever a table is called; relations to the staged
/// rows; tables to the version's own schema; nothing else. No table of `pg_catalog` lacks the prefix `pg_`, which
/// relations and tables may not have.
pub(super) fn search_path(schema: &str, local: bool) -> String {
    let scope = if local { "local" } else { "session" };
    format!("set {scope} search_path = pg_catalog, pg_temp, {}", ident(schema))
}

/// Where `tables.sql` makes its tables. Postgres' own names still come first: it looks there before any schema named.
pub(super) fn creation_path(schema: &str) -> String {
    format!("set local search_path = {}, pg_temp", ident(schema))
}

/// The statements that pin a session to the schema of a version.
pub(super) fn pin_sql(schema: &str) -> Vec<String> {
    let mut sql: Vec<String> = SETTINGS.iter().map(|(name, value)| format!("set session {name} = {value}")).collect();
    sql.push(search_path(schema, false));
    sql.push("discard temp".to_owned());
    sql
}
