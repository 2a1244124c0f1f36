//! The typed relations that SQL sees in the place of records, and how they are staged.

use crate::domain::ident;

/// The columns that stand before a record's own fields in every staging table, in the order of the binary COPY.
pub const METADATA_COLUMNS: &[(&str, &str)] = &[
    ("_key", "text"),
    ("_partition", "integer"),
    ("_offset", "bigint"),
    ("_timestamp", "timestamp with time zone"),
    ("_event_id", "text"),
    ("_seq", "bigint"),
    ("_round", "integer"),
];
/// Their names.
pub(super) static METADATA_NAMES: [&str; METADATA_COLUMNS.len()] = {
    let mut names = [""; METADATA_COLUMNS.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = METADATA_COLUMNS[at].0;
        at += 1;
    }
    names
};
/// The relation of records without a value. It has the metadata columns only.
pub const TOMBSTONES: &str = "tombstones";

/// One input record type as SQL sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// In snake case: `record_departure`.
    pub name: String,
    /// Name of the record type: `RecordDeparture`.
    pub record_type: String,
    /// The record's fields, in the order in which they are staged.
    pub columns: Vec<RelationColumn>,
    /// The field or fields that the record's Kafka key is made of; empty when unknown.
    pub key_fields: Vec<String>,
    /// The input topics that carry the type; empty when unknown, which counts as all topics of the consumer.
    pub topics: Vec<String>,
}

/// One field of a record as a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    pub name: String,
    /// Postgres type, as in DDL: `numeric(10,2)`.
    pub sql_type: String,
    pub nullable: bool,
    /// Whatever of the reader schema decides how bytes become the column's value. Goes into the hash.
    pub definition: String,
}

impl Relation {
    /// The relation of tombstones.
    pub(super) fn tombstones() -> Self {
        Self {
            name: TOMBSTONES.to_owned(),
            record_type: TOMBSTONES.to_owned(),
            columns: Vec::new(),
            key_fields: Vec::new(),
            topics: Vec::new(),
        }
    }

    pub fn column(&self, name: &str) -> Option<&RelationColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The relation with those of its columns that are `wanted`.
    pub(super) fn with_columns(&self, wanted: impl Fn(&RelationColumn) -> bool) -> Self {
        let columns = self.columns.iter().filter(|column| wanted(column)).cloned().collect();
        Self { columns, ..self.clone() }
    }

    /// All staged columns, quoted, in the order of the COPY.
    fn staged_columns(&self) -> impl Iterator<Item = (String, &str)> {
        let metadata = METADATA_COLUMNS.iter().map(|(name, pg_type)| (ident(name), *pg_type));
        metadata.chain(self.columns.iter().map(|column| (ident(&column.name), column.sql_type.as_str())))
    }

    /// Name of the staging table: the relation's own, unless a view of the current round stands in its place.
    fn stage(&self, rounds: bool) -> String {
        if rounds { ident(&format!("_staged_{}", self.name)) } else { ident(&self.name) }
    }

    /// The statements that make the staging table in a session, and the view of the current round over it.
    pub(super) fn staging_sql(&self, rounds: bool) -> Vec<String> {
        let columns: Vec<String> = self.staged_columns().map(|(name, pg_type)| format!("{name} {pg_type}")).collect();
        let stage = self.stage(rounds);
        let mut sql = vec![format!("create temp table {stage} ({}) on commit delete rows", columns.join(", "))];
        if rounds {
            let columns: Vec<String> = self.staged_columns().map(|(name, _)| name).collect();
            sql.push(format!(
                "create temp view {} as select {} from pg_temp.{stage} where _round = current_setting('millpond.round')::integer",
                ident(&self.name),
                columns.join(", ")
            ));
        }
        sql
    }

    /// The COPY that fills the staging table with binary tuples.
    pub(super) fn copy_sql(&self, rounds: bool, metadata: &[&str]) -> String {
        let own = self.columns.iter().map(|column| column.name.as_str());
        let columns: Vec<String> = metadata.iter().copied().chain(own).map(ident).collect();
        format!("copy pg_temp.{} ({}) from stdin (format binary)", self.stage(rounds), columns.join(", "))
    }
}
