//! What a reader needs to know about a table of a projection version; stored in `millpond.versions.tables`.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{MAX_IDENTIFIER_BYTES, ident, ident_list};

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

/// An index that a folder asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexInfo {
    /// It begins with `_`, as what is the engine's does, and says what the index is of.
    pub name: String,
    pub table: String,
    pub columns: Vec<String>,
}

/// Hexadecimal digits of a hash that end a name which would be longer.
const DIGITS: usize = 16;

impl IndexInfo {
    pub fn of(table: &str, columns: &[String]) -> Self {
        let mut name = format!("_{table}_by_{}", columns.join(","));
        if name.len() > MAX_IDENTIFIER_BYTES {
            let hash = hex::encode(Sha256::digest(name.as_bytes()));
            name.truncate(name.floor_char_boundary(MAX_IDENTIFIER_BYTES - DIGITS - 1));
            name = format!("{name}_{}", &hash[..DIGITS]);
        }
        Self { name, table: table.to_owned(), columns: columns.to_vec() }
    }

    /// Makes it in a schema; `how` stands behind `create index`.
    pub fn create_sql(&self, schema: &str, how: &str) -> String {
        let (name, table) = (ident(&self.name), ident(&self.table));
        format!("create index {how}{name} on {}.{table} ({})", ident(schema), ident_list(&self.columns))
    }
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
