//! What a reader needs to know about a table of a projection version; stored in `millpond.versions.tables`.

use serde::{Deserialize, Serialize};

/// The schema that holds the tables of one version of a projection.
pub fn schema_name(projection: &str, version: i32) -> String {
    format!("p_{projection}_v{version}")
}

/// One table of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    /// Name within its consumer, as in `consumer.toml`.
    pub name: String,
    /// Columns of the primary key, in order.
    pub key: Vec<String>,
    /// The columns people may read, in the table's order; the engine's own columns (`_…`) are not among them.
    pub columns: Vec<ColumnInfo>,
}

/// One readable column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnInfo {
    pub name: String,
    /// Postgres' own name of the type, as `format_type` prints it: `timestamp with time zone`, `numeric(10,2)`, `text[]`.
    #[serde(rename = "type")]
    pub pg_type: String,
    pub nullable: bool,
}
