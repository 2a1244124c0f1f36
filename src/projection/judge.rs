//! What any statement of a consumer may use: its own relations and tables, and functions of nothing but their arguments.

use std::collections::BTreeSet;

use super::{
    scratch::Functions,
    statements::SqlStatement,
    uses::{Call, Uses},
};
use crate::{
    domain::nearest,
    spec::{SpecFault, listing},
};

/// Functions that Postgres calls stable only because they depend on settings that sessions pin, or on other types'
/// text output, which those settings pin too.
const PINNED_BY_SESSION: &[&str] = &[
    "age",
    "array_agg",
    "array_to_json",
    "array_to_string",
    "concat",
    "concat_ws",
    "date",
    "date_part",
    "date_trunc",
    "extract",
    "format",
    "generate_series",
    "interval",
    "json_agg",
    "json_build_array",
    "json_build_object",
    "json_object_agg",
    "json_to_record",
    "json_to_recordset",
    "jsonb_agg",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_object_agg",
    "jsonb_path_exists_tz",
    "jsonb_path_match_tz",
    "jsonb_path_query_array_tz",
    "jsonb_path_query_first_tz",
    "jsonb_path_query_tz",
    "jsonb_to_record",
    "jsonb_to_recordset",
    "make_timestamptz",
    "money",
    "overlaps",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "string_agg",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "timezone",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_timestamp",
    "to_tsquery",
    "to_tsvector",
    "plainto_tsquery",
    "phraseto_tsquery",
    "websearch_to_tsquery",
    "unnest",
];

/// The names that a consumer's SQL may speak of.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub relations: BTreeSet<String>,
    pub references: BTreeSet<String>,
    pub tables: BTreeSet<String>,
}

impl Names {
    fn known(&self, name: &str) -> bool {
        self.relations.contains(name) || self.references.contains(name) || self.tables.contains(name)
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.relations.iter().chain(&self.references).chain(&self.tables).map(String::as_str)
    }
}

/// The faults of a statement that hold in every kind of SQL file.
pub(super) fn judge(statement: &SqlStatement, uses: &Uses, functions: &Functions, names: &Names) -> Vec<SpecFault> {
    let mut faults: Vec<String> = Vec::new();
    faults.extend(uses.calls.iter().filter_map(|call| call_fault(call, functions)));
    for word in &uses.ambient {
        faults.push(ambient_fault(word));
    }
    for text in &uses.clock_literals {
        faults.push(format!(
            "'{text}' reads the clock where a date is meant; take the time from the record, or write '{text}'::text"
        ));
    }
    for column in &uses.system_columns {
        faults.push(format!("`{column}` tells where Postgres keeps a row, which a rebuild changes; remove it"));
    }
    for name in &uses.catalog_types {
        faults.push(format!("type `{name}` reads the server's catalogue, which is not in the log; remove the cast"));
    }
    for name in &uses.foreign_types {
        faults.push(format!("type `{name}` is not one of Postgres' own; cast to one, such as text or numeric(10,2)"));
    }
    if uses.sampled {
        faults.push("`tablesample` gives other rows each time; remove it".into());
    }
    if uses.table_commands {
        faults.push("`table x` in the place of a select is not read here; write `select * from x`".into());
    }
    if uses.locking {
        faults.push("`for update` and its kin have no use here: the engine orders writers; remove it".into());
    }
    for name in &uses.qualified {
        faults.push(format!(
            "`{name}` names a schema; only this consumer's own relations and tables can be read, without one"
        ));
    }
    for cte in uses.ctes.iter().filter(|cte| names.known(cte)) {
        faults.push(format!("`with {cte}` hides the relation or table of that name; give it another"));
    }
    for table in uses.tables.iter().filter(|table| !names.known(table)) {
        faults.push(unknown_table(table, names));
    }
    faults.sort();
    faults.dedup();
    faults.into_iter().map(|message| statement.fault(message)).collect()
}

fn unknown_table(table: &str, names: &Names) -> String {
    let hint = match nearest(table, names.all()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("this consumer knows {}", listing(names.all())),
    };
    format!("`{table}` is not an input relation, a reference table or a table of this consumer; {hint}")
}

fn ambient_fault(word: &str) -> String {
    if word.contains("time") || word.contains("date") {
        clock_fault(word)
    } else {
        format!("`{word}` depends on the session, not on the record; remove it")
    }
}

fn clock_fault(what: &str) -> String {
    format!(
        "`{what}` reads the clock, and a rebuild would read another time; use a field of the record or `_timestamp`"
    )
}

/// Text that is computed as the record is applied, read as a date of type `name`.
pub(super) fn text_as_date(name: &str) -> String {
    format!(
        "text is read as `{name}`, and text such as 'now' or 'today' reads the clock; use a field of a time type, or \
         to_timestamp(text, format) or to_date(text, format)"
    )
}

fn call_fault(call: &Call, functions: &Functions) -> Option<String> {
    let name = &call.name;
    if let Some(schema) = call.schema.as_ref().filter(|schema| *schema != "pg_catalog") {
        return Some(format!("function `{schema}.{name}` is not one of Postgres' own; only those can be used"));
    }
    if matches!(
        name.as_str(),
        "now" | "transaction_timestamp" | "statement_timestamp" | "clock_timestamp" | "timeofday"
    ) {
        return Some(clock_fault(name));
    }
    if name == "age" && call.arguments < 2 {
        return Some("`age` of one time reads the clock; write age(later, earlier)".into());
    }
    if matches!(name.as_str(), "nextval" | "currval" | "lastval" | "setval") {
        return Some(format!(
            "`{name}` counts batches, not records: a rebuild would give other numbers; use `_offset` or a key"
        ));
    }
    if name.starts_with("json") && name.contains("_populate_record") {
        return Some(format!(
            "`{name}` may read dates from text, and text such as 'now' reads the clock; name the fields, as in x ->> 'field'"
        ));
    }
    let traits = functions.get(name)?;
    if name.starts_with("pg_") {
        return Some(format!("`{name}` reads or changes the server, not the record; remove it"));
    }
    if traits.volatile {
        return Some(format!(
            "`{name}` is volatile: it gives another value each time; derive the value from the record"
        ));
    }
    if traits.stable && !PINNED_BY_SESSION.contains(&name.as_str()) {
        return Some(format!("`{name}` depends on the server or the session, not on the record; remove it"));
    }
    None
}
